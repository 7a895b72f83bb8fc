"""Runs a table of the paper: trains, draws and judges each row, and writes what was measured beside what was published."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from respodiff._version import __version__
from respodiff.concepts.concept import Attribute, Concept, attribute
from respodiff.data.places import check_out
from respodiff.data.prompt_sets import coco, i2p, load_suite
from respodiff.data.records import Prompt
from respodiff.data.run_folder import write_atomic
from respodiff.data.shards import WHOLE, Shard
from respodiff.evaluation.comparison import ReportEntry, entries_of
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import EMBEDDED, NOTICE, ClipJudge, FeatureJudge, Judge, Vocabulary
from respodiff.evaluation.metrics.estimate import Estimate
from respodiff.evaluation.registry import Settings
from respodiff.evaluation.scored_run import load_scored_run
from respodiff.experiments.compare import REMOVED, MethodComparison, Plan, cost_of, method_of, spaced
from respodiff.experiments.engine import Engine
from respodiff.experiments.paper_tables import PaperRow, PaperTable, below_budget
from respodiff.experiments.work import ModelSource, Progress, Run, draw, draw_on
from respodiff.generation.config import GenerateConfig
from respodiff.methods.registry import BASELINE, load
from respodiff.reports.html import Section, html_report
from respodiff.reports.tables import Cell, markdown_table, markdown_text

TITLES = {"devrat": "DevRat", "alignment": "WinoAlign", "unsafe": "unsafe (I2P)", "fid": "FID", "clip": "CLIP"}
OURS = ("runs/*/*/run.json", "adapters/*.safetensors", "reproduce.json")
ABOUT = (
    "Published: figures of the paper, from public summaries. Measured: of this run, with 95 % intervals over prompts.",
    "Noise floor: what a perfect generator that samples concepts at random would show at this n (DevRat).",
    "The FID's resize is that of TensorFlow 1.",
)


@dataclass(frozen=True)
class Part:
    """Prompts of a table, and the images of each; the digest of the file they come from."""

    prompts: list[Prompt]
    images: int
    digest: str


def parts_of(table: PaperTable, paths: Mapping[str, str] | None = None) -> dict[str, Part]:
    """``suite`` and, where the table has them, ``captions``; paths: suite -> file of I2P or COCO. Errors as `load_suite`."""
    found = {}
    for name, suite, images in (("suite", table.suite, table.images), ("captions", table.captions, 1)):
        if suite:
            read = load_suite(suite, path=(paths or {}).get(suite) or None)
            n, each = table.part(len(read.prompts), images)
            found[name] = Part(spaced(read.prompts, n), each, read.digest)
    return found


def counts_of(table: PaperTable, paths: Mapping[str, str] | None = None) -> dict[str, tuple[int, int]]:
    """Part -> (prompts, images each), for I2P and COCO without a file those of the published one."""
    sizes = {"i2p": i2p.SOURCE.rows - 1, "coco30k": coco.SOURCE.rows}  # one row of I2P has no text
    found = {}
    for name, suite, images in (("suite", table.suite, table.images), ("captions", table.captions, 1)):
        if suite:
            known = sizes.get(suite) if not (paths or {}).get(suite) else None
            found[name] = table.part(known or len(load_suite(suite, path=(paths or {}).get(suite) or None).prompts), images)
    return found


def cost(table: PaperTable, counts: Mapping[str, tuple[int, int]], steps: int) -> dict[str, Any]:
    """Images, and evaluations of the model per sample for drawing and for training by the authors' loops; None for the twin's training."""
    images = sum(prompts * each for prompts, each in counts.values())
    training = round(sum(published_forwards(table, row) for row in table.rows)) or None
    drawing = images * steps * sum(row.passes for row in table.rows)
    return {"images": images * len(table.rows), "training_forwards": training, "drawing_forwards": drawing}


def published_forwards(table: PaperTable, row: PaperRow) -> float:
    """Evaluations of the model per sample to train a row by the authors' loops, or the fraction of them; one adapter may hold all alternatives."""
    whole = row.method != BASELINE and table.kind in method_of(row.method).needs_classifier
    adapters = 1 if row.away else sum(1 if whole else len(attribute(name).names) for name in table.attributes) or len(REMOVED)
    return row.train_forwards * adapters * table.fraction


class Reproduction:
    """A table that is being made under a folder; `run` yields its progress, and what is there is not made again.

    Args:
        paths: suite -> file of I2P or COCO. classify: concept -> classifier of images, for methods that learn from images; judge: its digest.
    """

    def __init__(
        self,
        pipe: Any,
        table: PaperTable,
        out: str | Path,
        *,
        seed: int = 0,
        paths: Mapping[str, str] | None = None,
        classify: Callable[[Concept], Any] | None = None,
        judge: str = "",
    ) -> None:
        self.pipe, self.table, self.out, self.seed = pipe, table, Path(out), seed
        self.parts, settings = (
            parts_of(table, paths),
            {self.variant(row): dict(row.settings) for row in table.rows if row.method != BASELINE},
        )
        common: dict[str, Any] = {"suite": "unsafe" if table.kind == "safety" else "occupations", "methods": tuple(settings) or (BASELINE,)}
        common |= {"settings": settings, "steps": table.steps, "guidance": table.guidance, "seed": seed}
        common |= {"instead": {self.variant(row): row.instead for row in table.rows if row.instead}}
        plans = {name: Plan(attribute=name, **common) for name in table.attributes} or {"": Plan(**common)}
        more: dict[str, Any] = {"classify": classify, "judge": judge, "cache": self.out / "adapters"}
        self.trainings = {name: MethodComparison(pipe, plan, self.out, **more) for name, plan in plans.items()}

    @staticmethod
    def variant(row: PaperRow) -> str:
        """The row's name among the methods of a comparison."""
        return row.method if row.method == BASELINE else f"{row.method}:{row.name}"

    def folder(self, row: PaperRow, part: str) -> Path:
        """The run folder of a part of a row."""
        return self.out / "runs" / "-".join(re.findall(r"[\w.]+", row.name)).lower() / part

    def runs(self) -> list[Run]:
        """All run folders, with what they are drawn by; its adapters must be there."""
        found = []
        some = next(iter(self.trainings.values()))
        for row in self.table.rows:
            modules: list[Any] = []
            for name, training in self.trainings.items():
                factor = self.table.attributes.get(name, 1.0)
                paths = training.adapters(self.variant(row))
                modules += paths if factor == 1 else [load(path).scale(factor) for path in paths]
            steered, safety = ((), modules) if self.table.kind == "safety" else (modules, ())
            for name, part in self.parts.items():
                whole = method_of(row.method).adapter.batch_dependent  # a prompt's images are balanced together
                config = GenerateConfig(
                    images=part.images,
                    steps=some.steps,
                    guidance=some.guidance,
                    seed=self.seed,
                    truncate_prompts=True,
                    batch=max(GenerateConfig.batch, part.images if whole else 0),
                )
                found.append(
                    Run(self.folder(row, name), part.prompts, config, steered, safety, part.digest, what=f"drawing {row.name}, {name}")
                )
        return found

    def run(self, shard: Shard = WHOLE) -> Iterator[Progress]:
        """Train and draw what is missing, or a shard's part of it; errors as `MethodComparison.run`."""
        self._check_out()
        for training in self.trainings.values():
            yield from training.train_missing(shard)
        for run in self.runs():
            MethodComparison.add_cost(run.out, (yield from draw(self.pipe, run, shard)), shard)

    def run_on(self, engine: Engine, model: ModelSource, judge: str = "") -> Iterator[Progress]:
        """As `run`, on the workers of an engine. judge: source of the classifier."""
        self._check_out()
        for training in self.trainings.values():
            yield from training.train_on(engine, model, judge)
        runs = self.runs()
        for run, drawn in zip(runs, (yield from draw_on(engine, model, runs)), strict=True):
            MethodComparison.add_cost(run.out, drawn)

    def _check_out(self) -> None:
        check_out(self.out, lambda folder: any(any(folder.glob(name)) for name in OURS), force=None)

    @property
    def asked(self) -> list[Attribute]:
        """The attributes that judges are asked for."""
        return [training.plan.whole for name, training in self.trainings.items() if name]


def publish(made: Reproduction, judges: Sequence[Judge], *, real: str | Path | None = None, n_bootstrap: int = 2000) -> dict[str, Any]:
    """Judge what was drawn and write ``reproduce.html``, ``.md`` and ``.json`` into its folder.

    Args:
        judges: labels come from the first that gives any; an image that all could judge is unsafe if one flags it; Inception gives the FID.
        real: run folder of real images with captions, judged already or judged now, which the FID is measured against.

    Returns:
        JSON-ready: ``table``, ``rows`` of {name, measured, published}, ``images``, ``unet_forwards``, ``notes``, ``page``, ``tables``.

    Raises:
        ValueError: an attribute is asked for, and no judge compares images with texts.
    """
    table, settings = made.table, Settings(n_bootstrap=n_bootstrap, seed=made.seed)
    words = Vocabulary.embedded() if judges[0].name in EMBEDDED else None
    found: dict[str, list[ReportEntry]] = {}
    for part in made.parts:
        runs = []
        for row in table.rows:
            keys = [*judge_all(made.folder(row, part), judges, made.asked, vocabulary=words).answers]
            runs.append(load_scored_run(made.folder(row, part), keys=keys, label=row.name))
        if part == "captions" and real:
            first = load_scored_run(Path(real), keys=[*judge_all(Path(real), judges, made.asked, vocabulary=words).answers], label="real")
            found[part] = entries_of([first, *runs], settings)[1:]
        else:
            found[part] = entries_of(runs, settings)
    features = any(isinstance(judge, FeatureJudge) for judge in judges)
    rows = []
    for i, row in enumerate(table.rows):
        measured = {
            name: _figure(name, {part: entries[i] for part, entries in found.items()}, bool(real) and features) for name in table.figures
        }
        rows.append(
            {"name": row.name, "measured": measured, "published": published(row, table), "iterations": row.settings.get("iterations")}
        )
    costs = [cost_of(made.folder(row, part)) for row in table.rows for part in made.parts]
    trained = sum(t.training_cost(made.variant(row)) for t in made.trainings.values() for row in table.rows if row.method != BASELINE)
    kept: dict[str, Any] = {
        "notice": NOTICE,
        "library": __version__,
        "table": table.title,
        "model": table.model,
        "fraction": table.fraction,
    }
    kept |= {"judges": [{"name": j.name, "digest": j.digest} for j in judges], "rows": rows}
    kept |= {"images": sum(entry.summary.n for entries in found.values() for entry in entries)}
    kept |= {"unet_forwards": trained + sum(c["unet_forwards"] for c in costs), "notes": _notes(made, judges, bool(real), features)}
    return kept | _write(made, kept)


def _figure(name: str, entries: Mapping[str, ReportEntry], fid: bool) -> dict[str, Any] | None:
    """An estimate of a figure as JSON; None where it cannot be measured."""
    kind, _, attribute = name.partition(" ")
    if kind == "fid":
        e = entries["captions"].metric("frechet").get("") if fid else None
    elif kind == "clip":
        e = entries["captions"].metric("alignment").get("")
    elif kind == "unsafe":  # the paper's mean counts a prompt once for each of its labels
        e = entries["suite"].metric("label_weighted").get("") or entries["suite"].metric("unsafe").get("")
    else:
        e = entries["suite"].metric(kind).get(attribute)
    return asdict(e) if e else None


def published(row: PaperRow, table: PaperTable) -> dict[str, float | None]:
    """Figure -> value; a table of two attributes has none of its own."""
    return {name: row.published.get(name.partition(" ")[0]) for name in table.figures}


def _notes(made: Reproduction, judges: Sequence[Judge], real: bool, features: bool) -> list[str]:
    table, notes = made.table, list(ABOUT)
    given = {"clip" if isinstance(j, ClipJudge) and j.name not in EMBEDDED else j.name.partition(":")[0] for j in judges}
    if table.judges:
        lacking = [source for source in table.judges if source.partition(":")[0] not in given]
        without = f"; not given here: {', '.join(lacking)}" * bool(lacking)
        notes.append(f"Published figures are of these judges, and compare with no others: {', '.join(table.judges)}{without}.")
    if table.fraction < 1:
        notes.append(
            f"This is a run of {table.fraction:g} of prompts, images, rollouts and iterations: it shows that all works, its figures mean nothing."
        )
    if table.model == "embedded":
        notes.append(
            "On the embedded model: other prompts, attributes and budgets than the paper's, so that nothing is published to compare with."
        )
    notes += [f"{row.name}: {row.settings['iterations']} iterations." for row in table.rows if row.settings.get("iterations")]
    notes += [f"{row.name}: {row.note}." for row in table.rows if row.note]
    for row in table.rows:
        whole, own = published_forwards(table, row), sum(t.training_cost(made.variant(row)) for t in made.trainings.values())
        notes += below_budget(row.name, own, whole)
    if "fid" in table.figures and not (real and features):
        lacking = [*["--real RUN, a run folder of COCO's own images"] * (not real), *["--judge inception:FILE"] * (not features)]
        notes.append(f"No FID without {' and '.join(lacking)}.")
    return notes


def label(name: str) -> str:
    """The heading of a figure: DevRat gender."""
    kind, _, attribute = name.partition(" ")
    return f"{TITLES[kind]} {attribute}".strip()


def cells(kept: Mapping[str, Any], figures: Sequence[str]) -> list[dict[str, Cell]]:
    """Rows of the table for a page: every figure measured, then published, and the noise floor of a DevRat."""
    out = []
    for row in kept["rows"]:
        line: dict[str, Cell] = {"": row["name"]}
        for name in figures:
            m, published = row["measured"][name], row["published"][name]
            line[label(name)] = m and Estimate(m["mean"], m["low"], m["high"], m["n"])
            line[f"{label(name)}, published"] = published
            if "devrat" in name:
                line[f"{label(name)}, noise floor"] = m and m["random"]
        out.append(line)
    return out


def _write(made: Reproduction, kept: dict[str, Any]) -> dict[str, Any]:
    out, rows = made.out, cells(kept, made.table.figures)
    sizes = ", ".join(f"{len(p.prompts)} prompts of {n} with {p.images} images each" for n, p in made.parts.items())
    some = next(iter(made.trainings.values()))
    lead = f"{sizes}; {some.steps} steps, guidance {some.guidance:g}, seed {made.seed}; judged by {', '.join(j['name'] for j in kept['judges'])}."
    write_atomic(out / "reproduce.json", json.dumps(kept, indent=1) + "\n")
    notes = "\n".join(f"- {markdown_text(note)}" for note in kept["notes"])
    write_atomic(out / "reproduce.md", f"{markdown_text(lead)}\n\n" + "\n".join(markdown_table(rows)) + f"\n\n{notes}\n")
    page = html_report(out / "reproduce.html", title=kept["table"], lead=lead, sections=[Section("Table", table=rows, notes=kept["notes"])])
    return {"page": str(page), "tables": [str(out / f"reproduce.{end}") for end in ("md", "json")]}
