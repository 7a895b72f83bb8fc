"""Reports of an audit: lines for the console, and one page with charts, images of the worst prompts and the commands to go on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from respodiff.concepts.intersections import JOIN
from respodiff.evaluation.audit import AttributeBias, Audit, PromptBias
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.reports import tables
from respodiff.reports.charts import Dots
from respodiff.reports.html import Section, html_report
from respodiff.reports.images import Gallery, Tile, tile
from respodiff.reports.tables import Cell, number, p_value, shown

WORST, ROWS, IMAGES, MOST = 5, 24, 12, 500
"""Prompts of an attribute on the console; prompts of a chart; images of a prompt on the page (of twice `WORST` prompts); table rows."""
ATTRIBUTES = (
    "Most biased first. DevRat is 0 where the shares of every prompt are as wanted, and 1 where all images of a prompt are of one kind. Random "
    "sampling is the DevRat that chance alone would show at this number of images. Brackets hold 95 % intervals."
)
WORST_PROMPTS = (
    f"Images in their order, the first {IMAGES} at most, none chosen by hand. Beside them what is furthest from its share, "
    "under each what the judge sees."
)
CHARTS = "The longer a line, the less these images say. Lines that reach 0 leave it open whether the prompt is biased at all."
TO_TRAIN = (
    "In turn: a module for every concept of the biased attributes, the same prompts generated with these modules, "
    "and a page that sets both runs side by side."
)
NOTHING = "Nothing: no attribute is shown to be biased at this number of images."
OF_IMAGES, DEVRAT = "share of images, line: 95 % interval", "DevRat, line: 95 % intervals that hold all at once"
HOW = (
    "DevRat is 0 for the wanted proportions and 1 for one group only. Random sampling: what a perfect generator would show at this "
    "number of images. Attributes are ordered by how far they are above it.",
    "The intervals of attributes hold for all of them at once, and so do those of prompts for every prompt and attribute "
    "(Bonferroni; exact for a prompt, whose images start from independent noise; bootstraps over prompts for an attribute). They stay "
    "true of the rows that come first because they look worst.",
    "Biased: p is at most 0.05 after Holm's adjustment, over all attributes for an attribute, over all prompts and attributes for a "
    "prompt. In each of these two families nothing that is as wanted is called biased with 95 % probability. What is not called so may "
    "still be: more images would tell.",
    "Seen where stated: share of images whose prompt states the concept in which the judge sees it. Where that is not shown to be more than "
    "chance, either the judge does not know the attribute or the model cannot generate it. The figures of such an attribute mean nothing, and "
    "are in the tables alone.",
    "A judge errs, and more on some groups than on others: its errors move shares. Labels name what an image looks like.",
)


def lines(found: Audit) -> list[str]:
    """The console table: every attribute with its worst prompts, and what to do."""
    judge = found.summary.judge
    out = [f"{found.summary.n} images, {found.summary.unknown} not judged, judge {judge.name} ({judge.digest})"]
    out += [f"note: {problem}" for problem in found.problems]
    for a in found.attributes:
        rows = [r for r in found.ranking if r.attribute == a.attribute]
        devrat = f"mean DevRat {shown(a.devrat)}, random sampling {number(a.devrat.random)}"
        out.append(f"{a.attribute}: {devrat}, p (Holm) {p_value(a.p_holm)}")
        out.append(f"  {verdict(a)}; {sum(r.biased for r in rows)} of {len(rows)} prompts shown to be biased")
        for r in rows[:WORST]:
            out.append(f"  {r.prompt}: {words(r)}, DevRat {shown(r.devrat)}, p (Holm) {p_value(r.p_holm)}")
    out += ["to train:" if found.suggest else "nothing to train: no attribute is shown to be biased at this number of images"]
    out += [f"  {command}" for command in found.suggest]
    return [*out, "Labels are what the judge perceives in generated images, never facts about people."]


def verdict(a: AttributeBias) -> str:
    """In words: biased, not shown to be, or not to be trusted."""
    told = a.judge_validity
    if told and not a.valid:
        return f"judge not valid: what a prompt states is seen in {shown(told)} of {told.n} images, no more than chance"
    seen = f", the judge sees what a prompt states in {shown(told)}" if told else ""
    return ("biased" if a.biased else "not shown to be biased") + seen


def words(r: PromptBias) -> str:
    """What is furthest from its share: "man 16 of 16 (wanted 0.500)"."""
    far = r.most_deviant
    return f"{far.concept} {r.counts[far.concept]} of {r.devrat.n} (wanted {number(far.wanted)})"


def write(path: Path, found: Audit, run: ScoredRun) -> Path:
    """Write the page."""
    names, prompts = [a.attribute for a in found.attributes], len({r.prompt for r in found.ranking})
    model, rows = run.records[0].model or "without a name", [_row(r) for r in found.ranking[:MOST]]
    lead = f"{found.summary.n:,} images of {prompts} prompts, generated by the model {model} and judged for {', '.join(names)}. {_first(found)}"
    sections = [Section("Attributes", ATTRIBUTES, table=[_attribute(a) for a in found.attributes], parts=[_proportions(found)])]
    if found.problems:
        sections.append(Section("What limits this audit", notes=found.problems))
    all_rows = f"The first {MOST} rows" if len(found.ranking) > MOST else "All prompts and attributes"
    sections += [
        Section("What to train", TO_TRAIN if found.suggest else NOTHING, commands=found.suggest),
        Section("Worst prompts", WORST_PROMPTS, parts=[_gallery(found, run)]),
        Section("DevRat of the worst prompts", CHARTS, parts=[_chart(found, a.attribute) for a in _recognised(found)]),
        Section(all_rows, table=rows, folded=True),
    ]
    if combinations := tables.subgroups(found.summary.intersection):
        sections.append(Section("Combinations", table=combinations, folded=True))
    agreed = [f"{' and '.join(a.judges)} agree on {a.task} of {shown(a.agree)} of images." for a in found.summary.agreement]
    judges = [{"judge": j.name, "version": j.version, "digest": j.digest, "kind": j.kind} for j in found.summary.judges]
    sections += [
        Section("How to read it", notes=[*HOW, *agreed]),
        Section("Provenance", table=judges, notes=[f"run {run.settings}"], commands=[found.command], folded=True),
    ]
    return html_report(path, title="Audit: which attributes are biased, and where", lead=lead, sections=sections)


def _first(found: Audit) -> str:
    """The finding, in a few sentences."""
    said = []
    for a in (a for a in found.attributes if a.biased):
        rows = [r.biased for r in found.ranking if r.attribute == a.attribute]
        where = f"on {sum(rows)} of {len(rows)} prompts taken by themselves" if any(rows) else "over all prompts, on none taken by itself"
        said.append(f"{a.attribute} ({where})")
    out = [f"Shown to be biased: {', '.join(said)}." if said else "No attribute is shown to be biased."]
    if worst := next((r for r in found.ranking if r.biased), None):
        far, n = worst.most_deviant, worst.devrat.n
        target = next(a.concepts[far.concept] for a in found.attributes if a.attribute == worst.attribute)
        expected = round(n * far.wanted, 1)
        out.append(f"In {worst.counts[far.concept]} of {n} images, “{worst.prompt}” looked like {target}; expected {expected:g}.")
    if unknown := [a.attribute for a in found.attributes if not a.valid]:
        out.append(f"Not shown to be recognised by this judge: {', '.join(unknown)}.")
    return " ".join(out)


def _recognised(found: Audit) -> list[AttributeBias]:
    """Attributes that the judge recognises; all of them where it recognises none."""
    return [a for a in found.attributes if a.valid] or list(found.attributes)


def _attribute(a: AttributeBias) -> dict[str, Cell]:
    return {
        "attribute": a.attribute,
        "finding": verdict(a).partition(",")[0].partition(":")[0],
        "mean DevRat": a.devrat,
        "random sampling": a.devrat.random,
        "p (Holm)": p_value(a.p_holm),
        "seen where stated": a.judge_validity,
    }


def _proportions(found: Audit) -> Dots:
    """Shares over all prompts beside the wanted ones: the first of two alternatives, or all of more."""
    chosen = [(a, c) for a in _recognised(found) for c in (list(a.proportions)[:1] if len(a.proportions) == 2 else a.proportions)]
    wanted = {f"{a.attribute}: {c}": a.wanted[c] for a, c in chosen}
    rows = [(f"{a.attribute}: {c}", {OF_IMAGES: a.proportions[c]}) for a, c in chosen]
    return Dots("Shares over all prompts together", [OF_IMAGES], rows, target=wanted)


def _row(r: PromptBias) -> dict[str, Cell]:
    seen = ", ".join(f"{c} {k}" for c, k in r.counts.items())
    return {
        "prompt": r.text,
        "attribute": r.attribute,
        "seen": seen + (f", unknown {r.unknown}" if r.unknown else ""),
        "DevRat": r.devrat,
        "random sampling": r.devrat.random,
        "p (Holm)": p_value(r.p_holm),
        "biased": "yes" if r.biased else "not shown",
    }


def _chart(found: Audit, name: str) -> Dots:
    rows = [r for r in found.ranking if r.attribute == name]
    which = f"{name}, the {ROWS} worst of {len(rows)} prompts" if len(rows) > ROWS else f"{name}, all {len(rows)} prompts"
    return Dots(which, [DEVRAT], [(f"{r.prompt}: {words(r)}", {DEVRAT: r.devrat}) for r in rows[:ROWS]])


def _gallery(found: Audit, run: ScoredRun) -> Gallery:
    """The prompts that come first in the ranking, each once, with all that is said of them."""
    texts: dict[str, list[str]] = {}
    names = [a.attribute for a in _recognised(found)]
    for r in (r for r in found.ranking if r.attribute in names):
        texts.setdefault(r.prompt, []).append(f"{r.attribute}: {words(r)}")
    captions = [name for name in names if JOIN not in name] or names  # an intersection repeats what its attributes say
    flags = run.flags()
    return Gallery([(group, [("; ".join(said), _tiles(run, group, captions, flags))]) for group, said in list(texts.items())[: 2 * WORST]])


def _tiles(run: ScoredRun, group: str, names: Sequence[str], flags: Sequence[bool | None] | None) -> list[Tile]:
    places = [i for i, record in enumerate(run.records) if record.group == group][:IMAGES]
    seen = [", ".join(run.scores[i].labels[name] for name in names if name in run.scores[i].labels) for i in places]
    return [tile(run, i, caption, flags) for i, caption in zip(places, seen, strict=True)]
