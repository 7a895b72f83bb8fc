"""``respodiff neutral``: which neutral prompt to train a concept on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from respodiff.cli.console import Concepts, Device, Dtype, Json, Model, Seed, app, finish, open_model, progress
from respodiff.cli.options import changes_from, known_concept
from respodiff.training.config import TrainConfig

CANDIDATES_HELP = "Neutral prompts with commas; the concept's own is always among them. (default a person, a human, someone, two portraits)"
SUBJECTS_HELP = "Prompts like those that are to be steered, with commas. (default six occupations)"
SET_HELP = "Setting of the training that the prompt is for, such as objective=guided, rollouts=16, steps=8."


@app.command(epilog='Example: respodiff neutral --concept woman --candidates "a person,a human,someone,a portrait of a person"')
def neutral(
    concept: Annotated[str, typer.Option("--concept", help="A known concept: woman, dark, ...", metavar="NAME", show_default=False)],
    candidates: Annotated[str, typer.Option("--candidates", help=CANDIDATES_HELP, metavar="TEXTS")] = "",
    subjects: Annotated[str, typer.Option("--subjects", help=SUBJECTS_HELP, metavar="TEXTS")] = "",
    model: Model = "embedded",
    concepts: Concepts = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help=SET_HELP, metavar="KEY=VALUE")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score neutral prompts without drawing an image: how far the alternatives make them up, how near subjects are, whether it matters."""
    from respodiff.experiments.neutral import CANDIDATES, ROLLOUTS, STEPS, SUBJECTS, weigh
    from respodiff.experiments.neutral_choice import choice, lines

    chosen = known_concept(concept, concepts)
    given = _texts("--candidates", candidates, CANDIDATES)
    every = list(dict.fromkeys([chosen.neutral, *given]))
    if len(every) < 2:
        raise ValueError(f"--candidates is {candidates!r}, which is the concept's own neutral prompt; give others to compare it with")
    settings = {"rollouts": ROLLOUTS, "steps": STEPS, "seed": seed, **changes_from(changes or (), {}, TrainConfig)}
    config = TrainConfig.preset("neutral", chosen.kind, **settings)
    found = []
    weighed = weigh(open_model(model, device, dtype), chosen, every, _texts("--subjects", subjects, SUBJECTS), config)
    with progress() as bar:
        task = bar.add_task("weighing", total=len(every))
        for candidate in weighed:
            found.append(candidate)
            bar.advance(task)
    result = choice(found, chosen, seed=seed)
    finish(result, "\n".join(lines(result, chosen, model)), as_json)


def _texts(flag: str, text: str, usual: Sequence[str]) -> list[str]:
    """Prompts between commas, or the usual ones; ValueError for an empty one."""
    found = [part.strip() for part in text.split(",")] if text else list(usual)
    if not all(found):
        raise ValueError(f"{flag} is {text!r}, which has an empty prompt; give prompts with commas between them")
    return list(dict.fromkeys(found))
