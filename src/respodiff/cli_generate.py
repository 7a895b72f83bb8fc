"""``respodiff generate``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from respodiff.config import GenerateConfig
from respodiff.console import Device, Dtype, Json, Model, Seed, app, finish, open_model, progress


def parse_shares(text: str, modules: Sequence[Any]) -> dict[str, dict[str, float]] | None:
    """``woman=0.5,man=0.5`` grouped by attribute; ValueError for a name of no loaded module or a number that is none."""
    if not text:
        return None
    out: dict[str, dict[str, float]] = {}
    attributes = {m.name: m.header.attribute or "concept" for m in modules}
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name not in attributes:
            raise ValueError(f"--shares names {name!r}, which no --module has; loaded: {', '.join(attributes) or 'none'}")
        try:
            out.setdefault(attributes[name], {})[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--shares {pair!r}: {value!r} is not a number; write name=0.5,name=0.5") from error
    return out


def read_prompts(prompts: Sequence[str], file: Path | None, suite_name: str) -> list[Any]:
    """Prompts from --prompt, --prompts and --suite together."""
    found: list[Any] = list(prompts)
    if file:
        try:
            found += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompts: {str(file)!r} cannot be read ({error}); give a text file with one prompt a line") from error
    if suite_name:
        from respodiff.suites import suite

        found += suite(suite_name)
    if not found:
        raise ValueError("no prompts; give --prompt TEXT, --prompts FILE or --suite NAME")
    return found


@app.command(
    epilog='Example: respodiff generate --prompt "a doctor" --images 20 --module woman.safetensors --module man.safetensors --out runs/a'
)
def generate(
    out: Annotated[Path, typer.Option("--out", help="Run folder; pictures that it already holds are skipped.", metavar="DIR")],
    model: Model = "embedded",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="A prompt; repeat for several.", metavar="TEXT")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="Text file, one prompt a line.", metavar="FILE")] = None,
    suite: Annotated[str, typer.Option("--suite", help="occupations, occupations-unseen, unsafe, scenes, general.", metavar="NAME")] = "",
    images: Annotated[int, typer.Option("--images", help="Pictures per prompt.")] = GenerateConfig.images,
    module: Annotated[list[Path] | None, typer.Option("--module", help="Module file; repeat for the alternatives.", metavar="FILE")] = None,
    safety: Annotated[list[Path] | None, typer.Option("--safety", help="Safety module, added to every picture.", metavar="FILE")] = None,
    policy: Annotated[
        str, typer.Option("--policy", help="Concept of each picture: exact, random or none.", metavar="NAME")
    ] = GenerateConfig.policy,
    shares: Annotated[str, typer.Option("--shares", help="Target shares, such as woman=0.5,man=0.5.", metavar="PAIRS")] = "",
    strength: Annotated[float, typer.Option("--strength", help="Factor on the modules.")] = GenerateConfig.strength,
    safety_strength: Annotated[
        float, typer.Option("--safety-strength", help="Factor on the safety modules.")
    ] = GenerateConfig.safety_strength,
    method: Annotated[str, typer.Option("--method", help="respodiff, or plain (modules are ignored).", metavar="NAME")] = "respodiff",
    steps: Annotated[int | None, typer.Option("--steps", help="Sampler steps. (default 20 embedded, 50 others)")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Guidance scale. (default 3 embedded, 7.5 others)")] = None,
    batch: Annotated[int, typer.Option("--batch", help="Pictures at a time.")] = GenerateConfig.batch,
    resume: Annotated[bool, typer.Option("--resume", help="The default: go on with what the folder holds.")] = True,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Draw pictures: each gets a concept by the policy, safety modules on top, noise from (seed, prompt, repeat) alone."""
    from respodiff.module_file import load

    if method not in ("respodiff", "plain"):
        raise ValueError(f"--method is {method!r}; allowed: respodiff, plain")
    steered = method == "respodiff"
    modules = [load(path) for path in module or ()] if steered else []
    added = [load(path) for path in safety or ()] if steered else []
    asked = read_prompts(prompt or (), prompts, suite)
    embedded = model == "embedded"
    options = {
        "images": images,
        "policy": policy,
        "shares": parse_shares(shares, modules),
        "strength": strength,
        "safety_strength": safety_strength,
        "steps": steps if steps is not None else (GenerateConfig.steps if embedded else 50),
        "guidance": guidance if guidance is not None else (GenerateConfig.guidance if embedded else 7.5),
        "seed": seed,
        "batch": batch,
    }
    result = _draw(out, asked, modules, added, options, (model, device, dtype))
    text = f"{out}: {result['images']} pictures drawn, {result['skipped']} already there, {result['images_per_second']:.2f} a second"
    finish(result, text, as_json)


def _draw(
    out: Path, asked: Sequence[Any], modules: Sequence[Any], added: Sequence[Any], options: dict[str, Any], model: tuple[str, str, str]
) -> dict[str, Any]:
    from respodiff.adapters import backbone
    from respodiff.generation import counted
    from respodiff.generation import generate as run
    from respodiff.records import RunFolder

    config = GenerateConfig(**options)
    pipe = open_model(*model)
    total = len(asked) * config.images
    pictures = run(pipe, asked, modules, config, safety=added, out=out)
    held = len(RunFolder(out).done())
    began, drawn = time.perf_counter(), 0
    with counted(backbone(pipe)) as forwards, progress() as bar:
        task = bar.add_task("drawing", total=max(0, total - held))
        for _ in pictures:
            drawn += 1
            bar.advance(task)
    seconds = time.perf_counter() - began
    return {
        "run": str(out),
        "images": drawn,
        "skipped": total - drawn,
        "seconds": round(seconds, 2),
        "images_per_second": round(drawn / seconds, 3),
        "unet_forwards": forwards[0],
    }
