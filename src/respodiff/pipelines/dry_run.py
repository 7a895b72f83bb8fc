"""Says what a model would take, from its configurations alone: no weight is read, and no memory is used for any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from respodiff._device import AUTO
from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.loading import check_folder, find, first_line
from respodiff.pipelines.registry import site_of, spec_of
from respodiff.pipelines.source import DTYPES, check_name


@dataclass(frozen=True)
class Part:
    """A component with weights: its name, class, numbers, and bytes in the dtype that was asked for."""

    name: str
    cls: str
    numbers: int
    bytes: int


def dry_run(source: str | Path, dtype: str = AUTO, config: str = "", **more: Any) -> dict[str, Any]:
    """What a pipeline would be: class, site, shape of a module, its parts, and the bytes of all of them.

    Args:
        dtype: of the weights in memory; auto is bfloat16. config, more: as `respodiff.pipelines.loading.load_pipeline` takes them.

    Raises:
        ValueError: as `load_pipeline`, and for a configuration that its class cannot be built from.
    """
    check_name("dtype", dtype, DTYPES)
    number = getattr(torch, "bfloat16" if dtype == AUTO else dtype)
    place, more = find(source, config, more)
    pipe = object.__new__(place.cls)  # a shell: `spec_of` looks at the class alone, `site_of` at the model
    spec, parts = spec_of(pipe), []
    if place.kind == "folder":
        check_folder(place.path, place.index, more.get("variant") or "")
    elif more.get("variant"):
        raise ValueError(f"variant is {more['variant']!r}, which can be looked for in a folder alone; leave it out of a dry run")
    where = {k: v for k, v in more.items() if k in ("revision", "local_files_only", "cache_dir", "token")}
    for name, (library, cls) in _classes(place.index).items():
        try:
            model = _on_meta(place.name if place.kind != "file" else place.config, name, library, cls, where)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"part {name!r} of model {str(source)!r} cannot be built from its configuration: {first_line(error)}"
            ) from error
        if model is not None:
            numbers = sum(p.numel() for p in model.parameters())
            parts.append(Part(name, cls, numbers, numbers * number.itemsize))
            vars(pipe)[name] = model
    site = site_of(pipe)
    return {
        "supported": True,
        "pipeline": place.cls.__name__,
        "site": str(site),
        "shape": list(site_shape(vars(pipe)[spec.model], site=site)),
        "dtype": str(number).removeprefix("torch."),
        "parts": [asdict(part) for part in parts],
        "bytes": sum(part.bytes for part in parts),
        "checks": {},
    }


def skeleton(source: str | Path) -> Any:
    """A pipeline that has its class, name and steered model alone, which takes no memory for weights. ValueError as `dry_run`."""
    place, more = find(source, "", {})
    pipe = object.__new__(place.cls)
    name = spec_of(pipe).model
    with place.readable():
        vars(pipe)[name] = _on_meta(place.name, name, *_classes(place.index)[name], more)
    pipe.register_to_config(_name_or_path=place.name)
    return pipe


def _classes(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Component -> (library, class), for those that a model_index.json names."""
    return {name: (value[0], value[1]) for name, value in index.items() if isinstance(value, list) and value[0] and value[1]}


def _on_meta(source: str, name: str, library: str, cls: str, where: Mapping[str, Any]) -> Any:
    """The component without memory for its weights; None for one that has none, such as a tokenizer."""
    kind = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), cls, None)
    if kind is None or not issubclass(kind, torch.nn.Module):
        return None
    with torch.device("meta"):
        if library == "diffusers":
            return kind.from_config(kind.load_config(source, subfolder=name, **where))
        return kind._from_config(kind.config_class.from_pretrained(source, subfolder=name, **where))
