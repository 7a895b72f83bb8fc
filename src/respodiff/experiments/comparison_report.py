"""Reports of a method comparison: what each method reaches, what it preserves and what it costs, as HTML, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from respodiff._version import __version__
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.comparison import Blocks, ReportEntry, collect, compare
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import EMBEDDED, NOTICE, Vocabulary
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.evaluation.statistics import Settings, share
from respodiff.evaluation.summary import summarise
from respodiff.experiments.compare import MethodComparison, Variant, cost_of
from respodiff.reports.charts import Curves, Point
from respodiff.reports.html import Section, html_report
from respodiff.reports.images import gallery_of, gallery_text
from respodiff.reports.tables import ALIGNMENT, COSINE_DISTANCE, DIFFERENCE, DISTANCE, SHARE, estimate, number, shown

FAIRNESS_COLUMNS = {
    "devrat": "DevRat",
    "change": "difference to baseline",
    "random": "random sampling",
    "concept_accuracy": "concept accuracy",
    "subject_correct": "subject accuracy",
    "alignment": "alignment",
    "frechet": "Frechet",
    "drift": "paired distance",
    "explicit_prompt_accuracy": "explicit prompts kept",
    "train_unet_forwards": "training, forwards",
    "unet_forwards_per_image": "forwards an image",
}
SAFETY_COLUMNS = {
    "unsafe": "unsafe",
    "change": "difference to baseline",
    "benign_unsafe": "unsafe, harmless prompts",
    "benign_subject_accuracy": "subject accuracy, harmless",
    "benign_alignment": "alignment, harmless",
    "benign_frechet": "Frechet, harmless",
    "benign_drift": "paired distance, harmless",
    "train_unet_forwards": "training, forwards",
    "unet_forwards_per_image": "forwards an image",
}
RANGES = {"change": DIFFERENCE, "alignment": ALIGNMENT, "frechet": DISTANCE, "split_half": DISTANCE, "drift": COSINE_DISTANCE}
"""Possible ranges by key (without ``benign_``); everything else is a share."""
ABOUT = (
    "DevRat: 0 is even, 1 is one group only. Random sampling: what a perfect generator would show at this n.",
    "Difference to baseline: on the same noise. A method does what it claims where the interval ends below 0.",
    "Concept accuracy: share of images in which the judge sees the concept asked for; empty for methods that set shares, not images.",
    "Subject accuracy: share in which the judge finds the subject that the prompt names.",
    "Alignment: 100 x cosine of image and prompt.",
    "Frechet: distance to the baseline's images of the same prompts on the judge's vectors; read it against the baseline's split halves.",
    "Paired distance: mean 1 - cosine to the baseline's image of the same noise.",
    'Explicit prompts kept: share of prompts that state an attribute themselves ("a male nurse") whose images keep it.',
    "Forwards: UNet evaluations of one sample; guidance counts twice. One image of the baseline takes 2 x steps.",
)
LOST = {
    "drift": "paired distance to the baseline",
    "benign_drift": "paired distance on harmless prompts",
    "alignment": "alignment lost, % of the baseline's",
    "benign_alignment": "alignment lost on harmless prompts, % of the baseline's",
}
PARTS = {"suite": "Images", "stated": "Prompts that state an attribute themselves", "benign": "Harmless prompts"}


def publish(comparison: MethodComparison, judge: Any, *, n_bootstrap: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Judge what was generated and write ``compare.html``, ``compare.md`` and ``compare.json`` into the comparison's folder.

    Returns:
        JSON-ready: ``methods`` (label -> statistics), ``rows``, ``plan``, ``judge``, ``page``, ``tables``.
    """
    judged(comparison, judge)
    rows, kind, out = rows_of(comparison, Settings(n_bootstrap=n_bootstrap, seed=seed)), comparison.plan.kind, comparison.out
    kept: dict[str, Any] = {"notice": NOTICE, "library": __version__, "plan": dict(vars(comparison.plan))}
    kept |= {"judge": {"name": judge.name, "digest": judge.digest}, "rows": rows}
    lead, notes = _lead(comparison, judge), _about_rows(comparison, rows)
    write_atomic(out / "compare.json", json.dumps(kept, indent=1) + "\n")
    write_atomic(out / "compare.md", f"{lead}\n\n{markdown(rows, kind)}\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    html_report(out / "compare.html", title=f"Methods side by side: {kind}", lead=lead, sections=_sections(comparison, rows, notes))
    paths = {"page": str(out / "compare.html"), "tables": [str(out / "compare.md"), str(out / "compare.json")]}
    return kept | {"methods": {row["label"]: row for row in rows}} | paths


def judged(comparison: MethodComparison, judge: Any) -> None:
    """Judge every run of a comparison and keep the scores in its folders."""
    attributes = [comparison.plan.whole] if comparison.plan.kind == "fairness" else []
    words = Vocabulary.embedded() if judge.name in EMBEDDED else None
    for setting in comparison.settings():
        for part in comparison.parts:
            judge_all(setting.folder / part, judge, attributes, vocabulary=words)


def blocks_of(comparison: MethodComparison, part: str, settings: Settings | None = None) -> Blocks:
    """Prompt set -> entries of all settings, the baseline first."""
    return collect([f"{s.label}={s.folder / part}" for s in comparison.settings()], settings=settings or Settings())


def whole(comparison: MethodComparison, part: str, settings: Settings) -> list[ReportEntry]:
    """Entries of all settings over all prompt sets of a part together, the baseline first."""
    runs = [load_scored_run(s.folder / part, label=s.label) for s in comparison.settings()]
    return [ReportEntry(run, summarise(run, settings), compare(runs[0], run, settings) if i else None) for i, run in enumerate(runs)]


def rows_of(comparison: MethodComparison, settings: Settings | None = None) -> list[dict[str, Any]]:
    """One row a method and scale, JSON-ready; estimates as {mean, low, high, n}, None where a statistic does not apply."""
    settings = settings or Settings()
    fair = comparison.plan.kind == "fairness"
    main = blocks_of(comparison, "suite", settings)[comparison.parts["suite"][0][0].suite]
    other = whole(comparison, "stated" if fair else "benign", settings)
    out = []
    for setting, entry, second in zip(comparison.settings(), main, other, strict=True):
        row: dict[str, Any] = {"method": setting.method, "scale": setting.scale, "label": setting.label, "n": entry.summary["n"]}
        row |= _fairness(entry, main[0], second, comparison.plan.whole.name, settings) if fair else _safety(entry, second)
        out.append(row | _costs(comparison, setting))
    return out


def _fairness(entry: ReportEntry, plain: ReportEntry, stated: ReportEntry, attribute: str, settings: Settings) -> dict[str, Any]:
    s, c = entry.summary, entry.comparison or {}
    devrat = s["devrat"].get(attribute)
    pairs = zip(stated.run.records, stated.run.scores, strict=True)
    hits = [(r, score.labels[attribute] == r.categories[0]) for r, score in pairs if score.problem is None and r.categories]
    own, kept = plain.summary["subject_accuracy"], s["subject_accuracy"]
    lost = None if kept is None or not own or not own["mean"] else 1 - kept["mean"] / own["mean"]
    return {
        "devrat": devrat,
        "change": _tested(c.get("tests", []), f"DevRat {attribute}"),
        "random": devrat and devrat["random"],
        "concept_accuracy": s["concept_accuracy"].get(attribute),
        "subject_accuracy": s["subject_accuracy"],
        "subject_accuracy_lost": lost,
        "alignment": s["alignment"],
        "frechet": c.get("frechet"),
        "split_half": c.get("split_half"),
        "drift": c.get("drift"),
        "explicit_prompt_accuracy": share(hits, settings),
        "tests": c.get("tests", []),
    }


def _safety(entry: ReportEntry, benign: ReportEntry) -> dict[str, Any]:
    c = benign.comparison or {}
    tests = (entry.comparison or {}).get("tests", [])
    return {
        "unsafe": entry.summary["unsafe"],
        "change": _tested(tests, "unsafe"),
        "alignment": entry.summary["alignment"],
        "benign_unsafe": benign.summary["unsafe"],
        "benign_subject_accuracy": benign.summary["subject_accuracy"],
        "benign_alignment": benign.summary["alignment"],
        "benign_frechet": c.get("frechet"),
        "benign_split_half": c.get("split_half"),
        "benign_drift": c.get("drift"),
        "tests": tests,
    }


def _tested(tests: Sequence[Mapping[str, Any]], what: str) -> dict[str, float] | None:
    """The tested difference to the baseline as {mean, low, high, n}; None where it was not tested."""
    found = next((t for t in tests if t["what"] == what), None)
    return None if found is None else {key: found[key] for key in ("mean", "low", "high", "n")}


def unchanged(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels at full scale whose difference to the baseline does not end below 0."""
    return [str(row["label"]) for row in rows[1:] if row["scale"] == 1 and not (row["change"] and row["change"]["high"] < 0)]


def _costs(comparison: MethodComparison, setting: Variant) -> dict[str, Any]:
    cost = comparison.training_cost(setting.method)
    drawn = [cost_of(setting.folder / part) for part in comparison.parts]
    images = sum(d["images"] for d in drawn)
    forwards, seconds = (sum(d[key] for d in drawn) / images if images else None for key in ("unet_forwards", "seconds"))
    return {
        "train_unet_forwards": int(cost["unet_forwards"]),
        "train_seconds": round(cost["seconds"], 1),
        "unet_forwards_per_image": int(forwards) if forwards is not None and forwards.is_integer() else forwards,
        "seconds_per_image": seconds,
    }


def columns_of(kind: str) -> dict[str, str]:
    """Key of a row -> its heading."""
    return FAIRNESS_COLUMNS if kind == "fairness" else SAFETY_COLUMNS


def cell(value: Any, key: str = "") -> Any:
    """A statistic for a page's table: an `Estimate` clipped to the range of its key, a number, or None."""
    return estimate(value, RANGES.get(key.removeprefix("benign_"), SHARE)) if isinstance(value, Mapping) else value


def text_cell(value: Any, key: str = "") -> str:
    """A statistic for Markdown."""
    return shown(cell(value, key)) if isinstance(value, Mapping) else number(value)


def markdown(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """The table as Markdown, one row a method and scale."""
    columns = columns_of(kind)
    lines = [["method", "n", *columns.values()], ["---"] * (len(columns) + 2)]
    lines += [[row["label"], str(row["n"]), *(text_cell(row[key], key) for key in columns)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def trade_off(rows: Sequence[Mapping[str, Any]], kind: str, axis: str = "drift") -> Curves:
    """The plot: fairness (or safety) against what is lost, a line a method over its scales, from the baseline on."""
    fair = kind == "fairness"
    x, y = (axis, "devrat") if fair else (f"benign_{axis}", "unsafe")
    plain = rows[0]
    start = Point(0.0, plain[y]["mean"] if plain[y] else float("nan"), "plain")
    series = [("plain", [start])]
    names = list(dict.fromkeys(row["method"] for row in rows[1:]))
    heads = {name.partition(":")[0] for name in names}
    for name in names:
        own = sorted((r for r in rows if r["method"] == name), key=lambda r: r["scale"])
        short = name.partition(":")[2] if len(heads) == 1 < len(names) else ""  # variants of one method
        series.append((short or name, [start, *(_point(row, plain, x, y) for row in own)]))
    title = f"Lower left is better: less changed, {'more even' if fair else 'fewer unsafe images'}."
    return Curves(title, LOST[x], "DevRat" if fair else "share of unsafe images", series, better="better")


def _point(row: Mapping[str, Any], plain: Mapping[str, Any], x: str, y: str) -> Point:
    a, b = row[x], row[y]
    if not a or not b:
        return Point(float("nan"), float("nan"))
    lost = 100 * (1 - a["mean"] / plain[x]["mean"]) if x.endswith("alignment") else a["mean"]
    return Point(lost, b["mean"], f"scale {row['scale']:g}", None, (b["low"], b["high"]))


def _lead(comparison: MethodComparison, judge: Any) -> str:
    p = comparison.plan
    prompts, images = comparison.parts["suite"]
    what = f"{len(prompts)} prompts of suite {p.suite}, {images} images each, {p.steps} steps, guidance {p.guidance:g}, seed {p.seed}"
    return f"{what}; the same noise for every method, judged by {judge.name} ({judge.digest}). Brackets hold 95 % intervals over prompts."


def _about_rows(comparison: MethodComparison, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The finding in words, methods without a significant change, and settings that are not a method's own defaults."""
    key, title = ("devrat", "DevRat") if comparison.plan.kind == "fairness" else ("unsafe", "share of unsafe images")
    known = [row for row in rows if row[key]]
    notes = []
    if len(known) > 1:
        best, words = min(known, key=lambda row: float(row[key]["mean"])), {}
        for row in (best, rows[0]):
            words[row["label"]] = f"{row['label']} {text_cell(row[key], key)} (n = {row['n']})"
        found = (
            f"Lowest {title}: {', baseline '.join(words.values())}."
            if len(words) > 1
            else f"No method has a lower {title} than the baseline."
        )
        notes.append(f"{found} Where intervals overlap, the order is open.")
    still = unchanged(rows)
    notes.append(f"No significant change: {', '.join(still)}." if still else "Every method changes its statistic beyond the interval.")
    for name in comparison.names:
        if changes := comparison.plan.settings.get(name):
            notes.append(f"{name}: " + ", ".join(f"{k} {_short(v)}" for k, v in changes.items()) + "; the rest as the method has it.")
    return notes


def _short(value: Any) -> str:
    return f"{len(value)} texts" if isinstance(value, tuple | list) and len(value) > 4 else str(value)


def _sections(comparison: MethodComparison, rows: Sequence[Mapping[str, Any]], findings: Sequence[str]) -> list[Section]:
    kind = comparison.plan.kind
    table = [{"method": r["label"], "n": r["n"], **{title: cell(r[key], key) for key, title in columns_of(kind).items()}} for r in rows]
    half = next((row[key] for row in rows[1:] for key in ("split_half", "benign_split_half") if row.get(key)), None)
    notes = [*ABOUT, f"Frechet distance of the baseline's own split halves: {text_cell(half, 'split_half')}."] if half else ABOUT
    sections = [
        Section("Findings", notes=findings),
        Section("Trade-off", parts=[trade_off(rows, kind, comparison.plan.axis)]),
        Section("Table", table=table, notes=notes),
    ]
    for part in (part for part in PARTS if part in comparison.parts):
        for suite, entries in blocks_of(comparison, part).items():
            heading = f"{PARTS[part]}: {suite}" if part == "benign" else PARTS[part]
            sections.append(Section(heading, gallery_text(entries), parts=[gallery_of(entries)]))
    return sections
