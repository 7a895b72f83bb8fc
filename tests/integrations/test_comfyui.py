"""ComfyUI nodes against `respodiff.steer` on the same h, with a stub of ComfyUI; and with ComfyUI itself where it is installed."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tests.integrations.comfy_stub import FolderPaths, OldPatcher, Patcher, Sampling
from torch import Tensor

from original_layout import save
from respodiff.steering.forms import make_form
from respodiff.steering.module import ConceptModule
from respodiff.steering.steer import steer

Pipe = StableDiffusionPipeline
Make = Callable[..., ConceptModule]

FOLDER = Path(__file__).parents[2] / "integrations/comfyui"


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The module of the nodes, with an empty folder models/respodiff/."""
    models = tmp_path_factory.mktemp("models")
    (models / "respodiff").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "folder_paths", FolderPaths(models))
        yield importlib.import_module("integrations.comfyui.nodes")


@pytest.fixture
def folder(nodes: Any) -> Iterator[Path]:
    """The folder models/respodiff/, emptied afterwards."""
    path = Path(nodes.folder_paths.models_dir) / "respodiff"
    yield path
    for file in path.iterdir():
        file.unlink()


def loaded(nodes: Any, tmp_path: Path, module: ConceptModule) -> Any:
    """A module as the nodes read it."""
    return nodes.read_module(module.save(tmp_path / f"{module.digest}.safetensors", force=True))


Step = tuple[Tensor, int, Tensor]
"""h (R, C, H, W) of a call of the UNet, its timestep, and h as steering leaves it."""


def steps(pipe: Pipe, adapters: Any, n: int, guidance: float = 3.0, size: tuple[int, int] = (8, 8), scale: float = 1.0) -> list[Step]:
    """Steps of a steered call."""
    plain: list[Tensor] = []
    times: list[int] = []
    steered: list[Tensor] = []
    dtype = pipe.unet.dtype
    latents = torch.randn(n, 4, *size, generator=torch.Generator().manual_seed(3)).to(dtype)
    handles = [
        pipe.unet.register_forward_pre_hook(lambda _m, args: times.append(int(args[1]))),
        pipe.unet.mid_block.register_forward_hook(lambda _m, _a, h: plain.append(h.clone())),
    ]
    with steer(pipe, adapters, scale=scale):
        handles.append(pipe.unet.mid_block.register_forward_hook(lambda _m, _a, h: steered.append(h.clone())))
        more = {"num_images_per_prompt": n, "guidance_scale": guidance, "num_inference_steps": 3, "output_type": "latent"}
        pipe("a doctor", latents=latents, height=size[0] * 2, width=size[1] * 2, **more)
    for handle in handles:
        handle.remove()
    assert len(plain) == len(times) == len(steered) == 3
    return list(zip(plain, times, steered, strict=True))


def sigmas_of(t: int, n: int) -> Tensor:
    return Sampling().sigmas[t].expand(n)


# --- what the patch adds is what steer adds ---


@pytest.mark.parametrize("patcher", [Patcher, OldPatcher])
@pytest.mark.parametrize(
    ("shape", "scale", "window", "size", "guidance", "dtype"),
    [
        ((64, 4, 4), 1.0, (0, 1000), (8, 8), 3.0, torch.float32),
        ((64, 4, 4), -0.7, (0, 1000), (8, 8), 1.0, torch.float32),
        ((64, 1, 1), 0.5, (0, 1000), (12, 8), 3.0, torch.float32),
        ((64, 4, 4), 1.0, (0, 1000), (12, 16), 3.0, torch.float32),
        ((64, 4, 4), 1.0, (300, 1000), (8, 8), 3.0, torch.float32),
        ((64, 1, 1), 1.0, (0, 334), (8, 8), 3.0, torch.float32),
        ((64, 4, 4), 0.3, (0, 1000), (8, 8), 3.0, torch.bfloat16),
    ],
)
@pytest.mark.filterwarnings("ignore:module of .* is resized")
def test_apply_equals_steer(
    nodes: Any,
    tmp_path: Path,
    tiny_pipe: Pipe,
    make_module: Make,
    patcher: type[OldPatcher],
    shape: tuple[int, int, int],
    scale: float,
    window: tuple[int, int],
    size: tuple[int, int],
    guidance: float,
    dtype: torch.dtype,
) -> None:
    module = make_module(shape=shape).scale(0.9)
    own = loaded(nodes, tmp_path, module)
    (model,) = nodes.RespoDiffApply().apply(patcher(), (own,), scale, window[1], window[0])
    inactive = 0
    for h, t, expected in steps(tiny_pipe.to(dtype), module.within(*window), 2, guidance, size, scale):
        out = model.decoded(h, [1, 0] if guidance > 1 else [0], sigmas_of(t, 2))
        assert torch.equal(out, expected) and out.dtype == dtype
        inactive += torch.equal(out, h)
    assert inactive == {(0, 1000): 0, (300, 1000): 1, (0, 334): 2}[window], "3 steps: timesteps 667, 334 and 1"


def test_each_image_gets_its_module_and_window(nodes: Any, tmp_path: Path, tiny_pipe: Pipe, make_module: Make) -> None:
    modules = [make_module(), make_module("man", seed=1, shape=(64, 1, 1)), make_module("dark", seed=2, timesteps=(300, 1000))]
    row = tuple(loaded(nodes, tmp_path, modules[i]) for i in (1, 0, 1, 2))
    (model,) = nodes.RespoDiffApply().apply(Patcher(), row, 1.0, 1000, 0)
    for h, t, expected in steps(tiny_pipe, [modules[i] for i in (1, 0, 1, 2)], 4):
        assert torch.equal(model.decoded(h, [1, 0], sigmas_of(t, 4)), expected)


def test_apply_nodes_add_up(nodes: Any, tmp_path: Path, tiny_pipe: Pipe, make_module: Make) -> None:
    a, b = make_module(), make_module("dark", seed=1, shape=(64, 1, 1))
    (once,) = nodes.RespoDiffApply().apply(Patcher(), (loaded(nodes, tmp_path, a),), 1.0, 1000, 0)
    (twice,) = nodes.RespoDiffApply().apply(once, (loaded(nodes, tmp_path, b),), 2.0, 1000, 0)
    for h, t, expected in steps(tiny_pipe, [[a, b.scale(2)]], 1):
        assert torch.allclose(twice.decoded(h, [1, 0], sigmas_of(t, 1)), expected, atol=1e-4)


def test_rows_of_any_order_and_number(nodes: Any, tmp_path: Path, make_module: Make) -> None:
    module = make_module()
    (model,) = nodes.RespoDiffApply().apply(Patcher(), (loaded(nodes, tmp_path, module),), 1.0, 1000, 0)
    h = torch.randn(6, 64, 4, 4)
    out = model.decoded(h, [0, 1, 0], sigmas_of(500, 2))
    assert torch.equal(out[:2], h[:2] + module.delta) and torch.equal(out[4:], h[4:] + module.delta)
    assert torch.equal(out[2:4], h[2:4]), "unconditional rows keep their bits"
    assert torch.equal(model.decoded(h, [1], sigmas_of(500, 6)), h)


def test_the_node_leaves_the_model_alone_and_narrows_windows(nodes: Any, tmp_path: Path, make_module: Make) -> None:
    plain, h = Patcher(), torch.randn(2, 64, 4, 4)
    (model,) = nodes.RespoDiffApply().apply(plain, (loaded(nodes, tmp_path, make_module(timesteps=(200, 600))),), 1.0, 500, 0)
    assert plain.model_options == {"transformer_options": {}}
    acts = [t for t in (100, 199, 200, 499, 500, 599) if not torch.equal(model.decoded(h, [1, 0], sigmas_of(t, 1)), h)]
    assert acts == [200, 499]


# --- refusals, one line each ---


@pytest.mark.parametrize("rows", [[], [0, 1, 2], [0, 0, 1, 1]])
def test_rows_that_cannot_be_told_apart(nodes: Any, tmp_path: Path, make_module: Make, rows: list[int]) -> None:
    (model,) = nodes.RespoDiffApply().apply(Patcher(), (loaded(nodes, tmp_path, make_module()),), 1.0, 1000, 0)
    with pytest.raises(ValueError, match="cond_or_uncond is"):
        model.decoded(torch.zeros(6, 64, 4, 4), rows, sigmas_of(500, 1))


def test_another_number_of_images_or_channels(nodes: Any, tmp_path: Path, make_module: Make) -> None:
    own = loaded(nodes, tmp_path, make_module())
    (model,) = nodes.RespoDiffApply().apply(Patcher(), (own, own), 1.0, 1000, 0)
    with pytest.raises(ValueError, match="schedule has 2 images, the batch 3"):
        model.decoded(torch.zeros(6, 64, 4, 4), [0, 1], sigmas_of(500, 3))
    with pytest.raises(ValueError, match="channels"):
        model.decoded(torch.zeros(4, 32, 4, 4), [0, 1], sigmas_of(500, 2))


NO_MIDDLE = {"diffusion_model": SimpleNamespace(middle_block=None)}
VIDEO = {"model_config": SimpleNamespace(unet_config={"model_channels": 32, "channel_mult": (1, 2), "use_temporal_resblock": True})}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"channels": 32}, "has 64 channels, the middle block of this model 32"),
        ({"diffusion_model": object()}, "model is"),
        ({"model_config": SimpleNamespace(unet_config={"image_model": "flux"})}, "model is"),
        (NO_MIDDLE, "model is"),
        (VIDEO, "model is"),
    ],
)
def test_models_that_do_not_fit(nodes: Any, tmp_path: Path, make_module: Make, changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match) as error:
        nodes.RespoDiffApply().apply(Patcher(**changes), (loaded(nodes, tmp_path, make_module()),), 1.0, 1000, 0)
    assert "\n" not in str(error.value)


def test_windows_that_mean_nothing(nodes: Any, tmp_path: Path, make_module: Make) -> None:
    own, late = (loaded(nodes, tmp_path, make_module(timesteps=window)) for window in ((0, 1000), (0, 300)))
    apply = nodes.RespoDiffApply().apply
    for module, start, end in ((own, 400, 400), (own, 100, 900), (late, 1000, 300)):
        with pytest.raises(ValueError, match="no timestep"):
            apply(Patcher(), (module,), 1.0, start, end)
    for module, start in ((own, 500), (late, 1000)):
        with pytest.raises(ValueError, match="model_sampling is Sampling"):
            apply(Patcher(sampling=Sampling(500)), (module,), 1.0, start, 0)
    apply(Patcher(sampling=Sampling(500)), (own,), 1.0, 1000, 0)


# --- files ---


def test_a_file_is_read_as_the_library_reads_it(nodes: Any, tmp_path: Path, make_module: Make) -> None:
    module = make_module("café", attribute="gender", timesteps=(10, 900), train={"lr": 0.1}, base_model="mine").scale(0.4)
    found = loaded(nodes, tmp_path, module)
    assert (found.name, found.scale, found.timesteps, found.base_model) == ("café", 0.4, (10, 900), "mine")
    assert torch.equal(found.delta(1), module.delta) and torch.equal(found.delta(0.5), module.scale(0.5).delta)


def _header(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["respodiff"])
    return found


def _write(path: Path, header: object, **tensors: Tensor) -> None:
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(tensors or load_file(path), path, metadata={"respodiff": text})


def _mlp(path: Path, module: ConceptModule) -> None:
    ram, sam = (make_form("mlp", (64, 4, 4), generator=torch.Generator()) for _ in range(2))
    ConceptModule.of(ram, sam, module.header).save(path, force=True)


def _site(path: Path, module: ConceptModule) -> None:
    replace(module, header=replace(module.header, site="transformer_blocks.1")).save(path, force=True)


def _changed(path: Path, module: ConceptModule) -> None:
    _write(path, _header(path), **{"ram.r": torch.zeros(64, 4, 4), "sam.r": torch.zeros(64, 4, 4)})


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (_mlp, "form is 'mlp'"),
        (_site, "site is 'transformer_blocks.1'"),
        (_changed, "digest"),
        (lambda path, _: path.unlink(), "cannot be read"),
        (lambda path, _: path.write_bytes(path.read_bytes()[:-8]), "cannot be read"),
        (lambda path, _: path.write_bytes(b"pickle"), "cannot be read"),
        (lambda path, _: save_file(load_file(path), path), "no respodiff header"),
        (lambda path, _: _write(path, _header(path) | {"scale": 9.0}), "the header is damaged"),
        (lambda path, _: _write(path, _header(path) | {"format": "respodiff-2"}), "format is 'respodiff-2'"),
        (lambda path, _: _write(path, "{"), "module file"),
        (lambda path, _: _write(path, "[]"), "broken header"),
        (lambda path, _: _write(path, "[" * 100_000), "broken header"),
    ],
)
def test_files_that_are_refused(nodes: Any, tmp_path: Path, make_module: Make, spoil: Callable[..., Any], match: str) -> None:
    module = make_module()
    path = module.save(tmp_path / "woman.safetensors")
    spoil(path, module)
    with pytest.raises(ValueError, match=match) as error:
        nodes.read_module(path)
    assert "\n" not in str(error.value) and "woman.safetensors" in str(error.value)


SHAPE = {"ram.r": torch.zeros(64, 4, 4), "sam.r": torch.zeros(64, 4, 4)}


@pytest.mark.parametrize(
    ("header", "tensors", "match"),
    [
        ({"timesteps": [500, 500]}, SHAPE, "timesteps"),
        ({"timesteps": 3}, SHAPE, "broken header"),
        ({}, {"ram.r": SHAPE["ram.r"]}, "tensors are"),
        ({}, SHAPE | {"sam.r": torch.zeros(64, 1, 1)}, "tensors are"),
        ({"form": "channel"}, SHAPE, "ram.r"),
        ({}, SHAPE | {"sam.r": torch.full((64, 4, 4), torch.nan)}, "NaN"),
    ],
)
def test_contents_that_are_refused(nodes: Any, tmp_path: Path, header: dict[str, Any], tensors: dict[str, Tensor], match: str) -> None:
    found = {"concept": "woman", "target": "a woman", "neutral": "a person", "form": "constant", "format": "respodiff-1", **header}
    module_file = sys.modules["integrations.comfyui.module_file"]
    found["digest"] = module_file._digest(module_file.DEFAULTS | {"scale": 1.0} | found, tensors)
    found["checksum"] = module_file._sha(json.dumps(found, sort_keys=True).encode())
    path = tmp_path / "mine.safetensors"
    _write(path, found, **tensors)
    with pytest.raises(ValueError, match=match):
        nodes.read_module(path)


# --- which image gets which concept ---


@pytest.mark.parametrize(("proportions", "n"), [([1, 1], 4), ([1, 1], 5), ([0.2, 0.3, 0.5], 7), ([3, 0, 1], 2)])
def test_exact_counts_are_within_one_of_their_shares(nodes: Any, proportions: list[float], n: int) -> None:
    shares = [p / sum(proportions) * n for p in proportions]
    sums = Counter[int]()
    for seed in range(400):
        counts = Counter(nodes.drawn(proportions, n, "exact", seed))
        assert counts.total() == n and all(abs(counts[i] - share) < 1 for i, share in enumerate(shares))
        sums += counts
    assert [sums[i] / 400 for i in range(len(shares))] == pytest.approx(shares, abs=0.1), "the mean over seeds is the share"


def test_draws_are_repeatable_and_in_random_order(nodes: Any) -> None:
    for draw in ("exact", "random"):
        first = nodes.drawn([1, 1], 8, draw, 5)
        assert first == nodes.drawn([1, 1], 8, draw, 5)
        assert len({tuple(nodes.drawn([1, 1], 8, draw, seed)) for seed in range(20)}) > 10
    counts = {nodes.drawn([1, 1], 8, "random", seed).count(0) for seed in range(50)}
    assert len(counts) > 3, "counts of random draws vary"


@pytest.mark.parametrize("proportions", ["", "1", "1, 1, 1", "1; 1", "-1, 2", "0, 0", "nan, 1"])
def test_proportions_that_are_refused(nodes: Any, tmp_path: Path, make_module: Make, proportions: str) -> None:
    module = (loaded(nodes, tmp_path, make_module()),)
    with pytest.raises(ValueError, match="proportions is"):
        nodes.RespoDiffConceptSchedule().schedule({"samples": torch.zeros(4, 4, 8, 8)}, module, proportions, "exact", 0, module_2=module)


def test_a_schedule_from_files_to_a_model(nodes: Any, folder: Path, make_module: Make) -> None:
    modules = {name: make_module(name, seed=seed) for seed, name in enumerate(("woman", "man"))}
    for name, module in modules.items():
        module.save(folder / f"{name}.safetensors")
    (folder / "notes.txt").touch()
    assert nodes.RespoDiffLoader.INPUT_TYPES()["required"]["file"] == (["man.safetensors", "woman.safetensors"],)
    given = [nodes.RespoDiffLoader().load(f"{name}.safetensors")[0] for name in modules]
    latent = {"samples": torch.zeros(4, 4, 8, 8)}
    row, text = nodes.RespoDiffConceptSchedule().schedule(latent, given[0], "3, 1", "exact", 1, module_2=given[1], module_3=None)
    names = text.split(", ")
    assert Counter(names) == {"woman": 3, "man": 1}
    (model,) = nodes.RespoDiffApply().apply(Patcher(), row, 1.0, 1000, 0)
    h = torch.randn(8, 64, 4, 4)
    out = model.decoded(h, [0, 1], sigmas_of(500, 4))
    assert torch.equal(out[:4], h[:4] + torch.stack([modules[name].delta for name in names])) and torch.equal(out[4:], h[4:])
    with pytest.raises(ValueError, match="itself a schedule"):
        nodes.RespoDiffConceptSchedule().schedule(latent, row, "1", "exact", 1)


def test_a_file_that_was_trained_anew_is_read_anew(nodes: Any, folder: Path, make_module: Make) -> None:
    file = make_module().save(folder / "woman.safetensors")
    before = nodes.RespoDiffLoader.IS_CHANGED("woman.safetensors")
    assert nodes.RespoDiffLoader.IS_CHANGED("woman.safetensors") == before
    os.utime(file, ns=(1, 1))
    assert nodes.RespoDiffLoader.IS_CHANGED("woman.safetensors") != before
    with pytest.raises(ValueError, match=r"file 'man\.safetensors'"):
        nodes.RespoDiffLoader().load("man.safetensors")


# --- the folder ---


def test_nodes_are_registered_and_the_workflow_uses_their_inputs(nodes: Any) -> None:
    package = importlib.import_module("integrations.comfyui")
    assert package.NODE_CLASS_MAPPINGS.keys() == package.NODE_DISPLAY_NAME_MAPPINGS.keys()
    used = json.loads((FOLDER / "workflow.json").read_text())
    own = {node["class_type"]: node["inputs"] for node in used.values() if node["class_type"] in package.NODE_CLASS_MAPPINGS}
    assert own.keys() == package.NODE_CLASS_MAPPINGS.keys()
    for name, inputs in own.items():
        types = package.NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
        assert types["required"].keys() <= inputs.keys() <= types["required"].keys() | types.get("optional", {}).keys()
    links = [value for node in used.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert {source for source, _ in links} < used.keys()


def test_nodes_import_neither_the_library_nor_its_dependencies() -> None:
    allowed = sys.stdlib_module_names | {"torch", "safetensors", "folder_paths"}
    for file in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {re.split(r"\.", name)[0] for name in names} <= allowed


# --- ComfyUI itself ---


@pytest.fixture
def comfy(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """ComfyUI's own modules; the test is skipped where they are not installed."""
    monkeypatch.setattr(sys, "argv", ["comfy", "--cpu"])
    why = "ComfyUI is not installed; integrations/comfyui/README.md says how to"
    names = ("model_base", "model_patcher", "sample", "samplers", "supported_models_base")
    return SimpleNamespace(**{name: pytest.importorskip(f"comfy.{name}", reason=why) for name in names})


def comfy_model(comfy: SimpleNamespace, pipe: Pipe, file: Path) -> Any:
    """ComfyUI's model, in its patcher, with the weights of the pipeline's UNet."""

    class Config(comfy.supported_models_base.BASE):  # type: ignore[misc]
        unet_extra_config = {"num_heads": 4, "num_head_channels": -1}  # noqa: RUF012

    unet = {"image_size": 8, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": [1, 1]}
    unet |= {"transformer_depth": [1, 0], "transformer_depth_output": [1, 1, 0, 0], "transformer_depth_middle": 1}
    unet |= {"use_spatial_transformer": True, "legacy": False, "context_dim": pipe.unet.config.cross_attention_dim, "dtype": torch.float32}
    model = comfy.model_base.BaseModel(Config(unet))
    start = "model.diffusion_model."
    weights = {k.removeprefix(start): t for k, t in load_file(save(pipe, file)).items() if k.startswith(start)}
    model.diffusion_model.load_state_dict(weights)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model.eval(), cpu, cpu)


def test_images_of_comfyui_are_those_of_the_library(
    comfy: SimpleNamespace,
    nodes: Any,
    tmp_path: Path,
    tiny_pipe: Pipe,
    make_unet: Callable[..., UNet2DConditionModel],
    make_module: Make,
) -> None:
    # Not from the last timestep, where ComfyUI starts at sqrt(1 + sigma^2) times the noise.
    euler = EulerDiscreteScheduler.from_config(tiny_pipe.scheduler.config, timestep_spacing="leading")
    tiny_pipe.register_modules(unet=make_unet(norm_num_groups=32), scheduler=euler)
    modules = [make_module(), make_module("man", seed=1, shape=(64, 1, 1)), make_module("dark", seed=2, timesteps=(300, 1000))]
    tiny_pipe.scheduler.set_timesteps(4)
    sigmas = tiny_pipe.scheduler.sigmas.clone()
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    start = noise * sigmas[0] / tiny_pipe.scheduler.init_noise_sigma

    def library(adapters: Any) -> Tensor:
        more = {"num_images_per_prompt": 3, "guidance_scale": 3.0, "num_inference_steps": 4, "output_type": "latent"}
        with steer(tiny_pipe, adapters, scale=0.5):
            return torch.as_tensor(tiny_pipe("a doctor", latents=start, **more).images)

    prompt, negative = tiny_pipe.encode_prompt("a doctor", torch.device("cpu"), 1, True)
    model = comfy_model(comfy, tiny_pipe, tmp_path / "unet.safetensors")

    def comfyui(patcher: Any) -> Tensor:
        sampler = comfy.samplers.ksampler("euler")
        conds = [[[c.detach(), {}]] for c in (prompt, negative)]
        return torch.as_tensor(comfy.sample.sample_custom(patcher, noise, 3.0, sampler, sigmas, *conds, torch.zeros_like(noise)))

    row = tuple(loaded(nodes, tmp_path, m) for m in modules)
    (steered,) = nodes.RespoDiffApply().apply(model, row, 0.5, 1000, 0)
    plain = library(None)
    assert torch.allclose(comfyui(model), plain, atol=1e-4)
    assert torch.allclose(comfyui(steered), library(modules), atol=1e-4)
    assert (library(modules) - plain).abs().amax((1, 2, 3)).min() > 0.1, "otherwise the test tests nothing"
    assert torch.allclose(comfyui(model), plain, atol=1e-4), "the model that went into the node is left alone"
