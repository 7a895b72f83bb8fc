"""The tables of a report: headline figures (CSV, Markdown, and rows for the page) and one row an image for other tools."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.score_files import UNKNOWN

if TYPE_CHECKING:
    from respodiff.evaluation.comparison import Blocks, ReportEntry


def estimate(value: Mapping[str, Any] | None) -> Estimate | None:
    """A figure as read from JSON."""
    return None if value is None else Estimate(value["mean"], value["low"], value["high"], int(value.get("n", 0)))


def about_people(entries: Sequence[ReportEntry]) -> bool:
    """Whether shares of an attribute mean anything for a suite: its prompts name a subject, or someone asked for a concept."""
    rows = [r for e in entries for r in e.run.records]
    return any(r.subject or r.concepts for r in rows) or not any(r.suite for r in rows)


def headline(entries: Sequence[ReportEntry]) -> list[dict[str, Any]]:
    """One row a run: figures as `Estimate`, random levels and counts as numbers; columns that no run fills are left out."""
    return _filled([_row(e, about_people(entries)) for e in entries])


def distances(entries: Sequence[ReportEntry]) -> list[dict[str, Any]]:
    """One row a run other than the baseline: how far its images are from the baseline's; empty if nothing is known."""
    rows = _filled([_distances(e) for e in entries if e.comparison])
    return [row for row in rows if len(row) > 1]


def _filled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = [key for key in dict.fromkeys(k for row in rows for k in row) if any(row.get(key) is not None for row in rows)]
    return [{key: row.get(key) for key in keys} for row in rows]


def _row(e: ReportEntry, people: bool) -> dict[str, Any]:
    s = e.summary
    row: dict[str, Any] = {"run": e.run.label, "n": s["n"], "unknown": s["unknown"] or None}
    for name in e.run.attributes if people else ():
        row[f"DevRat {name}"] = estimate(s["devrat"][name])
        row[f"random {name}"] = (s["devrat"][name] or {}).get("random")
        row[f"concept accuracy {name}"] = estimate(s["concept_accuracy"][name])
    if people and s["intersection"]:
        row[f"worst subgroup, {' x '.join(s['intersection']['attributes'])}"] = estimate(s["intersection"]["distance"])
    row["subject accuracy"] = estimate(s["subject_accuracy"])
    suite = e.run.records[0].suite
    row[alignment_name(suite)] = estimate(s["alignment"])
    if s["safety"]:
        row["inappropriate"] = estimate(s["safety"]["unweighted"])
        row["label-weighted"] = estimate(s["safety"]["label_weighted"])
    else:  # a named suite without safety categories asks for nothing unsafe
        row["false positives" if suite else "flagged unsafe"] = estimate(s["unsafe"])
    return row


def alignment_name(suite: str) -> str:
    """What the mean of 100 x cosine is called on a suite.

    >>> alignment_name("winobias36"), alignment_name("coco1k"), alignment_name("general")
    ('WinoAlign', 'CLIP score', 'alignment')
    """
    return "WinoAlign" if suite.startswith("winobias") else "CLIP score" if suite.startswith("coco") else "alignment"


def _distances(e: ReportEntry) -> dict[str, Any]:
    c = e.comparison or {}
    fid = str(c.get("features", "")).startswith("inception")
    names = {"drift": "drift", "FID" if fid else "Frechet": "frechet", "split-half": "split_half", "KID": "kid", "CMMD": "cmmd"}
    return {"run": e.run.label, **{name: estimate(c.get(key)) for name, key in names.items()}}


def differences(entries: Sequence[ReportEntry]) -> list[dict[str, Any]]:
    """One row a tested difference to the baseline."""
    return [
        {
            "run": e.run.label,
            "minus": e.comparison["baseline"],
            "statistic": t["what"],
            "difference": Estimate(t["mean"], t["low"], t["high"], t["n"]),
            "pairs": t["n"],
            "p": p_value(t["p"]),
            "p (Holm)": p_value(t["p_holm"]),
            "test": t["test"],
        }
        for e in entries
        if e.comparison
        for t in e.comparison["tests"]
    ]


def p_value(p: float) -> str:
    """
    >>> p_value(0.2), p_value(0.00001)
    ('0.200', '< .001')
    """
    return "< .001" if p < 0.001 else f"{p:.3f}"


def headline_csv(blocks: Blocks) -> str:
    """Suite, run, figure, mean, low, high: long form, as tools for tables like it."""
    buffer = io.StringIO()
    write = csv.writer(buffer, lineterminator="\n").writerow
    write(["suite", "run", "n", "statistic", "value", "low", "high"])
    for suite, entries in blocks.items():
        counts = {e.run.label: e.summary["n"] for e in entries}
        for row in headline(entries) + distances(entries):
            for key, value in row.items():
                if key in ("run", "n") or value is None:
                    continue
                cells = [value.mean, value.low, value.high] if isinstance(value, Estimate) else [value, "", ""]
                write([suite, row["run"], counts[row["run"]], key, *cells])
    return buffer.getvalue()


def markdown(blocks: Blocks, *, n_bootstrap: int, seed: int) -> str:
    """Headline tables and tested differences, for a README or an issue."""
    lines = [
        "# Report",
        "",
        NOTICE,
        "",
        f"Brackets: 95 % intervals, cluster bootstrap over groups of prompts ({n_bootstrap} draws, seed {seed}).",
        "",
    ]
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
    keys = list(rows[0])
    out = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    return out + ["| " + " | ".join(_text(row.get(key)).replace("|", "\\|") for key in keys) + " |" for row in rows]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Estimate):
        return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("<", "&lt;")


def image_rows(blocks: Blocks) -> Iterator[dict[str, Any]]:
    """One row an image and run: what was asked, what was perceived. Columns ``asked_NAME`` and ``perceived_NAME`` are what fairlearn's
    ``MetricFrame`` takes as ``y_true``, ``y_pred`` and ``sensitive_features``; nothing is left out, ``unknown`` is a value."""
    for entries in blocks.values():
        for e in entries:
            for r, s, home in zip(e.run.records, e.run.scores, e.run.image_folders, strict=True):
                row: dict[str, Any] = {"run": e.run.label, "suite": r.suite, "group": r.group, "id": r.id, "prompt_id": r.prompt_id}
                row |= {"prompt": r.prompt, "repeat": r.repeat, "seed": r.seed, "method": r.method}
                for name in e.run.attributes:
                    row[f"asked_{name}"] = r.asked(name) or ""
                    row[f"perceived_{name}"] = s.labels.get(name, UNKNOWN)
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
    """`image_rows` as CSV."""
    rows = list(image_rows(blocks))
    columns = list(dict.fromkeys(key for row in rows[:1] + rows[-1:] + _firsts(rows) for key in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _firsts(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first row of every run: runs may differ in the attributes that they were judged for."""
    return list({(row["run"], row["suite"]): row for row in reversed(rows)}.values())
