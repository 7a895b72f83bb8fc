"""Training by Muon, or of a part of a network: what changes, by how much, and that a stopped run goes on to the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from recipes.embedded_model.loop import Loop, Update
from recipes.embedded_model.muon import is_matrix, muon, rows

needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch is older than 2.9")


def convolutions(memory: torch.memory_format = torch.channels_last) -> torch.nn.Sequential:
    """Two convolutions, with matrices of 16 x 27 and 3 x 144, of which the second is left to AdamW."""
    torch.manual_seed(0)
    made: torch.nn.Sequential = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.Tanh(), torch.nn.Conv2d(16, 3, 3)).to(
        memory_format=memory
    )
    return made


def update_of(network: torch.nn.Module, stop: int = 0) -> Update:
    calls = []

    def update(generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        x = torch.randn(4, 3, 8, 8, generator=generator)
        loss: torch.Tensor = (network(x) - x[:, :, 2:-2, 2:-2]).pow(2).mean()
        return loss

    return update


@needs_muon
@pytest.mark.parametrize("memory", [torch.channels_last, torch.contiguous_format])
def test_an_update_of_a_matrix_is_of_the_learning_rate_in_every_direction(memory: torch.memory_format) -> None:
    weight = torch.nn.Parameter(torch.randn(16, 3, 3, 3).to(memory_format=memory))
    before, weight.grad = weight.detach().clone(), torch.randn(16, 3, 3, 3)
    muon([{"params": [weight]}], 0.01, 0.0).step()
    change = before - weight.detach()
    sizes = torch.linalg.svdvals(change.flatten(1)) / (0.01 * 0.2 * 27**0.5)
    assert sizes.min() > 0.6 and sizes.max() < 1.3, "about 1 each"
    assert (change * weight.grad).sum() > 0, "down, whatever the order in memory"


def test_small_weights_and_vectors_are_no_matrices() -> None:
    assert [is_matrix(p) for p in convolutions().parameters()] == [True, False, False, False]
    weight = torch.zeros(16, 4, 3, 3).to(memory_format=torch.channels_last)
    assert rows(weight).shape == (16, 36) and rows(weight).data_ptr() == weight.data_ptr()


@needs_muon
def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="muon"):
        muon([{"params": []}], 0.01, 0.0)


@needs_muon
def test_it_learns_and_a_stopped_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = {"lr": 0.02, "warmup": 2, "steps": 60, "ema": 0.9, "muon": True, "save_every": 0.0}
    whole, parted = convolutions(), convolutions()
    first = update_of(whole)(torch.Generator().manual_seed(1)).item()
    Loop("whole", tmp_path / "whole.safetensors", **settings).run(whole, update_of(whole))  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        Loop("parted", tmp_path / "parted.safetensors", **settings).run(parted, update_of(parted, stop=30))  # type: ignore[arg-type]
    again = convolutions()
    Loop("parted", tmp_path / "parted.safetensors", **settings).run(again, update_of(again))  # type: ignore[arg-type]
    assert update_of(whole)(torch.Generator().manual_seed(1)).item() < first / 4
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_part_is_trained_and_the_rest_stays(tmp_path: Path) -> None:
    network = convolutions()
    before = [p.detach().clone() for p in network.parameters()]
    Loop("part", tmp_path / "s.safetensors", 0.01, warmup=1, steps=5, only="2.").run(network, update_of(network))  # type: ignore[arg-type]
    assert [torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True)] == [True, True, False, False]
