"""What is not finite stops a pipeline, and what threads cannot share is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from tests.drawing import module
from tests.tiny_models import sd, small

from respodiff.methods.lora import LowRankAdapter
from respodiff.methods.weight_edits import WeightEditAdapter
from respodiff.steering.adapter import Adapter
from respodiff.steering.module import ConceptModule
from respodiff.steering.serialization import Header
from respodiff.steering.steer import capture_h, steer

Make = Callable[..., ConceptModule]
Pipe = StableDiffusionPipeline
KEY = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"


def draw(pipe: Pipe, n: int = 1, steps: int = 2, **more: Any) -> torch.Tensor:
    generators = [torch.Generator().manual_seed(i) for i in range(n)]
    return pipe(
        ["a doctor"] * n, num_inference_steps=steps, guidance_scale=3.0, generator=generators, **{"output_type": "pt", **more}
    ).images


# --- finite ---


@pytest.mark.parametrize(("form", "steps"), [("pil", 2), ("latent", 2), ("latent", 1)])
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e30), (torch.float16, 1e10)])
def test_an_exploding_module_stops_the_run_and_is_named(
    tiny_pipe: Pipe, make_module: Make, form: str, steps: int, dtype: torch.dtype, size: float
) -> None:
    rows = [make_module("woman"), make_module("boom", scale=size).scale(0.5)]
    with pytest.raises(RuntimeError, match=r"'boom' at scale 0\.5") as stopped, steer(tiny_pipe.to(dtype), rows):
        draw(tiny_pipe, 2, steps=steps, output_type=form)
    assert "woman" not in str(stopped.value)


@pytest.mark.parametrize("kind", [LowRankAdapter, WeightEditAdapter])
def test_so_does_another_method(tiny_pipe: Pipe, kind: type[Adapter]) -> None:
    layer = tiny_pipe.unet.get_submodule(KEY).weight
    big = {f"{KEY}.weight": torch.full(layer.shape, 1e38)}
    low = {f"{KEY}.a": torch.full((1, layer.shape[1]), 1e30), f"{KEY}.b": torch.full((layer.shape[0], 1), 1e30)}
    header = Header("boom", "x", "y", site="", method="slider", train={"alpha": 1.0, "rank": 1})
    with pytest.raises(RuntimeError, match="'boom'"), steer(tiny_pipe, kind(header, low if kind is LowRankAdapter else big)):
        draw(tiny_pipe)


def test_images_that_the_decoder_makes_infinite_are_refused_without_an_adapter(tiny_pipe: Pipe) -> None:
    tiny_pipe.vae.decoder.conv_out.weight.data.fill_(float("inf"))
    with pytest.raises(RuntimeError, match="image"), steer(tiny_pipe, None):
        draw(tiny_pipe)


def test_each_pipeline_of_a_shared_model_answers_for_its_own(tiny_pipe: Pipe, make_module: Make) -> None:
    other = type(tiny_pipe).from_pipe(tiny_pipe)
    with steer(tiny_pipe, make_module("woman")):
        with pytest.raises(RuntimeError, match="'boom'"), steer(other, make_module("boom", scale=1e30)):
            draw(other)
        draw(tiny_pipe)


# --- threads ---


def pipelines(n: int, *own: str) -> list[Pipe]:
    """Pipelines that share all but the named parts."""
    with small():
        first = sd()
    more = [type(first).from_pipe(first, **{name: deepcopy(getattr(first, name)) for name in own}) for _ in range(n - 1)]
    for pipe in (first, *more):
        pipe.set_progress_bar_config(disable=True)
    return [first, *more]


def in_threads(pipes: list[Pipe], adapters: list[Any]) -> list[Any]:
    """What each thread drew, at its own number of steps, or its ValueError."""
    found: list[Any] = [None] * len(pipes)
    together = threading.Barrier(len(pipes))

    def work(i: int) -> None:
        together.wait()
        try:
            with steer(pipes[i], adapters[i]):
                found[i] = draw(pipes[i], steps=2 + i)
        except ValueError as error:
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(pipes))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return found


@pytest.mark.parametrize("own", [("scheduler", "tokenizer"), ()])
def test_eight_threads_draw_as_one_does_or_are_refused(own: tuple[str, ...]) -> None:
    pipes = pipelines(8, *own)
    modules = [module(pipes[0], seed) for seed in range(8)]
    serial = []
    for i, (pipe, m) in enumerate(zip(pipes, modules, strict=True)):
        with steer(pipe, m):
            serial.append(draw(pipe, steps=2 + i))
    found = in_threads(pipes, modules)
    drawn = [i for i, x in enumerate(found) if isinstance(x, torch.Tensor)]
    assert all(torch.equal(found[i], serial[i]) for i in drawn)
    assert len(drawn) == 8 if len(own) == 2 else drawn, found


def refused_beside(pipe: Pipe, other: Pipe, adapter: Any) -> str:
    """What another thread is told that steers ``other`` meanwhile; empty if it may."""
    said = [""]

    def work() -> None:
        try:
            with steer(other, adapter):
                pass
        except ValueError as error:
            said[0] = str(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return said[0]


def test_a_shared_part_is_named_with_what_to_do(make_module: Make) -> None:
    for own, name in ((("tokenizer",), "scheduler"), (("scheduler",), "tokenizer")):
        first, second = pipelines(2, *own)
        with steer(first, None):
            said = refused_beside(first, second, None)
        assert said.startswith(f"the {name} ") and "from_pipe" in said and "scheduler=deepcopy(pipe.scheduler)" in said
        assert not refused_beside(first, second, None)
        with capture_h(first, lambda _h: None):
            assert refused_beside(first, second, None)


def test_a_method_that_changes_the_model_is_not_shared_with_another_thread() -> None:
    first, second = pipelines(2, "scheduler", "tokenizer")
    erased = WeightEditAdapter(Header("x", "an x", "y", method="esd-x", site=""))
    with steer(first, module(first, 1)):
        assert "'esd-x'" in refused_beside(first, second, erased)
    with steer(first, erased):
        assert "'esd-x'" in refused_beside(first, second, module(first, 1))
        with steer(second, module(first, 1)):
            pass


def test_a_call_while_another_thread_adds_or_removes_its_hook_is_left_alone() -> None:
    first, second = pipelines(2, "scheduler", "tokenizer")
    plain = draw(second)
    with steer(first, module(first, 1)):
        first.unet._forward_pre_hooks_with_kwargs.clear()  # what torch shows for a moment
        assert torch.equal(draw(second), plain)
