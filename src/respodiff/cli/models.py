"""``respodiff doctor``, ``convert`` and ``fuse``: verbs about models and files of other programs."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from respodiff.cli.console import Device, Dtype, Json, Model, Seed, app, finish, open_model
from respodiff.cli.train import own_concept
from respodiff.concepts.concept import Concept, concept


@app.command(epilog="Example: respodiff doctor --model my-checkpoint")
def doctor(model: Model = "embedded", device: Device = "cpu", dtype: Dtype = "float32", seed: Seed = 0, as_json: Json = False) -> None:
    """Say whether a model can be steered and where, and try it: did anything change, only what should, is all as before?"""
    from respodiff.pipelines.registry import Unsupported
    from respodiff.steering.self_test import examine

    try:
        result = examine(open_model(model, device, dtype))
    except Unsupported as error:
        name = str(error).split()[1]
        finish({"supported": False, "pipeline": name, "site": "", "shape": [], "checks": {}, "reason": str(error)}, str(error), as_json)
        raise typer.Exit(1) from error
    failed = [name for name, check in result["checks"].items() if not check["passed"]]
    lines = [f"{result['pipeline']} is supported", f"site {result['site']}, a module is {' x '.join(map(str, result['shape']))}"]
    lines += [
        f"{'ok    ' if c['passed'] else 'FAILED'} {name}{': ' * bool(c['detail'])}{c['detail']}" for name, c in result["checks"].items()
    ]
    finish(result, "\n".join(lines), as_json)
    if failed:
        raise typer.Exit(1)


def _concept(name: str, target: str, neutral: str, negative: str) -> Concept:
    """A known concept, or one from prompts; SDisc's own names stand for what they were trained on."""
    from respodiff.steering.convert import ALIASES

    if not (target or negative):
        for known in (name, {alias: key for key, alias in ALIASES.items()}.get(name, name)):
            with suppress(ValueError):
                return replace(concept(known), name=name)
        raise ValueError(f"concept {name!r} has no known prompts; give --target TEXT (fairness), or --negative TEXT alone (safety)")
    return own_concept(name, target, neutral, negative, (), ())


@app.command(epilog="Example: respodiff convert unet.pth --concept woman --base CompVis/stable-diffusion-v1-4 --out woman.safetensors")
def convert(
    source: Annotated[Path, typer.Argument(help="Released .pth or .pt file; with --to pt a module file.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="File to write.", metavar="FILE")],
    concept_name: Annotated[str, typer.Option("--concept", help="Concept to take out: woman, man, female, ...", metavar="NAME")] = "",
    base: Annotated[str, typer.Option("--base", help="Base model that the file was trained on; it does not say.", metavar="MODEL")] = "",
    to: Annotated[str, typer.Option("--to", help="module, pt (for the released code), or safetensors.", metavar="KIND")] = "module",
    q16: Annotated[bool, typer.Option("--q16", help="FILE is prompts.p of the judge Q16; writes safetensors.")] = False,
    column: Annotated[int | None, typer.Option("--column", help="Column of the concept, where its name does not tell.", min=0)] = None,
    ram_key: Annotated[str, typer.Option("--ram-key", help="Name of RAM's weights, if not the released one.", metavar="NAME")] = "",
    sam_key: Annotated[str, typer.Option("--sam-key", help="Name of SAM's weights.", metavar="NAME")] = "",
    channels: Annotated[int, typer.Option("--channels", help="Channels of the bottleneck.", min=1)] = 1280,
    size: Annotated[str, typer.Option("--size", help="Height x width of the bottleneck. (default a square)", metavar="HxW")] = "",
    target: Annotated[str, typer.Option("--target", help="Target prompt of a concept of your own.", metavar="TEXT")] = "",
    neutral: Annotated[str, typer.Option("--neutral", help="Its neutral prompt.", metavar="TEXT")] = "",
    negative: Annotated[str, typer.Option("--negative", help="Its negative prompt; alone it makes a safety concept.", metavar="TEXT")] = "",
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of the released RespoDiff or SDisc code into a module file, or (--to pt) a module file back.

    Weights of judges become safetensors: --q16 for Q16's prompts.p, --to safetensors for any other file of tensors.
    Pickles are read as tensors alone; nothing in them is executed.
    """
    if q16 or to == "safetensors":
        _to_safetensors(source, out, q16, as_json)
        return
    from respodiff.steering.convert import convert as run
    from respodiff.steering.convert import to_released
    from respodiff.steering.module import ConceptModule

    if to not in ("module", "pt"):
        raise ValueError(f"--to is {to!r}; allowed: module, pt, safetensors")
    if not source.is_file():
        raise ValueError(f"checkpoint {str(source)!r} is no file; give the path of a checkpoint, or of a module file with --to pt")
    if to == "pt":
        module = ConceptModule.load(source)
        to_released(module, out, column)
    else:
        if not concept_name:
            raise ValueError("no concept given; use --concept NAME (woman, man, ..., or a name of your own with --target or --negative)")
        if not base:
            raise ValueError(
                "the file does not say what it was trained on; give --base MODEL (released files: CompVis/stable-diffusion-v1-4)"
            )
        chosen = _concept(concept_name, target, neutral, negative)
        module = run(source, chosen, base_model=base, column=column, ram_key=ram_key, sam_key=sam_key, channels=channels, size=_size(size))
        module.save(out)
    result = {"module": str(out), "digest": module.digest, "concept": module.name, "shape": list(module.shape)}
    finish(result, f"{out}: {module.name!r}, {' x '.join(map(str, module.shape))}, digest {module.digest}", as_json)


def _to_safetensors(source: Path, out: Path, q16: bool, as_json: bool) -> None:
    """Tensors of a pickle as a safetensors file, for judges."""
    if q16:
        from respodiff.steering.convert_q16 import convert_q16

        shapes = {"prompts": list(convert_q16(source, out))}
    else:
        from respodiff.steering.convert import write_safetensors

        shapes = {name: list(shape) for name, shape in write_safetensors(source, out).items()}
    finish({"out": str(out), "shapes": shapes}, f"{out}: {len(shapes)} tensor{'s' * (len(shapes) != 1)}", as_json)


def _size(text: str) -> tuple[int, ...]:
    try:
        parts = tuple(int(p) for p in text.lower().split("x")) if text else ()
    except ValueError as error:
        raise ValueError(f"--size is {text!r}; write it as 8x8") from error
    if len(parts) not in (0, 2):
        raise ValueError(f"--size is {text!r}; write it as 8x8")
    return parts


@app.command(epilog="Example: respodiff fuse --model my-checkpoint --module woman.safetensors --out fused-unet")
def fuse(
    module: Annotated[list[Path], typer.Option("--module", help="Module file; repeat to add several up.", metavar="FILE")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the UNet, or .safetensors file with --checkpoint.", metavar="PATH")],
    model: Model = "embedded",
    checkpoint: Annotated[
        Path | None,
        typer.Option("--checkpoint", help="Single-file .safetensors checkpoint to fuse into, instead of --model.", metavar="FILE"),
    ] = None,
    scale: Annotated[float, typer.Option("--scale", help="Factor on the modules.")] = 1.0,
    channel_mean: Annotated[bool, typer.Option("--channel-mean", help="Take the mean over positions of a module that has some.")] = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write an ordinary UNet with modules fused into it, for programs that cannot steer (A1111, ComfyUI).

    It shifts the unconditional rows too, which steering does not: the effect differs.
    """
    from respodiff.steering.fuse import energy_lost, fuse_checkpoint, save_unet
    from respodiff.steering.module import ConceptModule

    modules = [ConceptModule.load(path) for path in module]
    lost = {m.name: round(energy_lost(m), 4) for m in modules}
    chosen = [m.channels() for m in modules] if channel_mean else modules
    if checkpoint:
        fuse_checkpoint(checkpoint, chosen, out, scale=scale)
    else:
        save_unet(open_model(model, device, dtype), chosen, out, scale=scale)
    result: dict[str, Any] = {"out": str(out), "modules": [m.digest for m in chosen], "scale": scale, "energy_lost": lost}
    loss = ", ".join(f"{name} lost {share:.0%} of its energy" for name, share in lost.items() if share > 1e-6)
    finish(result, f"{out}: {', '.join(m.name for m in chosen)} at scale {scale:g}{'; ' * bool(loss)}{loss}", as_json)
