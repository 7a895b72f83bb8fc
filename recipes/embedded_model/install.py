"""Put a folder of weights into the package: check it, swap the data, write the card anew.

    python -m recipes.embedded_model.install DIR            (what ``make embedded WEIGHTS=DIR`` begins with)

DIR is what the recipe leaves as ``OUT/weights``, or a folder of the same parts. What is in the package is kept until the new folder has
loaded, drawn, reconstructed and judged an image.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recipes.embedded_model.card import PARTS, measure, prompts_of, reconstruction, weights_folder, write_card
from recipes.embedded_model.loop import say
from respodiff.data.prompt_sets import suite
from respodiff.evaluation.calibration import read_confusion
from respodiff.evaluation.judges import EMBEDDED, ClipJudge, Vocabulary
from respodiff.pipelines.identity import weights_digest
from respodiff.pipelines.loading import load_pipeline
from respodiff.pipelines.registry import backbone, call_arguments

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "respodiff" / "embedded"
MAX_MIB = 80.0


def check(folder: Path) -> str:
    """Load everything and use it once; the digest of the weights that are steered.

    Raises:
        ValueError: a part is missing, does not load, does not fit the others, or is not drawn or judged; says which.
    """
    weights_folder(folder)
    world: dict[str, Any] = json.loads((folder / "world.json").read_text(encoding="utf-8"))
    for name in ("occupations", "unsafe", "scenes", "general"):
        try:
            found = suite(name, world)
        except (KeyError, TypeError) as error:
            raise ValueError(f"world.json of {folder} has no {error} for suite {name}; take it from the recipe") from error
        if not found:
            raise ValueError(f"world.json of {folder} has no prompts for suite {name}; take it from the recipe")
    try:
        prompts_of(world, 1), world["neutral"]["p_man"], world["neutral_scene"]["p_unsafe"], Vocabulary.embedded(world)
    except (KeyError, TypeError) as error:
        raise ValueError(f"world.json of {folder} has no {error}; take it from the recipe") from error
    pipe = load_pipeline(folder / "pipeline")
    image = pipe(**call_arguments(pipe, ["a doctor"], 3.0), num_inference_steps=2, output_type="np").images[0]
    if not np.isfinite(image).all() or image.std() < 1e-3:
        raise ValueError(f"pipeline of {folder} draws an empty image; its weights are broken")
    reconstruction(pipe, folder / "pictures")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 2**20
    if size > MAX_MIB:
        raise ValueError(
            f"folder {folder} has {size:.0f} MiB; allowed: {MAX_MIB:.0f}, as every user downloads it; save it in half precision"
        )
    for part in EMBEDDED.values():
        judge = ClipJudge.load(str(folder / part))
        seen = judge.logits([Image.fromarray((image * 255).astype(np.uint8))], ["a woman", "a man"])
        if not np.isfinite(seen).all():
            raise ValueError(f"{part} of {folder} gives no numbers; its weights are broken")
        if judge.digest not in read_confusion(folder / part / "confusion.json"):
            raise ValueError(f"{part}/confusion.json of {folder} is of another judge; run the recipe's stage {part} again")
    return weights_digest(backbone(pipe))


def swap(folder: Path, package: Path) -> None:
    """Replace the package's data by the folder's parts: copied first, then renamed one by one; what fails is taken back."""
    fresh, old = package / ".new", package / ".old"
    _restore(old, package)  # of a swap that was killed in its middle
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        for part in PARTS:
            source = folder / part
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, fresh / part)
        old.mkdir()
        for part in PARTS:
            if (package / part).exists():
                (package / part).rename(old / part)
            (fresh / part).rename(package / part)
    except BaseException:
        _restore(old, package)
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    shutil.rmtree(fresh)
    shutil.rmtree(old)


def _restore(old: Path, package: Path) -> None:
    """Put parts that were moved aside back to their places."""
    for part in old.iterdir() if old.is_dir() else ():
        there = package / part.name
        shutil.rmtree(there, ignore_errors=True) if there.is_dir() else there.unlink(missing_ok=True)
        part.rename(there)
    shutil.rmtree(old, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    """0 when the weights are in and the card is written; 1 with one line when something is wrong."""
    made = argparse.ArgumentParser(
        prog="python -m recipes.embedded_model.install", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("weights", type=Path, nargs="?", help="folder with " + ", ".join(PARTS))
    made.add_argument("--digest", action="store_true", help="only say the digest of the weights that the package has")
    made.add_argument("--images", type=int, default=12, help="images an occupation for the card (default 12)")
    made.add_argument("--steps", type=int, help="steps of the sampler for the card (default: the model's own)")
    made.add_argument("--runs", type=Path, default=ROOT / "runs", help="where the card's images are generated")
    made.add_argument("--package", type=Path, default=PACKAGE, help=argparse.SUPPRESS)
    a = made.parse_args(arguments)
    if a.digest:
        print(weights_digest(load_pipeline("embedded").unet))
        return 0
    try:
        if a.weights is None:
            raise ValueError("no weights given; give a folder with " + ", ".join(PARTS))
        digest = check(a.weights)
        if a.weights.resolve() != a.package.resolve():
            swap(a.weights, a.package)
        say(f"weights {digest} are in the package; measuring them")
        runs = a.runs / f"card-{digest}"
        result = measure(a.package, runs, images=a.images, steps=a.steps, say=say)
        for file in write_card(result, a.package, runs, runs):
            shutil.copyfile(file, (ROOT / "docs" / "embedded_model.png") if file.suffix == ".png" else a.package / file.name)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
