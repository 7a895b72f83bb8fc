"""Shared fixtures: a tiny pipeline that draws in milliseconds, modules that fit it, and a closed door to the network."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep: tests beside other work do not stall

if "PYTEST_XDIST_WORKER" in os.environ:  # one core each; also for the programs that tests start
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")  # before anything imports torch

import ipaddress
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # fixtures import what they need: the process that hands out the tests loads no torch
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTokenizer

    from respodiff.steering.module import ConceptModule


def _is_local(address: Any) -> bool:
    host = address[0] if isinstance(address, tuple) else address
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


SLOW_FIXTURES = {"embedded"}
"""Fixtures that load a trained model: tests that use them are marked ``slow``."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if SLOW_FIXTURES & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # the slow ones first: two workers end at the same time


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test fails loudly if it tries to reach another machine."""
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None) and not _is_local(address):
            raise RuntimeError(f"a test tried to connect to {address!r}: tests must not use the network")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


def build_unet(seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    import torch
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    config: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval().requires_grad_(False)


@pytest.fixture
def make_unet() -> Callable[..., UNet2DConditionModel]:
    """Factory of UNets with random weights: ``make_unet(seed, **config changes)``."""
    return build_unet


@pytest.fixture
def tiny_unet() -> UNet2DConditionModel:
    return build_unet()


@pytest.fixture(scope="session")
def tokenizer() -> CLIPTokenizer:
    from transformers import CLIPTokenizer

    from respodiff.pipelines.loading import embedded_dir

    return CLIPTokenizer.from_pretrained(embedded_dir("pipeline") / "tokenizer")


@pytest.fixture
def tiny_pipe(tiny_unet: UNet2DConditionModel, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """A whole pipeline of random weights: 8 x 8 latents, 16 x 16 images."""
    import torch
    from diffusers import AutoencoderKL, StableDiffusionPipeline
    from transformers import CLIPTextConfig, CLIPTextModel

    from tiny_models import scheduler

    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(16, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=16,
    )
    text = CLIPTextConfig(
        hidden_size=16,
        intermediate_size=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        vocab_size=2049,
        max_position_embeddings=32,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=tiny_unet,
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def make_module() -> Callable[..., ConceptModule]:
    """Factory of random modules that fit ``tiny_unet``: same arguments, same module."""
    import torch

    from respodiff.steering.module import ConceptModule
    from respodiff.steering.serialization import Header

    def make(
        name: str = "woman",
        attribute: str = "",
        kind: str = "fairness",
        seed: int = 0,
        scale: float = 3.0,
        shape: tuple[int, int, int] = (64, 4, 4),
        **header: Any,
    ) -> ConceptModule:
        generator = torch.Generator().manual_seed(seed)
        ram, sam = (torch.randn(shape, generator=generator) * scale for _ in range(2))
        return ConceptModule.of(ram, sam, Header(name, f"a {name}", "a person", kind=kind, attribute=attribute, **header))

    return make


@pytest.fixture(scope="session")
def embedded() -> StableDiffusionPipeline:
    """The shipped pipeline. Shared: leave it as you found it."""
    from respodiff.pipelines.loading import load_pipeline

    return load_pipeline("embedded")
