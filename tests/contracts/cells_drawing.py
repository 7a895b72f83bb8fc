"""Cells of the table about drawing: rows, loops by hand, mixes, schedulers, sizes, dtypes."""

from __future__ import annotations

import warnings
from typing import Any

import diffusers
import torch
from tests.contracts.cell import TINY, WOMAN, Maker, Skipped, apart, close, contract, module, seen
from tests.drawing import draw
from tests.raw_loop import raw_flow, raw_latents

from respodiff import TrainConfig, fit, steer
from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.module import ConceptModule


def rows(make: Maker) -> str:
    """Conditional rows and no others, zero bit-exact, effect, restored."""
    pipe = make()
    contract(pipe)
    m = module(pipe)
    with seen(pipe) as plain:
        draw(pipe, steps=1, images=2)
    with steer(pipe, m), seen(pipe) as steered:
        draw(pipe, steps=1, images=2)
    a, b = plain[0][0], steered[0][0]
    changed = [i for i in range(len(a)) if not torch.equal(a[i], b[i])]
    passes = spec_of(pipe).passes if len(a) > 2 else ("cond",)
    assert len(a) == 2 * len(passes)
    expected = [i for i in range(len(a)) if passes[i // 2] == "cond"]
    assert changed == expected, f"rows {changed} changed, {expected} are conditional"
    delta = m.delta if a.ndim == 4 else m.delta.flatten()
    assert torch.allclose(b[changed], a[changed] + delta, atol=1e-6)
    return f"rows {changed[0]}-{changed[-1]} of {len(a)}"


def raw(make: Maker) -> str:
    """A known shift gives the latents of a loop written by hand over the raw model."""
    pipe = make()
    m = module(pipe)
    unet = spec_of(pipe).model == "unet"
    if not unet and spec_of(pipe).images:
        raise Skipped("the hand-written loop is for UNets and for text to image")
    by_hand = raw_latents(pipe, m.delta) if unet else raw_flow(pipe, m.delta)
    with steer(pipe, m):
        return f"{close(draw(pipe), by_hand, 'loop by hand'):.0e}"


def unguided(make: Maker) -> str:
    """Guidance off: every row is conditional."""
    pipe = make()
    if spec_of(pipe).family == "flux" or type(pipe).__name__.startswith("LatentConsistency"):
        contract(pipe)
        return "never on"
    steered = contract(pipe, guidance_scale=1.0)
    if spec_of(pipe).model != "unet":
        return ""
    close(steered, raw_latents(pipe, module(pipe).delta, guidance=1.0), "loop by hand")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    steered = contract(pipe, guidance_scale=0.0, steps=1)
    close(steered, raw_latents(pipe, module(pipe).delta, guidance=0.0, steps=1), "one step, as Turbo")
    return "also as Turbo: one step of Euler at guidance 0"


def mixed(make: Maker) -> str:
    """Two prompts, two images each: one batch of module, None, other, both equals four runs."""
    pipe = make()
    a, b = module(pipe, 1), module(pipe, 2)
    entries: list[Any] = [a, None, b, [a, b.scale(0.5)]]
    prompts = ["a doctor", "a nurse"]
    with steer(pipe, entries):
        batch = draw(pipe, prompts, images=2)
    for i, entry in enumerate(entries):
        with steer(pipe, entry if isinstance(entry, ConceptModule) else [entry] * 4):
            one = draw(pipe, prompts, images=2)[i]
        close(batch[i], one, f"image {i}", 1e-5)
    try:
        with steer(pipe, entries[:3]):
            draw(pipe, prompts, images=2)
    except ValueError:
        return ""
    raise AssertionError("three entries for four images went through")


SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIMScheduler", {}),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "DPM++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "UniPC": ("UniPCMultistepScheduler", {}),
    "LCM": ("LCMScheduler", {}),
}


def schedulers(make: Maker) -> str:
    """Each scheduler: the contract, and where a loop by hand is to be had, its latents."""
    done = []
    for name, (cls, changes) in SCHEDULERS.items():
        pipe = make()
        if type(pipe).__name__.startswith("LatentConsistency") and name != "LCM":
            continue  # that pipeline itself takes no other
        if spec_of(pipe).model == "transformer":
            cls, name = {"Euler": "FlowMatchEulerDiscreteScheduler", "Heun": "FlowMatchHeunDiscreteScheduler"}.get(name, ""), f"flow {name}"
            if not cls or (cls.endswith("HeunDiscreteScheduler") and spec_of(pipe).family == "flux"):
                continue  # Flux hands over sigmas, which that scheduler does not take
        pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **changes)
        steered = contract(pipe, steps=3)
        if spec_of(pipe).model == "unet" and not spec_of(pipe).images and not type(pipe).__name__.startswith("Latent"):
            pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config)
            close(steered, raw_latents(pipe, module(pipe).delta, steps=3), name)
        done.append(name)
    return ", ".join(done)


def sizes(make: Maker) -> str:
    """Not square: the module is resized with one warning; a channel-only module fits every size without one."""
    pipe = make()
    size: dict[str, Any] = {"height": 48, "width": 64}
    if spec_of(pipe).model == "unet":
        m = module(pipe)
        with warnings.catch_warnings(record=True) as caught, steer(pipe, m):
            warnings.simplefilter("always")
            resized = draw(pipe, **size)
        assert [w for w in caught if "is resized to the bottleneck (6, 8)" in str(w.message)], "no warning"
        close(resized, raw_latents(pipe, m.resize(6, 8).delta, **size), "resized by hand")
    flat = module(pipe, shape=(site_shape(backbone(pipe), site=spec_of(pipe).site(backbone(pipe)))[0], 1, 1))
    plain = draw(pipe, **size)
    with warnings.catch_warnings(), steer(pipe, flat):
        warnings.filterwarnings("error", message="module of")
        steered = draw(pipe, **size)
    assert apart(plain, steered) > 1e-3
    if spec_of(pipe).model == "unet":
        wide = flat.delta.expand(-1, 6, 8)
        close(steered, raw_latents(pipe, wide, **size), "channel-only by hand")
        with warnings.catch_warnings(record=True) as caught, steer(pipe, module(pipe, shape=(flat.shape[0], 2, 2))):
            warnings.simplefilter("always")
            draw(pipe)
        assert [w for w in caught if "is resized" in str(w.message)], "another resolution: no warning"
    return "resized with a warning; channel-only as it is" if spec_of(pipe).model == "unet" else "channel-only"


def half(make: Maker) -> str:
    """bfloat16 and float16: finite, contract; training in bfloat16, and refused in float16."""
    for dtype in (torch.bfloat16, torch.float16):
        contract(make().to(dtype), 1e-2)
    trained = fit(make().to(torch.bfloat16), WOMAN, TrainConfig(**TINY))
    assert trained.ram.dtype == torch.float32 and trained.ram.abs().max() > 0
    try:
        fit(make().to(torch.float16), WOMAN, TrainConfig(**TINY))
    except ValueError:
        return "float16 draws, does not train"
    raise AssertionError("training in float16 went through")


def slicing(make: Maker) -> str:
    """Attention slicing."""
    pipe = make()
    plain = contract(pipe)
    if not hasattr(pipe, "enable_attention_slicing") or spec_of(pipe).model != "unet":
        raise Skipped("transformers have no attention slicing")
    pipe.enable_attention_slicing(1)
    close(contract(pipe), plain, "sliced", 1e-4)
    return ""
