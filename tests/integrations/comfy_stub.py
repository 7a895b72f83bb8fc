"""Provides what the nodes use of ComfyUI: its folders, a model with noise levels, and its patcher."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tiny_models import scheduler


class FolderPaths(ModuleType):
    """ComfyUI's module ``folder_paths``."""

    def __init__(self, models_dir: Path) -> None:
        super().__init__("folder_paths")
        self.models_dir = str(models_dir)
        self.folder_names_and_paths: dict[str, tuple[list[str], set[str]]] = {}

    def add_model_folder_path(self, name: str, path: str) -> None:
        self.folder_names_and_paths.setdefault(name, ([], set()))[0].append(path)

    def _files(self, name: str) -> dict[str, Path]:
        folders, extensions = self.folder_names_and_paths[name]
        return {f.name: f for folder in folders for f in sorted(Path(folder).iterdir()) if f.suffix in extensions}

    def get_filename_list(self, name: str) -> list[str]:
        return list(self._files(name))

    def get_full_path(self, name: str, file: str) -> str | None:
        found = self._files(name).get(file)
        return None if found is None else str(found)


class Sampling:
    """Noise levels of Stable Diffusion: sigma of every timestep, and the timestep next to a sigma."""

    def __init__(self, last: int = 1000) -> None:
        kept = scheduler().alphas_cumprod[:last]
        self.sigmas = ((1 - kept) / kept).sqrt()
        self.sigma_max = self.sigmas[-1]

    def timestep(self, sigma: Tensor) -> Tensor:
        return (sigma.reshape(-1, 1).log() - self.sigmas.log()).abs().argmin(1).view(sigma.shape)


class OldPatcher:
    """A ``ModelPatcher`` that has no patch behind the middle block."""

    def __init__(self, channels: int = 64, sampling: Any = None, **changes: Any) -> None:
        config = {"model_channels": channels // 2, "channel_mult": (1, 2)}
        unet = SimpleNamespace(middle_block=object())
        model = {"diffusion_model": unet, "model_config": SimpleNamespace(unet_config=config), "model_sampling": sampling or Sampling()}
        self.model = SimpleNamespace(**{**model, **changes})
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> Any:
        out = copy.copy(self)
        out.model_options = copy.deepcopy(self.model_options)
        return out

    def get_model_object(self, name: str) -> Any:
        return getattr(self.model, name)

    def set_model_patch(self, patch: Callable[..., Any], name: str) -> None:
        self.model_options["transformer_options"].setdefault("patches", {}).setdefault(name, []).append(patch)

    def set_model_output_block_patch(self, patch: Callable[..., Any]) -> None:
        self.set_model_patch(patch, "output_block_patch")

    def decoded(self, h: Tensor, cond_or_uncond: list[int], sigmas: Tensor) -> Tensor:
        """What the output blocks receive of h, the output of the middle block, in a step of the sampler."""
        options = {**self.model_options["transformer_options"], "cond_or_uncond": cond_or_uncond, "sigmas": sigmas}
        patches = options.get("patches", {})
        for patch in patches.get("middle_block_after_patch", []):
            h = patch({"h": h, "x": None, "timesteps": None, "transformer_options": options})["h"]
        for block in (0, 1):
            options["block"] = ("output", block)
            for patch in patches.get("output_block_patch", []):
                h, _ = patch(h, torch.zeros_like(h), options)
        return h


class Patcher(OldPatcher):
    """A ``ModelPatcher`` of today."""

    def set_model_middle_block_after_patch(self, patch: Callable[..., Any]) -> None:
        self.set_model_patch(patch, "middle_block_after_patch")
