"""The image strips of a report: for every prompt a row a run, and in a column images that start from the same noise."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from respodiff.evaluation.comparison import noise_key
from respodiff.evaluation.score_files import confined
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.verdicts import flags_of
from respodiff.reports import charts

if TYPE_CHECKING:
    from respodiff.evaluation.comparison import ReportEntry

PROMPTS, COLUMNS = 8, 8  # prompts of a suite that are shown, and images of each


def gallery(entries: Sequence[ReportEntry]) -> charts.Gallery:
    """Evenly spaced prompts of the suite, the first images of each; a run that lacks the image of a column has a hole there."""
    prompts = sorted({r.prompt_id for e in entries for r in e.run.records})
    step = max(1, len(prompts) / PROMPTS)
    shown = [prompts[int(i * step)] for i in range(min(PROMPTS, len(prompts)))]
    texts = {r.prompt_id: r.prompt for e in entries for r in e.run.records}
    places = {e.run.label: _places(e.run, set(shown)) for e in entries}
    flags = {e.run.label: flags_of(e.run) for e in entries}
    rows = []
    for prompt in shown:
        columns = list(dict.fromkeys(key for e in entries for key in places[e.run.label].get(prompt, {})))[:COLUMNS]
        strips = [(e.run.label, _strip(e.run, places[e.run.label].get(prompt, {}), columns, flags[e.run.label])) for e in entries]
        rows.append((texts[prompt], strips))
    return charts.Gallery(rows)


def text(entries: Sequence[ReportEntry]) -> str:
    """What a reader is told about the strips."""
    first = "First images of some prompts, none chosen by hand."
    if len(entries) == 1:
        return first
    if all(e.comparison is None or e.comparison["paired"] for e in entries):
        return f"One row a run; images in a column start from the same noise. {first}"
    return f"One row a run. Not all of these runs share their noise, so a column is no before and after. {first}"


def _places(run: ScoredRun, prompts: set[str]) -> dict[str, dict[Hashable, int]]:
    """Prompt -> noise -> row; images of unknown noise stand for themselves."""
    found: dict[str, dict[Hashable, int]] = {}
    for i, record in enumerate(run.records):
        if record.prompt_id in prompts:
            row = found.setdefault(record.prompt_id, {})
            row[noise_key(run, record) or ("place", len(row))] = i
    return found


def _strip(
    run: ScoredRun, places: dict[Hashable, int], columns: Sequence[Hashable], flags: Sequence[bool | None] | None
) -> list[charts.Shot]:
    return [_shot(run, places[key], flags) if key in places else charts.Shot(None, "not drawn") for key in columns]


def _shot(run: ScoredRun, i: int, flags: Sequence[bool | None] | None) -> charts.Shot:
    record, score = run.records[i], run.scores[i]
    asked = ", ".join(record.concepts.values())
    seen = ", ".join(score.labels[name] for name in record.concepts if name in score.labels)
    caption = f"asked {asked}, seen {seen}" if asked and seen != asked else asked
    # The embedded model's "unsafe" images are emoji; images of other models are shown only to who asks.
    veiled = record.model != "embedded" and (bool(record.categories) or bool(flags and flags[i]))
    return charts.Shot(confined(run.image_folders[i], record.file), score.problem or caption, veiled)
