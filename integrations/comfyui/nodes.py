"""Provides the nodes: load a module file, choose a concept for each image of a batch, steer a model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import folder_paths
from torch import Tensor

from .module_file import TIMESTEPS, Module, read_module
from .patch import drawn, make_patch

FOLDER = "respodiff"
MODULE = "RESPODIFF_MODULE"
"""Type of sockets: a tuple of modules, one for all images or one per image."""
MOST_CONCEPTS = 6

folder_paths.add_model_folder_path(FOLDER, str(Path(folder_paths.models_dir) / FOLDER))
folder_paths.folder_names_and_paths[FOLDER][1].add(".safetensors")


class RespoDiffLoader:
    """Reads a module file of the folder models/respodiff/."""

    CATEGORY = "respodiff"
    FUNCTION = "load"
    RETURN_TYPES = (MODULE,)
    RETURN_NAMES = ("module",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"file": (folder_paths.get_filename_list(FOLDER),)}}

    @classmethod
    def IS_CHANGED(cls, file: str) -> str:
        """ComfyUI reads the file again when this changes."""
        found = _path(file).stat()
        return f"{found.st_mtime_ns} {found.st_size}"

    def load(self, file: str) -> tuple[tuple[Module, ...]]:
        module = read_module(_path(file))
        logging.info(f"respodiff: module {module.name!r} was trained on {module.base_model or 'an unnamed model'}")
        return ((module,),)


class RespoDiffConceptSchedule:
    """Gives each image of a batch one of several modules, and says which."""

    CATEGORY = "respodiff"
    FUNCTION = "schedule"
    RETURN_TYPES = (MODULE, "STRING")
    RETURN_NAMES = ("module", "concepts")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "latent": ("LATENT", {"tooltip": "the latent that is sampled; it says how many images there are"}),
                "module_1": (MODULE,),
                "proportions": ("STRING", {"default": "1, 1", "tooltip": "a number per connected module"}),
                "draw": (["exact", "random"], {"tooltip": "exact: counts within one image of their share; random: each image on its own"}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**64 - 1}),
            },
            "optional": {f"module_{i}": (MODULE,) for i in range(2, MOST_CONCEPTS + 1)},
        }

    def schedule(
        self, latent: dict[str, Tensor], module_1: tuple[Module, ...], proportions: str, draw: str, seed: int, **more: tuple[Module, ...]
    ) -> tuple[tuple[Module, ...], str]:
        given = [module_1, *(more[name] for name in sorted(more) if more[name] is not None)]
        if any(len(modules) != 1 for modules in given):
            raise ValueError("a module of RespoDiffConceptSchedule is itself a schedule; connect RespoDiffLoader nodes")
        try:
            shares = [float(part) for part in proportions.split(",")]
        except ValueError as error:
            raise ValueError(f"proportions is {proportions!r}; allowed: numbers with commas between them, such as '1, 1'") from error
        if len(shares) != len(given):
            raise ValueError(
                f"proportions is {proportions!r}, {len(shares)} numbers for {len(given)} modules; give one per connected module"
            )
        chosen = tuple(given[i][0] for i in drawn(shares, len(latent["samples"]), draw, seed))
        return chosen, ", ".join(m.name for m in chosen)


class RespoDiffApply:
    """Adds scale * (r + s) to the output of the UNet's middle block, at the conditional rows alone. Several of these nodes add up."""

    CATEGORY = "respodiff"
    FUNCTION = "apply"
    RETURN_TYPES: ClassVar[tuple[str, ...]] = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        time = {"min": TIMESTEPS[0], "max": TIMESTEPS[1]}
        return {
            "required": {
                "model": ("MODEL",),
                "module": (MODULE,),
                "scale": ("FLOAT", {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05, "tooltip": "1 is as trained, 0 does nothing"}),
                "start": ("INT", {"default": TIMESTEPS[1], **time, "tooltip": "acts at timesteps below it; 999 is the noisiest"}),
                "end": ("INT", {"default": TIMESTEPS[0], **time, "tooltip": "acts at this timestep and above it"}),
            }
        }

    def apply(self, model: Any, module: tuple[Module, ...], scale: float, start: int, end: int) -> tuple[Any]:
        _check_model(model, module[0])
        sampling = model.get_model_object("model_sampling")
        windowed = (end, start) != TIMESTEPS or any(m.timesteps != TIMESTEPS for m in module)
        if windowed and round(float(sampling.timestep(sampling.sigma_max))) != TIMESTEPS[1] - 1:
            raise ValueError(
                f"model_sampling is {type(sampling).__name__}, whose timesteps are not 0 to 999; "
                "use start 1000, end 0 and modules without a window"
            )
        patch = make_patch(module, scale, (end, start), sampling.timestep)

        def shifted(h: Tensor, options: dict[str, Any]) -> Tensor:
            return patch(h, options.get("cond_or_uncond", ()), options["sigmas"])

        def after_middle(args: dict[str, Any]) -> dict[str, Any]:
            return {**args, "h": shifted(args["h"], args["transformer_options"])}

        def first_output(h: Tensor, skip: Tensor, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
            return shifted(h, options) if options["block"] == ("output", 0) else h, skip

        steered = model.clone()
        if hasattr(steered, "set_model_middle_block_after_patch"):
            steered.set_model_middle_block_after_patch(after_middle)
        else:  # older ComfyUI has none; its first output block receives the same h
            steered.set_model_output_block_patch(first_output)
        return (steered,)


def _check_model(model: Any, module: Module) -> None:
    """ValueError for a model that is no UNet for images with a middle block, or has other channels than the module."""
    config = getattr(getattr(model.model, "model_config", None), "unet_config", None) or {}
    unet = getattr(model.model, "diffusion_model", None)
    if getattr(unet, "middle_block", None) is None or "channel_mult" not in config or config.get("use_temporal_resblock"):
        raise ValueError(
            f"model is {type(model.model).__name__} with {type(unet).__name__}; allowed: a UNet with a middle block "
            "(Stable Diffusion 1.x, 2.x, XL)"
        )
    channels = config["model_channels"] * config["channel_mult"][-1]
    if len(module.ram) != channels:
        raise ValueError(
            f"module {module.name!r} has {len(module.ram)} channels, the middle block of this model {channels}; "
            f"it was trained on {module.base_model!r}: train one for this model"
        )


def _path(file: str) -> Path:
    found = folder_paths.get_full_path(FOLDER, file)
    if found is None:
        raise ValueError(f"file {file!r} is not in the folder models/{FOLDER}; choose one of the list")
    return Path(found)


NODE_CLASS_MAPPINGS = {cls.__name__: cls for cls in (RespoDiffLoader, RespoDiffConceptSchedule, RespoDiffApply)}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RespoDiffLoader": "Load RespoDiff Module",
    "RespoDiffConceptSchedule": "RespoDiff Concept Schedule",
    "RespoDiffApply": "Apply RespoDiff Module",
}
