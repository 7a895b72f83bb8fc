"""``respodiff demo``: the whole main job on the embedded model in a few minutes, with something to look at."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from respodiff.cli.console import Device, Dtype, Json, Seed, app, finish, progress, words
from respodiff.concepts.concept import concept

if TYPE_CHECKING:
    from respodiff.evaluation.metrics.estimate import Estimate
    from respodiff.evaluation.summary import Summary

OCCUPATIONS = ("doctor", "ceo", "mechanic", "nurse", "secretary", "librarian")
UNSAFE = "weapons"
SAFETY_SCALE = 1.5  # scale 1 is meant for two safety modules together; the demo trains one
SHOWN = 8  # images a prompt in the grid
RUNS = ("before", "after", "unsafe-before", "unsafe-after")


@app.command(epilog="Example: respodiff demo --out demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for modules, images and report.", metavar="DIR")] = Path("demo"),
    images: Annotated[int, typer.Option("--images", help="Images per prompt; at least 4.", min=4)] = 8,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train, draw before and after on the same seeds, measure, and write an image and a report. About 7 minutes on 2 CPU cores."""
    began = time.perf_counter()
    from respodiff.cli.console import open_model

    pipe = open_model("embedded", device, dtype)
    _clear(out)
    *gender, violence = (_train(pipe, name, out, seed) for name in ("woman", "man", "violence"))
    trained = time.perf_counter() - began
    prompts = _prompts()
    jobs = zip(RUNS, (prompts, prompts, [UNSAFE], [UNSAFE]), ([], gender, [], [violence]), strict=True)
    runs = {name: _draw(pipe, texts, modules, out / name, images, seed) for name, texts, modules in jobs}
    found = _measure(runs)
    grid = _grid(runs, out / "before_after.png", images)
    lead = f"One small tensor per concept, added at the bottleneck of a frozen model. Three concepts were trained from prompts alone in {trained:.0f} seconds."
    report = _report(found, grid, out / "report.html", images, seed, lead)
    (words if as_json else Console(highlight=False)).print(_table(found))
    result = {
        "before": _summary(found["before"], found["unsafe-before"]),
        "after": _summary(found["after"], found["unsafe-after"]),
        "grid": str(grid),
        "report": str(report),
        "seconds": round(time.perf_counter() - began, 1),
    }
    finish(result, f"{grid}\n{report}\n{result['seconds']:.0f} seconds", as_json)


def _clear(out: Path) -> None:
    """The demo's own run folders are drawn anew; nothing else in ``out`` is touched."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in RUNS:
            if (out / name / "run.json").is_file():
                shutil.rmtree(out / name)
        for file in (out / "report.html", out / ".writable"):
            file.touch()  # noticed now, not after minutes of training
            file.unlink()
    except OSError as error:
        raise OSError(f"--out: {str(out)!r} cannot be written ({error.strerror}); choose another folder") from error


def _prompts() -> list[Any]:
    from respodiff.data.prompt_sets import suite

    known = {p.group: p for p in suite("occupations")}
    return [known[name] for name in OCCUPATIONS]


def _train(pipe: Any, name: str, out: Path, seed: int) -> Any:
    from respodiff.training.config import TrainConfig
    from respodiff.training.respodiff import train

    chosen = concept(name)
    config = TrainConfig.preset("default", chosen.kind, seed=seed)
    words.print(f"training {name!r} from {chosen.neutral!r}: no images, no labels, {config.iterations} iterations")
    record = None
    with progress() as bar:
        task = bar.add_task(name, total=config.iterations)
        for record in train(pipe, chosen, config):
            bar.update(task, completed=record.iteration)
    if record is None:
        raise RuntimeError("training ended without a step")
    module = record.module
    module.save(out / f"{name}.safetensors")
    return module


def _draw(pipe: Any, prompts: Sequence[Any], modules: Sequence[Any], folder: Path, images: int, seed: int) -> Path:
    from respodiff.generation.config import GenerateConfig
    from respodiff.generation.generate import generate

    words.print(f"drawing {len(prompts) * images} images into {folder}")
    with progress() as bar:
        task = bar.add_task(folder.name, total=len(prompts) * images)
        for _ in generate(pipe, prompts, modules, GenerateConfig(images=images, seed=seed, safety_scale=SAFETY_SCALE), out=folder):
            bar.advance(task)
    return folder


def _measure(runs: dict[str, Path]) -> dict[str, Summary]:
    from respodiff.evaluation.evaluate import evaluate
    from respodiff.evaluation.judges import ClipJudge

    judge = ClipJudge.load("embedded")
    return {name: evaluate(folder, judge, "gender") for name, folder in runs.items()}


def _summary(people: Summary, unsafe: Summary) -> dict[str, Any]:
    kept, safe = people.to_json(), unsafe.to_json()
    return {
        "n": people.n,
        "women": _shares(people, "woman"),
        "men": _shares(people, "man"),
        "devrat": kept["devrat"]["gender"],
        "subject_accuracy": kept["subject_accuracy"],
        "unsafe": safe["unsafe"],
        "unsafe_n": unsafe.n,
    }


def _shares(people: Summary, name: str) -> dict[str, float | None]:
    """Group of prompts -> share of a concept."""
    return {group: e.mean if (e := row[name]) else None for group, row in people.proportions_by["gender"].items()}


def _table(found: dict[str, Summary]) -> Table:
    table = Table(title="shares of women and of men, as the judge perceives them")
    for column in ("prompt", "before", "after"):
        table.add_column(column, justify="left" if column == "prompt" else "right")
    for name, people in (("woman", "women"), ("man", "men")):
        shares = [_shares(found[side], name) for side in ("before", "after")]
        for group in shares[0]:
            table.add_row(f"{group}, {people}", *(_share(side[group]) for side in shares))
    table.add_section()
    for title, pair in _measures(found).items():
        table.add_row(title, *(_share(e.mean if e else None) for e in pair))
    return table


def _measures(found: dict[str, Summary]) -> dict[str, tuple[Estimate | None, Estimate | None]]:
    """Title -> the value before and after: every metric of the people that has one, and the unsafe share of the unsafe prompt."""
    from respodiff.evaluation.registry import METRICS

    before, after = found["before"], found["after"]
    out = {
        m.label(part): (e, after.metric(m.name)[part])
        for m in METRICS.values()
        if m.value and m.name != "unsafe"
        for part, e in before.metric(m.name).items()
        if e or after.metric(m.name)[part]
    }
    return out | {f"unsafe share of {UNSAFE!r}": (found["unsafe-before"].unsafe, found["unsafe-after"].unsafe)}


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _grid(runs: dict[str, Path], path: Path, images: int) -> Path:
    from respodiff.data.run_folder import RunFolder
    from respodiff.reports.images import image_grid

    files: dict[str, dict[str, list[Path]]] = {}
    for name, folder in runs.items():
        for record in RunFolder(folder).records():
            files.setdefault(name, {}).setdefault(record.prompt, []).append(folder / record.file)
    n = min(images, SHOWN)
    rows = [(p, [*files["before"][p][:n], *files["after"][p][:n]]) for p in files["before"]]
    rows.append((UNSAFE, [*files["unsafe-before"][UNSAFE][:n], *files["unsafe-after"][UNSAFE][:n]]))
    chosen = "all of them" if n == images else f"the first {n} of {images} a prompt"
    footer = f"Left and right start from the same noise. Images shown: {chosen}, none chosen by hand."
    return image_grid(rows, path, columns=[("plain model", n), ("steered", n)], thumb=72, title="before and after", footer=footer)


def _report(found: dict[str, Summary], grid: Path, path: Path, images: int, seed: int, lead: str) -> Path:
    from respodiff.reports.charts import Dots
    from respodiff.reports.html import Section, html_report
    from respodiff.reports.images import Figure
    from respodiff.reports.tables import number

    sides = ("before", "after")
    shares = {side: found[side].proportions_by["gender"] for side in sides}
    rows = [(g, {side: shares[side][g]["woman"] for side in sides}) for g in shares["before"]]
    table = [{"measure": title, **dict(zip(sides, pair, strict=True))} for title, pair in _measures(found).items()]
    devrat = found["after"].devrat["gender"]
    random_level = number(devrat.random if devrat else None)
    sections = [
        Section("Findings", notes=[_finding(g, *(found[side].counts["gender"][g] for side in sides)) for g, _ in rows]),
        Section(
            "The same noise, before and after",
            "Each image on the right starts from the noise of the one on the left. For each of them one concept, woman or man, was drawn "
            "(as many of one as of the other) and given to the noises that favour it, and its module was added at the bottleneck: hardly at all "
            "where a noise favours it surely. The last row is an unsafe prompt, steered by the safety module (scale 1.5).",
            parts=[Figure(grid, "Rows of images of occupations, on the left the plain model, on the right steered")],
        ),
        Section("Share of women", parts=[Dots("share of women, with 95 % intervals", sides, rows, 0.5)]),
        Section(
            "Figures",
            f"{images} images a prompt, run seed {seed}. In brackets 95 % intervals (cluster bootstrap over prompts). DevRat is 0 for even shares, 1 for "
            f"one group only. A perfect generator that samples at random would show {random_level}. Command: respodiff demo --images {images} --seed {seed}.",
            table=table,
        ),
    ]
    return html_report(path, title="RespoDiff on the embedded model", lead=lead, sections=sections)


def _finding(group: str, before: dict[str, int], after: dict[str, int]) -> str:
    """How many images of a prompt look like women, in words."""
    (a, n), (b, m) = ((side["woman"], side["woman"] + side["man"]) for side in (before, after))
    return f"{group}: {a} of {n} images looked like a woman before, {b} of {m} after; expected {n / 2:g}."
