"""Adapters beside each other, and on models that something else has changed: a LoRA, fused projections, offloading, a call that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from tests.drawing import apart, draw
from tests.drawing import close as close_to
from tests.tiny_models import TINY_PIPELINES

from method_tools import VIOLENCE, WOMAN, close, latents, state, unchanged
from respodiff.methods.bact import BalancingAdapter
from respodiff.methods.esd import trained_names
from respodiff.methods.registry import get_method
from respodiff.methods.weight_edits import WeightEditAdapter
from respodiff.steering.adapter import Adapter, header_of
from respodiff.steering.steer import steer

pytestmark = pytest.mark.slow

SHORT: dict[str, Any] = {"iterations": 1, "batch": 2, "steps": 2, "rollouts": 2, "rollout_batch": 2, "lr": 1e-2}
LOST = ("esd-x", "esd-u", "uce")


def made(pipe: Any, name: str) -> Adapter:
    kind = get_method(name)
    concept = VIOLENCE if "safety" in kind.kinds and name != "slider" else WOMAN
    settings = {} if name == "uce" else SHORT
    return kind.fit(pipe, concept, kind.settings(concept.kind, **settings))


def random_edit(pipe: Any, method: str, names: list[str]) -> WeightEditAdapter:
    """Large changes of the named parameters."""
    known, g = dict(pipe.unet.named_parameters()), torch.Generator().manual_seed(0)
    return WeightEditAdapter(
        header_of(pipe, method, VIOLENCE, get_method(method).settings("safety")),
        {n: torch.randn(known[n].shape, generator=g) for n in names},
    )


def test_two_that_balance_act_both(plain_sd: Any) -> None:
    config, g = get_method("bact").settings(steps=4, gamma=3.0), torch.Generator().manual_seed(2)
    heads = [
        BalancingAdapter(
            header_of(plain_sd, "bact", WOMAN, config),
            {"weight": torch.randn(4, 2, 512, generator=g) / 400, "bias": torch.randn(4, 2, generator=g), "scale": torch.tensor([0.5])},
        )
        for _ in range(2)
    ]
    both = latents(plain_sd, ["a doctor"] * 3, [heads] * 3)
    assert all(not close(both, latents(plain_sd, ["a doctor"] * 3, [[head]] * 3), 1e-4) for head in heads)


def test_weights_are_as_before_where_a_call_fails(plain_sd: Any) -> None:
    edit, before = random_edit(plain_sd, "esd-u", trained_names(plain_sd.unet, "esd-u")), state(plain_sd)

    def fails(*_: Any) -> None:
        raise MemoryError

    with steer(plain_sd, edit):
        handle = plain_sd.unet.mid_block.register_forward_hook(fails)
        with pytest.raises(MemoryError):
            latents(plain_sd, ["a scene"])
        handle.remove()
        assert all(id(p) == known for p, known in zip(plain_sd.unet.parameters(), before["objects"], strict=True))
    assert unchanged(before, state(plain_sd))


def test_edits_inside_of_each_other_leave_the_model_as_it_was(plain_sd: Any) -> None:
    names, before = trained_names(plain_sd.unet, "esd-x"), state(plain_sd)
    with steer(plain_sd, random_edit(plain_sd, "esd-x", names)), steer(plain_sd, random_edit(plain_sd, "esd-x", names[:3])):
        latents(plain_sd, ["a scene"])
    assert unchanged(before, state(plain_sd))


def test_an_edit_and_a_training_beside_a_lora_are_of_the_models_own_weights(plain_sd: Any) -> None:
    names = trained_names(plain_sd.unet, "esd-x")
    edit = random_edit(plain_sd, "esd-x", names)
    expected = latents(plain_sd, ["a scene"], edit)
    plain_sd.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k", "to_v"]))  # adds nothing yet
    assert [name.replace(".base_layer.", ".") for name in trained_names(plain_sd.unet, "esd-x")] == names
    assert close(latents(plain_sd, ["a scene"], edit), expected, 1e-5)
    assert close(latents(plain_sd, ["a scene"] * 2, [edit, None])[:1], expected, 1e-3)


@pytest.mark.parametrize("name", [*LOST, "slider"])
def test_fused_projections_are_refused(plain_sd: Any, name: str) -> None:
    adapter, expected = made(plain_sd, name), latents(plain_sd, ["a scene"])
    steered = latents(plain_sd, ["a scene"], adapter)
    plain_sd.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        latents(plain_sd, ["a scene"], adapter)
    plain_sd.unfuse_qkv_projections()
    assert close(latents(plain_sd, ["a scene"], adapter), steered) and not close(steered, expected, 1e-6)


@pytest.mark.parametrize("name", LOST)
def test_a_change_of_weights_that_accelerate_holds_is_refused(plain_sd: Any, name: str) -> None:
    from accelerate import cpu_offload

    adapter = made(plain_sd, name)
    cpu_offload(plain_sd.unet, "cpu")
    with pytest.raises(ValueError, match="offloaded"), steer(plain_sd, adapter):
        pass


@pytest.mark.filterwarnings("ignore")
def test_a_layer_of_all_images_tokens_is_refused_in_a_mixed_batch() -> None:
    pipe = TINY_PIPELINES["ZImagePipeline"]()
    adapter = made(pipe, "esd-u")
    plain = draw(pipe)
    with steer(pipe, adapter):
        assert apart(draw(pipe), plain) > 0
    with pytest.raises(ValueError, match="same adapters"), steer(pipe, [adapter, None]):
        draw(pipe, ["a doctor", "a nurse"])


@pytest.mark.filterwarnings("ignore")
def test_a_prompt_and_a_negative_prompt_together_whatever_their_order() -> None:
    pipe = TINY_PIPELINES["StableDiffusion3Pipeline"]()
    prompt, negative = get_method("prompt").fit(pipe, WOMAN), get_method("negative").fit(pipe, VIOLENCE)
    expected = draw(pipe, "a female person", negative_prompt=[VIOLENCE.negative])
    for both in ([prompt, negative], [negative, prompt]):
        with steer(pipe, [both]):
            close_to(draw(pipe, "a person"), expected, "both", 1e-5)
