"""What every method does: trains or builds, is saved and loaded, acts on its own images alone, and leaves the pipeline as it was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.contracts.method_checks import WITHOUT_EFFECT, acts, classify, concept_for, settings_for
from tests.contracts.pipeline_checks import outcome
from tests.tiny_models import TINY_PIPELINES, flux, sd3
from torch import Tensor

from method_tools import MAKE, VIOLENCE, WOMAN, close, latents, noise, state, strong, unchanged
from respodiff.generation.generate import counted
from respodiff.methods.base import Method
from respodiff.methods.registry import NAMES, get_method, load
from respodiff.steering.adapter import Adapter
from respodiff.steering.module import ConceptModule
from respodiff.steering.steer import steer
from respodiff.training.config import TrainConfig

pytestmark = pytest.mark.slow

ON_TRANSFORMERS = set(NAMES) - {"sdisc", "fdf", "bact", "uce", "respodiff-paper"}
PROMPTS = ["a doctor"] * 3
# One name of each module also on SDXL.
CASES = [(name, "sd") for name in NAMES] + [(name, "sdxl") for name in {module: name for name, module in NAMES.items()}.values()]


@dataclass
class Case:
    """A method with what it made on a tiny pipeline."""

    method: Method
    pipe: Any
    records: list[Any]
    unet_forwards: int
    before: dict[str, Any]
    after: dict[str, Any]
    plain: Tensor

    @property
    def adapter(self) -> Adapter:
        made: Adapter = self.records[-1].module
        return made

    def train(self, **more: Any) -> list[Any]:
        return list(self.method.train(self.pipe, concept_for(self.method), settings_for(self.method), classify=classify, **more))


@cache
def made(name: str, family: str) -> Case:
    case = Case(get_method(name), pipe := strong(MAKE[family]()), [], 0, state(pipe), {}, latents(pipe, PROMPTS))
    with counted(pipe.unet) as forwards:
        case.records = case.train()
    case.unet_forwards, case.after = forwards[0], state(pipe)
    return case


@pytest.fixture(params=CASES, ids=lambda case: "-".join(case))
def case(request: pytest.FixtureRequest) -> Case:
    return made(*request.param)


def test_training_leaves_the_model_as_it_was_and_counts_its_forwards(case: Case) -> None:
    assert unchanged(case.before, case.after)
    assert [r.iteration for r in case.records] == list(range(1, len(case.records) + 1))
    assert case.records[-1].iterations == len(case.records)
    settings = settings_for(case.method)
    halves = isinstance(settings, TrainConfig) + getattr(settings, "trains_sam", False)  # passes of RAM and SAM start at the bottleneck
    replays = halves * settings.iterations * settings.batch if halves else 0
    assert case.records[-1].unet_forwards == case.unet_forwards + replays
    assert (case.unet_forwards == 0) == (not case.method.trains)


def test_the_header_names_method_concept_and_base_model(case: Case) -> None:
    header = case.adapter.header
    assert header.method == case.method.name and header.base_digest and header.base_weights and header.library
    # What is made of a whole attribute bears the attribute's name.
    assert header.concept in (concept_for(case.method).name, concept_for(case.method).attribute)


def test_a_file_gives_back_what_was_saved(case: Case, tmp_path: Path) -> None:
    path = case.adapter.save(tmp_path / "new" / "a.safetensors")
    found = load(path)
    assert type(found) is type(case.adapter) and found.digest == case.adapter.digest
    assert json.dumps(asdict(found.header)) == json.dumps(asdict(case.adapter.header))
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    assert torch.equal(latents(case.pipe, PROMPTS, found), latents(case.pipe, PROMPTS, case.adapter))


def test_scale_0_is_the_unsteered_image_bit_for_bit(case: Case) -> None:
    assert torch.equal(latents(case.pipe, PROMPTS, case.adapter.scale(0.0)), case.plain)
    assert unchanged(case.before, state(case.pipe))


def test_a_mixed_batch_draws_every_image_with_its_own(case: Case) -> None:
    entries = [case.adapter, None, case.adapter]
    together = latents(case.pipe, PROMPTS, entries)
    assert close(together[1], case.plain[1])
    acts = case.method.name not in WITHOUT_EFFECT
    assert all(close(together[i], case.plain[i], 1e-5) != acts for i in (0, 2))
    if not case.adapter.batch_dependent:
        alone = latents(case.pipe, PROMPTS[:1], case.adapter, start=noise(case.pipe, 3)[:1])
        assert close(together[:1], alone, 1e-3 * case.plain.abs().max().item())
    assert torch.equal(latents(case.pipe, PROMPTS), case.plain) and unchanged(case.before, state(case.pipe))


def test_an_exception_leaves_the_pipeline_as_it_was(case: Case) -> None:
    def fail(*_: Any) -> None:
        raise KeyError("in the middle")

    for entries in (case.adapter, [case.adapter, None, case.adapter]):
        with pytest.raises(KeyError, match="in the middle"):
            latents(case.pipe, PROMPTS, entries, callback_on_step_end=fail)
        assert unchanged(case.before, state(case.pipe))
    with pytest.raises(RuntimeError, match="of the caller"), steer(case.pipe, case.adapter):
        raise RuntimeError("of the caller")
    assert unchanged(case.before, state(case.pipe))
    assert torch.equal(latents(case.pipe, PROMPTS), case.plain)


def test_another_pipeline_of_the_same_model_is_left_alone(case: Case) -> None:
    more = {} if hasattr(case.pipe, "tokenizer_2") else {"requires_safety_checker": False}
    other = type(case.pipe)(**case.pipe.components, **more)
    other.set_progress_bar_config(disable=True)
    for entries in (case.adapter, [case.adapter, None, case.adapter]):
        with steer(case.pipe, entries):
            assert torch.equal(latents(other, PROMPTS), case.plain)


@pytest.mark.parametrize("name", NAMES)
def test_training_again_gives_the_same_and_a_stopped_one_goes_on(name: str) -> None:
    case = made(name, "sd")
    if not case.method.resumes:
        assert case.train()[-1].module.digest == case.adapter.digest
        return
    first = next(iter(case.method.train(case.pipe, concept_for(case.method), settings_for(case.method), classify=classify)))
    rest = case.train(resume=first.state.tensors())
    assert len(rest) == len(case.records) - 1 and rest[-1].module.digest == case.adapter.digest
    assert len({r.module.digest for r in case.records}) == len(case.records), "a record keeps what it was made of"


@pytest.mark.parametrize("name", NAMES)
def test_a_concept_of_another_kind_and_a_missing_classifier_are_refused(name: str) -> None:
    method, pipe = get_method(name), made(name, "sd").pipe
    for concept in (WOMAN, VIOLENCE):
        if concept.kind not in method.kinds:
            with pytest.raises(ValueError, match=concept.kind):
                method.train(pipe, concept)
        elif concept.kind in method.needs_classifier:
            with pytest.raises(ValueError, match="classify"):
                method.train(pipe, concept)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_a_transformer_works_or_is_refused(name: str) -> None:
    method, pipe = get_method(name), sd3() if name.startswith(("negative", "sld")) else flux()  # Flux is not guided
    if name not in ON_TRANSFORMERS:
        with pytest.raises(ValueError):
            method.fit(pipe, concept_for(method), classify=classify)
        with pytest.raises(ValueError), steer(pipe, made(name, "sd").adapter):
            pass
        return
    adapter = method.fit(pipe, concept_for(method), settings_for(method))
    assert not isinstance(adapter, ConceptModule) or adapter.shape[1:] == (1, 1)
    arguments: dict[str, Any] = {"prompt": "a doctor", "num_inference_steps": 2, "output_type": "latent", "height": 32, "width": 32}
    drawn = []
    for entry in (None, adapter, adapter.scale(0.0)):
        with steer(pipe, entry):
            drawn.append(pipe(**arguments, generator=torch.Generator().manual_seed(0)).images)
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[0], drawn[1]) == (name in WITHOUT_EFFECT)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["prompt", "negative", "sld-weak", "esd-x", "slider", "uce"])
@pytest.mark.parametrize("cls", ["SanaPipeline", "QwenImagePipeline", "CogView4Pipeline"])
def test_methods_on_transformers_act_or_are_refused_as_the_page_says(cls: str, name: str) -> None:
    page = json.loads((Path(__file__).parents[2] / "docs" / "results" / "backbones.json").read_text())
    assert list(outcome(acts(name), TINY_PIPELINES[cls])) == page["methods"][cls][name]
