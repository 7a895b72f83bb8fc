"""What is checked on every pipeline of the table in docs/backbones.md: one function a column.

A check takes a maker of fresh pipelines. It gives a note when the feature works, raises `Refused` with the library's own reason, or
`Skipped` where this machine lacks what it needs. A wrong result is an AssertionError: there is no fourth outcome.
"""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from tests.drawing import GUIDANCE, apart, close, draw, module, oblong, same, seen
from tests.raw_loop import patched, raw_flow, raw_latents
from tests.tiny_models import small
from torch import Tensor
from torch.nn.functional import interpolate

from respodiff import TrainConfig, fit, steer, train
from respodiff.concepts.concept import Concept
from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.capture import flat
from respodiff.pipelines.denoiser import Denoiser, flow_matching
from respodiff.pipelines.latents import latent_shape
from respodiff.pipelines.registry import backbone, site_of, spec_of
from respodiff.steering.module import ConceptModule

Maker = Callable[[], Any]
WOMAN = Concept("woman", "a woman", "a person", opposites=("a man",), attribute="gender")
TINY: dict[str, Any] = {"iterations": 2, "batch": 2, "steps": 3, "rollouts": 2, "rollout_batch": 2, "refresh_every": 2}


class Refused(Exception):
    """The library says no, and why."""


class Skipped(Exception):
    """This machine lacks what the check needs."""


@contextmanager
def quietly() -> Iterator[None]:
    """Warnings are asked for where they matter."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def contract(pipe: Any, within: float | None = None, **call: Any) -> Tensor:
    """What holds in every check: a zero module changes no bit, a module has an effect, afterwards all is as before. Gives the image."""
    plain, m = draw(pipe, **call), module(pipe)
    same(plain, draw(pipe, **call), "the pipeline repeats itself")
    with steer(pipe, m.scale(0.0)):
        zero = draw(pipe, **call)
    same(zero, plain, "zero module")
    with steer(pipe, m):
        steered = draw(pipe, **call)
    assert torch.isfinite(steered).all() and apart(steered, plain) > (within or 1e-3), "the module has no effect"
    same(draw(pipe, **call), plain, "restored afterwards")
    return steered


# --- drawing ---


def rows(make: Maker) -> str:
    """Conditional rows and no others, zero bit-exact, effect, restored."""
    pipe = make()
    contract(pipe)
    m = module(pipe)
    with seen(pipe) as plain:
        draw(pipe, images=2)
    with steer(pipe, m), seen(pipe) as steered:
        draw(pipe, images=2)
    a, b = plain[0][0], steered[0][0]
    changed = [i for i in range(len(a)) if not torch.equal(a[i], b[i])]
    passes = spec_of(pipe).passes if len(a) > 2 else ("cond",)
    assert len(a) == 2 * len(passes)
    expected = [i for i in range(len(a)) if passes[i // 2] == "cond"]
    assert changed == expected, f"rows {changed} changed, {expected} are conditional"
    delta = m.delta if a.ndim == 4 else m.delta.flatten()
    moved = b[changed] - a[changed]
    if spec_of(pipe).tokens or spec_of(pipe).references:  # of a stream with others the tokens of the image alone
        image = moved.abs().sum(-1) > 0
        assert image.sum(1).tolist() == [math.prod(latent_shape(pipe)[1:]) // (1 if spec_of(pipe).packs == 1 else 4)] * len(changed)
        moved = moved[image]
    assert torch.allclose(moved, delta.expand_as(moved), atol=1e-5)
    return f"rows {changed[0]}-{changed[-1]} of {len(a)}"


def raw(make: Maker) -> str:
    """A known shift gives the latents of a loop written by hand over the raw model."""
    pipe = make()
    m = module(pipe)
    name = type(pipe).__name__
    if name in ("FluxPipeline", "StableDiffusion3Pipeline") and not getattr(backbone(pipe).config, "qk_norm", None):
        by_hand = raw_flow(pipe, m.delta)
    else:
        by_hand = (raw_latents if spec_of(pipe).model == "unet" and "Modular" not in name else patched)(pipe, m.delta)
    with steer(pipe, m):
        return f"{close(draw(pipe), by_hand, 'loop by hand'):.0e}"


def unguided(make: Maker) -> str:
    """Guidance off: every row is conditional."""
    pipe = make()
    if not spec_of(pipe).guides or type(pipe).__name__.startswith("LatentConsistency"):
        contract(pipe)
        return "never on"
    steered = contract(pipe, guidance_scale=spec_of(pipe).off)
    if spec_of(pipe).model != "unet":
        return ""
    close(steered, raw_latents(pipe, module(pipe).delta, guidance=1.0), "loop by hand")
    if isinstance(pipe, diffusers.ModularPipeline):
        return ""  # a guider has no scale for Turbo
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    steered = contract(pipe, guidance_scale=0.0, steps=1)
    close(steered, raw_latents(pipe, module(pipe).delta, guidance=0.0, steps=1), "one step, as Turbo")
    return "also as Turbo: one step of Euler at guidance 0"


def mixed(make: Maker) -> str:
    """Two prompts, two images each: one batch of module, None, other, both equals four runs."""
    pipe = make()
    a, b = module(pipe, 1), module(pipe, 2)
    entries: list[Any] = [a, None, b, [a, b.scale(0.5)]]
    prompts = ["a doctor", "a nurse"] if "EditPlus" not in type(pipe).__name__ else ["a doctor"]  # which takes one
    each = 4 // len(prompts)
    with steer(pipe, entries):
        batch = draw(pipe, prompts, images=each)
    for i, entry in enumerate(entries):
        with steer(pipe, entry if isinstance(entry, ConceptModule) else [entry] * 4):
            one = draw(pipe, prompts, images=each)[i]
        close(batch[i], one, f"image {i}", 1e-5)
    try:
        with steer(pipe, entries[:3]):
            draw(pipe, prompts, images=each)
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
        if isinstance(pipe.scheduler, diffusers.SCMScheduler):
            raise Skipped("this class takes no other scheduler than its own")
        if type(pipe).__name__.startswith("LatentConsistency") and name != "LCM":
            continue  # that pipeline itself takes no other
        if flow := flow_matching(pipe.scheduler):
            cls, name = {"Euler": "FlowMatchEulerDiscreteScheduler", "Heun": "FlowMatchHeunDiscreteScheduler"}.get(name, ""), f"flow {name}"
            if not cls:
                continue
        pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config, **changes)
        try:
            steered = contract(pipe, steps=3)
        except (ValueError, TypeError) as error:
            if flow and ("support custom" in str(error) or "'mu'" in str(error)):
                continue  # this pipeline hands over sigmas or a shift, which that scheduler does not take
            raise
        if spec_of(pipe).model == "unet" and not spec_of(pipe).images and not type(pipe).__name__.startswith("Latent"):
            pipe.scheduler = getattr(diffusers, cls).from_config(pipe.scheduler.config)
            # PNDM and Heun make much of the rounding of calls of one condition each.
            within = 1e-3 if isinstance(pipe, diffusers.ModularPipeline) else 1e-5
            close(steered, raw_latents(pipe, module(pipe).delta, steps=3), name, within)
        done.append(name)
    return ", ".join(done)


def sizes(make: Maker) -> str:
    """Not square: the module is resized with one warning; a channel-only module fits every size without one."""
    pipe = make()
    size: dict[str, Any] = oblong(pipe)
    if spec_of(pipe).model == "unet":
        m = module(pipe)
        with warnings.catch_warnings(record=True) as caught, steer(pipe, m):
            warnings.simplefilter("always")
            resized = draw(pipe, **size)
        assert [w for w in caught if "is resized to the bottleneck (6, 8)" in str(w.message)], "no warning"
        close(resized, raw_latents(pipe, interpolate(m.delta[None], (6, 8), mode="bilinear", antialias=True)[0], **size), "resized by hand")
    flat = module(pipe, shape=(site_shape(backbone(pipe), site=site_of(pipe))[0], 1, 1))
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
    if not_trained(make()):
        return "draws; nothing is trained on this class"
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
        raise Skipped(f"{'transformers' if spec_of(pipe).model != 'unet' else 'modular pipelines'} have no attention slicing")
    pipe.enable_attention_slicing(1)
    close(contract(pipe), plain, "sliced", 1e-4)
    return ""


# --- training ---


def not_trained(pipe: Any) -> str:
    """Why nothing is trained on a class; empty where it can be."""
    try:
        Denoiser(pipe)
    except ValueError as error:
        return str(error).replace(type(pipe).__name__, "this class")
    return ""


def training(make: Maker) -> str:
    """Conditions are those that the pipeline gives its model; a module comes out, the model is as before; not square as well."""
    pipe = make()
    model = backbone(pipe)
    if reason := not_trained(pipe):
        raise Refused(reason)
    with seen(pipe) as calls:
        draw(pipe)
    given = {name: value.movedim(spec_of(pipe).axes.get(name, 0), 0) for name, value in flat(calls[0][1]).items()}
    passes = len(calls[0][0])
    row = spec_of(pipe).passes.index("cond") if passes > 1 else 0
    mine = Denoiser(pipe, guidance=GUIDANCE)
    for name, value in mine.encode(["a doctor"])[0].items():
        close(value, given[name][row : row + 1] if name in given else calls[0][1][name][row][None], name)
    if passes > 1:
        for name, value in mine.empty.items():
            other = spec_of(pipe).passes.index("uncond")
            close(value, (given[name] if name in given else calls[0][1][name])[other][None], f"{name} of the empty prompt")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for changes in (oblong(pipe), {"form": "channel", "sam_lr": 0.0}):
        *_, last = train(pipe, WOMAN, TrainConfig(**TINY, **changes))
        m = last.module
        assert m.ram.abs().max() > 0 and m.header.site == site_of(pipe)
        assert (m.sam.abs().max() > 0) == ("sam_lr" not in changes)
        with quietly(), steer(pipe, m):
            draw(pipe)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(h._forward_hooks or h._forward_pre_hooks for h in model.modules())
    kind = pipe.scheduler.config.get("prediction_type", "velocity")
    return f"{type(Denoiser(pipe).sampler(4)).__name__.removesuffix('Scheduler')}, {kind}"


def checkpointing(make: Maker) -> str:
    """Gradient checkpointing gives the same module."""
    pipe = make()
    if reason := not_trained(pipe):
        raise Refused(reason)
    plain = fit(pipe, WOMAN, TrainConfig(**TINY))
    if not backbone(pipe)._supports_gradient_checkpointing:
        raise Skipped("diffusers has no gradient checkpointing for this class")
    backbone(pipe).enable_gradient_checkpointing()
    backbone(pipe).train()
    if spec_of(pipe).unchecked:
        try:
            fit(pipe, WOMAN, TrainConfig(**TINY))
        except ValueError as error:
            raise Refused(str(error)) from error
        raise AssertionError("training with checkpoints went through")
    again = fit(pipe, WOMAN, TrainConfig(**TINY))
    close(again.ram, plain.ram, "with checkpointing", 1e-4)
    return ""


def compiled_training(make: Maker) -> str:
    """Training on a compiled model runs the model itself."""
    pipe = make()
    if reason := not_trained(pipe):
        raise Refused(reason)
    plain = fit(pipe, WOMAN, TrainConfig(**TINY))
    backbone(pipe).compile(backend="eager")
    same(fit(pipe, WOMAN, TrainConfig(**TINY)).ram, plain.ram, "trained in place")
    setattr(pipe, spec_of(pipe).model, torch.compile(backbone(pipe), backend="eager"))
    same(fit(pipe, WOMAN, TrainConfig(**TINY)).ram, plain.ram, "trained wrapped")
    return "on the uncompiled model"


# --- what else acts on a model ---


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
        try:
            return _compiled(make)
        except ValueError as error:
            if "the model is compiled" in str(error):
                raise Refused(str(error)) from error
            raise


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
        try:
            found = draw(pipe, images=2)
        except (torch._dynamo.exc.Unsupported, torch._dynamo.exc.UserError) as error:
            raise Skipped("the model alone does not compile as one graph") from error
        close(found, plain, f"{way}, plain", 1e-4)
        for want, mix in list(zip(expected, mixes, strict=True))[:tried]:
            with quietly(), steer(pipe, mix):
                close(draw(pipe, images=2), want, f"{way}, steered", 1e-4)
            counts.append(graphs.n)
        close(draw(pipe, images=2), plain, f"{way}, afterwards", 1e-4)
        # The last mix steers nothing: the plain model, compiled with its port in place, is the one graph besides; it is that of unconditional
        # calls where these are calls of their own, and alike.
        apart_from = "uncond" in [block for blocks in spec_of(pipe).calls.values() for block in blocks if len(blocks) == 1]
        own = (0, 1) if apart_from and spec_of(pipe).guides else (1,)
        assert len(set(counts[:3])) == 1 and graphs.n - counts[0] in own, f"{way}: graphs grew with the mix: {counts}, {graphs.n}"
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
    from respodiff.pipelines.identity import weights_digest

    pipe = make()
    model = backbone(pipe)
    if not hasattr(model, "add_adapter"):
        raise Skipped("diffusers has no LoRA for this class")
    plain, digest = draw(pipe), weights_digest(model)
    torch.manual_seed(3)
    model.add_adapter(LoraConfig(r=2, lora_alpha=64, init_lora_weights="gaussian", target_modules=["to_q", "to_k", "to_v"]))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.5)
    assert apart(draw(pipe), plain) > 1e-3, "the LoRA has no effect"
    contract(pipe)
    assert weights_digest(model) == digest
    if not_trained(pipe):
        return "draws; nothing is trained on this class"
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
    if isinstance(pipe, diffusers.ModularPipeline):
        raise Skipped("DeepCache is for pipelines that are not modular")
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
    if isinstance(first, diffusers.ModularPipeline):
        second = first.blocks.init_pipeline()
        loaded = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
        second.update_components(**{k: v for k, v in parts.items() if k.startswith(loaded)})
    else:
        second = type(first)(
            **{k: v for k, v in parts.items() if k in known},
            **({"requires_safety_checker": False} if "requires_safety_checker" in known else {}),
        )
    second.set_progress_bar_config(disable=True)
    if "default_sample_size" in vars(first):
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
    torch.manual_seed(0)
    state = torch.get_rng_state()
    draw(first)
    if not torch.equal(torch.get_rng_state(), state):
        return "each by itself; in threads the pipeline alone does not repeat itself, as it draws from the random numbers of all"
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
    try:
        draw(pipe)
    except RuntimeError as error:  # a parameter of the model's own, which accelerate leaves on the meta device
        raise Skipped(f"the pipeline alone cannot be offloaded: {error}") from error
    contract(pipe)
    with steer(pipe, m):
        close(draw(pipe), expected, "offloaded")
    try:
        fit(pipe, WOMAN, TrainConfig(**TINY))
    except ValueError as error:
        assert "offloaded" in str(error) or spec_of(pipe).unread or spec_of(pipe).untrained
    else:
        raise AssertionError("training while offloaded went through")
    remove_hook_from_module(backbone(pipe), recurse=True)
    if not torch.cuda.is_available():
        return "weights on demand on the CPU; enable_sequential_cpu_offload: no accelerator here"
    pipe.enable_sequential_cpu_offload()
    contract(pipe, 1e-2)
    return "also enable_sequential_cpu_offload"


CHECKS: dict[str, Callable[[Maker], str]] = {
    "rows": rows,
    "loop by hand": raw,
    "guidance off": unguided,
    "mixed batch": mixed,
    "schedulers": schedulers,
    "sizes": sizes,
    "half precision": half,
    "attention slicing": slicing,
    "training": training,
    "gradient checkpointing": checkpointing,
    "torch.compile": compiled,
    "training, compiled": compiled_training,
    "LoRA": lora,
    "DeepCache": deepcache,
    "shared model, threads": shared,
    "offloading": offload,
}
"""Column -> check."""


def outcome(check: Callable[[Maker], str], make: Maker) -> tuple[str, str]:
    """("works" | "refused" | "skipped", note)."""
    try:
        return "works", check(make)
    except Refused as error:
        return "refused", str(error)
    except Skipped as error:
        return "skipped", str(error)
