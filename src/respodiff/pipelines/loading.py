"""Loads diffusers pipelines. What is known of each class is in `respodiff.pipelines.registry`, digests in `respodiff.pipelines.identity`."""

from __future__ import annotations

import json
import math
import re
import shlex
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from packaging.version import Version
from safetensors import SafetensorError, safe_open

from respodiff._bars import without_bars
from respodiff._device import AUTO, chosen_device
from respodiff.pipelines.missing_weights import no_missing_weights
from respodiff.pipelines.quantization import check_quantization, quantization_config, quantize_pipeline
from respodiff.pipelines.registry import PIPELINES, Unsupported, backbone, spec_of
from respodiff.pipelines.schedulers import check_scheduler, use_scheduler
from respodiff.pipelines.source import DTYPES, OFFLOADS, QUANTIZATIONS, check_name, lora_weight

EMBEDDED_SAMPLING = (8, 3.0)
"""Steps and guidance scale of the embedded model."""


def embedded_dir(part: str) -> Path:
    """Folder of the shipped ``pipeline`` or ``judge``, or the file ``world.json``."""
    return Path(str(files("respodiff"))) / "embedded" / part


def load_pipeline(
    source: str | Path = "embedded",
    *,
    device: str = "cpu",
    torch_dtype: torch.dtype | str = torch.float32,
    scheduler: str = "",
    safety_checker: bool = True,
    config: str | Path = "",
    offload: str = "none",
    quantize: str = "",
    lora: Sequence[str] = (),
    gradient_checkpointing: bool = False,
    trains: bool = False,
    **more: Any,
) -> Any:
    """A plain diffusers pipeline from ``"embedded"``, a local folder (never touches the network), a single file, or a hub id.

    Args:
        source: a hub id may have ``@REVISION`` behind it. A single file is a ``.safetensors`` checkpoint as A1111 and ComfyUI read it.
        device: cpu, cuda, cuda:1, mps, or auto, the best one that is here. With ``device_map`` diffusers places the model.
        torch_dtype: also called ``dtype``. auto: what the files of the steered model hold (float16 as float32 if ``trains``); on the CPU, and
            for the embedded model, float32.
        scheduler: one of `respodiff.pipelines.schedulers.SCHEDULERS`; empty for the pipeline's own.
        safety_checker: whether one that the pipeline has stays on. It blacks images out, which cannot be measured then.
        config: for a single file: diffusers folder or hub id of the same base, of which class, configurations and tokenizers are read, and no
            weights. Empty for the one that diffusers takes for such a file, from the hub or its cache.
        offload: ``model``, ``sequential`` or ``group``: weights wait on the CPU until they are needed. ``group`` works on every device
            (from diffusers 0.41 on).
        quantize: ``nf4`` or ``int8``: linear layers of the steered model, and of a T5, by bitsandbytes; on the CPU or a CUDA GPU.
        lora: LoRAs that stay beside the weights, each a file, folder or hub id, with ``:WEIGHT`` behind it if that is not 1.
        gradient_checkpointing: whether training computes activations again instead of keeping them.
        trains: whether it is to be trained on.
        more: goes to ``DiffusionPipeline.from_pretrained`` as it is: variant, revision, device_map, quantization_config, components, ...

    Raises:
        ValueError: it cannot be had, is of a class that steering does not support, or cannot take an argument. What file names and
            model_index.json tell is told before weights are read.
    """
    check_scheduler(scheduler)
    check_name("offload", offload, OFFLOADS)
    check_name("quantize", quantize, ("", *QUANTIZATIONS))
    device, torch_dtype = chosen_device(device), more.pop("dtype", torch_dtype)
    if offload in NEED_ACCELERATOR and device == "cpu":
        allowed = " or ".join(way for way in OFFLOADS if way not in NEED_ACCELERATOR)
        raise ValueError(f"offload is {offload!r}, which needs an accelerator, and the device is cpu; take {allowed}")
    if quantize:
        check_quantization(quantize, device, more)
    place, more = find(source, str(config), more)
    spec = spec_of(object.__new__(place.cls))  # it looks at the class alone
    if not safety_checker and "safety_checker" in place.index:
        more = {"safety_checker": None} | ({"requires_safety_checker": False} if "requires_safety_checker" in place.index else {}) | more
    if place.kind == "folder":
        check_folder(place.path, place.index, str(more.get("variant") or ""), ready=set(more))
    if place.kind == "file" and (
        wrong := [k for k in ("variant", "revision", "device_map", "quantization_config") if more.get(k)] + [quantize] * bool(quantize)
    ):
        raise ValueError(
            f"{wrong[0]} is given, which a single file cannot take; make a folder of it once with save_pretrained, and give that"
        )
    with place.readable():
        if isinstance(torch_dtype, str):
            usual = device == "cpu" or str(source) == "embedded"
            torch_dtype = _dtype(torch_dtype, None if usual else partial(_stored_dtype, place, spec.model, more), trains)
        if quantize and device != "cpu":
            more = {"quantization_config": quantization_config(quantize, torch_dtype, spec.model, place.index)} | more
        with without_bars(diffusers, *[transformers] * (place.kind != "hub")), no_missing_weights():  # bars of a download stay
            pipe = place.load(torch_dtype, **more)
    spec_of(pipe)
    if quantize and device == "cpu":
        quantize_pipeline(pipe, quantize, torch_dtype, place.index)
    if scheduler:
        use_scheduler(pipe, scheduler)
    pipe.set_progress_bar_config(disable=True)
    _add_loras(pipe, lora)
    if gradient_checkpointing:
        backbone(pipe).enable_gradient_checkpointing()
    return pipe if more.get("device_map") else _placed(pipe, device, offload)


@dataclass(frozen=True)
class _Place:
    """Where a model is: a folder, a single file, or a name of the hub; and what its model_index.json, or that of ``config``, holds."""

    given: str
    kind: Literal["folder", "file", "hub"]
    name: str
    config: str
    index: Mapping[str, Any]

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def cls(self) -> Any:
        """The pipeline's class in diffusers; `Unsupported` for one that it has not."""
        name = self.index.get("_class_name")
        cls = getattr(diffusers, name, None) if isinstance(name, str) else None
        if cls is None:
            raise Unsupported(
                f"pipeline {name} is not in diffusers {diffusers.__version__} (model_index.json of {self.given}); supported: {', '.join(PIPELINES)}"
            )
        if not issubclass(cls, DiffusionPipeline):
            raise Unsupported(f"pipeline {name} {MODULAR}")
        return cls

    def load(self, dtype: torch.dtype, **more: Any) -> Any:
        more[DTYPE] = dtype
        if self.kind != "file":
            return DiffusionPipeline.from_pretrained(self.name, **{"use_safetensors": True} | more)
        pipe = self.cls.from_single_file(self.name, config=self.config, local_files_only=Path(self.config).is_dir(), **more)
        pipe.register_to_config(_name_or_path=self.name)
        return pipe

    def readable(self) -> AbstractContextManager[None]:
        return _readable(self.given + ", which is no folder here," * (self.kind == "hub"))


def first_line(error: Exception) -> str:
    return shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 200, placeholder=" ...")


@contextmanager
def _readable(given: str) -> Iterator[None]:
    """Makes one line of what libraries say of a model that they cannot read."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, AttributeError, ImportError, KeyError, RuntimeError) as error:
        reason = first_line(error)
        raise ValueError(f"model {given} cannot be loaded: {reason} - give 'embedded', {SOURCES} (needs network)") from error


MODULAR = "is made of blocks, which are not loaded here; load it with diffusers.ModularPipeline, and draw inside of steer()"
SOURCES = "a folder with model_index.json, a .safetensors file, or a hub id"
SINGLE = ".safetensors"
DTYPE = "dtype" if Version(diffusers.__version__) >= Version("0.40") else "torch_dtype"
"""What diffusers calls it."""
NEED_ACCELERATOR = ("model", "sequential") if Version(diffusers.__version__) >= Version("0.41") else ("model", "sequential", "group")
"""Ways of offloading that fail on a machine without an accelerator."""
HUB = ("revision", "cache_dir", "token", "proxies", "force_download", "local_files_only")
"""Arguments of `DiffusionPipeline.from_pretrained` that say where files come from."""


def find(source: str | Path, config: str, more: Mapping[str, Any]) -> tuple[_Place, dict[str, Any]]:
    """The place of a model, and the arguments that it adds to ``more``; ValueError for one that does not exist or cannot be read."""
    path = embedded_dir("pipeline") if str(source) == "embedded" else Path(source).expanduser()
    given, more = repr(str(source)), dict(more)
    if path.is_file() or path.suffix == SINGLE:
        if not path.is_file():
            raise ValueError(f"model file {given} does not exist; give {SOURCES}")
        if path.suffix != SINGLE:
            raise ValueError(f"model {given} is a file that is no {SINGLE}, and pickles are never executed; give {SOURCES}")
        try:
            config = config or _base_of(path)
            return _Place(given, "file", str(path.resolve()), config, _index(config, {})), more
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise ValueError(
                f"model {given} is a single file and needs the configurations of its base, {config or 'of a known kind'}, which cannot be read "
                f"({first_line(error)}); give config (--model-config), a diffusers folder or hub id of the same base"
            ) from error
    if config:
        raise ValueError(f"config is {config!r}, and model {given} is no single file: it has its own; leave config out")
    if path.is_dir():
        if more.get("revision"):
            raise ValueError(f"revision is {more['revision']!r}, and model {given} is a folder, which has none; leave it out")
        return _Place(given, "folder", str(path), "", _index_of_folder(path)), {"local_files_only": True} | more
    name, _, revision = str(source).partition("@")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise ValueError(f"model folder {given} does not exist; give 'embedded', {SOURCES} OWNER/NAME")
    more = ({"revision": revision} if revision else {}) | more
    with _readable(f"{given}, which is no folder here,"):
        return _Place(given, "hub", name, "", _index(name, more)), more


def _index(name: str, more: Mapping[str, Any]) -> dict[str, Any]:
    """What the model_index.json of a folder or of the hub holds; the latter fetches this file alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers hands it to a newer hub
        found: dict[str, Any] = DiffusionPipeline.load_config(name, **{k: more[k] for k in HUB if k in more})
    return found


def _index_of_folder(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = dict(json.loads((folder / "model_index.json").read_text(encoding="utf-8")).items())
    except FileNotFoundError:
        if (folder / "modular_model_index.json").is_file():
            raise Unsupported(f"model folder {str(folder)!r} {MODULAR}") from None
        raise ValueError(f"model folder {str(folder)!r} has no model_index.json; give the folder that a pipeline was saved in") from None
    except (ValueError, AttributeError) as error:
        raise ValueError(f"model folder {str(folder)!r} has a broken model_index.json ({error}); copy it again") from error
    return found


def _base_of(file: Path) -> str:
    """Hub id of the configuration that diffusers takes for a single file, by the names and shapes of its tensors."""
    from diffusers.loaders.single_file_utils import fetch_diffusers_config
    from safetensors.torch import load_file

    return str(fetch_diffusers_config(load_file(file))["pretrained_model_name_or_path"])  # mapped, so that no weight is read


def _variant(file: str) -> str:
    """Variant of a file of weights: "fp16" of ``model.fp16.safetensors``; empty without one."""
    parts = file.split(".")
    return re.sub(r"-\d+-of-\d+$", "", parts[1]) if len(parts) > 2 else ""


def check_folder(folder: Path, index: Mapping[str, Any], variant: str = "", ready: Set[str] = frozenset()) -> None:
    """ValueError for a diffusers folder that lacks a part, has weights as pickles alone, or not as the variant that is asked for.

    ``index`` is what its model_index.json holds; parts in ``ready`` are not looked for.
    """
    has, variants = f"model folder {str(folder)!r} has", set[str]()
    for name in (k for k, v in index.items() if isinstance(v, list) and v[0] is not None and k not in ready):
        files = [file.name for file in (folder / name).glob("*")]
        weights = [file for file in files if re.fullmatch(r"((diffusion_)?pytorch_)?model.*\.(safetensors|bin)", file)]
        readable = [file for file in weights if file.endswith(".safetensors")]
        if not files:
            raise ValueError(f"{has} no {name!r}, which its model_index.json names; copy it again")
        if weights and not readable:
            one = f", variant={found!r}" if (found := _variant(weights[0])) else ""
            code = f"import sys; from diffusers import DiffusionPipeline as P; P.from_pretrained(sys.argv[1]{one}).save_pretrained(sys.argv[1] + '-safe')"
            raise ValueError(
                f"{has} {name!r} as a pickle ({weights[0]}), which is never read here; if you trust it, convert it: "
                f"python -c {code!r} {shlex.quote(str(folder))}"
            )
        own = {_variant(file) for file in readable}
        variants |= own - {""}
        if readable and not own & {"", variant}:
            found = min(own)
            raise ValueError(f"{has} {name!r} as the variant {found!r} alone; give variant={found!r} (--variant {found})")
    if variant and variant not in variants:
        raise ValueError(f"variant is {variant!r}, which {str(folder)!r} has not; its variants: {', '.join(sorted(variants)) or 'none'}")


def _dtype(name: str, stored: Callable[[], torch.dtype] | None, trains: bool) -> torch.dtype:
    """The dtype of a name; of auto float32, or what is ``stored``, which float16 is not if it is to be trained on."""
    check_name("torch_dtype", name, DTYPES)
    if name != AUTO:
        return getattr(torch, name)  # type: ignore[no-any-return]
    found = stored() if stored else torch.float32
    return torch.float32 if trains and found == torch.float16 else found


def _stored_dtype(place: _Place, part: str, more: dict[str, Any]) -> torch.dtype:
    """The dtype of most numbers in a file of the steered model's weights, from its header; float32 for one that models do not run in."""
    file = place.path
    if place.kind != "file":
        folder = Path(place.name if place.kind == "folder" else DiffusionPipeline.download(place.name, **{"use_safetensors": True} | more))
        files = sorted(file for file in (folder / part).glob("*.safetensors"))
        if not files:  # the caller brings the part
            return torch.float32
        file = next((f for f in files if _variant(f.name) == (more.get("variant") or "")), files[0])
    sizes = Counter[str]()
    with safe_open(file, "np") as opened:
        for key in opened.keys():  # noqa: SIM118  (not a dict)
            part_of_it = opened.get_slice(key)
            sizes[part_of_it.get_dtype()] += math.prod(part_of_it.get_shape())
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get(max(sizes, key=lambda key: sizes[key]), torch.float32)


def _add_loras(pipe: Any, given: Sequence[str]) -> None:
    """LoRAs beside the weights, at their weights. ValueError for one that cannot be had."""
    if given and not find_spec("peft"):
        raise ValueError(f"lora is {given[0]!r}, which needs peft: pip install 'respodiff[lora]'")
    weights: dict[str, float] = {}
    for number, (source, weight) in enumerate(map(lora_weight, given)):
        path, name = Path(source).expanduser(), f"lora{number}"
        where = {"weight_name": path.name, "local_files_only": True} if path.is_file() else {}
        try:
            pipe.load_lora_weights(
                str(path.parent if where else path if path.is_dir() else source), adapter_name=name, use_safetensors=True, **where
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            reason = first_line(error)
            raise ValueError(f"lora {source!r} cannot be loaded: {reason} - give a .safetensors file, its folder, or a hub id") from error
        weights[name] = weight
    if weights:
        pipe.set_adapters([*weights], [*weights.values()])


def _placed(pipe: Any, device: str, offload: str) -> Any:
    """The pipeline on a device, or offloaded to the CPU until a part is needed there."""
    if device == "cpu" and spec_of(pipe).model == "unet":
        _channels_last(backbone(pipe))
    if offload == "none":
        return pipe.to(device)
    if offload == "group":
        pipe.enable_group_offload(onload_device=torch.device(device), offload_type="leaf_level")
    else:
        (pipe.enable_model_cpu_offload if offload == "model" else pipe.enable_sequential_cpu_offload)(device=device)
    return pipe


def _channels_last(model: torch.nn.Module) -> None:
    """Same values, other strides: convolutions on the CPU are about 1.4 times as fast.

    They are written where the old ones were. Weights are pages of a mapped file, of which a copy beside them would keep all in memory.
    """
    for p in model.parameters():
        if p.ndim == 4 and p.is_contiguous():
            new = p.detach().contiguous(memory_format=torch.channels_last)
            p.data = p.detach().as_strided(new.shape, new.stride()).copy_(new)


def sampling_settings(pipe: Any, steps: int | None = None, guidance: float | None = None) -> tuple[int, float]:
    """(steps, guidance) as given, else the model's own, which for most models are those of the pipeline's class."""
    own = EMBEDDED_SAMPLING if model_name(pipe) == "embedded" else (spec_of(pipe).steps, spec_of(pipe).guidance)
    return own[0] if steps is None else steps, own[1] if guidance is None else guidance


def model_name(pipe: Any) -> str:
    """Where the pipeline was loaded from: "embedded", ``ID@COMMIT`` of the hub, or the last part of a folder's path."""
    source = str(getattr(pipe, "name_or_path", "") or pipe.config.get("_name_or_path", ""))
    if Path(source) == embedded_dir("pipeline"):
        return "embedded"
    if not source or Path(source).is_absolute() or Path(source).is_dir():
        return Path(source).resolve().name if source else ""
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})\b", str(backbone(pipe).config.get("_name_or_path", "")))
    return f"{source}@{commit[1]}" if commit else source
