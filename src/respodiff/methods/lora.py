"""Low-rank changes of the model's layers, as hooks: y = W x + scale (alpha / rank) B A x, for the rows of the images that have one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from respodiff.methods.base import MakeHeader
from respodiff.methods.model_call import intercept_calls
from respodiff.methods.weight_edits import cross_attention, fused_projections
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.quantization import weight_of
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import Adapter, AdaptersPerImage
from respodiff.training.config import AT_ONCE, NOT_NEGATIVE, POSITIVE, Rules, Settings
from respodiff.training.diagnostics import share
from respodiff.training.state import MakePool, StepRecord, Tensors, fit_tensors

WHERE = {"all": (".attn1.", ".attn2.", ".attn.", ".attention."), "self": (".attn1.",), "cross": (".attn2.",)}
"""Setting ``where`` -> parts of the names of the layers that are changed: self-attention, attention to the text, or both.

``attn`` or ``attention`` is that of transformers that attend to image and text together."""


@dataclass(frozen=True)
class LoraConfig(Settings):
    """Settings of low-rank changes of ``all`` attention, ``self`` or ``cross``, which act times alpha / rank; weight decay is AdamW's."""

    rules: ClassVar[Rules] = {"rank": AT_ONCE, "alpha": POSITIVE, "weight_decay": NOT_NEGATIVE}
    rank: int = 4
    alpha: float = 1.0
    where: Literal["all", "self", "cross"] = "all"
    weight_decay: float = 0.01

    @property
    def lora_scale(self) -> float:
        """What B A x is multiplied by at scale 1."""
        return float(self.alpha / self.rank)


def layers(model: nn.Module, where: str = "all") -> dict[str, nn.Linear]:
    """The linear layers (queries, keys, values, output) of the attention, by the names that they have without a LoRA beside them."""
    parts, own = WHERE[where], ((n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".lora_" not in n)
    found = {n.replace(".base_layer", ""): m for n, m in own if any(p in f".{n}" for p in parts)}
    if where == "cross" and not cross_attention(model):
        found = {}
    if not found:
        raise ValueError(f"where is {where!r}, of which {type(model).__name__} has no layer; give where=all")
    return found


def by_name(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model; a layer with a LoRA beside it also by the name that it has without one."""
    known = dict(model.named_modules())
    return known | {name.replace(".base_layer", ""): module for name, module in known.items() if name.endswith(".base_layer")}


def start(model: nn.Module, rank: int, where: str, seed: int) -> dict[str, Tensor]:
    """A (rank, in) from N(0, 1 / in) and B (out, rank) of zeros for every layer, so that nothing is changed at first."""
    generator = torch.Generator().manual_seed(seed)
    out: dict[str, Tensor] = {}
    for name, layer in layers(model, where).items():
        a = torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5
        out |= {f"{name}.a": a.to(layer.weight.device), f"{name}.b": torch.zeros(layer.out_features, rank, device=layer.weight.device)}
    return out


def fit_low_rank(
    model: Denoiser,
    config: Any,
    header: MakeHeader,
    examples: MakePool,
    loss: Callable[[Tensors, Any], float],
    *,
    resume: Any,
    refresh_every: int,
    verdict: Callable[[Any, Tensors], Any] | None = None,
) -> Iterator[StepRecord]:
    """`fit_tensors` of low-rank changes, from their start to a `LowRankAdapter`."""
    tensors, make = start(model.model, config.rank, config.where, config.seed), partial(LowRankAdapter, header(resolution=model.size))
    more = {"resume": resume, "refresh_every": refresh_every, "weight_decay": config.weight_decay, "verdict": verdict}
    return fit_tensors(model, tensors, examples, loss, config, make, **more)


def relative_norm(model: nn.Module, tensors: Mapping[str, Tensor], scale: float) -> float:
    """|scale B A| / |W| over all layers that are changed."""
    names = {key.rpartition(".")[0] for key in tensors}
    found = layers(model)
    return share((scale * tensors[f"{n}.b"] @ tensors[f"{n}.a"], weight_of(found[n])) for n in names)


def low_rank(layer: nn.Module, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """B A x in x's dtype and on its device: x (..., in) of a linear layer, or (R, in, H, W) of a convolution, as which A then runs."""
    if isinstance(layer, nn.Conv2d):
        return conv2d(conv2d(x, a.to(x), None, layer.stride, layer.padding, layer.dilation), b.to(x))
    return (x @ a.to(x).T) @ b.to(x).T


@contextmanager
def attached(
    model: nn.Module, tensors: Mapping[str, Tensor], scale: float, rows: Callable[[Tensor], Tensor | slice | None] | None = None
) -> Iterator[None]:
    """While active, every layer that is named gives ``scale`` B A x more, for all rows or those that ``rows`` gives. A and B get gradients."""
    known = by_name(model)
    with ExitStack() as stack:
        for name in {key.rpartition(".")[0] for key in tensors}:

            def hook(layer: nn.Module, args: tuple[Any, ...], output: Tensor, name: str = name) -> Tensor | None:
                a, b = tensors[f"{name}.a"], tensors[f"{name}.b"]
                if rows is None:
                    return output + scale * low_rank(layer, args[0], a, b)
                if (at := rows(args[0])) is None:
                    return None
                out = output.clone()
                out[at] += scale * low_rank(layer, args[0][at], a, b)
                return out

            stack.enter_context(known[name].register_forward_hook(hook))
        yield


def fits(layer: nn.Module | None, a: Tensor, b: Tensor) -> bool:
    """Whether A and B are of the shapes of a layer, which is linear or a convolution without groups."""
    if isinstance(layer, nn.Conv2d):
        wanted: tuple[int, ...] = (layer.in_channels, *layer.kernel_size)
        return layer.groups == 1 and a.shape[1:] == wanted and b.shape == (layer.out_channels, len(a), 1, 1)
    return isinstance(layer, nn.Linear) and a.shape[1:] == (layer.in_features,) and b.shape == (layer.out_features, len(a))


class LowRankAdapter(Adapter):
    """Low-rank changes: tensors ``LAYER.a`` (rank, in) and ``LAYER.b`` (out, rank) of every layer, settings ``rank`` and ``alpha``.

    Of a convolution they are (rank, in, h, w) and (out, rank, 1, 1).
    """

    transformers = True
    converts = True

    @property
    def factor(self) -> float:
        """What B A x is multiplied by: weight x alpha / rank. Of a converted file alpha / rank is in B."""
        return self.weight * (1.0 if "converted" in self.settings else self.settings["alpha"] / self.settings["rank"])

    @staticmethod
    @contextmanager
    def apply(pipe: Any, adapters: AdaptersPerImage) -> Iterator[None]:
        """Every image's rows, those of the unconditional pass too, get the low-rank changes of its adapters.

        ValueError for a layer that the model lacks.
        """
        model: nn.Module = backbone(pipe)
        known = by_name(model)
        if reason := fused_projections(model):
            raise ValueError(f"{adapters.adapters[0].method} changes single layers: {reason}")
        with ExitStack() as stack:
            call = stack.enter_context(intercept_calls(pipe, adapters))
            for adapter in adapters.adapters:

                def rows(x: Tensor, adapter: Adapter = adapter) -> Tensor | slice | None:
                    now = call()
                    return now.rows_in(lambda row: adapter in row, x) if now else None

                names, t = sorted({key.rpartition(".")[0] for key in adapter.tensors}), adapter.tensors
                if missing := [name for name in names if not fits(known.get(name), t[f"{name}.a"], t[f"{name}.b"])]:
                    raise ValueError(
                        f"{adapter.method} {adapter.name!r} changes layer {missing[0]!r}, which this model lacks or has in another size; "
                        "make it for this model"
                    )
                stack.enter_context(attached(model, adapter.tensors, adapter.factor, rows))
            yield
