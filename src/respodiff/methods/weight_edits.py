"""Methods that change the model's own weights: what is stored is the difference, and it is in effect inside of a block alone.

Where all images of a call get the same, the parameters are swapped for the time of each call of the model by this pipeline, and put back,
object by object. In a mixed batch every changed layer runs again for the rows of each kind, so that an image is generated as if alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from respodiff.methods.model_call import ModelCall, intercept_calls
from respodiff.pipelines.quantization import quantised
from respodiff.pipelines.registry import backbone
from respodiff.steering.adapter import Adapter, AdaptersPerImage


def cross_attention(model: nn.Module) -> list[str]:
    """Names of the weights that make keys and values of the text: ``attn2.to_k`` and ``attn2.to_v``; none where text and image attend together."""
    names = {name: name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}  # the former with a LoRA beside it
    if any(".attn.add_" in name for name in names):  # there attn2 is a second attention of the image to itself
        return []
    return [name for name, plain in names.items() if plain.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))]


def quantised_weights(pipe: Any) -> str:
    """What is said of a pipeline whose model is quantised; empty for others."""
    return quantised(backbone(pipe))


def without_cross_attention(pipe: Any) -> str:
    """What is said of a pipeline whose model has no cross-attention; empty for others."""
    if cross_attention(backbone(pipe)):
        return ""
    return f"{type(pipe).__name__} has no cross-attention to the text; use respodiff, slider, esd-x, or a prompt"


def hidden(model: nn.Module) -> str:
    """Why a change of a model's weights would be lost: accelerate puts others in their place, or fused layers are used instead; else empty."""
    hooks = [module._hf_hook for module in model.modules() if hasattr(module, "_hf_hook")]
    if any(getattr(hook, "offload", True) for hook in hooks):  # group offloading, which has none, moves whatever parameters it finds
        return "it is offloaded, and they would be lost; load it with offload 'none' or 'group'"
    return fused_projections(model)


def fused_projections(model: nn.Module) -> str:
    """What is said of a model whose queries, keys and values come from one layer, as by ``fuse_qkv_projections``; empty for others."""
    for module in model.modules():  # unfusing a UNet changes the processors alone
        processor = type(getattr(module, "processor", None)).__name__
        if getattr(module, "fused_projections", False) and (not isinstance(module, Attention) or "Fused" in processor):
            return "queries, keys and values are fused; call pipe.unfuse_qkv_projections() first"
    return ""


@contextmanager
def swapped(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """While active, the named parameters are other tensors (trained or stored ones); afterwards they are the same objects as before."""
    with ExitStack() as stack:
        for name, value in values.items():
            path, _, leaf = name.rpartition(".")
            parameters: Any = model.get_submodule(path)._parameters  # a trained tensor need not be a Parameter
            stack.callback(parameters.__setitem__, leaf, parameters[leaf])
            parameters[leaf] = value
        yield


def differences(model: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """Parameter name -> what is added to it at scale 1. ValueError for a name or shape that the model does not have."""
    known = dict(model.named_parameters())
    names = {name.replace(".base_layer.", "."): name for name in known}  # the latter with a LoRA beside it
    if "edit" in adapter.tensors:  # UCE: one matrix for all keys and values, W* - W = W (M - I)
        edit, weights = adapter.tensors["edit"], {name: known[name] for name in cross_attention(model)}
        if not weights:
            raise ValueError(
                f"{adapter.method} {adapter.name!r} edits cross-attention, which {type(model).__name__} lacks; use another method"
            )
        for name, weight in weights.items():
            if weight.shape[1] != len(edit):
                raise ValueError(
                    f"{adapter.method} {adapter.name!r} is for text of {len(edit)} channels, {name} takes {weight.shape[1]}; make it for this model"
                )
        return {name: weight.float() @ edit.to(weight.device) for name, weight in weights.items()}
    out = dict[str, Tensor]()
    for plain, t in ((name.replace(".base_layer.", "."), t) for name, t in adapter.tensors.items()):
        if plain not in names or known[names[plain]].shape != t.shape:
            there = tuple(known[names[plain]].shape) if plain in names else "none of that name"
            raise ValueError(
                f"{adapter.method} {adapter.name!r} changes {plain!r} of shape {tuple(t.shape)}, the model has {there}; make it for this model"
            )
        out[names[plain]] = t
    return out


def changed(model: nn.Module, row: tuple[Adapter, ...]) -> dict[str, Tensor]:
    """Parameter name -> value that an image's adapters ask for: W + sum over them of scale x difference."""
    known, sums = dict(model.named_parameters()), dict[str, Tensor]()
    if reason := quantised(model) or hidden(model):
        raise ValueError(f"{row[0].method} {row[0].name!r} changes weights: {reason}")
    for a in row:
        for name, difference in differences(model, a).items():
            sums[name] = sums.get(name, 0.0) + a.weight * difference.to(known[name].device)
    new = {name: (known[name].detach().float() + total).to(known[name].dtype) for name, total in sums.items()}
    return {name: nn.Parameter(value, requires_grad=False) for name, value in new.items()}


class WeightEditAdapter(Adapter):
    """Differences of the model's weights by name, or UCE's one matrix ``edit``."""

    transformers = True

    @staticmethod
    @contextmanager
    def apply(pipe: Any, adapters: AdaptersPerImage) -> Iterator[None]:
        """Every image is generated with the weights that its adapters ask for."""
        model: nn.Module = backbone(pipe)
        values = {row: changed(model, row) for row in set(adapters.rows) if row}
        if len(set(adapters.rows)) == 1:
            (change,) = values.values()
            with _swapped_in_calls(pipe, adapters, change):
                yield
            return
        with ExitStack() as stack:
            call = stack.enter_context(intercept_calls(pipe, adapters))
            layers: dict[str, dict[tuple[Adapter, ...], dict[str, Tensor]]] = defaultdict(lambda: defaultdict(dict))
            for row, change in values.items():
                for name, value in change.items():
                    path, _, leaf = name.rpartition(".")
                    layers[path][row][leaf] = value
            for path, own in layers.items():
                hook = _again(own, call)  # first of the layer's hooks: what a LoRA adds is added to what this gives
                stack.callback(model.get_submodule(path).register_forward_hook(hook, prepend=True, with_kwargs=True).remove)
            yield


@contextmanager
def _swapped_in_calls(pipe: Any, adapters: AdaptersPerImage, values: Mapping[str, Tensor]) -> Iterator[None]:
    """While active, parameters are `swapped` in every call of the model by this pipeline, and put back at its end."""
    held, model = ExitStack(), backbone(pipe)

    def begin(*_: Any) -> None:
        held.enter_context(swapped(model, values))

    def end(*_: Any) -> None:
        held.close()

    with held, intercept_calls(pipe, adapters, begin), ExitStack() as stack:
        stack.callback(
            model.register_forward_hook(end, prepend=True, always_call=True).remove
        )  # the last one in is out first, also where a call fails
        yield


def _again(values: Mapping[tuple[Adapter, ...], Mapping[str, Tensor]], call: Callable[[], ModelCall | None]) -> Callable[..., Any]:
    """Hook of one layer of a mixed batch: runs it once more with other weights for the rows of each kind of image."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if (now := call()) is None:
            return None
        out = output.clone()
        for kind, change in values.items():
            rows = now.rows_in(lambda row, kind=kind: row == kind, args[0])  # type: ignore[misc]
            with swapped(module, change):
                out[rows] = module.forward(args[0][rows], *args[1:], **kwargs)
        return out

    return hook
