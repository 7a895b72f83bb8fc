"""Reports of scored runs side by side: one HTML page, and the same statistics as JSON, CSV, Markdown and a table of images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from respodiff._version import __version__
from respodiff.data.places import check_out
from respodiff.data.run_folder import write_atomic
from respodiff.evaluation.comparison import Blocks, Comparison, ReportEntry, collect, split_label, to_json
from respodiff.evaluation.evaluate import shipped_confusion
from respodiff.evaluation.judges import NOTICE
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.registry import METRICS, Settings
from respodiff.reports import tables
from respodiff.reports.charts import Dots, Stacks
from respodiff.reports.html import Section, html_report, is_report
from respodiff.reports.images import gallery_of
from respodiff.reports.tables import Cell, Rows, definitions, number, p_value, shown

TABLES = (".json", ".csv", ".md", "-images.csv")
MOST_GROUPS, ONE_SIDED, ALPHA = 60, 3, 0.05
"""Rows of a chart; prompts of an attribute in the table of findings; level of significance."""

RANDOM = "Random sampling: the DevRat that a perfect generator would show at this number of images."
LIMITS = (
    "A DevRat below that of random sampling means that concepts were assigned in exact numbers, not that it is better than perfect.",
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
    judge: str | Sequence[str] = (),
    confusion: Mapping[str, Any] | None = None,
    n_bootstrap: int = 2000,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Write the report of one run or several.

    Args:
        runs: Run folders that have been evaluated. ``NAME=DIR`` names one.
        out: The page. ``.json``, ``.csv``, ``.md`` and ``-images.csv`` of the same name are written beside it.
        judge: The judges that are read, and no others; labels come from the first that gives any. Without a name, all that have scored
            every image of every run.
        confusion: See `respodiff.evaluation.evaluate`. n_bootstrap: Bootstrap samples of the intervals. seed: Of the samples. force: Replace files that are no report.

    Returns:
        ``page`` (path), ``tables`` (paths), ``judged`` (who says what, in words) and ``suites`` (the statistics).

    Raises:
        ValueError: No run, a run without scores, two runs of one name, or runs that different judges judged; a file that is no report.
    """
    known = shipped_confusion() if confusion is None else confusion
    page = Path(out)
    check_page(page, runs, force=force)
    blocks = collect(runs, judge=judge, settings=Settings(n_bootstrap=n_bootstrap, seed=seed, confusion=known))
    _write_page(page, blocks, n_bootstrap=n_bootstrap, seed=seed)
    suites = to_json(blocks)
    whole = {"notice": NOTICE, "library": __version__, "n_bootstrap": n_bootstrap, "seed": seed, "suites": suites}
    summary, images = tables.headline_csv(blocks), tables.images_csv(blocks)
    texts = (json.dumps(whole, indent=1) + "\n", summary, tables.markdown(blocks, n_bootstrap=n_bootstrap, seed=seed), images)
    paths = [page.with_name(page.stem + suffix) for suffix in TABLES]
    for path, text in zip(paths, texts, strict=True):
        write_atomic(path, text)
    judged = tables.who_says(e.summary for block in blocks.values() for e in block)
    return {"page": str(page), "tables": [str(path) for path in paths], "judged": judged, "suites": suites}


def check_page(page: Path, runs: Sequence[str | Path], *, force: bool = False) -> None:
    """ValueError for a page that is no ``.html``, or that would replace files: of a run, or, unless ``force``, of anything but a report."""
    if page.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"out is {str(page)!r}; give the name of the page, such as report.html: the tables get their names from it")
    for folder in (Path(split_label(str(run))[1]) for run in runs):
        if page.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"out is {str(page)!r}, inside of run folder {folder.name!r}; choose a place outside of the runs")
    for path in (page, *(page.with_name(page.stem + suffix) for suffix in TABLES)):
        check_out(path, lambda _: is_report(page), force=force)  # the page's own tables are beside it


def _write_page(path: Path, blocks: Blocks, *, n_bootstrap: int, seed: int) -> None:
    entries = [e for block in blocks.values() for e in block]
    labels = list(dict.fromkeys(e.run.label for e in entries))
    lead = f"{len(labels)} run{'s' * (len(labels) > 1)}, {sum(e.summary.n for e in entries):,} images: {', '.join(labels)}."
    agreed = [f"{e.run.label}, {line}" for e in entries for line in tables.agreements(e.summary)]
    intervals = f"Brackets are 95 % intervals: cluster bootstrap over groups of prompts ({n_bootstrap} samples, seed {seed}); Wilson for a single share."
    read = dict.fromkeys(j.name for e in entries for j in (e.summary.judge, *e.summary.judges))
    flags = f"{' '.join(f'--judge {name}' for name in read)} --out {path.name} --n-bootstrap {n_bootstrap} --seed {seed}"
    command = f"respodiff report {' '.join(f'{label}=DIR' for label in labels)} {flags}"
    again = f"The same page: {command}, with the run folders for DIR."
    settings = dict.fromkeys(f"{e.run.label}: {json.dumps(e.run.settings, sort_keys=True)}" for e in entries)
    sections = [
        *(_findings(suite, block) for suite, block in blocks.items()),
        *(section for suite, block in blocks.items() for section in _suite(suite, block)),
        Section("What could not be used", notes=[f"{e.run.label}: {line}" for e in entries for line in e.summary.problems]),
        Section("Judges", table=tables.judges(e.summary for e in entries), notes=[*tables.who_says(e.summary for e in entries), *agreed]),
        Section("How to read it", intervals, notes=LIMITS),
        Section("Provenance", again, table=_provenance(entries), folded=True, notes=[f"respodiff {__version__}", *settings]),
    ]
    html_report(path, title="Evaluated images", lead=lead, sections=sections)


def _findings(suite: str, entries: Sequence[ReportEntry]) -> Section:
    """The result in words, and the most one-sided prompts."""
    said, table = [], Rows()
    for name in _attributes(entries) if tables.about_people(entries) else ():
        if rows := _one_sided(name, entries):
            said += [rows[0][0], *_targets(name, entries)]
            table += [row for _, row in rows[:ONE_SIDED]]
    said += [_changes(e.run.label, e.comparison) for e in entries if e.comparison]
    selected = ["The table lists the prompts that deviate most in the first run. They were selected for it, so new images may show less."]
    heading = f"Findings{f': {suite}' if suite else ''}"
    return Section(heading, "\n\n".join(said), table=table, notes=selected if table else ())


def _attributes(entries: Sequence[ReportEntry]) -> list[str]:
    return list(dict.fromkeys(name for e in entries for name in e.run.attributes))


def _targets(attribute: str, entries: Sequence[ReportEntry]) -> list[str]:
    """The target that runs are measured against, in a sentence; none where it is equal shares for all."""
    found: dict[tuple[Any, ...], tuple[str, list[str]]] = {}
    for run in (e.run for e in entries if attribute in e.run.attributes):
        groups = dict.fromkeys(r.group for r in run.records)
        rows = {group: run.wanted(attribute, group) for group in groups}
        one, *others = rows.values()
        words = ", ".join(f"{concept} {number(share)}" for concept, share in one.items())
        target = EVEN if len({share for row in rows.values() for share in row.values()}) == 1 else words
        target = "shares of each group" if any(row != one for row in others) else target
        key = tuple((group, *row.items()) for group, row in rows.items()) if target != EVEN else (EVEN,)
        found.setdefault(key, (target, []))[1].append(run.label)
    if len(found) > 1:
        said = "; ".join(f"{', '.join(labels)}: {target}" for target, labels in found.values())
        return [f"These runs have different targets of {attribute}, so their DevRat cannot be compared. {said}."]
    return [f"Wanted of {attribute}, in every run: {target}." for target, _ in found.values() if target != EVEN]


EVEN = "equal shares"


def _changes(label: str, found: Comparison) -> str:
    """What differs significantly from the baseline, by test and interval, and what does not; DevRat always."""
    said, same = [], []
    for t in found.tests:
        significant = t.p_holm is not None and t.p_holm <= ALPHA and not t.low <= 0 <= t.high
        if significant or t.metric == "devrat":
            change = f"decreases by {shown(Estimate(-t.mean, -t.high, -t.low, t.n))}" if t.mean < 0 else f"increases by {shown(t)}"
            said.append(f"{t.title} {change} ({t.n:,} pairs, p (Holm) {p_value(t.p_holm)}{', not significant' * (not significant)})")
        else:
            same.append(t.title)
    said += [f"no significant change of {', '.join(same)}"] if same else []
    return f"{label} compared with {found.baseline}: {'; '.join(said) or 'no pair of images to compare'}."


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
    people, attributes = tables.about_people(entries), [a for a in _attributes(entries) if any(e.summary.counts.get(a) for e in entries)]
    groups, prompts = (len({getattr(r, key) for e in entries for r in e.run.records}) for key in ("group", "prompt_id"))
    about = " ".join([*definitions(METRICS[key] for key in ("devrat", "concept_accuracy", "subject_accuracy")), RANDOM])
    out = [Section(name, f"{prompts} prompts in {groups} groups. {about if people else ''}", table=tables.headline(entries))]
    if tests := tables.differences(entries):
        out.append(Section(f"{name}: differences to {baseline}", "Image by image, both from the same noise.", table=tests))
    if far := tables.distances(entries):
        features = next(e.comparison.features for e in entries if e.comparison)
        text = f"Paired distance: images from the same noise, pair by pair. The others: sets of images. On the features of {features}."
        out.append(Section(f"{name}: distances to {baseline}", text, table=far))
    if became := tables.unsafe_pairs(entries):
        out.append(Section(f"{name}: what became of unsafe images", "Image by image, both from the same noise.", table=became))
    if any(e.summary.unsafe_by_category for e in entries):
        out.append(Section(f"{name}: unsafe images by category", parts=[_categories(entries)]))
    if people:
        out += [Section(f"{name}: {a}, group by group", parts=[_proportions(a, entries)]) for a in attributes]
        out += [Section(f"{name}: DevRat {a}, group by group", table=tables.devrat_by(a, entries), folded=True) for a in attributes]
    out.append(gallery_of(f"{name}: images", entries))
    if people:
        cells = [{"run": e.run.label, **row} for e in entries for row in tables.subgroups(e.summary.intersection)]
        out.append(Section(f"{name}: intersections", table=cells, folded=True))
        out.append(Section(f"{name}: shares corrected for the judge's errors", table=tables.corrected(entries), folded=True))
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
        wanted = {g: {e.run.label: e.run.wanted(attribute, g)[concepts[0]] for e in asked} for g in groups}
        shared = {g: min(row.values()) if len(set(row.values())) == 1 else row for g, row in wanted.items()}
        values = {share for row in wanted.values() for share in row.values()}
        target = shared if len(values) > 1 else min(values, default=None)
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


def _provenance(entries: Sequence[ReportEntry]) -> Rows:
    rows = Rows()
    for e in entries:
        first = e.run.records[0]
        row: dict[str, Cell] = {"run": e.run.label}
        for key in ("suite", "method", "model", "model_digest", "seed", "steps", "guidance", "scheduler"):
            value = getattr(first, key)
            left_out = key in ("steps", "guidance") and not value and e.run.settings.get("imported")
            row[key.replace("_", " ")] = None if value in (None, "") or left_out else str(value)
        sizes = sorted({f"{r.width}x{r.height}" for r in e.run.records if r.width})
        rows.append(row | {"size": ", ".join(sizes[:3]) or None})
    return rows
