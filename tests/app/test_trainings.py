"""A training shows what it does, and what is stopped is kept."""

from __future__ import annotations

from typing import Any

import pytest

from respodiff.app import trainings
from respodiff.app.service import MODULES, Service, Stop
from respodiff.methods.registry import load
from respodiff.training.config import TrainConfig

CONFIG = TrainConfig(iterations=12, steps=4, rollouts=2, rollout_batch=2, batch=2, refresh_every=4)
HAT = trainings.concept_of("a person with a hat", opposite="a person without a hat")


def test_loss_projection_and_samples_come_live_and_the_module_can_be_chosen(service: Service) -> None:
    seen: list[Any] = []
    for found in trainings.follow(service, HAT, CONFIG, Stop()):
        seen.append((found.iteration, found.loss >= 0, found.looked_at, len(found.samples), found.file))
    assert [row[:2] for row in seen] == [*((i, True) for i in range(1, 13)), (12, True)]
    assert [row[2] for row in seen] == [*[0] * 9, 10, 10, 12, 12] and seen[0][3] == 0 and seen[-1][3] == trainings.SAMPLES
    module = load(found.file or "")
    assert (module.header.target, module.header.neutral) == (HAT.target, HAT.neutral) and found.effects[-1][0] == 12
    assert service.choices()["hat"].sources == (str(found.file),)


def test_the_effect_of_a_finished_one_is_the_projection_that_was_asked_for(service: Service) -> None:
    *_, found = trainings.follow(service, HAT, CONFIG, Stop())
    verdict = load(found.file or "").header.verdict
    assert "reached" in verdict and found.effects[-1][1] == pytest.approx(100 * verdict["reached"] / CONFIG.projection)


def test_a_stopped_training_is_kept_as_it_is(service: Service) -> None:
    stop = Stop()
    for found in trainings.follow(service, HAT, CONFIG, stop):
        if found.iteration == 3:
            stop.set()
    assert found.iteration == 3 and found.file and load(found.file).name == "hat"
    assert found.looked_at == found.effects[-1][0] == 3, "the effect is that of the module that is kept"


def test_a_closed_one_leaves_nothing(service: Service) -> None:
    steps = trainings.follow(service, HAT, CONFIG, Stop())
    next(steps)
    steps.close()
    assert not (service.out / MODULES).exists()


def test_one_whose_visitor_is_gone_leaves_nothing(service: Service) -> None:
    """Also where it waits for its turn when the visitor goes, so that nobody closes it."""
    with service.work("a", "train") as stop:
        for found in trainings.follow(service, HAT, CONFIG, stop):
            if found.iteration == 3:
                service.leave("a")
    assert found.iteration == 3 and not found.file and not (service.out / MODULES).exists()


def test_a_second_module_of_a_name_takes_no_place(service: Service) -> None:
    files = [list(trainings.follow(service, HAT, CONFIG, Stop()))[-1].file for _ in range(2)]
    assert [file.name for file in files if file] == ["hat.safetensors", "hat-2.safetensors"]
    assert {"hat", "hat-2"} <= set(service.choices())


@pytest.mark.parametrize(("target", "neutral"), [("", "a person"), ("a person", ""), ("A person", "a person")])
def test_phrases_that_cannot_be_trained_are_refused(target: str, neutral: str) -> None:
    with pytest.raises(ValueError, match="target phrase"):
        trainings.concept_of(target, neutral)
