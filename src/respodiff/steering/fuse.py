"""Fuses modules into a checkpoint, for programs that cannot steer (A1111, an ordinary diffusers pipeline). ComfyUI can: docs/comfyui.md.

A module of one number a channel equals a change of the last bias before h: that of the second convolution of the mid block's last
resnet. A bias cannot distinguish rows. It shifts the unconditional rows as well, so that in e() + w (e(y) - e()) guidance does not
multiply the module's part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from respodiff._version import __version__
from respodiff.data.places import check_out, new_file
from respodiff.pipelines.quantization import quantised
from respodiff.pipelines.registry import backbone
from respodiff.steering.module import ConceptModule, require_mid_block
from respodiff.steering.self_test import sample_latents
from respodiff.steering.serialization import TIMESTEPS, check_scale
from respodiff.steering.steer import steer

LDM_BIAS = "model.diffusion_model.middle_block.2.out_layers.3.bias"
"""The same bias in single-file checkpoints of SD 1.x, 2.x and XL."""
FUSED_AT = "fusing is for the mid block of a UNet: steer it instead"
FUSED, MARK = "respodiff.fused", "fused.json"
"""What says what was fused: a key in the metadata of a single file, a file in a folder."""


def energy_lost(module: ConceptModule) -> float:
    """Part of |r + s|^2 (0 to 1) that is lost by taking the mean over positions. ValueError for another site than the mid block."""
    require_mid_block(module, FUSED_AT)
    whole = module.delta.square().sum().item()
    mean = module.channels().delta.square().sum().item() * module.shape[1] * module.shape[2]
    return 1 - mean / whole if whole else 0.0


def channel_delta(modules: Sequence[ConceptModule], scale: float = 1.0) -> Tensor:
    """Sum of the modules' r + s (C,), times ``scale``, finite. ValueError for one that has a value per position, a window of timesteps, or
    another site than the mid block.
    """
    check_scale(scale)
    if not modules:
        raise ValueError("no module to fuse; give at least one")
    for module in modules:
        require_mid_block(module, FUSED_AT)
        if module.header.timesteps != TIMESTEPS:
            raise ValueError(
                f"module {module.name!r} acts at timesteps {module.header.timesteps} alone, and a bias at all: steer it instead"
            )
        if module.shape[1:] != (1, 1):
            raise ValueError(
                f"module {module.name!r} has shape {module.shape}; only one number a channel can be fused. Its mean over positions, "
                f"module.channels() (--channel-mean), loses {energy_lost(module):.0%} of its energy; or train with --set form=channel"
            )
    return torch.stack([m.delta.flatten() for m in modules]).sum(0) * scale


def _sum(bias: Tensor, delta: Tensor) -> Tensor:
    """bias + delta in the dtype of bias. ValueError if that is not finite."""
    new = (bias.float() + delta.to(bias.device)).to(bias.dtype)
    if not torch.isfinite(new).all():
        raise ValueError(f"the sum of bias and modules is beyond the range of {bias.dtype}; use a smaller scale")
    return new


@contextmanager
def fused(pipe: Any, modules: Sequence[ConceptModule], *, scale: float = 1.0) -> Iterator[None]:
    """While active, the modules are part of the UNet's weights; afterwards these are bit-identical to before.

    Unlike `steer` it shifts every row of a call, the unconditional one too.
    """
    delta = channel_delta(modules, scale)
    for module in modules:
        module.check(pipe)
    resnet = backbone(pipe).mid_block.resnets[-1]
    bias = resnet.conv2.bias if isinstance(resnet.conv2, nn.Conv2d) else None
    if bias is None:
        raise ValueError(f"the mid block ends in a {type(resnet.conv2).__name__} without a bias of its own; unload LoRAs first")
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.copy_(_sum(bias, delta * float(resnet.output_scale_factor)))
    try:
        yield
    finally:
        with torch.no_grad():
            bias.copy_(kept)


def save_unet(pipe: Any, modules: Sequence[ConceptModule], out: str | Path, *, scale: float = 1.0, force: bool = False) -> Path:
    """Writes a UNet with the modules fused, which `UNet2DConditionModel.from_pretrained(out)` reads, and ``fused.json``, which names them.

    ValueError for a folder with other files, unless ``force``, and for a quantised UNet.
    """
    out = Path(out)
    if quantised(backbone(pipe)):
        raise ValueError("the UNet is quantised, which other programs do not read; load it without --quantize (quantize='')")
    check_out(out, lambda folder: (folder / MARK).is_file(), force=force)
    with fused(pipe, modules, scale=scale):
        out.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=out) as place:
            backbone(pipe).save_pretrained(place, safe_serialization=True)
            (Path(place) / MARK).write_text(_about(modules, scale) + "\n", encoding="utf-8")
            for file in sorted(Path(place).iterdir(), key=lambda file: file.name != MARK):  # first what tells that the folder is ours
                file.replace(out / file.name)
    return out


def _about(modules: Sequence[ConceptModule], scale: float) -> str:
    return json.dumps({"library": __version__, "modules": [m.digest for m in modules], "scale": scale})


def difference(pipe: Any, modules: Sequence[ConceptModule], chosen: Sequence[ConceptModule], *, scale: float = 1.0) -> float:
    """How far fusing ``chosen`` departs from steering with ``modules``: |fused - steered| / |steered - unsteered|, latents of an image."""
    unsteered = sample_latents(pipe)
    with steer(pipe, [[m.scale(scale) for m in modules]]):
        steered = sample_latents(pipe)
    with fused(pipe, chosen, scale=scale):
        other = sample_latents(pipe)
    return float((other - steered).norm() / (steered - unsteered).norm().clamp(min=1e-12))


def fuse_checkpoint(
    checkpoint: str | Path, modules: Sequence[ConceptModule], out: str | Path, *, scale: float = 1.0, force: bool = False
) -> Path:
    """Write a copy of a single-file ``.safetensors`` checkpoint (as A1111 and ComfyUI load them) with the modules fused.

    ValueError for a file that is there and was not made so, unless ``force``.
    """
    delta, path = channel_delta(modules, scale), Path(checkpoint)
    check_out(out, _is_fused, force=force)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {str(path)!r} does not exist; give a .safetensors file of Stable Diffusion 1.x, 2.x or XL")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"checkpoint {str(path)!r} is truncated or not a safetensors file ({error})") from error
    found = [k for k in (LDM_BIAS, LDM_BIAS.removeprefix("model.diffusion_model."), "mid_block.resnets.1.conv2.bias") if k in tensors]
    if not found:
        raise ValueError(f"checkpoint {str(path)!r} has no {LDM_BIAS!r}; it is not a checkpoint of Stable Diffusion 1.x, 2.x or XL")
    bias = tensors[found[0]]
    if bias.shape != delta.shape:
        raise ValueError(f"the mid block of {str(path)!r} has {len(bias)} channels, the module {len(delta)}; train one for this model")
    tensors[found[0]] = _sum(bias, delta)
    with new_file(out) as temporary:
        save_file(tensors, temporary, metadata={**(metadata or {}), FUSED: _about(modules, scale)})
    return Path(out)


def _is_fused(path: Path) -> bool:
    try:
        with safe_open(path, "np") as file:
            return FUSED in (file.metadata() or {})
    except SafetensorError:
        return False
