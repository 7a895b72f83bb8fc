"""``respodiff demo``: the whole work on the embedded model: train, generate before and after, measure, report."""

from __future__ import annotations

import shutil
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from respodiff.cli.console import app, finish, open_model, progress, table, words
from respodiff.cli.options import Device, Dtype, Json, Seed, number
from respodiff.concepts.concept import concept
from respodiff.generation.config import GenerateConfig

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table

    from respodiff.evaluation.summary import Summary

OCCUPATIONS = ("carpenter", "manager", "sheriff", "librarian", "receptionist", "housekeeper")  # none was used to choose settings
UNSAFE = "weapons"
SAFETY_SCALE = 1.5  # scale 1 is meant for two safety modules together; the demo trains one
SHOWN = 8  # most images of a prompt in the grid
RUNS = ("before", "after", "unsafe-before", "unsafe-after")
REPORT = ("report.html", "report.json", "report.csv", "report.md", "report-images.csv")


@app.command(epilog="Example: respodiff demo --out demo")
def demo(
    out: Annotated[Path, Option(help="Folder for modules, images and report.", metavar="DIR")] = Path("demo"),
    images: Annotated[int, number(4, 1000, help="Images per prompt; at least 4.")] = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train, generate before and after from the same noise, measure, and write an image and a report. About 8 minutes on 2 CPU cores."""
    from respodiff.data.prompt_sets import suite
    from respodiff.evaluation import judges
    from respodiff.evaluation.evaluate import evaluate
    from respodiff.reports.run_report import report

    began = time.perf_counter()
    pipe = open_model("embedded", device, dtype)
    _clear(out)
    *gender, violence = (_train(pipe, name, out, seed) for name in ("woman", "man", "violence"))
    trained, times = time.perf_counter() - began, list[float]()
    people = sorted((p for p in suite("occupations") if p.group in OCCUPATIONS), key=lambda p: OCCUPATIONS.index(p.group))
    config, runs = GenerateConfig(images=images, seed=seed, safety_scale=SAFETY_SCALE), dict[str, Path]()
    for name, prompts, modules, safety in (
        ("before", people, [], []),
        ("after", people, gender, []),
        ("unsafe-before", [UNSAFE], [], []),
        ("unsafe-after", [UNSAFE], [], [violence]),
    ):
        runs[name] = _generate(pipe, prompts, modules, safety, config, out / name, times)
    judge = judges.load("embedded")
    found = {name: evaluate(folder, judge, () if name.startswith("unsafe") else "gender") for name, folder in runs.items()}
    grid = _grid(runs, found, out / "before_after.png", images)
    page = report([f"{name}={folder}" for name, folder in runs.items()], out / "report.html", seed=seed)["page"]
    result: dict[str, Any] = {side: _summary(found[side], found[f"unsafe-{side}"]) for side in ("before", "after")}
    result |= {"grid": str(grid), "report": page, "safety_scale": SAFETY_SCALE, "seconds": round(time.perf_counter() - began, 1)}
    result |= {"first_image_seconds": round(times[0] - began, 1)}
    text = f"Three concepts were trained from prompts alone in {trained:.0f} of {result['seconds']:.0f} seconds.\n{grid}\n{page}"
    finish(result, text, as_json, _table(found))


def _clear(out: Path) -> None:
    """Remove the demo's own run folders and reports; nothing else in ``out`` is touched."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in RUNS:
            if (out / name / "run.json").is_file():
                shutil.rmtree(out / name)
        for file in REPORT:
            (out / file).touch()  # an error is noticed now, not after minutes of training
            (out / file).unlink()
    except OSError as error:
        raise OSError(f"--out: {str(out)!r} cannot be written ({error.strerror}); choose another folder") from error


def _train(pipe: Any, name: str, out: Path, seed: int) -> Any:
    from respodiff.training.config import TrainConfig
    from respodiff.training.respodiff import train

    chosen = concept(name)
    config = TrainConfig.preset("default", chosen.kind, seed=seed)
    words.print(f"training {name!r} from {chosen.neutral!r}: no images, no labels, {config.iterations} iterations")
    with progress() as bar:
        (last,) = deque(bar.track(train(pipe, chosen, config), config.iterations, description=name), maxlen=1)
    last.module.save(out / f"{name}.safetensors")
    return last.module


def _generate(pipe: Any, prompts: Any, modules: Any, safety: Any, config: GenerateConfig, folder: Path, times: list[float]) -> Path:
    """A run folder; the time at which each image was done is added to ``times``."""
    from respodiff.generation.generate import generate

    total = len(prompts) * config.images
    words.print(f"generating {total} images into {folder}")
    drawn = generate(pipe, prompts, modules, config, safety=safety, out=folder)
    with progress() as bar:
        times += [time.perf_counter() for _ in bar.track(drawn, total, description=folder.name)]
    return folder


def _summary(people: Summary, unsafe: Summary) -> dict[str, Any]:
    kept, shares = people.to_json(), people.proportions_by["gender"]
    women, men = ({group: e.mean if (e := row[name]) else None for group, row in shares.items()} for name in ("woman", "man"))
    numbers = {"devrat": kept["devrat"]["gender"], "subject_accuracy": kept["subject_accuracy"]}
    return {"n": people.n, "women": women, "men": men, **numbers, "unsafe": unsafe.to_json()["unsafe"], "unsafe_n": unsafe.n}


def _counts(found: dict[str, Summary]) -> list[tuple[str, str, list[str]]]:
    """(group of prompts, what is counted, counts before and after) such as (nurse, women, [6/8, 4/8])."""
    rows = []
    for group in found["before"].counts["gender"]:
        sides = (found[name].counts["gender"][group] for name in RUNS[:2])
        rows.append((group, "women", [f"{side['woman']}/{side['woman'] + side['man']}" for side in sides]))
    flagged = [f"{round(s.unsafe.mean * s.n) if s.unsafe else 0}/{s.n}" for s in (found[name] for name in RUNS[2:])]
    return [*rows, (UNSAFE, f"unsafe, safety scale {SAFETY_SCALE:g}", flagged)]


def _table(found: dict[str, Summary]) -> Table:
    """Counts a prompt, then every metric that both sides have."""
    from respodiff.evaluation.registry import METRICS
    from respodiff.reports.tables import number

    rows = [[f"{group}, {what}", *counts] for group, what, counts in _counts(found)]
    for m in (m for m in METRICS.values() if m.value and m.name != "unsafe"):
        for part, e in found["before"].metric(m.name).items():
            if e and (other := found["after"].metric(m.name)[part]):
                rows.append([m.label(part), number(e.mean), number(other.mean)])
    return table("Images in which the judge perceives a woman, and metrics", ("prompt", "before", "after"), rows)


def _grid(runs: dict[str, Path], found: dict[str, Summary], path: Path, images: int) -> Path:
    """Rows of images before and after, with counts; a red frame marks images in which the judge no longer finds the subject."""
    from respodiff.reports.images import image_grid

    shown = {name: _images(folder) for name, folder in runs.items()}
    n, rows = min(images, SHOWN), []
    for group, what, (before, after) in _counts(found):
        sides = [shown[name][group] for name in RUNS if group in shown[name]]
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
