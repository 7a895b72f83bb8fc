"""The stages, each with its product on disk: what is there is not made again, what was interrupted goes on from its state."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from recipes.embedded_model import assemble, data, models
from recipes.embedded_model.autoencoder import AutoencoderTask, latents_of, psnr
from recipes.embedded_model.card import TEXT, measure, write_card
from recipes.embedded_model.checks import check_judge
from recipes.embedded_model.denoiser import DenoiserTask
from recipes.embedded_model.judge import JudgeTask, at_size, held_out, with_scaffold
from recipes.embedded_model.loop import Loop, Update, rank, save_state, say
from recipes.embedded_model.parts import begin, digest_of, take, take_autoencoder
from recipes.embedded_model.settings import sources
from recipes.embedded_model.tokens import load_tokenizer, make_tokenizer
from recipes.embedded_model.world import Caption, World

JUDGES = ("judge", "judge-b")
TRAINED = ("autoencoder", "denoiser", "decoder", *JUDGES)
STAGES = ("data", *TRAINED, "assemble", "card")


@dataclass
class Recipe:
    """One run of the recipe.

    Attributes:
        config: as `settings.read_config`. out: where everything goes. minutes: wall-clock budget of the whole; 0 leaves the steps of the
            config alone. cache: fetched packages. images_from: a folder with ``labels.csv`` to take images from, instead of fetching.
        autoencoder_from: a file of weights to use, instead of training that stage. base: a pipeline's folder to go on from: its tokenizer, its
            autoencoder's latents and its denoiser. start: stage -> file of an earlier run's part that its
            training begins from.
    """

    config: dict[str, Any]
    out: Path
    minutes: float = 0.0
    device: str = "cpu"
    cache: Path = Path("runs/packages")
    images_from: Path | None = None
    autoencoder_from: Path | None = None
    base: Path | None = None
    start: dict[str, Path] = field(default_factory=dict)
    card_text: ClassVar[Path] = TEXT

    def run(self, wanted: tuple[str, ...] = STAGES) -> None:
        """Run the stages in order."""
        for name in wanted:
            began = time.perf_counter()
            getattr(self, "stage_" + name.replace("-", "_"))()
            say(f"{name}: ready after {time.perf_counter() - began:.0f} s")

    # ---------------------------------------------------------------- what stages share

    @cached_property
    def pack(self) -> tuple[list[data.Picture], torch.Tensor]:
        return data.read(self.out / "data")

    @cached_property
    def world(self) -> World:
        return World(self.pack[0], self.config["world"])

    @cached_property
    def captions(self) -> list[Caption]:
        return list(self.world.captions(self.config["world"]["captions"], self.config["seed"]))

    @cached_property
    def tokenizer(self) -> Any:
        folder = self.out / "data" / "tokenizer"
        if (folder / "merges.txt").is_file():
            return load_tokenizer(folder)
        if self.base:
            shutil.copytree(self.base / "tokenizer", folder)
            return load_tokenizer(folder)
        return make_tokenizer([c.text for c in self.captions[:100_000]], folder, self.config["models"]["tokens"])

    @cached_property
    def drawn(self) -> list[int]:
        """Images that captions draw, by their number in the pack."""
        return sorted({c.image for c in self.captions})

    @cached_property
    def flags(self) -> tuple[set[str], set[str]]:
        """Names of unsafe images and of safe places."""
        unsafe = [n for names in self.world.config["unsafe_pictures"].values() for n in names]
        return {data.clean(n) for n in unsafe}, {data.clean(n) for n in self.world.places}

    @cached_property
    def held(self) -> list[int]:
        """Images that the judges never see in training."""
        c = self.config["world"]
        always = frozenset(self.flags[0] | self.flags[1])
        return [i for i, p in enumerate(self.pack[0]) if held_out(p, always, c["held_out_of"])]

    def _train(self, name: str, network: torch.nn.Module, update: Update) -> torch.nn.Module:
        """Train a network or take it as it is on disk; its product is ``parts/NAME.safetensors``."""
        c = dict(self.config["train"][name])
        for key in ("batch", "fast", "skew"):
            c.pop(key, None)
        c.setdefault("seed", self.config["seed"])
        share, steps = c.pop("share", 0.0), c.pop("steps", 0)
        seconds = 60 * self.minutes * share
        if name == "denoiser" and self.base:
            for key, folder in (("unet", "unet"), ("text", "text_encoder")):
                network[key].load_state_dict(models.load_part(self.base, folder).state_dict())  # type: ignore[index]
        if name in self.start:
            begin(self.start[name], network, name, judge=name in JUDGES)
        loop = Loop(name, self.out / "state" / f"{name}.safetensors", seconds=seconds, steps=0 if seconds else steps, **c)
        loop.run(network, update)
        if not rank():
            save_state(self._part(name), network.state_dict())
        return network

    def _part(self, name: str) -> Path:
        return self.out / "parts" / f"{name}.safetensors"

    def _network(self, name: str) -> torch.nn.Module:
        """A network of the sizes in the config, untrained but always the same."""
        torch.manual_seed(self.config["train"][name].get("seed", self.config["seed"]))
        m = self.config["models"]
        if name in ("autoencoder", "decoder"):
            made: torch.nn.Module = models.make_autoencoder(m["autoencoder"]["widths"], m["autoencoder"]["latent"])
        elif name == "denoiser":
            unet = models.make_unet(m["unet"]["widths"], m["autoencoder"]["latent"], m["text"]["width"], m["unet"]["heads"])
            made = torch.nn.ModuleDict(
                {"unet": unet, "text": models.make_text_encoder(len(self.tokenizer), m["text"]["width"], m["text"]["layers"])}
            )
        else:
            made = with_scaffold(models.make_judge(len(self.tokenizer), m[name]), m[name]["projection"])
        placed: torch.nn.Module = made.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return placed

    def _ready(self, name: str) -> torch.nn.Module:
        """A finished network; ValueError if its stage has not run."""
        return take(self._part(name), self._network(name), name)

    # ---------------------------------------------------------------- the stages

    def stage_data(self) -> None:
        """Images with labels, and the tokenizer."""
        folder = self.out / "data"
        if not (folder / "pictures.json").is_file():
            self._images(folder)
        say(f"data: {len(self.captions)} captions, {len(self.tokenizer)} tokens, {len(self.held)} images held out from the judges")

    def _images(self, folder: Path) -> None:
        """The pack, and beside it a folder of images of a family that nothing is trained on."""
        if self.images_from:
            say(f"data: {data.from_table(self.images_from, folder, say)} images")
            return
        packages, readers = sources(self.config)
        unseen = {"unseen": readers.pop("unseen")}
        data.build(packages, unseen, self.cache, self.out / "state" / "unseen", say)
        found = data.read(self.out / "state" / "unseen")
        assemble.write_images(*found, range(len(found[0])), self.out / "unseen")
        say(f"data: {data.build(packages, readers, self.cache, folder, say)} images")

    def stage_autoencoder(self) -> None:
        """Images to latents and back."""
        part = self._part("autoencoder")
        if part.is_file():
            return
        network = self._network("autoencoder")
        if self.base:
            save_state(part, models.load_part(self.base, "vae").state_dict())
        elif self.autoencoder_from:
            take_autoencoder(self.autoencoder_from, network)
            save_state(part, network.state_dict())
        else:
            c = self.config["train"]["autoencoder"]
            task = AutoencoderTask(network, self.pack[1].to(self.device), c["batch"], c.get("fast", False))
            self._train("autoencoder", network, task)
        say(f"autoencoder: {psnr(self._ready('autoencoder').eval(), self.pack[1][::20]):.2f} dB")

    def stage_denoiser(self) -> None:
        """Text encoder and UNet."""
        if self._part("denoiser").is_file():
            return
        pairs = self._pairs()
        network, c = self._network("denoiser"), self.config["train"]["denoiser"]
        task = DenoiserTask(network, self.tokenizer, *pairs, c["batch"], c.get("fast", False), c.get("skew", 1.0))
        self._train("denoiser", network, task)

    def _pairs(self) -> tuple[torch.Tensor, float, list[Caption]]:
        """What `_latents` gives, and the captions with the places of their images in it."""
        latents, scale = self._latents()
        number = {image: i for i, image in enumerate(self.drawn)}
        return latents, scale, [replace(c, image=number[c.image]) for c in self.captions]

    def _latents(self) -> tuple[torch.Tensor, float]:
        """Latents of all images and the factor that gives them unit variance, kept on disk."""
        network = self._ready("autoencoder")
        made_by = hashlib.sha256(f"{digest_of(self._part('autoencoder'))} {self.drawn}".encode()).hexdigest()[:16]
        path = self.out / "state" / f"latents-{made_by}.safetensors"  # of another autoencoder or other images they would be worth nothing
        if not path.is_file() and not rank():
            save_state(path, {"latents": latents_of(network, self.pack[1][self.drawn], self.config["train"]["variants"])})
        if dist.is_initialized():
            dist.barrier()
        latents = load_file(path)["latents"]
        scale = models.load_part(self.base, "vae").config.scaling_factor if self.base else 1 / latents[0].float().std().item()
        return latents, scale

    def stage_decoder(self) -> None:
        """The decoder, trained on with the encoder as it is, on the images that captions draw."""
        if self._part("decoder").is_file():
            return
        network = self._ready("autoencoder")
        network.requires_grad_(False)
        for part in (network.post_quant_conv, network.decoder):
            part.requires_grad_(True)
        c, images = self.config["train"]["decoder"], self.pack[1][self.drawn]
        before = psnr(network, images[::20])
        network = self._train("decoder", network, AutoencoderTask(network, images.to(self.device), c["batch"], c.get("fast", False)))
        say(f"decoder: {before:.2f} dB before, {psnr(network, images[::20]):.2f} dB after")

    def _judge(self, name: str) -> None:
        """Train a judge, write it in the form that users load, and measure that."""
        network, side = self._network(name), self.config["models"][name]["size"]
        assert isinstance(network, torch.nn.ModuleDict)
        held = set(self.held)
        if not self._part(name).is_file():
            keep = [i for i in range(len(self.pack[0])) if i not in held]
            asked = (self.world.subjects, self.world.called, self.flags)
            batch = self.config["train"][name]["batch"]
            task = JudgeTask(network, self.tokenizer, self.pack[0], at_size(self.pack[1], side), self.captions, keep, *asked, batch)
            self._train(name, network, task)
        assemble.write_images(*self.pack, self.held, self.out / "held_out")
        folder = self.out / "weights" / name
        assemble.write_judge(folder, self._ready(name)["judge"], self.tokenizer, side)  # type: ignore[index]
        for line in check_judge(folder, self.world, self.out / "held_out", self.out / "unseen"):
            say(f"{name}, {line}")

    def stage_judge(self) -> None:
        """The judge."""
        self._judge("judge")

    def stage_judge_b(self) -> None:
        """The second judge, of another architecture and seed."""
        self._judge("judge-b")

    def stage_assemble(self) -> None:
        """The folder that the package ships, beside the judges."""
        weights = self.out / "weights"
        weights.mkdir(parents=True, exist_ok=True)
        parts = self._ready("denoiser")
        scale = self._latents()[1]
        decoder = "decoder" if self._part("decoder").is_file() else "autoencoder"
        assemble.write_pipeline(weights / "pipeline", parts["unet"], parts["text"], self._ready(decoder), self.tokenizer, scale)  # type: ignore[index]
        assemble.write_world(self.world, weights)
        assemble.write_images(*self.pack, assemble.sample(self.pack[0], self.held), weights / "pictures")

    def stage_card(self) -> None:
        """Measure the finished model and write its card."""
        weights, out = self.out / "weights", self.out / "card"
        result = measure(weights, out, **self.config["card"], device=self.device, say=say)
        write_card(result, weights, out, out, self.card_text)
        for name in ("CARD.md", "card.json"):
            shutil.copyfile(self.out / "card" / name, self.out / "weights" / name)
