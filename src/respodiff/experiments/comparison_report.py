"""Reports of a method comparison: what each method reaches, what it preserves and what it costs, as HTML, Markdown and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from respodiff._version import __version__
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.comparison import Blocks, ReportEntry, collect, entries_of
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import EMBEDDED, NOTICE, Judge, Vocabulary
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.registry import METRICS, Settings, share
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.experiments.compare import MethodComparison, Variant, cost_of
from respodiff.experiments.paper_tables import adapter_budgets, below_budget
from respodiff.methods.registry import BASELINE
from respodiff.pipelines.loading import model_name
from respodiff.reports.charts import Curves, Point
from respodiff.reports.html import Section, html_report
from respodiff.reports.images import gallery_of
from respodiff.reports.tables import Cell, definitions, markdown_table, markdown_text, text

Row = Mapping[str, Any]
"""A method at a scale as JSON: an estimate a metric, under ``benign_NAME`` for harmless prompts, and costs."""
MAIN = {"fairness": "devrat", "safety": "unsafe"}
"""The metric that methods of a kind are made to lower."""
BENIGN = "benign_"
ABOUT = (
    "Random sampling: what a perfect generator would show at this n.",
    "Difference to baseline: on the same noise. A method does what it claims where the interval ends below 0.",
    "Concept accuracy is empty for methods that set proportions, not single images.",
    'Explicit prompts kept: share of prompts that state an attribute themselves ("a male nurse") whose images keep it.',
    "Forwards: UNet evaluations of one sample; guidance counts twice. One image of the baseline takes 2 x steps.",
)
PARTS = {"suite": "Images", "stated": "Prompts that state an attribute themselves", "benign": "Harmless prompts"}


def publish(comparison: MethodComparison, judge: Judge | Sequence[Judge], *, n_bootstrap: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Judge what was generated and write ``compare.html``, ``compare.md`` and ``compare.json`` into the comparison's folder.

    Args:
        judge: one or several. Labels come from the first that gives any; an image that all could judge is unsafe if one of them flags it.

    Returns:
        JSON-ready: ``methods`` (label -> row), ``rows``, ``plan``, ``judge`` (the first), ``judges``, ``page``, ``tables``.
    """
    plan, kind, out = comparison.plan, comparison.plan.kind, comparison.out
    judges = list(judge) if isinstance(judge, Sequence) else [judge]
    attributes, words = [plan.equal] if kind == "fairness" else [], Vocabulary.embedded() if judges[0].name in EMBEDDED else None
    for setting in comparison.settings():
        for part in comparison.parts:
            keys = [*judge_all(setting.folder / part, judges, attributes, vocabulary=words).answers]
    rows = rows_of(comparison, Settings(n_bootstrap=n_bootstrap, seed=seed), keys)
    named = [{"name": j.name, "digest": j.digest} for j in judges]
    kept: dict[str, Any] = {"notice": NOTICE, "library": __version__, "plan": asdict(plan)}
    kept |= {"judge": named[0], "judges": named, "rows": rows}
    (prompts, images), notes = comparison.parts["suite"], _about_rows(comparison, rows)
    lead = f"{len(prompts)} prompts of suite {plan.suite}, {images} images each, {plan.steps} steps, guidance {plan.guidance:g}, seed {plan.seed}; "
    lead += f"the same noise for every method, judged by {', '.join(f'{j.name} ({j.digest})' for j in judges)}. Brackets hold 95 % intervals over prompts."
    write_atomic(out / "compare.json", json.dumps(kept, indent=1) + "\n")
    notes_text = "\n".join(f"- {markdown_text(note)}" for note in notes)
    write_atomic(out / "compare.md", f"{markdown_text(lead)}\n\n{markdown(rows, kind)}\n{notes_text}\n")
    html_report(out / "compare.html", title=f"Methods side by side: {kind}", lead=lead, sections=_sections(comparison, rows, notes, keys))
    paths = {"page": str(out / "compare.html"), "tables": [str(out / "compare.md"), str(out / "compare.json")]}
    return kept | {"methods": {row["label"]: row for row in rows}} | paths


def _blocks(comparison: MethodComparison, part: str, settings: Settings, judge: str | Sequence[str]) -> Blocks:
    """Prompt set -> entries of all settings, the baseline first."""
    runs, themes = [f"{s.label}={s.folder / part}" for s in comparison.settings()], comparison.plan.kind == "safety"
    return collect(runs, judge=judge, settings=settings, by_prompt=themes)  # groups of such prompts are few: violence, sexual, general


def rows_of(comparison: MethodComparison, settings: Settings | None = None, judge: str | Sequence[str] = ()) -> list[dict[str, Any]]:
    """One row a method and scale as ``judge`` scored it (`respodiff.evaluation.scored_run.load_scored_run`), JSON-ready.

    Estimates are {mean, low, high, n}, None where a metric does not apply.
    """
    settings, fair = settings or Settings(), comparison.plan.kind == "fairness"
    attribute = comparison.plan.whole.name if fair else ""
    main = _blocks(comparison, "suite", settings, judge)[comparison.parts["suite"][0][0].suite]
    other_part = "stated" if fair else "benign"
    runs = [load_scored_run(s.folder / other_part, judge=judge, label=s.label) for s in comparison.settings()]
    runs = runs if fair else [run.by_prompt() for run in runs]
    out = []
    for setting, entry, other in zip(comparison.settings(), main, entries_of(runs, settings), strict=True):
        change = entry.comparison and entry.comparison.tested(MAIN[comparison.plan.kind], attribute)
        row: dict[str, Any] = {"method": setting.title, "scale": setting.scale, "label": setting.label, "n": entry.summary.n}
        row |= {**_metrics(entry, attribute), "change": change and asdict(change)}
        if fair:
            stated = [(r, s.labels[attribute]) for r, s in other.run.known if r.categories and attribute in s.labels]
            kept = share([(r, label == r.categories[0]) for r, label in stated], settings)
            row["explicit_prompt_accuracy"] = kept and asdict(kept)
        else:
            row |= _metrics(other, "", BENIGN)
        problems = list(dict.fromkeys((*entry.summary.problems, *other.summary.problems)))
        out.append(row | _costs(comparison, setting) | {"problems": problems})
    return out


def _metrics(entry: ReportEntry, attribute: str, prefix: str = "") -> dict[str, Any]:
    """Every registered metric: its value for the run, else for the attribute that is compared."""
    values = {name: entry.metric(name) for name in METRICS}
    chosen = {name: found.get("") or found.get(attribute) for name, found in values.items()}
    return {prefix + name: e and asdict(e) for name, e in chosen.items()}


def full_scale(rows: Sequence[Row]) -> list[Row]:
    """The row of each method whose scale is nearest to 1, the baseline left out."""
    nearest: dict[str, Row] = {}
    for row in rows[1:]:
        best = nearest.setdefault(row["method"], row)
        if abs(row["scale"] - 1) < abs(best["scale"] - 1):
            nearest[row["method"]] = row
    return [*nearest.values()]


def unchanged(rows: Sequence[Row]) -> list[str]:
    """Labels of `full_scale` whose difference to the baseline does not end below 0."""
    return [str(row["label"]) for row in full_scale(rows) if not (row["change"] and row["change"]["high"] < 0)]


def _costs(comparison: MethodComparison, setting: Variant) -> dict[str, float | None]:
    drawn = [cost_of(setting.folder / part) for part in comparison.parts]
    images, forwards = (sum(cost[key] for cost in drawn) for key in ("images", "unet_forwards"))
    each = forwards / images if images else None
    whole = int(each) if each and each.is_integer() else each
    return {"train_unet_forwards": comparison.training_cost(setting.method), "unet_forwards_per_image": whole}


def columns_of(kind: str) -> dict[str, str]:
    """Key of a row -> its heading."""
    titles, main = {m.name: m.title for m in METRICS.values() if kind in m.compared}, MAIN[kind]
    columns = {main: titles[main], "change": "difference to baseline"}
    if kind == "fairness":
        columns |= {"random": "random sampling"} | {key: title for key, title in titles.items() if key != main}
        columns["explicit_prompt_accuracy"] = "explicit prompts kept"
    else:
        columns |= {BENIGN + key: f"{title}, harmless prompts" for key, title in titles.items()}
    return columns | {"train_unet_forwards": "training, forwards", "unet_forwards_per_image": "forwards an image"}


def cell(row: Row, key: str) -> Cell:
    """A value of a row for a page's table."""
    value = (row["devrat"] or {}).get("random") if key == "random" else row[key]
    return Estimate(value["mean"], value["low"], value["high"], int(value["n"])) if isinstance(value, Mapping) else value


def _table(rows: Sequence[Row], kind: str) -> list[dict[str, Cell]]:
    return [{"method": r["label"], "n": r["n"], **{title: cell(r, key) for key, title in columns_of(kind).items()}} for r in rows]


def markdown(rows: Sequence[Row], kind: str) -> str:
    """The table as Markdown, one row a method and scale."""
    return "\n".join(markdown_table(_table(rows, kind))) + "\n"


def trade_off(rows: Sequence[Row], kind: str) -> Curves:
    """The plot: fairness (or safety) against the distance to the baseline, a line a method over its scales, from the baseline on."""
    fair, y = kind == "fairness", MAIN[kind]
    x = "drift" if fair else BENIGN + "drift"
    plain = Point(0.0, rows[0][y]["mean"] if rows[0][y] else float("nan"), BASELINE)
    series = [(BASELINE, [plain])]
    for name in dict.fromkeys(row["method"] for row in rows[1:]):
        own = sorted((r for r in rows if r["method"] == name and r[x] and r[y]), key=lambda r: r["scale"])
        points = [Point(r[x]["mean"], r[y]["mean"], f"scale {r['scale']:g}", (r[y]["low"], r[y]["high"])) for r in own]
        series.append((name, [plain, *points]))
    title = f"Lower left is better: less changed, {'more even' if fair else 'fewer unsafe images'}."
    across = f"paired distance {'to the baseline' if fair else 'on harmless prompts'}"
    return Curves(title, across, METRICS[y].title if fair else "share of unsafe images", series)


def _about_rows(comparison: MethodComparison, rows: Sequence[Row]) -> list[str]:
    """The finding in words, methods without a significant change, settings other than the defaults, and what could not be used."""
    key = MAIN[comparison.plan.kind]
    title = METRICS[key].title if key == "devrat" else "share of unsafe images"
    notes, still = [], unchanged(rows)
    if known := [row for row in rows if row[key]]:
        best = min(known, key=lambda row: float(row[key]["mean"]))
        lowest, plain = (f"{row['label']} {text(cell(row, key))} (n = {row['n']})" for row in (best, rows[0]))
        notes.append(f"Lowest {title}: {lowest}. Baseline: {plain}. Where intervals overlap, the order is open.")
    if full_scale(rows):
        notes.append(f"No significant change: {', '.join(still)}." if still else "Every method changes its statistic beyond the interval.")
    for name in comparison.names:
        if changes := comparison.plan.settings.get(name):
            short = {k: f"{len(v)} texts" if isinstance(v, tuple | list) and len(v) > 4 else v for k, v in changes.items()}
            notes.append(f"{name}: " + ", ".join(f"{k} {v}" for k, v in short.items()) + "; the rest as the method has it.")
    if model_name(comparison.pipe) != "embedded":
        whole = adapter_budgets(comparison.plan.kind)
        for name in comparison.names[1:]:
            published = whole.get(name.partition(":")[0], 0) * len(comparison.adapters(name))
            notes += below_budget(name, comparison.training_cost(name), published)
    return notes + [f"{row['label']}: {line}" for row in rows for line in row["problems"]]


def _sections(comparison: MethodComparison, rows: Sequence[Row], findings: Sequence[str], judge: Sequence[str]) -> list[Section]:
    kind = comparison.plan.kind
    half = next((cell(row, key) for row in rows[1:] for key in ("split_half", BENIGN + "split_half") if row.get(key)), None)
    notes = [*definitions(m for m in METRICS.values() if kind in m.compared), *ABOUT]
    notes += [f"Frechet distance of the baseline's own split halves: {text(half)}."] if half else []
    blocks = {part: _blocks(comparison, part, Settings(), judge) for part in comparison.parts}
    images = [(f"{PARTS[part]}: {name}", e) for part, block in blocks.items() for name, e in block.items()]
    return [
        Section("Findings", notes=findings),
        Section("Trade-off", parts=[trade_off(rows, kind)]),
        Section("Table", table=_table(rows, kind), notes=notes),
        *(gallery_of(heading, entries) for heading, entries in images),
    ]
