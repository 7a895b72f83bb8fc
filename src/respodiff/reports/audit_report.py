"""What people see of an audit: lines for the console, and one page with charts, images of the worst prompts and the commands to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from respodiff.concepts.intersections import JOIN
from respodiff.evaluation.audit import estimate
from respodiff.evaluation.score_files import confined
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.verdicts import flags_of
from respodiff.reports import charts
from respodiff.reports.html import Section, html_report
from respodiff.reports.tables import estimate as as_estimate
from respodiff.reports.tables import p_value

WORST, ROWS, IMAGES, MOST = 5, 24, 12, 500
"""Prompts of an attribute on the console; prompts of a chart; images of a prompt on the page (of twice `WORST` prompts); table rows."""
ATTRIBUTES = (
    "Most biased first. DevRat is 0 where the shares of every prompt are as wanted, and 1 where all images of a prompt are of one kind; the "
    "random level is what chance alone would show at this number of images. Brackets hold 95 % intervals."
)
WORST_PROMPTS = (
    f"Images in their order, the first {IMAGES} at most, none chosen by hand. Beside them what is furthest from its share, "
    "under each what the judge sees."
)
CHARTS = "The longer a line, the less these images say. Lines that reach 0 leave it open whether the prompt is biased at all."
SHARE, DEVRAT = "share of images, line: 95 % interval", "DevRat, line: 95 % intervals that hold all at once"
HOW = (
    "DevRat is 0 for the wanted proportions and 1 for one group only. Floor: what a perfect generator that draws at random would show at this "
    "number of images. Attributes are ordered by how far they are above their random level.",
    "The intervals of attributes hold for all of them at once, and so do those of prompts for every prompt and attribute "
    "(Bonferroni; exact for a prompt, whose images start from independent noise; bootstraps over prompts for an attribute). They stay "
    "true of the rows that come first because they look worst.",
    "Biased: p is at most .05 after Holm's adjustment, over all attributes for an attribute, over all prompts and attributes for a "
    "prompt. In each of these two families nothing that is as wanted is called biased with 95 % probability. What is not called so may "
    "still be: more images would tell.",
    "Seen where stated: share of images whose prompt states the concept in which the judge sees it. Where that is not shown to be more than "
    "chance, either the judge does not know the attribute or the model cannot draw it. It cannot be distinguished, then: its figures mean "
    "nothing, and are in the tables alone.",
    "A judge errs, and more on some groups than on others: its errors move shares. Labels name what an image looks like.",
)


def shown(e: Mapping[str, Any] | None) -> str:
    """A figure with its interval, in words."""
    return "nothing to judge" if e is None else f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


def lines(found: Mapping[str, Any]) -> list[str]:
    """The console table: every attribute with its worst prompts, and what to do."""
    out = [f"{found['n']} images, {found['unknown']} not judged, judge {found['judge']['name']} ({found['judge']['digest']})"]
    out += [f"note: {problem}" for problem in found["problems"]]
    for a in found["attributes"]:
        rows = [r for r in found["ranking"] if r["attribute"] == a["attribute"]]
        count = sum(r["biased"] for r in rows)
        out.append(
            f"{a['attribute']}: mean DevRat {shown(a['bias'])}, random level {a['bias']['random']:.3f}, p (Holm) {p_value(a['p_holm'])}"
        )
        out.append(f"  {verdict(a)}; {count} of {len(rows)} prompts shown to be biased")
        for r in rows[:WORST]:
            out.append(f"  {r['prompt']}: {words(r)}, DevRat {shown(vars(estimate(r)))}, p (Holm) {p_value(r['p_holm'])}")
    out += ["to train:" if found["suggest"] else "nothing to train: no attribute is shown to be biased at this number of images"]
    out += [f"  {command}" for command in found["suggest"]]
    return [*out, "Labels are what the judge perceives in generated images, never facts about people."]


def verdict(a: Mapping[str, Any]) -> str:
    """In words: biased, not shown to be, or not to be trusted."""
    told = a["judge_validity"]
    if told and not told["beyond_chance"]:
        return f"cannot be distinguished: what a prompt states is seen in {shown(told)} of {told['n']} images, no more than chance"
    known = f", the judge sees what a prompt states in {shown(told)}" if told else ""
    return ("biased" if a["biased"] else "not shown to be biased") + known


def words(r: Mapping[str, Any]) -> str:
    """What is furthest from its share: "man 16 of 16 (wanted 0.50)"."""
    far = r["most_deviant"]
    return f"{far['concept']} {r['counts'][far['concept']]} of {r['n']} (wanted {far['wanted']:.2f})"


def write(path: Path, found: Mapping[str, Any], run: ScoredRun) -> Path:
    """Write the page."""
    names, prompts = [a["attribute"] for a in found["attributes"]], len({r["prompt"] for r in found["ranking"]})
    model = run.records[0].model or "without a name"
    lead = f"{found['n']:,} images of {prompts} prompts, drawn by the model {model} and judged for {', '.join(names)}. {_first(found)}"
    sections = [Section("Attributes", ATTRIBUTES, table=[_attribute(a) for a in found["attributes"]], parts=[_proportions(found)])]
    if found["problems"]:
        sections.append(Section("What limits this audit", notes=found["problems"]))
    sections += [
        Section("What to train", _todo(found), commands=list(found["suggest"])),
        Section("Worst prompts", WORST_PROMPTS, parts=[_gallery(found, run)]),
        Section("DevRat of the worst prompts", CHARTS, parts=[_chart(found, name) for name in _telling(found)]),
        Section(f"The first {MOST} rows", table=[_row(r) for r in found["ranking"][:MOST]], folded=True)
        if len(found["ranking"]) > MOST
        else Section("All prompts and attributes", table=[_row(r) for r in found["ranking"]], folded=True),
    ]
    if found["intersection"]:
        sections.append(Section("Combinations", table=[_cell(c) for c in found["intersection"]["subgroups"]], folded=True))
    sections.append(Section("How to read it", notes=[*HOW, *_agreement(found)]))
    provenance = Section("Provenance", table=_judges(found), notes=[f"run {run.settings}"], commands=[found["command"]], folded=True)
    return html_report(path, title="Audit: which attributes are biased, and where", lead=lead, sections=[*sections, provenance])


def _first(found: Mapping[str, Any]) -> str:
    """What was found, in a sentence or two."""
    said = []
    for a in found["attributes"]:
        rows = [r["biased"] for r in found["ranking"] if r["attribute"] == a["attribute"]]
        where = f"on {sum(rows)} of {len(rows)} prompts taken by themselves" if any(rows) else "over all prompts, on none taken by itself"
        said += [f"{a['attribute']} ({where})"] * a["biased"]
    told = [a["attribute"] for a in found["attributes"] if not _told(a)]
    first = f"Shown to be biased: {', '.join(said)}." if said else "No attribute is shown to be biased."
    return first + (f" Not shown to be distinguished by this judge: {', '.join(told)}." if told else "")


def _told(a: Mapping[str, Any]) -> bool:
    """Whether the judge sees what a prompt states, as far as that was checked."""
    return not a["judge_validity"] or bool(a["judge_validity"]["beyond_chance"])


def _telling(found: Mapping[str, Any]) -> list[str]:
    """Attributes whose figures mean something; all of them where none does."""
    names = [a["attribute"] for a in found["attributes"]]
    return [a["attribute"] for a in found["attributes"] if _told(a)] or names


def _todo(found: Mapping[str, Any]) -> str:
    if not found["suggest"]:
        return "Nothing: no attribute is shown to be biased at this number of images."
    return (
        "In turn: a module for every concept of the biased attributes, the same prompts drawn with these modules, "
        "and a page that sets both runs side by side."
    )


def _attribute(a: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attribute": a["attribute"],
        "finding": verdict(a).partition(",")[0].partition(":")[0],
        "mean DevRat": estimate(a),
        "random": a["bias"]["random"],
        "p (Holm)": p_value(a["p_holm"]),
        "seen where stated": as_estimate(a["judge_validity"]),
    }


def _proportions(found: Mapping[str, Any]) -> charts.Dots:
    """Shares of all alternatives over all prompts, beside the wanted ones."""
    shown = [a for a in found["attributes"] if a["attribute"] in _telling(found)]
    rows = [(f"{a['attribute']}: {c}", as_estimate(e), a["wanted"][c]) for a in shown for c, e in a["proportions"].items()]
    wanted = {name: share for name, _, share in rows}
    return charts.Dots("Shares over all prompts together", [SHARE], [(name, {SHARE: e}) for name, e, _ in rows], target=wanted)


def _row(r: Mapping[str, Any]) -> dict[str, Any]:
    seen = ", ".join(f"{c} {k}" for c, k in r["counts"].items())
    return {
        "attribute": r["attribute"],
        "prompt": r["text"],
        "seen": seen + (f", unknown {r['unknown']}" if r["unknown"] else ""),
        "DevRat": estimate(r),
        "random": r["random"],
        "p (Holm)": p_value(r["p_holm"]),
        "biased": "yes" if r["biased"] else "not shown",
    }


def _cell(c: Mapping[str, Any]) -> dict[str, Any]:
    share: Any = "too few to show" if c["suppressed"] else as_estimate(c["share"])
    return {"subgroup": " x ".join(c["subgroup"]), "images": c["count"], "share": share, "wanted": c["target"]}


def _chart(found: Mapping[str, Any], name: str) -> charts.Dots:
    rows = [r for r in found["ranking"] if r["attribute"] == name]
    which = f"{name}, the {ROWS} worst of {len(rows)} prompts" if len(rows) > ROWS else f"{name}, all {len(rows)} prompts"
    return charts.Dots(which, [DEVRAT], [(f"{r['prompt']}: {words(r)}", {DEVRAT: estimate(r)}) for r in rows[:ROWS]])


def _gallery(found: Mapping[str, Any], run: ScoredRun) -> charts.Gallery:
    """The prompts that come first in the ranking, each once, with all that is said of them."""
    texts: dict[str, list[str]] = {}
    names = _telling(found)
    for r in found["ranking"]:
        if r["attribute"] in names:
            texts.setdefault(r["prompt"], []).append(f"{r['attribute']}: {words(r)}")
    captions = [name for name in names if JOIN not in name] or names  # a product says again what its parts say
    flags = flags_of(run)
    worst = list(texts.items())[: 2 * WORST]
    return charts.Gallery([(group, [("; ".join(said), _shots(run, group, captions, flags))]) for group, said in worst])


def _shots(run: ScoredRun, group: str, names: Sequence[str], flags: Sequence[bool | None] | None) -> list[charts.Shot]:
    out: list[charts.Shot] = []
    for i, (record, score, home) in enumerate(zip(run.records, run.scores, run.image_folders, strict=True)):
        if record.group == group and len(out) < IMAGES:
            veiled = record.model != "embedded" and (bool(record.categories) or bool(flags and flags[i]))
            seen = score.problem or ", ".join(score.labels[name] for name in names if name in score.labels)
            out.append(charts.Shot(confined(home, record.file), seen, veiled))
    return out


def _agreement(found: Mapping[str, Any]) -> list[str]:
    return [f"{' and '.join(a['judges'])} agree on {a['task']} of {shown(a['agree'])} of images." for a in found["agreement"]]


def _judges(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"judge": j["judge"], "version": j["version"], "digest": j["digest"], "kind": j["kind"]} for j in found["judges"]]
