"""Draws things of two folders of weights beside each other, which one is left by chance, and keeps the answer apart.

python -m recipes.embedded_model.side_by_side OLD NEW --out sides      (writes sides/sheet.png and sides/answer.json)
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from recipes.embedded_model.card import weights_folder
from respodiff.data.prompt_sets import suite
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.pipelines.loading import EMBEDDED_SAMPLING, load_pipeline
from respodiff.reports.images import image_grid

PAIRS = 2
"""Things in a row of the sheet."""


def sides(old: str, new: str, out: Path, *, things: int = 40, steps: int = EMBEDDED_SAMPLING[0], guidance: float = 3.0) -> dict[str, Any]:
    """Things of the new world drawn by both from the same noise, the first image of each.

    Args:
        old, new: ``"embedded"`` or folders of weights. things: how many, evenly from the suite ``general`` of `new`.

    Returns:
        ``prompts``, and ``new_is``: "left" or "right" for each; written to ``answer.json``.
    """
    world = json.loads((weights_folder(new) / "world.json").read_text(encoding="utf-8"))
    every = suite("general", world)
    prompts = [every[i * len(every) // things].text for i in range(things)]
    config = GenerateConfig(images=1, steps=steps, guidance=guidance, batch=8)
    drawn = {}
    for name, source in (("old", old), ("new", new)):
        pipe = load_pipeline(weights_folder(source) / "pipeline")
        drawn[name] = [image for _, image in generate(pipe, prompts, [], config)]
    r = random.Random(0)
    left = [r.random() < 0.5 for _ in prompts]
    pairs = [[drawn["new"][i], drawn["old"][i]] if left[i] else [drawn["old"][i], drawn["new"][i]] for i in range(things)]
    rows = []
    for i in range(0, things, PAIRS):
        names = " | ".join(f"{k + 1} {prompts[k]}" for k in range(i, min(i + PAIRS, things)))
        rows.append((names, [image for pair in pairs[i : i + PAIRS] for image in pair]))
    image_grid(rows, out / "sheet.png", columns=[("left, right", 2)] * PAIRS, thumb=128)
    answer = {"prompts": prompts, "new_is": ["left" if x else "right" for x in left], "steps": steps, "guidance": guidance}
    (out / "answer.json").write_text(json.dumps(answer, indent=1) + "\n")
    return answer


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.embedded_model.side_by_side", description=__doc__.splitlines()[0])
    parser.add_argument("old", help="'embedded', or a folder of weights")
    parser.add_argument("new", help="the same")
    parser.add_argument("--out", type=Path, default=Path("sides"), help="folder of the sheet and the answer")
    a = parser.parse_args(arguments)
    a.out.mkdir(parents=True, exist_ok=True)
    sides(a.old, a.new, a.out)
    print(a.out / "sheet.png")


if __name__ == "__main__":
    main()
