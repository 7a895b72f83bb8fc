"""Modules that act in a window of timesteps, against what the decoder receives at every step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from tests.tiny_models import flux, sd3
from torch import Tensor

from respodiff.methods.registry import load
from respodiff.pipelines.bottleneck import site_module, stream
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.convert import to_official
from respodiff.steering.fuse import channel_delta
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.steering.steer import steer

pytestmark = pytest.mark.slow

Make = Callable[..., ConceptModule]
STEPS = 5


def draw(pipe: Any, n: int = 1, start: int = 0) -> Tensor:
    """Final latents of images start to start + n of always the same noises."""
    noise = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(3))[start : start + n]
    more = {"num_images_per_prompt": n, "guidance_scale": 3.0, "num_inference_steps": STEPS, "output_type": "latent"}
    return pipe("a doctor", latents=noise, **more).images


@contextmanager
def added(pipe: Any, modules: Any) -> Iterator[list[tuple[float, Tensor]]]:
    """Timestep of every call inside, and what steering adds to h of its last row."""
    model = backbone(pipe)
    site = site_module(model, spec_of(pipe).site(model))
    scale = 1000 if isinstance(pipe, FluxPipeline) else 1
    seen: list[tuple[float, Tensor]] = []
    times: list[float] = []
    plain: list[Tensor] = []

    def told(_m: Any, args: Any, kwargs: Any) -> None:
        times.append(float(torch.as_tensor(kwargs["timestep"] if "timestep" in kwargs else args[1]).reshape(-1)[-1]) * scale)

    handles = [
        model.register_forward_pre_hook(told, with_kwargs=True),
        site.register_forward_hook(lambda _m, _a, out: plain.append(stream(out)[-1].clone())),
    ]
    try:
        with steer(pipe, modules):
            handles.append(site.register_forward_hook(lambda _m, _a, out: seen.append((times[-1], stream(out)[-1] - plain[-1]))))
            yield seen
    finally:
        for handle in handles:
            handle.remove()


def test_a_module_acts_inside_of_its_window_alone(tiny_pipe: Any, make_module: Make) -> None:
    module = make_module("woman", "gender", seed=1)
    with added(tiny_pipe, module.within(400, 1000)) as seen:
        draw(tiny_pipe)
    assert [t >= 400 for t, _ in seen] == [True, True, True, False, False]
    for t, delta in seen:
        torch.testing.assert_close(delta, module.delta if t >= 400 else torch.zeros_like(delta), atol=1e-4, rtol=0)


def test_low_belongs_to_the_window_and_high_does_not(tiny_pipe: Any, make_module: Make) -> None:
    module = make_module("woman", "gender", seed=1)
    with added(tiny_pipe, module) as seen:
        draw(tiny_pipe)
    t = int(seen[2][0])
    for window, acts in (((t, 1000), True), ((0, t), False), ((0, t + 1), True), ((t + 1, 1000), False)):
        with added(tiny_pipe, module.within(*window)) as seen:
            draw(tiny_pipe)
        assert bool(seen[2][1].any()) == acts, window


def test_before_its_window_an_image_has_the_bits_of_an_unsteered_one(tiny_pipe: Any, make_module: Make) -> None:
    module, plain = make_module("woman", "gender", seed=1), draw(tiny_pipe)
    with steer(tiny_pipe, module.within(998, 1000)):
        assert torch.equal(draw(tiny_pipe), plain)
    with steer(tiny_pipe, module):
        whole = draw(tiny_pipe)
    with steer(tiny_pipe, module.within(0, 1000)):
        assert torch.equal(draw(tiny_pipe), whole)


def test_a_mixed_batch_of_windows_draws_every_image_as_if_alone(tiny_pipe: Any, make_module: Make) -> None:
    woman, man = (make_module(name, "gender", seed=i) for i, name in enumerate(("woman", "man")))
    rows: list[list[ConceptModule]] = [
        [woman],
        [],
        [woman.within(400, 1000)],
        [woman.within(0, 500), man.within(400, 1000)],
        [man, man.within(0, 500)],
    ]
    plain = draw(tiny_pipe, len(rows))
    with steer(tiny_pipe, rows):
        found = draw(tiny_pipe, len(rows))
    assert torch.equal(found[1], plain[1])
    for i, row in enumerate(rows):
        with steer(tiny_pipe, [row]):
            torch.testing.assert_close(draw(tiny_pipe, 1, i)[0], found[i], atol=1e-4, rtol=0)
        assert i == 1 or (found[i] - plain[i]).abs().max() > 1e-2


def test_scale_is_a_factor_inside_of_the_window(tiny_pipe: Any, make_module: Make) -> None:
    module = make_module("woman", "gender", seed=1).within(400, 1000)
    with steer(tiny_pipe, module, scale=-0.5):
        found = draw(tiny_pipe)
    with steer(tiny_pipe, module.scale(-0.5)):
        torch.testing.assert_close(draw(tiny_pipe), found, atol=1e-4, rtol=0)


def test_a_compiled_model_keeps_to_the_window(tiny_pipe: Any, make_module: Make) -> None:
    module = make_module("woman", "gender", seed=1)
    rows = [module.within(400, 1000), module, None]
    with steer(tiny_pipe, rows):
        expected = draw(tiny_pipe, 3)
    tiny_pipe.unet.compile(backend="eager")
    with pytest.warns(UserWarning, match="compiles again"), steer(tiny_pipe, rows):
        torch.testing.assert_close(draw(tiny_pipe, 3), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", [sd3, flux])
def test_transformers_are_told_their_timestep(make: Any) -> None:
    pipe = make()
    model = backbone(pipe)
    width = model.config.num_attention_heads * model.config.attention_head_dim
    ram = 3 * torch.randn(width, 1, 1, generator=torch.Generator().manual_seed(0))
    header = Header("woman", "a woman", "a person", site=spec_of(pipe).site(model))
    module = ConceptModule.of(ram, torch.zeros_like(ram), header)
    call = {"num_inference_steps": 4, "output_type": "latent", "height": 32, "width": 32, "guidance_scale": 1.0}
    with added(pipe, module.within(600, 1000)) as seen:
        pipe("a doctor", generator=torch.Generator().manual_seed(0), **call)
    assert seen[0][0] > 999.5, "flow matching begins at 1000"
    acts = [bool(delta.abs().max() > 0.1) for _, delta in seen]
    assert acts == [t >= 600 for t, _ in seen] and len(set(acts)) == 2
    torch.testing.assert_close(seen[0][1], ram.flatten().expand_as(seen[0][1]), atol=1e-3, rtol=0)


def test_a_file_holds_the_window(make_module: Make, tmp_path: Path) -> None:
    module = make_module("woman", "gender", seed=1)
    early = load(module.within(400, 1000).save(tmp_path / "woman.safetensors"))
    assert early.header.timesteps == (400, 1000) and torch.equal(early.ram, module.ram)
    assert early.digest == module.within(400, 1000).digest != module.digest
    assert early.within(0, 1000).digest == module.digest


@pytest.mark.parametrize("window", [(400, 400), (-1, 1000), (0, 1001), (0.5, 1000), (500, 400), (400,)])
def test_a_window_that_is_none_is_refused(make_module: Make, window: Any) -> None:
    with pytest.raises(ValueError, match=r"^timesteps is \("):
        replace(make_module(), header=replace(make_module().header, timesteps=window))


def test_what_knows_no_timestep_refuses_a_window(tiny_pipe: Any, make_module: Make, tmp_path: Path) -> None:
    man = make_module("man", seed=2).within(400, 1000)
    with pytest.raises(ValueError, match=r"module 'man' acts at timesteps \(400, 1000\) alone"):
        channel_delta([man.channels()])
    with pytest.raises(ValueError, match=r"module 'man' acts at timesteps"):
        to_official(man, tmp_path / "out.pt")
    assert not list(tmp_path.iterdir())
