"""``respodiff inspect``, ``doctor``, ``sites``, ``convert`` and ``fuse``: verbs about models and module files."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Exit, Option

from respodiff._device import AUTO
from respodiff.cli.console import app, finish, open_model, table, words
from respodiff.cli.options import Concepts, Device, Dtype, Force, Json, Seed, library, number, takes_model
from respodiff.concepts.concept import Concept, concept, own_concept
from respodiff.pipelines.source import ModelSource
from respodiff.training.config import MOST

HEADER = ("method", "concept", "target", "neutral", "negative", "kind", "attribute", "base_model", "base_precision", "site", "form")


@app.command(epilog="Example: respodiff inspect woman.safetensors")
@takes_model(source="")
def inspect(
    module: Annotated[Path, Argument(help="A module file, or a hub id OWNER/NAME:FILE.", show_default=False)],
    model: ModelSource,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say what is in a module file: prompts, base model, form, shape, window of timesteps, norms. With --model, check it against a model."""
    result = contents(module)
    if model.source:
        from respodiff.methods.registry import load

        result["warnings"] = load(module).check(open_model(model))
    lines = [f"{k:<15}{v}" for k, v in result.items() if k not in ("verdict", "train", "warnings")]
    lines += [f"{key:<15}" + ", ".join(f"{k} {v}" for k, v in result[key].items()) for key in ("verdict", "train")]
    finish(result, "\n".join([*lines, *(f"{'warning':<15}{text}" for text in result["warnings"])]), as_json)


def contents(path: Path) -> dict[str, Any]:
    """What an adapter file holds, read with numpy alone. Shape and norms are None where the adapter is no constant."""
    import numpy as np

    from respodiff.steering.serialization import read_file
    from respodiff.steering.shipped import one_file

    h, tensors, scale, digest = read_file(one_file(path), "np")
    result: dict[str, Any] = {k: getattr(h, k) for k in HEADER} | {"form": h.form or None, "shape": None, "timesteps": list(h.timesteps)}
    result |= {"scale": scale, "norm_ram": None, "norm_sam": None, "relative_norm": None}
    constants = {}
    for site in h.site.split(","):
        ram, sam = (tensors.get(f"{part}.{site}.r", tensors.get(f"{part}.r")) for part in ("ram", "sam"))
        if ram is not None and sam is not None:
            norms = [float(np.linalg.norm(scale * v)) for v in (ram, sam, ram + sam)]
            constants[site] = {"shape": list(ram.shape), "norm_ram": norms[0], "norm_sam": norms[1]}
            constants[site] |= {"relative_norm": norms[2] / h.h_norm if h.h_norm else None}
    result |= {"sites": constants} if len(constants) > 1 else next(iter(constants.values()), {})
    result |= {"verdict": dict(h.verdict), "tensors": len(tensors), "numbers": sum(int(t.size) for t in tensors.values()), "digest": digest}
    return result | {"library": h.library, "train": dict(h.train), "warnings": []}


@app.command(epilog="Example: respodiff doctor --model my-checkpoint")
@takes_model()
def doctor(
    model: ModelSource,
    dry_run: Annotated[bool, Option("--dry-run", help="Read configurations alone: site, shapes, and bytes of every part.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say whether a model can be steered and where, and test it: an image changes, only its row is shifted, the model is restored."""
    from respodiff.pipelines.registry import Unsupported
    from respodiff.steering.self_test import examine

    try:
        if dry_run:
            from respodiff.pipelines.dry_run import dry_run as estimate

            if given := [name for name in ("quantize", "lora", "offload") if getattr(model, name) not in ("", "none", ())]:
                raise ValueError(
                    f"--{given[0]} is of no use beside --dry-run, which counts weights as they are stored; leave one of them out"
                )
            more = {key: value for key in ("revision", "variant") if (value := getattr(model, key))}
            result = estimate(model.source, model.dtype, model.config, **more)
            lines = [f"{result['pipeline']} is supported", f"site {result['site']}, a module is {' x '.join(map(str, result['shape']))}"]
            sizes = [*((p["name"], p["cls"], p["bytes"]) for p in result["parts"]), ("together", "", result["bytes"])]
            lines += [f"{name:<16}{cls:<36}{size / 2**30:8.2f} GiB in {result['dtype']}" for name, cls, size in sizes]
            return finish(result, "\n".join(lines), as_json)
        result = examine(open_model(model))
    except Unsupported as error:
        result = {"supported": False, "pipeline": str(error).split()[1], "site": "", "shape": [], "checks": {}, "reason": str(error)}
        finish(result, str(error), as_json)
        raise Exit(1) from error
    checks = result["checks"]
    lines = [f"{result['pipeline']} is supported", f"site {result['site']}, a module is {' x '.join(map(str, result['shape']))}"]
    lines += [f"{'ok    ' if c['passed'] else 'FAILED'} {name}{': ' * bool(c['detail'])}{c['detail']}" for name, c in checks.items()]
    finish(result, "\n".join(lines), as_json)
    if not all(check["passed"] for check in checks.values()):
        raise Exit(1)


@app.command(epilog="Example: respodiff sites --model embedded --attribute gender")
@takes_model(trains=True)
def sites(
    model: ModelSource,
    attribute: Annotated[str, Option(help="Attribute whose alternatives are told apart.", metavar="NAME")] = "gender",
    concepts: Concepts = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Rank the blocks of a model that it can be steered at (train --site NAME), without an image or a judge.

    readable: share of latents whose alternative is told from the block's output. along, against: how far a shift there moves predictions
    towards the alternative, and across. The rank is by the cosine that both make.
    """
    from respodiff.concepts.concept import attribute as find_attribute
    from respodiff.pipelines.registry import site_of
    from respodiff.training.sites import rank_sites

    chosen = find_attribute(attribute, library(concepts))
    pipe = open_model(model)
    found, default = rank_sites(pipe, chosen, seed), site_of(pipe)
    keys = ("readable", "along", "against")
    ranking = [{"site": s.site, **{key: asdict(getattr(s, key)) for key in keys}, "cosine": s.cosine} for s in found.scores]
    result = {"ranking": ranking, "default": str(default), "chance": found.chance, "unet_forwards": found.unet_forwards}
    cells = [[f"{x.mean:.2f} [{x.low:.2f}, {x.high:.2f}]" for x in (getattr(s, key) for key in keys)] for s in found.scores]
    rows = [[s.site, *own, f"{s.cosine:.2f}"] for s, own in zip(found.scores, cells, strict=True)]
    text = f"without --site train takes {default}; readable is {found.chance:.2f} by chance, intervals are of 95 %; {found.unet_forwards} UNet forwards"
    finish(result, text, as_json, table("", ["site", *keys, "cosine"], rows))


def _known(name: str) -> Concept:
    """A known concept by its name, or by the one that SDisc has for it. The module gets ours, which attributes and judges know."""
    from respodiff.steering.convert import SDISC_NAMES

    with suppress(ValueError):
        return concept(SDISC_NAMES.get(name, name))
    raise ValueError(f"concept {name!r} has no known prompts; give --target TEXT (fairness), or --negative TEXT alone (safety)")


@app.command(epilog="Example: respodiff convert unet.pth --concept woman --base CompVis/stable-diffusion-v1-4 --out woman.safetensors")
def convert(
    source: Annotated[
        Path, Argument(help="An official .pth or .pt file, or a LoRA (.safetensors); with --to a file of this program.", show_default=False)
    ],
    out: Annotated[Path, Option(help="File to write.", metavar="FILE")],
    force: Force = False,
    concept_name: Annotated[
        str, Option("--concept", help="Concept to take out: woman, man, ..., also by SDisc's name, such as female.", metavar="NAME")
    ] = "",
    base: Annotated[
        str,
        Option(help="Base model that the file was trained on. (default: that of official files) A LoRA needs one.", metavar="MODEL"),
    ] = "",
    to: Annotated[str, Option(help="module, pt (for RespoDiff's official code), or peft (a slider as LoRA).", metavar="KIND")] = "module",
    q16: Annotated[bool, Option("--q16", help="FILE is prompts.p of the judge Q16; writes safetensors.")] = False,
    column: Annotated[int | None, number(0, MOST, help="Column of the concept, where its name does not tell.")] = None,
    target: Annotated[str, Option(help="Target prompt of a concept of your own.", metavar="TEXT")] = "",
    neutral: Annotated[str, Option(help="Its neutral prompt.", metavar="TEXT")] = "",
    negative: Annotated[str, Option(help="Its negative prompt; alone it makes a safety concept.", metavar="TEXT")] = "",
    device: Device = AUTO,
    dtype: Dtype = AUTO,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Turn a checkpoint of the official RespoDiff or SDisc code into a module file, or (--to pt) a module file back.

    A LoRA of another program becomes a slider, and (--to peft) a slider the LoRA file of diffusers and peft. --q16 makes safetensors of prompts.p, the vectors of the judge Q16. Pickles are read as tensors alone; nothing in them is executed.
    """
    from respodiff.methods.lora_files import from_lora, is_lora, to_peft
    from respodiff.methods.registry import load
    from respodiff.pipelines.dry_run import skeleton
    from respodiff.steering.adapter import Adapter
    from respodiff.steering.convert import OFFICIAL_BASE, convert_q16, to_official
    from respodiff.steering.convert import convert as run
    from respodiff.steering.module import ConceptModule

    if q16:
        shapes = convert_q16(source, out, force=force)
        text = f"{out}: {len(shapes)} tensor{'s' * (len(shapes) != 1)}"
        finish({"out": str(out), "shapes": {key: list(shape) for key, shape in shapes.items()}}, text, as_json)
        return
    if to not in ("module", "pt", "peft"):
        raise ValueError(f"--to is {to!r}; allowed: module, pt, peft")
    made: Adapter
    if to == "pt":
        made = module = ConceptModule.load(source)
        to_official(module, out, column, force=force)
    elif to == "peft":
        made = load(source)
        to_peft(made, out, force=force)
    else:
        if not concept_name:
            raise ValueError("no concept given; use --concept NAME (woman, man, ..., or a name of your own with --target or --negative)")
        if (lora := is_lora(source)) and not base:
            raise ValueError("the file does not say what it was trained on; give --base MODEL")
        chosen = own_concept(concept_name, target, neutral, negative) if target or negative else _known(concept_name)
        made = from_lora(skeleton(base), source, chosen) if lora else run(source, chosen, base_model=base or OFFICIAL_BASE, column=column)
        if not base:
            words.print(f"note: --base is not given, and official files are of {OFFICIAL_BASE}: the module says so", soft_wrap=True)
        made.save(out, force=force)
    result: dict[str, Any] = {"module": str(out), "digest": made.digest, "concept": made.name}
    if isinstance(made, ConceptModule):
        result, size = result | {"shape": list(made.shape)}, " x ".join(map(str, made.shape))
    else:
        result, size = result | {"layers": len(made.tensors) // 2}, f"{len(made.tensors) // 2} layers"
    finish(result, f"{out}: {made.name!r}, {size}, digest {made.digest}", as_json)


@app.command(epilog="Example: respodiff fuse --model embedded --module woman.safetensors --channel-mean --out fused-unet")
@takes_model()
def fuse(
    model: ModelSource,
    module: Annotated[list[Path], Option(help="Module file, or hub id OWNER/NAME:FILE; repeat to add several up.", metavar="FILE")],
    out: Annotated[Path, Option(help="Folder of the UNet, or .safetensors file with --checkpoint.", metavar="PATH")],
    force: Force = False,
    checkpoint: Annotated[Path | None, Option(help="Single .safetensors file to fuse into, not --model.", metavar="FILE")] = None,
    scale: Annotated[float, number(-10, 10, help="Factor on the modules.", whole=False)] = 1.0,
    channel_mean: Annotated[bool, Option("--channel-mean", help="Take the mean over positions of a module that has some.")] = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write an ordinary UNet with modules fused into it, for programs that cannot steer, such as A1111. ComfyUI steers with its own nodes.

    It shifts the unconditional rows too, which steering does not. The JSON key difference says by how much the result departs from
    steering: norm of (fused - steered) over norm of (steered - unsteered), measured on a small image; null with --checkpoint.
    """
    from respodiff.steering.fuse import channel_delta, difference, energy_lost, fuse_checkpoint, save_unet
    from respodiff.steering.module import ConceptModule

    modules = [ConceptModule.load(path) for path in module]
    lost = {m.name: round(energy_lost(m), 4) for m in modules}
    chosen = [m.channels() for m in modules] if channel_mean else modules
    channel_delta(chosen, scale)  # a module that cannot be fused is refused before the model is loaded
    found = None
    if checkpoint:
        fuse_checkpoint(checkpoint, chosen, out, scale=scale, force=force)
    else:
        pipe = open_model(model)
        save_unet(pipe, chosen, out, scale=scale, force=force)
        found = round(difference(pipe, modules, chosen, scale=scale), 4)
    result: dict[str, Any] = {"model": str(out), "difference": found, "modules": [m.digest for m in chosen], "scale": scale}
    loss = "".join(f"; {name} lost {share:.0%} of its energy" for name, share in lost.items() if share > 1e-6)
    text = f"{out}: {', '.join(m.name for m in chosen)} at scale {scale:g}{loss}"
    finish(result | {"energy_lost": lost}, text + (f"; differs from steering by {found:.0%}" if found is not None else ""), as_json)
