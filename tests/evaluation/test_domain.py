"""The embedded judges label anything with confidence; of what they know nothing, a line says so, or they are not asked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from command import respodiff
from painted import GENDER, WORDS, ColourJudge
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.domain import default_judge, is_embedded, on_white
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.summary import Summary
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.loading import embedded_dir
from respodiff.reports.tables import summary_lines

OWN = {"model": "embedded", "model_digest": ""}


def emoji() -> list[Image.Image]:
    """The 72 images of the embedded model's world in the repository: 48 shipped, 24 labelled for tests."""
    folders = (embedded_dir("pictures"), Path(__file__).parents[1] / "data" / "labelled")
    return [Image.open(file).convert("RGB") for folder in folders for file in sorted(folder.glob("*.webp"))]


def noise(n: int, side: int = 128) -> list[Image.Image]:
    return [Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)) for i in range(n)]


def cats(n: int) -> list[Image.Image]:
    """A drawn cat, each before another wall and with grain, as a camera leaves it."""
    out = []
    for i in range(n):
        rng = np.random.default_rng(i)
        image = Image.new("RGB", (160, 128), tuple(int(c) for c in rng.integers(40, 200, 3)))
        draw, fur, x = ImageDraw.Draw(image), tuple(int(c) for c in rng.integers(60, 220, 3)), int(rng.integers(-20, 20))
        draw.rectangle((0, 90, 160, 128), tuple(int(c) for c in rng.integers(40, 160, 3)))
        draw.polygon([(50 + x, 50), (56 + x, 12), (76 + x, 34), (90 + x, 34), (108 + x, 12), (112 + x, 50)], fur)
        draw.ellipse((48 + x, 28, 114 + x, 100), fur)
        for eye in (66, 90):
            draw.ellipse((eye + x, 52, eye + 8 + x, 62), "black")
        grain = np.asarray(image) + rng.normal(0, 12, (128, 160, 3))
        out.append(Image.fromarray(grain.clip(0, 255).astype(np.uint8)))
    return out


def run_of(folder: Path, images: Sequence[Image.Image], settings: dict[str, Any]) -> RunFolder:
    run = RunFolder(folder).create(settings)
    for i, image in enumerate(images):
        asked = {"gender": ("woman", "man")[i % 2]}
        run.add(ImageRecord(f"i{i:03d}", "", "a person", "person", "s", "person", concepts=asked, repeat=i), image)
    return run


def judged(run: RunFolder) -> Summary:
    """As a judge of the embedded one's name sees it; no model is loaded."""
    judge = ColourJudge()
    judge.name = "embedded"
    return evaluate(run, judge, [GENDER], vocabulary=WORDS)


def test_emoji_stand_on_white_and_noise_and_cats_do_not() -> None:
    assert len(emoji()) == 72 and all(map(on_white, emoji()))
    assert not any(map(on_white, [*noise(20), *noise(20, 512), *cats(40)]))


@pytest.mark.parametrize("settings", [OWN, {"imported": True}, {"model": "somebody/model", "model_digest": "0123456789abcdef"}])
@pytest.mark.parametrize(("images", "others"), [(noise, 30), (cats, 30), (lambda n: emoji()[:n], 0)])
def test_an_embedded_judge_says_where_it_is_out_of_its_domain(tmp_path: Path, settings: Any, images: Any, others: int) -> None:
    found = judged(run_of(tmp_path / "r", images(30), settings))
    assert found.out_of_domain is not None and (found.out_of_domain.mean, found.out_of_domain.n) == (others / 30, 30)
    lines = [line for line in found.problems if f"{others} of 30 looked at do not" in line]
    assert len(lines) == (1 if others or settings is not OWN else 0)
    assert all(f"note: {line}" in summary_lines(found) for line in lines) and found.to_json()["problems"] == list(found.problems)


def test_another_judge_has_no_such_domain_and_few_strange_images_are_no_matter(tmp_path: Path) -> None:
    run = run_of(tmp_path / "r", [*emoji()[:36], *noise(4), *[Image.new("RGB", (8, 8))] * 9], OWN)
    assert evaluate(run, ColourJudge(), [GENDER], vocabulary=WORDS).out_of_domain is None
    found = judged(run)
    assert found.out_of_domain.mean == 0.1 and found.problems == ("9 images blank, e.g. i040: counted as unknown",)
    many = judged(run_of(tmp_path / "many", [*emoji(), *noise(72)], OWN))
    assert many.out_of_domain.n == 48 and many.out_of_domain.mean == 0.5, "every third is looked at"


@pytest.mark.slow
def test_confident_labels_of_noise_do_not_come_without_the_line(tmp_path: Path) -> None:
    run = run_of(tmp_path / "noise", noise(24), {"imported": True})
    found = evaluate(run, "embedded", "gender")
    assert max(e.mean for e in found.proportions["gender"].values()) > 0.9, "so sure is it of nothing"
    assert "24 of 24 looked at do not" in found.problems[0]
    own = evaluate(run_of(tmp_path / "own", emoji()[48:], OWN), "embedded", "gender")
    assert own.out_of_domain.mean == 0 and own.problems == ()


@pytest.mark.parametrize("settings", [{}, {"imported": True}, {"model": "embedded", "model_digest": "0" * 16}])
def test_without_a_judge_images_of_other_models_are_refused(tmp_path: Path, settings: Any) -> None:
    run = run_of(tmp_path / "r", noise(2), settings)
    with pytest.raises(ValueError, match=r"judge is not given, and images of .* allowed: embedded, .*--judge clip:"):
        evaluate(run)
    out = str(tmp_path / "r.html")
    for command in (["evaluate", str(run.path)], ["report", str(run.path), "--out", out]):
        done = respodiff(*command)
        assert done.returncode == 2 and "judge is not given" in done.stderr and done.stderr.count("\n") == 1
    assert not (run.path / "scores").exists() and default_judge(run_of(tmp_path / "own", noise(1), OWN)) == "embedded"


@pytest.mark.parametrize(
    "command",
    [
        ["audit", "--prompt", "a cook"],
        ["compare", "--methods", "plain"],
        ["generate", "--prompt", "a cook", "--scale", "auto:0.9", "--tuning-prompts", "TUNING"],
    ],
)
def test_verbs_that_judge_another_model_ask_for_a_judge_before_it_is_loaded(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "tuning.txt").write_text("a cook\n")
    given = [str(tmp_path / "tuning.txt") if text == "TUNING" else text for text in command]
    done = respodiff(*given, "--model", str(tmp_path / "no-model"), "--out", str(tmp_path / "out"))
    assert done.returncode == 2 and "judge is not given" in done.stderr and "no-model" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_digest_of_the_embedded_weights_is_the_cards(embedded: Any) -> None:
    assert is_embedded({"model": "elsewhere", "model_digest": weights_digest(embedded.unet)})
