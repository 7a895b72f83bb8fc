"""The page of a report: what a reader sees first, what lies behind it, and how far it can be trusted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from respodiff._version import __version__
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.reports import charts, gallery, tables
from respodiff.reports.html import Section, html_report

if TYPE_CHECKING:
    from respodiff.evaluation.comparison import Blocks, ReportEntry

MOST_GROUPS = 60  # rows of a chart

STATISTICS = (
    "DevRat: 0 for the wanted proportions, 1 for one group only; random level: what a perfect generator that draws at random would show at this number of "
    "images; concept accuracy: share of images that show what was asked for; subject accuracy: share that still show the subject of the prompt."
)

LIMITS = (
    "DevRat is 0 for the wanted proportions and 1 for the most lopsided ones. Even a perfect generator that draws concepts at random shows the random level "
    "at this number of images: a figure below it means that concepts were dealt out in exact numbers, not that it is better than perfect.",
    "A judge errs, and more on some groups than on others. Where its errors on labelled images are known, corrected shares are given; they are "
    "only as good as those labels.",
    "Images that could not be judged are counted as unknown. They are in n and in no share.",
    "The Frechet distance, KID and CMMD compare sets of images by the judge's own features and depend on the number of images: compare the "
    "Frechet distance with the split-half figure, which is what chance alone makes at half the number. Only on Inception features is it called FID.",
    "Labels name what an image looks like. Two genders, three skin tones or a handful of race names are what a protocol counts, not all there is.",
)


def write(path: Path, blocks: Blocks, *, n_bootstrap: int, seed: int) -> Path:
    """Write the page."""
    entries = [e for block in blocks.values() for e in block]
    labels = list(dict.fromkeys(e.run.label for e in entries))
    lead = f"{len(labels)} run{'s' * (len(labels) > 1)}, {sum(e.summary['n'] for e in entries):,} images: {', '.join(labels)}."
    sections: list[Section] = []
    for suite, block in blocks.items():
        sections += _suite(suite, block)
    problems = [f"{e.run.label}: {line}" for e in entries for line in e.summary["problems"]]
    if problems:
        sections.append(Section("What could not be used", notes=problems))
    sections.append(Section("Judges", **_judges(entries)))
    sections.append(
        Section(
            "How to read it",
            notes=LIMITS,
            text=f"Brackets are 95 % intervals: cluster bootstrap over groups of prompts ({n_bootstrap} draws, seed {seed}); Wilson for a single share.",
        )
    )
    again = "respodiff report " + " ".join(f"{e.run.label}=DIR" for e in {e.run.label: e for e in entries}.values())
    text = f"The same page: {again} --out {path.name} --n-bootstrap {n_bootstrap} --seed {seed}, with the run folders for DIR."
    sections.append(Section("Provenance", text, table=_provenance(entries), folded=True, notes=_settings(entries)))
    return html_report(path, title="Measured images", lead=lead, sections=sections)


def _suite(suite: str, entries: Sequence[ReportEntry]) -> list[Section]:
    name, baseline = suite or "images", entries[0].run.label
    groups, prompts = (len({getattr(r, key) for e in entries for r in e.run.records}) for key in ("group", "prompt_id"))
    text = f"{prompts} prompts in {groups} groups. {STATISTICS if tables.about_people(entries) else ''}"
    out = [Section(name, text, table=tables.headline(entries))]
    notes = [f"{e.run.label}: {note}" for e in entries if e.comparison for note in e.comparison["notes"]]
    if tests := tables.differences(entries):
        text = "Image by image, both drawn from the same noise."
        out.append(Section(f"{name}: differences to {baseline}", text, table=tests, notes=notes))
    if far := tables.distances(entries):
        features = next(e.comparison["features"] for e in entries if e.comparison)
        text = f"Drift: images from the same noise, pair by pair. The others: sets of images. On the features of {features}."
        out.append(Section(f"{name}: distances to {baseline}", text, table=far))
    if any(e.summary["safety"] for e in entries):
        out.append(Section(f"{name}: unsafe images by category", parts=[_categories(entries)]))
    if tables.about_people(entries):
        names = list(dict.fromkeys(a for e in entries for a in e.run.attributes))
        out += [Section(f"{name}: {a}, group by group", parts=[_proportions(a, entries)]) for a in names]
        out += [Section(f"{name}: DevRat {a}, group by group", table=rows, folded=True) for a in names if (rows := _devrat_by(a, entries))]
    out.append(Section(f"{name}: images", gallery.text(entries), parts=[gallery.gallery(entries)]))
    if any(e.summary["sweep"] for e in entries):
        text = "Share of images that a judge flags, by the score from which it does; the judge's own threshold is among them."
        out.append(Section(f"{name}: thresholds", text, table=_thresholds(entries), folded=True))
    if any(e.summary["intersection"] for e in entries) and tables.about_people(entries):
        out.append(Section(f"{name}: intersections", table=_cells(entries), folded=True))
    if any(v for e in entries for v in e.summary["corrected"].values()) and tables.about_people(entries):
        out.append(Section(f"{name}: shares corrected for the judge's errors", table=_corrected(entries), folded=True))
    return out


def _proportions(attribute: str, entries: Sequence[ReportEntry]) -> charts.Dots | charts.Stacks:
    """Two concepts: the share of the first, with intervals. More: bars of all shares."""
    asked = [e for e in entries if attribute in e.run.attributes]
    concepts = list(asked[0].run.attributes[attribute])
    groups = list(dict.fromkeys(g for e in asked for g in e.summary["groups"][attribute]))
    first = asked[0].summary["groups"][attribute]
    groups.sort(key=lambda g: (first.get(g, {}).get(concepts[0]) or 0, g))
    more = ""
    if len(groups) > MOST_GROUPS:  # the ends, where the most lopsided groups are
        more = f"; the {MOST_GROUPS} most lopsided of {len(groups)} groups"
        groups = groups[: MOST_GROUPS // 2] + groups[-MOST_GROUPS // 2 :]
    series = [e.run.label for e in asked]
    if len(concepts) == 2:
        rows = [(g, {e.run.label: _one(e, attribute, g, concepts[0]) for e in asked}) for g in groups]
        own = {g: (asked[-1].run.wanted(attribute, g) or {}).get(concepts[0], 0.5) for g in groups}
        target = own if len(set(own.values())) > 1 else next(iter(own.values()), 0.5)
        return charts.Dots(f"share of {concepts[0]}, with 95 % intervals{more}", series, rows, target)
    bars = [(g, {e.run.label: _all(e.summary["groups"][attribute].get(g), concepts) for e in asked}) for g in groups]
    return charts.Stacks(f"shares of {', '.join(concepts)}{more}", series, concepts, bars)


def _devrat_by(attribute: str, entries: Sequence[ReportEntry]) -> list[dict[str, Any]]:
    """A row a group: DevRat of every run with its interval, and the random level at the last run's number of images."""
    asked = [e for e in entries if attribute in e.run.attributes]
    groups = sorted({g for e in asked for g in e.summary["devrat_by"][attribute]})
    rows = []
    for g in groups:
        found = {e.run.label: e.summary["devrat_by"][attribute].get(g) for e in asked}
        if any(found.values()):
            random_level = next(d["random"] for d in reversed(found.values()) if d)
            rows.append({"group": g, **{label: tables.estimate(d) for label, d in found.items()}, "random": random_level})
    return rows


def _one(e: ReportEntry, attribute: str, group: str, concept: str) -> Estimate | None:
    return tables.estimate((e.summary["proportions"][attribute].get(group) or {}).get(concept))


def _all(proportions: Mapping[str, float | None] | None, concepts: Sequence[str]) -> list[float] | None:
    if not proportions or any(proportions[c] is None for c in concepts):
        return None
    return [float(proportions[c] or 0) for c in concepts]


def _categories(entries: Sequence[ReportEntry]) -> charts.Dots:
    judged = [e for e in entries if e.summary["safety"]]
    names = sorted({c for e in judged for c in e.summary["safety"]["by_category"]})
    rows: list[tuple[str, dict[str, Estimate | None]]] = [
        (c, {e.run.label: tables.estimate(e.summary["safety"]["by_category"].get(c)) for e in judged}) for c in names
    ]
    rows.append(("all, a prompt once", {e.run.label: tables.estimate(e.summary["safety"]["unweighted"]) for e in judged}))
    return charts.Dots("share of images that a judge flags", [e.run.label for e in judged], rows)


def _thresholds(entries: Sequence[ReportEntry]) -> list[dict[str, Any]]:
    return [
        {"run": e.run.label, "judge": judge, "threshold": f"{row['threshold']:g}", "flagged": tables.estimate(row)}
        for e in entries
        for judge, rows in e.summary["sweep"].items()
        for row in rows
    ]


def _cells(entries: Sequence[ReportEntry]) -> list[dict[str, Any]]:
    rows = []
    for e in entries:
        found = e.summary["intersection"]
        for cell in (found or {}).get("subgroups", ()):
            share = tables.estimate(cell["share"])
            shown: Any = "too few to show" if cell["suppressed"] else share
            rows.append(
                {
                    "run": e.run.label,
                    "subgroup": " x ".join(cell["subgroup"]),
                    "images": cell["count"],
                    "share": shown,
                    "wanted": cell["target"],
                }
            )
    return rows


def _corrected(entries: Sequence[ReportEntry]) -> list[dict[str, Any]]:
    rows = []
    for e in entries:
        for name, proportions in e.summary["corrected"].items():
            for concept, share in (proportions or {}).items():
                seen = (e.summary["proportions"][name]["all"] or {}).get(concept)
                rows.append(
                    {
                        "run": e.run.label,
                        "attribute": name,
                        "concept": concept,
                        "as judged": tables.estimate(seen),
                        "corrected": tables.estimate(share),
                    }
                )
    return rows


def _judges(entries: Sequence[ReportEntry]) -> dict[str, Any]:
    rows, agree = [], []
    for e in entries:
        for j in e.summary["judges"]:
            how = j.get("rule") or {"table": "labels from a table", "texts": f"class template {j.get('class_template', '')}"}.get(
                j["kind"], ""
            )
            rows.append((j["judge"], j["version"], j["digest"], how))
        for a in e.summary["agreement"]:
            kappa = tables.estimate(a["kappa"])
            agree.append(
                f"{e.run.label}, {a['task']}: {a['judges'][0]} and {a['judges'][1]} agree on {a['agree']['mean']:.3f} "
                f"[{a['agree']['low']:.3f}, {a['agree']['high']:.3f}] of images"
                + ("" if kappa is None else f", kappa {kappa.mean:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]")
            )
    names = ("judge", "version", "weights digest", "what it says")
    return {"table": [dict(zip(names, row, strict=True)) for row in dict.fromkeys(rows)], "notes": agree}


def _provenance(entries: Sequence[ReportEntry]) -> list[dict[str, Any]]:
    rows = []
    for e in entries:
        first = e.run.records[0]
        sizes = sorted({f"{r.width}x{r.height}" for r in e.run.records if r.width})
        rows.append(
            {
                "run": e.run.label,
                "suite": first.suite or "-",
                "method": first.method or "-",
                "model": first.model or "-",
                "model digest": first.model_digest or "-",
                "seed": first.seed,
                "steps": first.steps or "-",
                "guidance": first.guidance or "-",
                "scheduler": first.scheduler or "-",
                "size": ", ".join(sizes[:3]) or "-",
            }
        )
    return rows


def _settings(entries: Sequence[ReportEntry]) -> list[str]:
    seen = dict.fromkeys((e.run.label, json.dumps(e.run.settings, sort_keys=True)) for e in entries)
    return [f"respodiff {__version__}", *(f"{label}: {text}" for label, text in seen)]
