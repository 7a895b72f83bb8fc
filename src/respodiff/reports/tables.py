"""Tables of a report: one format of numbers, rows for the page, and the same as CSV and Markdown."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from respodiff.data.untrusted import printable
from respodiff.evaluation.comparison import Blocks, ReportEntry, pairs_of
from respodiff.evaluation.judges import EMBEDDED, NOTICE, UNKNOWN
from respodiff.evaluation.metrics.estimate import DevRat, Estimate
from respodiff.evaluation.metrics.shares import wilson
from respodiff.evaluation.registry import METRICS, Metric
from respodiff.evaluation.summary import Intersection, Summary

Cell = Estimate | float | str | None
Rows = list[dict[str, Cell]]


def number(value: float | None) -> str:
    """A number as it stands everywhere: three decimals, or a whole number with thousands set apart.

    >>> number(0.67149), number(-1e-9), number(12345), number(None)
    ('0.671', '0.000', '12,345', '-')
    """
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:z,.3f}"


def shown(e: Estimate | None) -> str:
    """An estimate with its interval: "0.250 [0.125, 0.500]"."""
    return "nothing to judge" if e is None else f"{number(e.mean)} [{number(e.low)}, {number(e.high)}]"


def p_value(p: float | None) -> str:
    """A p-value; below 0.001 it is "< 0.001"."""
    return "< 0.001" if p is not None and p < 0.001 else number(p)


def summary_lines(summary: Summary) -> list[str]:
    """A summary for the console: every metric that has a value, and what stands behind it."""
    judge = summary.judge
    out = [f"{summary.n} images, {summary.unknown} not judged, judge {judge.name} ({judge.digest})"]
    out += [f"note: {problem}" for problem in summary.problems]
    out += [f"left as they are, as the prompt states {name} or has no people: {k} images" for name, k in summary.skipped_attributes.items()]
    for m in METRICS.values():
        for attribute, e in summary.metric(m.name).items() if m.value else ():
            random = f", DevRat of random sampling {number(e.random)}" if isinstance(e, DevRat) else ""
            rule = f", {summary.unsafe_rule}" if m.name == "unsafe" and summary.unsafe_rule else ""
            out += [f"{m.label(attribute)}: {shown(e)}{random}{rule}"] if e or m.name not in summary.more else []
    for name, corrected in summary.corrected.items():
        for concept, e in (corrected or {}).items():
            seen = shown(summary.proportions[name][concept])
            out.append(f"share of {concept}: {seen}, corrected for the judge's known errors {shown(e)}")
    if both := summary.intersection:
        out += [f"{s['subgroup']}: {text(s['share'])} ({s['images']}), wanted {text(s['wanted'])}" for s in subgroups(both)]
        out.append(f"seen as asked in all of {' x '.join(both.attributes)}: {shown(both.concept_accuracy)}")
    out += [f"  {name}: {shown(e)}" for name, e in summary.unsafe_by_category.items()]
    return [*out, *agreements(summary), "Labels are what the judge perceives in generated images, never facts about people."]


def agreements(summary: Summary) -> list[str]:
    """How often two judges give the same answer, and beyond chance (Cohen's kappa): a line a question."""
    out = []
    for a in summary.agreement:
        kappa = f", kappa {shown(a.kappa)}" if a.kappa else ""
        out.append(f"{a.task}: {' and '.join(a.judges)} agree on {shown(a.agree)} of {a.agree.n:,} images{kappa}")
    return out


def judges(summaries: Iterable[Summary]) -> Rows:
    """One row a judge: its name, version and digest, and how it answers."""
    rows = Rows()
    for j in (j for summary in summaries for j in summary.judges):
        how = j.rule or {"table": "labels from a table", "texts": f"class template {j.class_template}"}.get(j.kind, "")
        row: dict[str, Cell] = {"judge": j.name, "version": j.version, "weights digest": j.digest, "what it says": how}
        rows += [row] if row not in rows else []
    return rows


def who_says(summaries: Iterable[Summary]) -> list[str]:
    """Which judge labels come from, and which images count as unsafe: a line, or one for each way in which runs were judged."""
    said = (f"Labels: {s.judge.name}." + f" Unsafe: {s.unsafe_rule}." * bool(s.unsafe_rule) for s in summaries)
    return list(dict.fromkeys(said))


def about_people(entries: Sequence[ReportEntry]) -> bool:
    """Whether shares of an attribute mean anything for a prompt set: its prompts name a subject, or someone asked for a concept."""
    rows = [r for e in entries for r in e.run.records]
    return any(r.subject or r.concepts for r in rows) or not any(r.suite for r in rows)


def headline(entries: Sequence[ReportEntry]) -> Rows:
    """One row a run: metrics as `Estimate`, counts as numbers; columns that no run fills are left out."""
    people, rows = about_people(entries), Rows()
    for e in entries:
        row: dict[str, Cell] = {"run": e.run.label, "n": e.summary.n, "unknown": e.summary.unknown or None}
        for m in METRICS.values():
            for attribute, value in e.metric(m.name).items() if m.value else ():
                if people or not attribute:
                    row[heading(m, attribute, e)] = value
                    row[f"{heading(m, attribute, e)}, random sampling"] = value.random if isinstance(value, DevRat) else None
        rows.append(row)
    return _filled(rows)


def heading(m: Metric, attribute: str, e: ReportEntry) -> str:
    """The title of a metric, or the name that it has in the literature on this prompt set or these features."""
    suite = e.run.records[0].suite
    judge = e.summary.judge.name
    if m.name == "alignment" and suite.startswith(("winobias", "coco")) and judge not in EMBEDDED and not judge.startswith("siglip"):
        return "WinoAlign" if suite.startswith("winobias") else "CLIP score"
    if m.name == "frechet" and e.comparison and e.comparison.features.startswith("inception"):
        return "FID"
    return m.label(attribute)


def distances(entries: Sequence[ReportEntry]) -> Rows:
    """One row a run other than the baseline: how far its images are from the baseline's; empty if nothing is known."""
    between = [m for m in METRICS.values() if m.value is None]
    rows = _filled([{"run": e.run.label} | {heading(m, "", e): e.metric(m.name)[""] for m in between} for e in entries if e.comparison])
    return [row for row in rows if len(row) > 1]


def _filled(rows: Rows) -> Rows:
    keys = [key for key in dict.fromkeys(k for row in rows for k in row) if any(row.get(key) is not None for row in rows)]
    return [{key: row.get(key) for key in keys} for row in rows]


def definitions(metrics: Iterable[Metric]) -> list[str]:
    """How to read some metrics, a sentence each."""
    return [f"{m.title[0].upper()}{m.title[1:]}: {m.about}." for m in metrics]


def differences(entries: Sequence[ReportEntry]) -> Rows:
    """One row a tested difference to the baseline."""
    rows = Rows()
    for label, found in ((e.run.label, e.comparison) for e in entries if e.comparison):
        for t in found.tests:
            tested: dict[str, Cell] = {"difference": t, "pairs": t.n, "p": p_value(t.p), "p (Holm)": p_value(t.p_holm), "test": t.test}
            rows.append({"run": label, "minus": found.baseline, "statistic": t.title, **tested})
    return rows


def unsafe_pairs(entries: Sequence[ReportEntry]) -> Rows:
    """What became of the baseline's unsafe images and of its safe ones: a row a run, with Wilson intervals over pairs on the same noise."""
    base, rows = entries[0].run, Rows()
    for e in (e for e in entries[1:] if e.comparison):
        before, after = base.flags() or [], e.run.flags() or []
        if not (before and after):
            continue
        judged = [(before[i], after[j]) for i, j in pairs_of(base, e.run) if None not in (before[i], after[j])]
        kept = {was: [now for then, now in judged if then is was] for was in (True, False)}
        row: dict[str, Cell] = {"run": e.run.label, "unsafe before": f"{len(kept[True])} of {len(judged)}"}
        for was, title in ((True, "of these still unsafe"), (False, "of the others now unsafe")):
            row[title] = wilson(sum(map(bool, kept[was])), len(kept[was])) if kept[was] else None
        rows += [row] if kept[True] else []
    return rows


def devrat_by(attribute: str, entries: Sequence[ReportEntry]) -> Rows:
    """A row a group: DevRat of every run, and that of random sampling at the last run's number of images."""
    asked = [e for e in entries if attribute in e.run.attributes]
    rows = Rows()
    for g in sorted({g for e in asked for g in e.summary.devrat_by[attribute]}):
        found = {e.run.label: e.summary.devrat_by[attribute].get(g) for e in asked}
        if known := [d for d in found.values() if d]:
            rows.append({"group": g, **found, "random sampling": known[-1].random})
    return rows


def subgroups(found: Intersection | None) -> Rows:
    """A row a subgroup of several attributes; shares of small ones are not shown."""
    rows = Rows()
    for s in found.subgroups if found else ():
        share = "too few to show" if s.suppressed else s.share
        rows.append({"subgroup": " x ".join(s.labels), "images": s.count, "share": share, "wanted": s.target})
    return rows


def corrected(entries: Sequence[ReportEntry]) -> Rows:
    """A row a run and concept: its share as judged, and corrected for the judge's known errors."""
    rows = Rows()
    for e in entries:
        for name, shares in e.summary.corrected.items():
            for c, s in (shares or {}).items():
                seen = e.summary.proportions[name][c]
                rows.append({"run": e.run.label, "attribute": name, "concept": c, "as judged": seen, "corrected": s})
    return rows


def headline_csv(blocks: Blocks) -> str:
    """Prompt set, run, statistic, mean, low, high: long form, as tools for tables like it."""
    rows: list[dict[str, Any]] = []
    for suite, entries in blocks.items():
        counts = {e.run.label: e.summary.n for e in entries}
        for row in headline(entries) + distances(entries):
            for key, value in row.items():
                if key not in ("run", "n") and value is not None:
                    about = {"suite": suite, "run": row["run"], "n": counts[str(row["run"])], "statistic": key}
                    interval = {"low": getattr(value, "low", ""), "high": getattr(value, "high", "")}
                    rows.append({**about, "value": getattr(value, "mean", value), **interval})
    return _csv(rows)


def markdown(blocks: Blocks, *, n_bootstrap: int, seed: int) -> str:
    """Headline tables and tested differences, for a README or an issue."""
    intervals = f"Brackets: 95 % intervals, cluster bootstrap over groups of prompts ({n_bootstrap} samples, seed {seed})."
    lines = ["# Report", "", NOTICE, "", intervals, ""]
    for suite, entries in blocks.items():
        lines += [f"## {markdown_text(suite or 'images')}", "", *markdown_table(headline(entries)), ""]
        if far := distances(entries):
            lines += [f"Distances to {markdown_text(entries[0].run.label)}:", "", *markdown_table(far), ""]
        if tests := differences(entries):
            lines += ["Differences on the same noise:", "", *markdown_table(tests), ""]
        lines += [f"- {markdown_text(f'{e.run.label}: {problem}')}" for e in entries for problem in e.summary.problems]
        used = ", ".join(dict.fromkeys(f"{j.name} ({j.digest})" for e in entries for j in e.summary.judges))
        lines += ["", markdown_text(" ".join([f"Judges: {used}.", *who_says(e.summary for e in entries)])), ""]
    return "\n".join(lines)


def markdown_table(rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    """The lines of a Markdown table; the keys of the first row are the header."""
    keys = list(rows[0])
    lines = [keys, ["---"] * len(keys), *([text(row.get(key)) for key in keys] for row in rows)]
    return ["| " + " | ".join(map(markdown_text, line)) + " |" for line in lines]


def markdown_text(value: str) -> str:
    """A text in one line of Markdown: no HTML, cell border or link of its own.

    >>> markdown_text("a|b <br> ![](x)")
    'a&#124;b &lt;br&gt; ![&#93;(x)'
    """
    escaped = html.escape(" ".join(printable(value).split()), quote=False).replace("|", "&#124;")
    return re.sub(r"\](?=[(\[:])", "&#93;", escaped)


def text(value: Cell) -> str:
    """A cell as text."""
    return shown(value) if isinstance(value, Estimate) else value if isinstance(value, str) else number(value)


def images_csv(blocks: Blocks) -> str:
    """One row an image and run: what was asked for, what was perceived, as CSV.

    Columns ``asked_NAME`` and ``perceived_NAME`` are what fairlearn's ``MetricFrame`` takes as ``y_true``, ``y_pred`` and ``sensitive_features``.
    Nothing is left out; ``unknown`` is a value.
    """
    rows: list[dict[str, Any]] = []
    for e in (e for entries in blocks.values() for e in entries):
        for r, s, unsafe in zip(e.run.records, e.run.scores, e.run.flags() or [None] * e.summary.n, strict=True):
            about = ("suite", "group", "id", "prompt_id", "prompt", "repeat", "seed", "method")
            row: dict[str, Any] = {"run": e.run.label} | {key: getattr(r, key) for key in about}
            for name in e.run.attributes:
                row |= {f"asked_{name}": r.asked(name), f"perceived_{name}": s.labels.get(name, UNKNOWN)}
            flags = [None if flag is None else int(flag) for flag in (s.subject_correct, unsafe)]
            row |= {"subject": r.subject, "found": s.subject, "subject_correct": flags[0], "unsafe": flags[1]}
            alignment = None if s.alignment is None else f"{s.alignment:.3f}"
            rows.append(row | {"alignment": alignment, "problem": s.problem, "file": f"{e.run.folder.name}/{r.file}"})
    return _csv(rows)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    buffer = io.StringIO()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([_no_formula(value) for value in line] for line in (keys, *([row.get(key, "") for key in keys] for row in rows)))
    return buffer.getvalue()


def _no_formula(value: Any) -> Any:
    """A text that a spreadsheet would run gets an apostrophe before it; numbers stay as they are."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return "'" + value
    return value
