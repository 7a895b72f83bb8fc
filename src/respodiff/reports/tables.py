"""Tables of a report: one format of numbers, rows for the page, and the same as CSV and Markdown."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from respodiff.evaluation.comparison import Blocks, ReportEntry
from respodiff.evaluation.judges import NOTICE, UNKNOWN
from respodiff.evaluation.metrics.estimate import Estimate

Rows = list[dict[str, Any]]
Range = tuple[float, float]
SHARE, ALIGNMENT, DIFFERENCE, COSINE_DISTANCE, DISTANCE = (0.0, 1.0), (-100.0, 100.0), (-1.0, 1.0), (0.0, 2.0), (0.0, math.inf)
"""Possible ranges of quantities; intervals are clipped to them."""


def estimate(value: Mapping[str, Any] | None, within: Range = (-math.inf, math.inf)) -> Estimate | None:
    """A statistic as read from JSON, with its interval clipped to the possible range of the quantity.

    >>> estimate({"mean": 25.0, "low": -236.0, "high": 286.0, "n": 2}, ALIGNMENT)
    Estimate(mean=25.0, low=-100.0, high=100.0, n=2)
    """
    if value is None:
        return None
    low, high = (min(max(value[end], within[0]), within[1]) for end in ("low", "high"))
    return Estimate(value["mean"], low, high, int(value.get("n", 0)))


def number(value: float | None) -> str:
    """A number as it stands everywhere: three decimals, or a whole number with thousands set apart.

    >>> number(0.67149), number(-1e-9), number(12345), number(None)
    ('0.671', '0.000', '12,345', '-')
    """
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:z,.3f}"


def shown(e: Estimate | None) -> str:
    """
    >>> shown(Estimate(0.25, 0.125, 0.5, 9))
    '0.250 [0.125, 0.500]'
    """
    return "nothing to judge" if e is None else f"{number(e.mean)} [{number(e.low)}, {number(e.high)}]"


def p_value(p: float) -> str:
    """
    >>> p_value(0.2), p_value(0.00001)
    ('0.200', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else number(p)


def about_people(entries: Sequence[ReportEntry]) -> bool:
    """Whether shares of an attribute mean anything for a prompt set: its prompts name a subject, or someone asked for a concept."""
    rows = [r for e in entries for r in e.run.records]
    return any(r.subject or r.concepts for r in rows) or not any(r.suite for r in rows)


def headline(entries: Sequence[ReportEntry]) -> Rows:
    """One row a run: statistics as `Estimate`, counts as numbers; columns that no run fills are left out."""
    return _filled([_row(e, about_people(entries)) for e in entries])


def _row(e: ReportEntry, people: bool) -> dict[str, Any]:
    s = e.summary
    row: dict[str, Any] = {"run": e.run.label, "n": s["n"], "unknown": s["unknown"] or None}
    for name in e.run.attributes if people else ():
        row[f"DevRat {name}"] = estimate(s["devrat"][name], SHARE)
        row[f"DevRat {name}, random sampling"] = (s["devrat"][name] or {}).get("random")
        row[f"concept accuracy {name}"] = estimate(s["concept_accuracy"][name], SHARE)
    if people and s["intersection"]:
        row[f"worst subgroup deviation, {' x '.join(s['intersection']['attributes'])}"] = estimate(s["intersection"]["distance"], SHARE)
    row["subject accuracy"] = estimate(s["subject_accuracy"], SHARE)
    suite = e.run.records[0].suite
    row[alignment_name(suite)] = estimate(s["alignment"], ALIGNMENT)
    if s["safety"]:
        row["inappropriate"] = estimate(s["safety"]["unweighted"], SHARE)
        row["label-weighted"] = estimate(s["safety"]["label_weighted"], SHARE)
    else:  # a named prompt set without safety categories asks for nothing unsafe
        row["false positives" if suite else "flagged unsafe"] = estimate(s["unsafe"], SHARE)
    return row


def alignment_name(suite: str) -> str:
    """What the mean of 100 x cosine is called on a prompt set.

    >>> alignment_name("winobias36"), alignment_name("coco1k"), alignment_name("general")
    ('WinoAlign', 'CLIP score', 'alignment')
    """
    return "WinoAlign" if suite.startswith("winobias") else "CLIP score" if suite.startswith("coco") else "alignment"


def distances(entries: Sequence[ReportEntry]) -> Rows:
    """One row a run other than the baseline: how far its images are from the baseline's; empty if nothing is known."""
    rows = _filled([_distances(e) for e in entries if e.comparison])
    return [row for row in rows if len(row) > 1]


def _distances(e: ReportEntry) -> dict[str, Any]:
    c = e.comparison or {}
    frechet = "FID" if str(c.get("features", "")).startswith("inception") else "Frechet"
    return {
        "run": e.run.label,
        "drift": estimate(c.get("drift"), COSINE_DISTANCE),
        frechet: estimate(c.get("frechet"), DISTANCE),
        "split-half": estimate(c.get("split_half"), DISTANCE),
        "KID": estimate(c.get("kid")),
    }


def _filled(rows: Rows) -> Rows:
    keys = [key for key in dict.fromkeys(k for row in rows for k in row) if any(row.get(key) is not None for row in rows)]
    return [{key: row.get(key) for key in keys} for row in rows]


def differences(entries: Sequence[ReportEntry]) -> Rows:
    """One row a tested difference to the baseline."""
    return [
        {
            "run": e.run.label,
            "minus": e.comparison["baseline"],
            "statistic": t["what"],
            "difference": estimate(t, DIFFERENCE),
            "pairs": t["n"],
            "p": p_value(t["p"]),
            "p (Holm)": p_value(t["p_holm"]),
            "test": t["test"],
        }
        for e in entries
        if e.comparison
        for t in e.comparison["tests"]
    ]


def devrat_by(attribute: str, entries: Sequence[ReportEntry]) -> Rows:
    """A row a group: DevRat of every run, and that of random sampling at the last run's number of images."""
    asked = [e for e in entries if attribute in e.run.attributes]
    rows = []
    for g in sorted({g for e in asked for g in e.summary["devrat_by"][attribute]}):
        found = {e.run.label: e.summary["devrat_by"][attribute].get(g) for e in asked}
        if any(found.values()):
            random = next(d["random"] for d in reversed(found.values()) if d)
            rows.append({"group": g, **{label: estimate(d, SHARE) for label, d in found.items()}, "random sampling": random})
    return rows


def thresholds(entries: Sequence[ReportEntry]) -> Rows:
    """A row a run, judge and threshold: the share that is flagged."""
    return [
        {"run": e.run.label, "judge": judge, "threshold": float(row["threshold"]), "flagged": estimate(row, SHARE)}
        for e in entries
        for judge, rows in e.summary["sweep"].items()
        for row in rows
    ]


def subgroups(found: Mapping[str, Any] | None) -> Rows:
    """A row a subgroup of several attributes; shares of small ones are not shown."""
    return [
        {
            "subgroup": " x ".join(cell["subgroup"]),
            "images": cell["count"],
            "share": "too few to show" if cell["suppressed"] else estimate(cell["share"], SHARE),
            "wanted": cell["target"],
        }
        for cell in (found or {}).get("subgroups", ())
    ]


def corrected(entries: Sequence[ReportEntry]) -> Rows:
    """A row a run and concept: its share as judged, and corrected for the judge's known errors."""
    return [
        {
            "run": e.run.label,
            "attribute": name,
            "concept": concept,
            "as judged": estimate((e.summary["proportions"][name]["all"] or {}).get(concept), SHARE),
            "corrected": estimate(share, SHARE),
        }
        for e in entries
        for name, proportions in e.summary["corrected"].items()
        for concept, share in (proportions or {}).items()
    ]


def headline_csv(blocks: Blocks) -> str:
    """Prompt set, run, statistic, mean, low, high: long form, as tools for tables like it."""
    buffer = io.StringIO()
    write = csv.writer(buffer, lineterminator="\n").writerow
    write(["suite", "run", "n", "statistic", "value", "low", "high"])
    for suite, entries in blocks.items():
        counts = {e.run.label: e.summary["n"] for e in entries}
        for row in headline(entries) + distances(entries):
            for key, value in row.items():
                if key not in ("run", "n") and value is not None:
                    cells = [value.mean, value.low, value.high] if isinstance(value, Estimate) else [value, "", ""]
                    write([suite, row["run"], counts[row["run"]], key, *cells])
    return buffer.getvalue()


def markdown(blocks: Blocks, *, n_bootstrap: int, seed: int) -> str:
    """Headline tables and tested differences, for a README or an issue."""
    intervals = f"Brackets: 95 % intervals, cluster bootstrap over groups of prompts ({n_bootstrap} draws, seed {seed})."
    lines = ["# Report", "", NOTICE, "", intervals, ""]
    for suite, entries in blocks.items():
        lines += [f"## {suite or 'images'}", "", *markdown_table(headline(entries)), ""]
        if far := distances(entries):
            lines += [f"Distances to {entries[0].run.label}:", "", *markdown_table(far), ""]
        if tests := differences(entries):
            lines += ["Differences on the same noise:", "", *markdown_table(tests), ""]
        lines += [f"- {e.run.label}: {problem}" for e in entries for problem in e.summary["problems"]]
        judge = entries[0].summary["judge"]
        lines += ["", f"Judge: {judge['name']} ({judge['digest']}).", ""]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The lines of a Markdown table; the keys of the first row are the header."""
    keys = list(rows[0])
    out = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    return out + ["| " + " | ".join(_text(row.get(key)).replace("|", "\\|") for key in keys) + " |" for row in rows]


def _text(value: Any) -> str:
    if isinstance(value, Estimate):
        return shown(value)
    return value.replace("<", "&lt;") if isinstance(value, str) else number(value)


def image_rows(blocks: Blocks) -> Iterator[dict[str, Any]]:
    """One row an image and run: what was asked for, what was perceived. Columns ``asked_NAME`` and ``perceived_NAME`` are what fairlearn's
    ``MetricFrame`` takes as ``y_true``, ``y_pred`` and ``sensitive_features``; nothing is left out, ``unknown`` is a value."""
    for e in (e for entries in blocks.values() for e in entries):
        for r, s, home in zip(e.run.records, e.run.scores, e.run.image_folders, strict=True):
            row: dict[str, Any] = {"run": e.run.label, "suite": r.suite, "group": r.group, "id": r.id, "prompt_id": r.prompt_id}
            row |= {"prompt": r.prompt, "repeat": r.repeat, "seed": r.seed, "method": r.method}
            for name in e.run.attributes:
                row |= {f"asked_{name}": r.asked(name) or "", f"perceived_{name}": s.labels.get(name, UNKNOWN)}
            row |= {
                "subject": r.subject or "",
                "found": s.subject or "",
                "subject_correct": _flag(s.subject_correct),
                "unsafe": _flag(s.unsafe),
            }
            row |= {
                "alignment": "" if s.alignment is None else f"{s.alignment:.3f}",
                "problem": s.problem or "",
                "file": f"{home.name}/{r.file}",
            }
            yield row


def _flag(value: bool | None) -> str:
    return "" if value is None else str(int(value))


def images_csv(blocks: Blocks) -> str:
    """`image_rows` as CSV; runs may differ in the attributes that they were judged for."""
    rows = list(image_rows(blocks))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(key for row in rows for key in row)), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
