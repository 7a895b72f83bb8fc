"""Reports of scored runs: one HTML page, and the same statistics as JSON, CSV, Markdown and a table of images.

Runs are set side by side, one prompt set after the other. The first run that holds a prompt set is the baseline there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from respodiff._version import __version__
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.comparison import Blocks, ReportEntry, collect, split_label, to_json
from respodiff.evaluation.evaluate import shipped_confusion
from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.registry import METRICS, Settings
from respodiff.reports import tables
from respodiff.reports.charts import Dots, Stacks
from respodiff.reports.html import Section, html_report
from respodiff.reports.images import gallery_of, gallery_text
from respodiff.reports.tables import Cell, Rows, definitions, number, p_value, shown

TABLES = (".json", ".csv", ".md", "-images.csv")
MOST_GROUPS, ONE_SIDED, ALPHA = 60, 3, 0.05
"""Rows of a chart; prompts of an attribute in the table of findings; level of significance."""

DEFINED = ("devrat", "concept_accuracy", "subject_accuracy")
RANDOM = "Random sampling: the DevRat that a perfect generator would show at this number of images."
LIMITS = (
    "DevRat is 0 for the wanted proportions and 1 for the most one-sided ones. A perfect generator that samples concepts at random shows the DevRat of "
    "random sampling. A lower figure means that concepts were assigned in exact numbers, not that it is better than perfect.",
    "A judge errs, and more on some groups than on others. Where its errors on labelled images are known, corrected shares are given; they are "
    "only as good as those labels.",
    "Images that could not be judged are counted as unknown. They are in n and in no share.",
    "The Frechet distance and KID compare sets of images by the judge's own features and depend on the number of images. Compare the "
    "Frechet distance with the split-half figure, which is what chance alone makes at half the number. Only on Inception features is it called FID.",
    "Labels name what an image looks like. Two genders, three skin tones or a handful of race names are what a protocol counts, not all there is.",
)


def report(
    runs: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    judge: str = "",
    confusion: Mapping[str, Any] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the report of one run or several.

    Args:
        runs: Run folders that have been evaluated. ``NAME=DIR`` names one.
        out: The page. ``.json``, ``.csv``, ``.md`` and ``-images.csv`` of the same name are written beside it.
        judge: The judge that labels come from, where a run has several. Empty takes the first that reads labels off images.
        confusion: See `respodiff.evaluation.evaluate`.
        n_bootstrap: Bootstrap samples of the intervals.
        seed: Seed of the draws.

    Returns:
        ``page`` (path), ``tables`` (paths) and ``suites`` (the statistics).

    Raises:
        ValueError: No run, a run without scores, two runs of one name, or runs that different judges judged.
    """
    known = shipped_confusion() if confusion is None else confusion
    page = Path(out)
    _check_place(page, runs)
    blocks = collect(runs, judge=judge, settings=Settings(n_bootstrap=n_bootstrap, seed=seed, confusion=known))
    _write_page(page, blocks, n_bootstrap=n_bootstrap, seed=seed)
    suites = to_json(blocks)
    whole = {"notice": NOTICE, "library": __version__, "n_bootstrap": n_bootstrap, "seed": seed, "suites": suites}
    texts = (
        json.dumps(whole, indent=1) + "\n",
        tables.headline_csv(blocks),
        tables.markdown(blocks, n_bootstrap=n_bootstrap, seed=seed),
        tables.images_csv(blocks),
    )
    paths = [page.with_name(page.stem + suffix) for suffix in TABLES]
    for path, text in zip(paths, texts, strict=True):
        write_atomic(path, text)
    return {"page": str(page), "tables": [str(path) for path in paths], "suites": suites}


def _check_place(page: Path, runs: Sequence[str | Path]) -> None:
    """ValueError for a page whose tables would replace a run's own files, or a file that was there before."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out is {str(page)!r}; give the name of the page, such as report.html: the tables get their names from it")
    for folder in (Path(split_label(str(run))[1]) for run in runs):
        if page.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"out is {str(page)!r}, inside of run folder {folder.name!r}; choose a place outside of the runs")
    there = [page.with_name(page.stem + suffix) for suffix in TABLES]
    if not page.exists() and (taken := [path.name for path in there if path.exists()]):
        raise ValueError(f"out is {str(page)!r}, whose table {taken[0]!r} would replace a file that is there; choose another name")


def _write_page(path: Path, blocks: Blocks, *, n_bootstrap: int, seed: int) -> None:
    entries = [e for block in blocks.values() for e in block]
    labels = list(dict.fromkeys(e.run.label for e in entries))
    lead = f"{len(labels)} run{'s' * (len(labels) > 1)}, {sum(e.summary.n for e in entries):,} images: {', '.join(labels)}."
    sections = [section for suite, block in blocks.items() if (section := _findings(suite, block))]
    for suite, block in blocks.items():
        sections += _suite(suite, block)
    if problems := [f"{e.run.label}: {line}" for e in entries for line in e.summary.problems]:
        sections.append(Section("What could not be used", notes=problems))
    judges, agreement = _judges(entries)
    intervals = f"Brackets are 95 % intervals: cluster bootstrap over groups of prompts ({n_bootstrap} samples, seed {seed}); Wilson for a single share."
    command = f"respodiff report {' '.join(f'{label}=DIR' for label in labels)} --out {path.name} --n-bootstrap {n_bootstrap} --seed {seed}"
    again = f"The same page: {command}, with the run folders for DIR."
    settings = dict.fromkeys(f"{e.run.label}: {json.dumps(e.run.settings, sort_keys=True)}" for e in entries)
    sections += [
        Section("Judges", table=judges, notes=agreement),
        Section("How to read it", intervals, notes=LIMITS),
        Section("Provenance", again, table=_provenance(entries), folded=True, notes=[f"respodiff {__version__}", *settings]),
    ]
    html_report(path, title="Evaluated images", lead=lead, sections=sections)


def _findings(suite: str, entries: Sequence[ReportEntry]) -> Section | None:
    """The result in words, and the most one-sided prompts; None where nothing can be said."""
    said: list[str] = []
    table: Rows = []
    for name in dict.fromkeys(a for e in entries for a in e.run.attributes) if tables.about_people(entries) else ():
        if rows := _one_sided(name, entries):
            said.append(rows[0][0])
            table += [row for _, row in rows[:ONE_SIDED]]
    said += [text for e in entries if (text := _changes(e) if e.comparison else _reached(e) if len(entries) == 1 else "")]
    selected = ["The table lists the prompts that deviate most in the first run. They were selected for it, so new images may show less."]
    heading = f"Findings{f': {suite}' if suite else ''}"
    return Section(heading, "\n\n".join(said), table=table, notes=selected if table else ()) if said else None


def _reached(e: ReportEntry) -> str:
    """What a single run reaches."""
    s = e.summary
    said = [
        f"Mean DevRat of {name}: {_with_n(d)}; random sampling: {number(d.random)}."
        for name, d in s.devrat.items()
        if d and tables.about_people([e])
    ]
    others = {"Subject accuracy": s.subject_accuracy, "Share of images flagged as unsafe": s.unsafe}
    return " ".join([*said, *(f"{title}: {_with_n(value)}." for title, value in others.items() if value)])


def _changes(e: ReportEntry) -> str:
    """What differs significantly from the baseline, and what does not; DevRat always."""
    if e.comparison is None:
        return ""
    significant = {t.title: t.p_holm is not None and t.p_holm <= ALPHA for t in e.comparison.tests}
    told = [t for t in e.comparison.tests if significant[t.title] or t.metric == "devrat"]
    said = []
    for t in told:
        size = Estimate(-t.mean, -t.high, -t.low, t.n) if t.mean < 0 else t  # the words say the sign
        word = f"{t.title} {'decreases' if t.mean < 0 else 'increases'} by {shown(size)}"
        said.append(f"{word} ({t.n:,} pairs, p (Holm) {p_value(t.p_holm)}{', not significant' * (not significant[t.title])})")
    if same := [t.title for t in e.comparison.tests if t not in told]:
        said.append(f"no significant change of {', '.join(same)}")
    return f"{e.run.label} compared with {e.comparison.baseline}: {'; '.join(said)}." if said else ""


def _with_n(e: Estimate) -> str:
    return f"{shown(e)} (n = {e.n:,})"


def _one_sided(attribute: str, entries: Sequence[ReportEntry]) -> list[tuple[str, dict[str, Cell]]]:
    """A sentence and a row for each group of prompts, the one whose most deviant concept is furthest from its share in the first run first."""
    first, *others = [e for e in entries if attribute in e.run.attributes]
    targets, found = first.run.attributes[attribute], []
    for group, counts in first.summary.counts[attribute].items():
        n, wanted = sum(counts[c] for c in targets), first.run.wanted(attribute, group)
        if n and len(targets) > 1:
            gap, _, concept = max((round(abs(counts[c] / n - wanted[c]), 9), counts[c], c) for c in targets)
            looked, expected = f"“{group}” looked like {targets[concept]}", f"expected {round(wanted[concept] * n, 1):g}"
            said = f"{first.run.label}: in {counts[concept]} of {n} images, {looked}; {expected}."
            for e in others:
                if total := sum(e.summary.counts[attribute].get(group, {}).get(c, 0) for c in targets):
                    said += f" {e.run.label}: {e.summary.counts[attribute][group][concept]} of {total}."
            row: dict[str, Cell] = {"prompts": group, "looked like": targets[concept], "n": n, "wanted": wanted[concept]}
            row |= {e.run.label: e.summary.proportions_by[attribute].get(group, {}).get(concept) for e in (first, *others)}
            found.append((-gap, -n, said, row))
    return [(said, row) for *_, said, row in sorted(found, key=lambda f: f[:2])]


def _suite(suite: str, entries: Sequence[ReportEntry]) -> list[Section]:
    name, baseline = suite or "images", entries[0].run.label
    people, attributes = tables.about_people(entries), list(dict.fromkeys(a for e in entries for a in e.run.attributes))
    groups, prompts = (len({getattr(r, key) for e in entries for r in e.run.records}) for key in ("group", "prompt_id"))
    about = " ".join([*definitions(METRICS[name] for name in DEFINED), RANDOM])
    out = [Section(name, f"{prompts} prompts in {groups} groups. {about if people else ''}", table=tables.headline(entries))]
    if tests := tables.differences(entries):
        out.append(Section(f"{name}: differences to {baseline}", "Image by image, both from the same noise.", table=tests))
    if far := tables.distances(entries):
        features = next(e.comparison.features for e in entries if e.comparison)
        text = f"Paired distance: images from the same noise, pair by pair. The others: sets of images. On the features of {features}."
        out.append(Section(f"{name}: distances to {baseline}", text, table=far))
    if any(e.summary.unsafe_by_category for e in entries):
        out.append(Section(f"{name}: unsafe images by category", parts=[_categories(entries)]))
    if people:
        out += [Section(f"{name}: {a}, group by group", parts=[_proportions(a, entries)]) for a in attributes]
        devrats = {a: tables.devrat_by(a, entries) for a in attributes}
        out += [Section(f"{name}: DevRat {a}, group by group", table=rows, folded=True) for a, rows in devrats.items() if rows]
    out.append(Section(f"{name}: images", gallery_text(entries), parts=[gallery_of(entries)]))
    if people:
        cells: Rows = [{"run": e.run.label, **row} for e in entries for row in tables.subgroups(e.summary.intersection)]
        for heading, rows in (("intersections", cells), ("shares corrected for the judge's errors", tables.corrected(entries))):
            if rows:
                out.append(Section(f"{name}: {heading}", table=rows, folded=True))
    return out


def _proportions(attribute: str, entries: Sequence[ReportEntry]) -> Dots | Stacks:
    """Two concepts: the share of the first, with intervals. More: bars of all shares."""
    asked = [e for e in entries if attribute in e.run.attributes]
    concepts, series = list(asked[0].run.attributes[attribute]), [e.run.label for e in asked]
    shares = {e.run.label: e.summary.proportions_by[attribute] for e in asked}
    groups = list(dict.fromkeys(g for found in shares.values() for g in found))
    first = {g: row[concepts[0]] for g, row in shares[series[0]].items()}
    groups.sort(key=lambda g: (e.mean if (e := first.get(g)) else 0.0, g))
    more = ""
    if len(groups) > MOST_GROUPS:  # the ends, where the most one-sided groups are
        more = f"; the {MOST_GROUPS} most one-sided of {len(groups)} groups"
        groups = groups[: MOST_GROUPS // 2] + groups[-MOST_GROUPS // 2 :]
    if len(concepts) == 2:
        own = {g: asked[-1].run.wanted(attribute, g)[concepts[0]] for g in groups}
        target = own if len(set(own.values())) > 1 else next(iter(own.values()), 0.5)
        rows = [(g, {label: found.get(g, {}).get(concepts[0]) for label, found in shares.items()}) for g in groups]
        return Dots(f"share of {concepts[0]}, with 95 % intervals{more}", series, rows, target)
    bars = [(g, {label: [e.mean for e in found.get(g, {}).values() if e] or None for label, found in shares.items()}) for g in groups]
    return Stacks(f"shares of {', '.join(concepts)}{more}", series, concepts, bars)


def _categories(entries: Sequence[ReportEntry]) -> Dots:
    found = {e.run.label: e.summary.unsafe_by_category for e in entries if e.summary.unsafe_by_category}
    names = sorted({c for shares in found.values() for c in shares})
    rows = [(c, {label: shares.get(c) for label, shares in found.items()}) for c in names]
    rows.append(("all, a prompt once", {e.run.label: e.metric("inappropriate")[""] for e in entries if e.summary.unsafe_by_category}))
    return Dots("share of images that a judge flags", list(found), rows)


def _judges(entries: Sequence[ReportEntry]) -> tuple[Rows, list[str]]:
    """A row a judge, and how far two judges agree."""
    rows: Rows = []
    agree = []
    for e in entries:
        for j in e.summary.judges:
            how = j.rule or {"table": "labels from a table", "texts": f"class template {j.class_template}"}.get(j.kind, "")
            row: dict[str, Cell] = {"judge": j.name, "version": j.version, "weights digest": j.digest, "what it says": how}
            rows += [row] if row not in rows else []
        for a in e.summary.agreement:
            kappa = f", kappa {shown(a.kappa)}" if a.kappa else ""
            agree.append(f"{e.run.label}, {a.task}: {' and '.join(a.judges)} agree on {_with_n(a.agree)} of images{kappa}")
    return rows, agree


def _provenance(entries: Sequence[ReportEntry]) -> Rows:
    rows: Rows = []
    for e in entries:
        r = e.run.records[0]
        row: dict[str, Any] = {"run": e.run.label, "suite": r.suite, "method": r.method, "model": r.model, "model digest": r.model_digest}
        row |= {"seed": str(r.seed), "steps": r.steps, "guidance": r.guidance and f"{r.guidance:g}", "scheduler": r.scheduler}
        row["size"] = ", ".join(sorted({f"{r.width}x{r.height}" for r in e.run.records if r.width})[:3])
        rows.append({key: value or None for key, value in row.items()})
    return rows
