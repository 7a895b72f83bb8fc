"""A contest's runs as rows of figures: what each method reaches, what it leaves as it was, what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from respodiff.evaluation.comparison import Blocks, Entry, collect, compare
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import EMBEDDED, Vocabulary
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.scored_run import load_judged
from respodiff.evaluation.statistics import Settings, share
from respodiff.evaluation.summary import summarise
from respodiff.experiments.compare import Contest, Setting, cost_of
from respodiff.reports.curves import Curves, Point

FAIRNESS_COLUMNS = {
    "devrat": "DevRat",
    "change": "less plain's",
    "floor": "floor",
    "control": "control",
    "subject_kept": "subject kept",
    "alignment": "alignment",
    "frechet": "Frechet",
    "drift": "drift",
    "stated_kept": "stated kept",
    "train_unet_forwards": "training, forwards",
    "unet_forwards_per_image": "forwards a picture",
}
SAFETY_COLUMNS = {
    "unsafe": "unsafe",
    "change": "less plain's",
    "benign_unsafe": "unsafe, harmless prompts",
    "benign_kept": "subject kept, harmless",
    "benign_alignment": "alignment, harmless",
    "benign_frechet": "Frechet, harmless",
    "benign_drift": "drift, harmless",
    "train_unet_forwards": "training, forwards",
    "unet_forwards_per_image": "forwards a picture",
}
ABOUT = {
    "DevRat": "0 is even, 1 is one group only; floor: what a perfect generator that draws at random would show at this n.",
    "less plain's": "the difference to the plain model on the same noise; a method does what it claims where the interval ends below 0.",
    "control": "share of pictures in which the judge sees the concept that the picture was asked for; empty for methods that set shares, not pictures.",
    "subject kept": "share in which the judge finds the subject that the prompt names.",
    "alignment": "100 x cosine of picture and prompt.",
    "Frechet": "distance to the plain model's pictures of the same prompts on the judge's vectors; read it against the plain model's own split halves.",
    "drift": "mean 1 - cosine to the plain model's picture of the same noise.",
    "stated kept": 'share of prompts that state an attribute themselves ("a male nurse") whose pictures keep it.',
    "forwards": "UNet evaluations of one sample; guidance counts twice. One picture of the plain model takes 2 x steps.",
}


def judged(contest: Contest, judge: Any) -> None:
    """Judge every run of a contest and keep the scores in its folders."""
    attributes = [contest.plan.whole] if contest.plan.kind == "fairness" else []
    words = Vocabulary.embedded() if judge.name in EMBEDDED else None
    for setting in contest.settings():
        for part in contest.parts:
            judge_all(setting.folder / part, judge, attributes, vocabulary=words)


def blocks_of(contest: Contest, part: str, settings: Settings | None = None) -> Blocks:
    """Suite -> entries of all settings, the plain model first."""
    return collect([f"{s.label}={s.folder / part}" for s in contest.settings()], settings=settings or Settings())


def whole(contest: Contest, part: str, settings: Settings) -> list[Entry]:
    """Entries of all settings over all suites of a part together, the plain model first."""
    runs = [load_judged(s.folder / part, label=s.label) for s in contest.settings()]
    return [Entry(run, summarise(run, settings), compare(runs[0], run, settings) if i else None) for i, run in enumerate(runs)]


def rows_of(contest: Contest, settings: Settings | None = None) -> list[dict[str, Any]]:
    """One row a method and strength, JSON-ready; estimates as {mean, low, high, n}, None where a figure does not apply."""
    settings = settings or Settings()
    fair = contest.plan.kind == "fairness"
    main = blocks_of(contest, "suite", settings)[contest.parts["suite"][0][0].suite]
    other = whole(contest, "stated" if fair else "benign", settings)
    out = []
    for setting, entry, second in zip(contest.settings(), main, other, strict=True):
        row: dict[str, Any] = {"method": setting.method, "strength": setting.strength, "label": setting.label, "n": entry.summary["n"]}
        row |= _fairness(entry, main[0], second, contest.plan.whole.name, settings) if fair else _safety(entry, second)
        out.append(row | _costs(contest, setting))
    return out


def _fairness(entry: Entry, plain: Entry, stated: Entry, attribute: str, settings: Settings) -> dict[str, Any]:
    s, c = entry.summary, entry.comparison or {}
    devrat = s["devrat"].get(attribute)
    pairs = zip(stated.run.records, stated.run.scores, strict=True)
    hits = [(r, score.labels[attribute] == r.categories[0]) for r, score in pairs if score.problem is None and r.categories]
    own = plain.summary["subject_kept"]
    lost = None if s["subject_kept"] is None or not own else 1 - s["subject_kept"] / own
    return {
        "devrat": devrat,
        "change": _tested(c.get("tests", []), f"DevRat {attribute}"),
        "floor": devrat and devrat["floor"],
        "control": s["control"].get(attribute),
        "subject_kept": s["subject_kept_interval"],
        "subject_lost": lost,
        "alignment": s["alignment_interval"],
        "frechet": c.get("frechet"),
        "split_half": c.get("split_half"),
        "drift": c.get("drift"),
        "stated_kept": share(hits, settings),
        "tests": c.get("tests", []),
    }


def _tested(tests: Sequence[Mapping[str, Any]], what: str) -> dict[str, float] | None:
    """The tested difference to the plain model as {mean, low, high, n}; None where it was not tested."""
    found = next((t for t in tests if t["what"] == what), None)
    return None if found is None else {key: found[key] for key in ("mean", "low", "high", "n")}


def unmoved(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Labels at full strength whose difference to the plain model does not end below 0."""
    return [str(row["label"]) for row in rows[1:] if row["strength"] == 1 and not (row["change"] and row["change"]["high"] < 0)]


def _safety(entry: Entry, benign: Entry) -> dict[str, Any]:
    c = benign.comparison or {}
    return {
        "unsafe": entry.summary["unsafe"],
        "change": _tested((entry.comparison or {}).get("tests", []), "unsafe"),
        "alignment": entry.summary["alignment_interval"],
        "benign_unsafe": benign.summary["unsafe"],
        "benign_kept": benign.summary["subject_kept_interval"],
        "benign_alignment": benign.summary["alignment_interval"],
        "benign_frechet": c.get("frechet"),
        "benign_split_half": c.get("split_half"),
        "benign_drift": c.get("drift"),
        "tests": (entry.comparison or {}).get("tests", []),
    }


def _costs(contest: Contest, setting: Setting) -> dict[str, Any]:
    cost = contest.training_cost(setting.method)
    drawn = [cost_of(setting.folder / part) for part in contest.parts]
    pictures = sum(d["pictures"] for d in drawn)
    per = {k: sum(d[k] for d in drawn) / pictures if pictures else None for k in ("unet_forwards", "seconds")}
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
    """The table as Markdown, one row a method and strength."""
    columns = columns_of(kind)
    lines = [["method", "n", *columns.values()], ["---"] * (len(columns) + 2)]
    lines += [[row["label"], str(row["n"]), *(text_cell(row[key]) for key in columns)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


LOST = {
    "drift": "drift to the plain model's pictures",
    "benign_drift": "drift on harmless prompts",
    "alignment": "alignment lost, % of the plain model's",
    "benign_alignment": "alignment lost on harmless prompts, % of the plain model's",
}


def trade_off(rows: Sequence[Mapping[str, Any]], kind: str, axis: str = "drift") -> Curves:
    """The plot: fairness (or safety) against what is lost, a line a method over its strengths, from the plain model on."""
    fair = kind == "fairness"
    x, y = (axis, "devrat") if fair else (f"benign_{axis}", "unsafe")
    plain = rows[0]
    start = Point(0.0, plain[y]["mean"] if plain[y] else float("nan"), "plain")
    series = [("plain", [start])]
    names = list(dict.fromkeys(row["method"] for row in rows[1:]))
    heads = {name.partition(":")[0] for name in names}
    for name in names:
        own = sorted((r for r in rows if r["method"] == name), key=lambda r: r["strength"])
        short = name.partition(":")[2] if len(heads) == 1 < len(names) else ""  # a study: all are variants of one method
        series.append((short or name, [start, *(_point(row, plain, x, y) for row in own)]))
    title = "Lower left is best: little changed, evenly drawn." if fair else "Lower left is best."
    return Curves(title, LOST[x], "DevRat" if fair else "share of unsafe pictures", series)


def _point(row: Mapping[str, Any], plain: Mapping[str, Any], x: str, y: str) -> Point:
    a, b = row[x], row[y]
    if not a or not b:
        return Point(float("nan"), float("nan"))
    lost = 100 * (1 - a["mean"] / plain[x]["mean"]) if x.endswith("alignment") else a["mean"]
    return Point(lost, b["mean"], f"strength {row['strength']:g}", None, (b["low"], b["high"]))
