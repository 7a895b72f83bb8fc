"""Provides the checkpoint file beside a module file, with which a stopped training continues."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.places import check_out, new_file

SAVE_EVERY = 15.0
"""Seconds between saves of a checkpoint."""

ADDED = ("pipeline", "lora", "judge")
"""What files of earlier versions do not say."""


class Checkpoint:
    """The state of one training run in the hidden file ``.NAME.unfinished`` beside the module file ``out``.

    It is read by a run of the same concept or attribute, settings, model with its LoRAs, dtype, method and judge alone.
    """

    def __init__(self, out: Path, concept: Concept | Attribute, config: Any, pipe: Any, method: str = "respodiff", judge: str = "") -> None:
        from respodiff.pipelines.identity import config_digest, lora_digest, pipeline_digest, precision, weights_digest
        from respodiff.pipelines.loading import model_name
        from respodiff.pipelines.registry import backbone

        self.out, self.path, self.method, model = out, out.with_name(f".{out.name}.unfinished"), method, backbone(pipe)
        about = {"concept": asdict(concept), "config": asdict(config), "model": weights_digest(model), "dtype": f"torch.{precision(model)}"}
        self.about = json.dumps(
            {**about, "method": method, "pipeline": pipeline_digest(pipe), "lora": lora_digest(model), "judge": judge}, sort_keys=True
        )
        unknown = not about["model"]  # of bfloat16 and quantised weights a module knows the name and the configuration
        self.base = {"base_model": model_name(pipe), "base_digest": config_digest(model)} if unknown else {}

    def read(self) -> dict[str, Any]:
        """Tensors of an earlier run, none if there is no file. ValueError for a file of another run, or a damaged one."""
        from safetensors import SafetensorError, safe_open

        if not self.path.is_file():
            return {}
        try:
            with safe_open(self.path, "pt") as file:
                about = (file.metadata() or {}).get("about")
                tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (not a dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"--resume: {str(self.path)!r} cannot be read ({error}); delete it and train again") from error
        held, wanted = json.loads(about or "{}"), json.loads(self.about)
        if any(held.get(key, value if key in ADDED else None) != value for key, value in wanted.items()):
            raise ValueError(f"--resume: {str(self.path)!r} is of another concept, model or settings; give those, or leave --resume out")
        return tensors

    def check_out(self, resume: bool, force: bool = False) -> None:
        """ValueError if the module file holds something that this run would not make again, unless it is to be replaced."""
        from respodiff.steering.serialization import read_header

        check_out(self.out, read_header, force=force)
        if force or not self.out.is_file() or (resume and self.path.is_file()):
            return
        about, file = json.loads(self.about), f"--out: {str(self.out)!r}"
        wanted = {"concept": about["concept"]["name"], "train": about["config"], "base_weights": about["model"], "method": self.method}
        wanted |= {k: about["concept"][k] for k in ("target", "neutral", "negative")} | self.base
        held = read_header(self.out)
        if held.kind == "attribute":
            wanted["concept"] = about["concept"]["attribute"] or about["concept"]["name"]
        if other := [k for k, v in wanted.items() if json.loads(json.dumps(getattr(held, k))) != v]:
            names = ", ".join(other).replace("train", "settings")
            raise ValueError(
                f"{file} holds the adapter {held.concept!r} with other {names}; choose another file, or replace it with --force"
            )

    def start(self, resume: bool) -> dict[str, Any]:
        """Tensors to go on from, none for a new run."""
        if not resume and self.path.is_file():
            text = "holds a checkpoint, which --resume would go on with; it is replaced once this new one has progressed"
            warnings.warn(f"{str(self.path)!r} {text}", stacklevel=2)
        if resume and not self.path.is_file():
            warnings.warn(f"--resume: there is no checkpoint {str(self.path)!r}; training begins at the first iteration", stacklevel=2)
        return self.read() if resume else {}

    def write(self, tensors: dict[str, Any]) -> None:
        """Replaces the file at once."""
        from safetensors.torch import save as serialized

        with new_file(self.path, "checkpoint") as partial:
            partial.write_bytes(serialized(tensors, metadata={"about": self.about}))
