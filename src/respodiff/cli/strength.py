"""``respodiff scale``: the least scale at which modules reach a concept accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from respodiff.cli.console import (
    Concepts,
    Device,
    Dtype,
    Json,
    Model,
    Seed,
    app,
    check_device,
    finish,
    no_loading_bars,
    open_model,
    shown,
    words,
)
from respodiff.cli.generate import Guidance, PromptFile, Prompts, Steps, SuiteName, by_model, read_prompts

if TYPE_CHECKING:
    from respodiff.experiments.strength import Choice

SUITE_HELP = "the 12 occupations that settings are tuned on (embedded model)"


@app.command(epilog="Example: respodiff scale woman.safetensors man.safetensors --reach 0.95")
def scale(
    module: Annotated[list[Path], typer.Argument(help="Module files: the alternatives of one attribute.", show_default=False)],
    reach: Annotated[float, typer.Option("--reach", help="Share of images in which the judge is to see what was asked for.")] = 0.95,
    model: Model = "embedded",
    prompt: Prompts = None,
    prompts: PromptFile = None,
    suite: SuiteName = "",
    images: Annotated[int, typer.Option("--images", help="Images per prompt and scale.", min=1)] = 4,
    most: Annotated[float, typer.Option("--most", help="Largest scale to try.")] = 2.0,
    rounds: Annotated[int, typer.Option("--rounds", help="Scales to draw beside 0.", min=1)] = 6,
    judge: Annotated[str, typer.Option("--judge", help="embedded, or clip:DIR-OR-ID.", metavar="NAME")] = "embedded",
    concepts: Concepts = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Keep the images in this folder; goes on with what it holds.", metavar="DIR")
    ] = None,
    steps: Steps = None,
    guidance: Guidance = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Find the least scale that reaches a concept accuracy: a few images of tuning prompts, the same noise at every scale.

    Without prompts: the occupations that settings are tuned on. Report figures on others.
    """
    from respodiff.concepts.concept import load_concepts
    from respodiff.evaluation import judges
    from respodiff.experiments.tuning import tune
    from respodiff.generation.config import GenerateConfig
    from respodiff.methods.base import load

    check_device(device)
    no_loading_bars()
    modules = [load(path) for path in module]
    asked = read_prompts(prompt or (), prompts, suite)[0] if prompt or prompts or suite else _tuned(model)
    labeller = judges.load(judge, device)
    if not hasattr(labeller, "embed_texts"):
        raise ValueError(f"--judge is {judge!r}; allowed: judges that choose between texts (embedded, clip:DIR-OR-ID)")
    config = GenerateConfig(images=images, seed=seed, **by_model(model == "embedded", steps, guidance))
    found = tune(
        open_model(model, device, dtype),
        modules,
        asked,
        labeller,
        config,
        library=load_concepts(concepts) if concepts else None,
        vocabulary=judges.Vocabulary.embedded() if labeller.name in judges.EMBEDDED else None,
        out=out,
        told=lambda s: words.print(f"drawing at scale {s:g}", markup=False),
        reach=reach,
        most=most,
        rounds=rounds,
    )
    finish(result_of(found, reach), "\n".join(lines_of(found, reach)), as_json)


def _tuned(model: str) -> list[Any]:
    from respodiff.data.prompt_sets import suite
    from respodiff.experiments.plan import TUNED_ON

    if model != "embedded":
        raise ValueError(f"no prompts; give --prompt TEXT, --prompts FILE or --suite NAME ({SUITE_HELP} without them)")
    return [p for p in suite("occupations") if p.group in TUNED_ON]


def result_of(found: Choice, reach: float) -> dict[str, Any]:
    """The choice as JSON."""
    from respodiff.evaluation.statistics import show

    rows = [
        {"scale": p.scale, "concept_accuracy": show(p.concept_accuracy), "fit": fit, "kept": p.kept, "drift": p.drift}
        for p, fit in zip(found.points, found.fit, strict=True)
    ]
    return {
        "scale": found.scale,
        "low": found.low,
        "high": found.high,
        "reach": reach,
        "concept_accuracy": show(found.concept_accuracy),
        "points": rows,
    }


def lines_of(found: Choice, reach: float) -> list[str]:
    """The table, and the scale that was chosen."""
    result = result_of(found, reach)
    head = ("scale", "concept_accuracy", "fit", "kept", "drift")
    rows = [
        head,
        *(
            (f"{r['scale']:g}", shown(r["concept_accuracy"]), _fit(r["fit"]), _known(r["kept"]), _known(r["drift"]))
            for r in result["points"]
        ),
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    high = f"{found.high:.2f}" if found.high is not None else f"above {found.points[-1].scale:g}"
    lines.append(
        f"scale {found.scale:g} reaches concept accuracy {reach:g}: {shown(result['concept_accuracy'])} (n = {found.concept_accuracy.n}); "
        f"reached between scales {found.low:.2f} and {high} (95 %)"
    )
    if None in found.fit:
        lines.append("concept accuracy falls again at larger scales, where images break: the fit stops before")
    return lines


def _fit(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _known(e: Mapping[str, Any] | None) -> str:
    return "-" if e is None else shown(dict(e))
