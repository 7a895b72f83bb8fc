from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel
from tests.tiny_models import TINY_PIPELINES, blackening, sd3

from respodiff.pipelines.denoiser import check_length, encode_prompts
from respodiff.pipelines.loading import config_digest, embedded_dir, load_pipeline, model_name, weights_digest
from respodiff.pipelines.registry import backbone
from respodiff.pipelines.schedulers import SCHEDULERS, use_scheduler

# --- loading ---


def test_the_embedded_pipeline_is_a_plain_one(embedded: StableDiffusionPipeline) -> None:
    assert type(embedded) is StableDiffusionPipeline
    assert type(embedded.unet) is UNet2DConditionModel
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in embedded.unet.modules())
    assert embedded.safety_checker is None and not embedded.unet.training
    assert model_name(embedded) == "embedded"


def test_the_embedded_pipeline_draws(embedded: StableDiffusionPipeline) -> None:
    image = embedded("a doctor", num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (128, 128)


@pytest.fixture
def folder(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> Path:
    tiny_pipe.save_pretrained(tmp_path / "my-model")
    return tmp_path / "my-model"


def test_a_local_folder_is_loaded_without_the_network(
    folder: Path, tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # only the closed socket holds it back now
    pipe = load_pipeline(folder)
    assert weights_digest(pipe.unet) == weights_digest(tiny_pipe.unet)
    assert config_digest(pipe.unet) == config_digest(tiny_pipe.unet)
    assert model_name(pipe) == "my-model"


def test_a_safety_checker_is_left_out_when_asked(tiny_pipe: StableDiffusionPipeline, tmp_path: Path) -> None:
    blackening(tiny_pipe).save_pretrained(tmp_path / "checked")

    def drawn(**options: Any) -> Any:
        images = load_pipeline(tmp_path / "checked", **options)("a doctor", num_inference_steps=1, output_type="np").images
        return images.max()

    assert drawn() == 0 and drawn(safety_checker=False) > 0


def test_schedulers_by_name(folder: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    for name, cls in SCHEDULERS.items():
        scheduler = load_pipeline(folder, scheduler=name).scheduler
        assert type(scheduler).__name__ == cls and scheduler.config.beta_end == tiny_pipe.scheduler.config.beta_end
    with pytest.raises(ValueError, match="scheduler"):
        load_pipeline(folder, scheduler="dimm")


def test_a_scheduler_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="scheduler is 'ddim'"):
        use_scheduler(sd3(), "ddim")


def test_a_commit_of_the_hub_is_taken_and_is_part_of_the_models_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = "a" * 40, "b" * 40
    home = tmp_path / "models--somebody--model"
    shutil.copytree(folder, home / "snapshots" / first)
    shutil.copytree(folder, home / "snapshots" / second)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(second)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.HF_HUB_CACHE", str(tmp_path), raising=False)
    for source, commit in (("somebody/model", second), (f"somebody/model@{first}", first)):
        assert model_name(load_pipeline(source)) == f"somebody/model@{commit}"
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        load_pipeline(f"somebody/model@{'c' * 40}")
    assert one_line(error)


@pytest.mark.parametrize(
    "name", ["StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "StableDiffusionControlNetPipeline"]
)
def test_folders_of_every_family_are_loaded(name: str, tmp_path: Path) -> None:
    pipe = TINY_PIPELINES[name]()
    pipe.save_pretrained(tmp_path / "model")
    found = load_pipeline(tmp_path / "model")
    assert type(found) is type(pipe) and weights_digest(backbone(found)) == weights_digest(backbone(pipe))
    assert torch.allclose(encode_prompts(found, ["a doctor"]), encode_prompts(pipe, ["a doctor"]), atol=1e-4)


def test_dtype_is_taken(folder: Path) -> None:
    pipe = load_pipeline(str(folder), dtype=torch.bfloat16)
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.bfloat16


def one_line(error: pytest.ExceptionInfo[ValueError]) -> bool:
    return "\n" not in str(error.value)


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent' does not exist; give 'embedded', a folder with model_index.json, or a hub id") as error:
        load_pipeline(tmp_path / "absent")
    assert one_line(error)


def test_a_bare_name_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model folder 'my-checkpoint' does not exist; .* hub id OWNER/NAME"):
        load_pipeline("my-checkpoint")


def test_a_single_file_says_how_to_make_a_folder_of_it(tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"weights.safetensors' is a single file; .*from_single_file\(.*save_pretrained\(DIR\)") as error:
        load_pipeline(tmp_path / "weights.safetensors")
    assert one_line(error)


def test_a_folder_without_a_part_names_it(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ValueError, match=r"my-model' has no 'tokenizer', which its model_index.json names") as error:
        load_pipeline(folder)
    assert one_line(error)
    (folder / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"has no model_index.json"):
        load_pipeline(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("diffusion_pytorch_model.fp16.safetensors", r"'unet' as the variant 'fp16' alone.*variant='fp16'\)\.save_pretrained"),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", r"'unet' as the variant 'fp16' alone"),
        ("diffusion_pytorch_model.bin", r"'unet' as a pickle \(diffusion_pytorch_model.bin\).*use_safetensors=False"),
    ],
)
def test_variants_and_pickles_say_how_to_convert_them(name: str, said: str, folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet" / name)
    with pytest.raises(ValueError, match=said) as error:
        load_pipeline(folder)
    assert one_line(error)


def test_a_hub_id_offline_is_one_clear_line() -> None:
    with pytest.raises(
        ValueError, match=r"model 'someone/no-such-model', which is no folder here, cannot be loaded: .*hub id \(needs network\)"
    ) as error:
        load_pipeline("someone/no-such-model")
    assert one_line(error)


@pytest.mark.parametrize(
    "index",
    [None, "{", '{"_class_name": "NoSuchPipeline", "_diffusers_version": "0.35.0"}', '{"_diffusers_version": "0.35.0"}'],
    ids=["no index", "not JSON", "unknown class", "no class"],
)
def test_a_folder_that_holds_no_pipeline_is_one_clear_line(tmp_path: Path, index: str | None) -> None:
    if index is not None:
        (tmp_path / "model_index.json").write_text(index)
    with pytest.raises(ValueError, match=r"cannot be loaded|model_index\.json") as error:
        load_pipeline(tmp_path)
    assert one_line(error)


def test_truncated_weights_are_one_clear_line(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        load_pipeline(folder)
    assert one_line(error)


def test_a_folder_of_an_unsupported_pipeline_is_refused(tmp_path: Path) -> None:
    unet = UNet2DModel(8, 3, 3, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pipeline DDPMPipeline is not supported; supported: StableDiffusionPipeline"):
        load_pipeline(tmp_path)


# --- prompts ---


def test_prompts_are_encoded_as_the_pipeline_does_it_in_the_order_given(tiny_pipe: StableDiffusionPipeline) -> None:
    prompts = ["a woman", "a man", "a woman", "a person with dark skin"]
    expected, _ = tiny_pipe.encode_prompt(prompts, "cpu", 1, False)
    assert torch.allclose(encode_prompts(tiny_pipe, prompts), expected, atol=1e-6)
    assert not encode_prompts(tiny_pipe, prompts).requires_grad


def test_a_prompt_of_the_very_limit_passes_and_one_token_more_is_refused(tiny_pipe: StableDiffusionPipeline) -> None:
    limit = tiny_pipe.tokenizer.model_max_length
    word = "doctor"
    extra = len(tiny_pipe.tokenizer(f"{word} {word}").input_ids) - len(tiny_pipe.tokenizer(word).input_ids)
    assert extra == 1, "the word is one token"
    fits = " ".join([word] * (limit - 2))
    check_length(tiny_pipe, ["a doctor", fits])
    with pytest.raises(ValueError, match=rf"prompt 'doctor doctor.*has {limit + 1} tokens; this model takes {limit}, .*shorten it"):
        check_length(tiny_pipe, ["a doctor", f"{fits} {word}"])
    with pytest.raises(ValueError, match=f"has {limit + 1} tokens"):
        encode_prompts(tiny_pipe, [f"{fits} {word}"])


# --- identity ---


def test_weights_digest_tells_nets_apart_and_is_stable(make_unet: Callable[..., Any]) -> None:
    digest = weights_digest(make_unet(0))
    assert weights_digest(make_unet(0)) == digest
    assert weights_digest(make_unet(1)) != digest
    assert len(digest) == 16


def test_weights_digest_sees_one_changed_layer(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    digest = weights_digest(unet)
    unet.conv_out.weight.mul_(1.05)
    assert weights_digest(unet) != digest


def test_weights_digest_is_the_same_in_half_precision_in_any_memory_format_and_with_any_threads(make_unet: Callable[..., Any]) -> None:
    unet = make_unet()
    digest = weights_digest(unet)
    assert weights_digest(make_unet().half()) == digest
    assert weights_digest(make_unet().to(memory_format=torch.channels_last)) == digest
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert weights_digest(unet) == digest
    finally:
        torch.set_num_threads(threads)


def test_the_embedded_weights_digest_does_not_depend_on_threads(embedded: StableDiffusionPipeline) -> None:
    threads, found = torch.get_num_threads(), set()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            found.add(weights_digest(embedded.unet))
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1


def test_config_digest_ignores_private_keys_alone() -> None:
    def digest(**config: Any) -> str:
        return config_digest(SimpleNamespace(config=config))

    assert digest(sample_size=8, _diffusers_version="1") == digest(_name_or_path="x", sample_size=8)
    assert digest(sample_size=8) != digest(sample_size=16)


def test_model_name_is_no_machine_path(folder: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    pipe = load_pipeline(folder)
    shutil.rmtree(folder)
    assert model_name(pipe) == "my-model", "also when the folder is gone"
    assert model_name(tiny_pipe) == ""
    tiny_pipe.register_to_config(_name_or_path="someone/model")
    assert model_name(tiny_pipe) == "someone/model"
    tiny_pipe.register_to_config(_name_or_path=str(embedded_dir("pipeline")))
    assert model_name(tiny_pipe) == "embedded"
