"""The three axes of training, parameterisation x objective x rollout: which settings go together, and which methods take them."""

from __future__ import annotations

from typing import Any

AXES: dict[str, Any] = {
    "form": "constant",
    "bins": 4,
    "map_rank": 4,
    "map_rate": 0.1,
    "modules": "two",
    "blend": 0.0,
    "replay": 1,
    "contexts": (),
    "release": 0.0,
    "many": 1.0,
}
"""Setting of `respodiff.training.config.TrainConfig` -> its default: one constant each, two losses in turn, one pool at a time, one prompt."""

OWN = ("own",)
"""As ``contexts``: those of the concept."""

FORM = ("form", "bins", "map_rank", "map_rate")
"""What a method takes that trains a `respodiff.training.state.TrainState` by examples of its own."""

READ_BY = {"bins": "binned", "map_rank": "lowrank", "map_rate": "lowrank"}
"""Setting -> the only form that reads it."""


def check_axes(config: Any) -> None:
    """ValueError, one line, for settings of a TrainConfig that would be ignored, or that are another setting in disguise."""
    for name, form in READ_BY.items():
        if config.form != form and getattr(config, name) != AXES[name]:
            raise ValueError(
                f"{name} is {getattr(config, name)}, which form {config.form!r} does not read; leave it out, or set form={form}"
            )
    sam = f"sam_lr is {config.sam_lr:g} and sam_weight {config.sam_weight:g}"
    if config.modules == "shared" and not config.trains_sam:
        raise ValueError(f"modules is 'shared', but {sam}: there is no second loss to share with; set both above 0, or modules=two")
    if config.blend and config.trains_sam:
        raise ValueError(f"blend is {config.blend:g}, but {sam}: a blended target has SAM's loss in it already; set sam_lr=0")
    if config.blend and config.objective != "guided":
        w = config.target_guidance / (1 + config.blend)
        raise ValueError(
            f"blend is {config.blend:g} with objective {config.objective!r}, whose way from the neutral score it would only shorten; "
            f"set target_guidance={w:g} instead, or objective=guided"
        )
    if config.release and config.form == "lowrank":
        raise ValueError(f"release is {config.release:g}, which form 'lowrank' has not: set release=0, or take --preset neutral")
    if config.replay > 1 and config.refresh_every >= config.iterations:
        raise ValueError(
            f"replay is {config.replay}, but refresh_every {config.refresh_every} of {config.iterations} iterations makes one pool; set refresh_every lower"
        )
    _check_contexts(config)


def _check_contexts(config: Any) -> None:
    contexts = config.contexts
    if not isinstance(contexts, tuple) or not all(isinstance(c, str) and c.strip() for c in contexts):
        raise ValueError(f"contexts is {contexts!r}; allowed: prompts such as ('a doctor', 'a nurse')")
    if "own" in contexts and contexts != OWN:
        raise ValueError(f"contexts is {contexts!r}; give 'own' (those of the concept) alone, or prompts")
    if contexts == OWN:
        return
    if twice := [c for i, c in enumerate(contexts) if c in contexts[:i]]:
        raise ValueError(f"contexts holds {twice[0]!r} twice; give each prompt once")
    pools = -(-config.iterations // config.refresh_every)
    if config.rollouts * pools < len(contexts) + 1:
        raise ValueError(
            f"contexts holds {len(contexts)} prompts beside the concept's own, but {config.rollouts} rollouts x {pools} pools do not reach "
            "all of them; set rollouts higher, or refresh_every lower"
        )


def refuse_axes(method: str, config: Any, taken: tuple[str, ...]) -> None:
    """ValueError for a setting of the axes that a method has not: ``taken`` names those that it has."""
    for name, default in AXES.items():
        if name not in taken and (found := getattr(config, name, default)) != default:
            has = f"; it has {', '.join(taken)} of them" if taken else ""
            raise ValueError(f"{name} is {found!r}, which method {method!r} does not take{has}; leave it out")
