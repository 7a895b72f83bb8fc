"""UCE against its equation written out, its loop, and what any change of weights must leave as it was."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tests.drawing import apart, draw
from tests.tiny_models import TINY_PIPELINES, sd, sd3
from torch import Tensor

from method_tools import MAN, VIOLENCE, WOMAN, close, latents, noise, state, unchanged
from respodiff.concepts.concept import Concept
from respodiff.data.prompt_sets import winobias
from respodiff.generation.generate import counted
from respodiff.methods.registry import get_method, load
from respodiff.methods.uce import UceConfig, edit, phrase
from respodiff.methods.weight_edits import WeightEditAdapter, cross_attention, differences
from respodiff.pipelines.denoiser import Denoiser
from respodiff.steering.steer import steer

pytestmark = pytest.mark.slow

SHORT = {"subjects": ("doctor", "nurse"), "images": 4, "steps": 2, "rounds": 2, "guidance": 3.0}


def by_hand(w: Tensor, c: Tensor, v: Tensor, kept: Tensor, lam: float, a: float, b: float) -> Tensor:
    """The equation of the module's head, term by term."""
    left, right = lam * w, lam * torch.eye(c.shape[1], dtype=w.dtype)
    for i in range(len(c)):
        left, right = left + a * torch.outer(v[i], c[i]), right + a * torch.outer(c[i], c[i])
    for p in kept:
        left, right = left + b * torch.outer(w @ p, p), right + b * torch.outer(p, p)
    return left @ torch.linalg.inv(right)


def test_the_edit_is_the_equation_and_the_least_squares_optimum() -> None:
    g = torch.Generator().manual_seed(0)
    w, c, target, kept = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((5, 7), (3, 7), (3, 7), (2, 7)))
    config = UceConfig(lam=0.3, edit_weight=1.5, keep_weight=0.7)
    found = w + w @ edit(c, target, kept, config)
    assert torch.allclose(found, by_hand(w, c, target @ w.T, kept, 0.3, 1.5, 0.7))
    x = found.clone().requires_grad_()
    loss = 1.5 * (c @ x.T - target @ w.T).square().sum() + 0.7 * (kept @ x.T - kept @ w.T).square().sum() + 0.3 * (x - w).square().sum()
    loss.backward()
    assert x.grad is not None and x.grad.abs().max() < 1e-10


def test_the_subjects_are_those_of_the_suite() -> None:
    assert get_method("uce").settings().subjects == winobias.PROFESSIONS


def test_the_phrase_is_read_at_its_last_token(pipe: Any) -> None:
    ids = pipe.tokenizer("a construction worker").input_ids
    context = pipe.encode_prompt("a construction worker", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    assert torch.allclose(phrase(Denoiser(pipe), "a construction worker")[0].float(), context[0, len(ids) - 2])
    with pytest.raises(ValueError, match="phrase '' is empty"):
        phrase(Denoiser(pipe), "")


def test_erasing_two_phrases_by_hand(pipe: Any, tmp_path: Path) -> None:
    concept = Concept("unsafe", "a scene", "a scene", "violence, blood", "safety", preserve=("a person",))
    before, plain = state(pipe), latents(pipe, ["blood"] * 2)
    made = get_method("uce").fit(pipe, concept)
    assert unchanged(before, state(pipe)) and isinstance(made, WeightEditAdapter)
    c = torch.cat([phrase(Denoiser(pipe), t) for t in ("violence", "blood")])
    (guide,), kept = phrase(Denoiser(pipe), "a scene"), phrase(Denoiser(pipe), "a person")
    weights = dict(pipe.unet.named_parameters())
    changes = differences(pipe.unet, made)
    assert set(changes) == {n for n in weights if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))} == set(cross_attention(pipe.unet))
    for name, change in changes.items():
        w = weights[name].double()
        wanted = by_hand(w, c, (w @ guide).expand(2, -1), kept, 0.5, 1.0, 1.0)
        assert close(weights[name] + change, wanted.float(), 1e-4)
    found = latents(pipe, ["blood"] * 2, load(made.save(tmp_path / "u.safetensors")))
    assert not close(found, plain, 1e-3) and unchanged(before, state(pipe))
    assert torch.equal(found, latents(pipe, ["blood"] * 2, made)), "the file is what was made"


def read_by_hand(pipe: Any, text: str) -> Tensor:
    """c (N, D) of a phrase, from the pipeline's own encoding and the model's own projections."""
    model, name = pipe.transformer, type(pipe).__name__
    if name == "HunyuanDiTPipeline":  # BERT here ends without a token of its own, T5 with one
        (bert, _, mask, _), (t5, _, mask_5, _) = (
            pipe.encode_prompt(text, do_classifier_free_guidance=False, text_encoder_index=i, max_sequence_length=n)
            for i, n in enumerate((77, 256))
        )
        return torch.stack([bert[0, mask.sum() - 1], model.text_embedder(t5)[0, mask_5.sum() - 2]]).double()
    if name == "SanaPipeline":
        words = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        states, mask, *_ = pipe.encode_prompt(text, False, complex_human_instruction=words)
        return model.caption_norm(model.caption_projection(states))[0, [mask.sum() - 1]].double()
    states, mask, *_ = pipe.encode_prompt(text, False, max_sequence_length=300)
    return model.caption_projection(states)[0, [mask.sum() - 2]].double()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("cls", ["PixArtSigmaPipeline", "SanaPipeline", "HunyuanDiTPipeline"])
def test_erasing_by_hand_in_transformers_with_cross_attention(cls: str) -> None:
    pipe = TINY_PIPELINES[cls]()
    model, before = pipe.transformer, {name: p.clone() for name, p in pipe.transformer.named_parameters()}
    with counted(model) as forwards:
        (record,) = get_method("uce").train(pipe, Concept("x", "a scene", "a scene", "violence, blood", "safety", preserve=("a person",)))
    assert record.unet_forwards == forwards[0] == 4
    with torch.no_grad():
        c, guide, kept = (
            torch.cat([read_by_hand(pipe, t) for t in texts]) for texts in (("violence", "blood"), ("a scene",), ("a person",))
        )
    changes = differences(model, record.module)
    assert len(changes) == 2 * len([name for name in before if name.endswith("attn2.to_q.weight")]) > 0
    for name, change in changes.items():
        w = before[name].double()
        wanted = by_hand(w, c, (w @ guide.repeat(2, 1).T).T, kept, 0.5, 1.0, 1.0)
        assert close(before[name] + change, wanted.float(), 1e-4) and change.abs().max() > 1e-4
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with steer(pipe, record.module):
        found = draw(pipe)
    assert apart(found, draw(pipe)) > 1e-4


@pytest.mark.parametrize("cls", ["StableDiffusion3Pipeline", "QwenImagePipeline"])
@pytest.mark.parametrize("name", ["uce", "fdf"])
def test_classes_without_cross_attention_are_refused(cls: str, name: str) -> None:
    pipe = TINY_PIPELINES[cls]()
    with pytest.raises(ValueError, match=f"{cls} has no cross-attention to the text; use respodiff"):
        get_method(name).fit(pipe, WOMAN, classify=lambda images: torch.zeros(len(images), 2))


def test_a_second_attention_of_the_image_to_itself_is_no_cross_attention() -> None:
    pipe = sd3()
    pipe.transformer.transformer_blocks[0].attn2 = diffusers.models.attention_processor.Attention(32, heads=4, dim_head=8)
    assert cross_attention(pipe.transformer) == []


def test_layers_that_read_different_texts_are_refused() -> None:
    pipe = sd()
    pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    with pytest.raises(ValueError, match="read different texts"):
        get_method("uce").fit(pipe, VIOLENCE)


def test_debiasing_adds_the_missing_shares_round_by_round(pipe: Any, tmp_path: Path) -> None:
    asked: list[Tensor] = []
    verdicts = iter([[0, 0, 0, 1], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1, 1]])

    def classify(images: Tensor) -> Tensor:
        asked.append(images)
        return torch.nn.functional.one_hot(torch.tensor(next(verdicts)), 2).float()

    config = get_method("uce").settings(**SHORT)
    before = state(pipe)
    with counted(pipe.unet) as forwards:
        records = list(get_method("uce").train(pipe, WOMAN, config, classify=classify))
    assert unchanged(before, state(pipe))
    assert len(records) == 2 and records[-1].unet_forwards == forwards[0] == 2 * 2 * 4 * 2 * 2 + 4  # four phrases
    assert all(p.shape == (4, 3, 32, 32) and p.min() >= 0 and p.max() <= 1 for p in asked) and len(asked) == 4
    # Shares of women 3/4 and 1/2, then 0 and 1/2: delta (-.25, .25) and (0, 0), then (.5, -.5) and (0, 0).
    c, a = (torch.cat([phrase(Denoiser(pipe), t) for t in texts]) for texts in (("doctor", "nurse"), ("a woman", "a man")))
    target = torch.stack([c[0] + 0.25 * a[0] - 0.25 * a[1], c[1]])
    made = records[-1].module
    assert torch.allclose(made.tensors["edit"], edit(c, target, c[:0], config).float(), atol=1e-6)
    assert records[0].loss == 0.25 and records[1].loss == 0.5
    assert (made.name, made.header.kind, made.header.attribute) == ("gender", "attribute", "gender")
    assert load(made.save(tmp_path / "u.safetensors")).digest == made.digest


def test_debiasing_ends_when_all_is_even(pipe: Any) -> None:
    even = lambda images: torch.eye(2).repeat(len(images) // 2, 1)  # noqa: E731
    (only,) = list(get_method("uce").train(pipe, MAN, get_method("uce").settings(**SHORT), classify=even))
    assert only.iteration == only.iterations == 1 and only.module.tensors["edit"].abs().max() == 0


# --- weights in effect ---


def test_a_mixed_batch_draws_every_image_as_if_alone(pipe: Any) -> None:
    one = get_method("uce").fit(pipe, VIOLENCE)
    two = get_method("uce").fit(pipe, Concept("person", "a scene", "a scene", "person", "safety"))
    before, z, prompts = state(pipe), noise(pipe, 5), ["a person in violence"] * 5
    entries = [one, None, two, [one, two], one.scale(0.5)]
    together = latents(pipe, prompts, entries)
    alone = [latents(pipe, prompts[:1], [entries[i]], start=z[i : i + 1]) for i in range(5)]
    for i in range(5):
        assert close(together[i], alone[i][0], 1e-3)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    same = latents(pipe, prompts, entries, start=z[:1].expand(5, -1, -1, -1).clone())
    assert all(not close(same[i], same[j], 1e-4) for i, j in pairs)
    assert unchanged(before, state(pipe))


def test_bad_input_is_one_line(pipe: Any) -> None:
    uce = get_method("uce")
    alone = Concept("hat", "a person with a hat")
    wrong = lambda images: torch.zeros(len(images), 3)  # noqa: E731
    for call, said in (
        (lambda: uce.fit(pipe, WOMAN), "method 'uce' needs a classifier of images for fairness concepts; give classify="),
        (lambda: uce.fit(pipe, alone, classify=wrong), "concept 'hat' has no alternatives, and a distribution needs them"),
        (
            lambda: uce.fit(pipe, WOMAN, uce.settings(**SHORT), classify=wrong),
            r"classify gave \(4, 3\) for 4 images; allowed: logits of shape \(4, 2\)",
        ),
        (lambda: uce.settings(lam=0), "lam is 0; allowed: a number above 0"),
        (lambda: uce.settings(subjects="doctor"), "subjects is 'doctor'; allowed: one text or more"),
        (lambda: uce.settings(form="doctor"), "form is 'doctor'; allowed: a text with {} where the subject goes"),
        (lambda: uce.settings(rounds=0), "rounds is 0"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            call()
        assert "\n" not in str(error.value)


def test_weights_of_another_width_are_refused() -> None:
    pipe = sd()
    made = WeightEditAdapter(get_method("uce").fit(pipe, VIOLENCE).header, {"edit": torch.zeros(5, 5)})
    with pytest.raises(ValueError, match=r"uce 'violence' is for text of 5 channels, .*to_k.weight takes 32"):
        latents(pipe, ["x"], made)
    made = WeightEditAdapter(made.header, {"conv_in.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"changes 'conv_in.weight' of shape \(3,\), the model has \(16, 4, 3, 3\)"):
        latents(pipe, ["x"], made)


def test_erasing_the_neutral_prompt_itself_is_refused(pipe: Any) -> None:
    with pytest.raises(ValueError, match="negative prompt 'a scene' of concept 'x' has the embedding of its neutral prompt 'a scene'"):
        get_method("uce").fit(pipe, Concept("x", "a scene", "a scene", "a scene", "safety"))
