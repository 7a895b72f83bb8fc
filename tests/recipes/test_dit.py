"""The recipe of the transformer: all stages in small, resuming, what its pipeline is worth, and what is refused."""

from __future__ import annotations

import csv
import functools
import json
import shutil
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from recipes.embedded_dit import __main__ as driver
from recipes.embedded_dit.stages import OWN, read_config
from recipes.embedded_dit.transformer import SIDE, FlowTask, flops, make_scheduler, make_transformer, padded, told
from recipes.embedded_model import assemble, models
from recipes.embedded_model.card import PARTS
from recipes.embedded_model.loop import Loop
from recipes.embedded_model.tokens import encode, load_tokenizer
from recipes.embedded_model.world import Caption
from safetensors.torch import load_file

from command import last_json, respodiff
from respodiff import load_pipeline
from respodiff.pipelines.denoiser import Denoiser
from respodiff.pipelines.loading import embedded_dir
from respodiff.pipelines.registry import call_arguments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SHOWN = ("health worker", "office worker", "kitchen knife", "bikini", "tulip", "rainbow")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights like the package's, with tiny networks in its pipeline."""
    folder, shipped = tmp_path_factory.mktemp("base"), embedded_dir("")
    for part in PARTS:
        if part != "pipeline":
            (shutil.copytree if (shipped / part).is_dir() else shutil.copy)(shipped / part, folder / part)
    torch.manual_seed(0)
    tokenizer = load_tokenizer(shipped / "pipeline" / "tokenizer")
    parts = models.make_unet([16, 32], 4, 32, 4), models.make_text_encoder(len(tokenizer), 32, 2), models.make_autoencoder([8, 8, 8, 8], 4)
    assemble.write_pipeline(folder / "pipeline", *parts, tokenizer, 1.5)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few labelled images."""
    folder, labelled = tmp_path_factory.mktemp("images"), ROOT / "benchmarks/data/labelled"
    with (labelled / "labels.csv").open(newline="") as handle:
        rows = [row for row in csv.DictReader(handle) if row["subject"] in SHOWN]
    with (folder / "labels.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        shutil.copy(labelled / row["file"], folder / row["file"])
    return folder


@pytest.fixture(scope="module")
def run(base: Path, images: Path) -> Any:
    """The command in miniature."""

    def command(out: Path, *more: str) -> int:
        flags = ["--out", str(out), "--miniature", "--device", "cpu", "--images", str(images), "--base", str(base)]
        return driver.main([*flags, *more])

    return command


@pytest.fixture(scope="module")
def losses() -> list[float]:
    """Of every step of `made`."""
    return []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, run: Any, losses: list[float]) -> Path:
    """One run of the whole recipe in miniature."""
    out, real = tmp_path_factory.mktemp("dit") / "mini", FlowTask.__call__

    def noted(self: FlowTask, generator: torch.Generator) -> torch.Tensor:
        loss = real(self, generator)
        losses.append(loss.item())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FlowTask, "__call__", noted)
        assert run(out) == 0
    return out


@pytest.fixture(scope="module")
def pipe(made: Path) -> Any:
    return load_pipeline(made / "weights" / "pipeline")


def test_the_loss_falls_and_the_card_measures_the_folder(made: Path, losses: list[float]) -> None:
    assert len(losses) == 30 and mean(losses[-10:]) < 0.9 * mean(losses[:10])
    about, text = (json.loads((made / "weights" / "card.json").read_text()), (made / "weights" / "CARD.md").read_text())
    assert about["steps"] == 2 and about["sampler"] == "DPMSolverMultistepScheduler"
    assert "doctor" in {row["name"] for row in about["occupations"]} and {"mean_abs_error", "explicit", "unsafe", "psnr_db"} <= set(about)
    assert text.startswith("# A diffusion transformer") and "| doctor | 1 | 0.85 |" in text and str(made) not in text


def test_a_stopped_run_ends_with_the_same_bits(
    made: Path, run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("data", "recipe.json", "parts", "state"):
        (shutil.copytree if (made / part).is_dir() else shutil.copy)(made / part, tmp_path / part)
    for part in ("parts", "state"):
        (tmp_path / part / "transformer.safetensors").unlink()
    real, calls = FlowTask.__call__, []

    def stopped(self: FlowTask, generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 12:
            raise KeyboardInterrupt
        return real(self, generator)

    with monkeypatch.context() as patch:
        patch.setattr(FlowTask, "__call__", stopped)
        patch.setattr(Loop, "__init__", functools.partialmethod(Loop.__init__, save_every=0.0))
        assert run(tmp_path, "--stages", "transformer") == 130
    assert not (tmp_path / "parts" / "transformer.safetensors").exists()
    assert run(tmp_path, "--stages", "transformer") == 0
    assert "transformer: goes on at step 11" in capsys.readouterr().out
    ours, whole = (load_file(folder / "parts" / "transformer.safetensors") for folder in (tmp_path, made))
    assert all(torch.equal(ours[k], whole[k]) for k in whole)


def test_the_pipeline_loads_and_the_commands_take_it(made: Path, pipe: Any, tmp_path: Path) -> None:
    assert type(pipe).__name__ == "PixArtSigmaPipeline" and pipe.transformer.num_parameters() < 50_000
    model = ["--model", str(made / "weights" / "pipeline"), "--device", "cpu"]
    drawn = respodiff("generate", *model, "--prompt", "a doctor", "--images", "1", "--steps", "2", "--out", str(tmp_path / "run"), "--json")
    assert last_json(drawn)["images"] == 1
    module = tmp_path / "woman.safetensors"
    trained = respodiff("train", "--concept", "woman", *model, "--set", "iterations=2", "--out", str(module), "--json")
    assert last_json(trained) and module.is_file()


def test_what_training_tells_the_transformer_is_what_the_pipeline_tells_it(base: Path, pipe: Any) -> None:
    """The pipeline pads to 300 tokens, training to 32."""
    texts = ["a doctor", "a female nurse with dark skin, flat style", ""]
    theirs, mask, *_ = pipe.encode_prompt(texts, do_classifier_free_guidance=False)
    ours = told(models.load_part(base / "pipeline", "text_encoder"), encode(pipe.tokenizer, texts))
    assert theirs.shape[1] == 300 and torch.equal(mask[:, :32], ours["encoder_attention_mask"]) and mask[:, 32:].sum() == 0
    z, t = torch.randn(3, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0)), torch.tensor([900.0, 500.0, 20.0])
    more = {"encoder_hidden_states": theirs, "encoder_attention_mask": mask, "added_cond_kwargs": ours["added_cond_kwargs"]}
    with torch.no_grad():
        assert torch.allclose(pipe.transformer(z, timestep=t, **ours).sample, pipe.transformer(z, timestep=t, **more).sample, atol=1e-4)
    with pytest.raises(ValueError, match=r"has \d+ tokens; this model takes 32"):
        Denoiser(pipe).encode(["very " * 40])


@pytest.mark.parametrize("steps", [2, 8, 20])
def test_the_velocity_that_the_loss_asks_for_leads_to_the_image(pipe: Any, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """By the pipeline's own call, and by Euler's scheduler of flow matching, with which modules are trained."""
    image = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    noise = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(4))

    def velocity(x: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return ((x - image) / (timestep.view(-1, 1, 1, 1) / 1000),)  # noise - image where x is (1 - s) image + s noise

    with monkeypatch.context() as patch:
        patch.setattr(pipe.transformer, "forward", velocity)
        found = pipe(**call_arguments(pipe, ["a doctor"], 1.0), num_inference_steps=steps, latents=noise, output_type="latent").images
    assert (found - image).abs().max() < 0.01
    euler, x = Denoiser(pipe).sampler(steps), noise
    for t in euler.timesteps:
        x = euler.step(velocity(x, t[None])[0], t, x).prev_sample
    assert torch.allclose(x, image, atol=1e-4)


def test_the_loss_of_that_velocity_is_nought(base: Path) -> None:
    """A transformer that knows the one image there is predicts ``noise - image``."""
    folder, text = base / "pipeline", models.load_part(base / "pipeline", "text_encoder")
    latents = torch.randn(1, 1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).half()
    z = latents[0].float() * 1.5

    class Knows(torch.nn.Module):
        device = torch.device("cpu")

        def forward(self, x: torch.Tensor, timestep: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(sample=(x - z) / (timestep.view(-1, 1, 1, 1) / 1000))

    caption = SimpleNamespace(text="a doctor", image=0)
    task = FlowTask(Knows(), text, load_tokenizer(folder / "tokenizer"), latents, 1.5, [caption], 16)  # type: ignore[arg-type, list-item]
    assert task(torch.Generator().manual_seed(0)).item() < 1e-6


def test_a_transformer_comes_to_read_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two images, all ones and all minus ones, pure noise shows neither."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(embedded_dir("pipeline") / "tokenizer")
    network, text = make_transformer(4, 32, 16, 2, 2, 4), models.make_text_encoder(len(tokenizer), 32, 1)
    latents = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1, 1).expand(1, 2, 4, SIDE, SIDE)
    task = FlowTask(network, text, tokenizer, latents, 1.0, [Caption(0, "a doctor"), Caption(1, "a bomb")], 16)
    monkeypatch.setattr(task, "shares", lambda _: torch.ones(16))
    Loop("two images", tmp_path / "state.safetensors", lr=1e-2, warmup=5, steps=60).run(network, task)
    with torch.no_grad():
        own = task(torch.Generator().manual_seed(1))
        task.texts = task.texts.flip(0)
        assert task(torch.Generator().manual_seed(1)) > own + 1


def test_the_real_transformer_has_at_most_15_million_numbers() -> None:
    size = read_config()["models"]["transformer"]
    assert 10_000_000 < make_transformer(8, 256, **size).num_parameters() <= 15_000_000
    for change, text in (
        ({"width": 512}, r"has [\d,]+ numbers; allowed: 15,000,000"),
        ({"width": 250}, "width 250.*a multiple of four times the heads"),
        ({"patch": 3}, "patch 3; allowed: a divisor of 16"),
    ):
        with pytest.raises(ValueError, match=text):
            make_transformer(8, 256, **size | change)


def test_operations_are_counted() -> None:
    text = models.make_text_encoder(40, 16, 1)
    one, two = (flops(make_transformer(4, 16, 16, layers, 2, 2), text) for layers in (1, 2))
    d, n, t = 16, 64, 32
    block = 2 * (4 * d * d * n + 2 * d * n * n + 2 * d * d * n + 2 * d * d * t + 2 * d * n * t + 8 * d * d * n)
    assert two - one == 3 * block


def test_a_longer_text_encoder_is_the_same_on_what_it_had_room_for() -> None:
    torch.manual_seed(0)
    text, ids = models.make_text_encoder(40, 16, 1).eval(), torch.randint(2, 40, (2, 32))
    with torch.no_grad():
        assert torch.equal(text(ids)[0], padded(text)(ids)[0])


def test_the_sampler_is_of_flow_matching() -> None:
    scheduler = make_scheduler()
    scheduler.set_timesteps(4)
    assert scheduler.sigmas[-1] == 0 and torch.allclose(scheduler.sigmas[:-1], scheduler.timesteps / 1000, atol=1e-3)


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (["--stages", "data,denoiser"], "--stages has 'denoiser'; allowed: data, transformer, assemble, card"),
        (["--base", "src"], "'src' has no pipeline; allowed: 'embedded', or a folder with"),
        (["--images", "nowhere"], "images 'nowhere' has no labels.csv"),
        (["--config", "nowhere.toml"], "config nowhere.toml cannot be read"),
        (["--stages", "assemble"], "stage transformer has no fitting result"),
    ],
)
def test_bad_input_is_one_line(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str], text: str
) -> None:
    monkeypatch.chdir(ROOT)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    if more == ["--stages", "assemble"]:
        assert run(tmp_path / "out", "--stages", "data") == 0
    assert run(tmp_path / "out", *more) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(error) == 1 and text in error[0]


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("layers = 12", "layer = 12", r"\[model\] has 'layer'; allowed: width, layers"),
        ("layers = 12", "layers = 1.5", r"\[model\] has layers 1.5; allowed: whole numbers above 0"),
        ("batch = 1024", "batch = 0", r"\[train\] has batch 0; allowed: whole numbers above 0"),
        ("[miniature.card]", "[miniature.cards]", r"\[miniature\] has 'cards'"),
    ],
)
def test_a_wrong_config_is_refused(tmp_path: Path, old: str, new: str, text: str) -> None:
    config, known = tmp_path / "c.toml", OWN.read_text()
    assert old in known
    config.write_text(known.replace(old, new, 1))
    with pytest.raises(ValueError, match=text + ".*; start from the recipe's own config.toml"):
        read_config(config)


def test_a_folder_of_other_settings_is_refused(run: Any, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.toml"
    other.write_text("[miniature.train]\nbatch = 9\n")
    assert run(made, "--config", str(other)) == 1
    assert "was made with other settings" in capsys.readouterr().err
