"""What people see of an audit: lines for the console, and one page with charts, pictures of the worst prompts and the commands to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from respodiff import charts
from respodiff.audit import estimate
from respodiff.judged import JudgedRun
from respodiff.page import Section, html_report
from respodiff.report_tables import estimate as as_estimate
from respodiff.report_tables import p_value
from respodiff.scores import confined
from respodiff.verdicts import flags_of

WORST, ROWS, PICTURES, MOST = 5, 24, 12, 500
"""Prompts of an attribute on the console; prompts of a chart; pictures of a prompt on the page (of twice `WORST` prompts); table rows."""
HOW = (
    "DevRat is 0 for the wanted shares and 1 for one group only. Floor: what a perfect generator that draws at random would show at this "
    "number of pictures. Attributes are ordered by how far they are above their floor.",
    "The intervals of attributes hold for all of them at once, and so do those of prompts for every prompt and attribute "
    "(Bonferroni; exact for a prompt, whose pictures start from independent noise; bootstraps over prompts for an attribute). They stay "
    "true of the rows that come first because they look worst.",
    "Skewed: p is at most .05 after Holm's adjustment, over all attributes for an attribute, over all prompts and attributes for a "
    "prompt. In each of these two families nothing that is as wanted is called skewed with 95 % probability. What is not called so may "
    "still be: more pictures would tell.",
    "Told apart: share of pictures whose prompt states the concept in which the judge sees it. Where that is not shown to be more than chance, "
    "either the judge does not know the attribute or the model cannot draw it, and its figures mean nothing.",
    "A judge errs, and more on some groups than on others: its errors move shares. Labels name what a picture looks like.",
)


def shown(e: Mapping[str, Any] | None) -> str:
    """A figure with its interval, in words."""
    return "nothing to judge" if e is None else f"{e['mean']:.3f} [{e['low']:.3f}, {e['high']:.3f}]"


def lines(found: Mapping[str, Any]) -> list[str]:
    """The console table: every attribute with its worst prompts, and what to do."""
    out = [f"{found['n']} pictures, {found['unknown']} not judged, judge {found['judge']['name']} ({found['judge']['digest']})"]
    out += [f"note: {problem}" for problem in found["problems"]]
    for a in found["attributes"]:
        rows = [r for r in found["ranking"] if r["attribute"] == a["attribute"]]
        count = sum(r["skewed"] for r in rows)
        out.append(f"{a['attribute']}: mean DevRat {shown(a['skew'])}, floor {a['skew']['floor']:.3f}, p (Holm) {p_value(a['p_holm'])}")
        out.append(f"  {verdict(a)}; {count} of {len(rows)} prompts shown to be skewed")
        for r in rows[:WORST]:
            out.append(f"  {r['prompt']}: {words(r)}, DevRat {shown(vars(estimate(r)))}, p (Holm) {p_value(r['p_holm'])}")
    out += ["to train:" if found["suggest"] else "nothing to train: no attribute is shown to be skewed at this number of pictures"]
    out += [f"  {command}" for command in found["suggest"]]
    return [*out, "Labels are what the judge perceives in generated pictures, never facts about people."]


def verdict(a: Mapping[str, Any]) -> str:
    """In words: skewed, not shown to be, or not to be trusted."""
    told = a["told_apart"]
    if told and not told["beyond_chance"]:
        return f"cannot be told apart: what a prompt states is seen in {shown(told)} of {told['n']} pictures, no more than chance"
    known = f", the judge sees what a prompt states in {shown(told)}" if told else ""
    return ("skewed" if a["skewed"] else "not shown to be skewed") + known


def words(r: Mapping[str, Any]) -> str:
    """What is furthest from its share: "man 16 of 16 (wanted 0.50)"."""
    far = r["furthest"]
    return f"{far['concept']} {r['counts'][far['concept']]} of {r['n']} (wanted {far['wanted']:.2f})"


def write(path: Path, found: Mapping[str, Any], run: JudgedRun) -> Path:
    """Write the page."""
    prompts, names = len({r["prompt"] for r in found["ranking"]}), [a["attribute"] for a in found["attributes"]]
    model = run.records[0].model or "-"
    lead = f"{found['n']:,} pictures of {prompts} prompts by {model}, judged for {', '.join(names)}. {_first(found)}"
    sections = [
        Section("Attributes", "Most skewed first.", table=[_attribute(a) for a in found["attributes"]]),
        Section("What to train", _todo(found), notes=list(found["suggest"])),
        Section(
            "Worst prompts", "First pictures of each, none chosen by hand; under each what the judge sees.", parts=[_gallery(found, run)]
        ),
        Section("DevRat of the worst prompts", "Intervals hold all at once.", parts=[_chart(found, name) for name in names]),
        Section(f"The first {MOST} rows", table=[_row(r) for r in found["ranking"][:MOST]], folded=True)
        if len(found["ranking"]) > MOST
        else Section("All prompts and attributes", table=[_row(r) for r in found["ranking"]], folded=True),
    ]
    if found["intersection"]:
        sections.append(Section("Combinations", table=[_cell(c) for c in found["intersection"]["cells"]], folded=True))
    if found["problems"]:
        sections.append(Section("What could not be used", notes=found["problems"]))
    sections.append(Section("How to read it", notes=[*HOW, *_agreement(found)]))
    sections.append(Section("Provenance", table=_judges(found), notes=[f"run {run.settings}", f"command {found['command']}"], folded=True))
    return html_report(path, title="Audit: which attributes are skewed, and where", lead=lead, sections=sections)


def _first(found: Mapping[str, Any]) -> str:
    worst = found["attributes"][0]
    if not worst["skewed"]:
        return "None is shown to be skewed."
    rows = [r for r in found["ranking"] if r["attribute"] == worst["attribute"]]
    return f"Most skewed: {worst['attribute']}, on {sum(r['skewed'] for r in rows)} of {len(rows)} prompts beyond doubt."


def _todo(found: Mapping[str, Any]) -> str:
    return "One module for every concept of the skewed attributes, then the same prompts with them." if found["suggest"] else "Nothing."


def _attribute(a: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "attribute": a["attribute"],
        "finding": verdict(a).partition(",")[0].partition(":")[0],
        "mean DevRat": estimate(a),
        "floor": a["skew"]["floor"],
        "p (Holm)": p_value(a["p_holm"]),
        "told apart": as_estimate(a["told_apart"]),
        "shares": ", ".join(f"{c} {shown(e)}" for c, e in a["shares"].items()),
    }


def _row(r: Mapping[str, Any]) -> dict[str, Any]:
    seen = ", ".join(f"{c} {k}" for c, k in r["counts"].items())
    return {
        "attribute": r["attribute"],
        "prompt": r["text"],
        "seen": seen + (f", unknown {r['unknown']}" if r["unknown"] else ""),
        "DevRat": estimate(r),
        "floor": r["floor"],
        "p (Holm)": p_value(r["p_holm"]),
        "skewed": "yes" if r["skewed"] else "not shown",
    }


def _cell(c: Mapping[str, Any]) -> dict[str, Any]:
    share: Any = "too few to show" if c["suppressed"] else as_estimate(c["share"])
    return {"cell": " x ".join(c["cell"]), "pictures": c["count"], "share": share, "wanted": c["target"]}


def _chart(found: Mapping[str, Any], name: str) -> charts.Dots:
    rows = [r for r in found["ranking"] if r["attribute"] == name]
    more = f", {ROWS} of {len(rows)} prompts" if len(rows) > ROWS else ""
    return charts.Dots(f"{name}{more}", [name], [(f"{r['prompt']}: {words(r)}", {name: estimate(r)}) for r in rows[:ROWS]])


def _gallery(found: Mapping[str, Any], run: JudgedRun) -> charts.Gallery:
    """The prompts that come first in the ranking, each once, with all that is said of them."""
    texts: dict[str, list[str]] = {}
    for r in found["ranking"]:
        texts.setdefault(r["prompt"], []).append(f"{r['attribute']}: {words(r)}")
    flags = flags_of(run)
    return charts.Gallery([(", ".join(said), [(group, _shots(run, group, flags))]) for group, said in list(texts.items())[: 2 * WORST]])


def _shots(run: JudgedRun, group: str, flags: Sequence[bool | None] | None) -> list[charts.Shot]:
    out: list[charts.Shot] = []
    for i, (record, score, home) in enumerate(zip(run.records, run.scores, run.homes, strict=True)):
        if record.group == group and len(out) < PICTURES:
            veiled = record.model != "embedded" and (bool(record.categories) or bool(flags and flags[i]))
            out.append(charts.Shot(confined(home, record.file), score.problem or ", ".join(score.labels.values()), veiled))
    return out


def _agreement(found: Mapping[str, Any]) -> list[str]:
    return [f"{' and '.join(a['judges'])} agree on {a['question']} of {shown(a['agree'])} of pictures." for a in found["agreement"]]


def _judges(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"judge": j["judge"], "version": j["version"], "digest": j["digest"], "kind": j["kind"]} for j in found["judges"]]
