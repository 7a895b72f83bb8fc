from __future__ import annotations

import copy
import json
import logging
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from tests import original_layout
from tests.drawing import contexts
from tests.tiny_models import TINY_PIPELINES, blackening, sd3

from respodiff.pipelines import loading, quantization
from respodiff.pipelines.denoiser import Denoiser, check_length, encode_prompts, is_offloaded
from respodiff.pipelines.dry_run import dry_run
from respodiff.pipelines.identity import config_digest, lora_digest, pipeline_digest, precision, weights_digest
from respodiff.pipelines.loading import embedded_dir, load_pipeline, model_name
from respodiff.pipelines.registry import Unsupported, backbone
from respodiff.pipelines.schedulers import SCHEDULERS, use_scheduler
from respodiff.pipelines.source import ModelSource
from respodiff.steering.self_test import sample_latents
from respodiff.steering.steer import steer

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


def test_a_scheduler_clips_only_where_the_models_own_does() -> None:
    silent = [scheduler() for scheduler in (DPMSolverMultistepScheduler, HeunDiscreteScheduler, DDIMScheduler)]
    for own, wanted in (*((own, False) for own in silent), (DDIMScheduler(clip_sample=True), True)):
        for name in ("ddim", "ddpm"):
            pipe = SimpleNamespace(scheduler=own)
            use_scheduler(pipe, name)
            assert pipe.scheduler.config.clip_sample is wanted, name


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
    if "ControlNet" in name:  # the tiny one has an embedding that no class reads back
        pipe.register_modules(controlnet=ControlNetModel.from_unet(pipe.unet))
    pipe.save_pretrained(tmp_path / "model")
    found = load_pipeline(tmp_path / "model")
    assert type(found) is type(pipe) and weights_digest(backbone(found)) == weights_digest(backbone(pipe))
    assert torch.allclose(contexts(found, ["a doctor"]), contexts(pipe, ["a doctor"]), atol=1e-4)


def one_line(error: pytest.ExceptionInfo[ValueError]) -> bool:
    return "\n" not in str(error.value)


def test_a_missing_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"absent' does not exist; give 'embedded', a folder with model_index.json, a .safetensors file, or a hub id"
    ) as error:
        load_pipeline(tmp_path / "absent")
    assert one_line(error)


def test_a_bare_name_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model folder 'my-checkpoint' does not exist; .* hub id OWNER/NAME"):
        load_pipeline("my-checkpoint")


def test_a_folder_without_a_part_names_it(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")
    with pytest.raises(ValueError, match=r"my-model' has no 'tokenizer', which its model_index.json names") as error:
        load_pipeline(folder)
    assert one_line(error)
    (folder / "model_index.json").unlink()
    with pytest.raises(ValueError, match=r"has no model_index.json"):
        load_pipeline(folder)


def test_modular_pipelines_are_not_loaded(folder: Path) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionXLModularPipeline"}))
    with pytest.raises(Unsupported, match=r"StableDiffusionXLModularPipeline is made of blocks, which are not loaded here") as error:
        load_pipeline(folder)
    assert one_line(error)
    (folder / "model_index.json").rename(folder / "modular_model_index.json")
    with pytest.raises(Unsupported, match=r"is made of blocks, which are not loaded here"):
        load_pipeline(folder)


def test_parts_that_are_given_are_not_looked_for(folder: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    shutil.rmtree(folder / "vae")
    assert load_pipeline(folder, vae=tiny_pipe.vae).vae is tiny_pipe.vae


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


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize(("part", "file", "name"), [
    ("text_encoder", "model.safetensors", "final_layer_norm"), ("unet", "diffusion_pytorch_model.safetensors", "mid_block"),
])  # fmt: skip
def test_weights_that_are_missing_are_never_random(part: str, file: str, name: str, quiet: bool, folder: Path) -> None:
    path, loggers = folder / part / file, [logging.getLogger(library) for library in ("diffusers", "transformers")]
    save_file({k: v for k, v in load_file(path).items() if name not in k}, path, {"format": "pt"})
    levels, handler, seen = [logger.level for logger in loggers], logging.Handler(), list[Any]()
    handler.emit = seen.append  # type: ignore[method-assign]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        for logger in loggers:
            logger.setLevel(now := logging.ERROR if quiet else logging.WARNING)
        with pytest.raises(ValueError, match=f"lack weights of its model: .*{name}"):
            load_pipeline(folder)
        assert bool(seen) != quiet and all(logger.level == now and handler in logger.handlers for logger in loggers)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def test_a_folder_of_an_unsupported_pipeline_is_refused(tmp_path: Path) -> None:
    unet = UNet2DModel(8, 3, 3, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",))
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="pipeline DDPMPipeline is not supported; supported: StableDiffusionPipeline"):
        load_pipeline(tmp_path)


# --- as diffusers loads ---


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What DiffusionPipeline.from_pretrained is called with."""
    real, seen = DiffusionPipeline.from_pretrained, dict[str, Any]()

    def from_pretrained(name: str, **more: Any) -> Any:
        seen.update(more, name=name)
        return real(name, **{k: v for k, v in more.items() if k not in ("revision", "cache_dir")})

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    return seen


def test_what_diffusers_takes_is_passed_on(folder: Path, given: dict[str, Any]) -> None:
    load_pipeline(folder, cache_dir="x", torch_dtype=torch.bfloat16)
    assert given["name"] == str(folder) and given["cache_dir"] == "x" and given["local_files_only"]
    assert torch.bfloat16 in (given.get("dtype"), given.get("torch_dtype")) and given["use_safetensors"]


def test_a_revision_of_the_hub_reaches_the_index_and_the_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, pipe = list[Any](), load_pipeline(folder)
    index = json.loads((folder / "model_index.json").read_text())
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda name, **more: seen.append((name, more)) or index)
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda name, **more: seen.append((name, more)) or pipe)
    load_pipeline("someone/model", revision="v2", token="t")
    load_pipeline("someone/model@v2", token="t")
    ModelSource("someone/model", revision="v2").load()
    assert [name for name, _ in seen] == ["someone/model"] * 6
    assert [more["revision"] for _, more in seen] == ["v2"] * 6 and [more.get("token") for _, more in seen] == ["t"] * 4 + [None] * 2


def test_a_folder_has_no_revision(folder: Path) -> None:
    with pytest.raises(ValueError, match="revision is 'v2'"):
        load_pipeline(folder, revision="v2")


def test_weights_are_built_in_their_dtype(folder: Path) -> None:
    for name in ("torch_dtype", "dtype"):
        pipe = load_pipeline(folder, **{name: torch.bfloat16})
        assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.bfloat16 and precision(pipe.unet) == "bfloat16"


@pytest.mark.parametrize(
    ("device", "trains", "expected"), [("cpu", False, "float32"), ("meta", False, "float16"), ("meta", True, "float32")]
)
def test_dtype_auto(device: str, trains: bool, expected: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StableDiffusionPipeline, "to", lambda pipe, _: pipe)  # an accelerator that is not here
    load_pipeline(folder).to(torch.float16)
    pipe = load_pipeline(folder)
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.to(torch.float16)
    pipe.save_pretrained(folder)
    assert load_pipeline(folder, device=device, torch_dtype="auto", trains=trains).unet.dtype == getattr(torch, expected)
    assert load_pipeline("embedded", device=device, torch_dtype="auto").unet.dtype == torch.float32
    pipe.save_pretrained(folder, variant="bf16")
    assert load_pipeline(folder, device="meta", torch_dtype="auto", variant="bf16").unet.dtype == torch.float16


def test_convolutions_are_channels_last_and_the_file_stays_as_it_was(folder: Path, tiny_pipe: StableDiffusionPipeline) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = file.read_bytes()
    unet = load_pipeline(folder).unet
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) and not unet.conv_in.weight.is_contiguous()
    assert all(torch.equal(p, q) for p, q in zip(unet.parameters(), tiny_pipe.unet.parameters(), strict=True))
    assert file.read_bytes() == before


def test_a_variant_is_read_when_it_is_named(folder: Path) -> None:
    pipe = load_pipeline(folder)
    for part in ("unet", "vae", "text_encoder"):
        shutil.rmtree(folder / part)
    pipe.save_pretrained(folder, variant="fp16")
    with pytest.raises(ValueError, match=r"as the variant 'fp16' alone; give variant='fp16' \(--variant fp16\)") as error:
        load_pipeline(folder)
    assert one_line(error)
    assert weights_digest(load_pipeline(folder, variant="fp16").unet) == weights_digest(pipe.unet)
    pipe.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"variant is 'ema', which .* has not; its variants: fp16"):
        load_pipeline(folder, variant="ema")


@pytest.mark.slow
@pytest.mark.parametrize(("parts", "variant"), [("*", ""), ("unet", ""), ("*", "fp16")])
def test_a_pickle_is_refused_with_a_command_that_converts_it(parts: str, variant: str, folder: Path) -> None:
    for file in folder.glob(f"{parts}/*.safetensors"):
        name = "pytorch_model" if "text" in str(file.parent) else "diffusion_pytorch_model"
        torch.save(load_file(file), file.with_name(".".join([name, *[variant] * bool(variant), "bin"])))
        file.unlink()
    with pytest.raises(
        ValueError, match=r"as a pickle \(.*\.bin\), which is never read here; if you trust it, convert it: python -c "
    ) as error:
        load_pipeline(folder, **({"variant": variant} if variant else {}))
    assert one_line(error)
    with pytest.raises(ValueError, match="as a pickle"):
        dry_run(folder)
    _, *command = shlex.split(str(error.value).partition("convert it: ")[2])
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    assert load_pipeline(f"{folder}-safe").unet.dtype == torch.float32


def test_a_sharded_variant_is_told_from_its_name(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet" / "diffusion_pytorch_model.fp16-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match="'unet' as the variant 'fp16' alone"):
        load_pipeline(folder)


def test_nothing_is_read_of_a_model_that_cannot_be_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are read")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", read)
    index = folder / "model_index.json"
    for name in ("NoSuchPipeline", "DDPMPipeline"):
        index.write_text(index.read_text().replace("StableDiffusionPipeline", name).replace("NoSuchPipeline", name))
        with pytest.raises(Unsupported, match=f"pipeline {name} is not .*supported: StableDiffusionPipeline"):
            load_pipeline(folder)
    monkeypatch.setattr(DiffusionPipeline, "load_config", lambda *_, **__: {"_class_name": "DDPMPipeline"})
    with pytest.raises(Unsupported, match="DDPMPipeline"):
        load_pipeline("someone/model")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"offload": "disk"}, "offload is 'disk'; allowed: none, model"),
        ({"offload": "model"}, "offload is 'model', which needs an accelerator"),
        ({"quantize": "int2"}, "quantize is 'int2'; allowed: nf4, int8"),
        ({"torch_dtype": "int8"}, "torch_dtype is 'int8'; allowed: auto"),
        ({"lora": ["absent.safetensors"]}, "lora 'absent.safetensors' cannot be loaded"),
        ({"config": "x"}, "config is 'x', and model .* is no single file"),
    ],
)
def test_arguments_that_cannot_be(more: dict[str, Any], said: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=said) as error:
        load_pipeline(folder, **more)
    assert one_line(error)


# --- single files ---


def test_a_checkpoint_in_one_file(tmp_path: Path) -> None:
    pipe = TINY_PIPELINES["StableDiffusionPipeline"]()
    pipe.save_pretrained(tmp_path / "base")
    file = original_layout.save(pipe, tmp_path / "mine.safetensors")
    found = load_pipeline(file, config=tmp_path / "base")
    assert type(found) is type(pipe) and model_name(found) == "mine.safetensors"
    for part in ("unet", "vae", "text_encoder"):
        expected, own = getattr(pipe, part).state_dict(), getattr(found, part).state_dict()
        assert expected.keys() == own.keys() and all(torch.equal(expected[key], own[key]) for key in own)
    half = ModelSource(str(file), dtype="bfloat16", config=str(tmp_path / "base")).load()
    assert half.unet.dtype == torch.bfloat16


def test_a_single_file_says_what_it_needs(tmp_path: Path, folder: Path) -> None:
    file = original_layout.save(TINY_PIPELINES["StableDiffusionPipeline"](), tmp_path / "mine.safetensors")
    for more, said in (
        ({}, r"needs the configurations of its base, .*; give config \(--model-config\)"),
        ({"config": tmp_path / "absent" / "x"}, r"give config \(--model-config\)"),
        ({"config": folder, "variant": "fp16"}, "variant is given, which a single file cannot take"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            load_pipeline(file, **more)
        assert one_line(error)
    (tmp_path / "x.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"x.ckpt' is a file that is no .safetensors, and pickles are never executed"):
        load_pipeline(tmp_path / "x.ckpt")
    with pytest.raises(ValueError, match=r"model file .* does not exist"):
        load_pipeline(tmp_path / "absent.safetensors")


# --- LoRA, offloading, quantisation ---


def lora_file(pipe: Any, path: Path, seed: int) -> Path:
    """A LoRA of random weights in the file that diffusers writes."""
    torch.manual_seed(seed)
    pipe.unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    type(pipe).save_lora_weights(path.parent, unet_lora_layers=get_peft_model_state_dict(pipe.unet), weight_name=path.name)
    pipe.unet.delete_adapters("default")
    return path


def test_loras_with_weights(folder: Path, tmp_path: Path) -> None:
    pipe = load_pipeline(folder)
    first, second = (lora_file(pipe, tmp_path / f"{seed}.safetensors", seed) for seed in (1, 2))

    def latents(*lora: str) -> torch.Tensor:
        loaded = ModelSource(str(folder), lora=lora).load()
        assert weights_digest(loaded.unet) == weights_digest(pipe.unet), "a LoRA is beside the model"
        return sample_latents(loaded)

    plain, one, half = latents(), latents(str(first)), latents(f"{first}:0.5")
    assert not torch.allclose(one, plain) and not torch.allclose(half, one) and torch.allclose(latents(f"{first}:0"), plain)
    pipe.load_lora_weights(tmp_path, weight_name=first.name, adapter_name="a")
    pipe.load_lora_weights(tmp_path, weight_name=second.name, adapter_name="b")
    pipe.set_adapters(["a", "b"], [0.5, 1.0])
    assert torch.allclose(latents(f"{first}:0.5", str(second)), sample_latents(pipe), atol=1e-6)
    digests = {
        lora_digest(ModelSource(str(folder), lora=given).load().unet) for given in ((), (str(first),), (f"{first}:0.5",), (str(second),))
    }
    assert len(digests) == 4 and "" in digests


@pytest.mark.skipif("group" in loading.NEED_ACCELERATOR, reason="diffusers below 0.41 offloads groups to an accelerator alone")
def test_group_offload_draws_the_same_and_refuses_training(folder: Path, make_module: Callable[..., Any]) -> None:
    pipe, offloaded = load_pipeline(folder), load_pipeline(folder, offload="group")
    with steer(pipe, make_module()):
        expected = sample_latents(pipe)
    with steer(offloaded, make_module()):
        assert torch.allclose(sample_latents(offloaded), expected, atol=1e-5)
    assert torch.allclose(sample_latents(offloaded), sample_latents(pipe), atol=1e-5) and is_offloaded(offloaded.unet)
    with pytest.raises(ValueError, match="offloaded"):
        Denoiser(offloaded)


def test_quantisation_says_what_it_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loading, quantization):
        monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"quantize is 'nf4', which needs bitsandbytes: pip install 'respodiff\[quant\]'"):
        load_pipeline(folder, quantize="nf4")
    with pytest.raises(ValueError, match=r"lora is 'x/y', which needs peft: pip install 'respodiff\[lora\]'"):
        load_pipeline(folder, lora=["x/y"])
    monkeypatch.setattr(quantization, "find_spec", lambda _: True)
    monkeypatch.setattr(loading, "chosen_device", lambda device: device)
    with pytest.raises(ValueError, match="needs a CUDA GPU or the CPU, and the device is mps"):
        load_pipeline(folder, quantize="nf4", device="mps")
    with pytest.raises(ValueError, match="beside a device_map"):
        load_pipeline(folder, quantize="nf4", device_map="balanced")


def test_gradient_checkpointing(folder: Path) -> None:
    assert load_pipeline(folder, gradient_checkpointing=True).unet.is_gradient_checkpointing
    assert not load_pipeline(folder).unet.is_gradient_checkpointing


# --- prompts ---


def test_prompts_are_encoded_as_the_pipeline_does_it_in_the_order_given(tiny_pipe: StableDiffusionPipeline) -> None:
    prompts = ["a woman", "a man", "a woman", "a person with dark skin"]
    expected, _ = tiny_pipe.encode_prompt(prompts, "cpu", 1, False)
    assert torch.allclose(contexts(tiny_pipe, prompts), expected, atol=1e-6)
    assert not contexts(tiny_pipe, prompts).requires_grad


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


def test_pipeline_digest_tells_pipelines_of_any_dtype_apart(tiny_pipe: StableDiffusionPipeline) -> None:
    first = pipeline_digest(tiny_pipe)
    half = copy.deepcopy(tiny_pipe).to(torch.bfloat16)
    half.unet.load_state_dict({k: v.bfloat16().float() for k, v in tiny_pipe.unet.state_dict().items()})
    found = [first, pipeline_digest(half)]
    assert weights_digest(half.unet) == "", "which cannot tell them apart"
    for change in (
        lambda: half.unet.conv_out.weight.data.mul_(1.05),
        lambda: half.vae.decoder.conv_out.weight.data.mul_(1.05),
        lambda: half.text_encoder.get_input_embeddings().weight.data.mul_(1.05),
        lambda: setattr(half, "scheduler", DDIMScheduler.from_config(half.scheduler.config, timestep_spacing="trailing")),
    ):
        change()
        found.append(pipeline_digest(half))
    assert len({*found}) == 6
    assert pipeline_digest(half) == found[-1] and pipeline_digest(tiny_pipe) == first


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
