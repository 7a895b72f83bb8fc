"""A comparison's runs as rows of figures: what each method reaches, what it leaves as it was, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from respodiff.evaluation.comparison import Blocks, ReportEntry, collect, compare
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import EMBEDDED, Vocabulary
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.evaluation.statistics import Settings, share
from respodiff.evaluation.summary import summarise
from respodiff.experiments.compare import MethodComparison, Variant, cost_of
from respodiff.reports.curves import Curves, Point

FAIRNESS_COLUMNS = {
    "devrat": "DevRat",
    "change": "difference to baseline",
    "random": "random",
    "concept_accuracy": "concept accuracy",
    "subject_accuracy": "subject accuracy",
    "alignment": "alignment",
    "frechet": "Frechet",
    "drift": "drift",
    "explicit_prompt_accuracy": "explicit prompt accuracy",
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
    "benign_drift": "drift, harmless",
    "train_unet_forwards": "training, forwards",
    "unet_forwards_per_image": "forwards an image",
}
ABOUT = {
    "DevRat": "0 is even, 1 is one group only; random level: what a perfect generator that draws at random would show at this n.",
    "difference to baseline": "the difference to the plain model on the same noise; a method does what it claims where the interval ends below 0.",
    "concept accuracy": "share of images in which the judge sees the concept that the image was asked for; empty for methods that set shares, not images.",
    "subject accuracy": "share in which the judge finds the subject that the prompt names.",
    "alignment": "100 x cosine of image and prompt.",
    "Frechet": "distance to the plain model's images of the same prompts on the judge's vectors; read it against the plain model's own split halves.",
    "drift": "mean 1 - cosine to the plain model's image of the same noise.",
    "explicit prompt accuracy": 'share of prompts that state an attribute themselves ("a male nurse") whose images keep it.',
    "forwards": "UNet evaluations of one sample; guidance counts twice. One image of the plain model takes 2 x steps.",
}


def judged(comparison: MethodComparison, judge: Any) -> None:
    """Judge every run of a comparison and keep the scores in its folders."""
    attributes = [comparison.plan.whole] if comparison.plan.kind == "fairness" else []
    words = Vocabulary.embedded() if judge.name in EMBEDDED else None
    for setting in comparison.settings():
        for part in comparison.parts:
            judge_all(setting.folder / part, judge, attributes, vocabulary=words)


def blocks_of(comparison: MethodComparison, part: str, settings: Settings | None = None) -> Blocks:
    """Suite -> entries of all settings, the plain model first."""
    return collect([f"{s.label}={s.folder / part}" for s in comparison.settings()], settings=settings or Settings())


def whole(comparison: MethodComparison, part: str, settings: Settings) -> list[ReportEntry]:
    """Entries of all settings over all suites of a part together, the plain model first."""
    runs = [load_scored_run(s.folder / part, label=s.label) for s in comparison.settings()]
    return [ReportEntry(run, summarise(run, settings), compare(runs[0], run, settings) if i else None) for i, run in enumerate(runs)]


def rows_of(comparison: MethodComparison, settings: Settings | None = None) -> list[dict[str, Any]]:
    """One row a method and scale, JSON-ready; estimates as {mean, low, high, n}, None where a figure does not apply."""
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


def _tested(tests: Sequence[Mapping[str, Any]], what: str) -> dict[str, float] | None:
    """The tested difference to the plain model as {mean, low, high, n}; None where it was not tested."""
    found = next((t for t in tests if t["what"] == what), None)
    return None if found is None else {key: found[key] for key in ("mean", "low", "high", "n")}


def unchanged(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels at full scale whose difference to the plain model does not end below 0."""
    return [str(row["label"]) for row in rows[1:] if row["scale"] == 1 and not (row["change"] and row["change"]["high"] < 0)]


def _safety(entry: ReportEntry, benign: ReportEntry) -> dict[str, Any]:
    c = benign.comparison or {}
    return {
        "unsafe": entry.summary["unsafe"],
        "change": _tested((entry.comparison or {}).get("tests", []), "unsafe"),
        "alignment": entry.summary["alignment"],
        "benign_unsafe": benign.summary["unsafe"],
        "benign_subject_accuracy": benign.summary["subject_accuracy"],
        "benign_alignment": benign.summary["alignment"],
        "benign_frechet": c.get("frechet"),
        "benign_split_half": c.get("split_half"),
        "benign_drift": c.get("drift"),
        "tests": (entry.comparison or {}).get("tests", []),
    }


def _costs(comparison: MethodComparison, setting: Variant) -> dict[str, Any]:
    cost = comparison.training_cost(setting.method)
    drawn = [cost_of(setting.folder / part) for part in comparison.parts]
    images = sum(d["images"] for d in drawn)
    per = {k: sum(d[k] for d in drawn) / images if images else None for k in ("unet_forwards", "seconds")}
    return {
        "train_unet_forwards": int(cost["unet_forwards"]),
        "train_seconds": round(cost["seconds"], 1),
        "unet_forwards_per_image": _whole(per["unet_forwards"]),
        "seconds_per_image": per["seconds"],
    }


def _whole(value: float | None) -> float | None:
    """40.0 as 40: counts are read as counts."""
    return int(value) if value is not None and value.is_integer() else value


def columns_of(kind: str) -> dict[str, str]:
    """Key of a row -> its heading."""
    return FAIRNESS_COLUMNS if kind == "fairness" else SAFETY_COLUMNS


def cell(value: Any) -> Any:
    """A figure for a page's table: an `Estimate`, a number, or None."""
    if isinstance(value, Mapping):
        return Estimate(value["mean"], value["low"], value["high"], value["n"])
    return value


def text_cell(value: Any) -> str:
    """A figure for Markdown."""
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value:,.0f}" if isinstance(value, int) or value > 20 else f"{value:.3f}"


def markdown(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """The table as Markdown, one row a method and scale."""
    columns = columns_of(kind)
    lines = [["method", "n", *columns.values()], ["---"] * (len(columns) + 2)]
    lines += [[row["label"], str(row["n"]), *(text_cell(row[key]) for key in columns)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


LOST = {
    "drift": "drift to the plain model's images",
    "benign_drift": "drift on harmless prompts",
    "alignment": "alignment lost, % of the plain model's",
    "benign_alignment": "alignment lost on harmless prompts, % of the plain model's",
}


def trade_off(rows: Sequence[Mapping[str, Any]], kind: str, axis: str = "drift") -> Curves:
    """The plot: fairness (or safety) against what is lost, a line a method over its scales, from the plain model on."""
    fair = kind == "fairness"
    x, y = (axis, "devrat") if fair else (f"benign_{axis}", "unsafe")
    plain = rows[0]
    start = Point(0.0, plain[y]["mean"] if plain[y] else float("nan"), "plain")
    series = [("plain", [start])]
    names = list(dict.fromkeys(row["method"] for row in rows[1:]))
    heads = {name.partition(":")[0] for name in names}
    for name in names:
        own = sorted((r for r in rows if r["method"] == name), key=lambda r: r["scale"])
        short = name.partition(":")[2] if len(heads) == 1 < len(names) else ""  # a ablation: all are variants of one method
        series.append((short or name, [start, *(_point(row, plain, x, y) for row in own)]))
    title = "Lower left is best: little changed, evenly drawn." if fair else "Lower left is best."
    return Curves(title, LOST[x], "DevRat" if fair else "share of unsafe images", series)


def _point(row: Mapping[str, Any], plain: Mapping[str, Any], x: str, y: str) -> Point:
    a, b = row[x], row[y]
    if not a or not b:
        return Point(float("nan"), float("nan"))
    lost = 100 * (1 - a["mean"] / plain[x]["mean"]) if x.endswith("alignment") else a["mean"]
    return Point(lost, b["mean"], f"scale {row['scale']:g}", None, (b["low"], b["high"]))
