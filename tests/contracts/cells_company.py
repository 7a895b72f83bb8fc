"""Cells of the table about what else acts on a model: torch.compile, LoRA, DeepCache, other pipelines and threads, offloading."""

from __future__ import annotations

import copy
import threading
import warnings
from typing import Any

import torch
from tests.contracts.cell import TINY, WOMAN, Maker, Skipped, apart, close, contract, module, quietly, same
from tests.drawing import draw
from tests.tiny_models import small
from torch import Tensor

from respodiff import TrainConfig, fit, steer
from respodiff.pipelines.registry import backbone, spec_of
from respodiff.steering.module import ConceptModule


class Graphs:
    """A compiler that runs what it is given, and counts it."""

    def __init__(self) -> None:
        self.n = 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.n += 1
        return graph.forward


def compiled(make: Maker) -> str:
    """Compiled and run before the first steering; compiled in place; compiled inside of a block: same latents as without compiling.

    The smallest UNet that there is: compiling takes long.
    """
    with small():
        return _compiled(make)


def _compiled(make: Maker) -> str:
    part, pipe = spec_of(make()).model, make()
    a, b = module(pipe, 1), module(pipe, 2)
    mixes: list[Any] = [[a, None], [b, a], [[a, b], b], [None, None]]
    plain, expected = draw(pipe, images=2), []
    for mix in mixes:
        with steer(pipe, mix):
            expected.append(draw(pipe, images=2))
    for way, tried in (("wrapped", 4), ("in place", 2)):
        torch.compiler.reset()
        pipe, graphs, counts = make(), Graphs(), []
        if way == "wrapped":
            setattr(pipe, part, torch.compile(backbone(pipe), backend=graphs, fullgraph=True))
        else:
            backbone(pipe).compile(backend=graphs)
        close(draw(pipe, images=2), plain, f"{way}, plain", 1e-4)
        for want, mix in list(zip(expected, mixes, strict=True))[:tried]:
            with quietly(), steer(pipe, mix):
                close(draw(pipe, images=2), want, f"{way}, steered", 1e-4)
            counts.append(graphs.n)
        close(draw(pipe, images=2), plain, f"{way}, afterwards", 1e-4)
        # The last mix steers nothing: the plain model, compiled with its port in place, is the one graph besides.
        assert len(set(counts[:3])) == 1 and graphs.n == counts[0] + 1, f"{way}: graphs grew with the mix: {counts}"
    torch.compiler.reset()
    pipe = make()
    with steer(pipe, mixes[0]):
        setattr(pipe, part, torch.compile(backbone(pipe), backend=Graphs()))
        close(draw(pipe, images=2), expected[0], "compiled inside, steered", 1e-4)
    close(draw(pipe, images=2), plain, "compiled inside, afterwards", 1e-4)
    torch.compiler.reset()
    return "compiled before, in place, inside of a block; one graph for all mixes"


def lora(make: Maker) -> str:
    """A LoRA at the same time: it keeps its effect, the module has its own, the checkpoint is still recognised."""
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise Skipped("peft is not installed") from error
    from respodiff.pipelines.loading import weights_digest

    pipe = make()
    model = backbone(pipe)
    plain, digest = draw(pipe), weights_digest(model)
    torch.manual_seed(3)
    model.add_adapter(LoraConfig(r=2, lora_alpha=64, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v"]))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    assert apart(draw(pipe), plain) > 1e-3, "the LoRA has no effect"
    contract(pipe)
    assert weights_digest(model) == digest
    assert fit(pipe, WOMAN, TrainConfig(**TINY)).ram.abs().max() > 0
    return "draws and trains"


def deepcache(make: Maker) -> str:
    """DeepCache: draws with it; training is refused."""
    try:
        from DeepCache import DeepCacheSDHelper
    except ImportError as error:
        raise Skipped("DeepCache is not installed") from error
    pipe = make()
    if spec_of(pipe).model == "transformer":
        raise Skipped("DeepCache is for UNets")
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(cache_interval=2, cache_branch_id=0)

    def image(m: ConceptModule | None) -> Tensor:
        helper.enable()
        try:
            with steer(pipe, m):
                return draw(pipe, steps=4)
        finally:
            helper.disable()

    plain = image(None)
    same(image(module(pipe, scale=0.0)), plain, "zero module")
    assert apart(image(module(pipe)), plain) > 1e-3
    same(image(None), plain, "afterwards")
    helper.enable()
    try:
        fit(pipe, WOMAN, TrainConfig(**TINY))
    except ValueError as error:
        assert "DeepCache" in str(error)
        return "draws; training is refused while it is on"
    finally:
        helper.disable()
    raise AssertionError("training under DeepCache went through")


def shared(make: Maker) -> str:
    """Two pipelines with one model: each is steered by itself; threads with different modules equal serial runs."""
    first = make()
    parts = {**first.components, "scheduler": type(first.scheduler).from_config(first.scheduler.config)}
    # Tokenizers cannot be shared by threads ("Already borrowed"): their own affair, so each pipeline has its own.
    parts |= {name: copy.deepcopy(part) for name, part in parts.items() if name.startswith("tokenizer")}
    known = type(first).__init__.__code__.co_varnames
    second = type(first)(
        **{k: v for k, v in parts.items() if k in known},
        **({"requires_safety_checker": False} if "requires_safety_checker" in known else {}),
    )
    second.set_progress_bar_config(disable=True)
    if hasattr(first, "default_sample_size"):
        second.default_sample_size = first.default_sample_size
    a, b = module(first, 1), module(first, 2)
    plain = draw(second)
    with steer(first, a), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same(draw(second), plain, "the other pipeline")
        assert sum("shares the model" in str(w.message) for w in caught) == 1
        one = draw(first)
        with steer(second, b):
            two = draw(second)
            same(draw(first), one, "the first while the second is steered")
    assert apart(one, two) > 1e-3
    found: dict[str, Tensor] = {}

    def work(name: str, pipe: Any, m: ConceptModule) -> None:
        with steer(pipe, m):
            found[name] = draw(pipe)

    threads = [threading.Thread(target=work, args=args) for args in (("one", first, a), ("two", second, b))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    same(found["one"], one, "thread 1")
    same(found["two"], two, "thread 2")
    same(draw(first), plain, "afterwards")
    return "each by itself, also in threads"


def offload(make: Maker) -> str:
    """Weights that come and go with each call (accelerate): same latents; training is refused. Offloading from an accelerator needs one."""
    try:
        from accelerate import cpu_offload
        from accelerate.hooks import remove_hook_from_module
    except ImportError as error:
        raise Skipped("accelerate is not installed") from error
    pipe = make()
    m = module(pipe)
    with steer(pipe, m):
        expected = draw(pipe)
    cpu_offload(backbone(pipe), execution_device=torch.device("cpu"))
    contract(pipe)
    with steer(pipe, m):
        close(draw(pipe), expected, "offloaded")
    try:
        fit(pipe, WOMAN, TrainConfig(**TINY))
    except ValueError as error:
        assert "offloaded" in str(error)
    else:
        raise AssertionError("training while offloaded went through")
    remove_hook_from_module(backbone(pipe), recurse=True)
    if not torch.cuda.is_available():
        return "weights on demand on the CPU; enable_sequential_cpu_offload: no accelerator here"
    pipe.enable_sequential_cpu_offload()
    contract(pipe, 1e-2)
    return "also enable_sequential_cpu_offload"
