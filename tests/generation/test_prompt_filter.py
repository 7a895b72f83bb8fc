"""The prompt filter: words looked for, a probe against its equation written out, and images that must be those of the plain model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from tests.tiny_models import sdxl

from command import last_json, respodiff
from method_tools import MAN, WOMAN
from respodiff.cli import generate as cli_generate
from respodiff.data.records import parse_row
from respodiff.data.run_folder import RunFolder
from respodiff.generation import gate_probe, prompt_filter
from respodiff.generation.config import GenerateConfig
from respodiff.generation.gate_encoder import Encoder
from respodiff.generation.gate_probe import Checked, Probe, _Corpus, cache_file, fit, fitted, threshold
from respodiff.generation.gate_prompts import Example, person_examples, stated_examples
from respodiff.generation.generate import generate
from respodiff.generation.prompt_filter import PERSON, PromptFilter, filter_explicit, make_filter, read_words
from respodiff.generation.prompt_words import forms_of, listed, person_in, stated_in
from respodiff.methods.base import applied
from respodiff.steering.adapter import MethodAdapter
from respodiff.steering.module import ConceptModule, Header
from respodiff.steering.steer import steer

Make = Callable[..., ConceptModule]
STATED, NOBODY, ASKED = "a male nurse", "a red car on a beach", "a nurse"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fits on an eighth of the composed prompts: for tests of what is done with the answers."""
    monkeypatch.setattr(prompt_filter, "person_examples", lambda: person_examples()[::8])
    monkeypatch.setattr(prompt_filter, "stated_examples", lambda forms: stated_examples(forms)[::8])


@pytest.fixture
def gender(make_module: Make) -> list[ConceptModule]:
    modules = [make_module("woman", "gender"), make_module("man", "gender", seed=1)]
    return [ConceptModule(m.ram, m.sam, Header(m.name, f"a {m.name}", "a person", attribute="gender")) for m in modules]


def quiet_draw(*args: Any, **kwargs: Any) -> dict[str, tuple[Any, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {record.id: (record, image) for record, image in generate(*args, **kwargs)}


# --- words ---


@pytest.mark.parametrize(
    ("attribute", "stating", "silent"),
    [
        (
            "gender",
            ["a male nurse", "a nurse who is a WOMAN", "a photo of a boy", "a doctor and her dog", "a non-binary cook"],
            ["a nurse"],
        ),
        ("gender", ["a gender-neutral chef", "two queens", "a businessman"], ["a manager", "a human", "a doctor from germany", "a shelf"]),
        ("tone", ["a dark-skinned doctor", "a doctor with dark skin", "a Black doctor"], ["a doctor in a black coat", "a dark room"]),
        ("age", ["an old farmer", "an elderly chef", "a young female judge"], ["a farmer in an old house", "a new teacher"]),
    ],
)
def test_words_that_state_an_attribute(attribute: str, stating: list[str], silent: list[str]) -> None:
    assert all(stated_in(text, listed(attribute)) for text in stating)
    assert not any(stated_in(text, listed(attribute)) for text in silent)


def test_words_for_people() -> None:
    assert all(person_in(t) for t in (ASKED, STATED, "two ceos", "a portrait of the families", "a beekeeper", "a woman's face"))
    assert not any(person_in(t) for t in (NOBODY, "a list of things", "a deer at dawn", "a snowman", "a scene"))
    assert not person_in("a beekeeper", guess=False), "not listed"


def test_an_attribute_of_ones_own_is_stated_by_what_its_prompts_add() -> None:
    hat = forms_of("hat", [("a person with a hat", "a person"), ("a bald person", "a person")])
    assert [bool(stated_in(t, hat)) for t in ("a nurse with a hat", "a bald nurse", "a nurse", "a bald tyre")] == [True, True, False, False]
    three = forms_of("gender3", [("a woman", "a person"), ("a nonbinary person", "a person")])
    assert stated_in("a boy", three) and not stated_in("a nurse", three), "it knows the words of gender by its targets"


def test_examples_say_what_they_are_said_to(tokenizer: Any) -> None:
    for attribute in ("gender", "tone", "race", "age"):
        forms = listed(attribute)
        examples = stated_examples(forms)
        assert all(e.text.endswith(e.ends) for e in examples if e.yes) and not any(stated_in(e.text, forms) for e in examples if not e.yes)
        assert {(e.fold, e.word) for e in examples if e.yes} == {(f, w) for f in range(3) for w in range(3)}
    people = person_examples()
    assert not any(person_in(e.text, guess=False) for e in people if not e.yes) and all(person_in(e.text) for e in people if e.yes)


# --- the probe ---


STATES = {"he": [3.0, 1.0], "she": [3.0, -1.0], "him": [3.0, 0.5], "a": [0.0, 1.0], "dog": [0.0, -1.0], "cat": [0.1, 0.0]}


class Letters:
    """An encoder of six words whose states are known: "he" and "she" share a direction, everything else is elsewhere."""

    layers = (0, 1)

    def __init__(self, states: dict[str, list[float]] = STATES) -> None:
        self.states = states

    def read(self, texts: Any) -> list[tuple[list[int], Any]]:
        names = list(self.states)
        return [
            (
                [names.index(w) for w in text.split()],
                np.array([[[0.0, 0.0], self.states[w]] for w in text.split()], dtype=np.float32),
            )
            for text in texts
        ]

    def whole(self, _phrase: str) -> bool:
        return True


def letters() -> list[Example]:
    yes = [Example(f"{'a ' * k}{w}", w, k % 3, i) for k in range(9) for i, w in enumerate(("he", "she", "him"))]
    return yes + [Example(f"{'a ' * k}{w}", "", k % 3) for k in range(9) for w in ("dog", "cat")]


def test_the_probe_minimises_its_loss() -> None:
    corpus: Any = _Corpus(Letters(), letters())  # type: ignore[arg-type]
    weights, bias = corpus.solve(1, np.ones(len(letters()), dtype=bool))
    positive = sorted({corpus.tokens[i][-1] for i, e in enumerate(letters()) if e.yes})
    negative = sorted({t for i, e in enumerate(letters()) if not e.yes for t in corpus.tokens[i]} - set(positive))
    x = torch.tensor(corpus.states[[*positive, *negative], 1], dtype=torch.float64)
    spread = x.std(0, correction=0) + 1e-6
    w, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (weights * spread.numpy(), bias))
    margin = ((x / spread) @ w + b) * torch.tensor([1.0] * len(positive) + [-1.0] * len(negative), dtype=torch.float64)
    each = torch.log1p(torch.exp(-margin))
    loss = (each[: len(positive)].mean() + each[len(positive) :].mean()) / 2 + 0.01 / 2 * (w**2).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    assert w.grad is not None and b.grad is not None
    assert w.grad.abs().max() < 1e-4 and abs(float(b.grad)) < 1e-4, "the gradient of the loss as written is zero"


def test_the_layer_that_can_tell_is_taken_and_words_left_out_are_found() -> None:
    probe = fit(Letters(), letters())  # type: ignore[arg-type]
    assert probe.layer == 1 and probe.checked.tells
    assert (probe.checked.known, probe.checked.new, probe.checked.no) == (1.0, 1.0, 1.0) and probe.checked.n == (18, 9, 18)
    (_, states), *_ = Letters().read(["a dog she cat"])
    assert (probe.scores(states) > 0).tolist() == [False, False, True, False]


def test_an_encoder_that_cannot_tell_is_said_to() -> None:
    blind = Letters({word: [1.0, 1.0] for word in STATES})
    assert not fit(blind, letters()).checked.tells  # type: ignore[arg-type]
    assert not fit(Letters(), letters()[:6] + letters()[-18:]).checked.tells, "too few words"  # type: ignore[arg-type]


def test_the_threshold_balances_both_errors() -> None:
    yes, no = np.array([0.0, 2.0, 3.0, 4.0]), np.array([-1.0, 0.5, 1.0])
    cut = threshold(yes, no)
    assert 1.0 < cut < 2.0, "one of four missed and no false alarm; any lower cut has a false alarm in three"


def test_states_depend_on_what_stands_before_alone(tiny_pipe: StableDiffusionPipeline) -> None:
    encoder = Encoder(tiny_pipe)
    (ids, short), (more, long) = encoder.read(["a male", "a male nurse at work"])
    assert list(more[: len(ids)]) == list(ids) and np.allclose(long[: len(ids)], short, atol=1e-5)
    split = encoder.read(["a male beekeeper"])[0][0]
    assert encoder.alone(split) == [True, True] + [False] * (len(split) - 2), "pieces of a word are no words, the last one neither"
    assert encoder.words(ids) == ["a", "male"] and encoder.words(encoder.read(["a beekeeper"])[0][0])[-1] == "beekeeper"


def test_probes_are_kept_and_broken_files_are_not_believed(tiny_pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, examples = Encoder(tiny_pipe), person_examples()[::5]
    made = fitted(encoder, examples)
    path = cache_file(encoder, examples)
    assert path is not None and path.is_file()
    monkeypatch.setattr(gate_probe, "fit", lambda *_: pytest.fail("it is kept"))
    again = fitted(encoder, examples)
    assert again.checked == made.checked and np.array_equal(again.weights, made.weights) and again.bias == made.bias
    monkeypatch.undo()
    path.write_bytes(b"half a fi")
    assert np.allclose(fitted(encoder, examples).weights, made.weights)
    other = StableDiffusionPipeline.from_pipe(tiny_pipe)
    next(other.text_encoder.parameters()).data.mul_(2)
    assert cache_file(Encoder(other), examples) != path


def test_the_embedded_encoder_tells_the_words_it_was_made_for(embedded: StableDiffusionPipeline, gender: list[ConceptModule]) -> None:
    made = make_filter(embedded, gender)
    checked = made.checked()
    assert checked["gender"].tells and not checked[PERSON].tells and made.blind() == [PERSON]
    probe = made.probes["gender"]  # type: ignore[index]
    encoder = Encoder(embedded)
    seen = {t: bool((probe.scores(s) > 0).any()) for t, (_, s) in zip(TOLD, encoder.read(TOLD), strict=True)}
    assert [t for t in TOLD if seen[t]] == TOLD[:4], "by the probe alone: occupations and templates that no fit has seen"


TOLD = ["headshot of male analyst", "a secretary who is a woman", "a drawing of a nonbinary guard, soft style", "a female ceo on a beach"]
TOLD += ["headshot of analyst", "a secretary with dark skin", "a drawing of a guard, soft style", "an old ceo on a beach"]


# --- verdicts ---


class Scripted:
    """An encoder that reads one token a word."""

    def read(self, prompts: Any) -> list[tuple[list[int], Any]]:
        return [(list(range(len(p.split()))), np.array([[[float(len(w))]] for w in p.split()])) for p in prompts]

    def words(self, ids: Any) -> list[str]:
        return [f"word {i}" for i in ids]

    def alone(self, ids: Any) -> list[bool]:
        return [True] * len(ids)


def test_who_decides() -> None:
    margin, unsure = (Probe(0, np.ones(1, dtype=np.float32), -8.5, Checked(x, 1.0, x, (99, 99, 99))) for x in (0.99, 0.9))
    forms = {"gender": listed("gender")}
    both = PromptFilter(forms, {}, Scripted(), {PERSON: margin, "gender": margin})  # type: ignore[arg-type]
    assert both.why([STATED])[0] == {"gender": "states gender: 'male', by words"}
    assert both.why(["a gentlemanly nurse"])[0] == {"gender": "states gender: 'word 1', by text encoder"}
    assert both.why(["a beekeeper"])[0] == {"gender": "states gender: 'word 1', by text encoder"}, "a person by the encoder"
    assert both.why([NOBODY])[0] == {"gender": "no person, by text encoder"} and both.why([ASKED])[0] == {}
    blind = PromptFilter(forms, {}, Scripted(), {PERSON: unsure, "gender": unsure})  # type: ignore[arg-type]
    assert blind.why(["a gentlemanly nurse"])[0] == {} and blind.blind() == ["gender", PERSON]
    assert blind.why([NOBODY])[0] == {"gender": "no person, by words"} and blind.why(["a beekeeper"])[0] == {}
    own = PromptFilter({"gender": listed("gender"), "tone": listed("tone")}, {"": ["Red Car"], "gender": ["hot"]})
    assert own.why([STATED, NOBODY, "a hot nurse"]) == [
        {},
        {"gender": "holds 'Red Car' of the given words", "tone": "holds 'Red Car' of the given words"},
        {"gender": "holds 'hot' of the given words"},
    ]
    assert own.blind() == []


def test_a_pipeline_without_a_text_encoder_goes_by_words(gender: list[ConceptModule]) -> None:
    made = make_filter(SimpleNamespace(text_encoder=None), gender)
    assert [bool(w) for w in made.why([STATED, NOBODY, ASKED])] == [True, True, False] and made.blind() == ["gender", PERSON]


@pytest.mark.usefixtures("thin")
def test_sdxl_is_asked_through_its_first_encoder(gender: list[ConceptModule]) -> None:
    made = make_filter(sdxl(), gender)
    assert set(made.checked()) == {PERSON, "gender"} and [bool(w) for w in made.why([STATED, NOBODY, ASKED])] == [True, True, False]


# --- images ---


@pytest.mark.usefixtures("thin")
def test_gated_images_are_those_of_the_plain_model(tiny_pipe: Any, gender: list[ConceptModule], tmp_path: Path) -> None:
    prompts = [STATED, ASKED, NOBODY]
    plain = quiet_draw(tiny_pipe, prompts, (), GenerateConfig(images=2, steps=2))
    with pytest.warns(UserWarning, match="cannot tell .*person.*explicit-words"):
        drawn = generate(tiny_pipe, prompts, gender, GenerateConfig(images=2, steps=2, skip_explicit_prompts=True), out=tmp_path)
    steered = {record.id: (record, image) for record, image in drawn}
    for key, (record, image) in steered.items():
        same = np.array_equal(np.asarray(image), np.asarray(plain[key][1]))
        left = record.prompt != ASKED
        assert same == left and (set(record.concepts) == set()) == left and (record.modules == []) == left
        assert (record.method == "plain") == left and set(record.skipped_attributes) == ({"gender"} if left else set())
    kept = {r.prompt: r.skipped_attributes for r in RunFolder(tmp_path).records()}
    assert kept == {STATED: {"gender": "states gender: 'male', by words"}, ASKED: {}, NOBODY: {"gender": "no person, by words"}}


@pytest.mark.usefixtures("thin")
def test_each_attribute_has_a_gate_of_its_own(tiny_pipe: Any, gender: list[ConceptModule], make_module: Make) -> None:
    tones = [make_module(n, "tone", seed=5 + i) for i, n in enumerate(("light", "dark"))]
    violence = make_module("violence", kind="safety", seed=7)
    found = quiet_draw(
        tiny_pipe, [STATED, NOBODY], [*gender, *tones], GenerateConfig(images=2, steps=1, skip_explicit_prompts=True), safety=[violence]
    )
    for record, _ in found.values():
        assert set(record.concepts) == ({"tone"} if record.prompt == STATED else set())
        assert record.modules[-1] == violence.digest, "safety is for every prompt"
    assert sorted(r.concepts["tone"] for r, _ in found.values() if r.concepts) == ["dark", "light"], "still exact"


@pytest.mark.usefixtures("thin")
def test_what_was_made_of_a_whole_attribute_is_gated_too(tiny_pipe: Any) -> None:
    prompt = MethodAdapter(
        replace(Header.of(WOMAN, method="prompt", site=""), kind="attribute", train={"adjective": "female", "suffix": "", "switch": 0.0})
    )
    plain = quiet_draw(tiny_pipe, [STATED, ASKED], (), GenerateConfig(images=1, steps=1))
    found = quiet_draw(tiny_pipe, [STATED, ASKED], [prompt], GenerateConfig(images=1, steps=1, skip_explicit_prompts=True))
    same = {r.prompt: np.array_equal(np.asarray(i), np.asarray(plain[k][1])) for k, (r, i) in found.items()}
    assert same == {STATED: True, ASKED: False}


def test_words_of_ones_own_decide_alone(tiny_pipe: Any, gender: list[ConceptModule]) -> None:
    config = GenerateConfig(images=1, steps=1, skip_explicit_prompts=["gender:nurse"])
    found = {r.prompt: r.skipped_attributes for r, _ in quiet_draw(tiny_pipe, [ASKED, "a male cook"], gender, config).values()}
    assert found == {ASKED: {"gender": "holds 'nurse' of the given words"}, "a male cook": {}}
    with pytest.raises(ValueError, match="word 'tone:pale' is of attribute 'tone', which no module has; allowed: gender"):
        generate(tiny_pipe, [ASKED], gender, GenerateConfig(skip_explicit_prompts=["tone:pale"]))
    for bad in ("on", [], ["male", ""], [3]):
        with pytest.raises(ValueError, match=r"skip_explicit_prompts is .*allowed: False, True, or a list of words"):
            GenerateConfig(skip_explicit_prompts=bad)  # type: ignore[arg-type]


@pytest.mark.usefixtures("thin")
def test_the_gate_of_a_run_cannot_change_on_the_way(tiny_pipe: Any, gender: list[ConceptModule], tmp_path: Path) -> None:
    quiet_draw(tiny_pipe, [ASKED], gender, GenerateConfig(images=1, steps=1), out=tmp_path)
    with pytest.raises(ValueError, match="was made with skip_explicit_prompts=False, now asked for skip_explicit_prompts=True"):
        quiet_draw(tiny_pipe, [ASKED], gender, GenerateConfig(images=1, steps=1, skip_explicit_prompts=True), out=tmp_path)


@pytest.mark.usefixtures("thin")
def test_gated_for_direct_calls(tiny_pipe: Any, gender: list[ConceptModule], make_module: Make) -> None:
    woman, man = gender
    violence = make_module("violence", kind="safety", seed=7)
    prompts = [ASKED, STATED]
    assert filter_explicit(tiny_pipe, prompts, woman) == [woman, None]
    assert filter_explicit(tiny_pipe, prompts, [woman, man, [man, violence], None]) == [woman, man, (violence,), None]
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def draw() -> Any:
        return tiny_pipe(prompts, latents=latents, num_inference_steps=2, output_type="np").images

    plain = draw()
    for use in (steer, applied):
        with use(tiny_pipe, filter_explicit(tiny_pipe, prompts, woman)):
            steered = draw()
        assert np.array_equal(steered[1], plain[1]) and not np.array_equal(steered[0], plain[0])
    with pytest.raises(ValueError, match="3 entries for 2 prompts; give one entry per image"):
        filter_explicit(tiny_pipe, prompts, [woman, man, None])
    with pytest.raises(ValueError, match="prompts is the text"):
        filter_explicit(tiny_pipe, ASKED, woman)
    assert filter_explicit(tiny_pipe, prompts, woman, words=["nurse"]) == [None, None] and MAN.attribute == "gender"


# --- rows and flags ---


def test_rows_of_earlier_versions_have_no_gate() -> None:
    row = b'{"id": "a", "file": "f", "prompt": "p", "prompt_id": "p"'
    assert parse_row(row + b"}").skipped_attributes == {} and parse_row(
        row + b', "skipped_attributes": {"gender": "x"}}'
    ).skipped_attributes == {"gender": "x"}
    with pytest.raises(ValueError, match="left unsteered must be an object of texts"):
        parse_row(row + b', "skipped_attributes": ["gender"]}')


@pytest.mark.usefixtures("thin")
def test_flags(tiny_pipe: Any, gender: list[ConceptModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_generate, "open_model", lambda *_: tiny_pipe)
    modules = [part for m in gender for part in ("--module", str(m.save(tmp_path / f"{m.name}.st")))]
    command = ["generate", "--prompt", STATED, "--prompt", ASKED, "--images", "1", "--steps", "1", "--json", *modules]
    (tmp_path / "words.txt").write_text("nurse  # the job\n\n# nothing\n")
    for name, flags, left in (
        ("off", [], []),
        ("auto", ["--skip-explicit-prompts"], [STATED]),
        ("list", ["--explicit-words", "male,gender:cook"], [STATED]),
        ("file", ["--skip-explicit-prompts", "--explicit-words", str(tmp_path / "words.txt")], [STATED, ASKED]),
    ):
        done = respodiff(*command, *flags, "--out", str(tmp_path / name))
        last_json(done)
        assert [r.prompt for r in RunFolder(tmp_path / name).records() if r.skipped_attributes] == left
        assert ("cannot tell" in done.stderr) == (name == "auto")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    for bad in (str(tmp_path / "empty.txt"), " , "):
        done = respodiff(*command, "--explicit-words", bad, "--out", str(tmp_path / "bad"))
        assert done.returncode == 2 and "holds no word" in done.stderr and done.stderr.count("\n") == 1
    assert read_words("a b, c") == ["a b", "c"] and not (tmp_path / "bad").exists()
