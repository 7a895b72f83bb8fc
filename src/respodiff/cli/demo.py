"""``respodiff demo``: the whole work on the embedded model: generate before and after, train one attribute, measure, report."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from respodiff._device import AUTO
from respodiff.cli.console import app, finish, open_model, progress, table, words
from respodiff.cli.options import Device, Dtype, Json, Seed, number
from respodiff.data.places import check_out
from respodiff.generation.config import GenerateConfig
from respodiff.pipelines.source import ModelSource
from respodiff.training.config import MOST

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from respodiff.evaluation.metrics.estimate import Estimate
    from respodiff.evaluation.summary import Summary

OCCUPATIONS = ("carpenter", "manager", "sheriff", "librarian", "receptionist", "housekeeper")  # none was used to choose settings
ATTRIBUTE = "gender"
UNSAFE = "weapons"
SAFETY_SCALE = 1.5  # scale 1 is meant for two safety modules together; the demo adds one
SHOWN = 8  # most images of a prompt in the grid
PEOPLE, SAFETY = ("before", "after", "trained"), ("unsafe-before", "unsafe-after")
RUNS = (*PEOPLE, *SAFETY)
REPORT = ("report.html", "report.json", "report.csv", "report.md", "report-images.csv")


@app.command(epilog="Example: respodiff demo --out demo")
def demo(
    out: Annotated[Path, Option(help="Folder for modules, images and report.", metavar="DIR")] = Path("demo"),
    images: Annotated[int, number(4, MOST, help="Images per prompt; at least 4.")] = 6,
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Generate with and without the shipped modules, train one attribute, measure, and write an image and a report. About 2 minutes on 2 cores."""
    from respodiff.data.prompt_sets import suite
    from respodiff.evaluation import judges
    from respodiff.evaluation.evaluate import evaluate
    from respodiff.methods.registry import load_all
    from respodiff.reports.run_report import report

    check_out(out, lambda folder: any((folder / name / "run.json").is_file() for name in RUNS), force=None)
    began = time.perf_counter()
    pipe = open_model(ModelSource("embedded", device, dtype, trains=True))
    _clear(out)
    people = sorted((p for p in suite("occupations") if p.group in OCCUPATIONS), key=lambda p: OCCUPATIONS.index(p.group))
    config = GenerateConfig(images=images, seed=seed, safety_scale=SAFETY_SCALE)
    runs, times, judge = dict[str, Path](), list[float](), judges.load_judge("embedded")
    found: dict[str, Summary] = {}
    parts = {"start": time.perf_counter() - began, "images": 0.0, "judging": 0.0, "training": 0.0, "report": 0.0}

    def draw(name: str, prompts: Any, modules: Any = (), safety: Any = ()) -> None:
        with timed(parts, "images"):
            runs[name] = _generate(pipe, prompts, modules, safety, config, out / name, times)
        with timed(parts, "judging"):
            found[name] = evaluate(runs[name], judge, () if name.startswith("unsafe") else ATTRIBUTE)

    draw("before", people)
    draw("after", people, load_all(ATTRIBUTE))
    draw("unsafe-before", [UNSAFE])
    draw("unsafe-after", [UNSAFE], safety=load_all("violence"))
    words.print(
        f"before and after, with the shipped modules: {(grid := _grid(runs, found, out / 'before_after.png', images))}", soft_wrap=True
    )
    with timed(parts, "training"):
        modules, forwards = _train(pipe, out, seed)
    draw("trained", people, modules)
    with timed(parts, "report"):
        page = report([f"{name}={runs[name]}" for name in RUNS], out / "report.html", seed=seed)["page"]
    result: dict[str, Any] = {side: _summary(found[side], found[f"unsafe-{side}"]) for side in ("before", "after")}
    result |= {"trained": _people(found["trained"]), "grid": str(grid), "report": page, "safety_scale": SAFETY_SCALE}
    result |= {"seconds": round(time.perf_counter() - began, 1), "first_image_seconds": round(times[0] - began, 1)}
    result |= {"parts": {name: round(seconds, 1) for name, seconds in parts.items()}, "train_unet_forwards": forwards}
    text = f"{ATTRIBUTE} was trained from prompts alone, without images or labels, in {parts['training']:.0f} of {result['seconds']:.0f} seconds."
    text += f" The safety module acts at scale {SAFETY_SCALE:g}.\n{grid}\n{page}"
    finish(result, text, as_json, _table(found))


def _clear(out: Path) -> None:
    """Remove the demo's own run folders and reports; nothing else in ``out`` is touched."""
    from respodiff.data.run_folder import RunFolder

    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in RUNS:
            if (out / name / "run.json").is_file():
                with RunFolder(out / name).lock():
                    shutil.rmtree(out / name)
        for file in REPORT:
            (out / file).touch()  # an error is noticed now, not after minutes of training
            (out / file).unlink()
    except OSError as error:
        raise OSError(f"--out: {str(out)!r} cannot be written ({error.strerror or error}); choose another folder") from error


@contextmanager
def timed(parts: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds that pass to those of a part."""
    began = time.perf_counter()
    yield
    parts[name] += time.perf_counter() - began


def _train(pipe: Any, out: Path, seed: int) -> tuple[list[Any], int]:
    """The alternatives of the attribute, trained in one run under a bar with the loss; and evaluations of the model per sample."""
    from respodiff.concepts.concept import attribute
    from respodiff.training.config import TrainConfig
    from respodiff.training.respodiff import train_together

    concepts = attribute(ATTRIBUTE).concepts
    names, config = ", ".join(c.name for c in concepts), TrainConfig.preset("default", "fairness", seed=seed)
    words.print(f"training {names} from {concepts[0].neutral!r}: no images, no labels, {config.iterations} updates", soft_wrap=True)
    losses = []
    with progress() as bar:
        task = bar.add_task(names, total=config.iterations)
        for record in train_together(pipe, concepts, config):
            losses.append(record.loss)
            bar.update(task, completed=record.iteration, description=f"{names}, loss {record.loss:.4f}")
    words.print(f"loss {losses[0]:.4f} to {losses[-1]:.4f}")
    for name, module in record.module.items():
        module.save(out / f"{name}.safetensors")
    return list(record.module.values()), record.unet_forwards


def _generate(pipe: Any, prompts: Any, modules: Any, safety: Any, config: GenerateConfig, folder: Path, times: list[float]) -> Path:
    """A run folder; the time at which each image was done is added to ``times``."""
    from respodiff.generation.generate import generate

    total = len(prompts) * config.images
    words.print(f"generating {total} images of {folder.name!r}")
    drawn = generate(pipe, prompts, modules, config, safety=safety, out=folder)
    with progress() as bar:
        times += [time.perf_counter() for _ in bar.track(drawn, total, description=folder.name)]
    return folder


def _people(found: Summary) -> dict[str, Any]:
    kept, shares = found.to_json(), found.proportions_by[ATTRIBUTE]
    women, men = ({group: e.mean if (e := row[name]) else None for group, row in shares.items()} for name in ("woman", "man"))
    return {"n": found.n, "women": women, "men": men, "devrat": kept["devrat"][ATTRIBUTE], "subject_accuracy": kept["subject_accuracy"]}


def _summary(people: Summary, unsafe: Summary) -> dict[str, Any]:
    return _people(people) | {"unsafe": unsafe.to_json()["unsafe"], "unsafe_n": unsafe.n}


def _counts(found: dict[str, Summary]) -> list[tuple[str, str, list[str]]]:
    """(group of prompts, what is counted, counts a run) such as (nurse, women, [6/8, 4/8]); a run that is not drawn yet has none."""
    rows = []
    for group in found["before"].counts[ATTRIBUTE]:
        sides = (found[name].counts[ATTRIBUTE][group] for name in PEOPLE if name in found)
        rows.append((group, "women", [f"{side['woman']}/{side['woman'] + side['man']}" for side in sides]))
    flagged = [f"{round(s.unsafe.mean * s.n) if s.unsafe else 0}/{s.n}" for s in (found[name] for name in SAFETY)]
    return [*rows, (UNSAFE, "unsafe", flagged)]


def _table(found: dict[str, Summary]) -> Table:
    """Counts a prompt, then every metric of people with its interval."""
    from respodiff.evaluation.registry import METRICS

    rows = [[f"{group}, {what}", *counts, *[""] * (len(PEOPLE) - len(counts))] for group, what, counts in _counts(found)]
    for m in (m for m in METRICS.values() if m.value and m.name != "unsafe"):
        for part, e in found["before"].metric(m.name).items():
            if e:
                rows.append([m.label(part), *(_short(found[name].metric(m.name)[part]) for name in PEOPLE)])
    title = "Images in which the judge perceives a woman, and metrics with 95 % intervals"
    return table(title, ("prompt", "before", "after", "trained now"), rows)


def _short(e: Estimate | None) -> str:
    """With two decimals, for three columns of a narrow console: "0.61 [0.40, 0.80]"."""
    return f"{e.mean:.2f} [{e.low:.2f}, {e.high:.2f}]" if e else "-"


def _grid(runs: dict[str, Path], found: dict[str, Summary], path: Path, images: int) -> Path:
    """Rows of images before and after, with counts; a red frame marks images in which the judge no longer finds the subject."""
    from respodiff.reports.images import image_grid

    shown = {name: _images(folder) for name, folder in runs.items()}
    n, rows = min(images, SHOWN), []
    for group, what, (before, after, *_) in _counts(found):
        sides = [shown[name][group] for name in (*PEOPLE[:2], *SAFETY) if group in shown[name]]
        rows.append((f"{group} {before} -> {after} {what}", [image for side in sides for image in side[:n]]))
    chosen = "all of them" if n == images else f"the first {n} of {images} a prompt"
    footer = f"Left and right start from the same noise. Images shown: {chosen}, none chosen by hand. Red frame: the subject is lost."
    return image_grid(rows, path, columns=[("unsteered", n), ("steered", n)], thumb=72, title="before and after", footer=footer)


def _images(folder: Path) -> dict[str, list[Image.Image]]:
    """Images of a run by group of prompts, those without their subject in a red frame."""
    from PIL import Image, ImageOps

    from respodiff.data.untrusted import confined
    from respodiff.evaluation.scored_run import load_scored_run

    run, out = load_scored_run(folder), dict[str, list[Image.Image]]()
    for record, score in zip(run.records, run.scores, strict=True):
        with Image.open(confined(folder, record.file)) as file:
            image = file.convert("RGB")
        if score.subject_correct is False:
            image = ImageOps.expand(ImageOps.crop(image, border := image.width // 24 or 1), border, "red")
        out.setdefault(record.group, []).append(image)
    return out
