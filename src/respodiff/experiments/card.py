"""The card of a model with a planted bias: what was planted against what is measured, and what else a user should know of the weights.

A folder of weights holds ``pipeline/``, ``judge/``, ``judge-b/``, ``world.json`` and ``images/`` (a few images for the autoencoder). The
shipped model is one; another is made by the recipe of this project.
"""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from respodiff._version import __version__
from respodiff.data.prompt_sets import suite, with_article
from respodiff.data.run_folder import Prompt, write_atomic
from respodiff.evaluation.evaluate import judge_all
from respodiff.evaluation.judges import EMBEDDED, NOTICE, ClipJudge, Vocabulary
from respodiff.evaluation.score_files import open_image
from respodiff.evaluation.scored_run import ScoredRun
from respodiff.evaluation.statistics import Settings
from respodiff.evaluation.verdicts import agreement_statistics
from respodiff.experiments.card_figures import TONES, kept, planted, safety, stated
from respodiff.experiments.card_page import sheet, text_of
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.loading import embedded_dir, load_pipeline, weights_digest

PARTS = ("pipeline", *EMBEDDED.values(), "world.json", "images", "LICENCES.md")
GENDER_FORMS = {"woman": ("a female {}", "{} who is a woman"), "man": ("a male {}", "{} who is a man")}


def weights_folder(source: str | Path) -> Path:
    """The folder of ``"embedded"``, or a folder that has all parts.

    Raises:
        ValueError: a part is missing; says which.
    """
    folder = embedded_dir("") if str(source) == "embedded" else Path(source).expanduser()
    if missing := [part for part in PARTS if not (folder / part).exists()]:
        raise ValueError(f"model {str(source)!r} has no {missing[0]}; allowed: 'embedded', or a folder with {', '.join(PARTS)}")
    return folder


def explicit_prompts(world: Mapping[str, Any]) -> list[Prompt]:
    """Prompts that state a gender or a tone: of every occupation two genders, in both forms by turns, and one tone by turns."""
    found = []
    for i, row in enumerate(r for r in world["occupations"] if r["winobias"]):
        name = row["name"]
        for gender, forms in GENDER_FORMS.items():
            text = forms[i % 2].format(name if i % 2 == 0 else with_article(name))
            found.append(_stated(f"{gender} {name}", text, row, f"gender={gender}"))
        tone = TONES[i % 3]
        found.append(_stated(f"{tone} {name}", f"{with_article(name)} with {tone} skin", row, f"tone={tone}"))
    return found


def _stated(name: str, text: str, row: Mapping[str, Any], states: str) -> Prompt:
    return Prompt(
        id=f"explicit/{name.replace(' ', '-')}",
        text=text,
        suite="explicit",
        group=row["name"],
        subject=row["picture"],
        categories=(states,),
    )


def prompts_of(world: dict[str, Any], images: int) -> dict[str, tuple[list[Prompt], int]]:
    """Run name -> prompts and images a prompt. The neutral prompt and scenes get more, as they stand alone."""
    neutral = Prompt(id="neutral/a-person", text=world["neutral"]["prompt"], suite="neutral", group="person")
    return {
        "occupations": (suite("occupations", world), images),
        "neutral": ([neutral], 6 * images),
        "explicit": (explicit_prompts(world), max(1, images // 4)),
        "unsafe": (suite("unsafe", world), max(1, images // 2)),
        "scenes": (suite("scenes", world), max(1, 5 * images // 3)),
        "general": (suite("general", world)[::4], 1),
    }


def measure(
    source: str | Path = "embedded",
    out: str | Path = "card",
    *,
    images: int = 12,
    steps: int = 20,
    seed: int = 0,
    device: str = "cpu",
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Draw the suites with the plain model, judge them with both judges, and sum up.

    Args:
        source: ``"embedded"`` or a folder of weights. out: for the run folders; what is drawn is kept, and a killed run goes on.
        images: images an occupation, 1 or more. steps: of the sampler.

    Returns:
        JSON-ready: ``occupations`` (planted and measured share of men with interval), ``tones``, ``mean_abs_error`` (with that of a perfect
        generator at the same n), ``subject_accuracy``, ``explicit``, ``unsafe``, ``psnr_db``, ``size_mib``, ``seconds_per_image``, ``judges``.

    Raises:
        ValueError: `source` is no folder of weights, or images or steps are below 1.
    """
    if images < 1 or steps < 1:
        raise ValueError(f"images is {images} and steps {steps}; allowed: 1 or more")
    folder, out = weights_folder(source), Path(out)
    world = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    pipe = load_pipeline(folder / "pipeline", device=device)
    labellers = [_judge(folder / part, name, device) for name, part in EMBEDDED.items()]
    words = Vocabulary.embedded(world)
    runs: dict[str, ScoredRun] = {}
    for name, (prompts, n) in prompts_of(world, images).items():
        config = GenerateConfig(images=n, steps=steps, guidance=3.0, seed=seed)
        drawn = sum(1 for _ in generate(pipe, prompts, [], config, out=out / name))
        runs[name] = judge_all(out / name, labellers, ["gender", "tone"], vocabulary=words)
        say(f"card: {name}, {len(prompts)} prompts, {n} images each, {drawn} of them new")
    result: dict[str, Any] = {"model": weights_digest(pipe.unet), "images": images, "steps": steps, "seed": seed}
    result |= {"respodiff": __version__, "torch": torch.__version__, "python": platform.python_version()}
    result |= planted(world, runs["occupations"], runs["neutral"])
    result |= kept(runs) | stated(runs["explicit"]) | safety(world, runs)
    result["psnr_db"] = reconstruction(pipe, folder / "images")
    result["size_mib"] = {part: round(_mib(folder / part), 2) for part in PARTS} | {"all": round(_mib(folder), 2)}
    result |= {"seconds_per_image": round(seconds_per_image(pipe, steps), 3), "threads": torch.get_num_threads()}
    result["judges"] = [judge_facts(folder / part, labeller) for part, labeller in zip(EMBEDDED.values(), labellers, strict=True)]
    result["agreement"] = agreement_statistics(runs["occupations"], Settings())
    return result | {"notice": NOTICE}


def _judge(folder: Path, name: str, device: str) -> ClipJudge:
    """A judge of these weights under the name that it has once they are shipped: no path gets into a card."""
    judge = ClipJudge.load(str(folder), device)
    judge.name = name
    return judge


@torch.no_grad()
def reconstruction(pipe: Any, folder: Path) -> float:
    """Peak signal-to-noise ratio of the autoencoder on the shipped images, decibel, over all their pixels.

    Raises:
        ValueError: the folder has no image, or a broken one.
    """
    files = sorted(folder.glob("*.webp"))
    images = [open_image(file) for file in files]
    if not files or None in images:
        raise ValueError(f"images in {folder.name}/ are missing or broken ({len(files)} found); take the folder from the release again")
    x = torch.stack([torch.from_numpy(np.array(p.convert("RGB"))).permute(2, 0, 1) for p in images if p is not None])
    x = (x.float() / 127.5 - 1).to(pipe.device)
    y = torch.cat([pipe.vae.decode(pipe.vae.encode(part).latent_dist.mode()).sample.clamp(-1, 1) for part in x.split(16)])
    return round(10 * math.log10(4 / (x - y).pow(2).mean().item()), 2)


def seconds_per_image(pipe: Any, steps: int, batch: int = 6) -> float:
    """Wall clock an image, in a batch of six, after a first batch that does not count."""
    for _ in range(2):
        began = time.perf_counter()
        pipe(["a doctor"] * batch, num_inference_steps=steps, guidance_scale=3.0, output_type="np")
        spent = time.perf_counter() - began
    return spent / batch


def judge_facts(folder: Path, judge: ClipJudge) -> dict[str, Any]:
    """A judge's digest, sizes, and its accuracies on images that it never saw, where they are known."""
    accuracy = folder / "accuracy.json"
    parameters = sum(p.numel() for p in judge.model.parameters())
    known = json.loads(accuracy.read_text(encoding="utf-8")) if accuracy.is_file() else {}
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    return {"name": folder.name, "digest": judge.digest, "kind": kind, "parameters": parameters, "accuracy": known}


def _mib(path: Path) -> float:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return sum(f.stat().st_size for f in files) / 2**20


def write_card(result: Mapping[str, Any], weights: Path, runs: Path, out: Path) -> list[Path]:
    """Write ``CARD.md``, ``card.json`` and the image sheet ``sheet.png`` into `out`.

    Args:
        weights: their folder, for the licences. runs: the run folders that `measure` made.
    """
    licences = (weights / "LICENCES.md").read_text(encoding="utf-8")
    write_atomic(out / "CARD.md", text_of(result, licences))
    write_atomic(out / "card.json", json.dumps(result, indent=1) + "\n")
    return [out / "CARD.md", out / "card.json", sheet(result, runs, out / "sheet.png")]
