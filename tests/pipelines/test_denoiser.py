from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    LCMScheduler,
)
from tests.contracts.pipeline_checks import TINY, WOMAN
from tests.drawing import GUIDANCE, close, contexts, draw, oblong, seen
from tests.raw_loop import conditions, raw_unet
from tests.tiny_models import TINY_PIPELINES, flux, inpaint_9, lcm, scheduler, sd, sd3, sd_v, sdxl
from tests.tiny_transformers import TEXT_TO_IMAGE

from respodiff.pipelines.bottleneck import run_with_decoder
from respodiff.pipelines.capture import at
from respodiff.pipelines.denoiser import TIME_IDS, Denoiser, check_length, encode_prompts, join, repeat
from respodiff.pipelines.latents import latent_shape, pack, unpack
from respodiff.pipelines.registry import PIPELINES, backbone, spec_of
from respodiff.training.config import TrainConfig
from respodiff.training.respodiff import fit, train

# --- shapes ---


def test_latents_at_the_models_own_size_and_at_others(embedded: Any) -> None:
    assert latent_shape(embedded) == (8, 16, 16)
    assert latent_shape(sd()) == (4, 16, 16) and latent_shape(sd(), 48, 64) == (4, 24, 32)
    assert latent_shape(inpaint_9()) == (4, 16, 16), "mask and masked image are no part of the latent"
    assert latent_shape(sd3()) == (16, 16, 16) and latent_shape(flux()) == (16, 16, 16)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="height is 33 pixels; allowed for this model: multiples of 2, or 0"):
        latent_shape(sd(), 33, 32)
    with pytest.raises(ValueError, match="width is 34 pixels; allowed for this model: multiples of 4"):
        latent_shape(flux(), 32, 34)
    with pytest.raises(ValueError, match="height is -8; allowed: a whole number of pixels"):
        TrainConfig(height=-8)


def test_packing_is_fluxs_own_and_comes_back() -> None:
    z = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pack(z, 2), FluxPipeline._pack_latents(z, 2, 4, 6, 10))
    pipe = flux()
    with torch.no_grad():
        d = Denoiser(pipe)
        z = torch.randn(2, *d.latent, generator=torch.Generator().manual_seed(0))
        condition = repeat(d.encode(["a doctor"])[0], 2)
        one = Denoiser(pipe)(z[:1], torch.tensor([500.0]), d.encode(["a doctor"])[0])
        assert d(z, torch.tensor([500.0, 500.0]), condition).shape == z.shape
        close(d(z, torch.tensor([500.0, 500.0]), condition)[:1], one, "rows do not mix")


def test_conditions_are_repeated_and_joined() -> None:
    a, b = {"context": torch.zeros(1, 2, 3), "pooled": torch.zeros(1, 4)}, {"context": torch.ones(1, 2, 3), "pooled": torch.ones(1, 4)}
    both = join([repeat(a, 2), b])
    assert both["context"].shape == (3, 2, 3) and both["pooled"][:, 0].tolist() == [0, 0, 1]


# --- the model is called as the pipeline does ---


@pytest.mark.parametrize("make", [sd, sd_v, sdxl])
def test_a_prediction_is_that_of_the_raw_unet(make: Any) -> None:
    pipe = make()
    d = Denoiser(pipe)
    z, t = torch.randn(1, *d.latent, generator=torch.Generator().manual_seed(0)), torch.tensor([301])
    told = conditions(pipe, "a doctor", 32, 32)
    shift = torch.randn(1, *d.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, h, decode = run_with_decoder(d.model, lambda: d(z, t, d.encode(["a doctor"])[0]), lambda _: shift, d.site)
        expected = raw_unet(pipe.unet, z, t, told.pop("context"), shift, **told)
        close(found, expected, "prediction")
        close(decode(h + shift), expected, "decoder")


@pytest.mark.parametrize("make", [sd3, flux])
def test_a_prediction_is_what_the_pipeline_got_from_its_transformer(make: Any) -> None:
    pipe = make()
    outputs: list[Any] = []
    handle = pipe.transformer.register_forward_hook(lambda _m, _a, out: outputs.append(out[0]))
    with seen(pipe) as calls:
        draw(pipe, steps=1)
    handle.remove()
    told, d = calls[0][1], Denoiser(pipe, guidance=4.0)
    z = told["hidden_states"][-1:]
    if make is flux:
        z = z.reshape(1, 8, 8, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(1, 16, 16, 16)
    with torch.no_grad():
        t = told["timestep"][-1:] * (1000 if make is flux else 1)
        found, h, replay = run_with_decoder(d.model, lambda: d(z, t, d.encode(["a doctor"])[0]), lambda _: torch.zeros(1, *d.shape), d.site)
        close(pack(found, 2) if make is flux else found, outputs[0][-1:], "prediction", 1e-4)
        close(replay(h), found, "replay")
        shift = torch.randn(1, *d.shape, generator=torch.Generator().manual_seed(1))
        moved, *_ = run_with_decoder(d.model, lambda: d(z, t, d.encode(["a doctor"])[0]), lambda _: shift, d.site)
        close(replay(h + shift.flatten()), moved, "replay of a moved h")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in TEXT_TO_IMAGE if not PIPELINES[name].untrained])
def test_arguments_and_predictions_are_those_of_the_pipelines_own_call(name: str) -> None:
    pipe = TINY_PIPELINES[name]()
    spec, model, size = spec_of(pipe), backbone(pipe), oblong(pipe)
    calls: list[tuple[dict[str, Any], Any]] = []
    names = tuple(inspect.signature(model.forward).parameters)
    handle = model.register_forward_hook(
        lambda _m, a, k, out: calls.append(({**dict(zip(names, a, strict=False)), **k}, out[0])), with_kwargs=True
    )
    draw(pipe, "a doctor", steps=2, **size)  # of one step alone Qwen-Image's scheduler makes NaN
    handle.remove()
    calls = calls[: len(calls) // 2]
    d = Denoiser(pipe, size["height"], size["width"], guidance=GUIDANCE)
    t = pipe.scheduler.timesteps[:1]
    rows = {"cond": d.encode(["a doctor"])[0], "uncond": d.empty}
    blocks = [(call, block, i) for call, passes in zip(calls, passes_of(spec, len(calls)), strict=True) for i, block in enumerate(passes)]
    assert [block for _, block, _ in blocks].count("cond") == 1 and len(blocks) == 1 + spec.guides
    for (told, out), block, i in blocks:
        axes = spec.axes
        given = {
            path: value.movedim(axes[path], 0)[i][None] if path in axes else value[i][None]
            for path in rows[block]
            if (value := at(told, path)) is not None
        }
        assert given.keys() == rows[block].keys()
        for path, value in given.items():
            close(rows[block][path].to(value.dtype), value, f"{path} of {block}")
        z = told[names[0]][i][None]
        z = z[:, :, 0] if spec.listed else unpack(z, spec.packs, *d.latent[1:]) if spec.packs else z
        with torch.no_grad():
            found = d(z, t, rows[block])
        own = spec.sign * out[i][None]
        own = own[:, :, 0] if spec.listed else unpack(own, spec.packs, *d.latent[1:]) if spec.packs else own[:, : z.shape[1]]
        close(found, own, f"prediction of {block}", 1e-4)


def passes_of(spec: Any, calls: int) -> list[tuple[str, ...]]:
    """Row blocks of each call of a step."""
    if calls == 2:
        return [("cond",), ("uncond",)]
    return [spec.passes if spec.guides and not spec.calls else ("cond",)]


def test_a_model_without_a_size_of_its_own_has_that_of_its_row() -> None:
    pipe = TINY_PIPELINES["ZImagePipeline"]()
    del pipe.default_sample_size
    assert latent_shape(pipe) == (16, 1024 // pipe.vae_scale_factor, 1024 // pipe.vae_scale_factor)


def test_the_template_around_a_prompt_counts() -> None:
    pipe = TINY_PIPELINES["Lumina2Pipeline"]()
    check_length(pipe, ["a" * 50])
    with pytest.raises(ValueError, match="tokens; this model takes 256"):
        check_length(pipe, ["a" * 250])


def test_a_system_message_around_a_prompt_counts() -> None:
    pipe = TINY_PIPELINES["Flux2Pipeline"]()
    pipe.system_message = "a" * 400
    check_length(pipe, ["a" * 50])
    with pytest.raises(ValueError, match="tokens; this model takes 512"):
        check_length(pipe, ["a" * 110])


def test_a_model_that_keeps_its_area_refuses_other_sizes() -> None:
    pipe = TINY_PIPELINES["HiDreamImagePipeline"]()
    assert latent_shape(pipe) == (16, 16, 16) and latent_shape(pipe, 16, 64) == (16, 8, 32)
    with pytest.raises(ValueError, match="height x width is 32 x 64, which HiDreamImagePipeline draws as 20 x 44 pixels"):
        latent_shape(pipe, 32, 64)


def test_experts_give_the_gradients_of_their_predictions(monkeypatch: pytest.MonkeyPatch) -> None:
    d = Denoiser(TINY_PIPELINES["HiDreamImagePipeline"]())
    z = torch.randn(1, *d.latent, generator=torch.Generator().manual_seed(0))
    condition, t = d.encode(["a doctor"])[0], torch.tensor([500.0])
    direction = torch.randn(1, *d.shape, generator=torch.Generator().manual_seed(1))
    size = torch.zeros((), dtype=torch.float64, requires_grad=True)
    d.model.double()
    condition = {path: value.double() for path, value in condition.items()}

    def summed(a: Any) -> Any:
        shift = (a * direction.double()).expand(-1, *d.shape)
        return run_with_decoder(d.model, lambda: d(z.double(), t.double(), condition), lambda _: shift, d.site)[0].square().sum()

    found = torch.autograd.grad(summed(size), size)[0].item()
    with torch.no_grad():
        expected = (summed(size + 1e-5) - summed(size - 1e-5)).item() / 2e-5  # experts change hands in larger steps
    assert found == pytest.approx(expected, rel=1e-3)
    assert not any(m.training for m in d.model.modules())
    monkeypatch.setattr("respodiff.pipelines.denoiser.differentiable", lambda _model: nullcontext())
    assert torch.autograd.grad(summed(size), size)[0].item() != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", ["QwenImageEditPipeline", "SanaSprintPipeline", "StableDiffusionXLModularPipeline"])
def test_classes_that_nothing_is_trained_on_say_why(name: str) -> None:
    with pytest.raises(ValueError, match=f"nothing is trained on {name}: .*; train on .*, and steer this one"):
        Denoiser(TINY_PIPELINES[name]())


def test_a_class_that_reads_prompts_beside_an_image_tells_none() -> None:
    with pytest.raises(ValueError, match="QwenImageEditPipeline does not tell what its model is told of a prompt"):
        encode_prompts(TINY_PIPELINES["QwenImageEditPipeline"](), ["a doctor"])


def test_inpainting_channels_mask_everything_over_a_blank_image() -> None:
    pipe = inpaint_9()
    d = Denoiser(pipe)
    got: list[torch.Tensor] = []
    handle = pipe.unet.register_forward_pre_hook(lambda _m, _a, told: got.append(told["sample"]), with_kwargs=True)
    with torch.no_grad():
        d(torch.zeros(2, *d.latent), torch.tensor(1), repeat(d.encode(["x"])[0], 2))
        blank = pipe.vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode() * pipe.vae.config.scaling_factor
    handle.remove()
    assert torch.equal(got[0][:, 4], torch.ones(2, 16, 16)) and torch.allclose(got[0][:1, 5:], blank, atol=1e-6)
    pix = Denoiser(sd("StableDiffusionInstructPix2PixPipeline"))
    assert pix._extra is not None and pix._extra.shape[1] == 4 and pix._extra.abs().max() == 0


def test_zeros_stand_for_the_empty_prompt_where_the_checkpoint_says_so() -> None:
    pipe = sdxl()
    empty, doctor = contexts(pipe, ["", "a doctor"])
    assert empty.abs().max() == 0 < doctor.abs().max()
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    assert contexts(pipe, [""]).abs().max() > 0


def test_time_ids_follow_the_size() -> None:
    d = Denoiser(sdxl(), 48, 64)
    assert d.encode(["x"])[0][TIME_IDS].tolist() == [[48, 64, 0, 0, 48, 64]]
    assert d.size == (48, 64) and d.shape == (32, 6, 8)


# --- rollouts ---


@pytest.mark.parametrize(
    ("make", "kind"), [(sd, DDIMScheduler), (sd_v, DDIMScheduler), (lcm, LCMScheduler), (sd3, FlowMatchEulerDiscreteScheduler)]
)
def test_rollouts_use_the_sampler_of_the_family(make: Any, kind: Any) -> None:
    sampler = Denoiser(make()).sampler(4)
    assert type(sampler) is kind and len(sampler.timesteps) == 4
    if make is sd_v:
        assert sampler.config.prediction_type == "v_prediction"


def test_a_solver_on_flow_matching_rolls_out_by_euler() -> None:
    sana, pixart = TINY_PIPELINES["SanaPipeline"](), TINY_PIPELINES["PixArtSigmaPipeline"]()
    pixart.scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    for pipe in (sana, pixart):  # PixArt's pipeline scales noise as Euler's scheduler of flow matching cannot
        sampler = Denoiser(pipe).sampler(4)
        assert type(sampler) is FlowMatchEulerDiscreteScheduler and len(sampler.timesteps) == 4
        assert sampler.timesteps[0] == 1000 and sampler.sigmas[-1] == 0


def test_rollouts_have_the_papers_timesteps_beside_a_solver_that_wants_others(embedded: Any) -> None:
    paper = scheduler()
    paper.set_timesteps(16)
    own = Denoiser(embedded).sampler(16)
    assert embedded.scheduler.config.timestep_spacing == "trailing" and own.timesteps.tolist() == paper.timesteps.tolist()
    assert own.final_alpha_cumprod == paper.final_alpha_cumprod
    turbo = sd()
    turbo.scheduler = EulerDiscreteScheduler.from_config(turbo.scheduler.config, timestep_spacing="trailing")
    assert Denoiser(turbo).sampler(4).config.timestep_spacing == "trailing"


def test_a_lora_of_lcm_on_a_plain_model_rolls_out_as_lcm() -> None:
    pipe = sd()
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    assert type(Denoiser(pipe).sampler(4)) is LCMScheduler and Denoiser(pipe).guides
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert type(Denoiser(pipe).sampler(4)) is DDIMScheduler


def test_flux_rolls_out_at_the_timesteps_of_its_pipeline() -> None:
    pipe = flux()
    with seen(pipe) as calls:
        draw(pipe, steps=3)
    mine = Denoiser(pipe).sampler(3).timesteps
    close(mine, torch.stack([told["timestep"][0] * 1000 for _, told in calls]), "timesteps", 1e-4)


def test_embedded_guidance_is_that_of_rollouts() -> None:
    for make in (lcm, flux):
        plain = fit(make(), WOMAN, TrainConfig(**TINY, rollout_guidance=1.0))
        more = fit(make(), WOMAN, TrainConfig(**TINY, rollout_guidance=5.0))
        assert not torch.equal(plain.ram, more.ram)
        assert not Denoiser(make()).guides


@pytest.mark.parametrize("make", [lcm, sd3])
def test_the_released_label_is_of_ddim_alone(make: Any) -> None:
    with pytest.raises(ValueError, match=r"timestep_labels is 'official', which counts DDIM steps; .* use timestep_labels=sampler"):
        next(train(make(), WOMAN, TrainConfig.preset("paper", iterations=1)))


def test_what_cannot_be_trained_is_refused() -> None:
    pipe = sd3()
    pipe.transformer.register_to_config(in_channels=33)
    with pytest.raises(ValueError, match="takes 33 channels, mask included; train on the text-to-image checkpoint"):
        Denoiser(pipe)


def mean_norm(record: Any) -> float:
    """The mean norm of h that a run has seen."""
    total, n, *_ = record.state.tensors()["value.woman.norms"].tolist()
    return float(total / n)


def test_the_length_of_a_channel_module_is_compared_at_one_position() -> None:
    with pytest.warns(UserWarning, match="max_relative_norm 0.2 limits it"):
        *_, last = train(sd(), WOMAN, TrainConfig(**TINY, sam_lr=0.0, form="channel", projection=50.0, max_relative_norm=0.2))
    h = mean_norm(last)  # at one of its 16 positions
    assert last.module.delta.norm().item() == pytest.approx(0.2 * h, rel=1e-4)
    *_, whole = train(sd(), WOMAN, TrainConfig(**TINY))
    assert mean_norm(whole) == pytest.approx(h * 4, rel=0.2)
