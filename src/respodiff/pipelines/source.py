"""Provides the description of a model and of how it is loaded, as names that a worker or a command line can hold. It needs no PyTorch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from respodiff._device import AUTO, chosen_device

DTYPES = (AUTO, "bfloat16", "float16", "float32")
OFFLOADS = ("none", "model", "sequential", "group")
QUANTIZATIONS = ("nf4", "int8")


@dataclass(frozen=True)
class ModelSource:
    """A model that each process loads for itself: arguments as `respodiff.pipelines.loading.load_pipeline` takes them, by name.

    Attributes:
        source: ``embedded``, a folder, a ``.safetensors`` file or a hub id. config: for such a file, see `load_pipeline`.
        device: cpu, cuda, cuda:1, mps, or auto. dtype: one of `DTYPES`.
        variant, revision: of a folder's or the hub's files; empty for the usual ones.
        offload: one of `OFFLOADS`. quantize: one of `QUANTIZATIONS`, or empty.
        lora: LoRAs that stay beside the weights, each a file, folder or hub id, with ``:WEIGHT`` behind it if that is not 1.
        trains: whether it is to be trained on, which float16 is too coarse for: dtype auto then reads it as float32.
    """

    source: str
    device: str = "cpu"
    dtype: str = AUTO
    scheduler: str = ""
    safety_checker: bool = False
    config: str = ""
    variant: str = ""
    revision: str = ""
    offload: str = "none"
    quantize: str = ""
    lora: tuple[str, ...] = ()
    gradient_checkpointing: bool = False
    trains: bool = False

    def __post_init__(self) -> None:
        check_name("dtype", self.dtype, DTYPES)
        check_name("offload", self.offload, OFFLOADS)
        check_name("quantize", self.quantize, ("", *QUANTIZATIONS))
        for text in self.lora:
            lora_weight(text)

    def load(self) -> Any:
        """The pipeline. Raises as `respodiff.pipelines.loading.load_pipeline`."""
        from respodiff.pipelines.loading import load_pipeline

        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("source", "device", "dtype")}
        given = {k: v for k, v in given.items() if v or k not in ("variant", "revision")}  # which go to diffusers as they are
        return load_pipeline(self.source, device=chosen_device(self.device), torch_dtype=self.dtype, **given)

    def changed(self) -> dict[str, Any]:
        """What is not as by default, but for source, device and what is said of the sampler: flags that a command must repeat."""
        usual = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        left_out = ("source", "device", "scheduler", "safety_checker", "trains", "gradient_checkpointing")
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        return {name: list(value) if name == "lora" else value for name, value in found.items() if value != usual[name]}


def check_name(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError for a name that is not allowed."""
    if value not in allowed:
        raise ValueError(f"{argument} is {value!r}; allowed: {', '.join(filter(None, allowed))}")


def lora_weight(text: str) -> tuple[str, float]:
    """(LoRA, weight) of ``ID[:WEIGHT]``; ValueError for a weight that is not from -10 to 10."""
    name, colon, weight = text.rpartition(":")
    if not colon or "/" in weight or "\\" in weight:  # the colon of a drive is no weight's
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        value = float("nan")
    if not -10 <= value <= 10 or not name:
        raise ValueError(f"lora is {text!r}; allowed: a file, folder or hub id, with a weight from -10 to 10 behind a colon")
    return name, value
