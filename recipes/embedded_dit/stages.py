"""The stages: data, transformer, assemble, card. What is the same as in the recipe of the embedded model is taken from there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import PixArtSigmaPipeline

from recipes.embedded_dit.transformer import FlowTask, flops, make_scheduler, make_transformer, padded
from recipes.embedded_model import assemble, models, settings
from recipes.embedded_model.install import check
from recipes.embedded_model.loop import say
from recipes.embedded_model.settings import check_keys, merged
from recipes.embedded_model.stages import Recipe
from respodiff.evaluation.judges import EMBEDDED

HERE = Path(__file__).parent
OWN = HERE / "config.toml"
STAGES = ("data", "transformer", "assemble", "card")
KEYS = {
    "model": ("width", "layers", "heads", "patch"),
    "train": ("steps", "batch", "lr", "warmup", "ema", "fast"),
    "card": ("images", "steps", "guidance"),
}


def read_config(path: Path = OWN, miniature: bool = False) -> dict[str, Any]:
    """The settings of both recipes as one.

    Raises:
        ValueError: the file cannot be read, or has a table, key or budget that it must not have.
    """
    own, world = settings.read_config(path, OWN, _check), settings.read_config()
    small = {"own": own.pop("miniature"), "world": world.pop("miniature")}
    if miniature:
        own, world = merged(own, small["own"]), merged(world, small["world"])
    return merged(world, {"models": {"transformer": own["model"]}, "train": {"transformer": own["train"]}, "card": own["card"]})


def _check(config: dict[str, Any]) -> None:
    check_keys("top", config, (*KEYS, "miniature"), (*KEYS, "miniature"))
    check_keys("miniature", config["miniature"], KEYS)
    for name, keys in KEYS.items():
        check_keys(name, config[name], keys, keys)
        check_keys(f"miniature.{name}", config["miniature"].get(name, {}), keys)
    for name, keys in {"model": KEYS["model"], "train": ("steps", "batch", "warmup")}.items():
        for table in (config[name], config[name] | config["miniature"].get(name, {})):
            if wrong := [key for key in keys if not isinstance(table[key], int) or table[key] < 1]:
                raise ValueError(f"[{name}] has {wrong[0]} {table[wrong[0]]!r}; allowed: whole numbers above 0")


@dataclass
class TransformerRecipe(Recipe):
    """One run of the recipe; ``base`` is the ``pipeline`` of a folder of weights, whose other parts are beside it."""

    card_text: ClassVar[Path] = HERE / "card.md"

    def _network(self, name: str) -> torch.nn.Module:
        """The transformer, untrained but always the same; or the autoencoder of the base."""
        assert self.base
        if name == "autoencoder":
            return models.load_part(self.base, "vae").to(self.device)  # type: ignore[no-any-return]
        torch.manual_seed(self.config["seed"])
        latent, text = (models.load_part(self.base, part).config for part in ("vae", "text_encoder"))
        made: torch.nn.Module = make_transformer(latent.latent_channels, text.hidden_size, **self.config["models"]["transformer"])
        return made.to(self.device)

    def stage_transformer(self) -> None:
        """The transformer alone: autoencoder and text encoder stay as they are."""
        if self._part("transformer").is_file():
            return
        assert self.base
        network: Any = self._network("transformer")
        text, c = models.load_part(self.base, "text_encoder").to(self.device), self.config["train"]["transformer"]
        images = c["steps"] * c["batch"]
        say(
            f"transformer: {network.num_parameters():,} numbers; {c['steps']:,} steps of {c['batch']:,} are {images:,} images and "
            f"{images * flops(network, text):.2g} floating-point operations; how long they take is said after the warm-up"
        )
        self.stage_autoencoder()
        self._train("transformer", network, FlowTask(network, text, self.tokenizer, *self._pairs(), c["batch"], c["fast"]))

    def stage_assemble(self) -> None:
        """A folder of weights as the package ships them: the pipeline, and beside it the judges and images of the base."""
        assert self.base
        weights, load = self.out / "weights", models.load_part
        weights.mkdir(parents=True, exist_ok=True)
        pipe = PixArtSigmaPipeline(
            tokenizer=self.tokenizer,
            text_encoder=padded(load(self.base, "text_encoder")),
            vae=load(self.base, "vae"),
            transformer=self._ready("transformer"),
            scheduler=make_scheduler(),
        )
        assemble.save_half(pipe, weights / "pipeline")
        for part in (*EMBEDDED.values(), "pictures"):
            shutil.copytree(self.base.parent / part, weights / part, dirs_exist_ok=True)
        assemble.write_world(self.world, weights)
        say(f"assemble: weights {check(weights)} draw")
