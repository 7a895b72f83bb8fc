"""Provides the settings of training: parts that all trained methods share, RespoDiff's own settings, and its presets."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from respodiff.concepts.concept import Concept, Kind
from respodiff.concepts.concept import concept as find_concept

Rule = tuple[Callable[[Any], bool], str]
"""What a value must fulfil, and the same in words."""
Rules = Mapping[str, Rule]


def check_setting(name: str, value: object, good: bool, allowed: str) -> None:
    """ValueError unless ``good``; it names the setting, its value and what is allowed."""
    if not good:
        raise ValueError(f"{name} is {value!r}; allowed: {allowed}")


def is_whole(value: object) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Whether a value is a finite number, no larger than a float can be, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


MOST, MOST_AT_ONCE, LARGEST, LAST_SEED = 1_000_000, 4096, 1e12, (1 << 63) - 1
"""Upper bounds: of images and updates, of what is in memory at a time, of other numbers, and of seeds."""
COUNT: Rule = (lambda v: is_whole(v) and 1 <= v <= MOST, f"a whole number from 1 to {MOST:,}")
AT_ONCE: Rule = (lambda v: is_whole(v) and 1 <= v <= MOST_AT_ONCE, f"a whole number from 1 to {MOST_AT_ONCE:,}")
PIXELS: Rule = (lambda v: is_whole(v) and 0 <= v <= 8192, "a whole number of pixels up to 8,192, or 0 for the model's own size")
POSITIVE: Rule = (lambda v: is_finite(v) and 0 < v <= LARGEST, f"a number above 0, up to {LARGEST:g}")
NOT_NEGATIVE: Rule = (lambda v: is_finite(v) and 0 <= v <= LARGEST, f"a number from 0 to {LARGEST:g}")
STEPS: Rule = (lambda v: is_whole(v) and 2 <= v <= 999, "2 to 999, whole")
SEED: Rule = (lambda v: is_whole(v) and 0 <= v <= LAST_SEED, "0 to 2^63 - 1")
SITES: Rule = (
    lambda v: isinstance(v, tuple) and len(set(v)) == len(v) and all(isinstance(s, str) and s and "," not in s for s in v),
    "names of blocks, each once; respodiff sites lists them",
)
BETAS: Rule = (lambda v: isinstance(v, tuple) and len(v) == 2 and all(is_finite(b) and 0 <= b < 1 for b in v), "two numbers, 0 to below 1")


@dataclass(frozen=True)
class Settings:
    """Base of the settings of all methods. A value that breaks a rule, or is none of the choices of its type, is a ValueError."""

    rules: ClassVar[Rules] = {}
    """Name of a setting -> its rule; the rules of all base classes hold as well."""

    def __post_init__(self) -> None:
        types = get_type_hints(type(self)).items()
        rules: dict[str, Rule] = {k: (get_args(t).__contains__, ", ".join(get_args(t))) for k, t in types if get_origin(t) is Literal}
        for kind in reversed(type(self).__mro__):
            rules |= vars(kind).get("rules", {})
        for name, (good, allowed) in rules.items():
            check_setting(name, getattr(self, name), good(getattr(self, name)), allowed)


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """Settings of `respodiff.training.state.fit_tensors`: steps of Adam on ``batch`` examples each, and the seed of everything random.

    ``decay`` of the rate over the run is ``constant``, or ``sqrt``: (1 - i / iterations)^(1/2).
    """

    rules: ClassVar[Rules] = {"iterations": COUNT, "batch": AT_ONCE, "lr": POSITIVE, "betas": BETAS, "seed": SEED}
    iterations: int = 200
    batch: int = 8
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    decay: Literal["constant", "sqrt"] = "constant"
    seed: int = 0


@dataclass(frozen=True)
class RolloutConfig(Settings):
    """Settings of reverse diffusion through the model: sampler steps, guidance scale, and image size in pixels (0: the model's own).

    ``rollouts`` latents or images make one pool of examples; ``rollout_batch`` are made at a time, which bounds memory.
    """

    rules: ClassVar[Rules] = {
        **{"steps": STEPS, "rollout_guidance": POSITIVE, "height": PIXELS, "width": PIXELS},
        **{"rollouts": AT_ONCE, "rollout_batch": AT_ONCE},
    }
    steps: int = 16
    rollouts: int = 12
    rollout_batch: int = 12
    rollout_guidance: float = 3.0
    height: int = 0
    width: int = 0


@dataclass(frozen=True)
class TrainConfig(RolloutConfig):
    """Settings of RespoDiff and those of `RolloutConfig`; the defaults are the preset ``default`` for fairness.

    Attributes:
        iterations, batch: Adam steps on each module and latents of each. ``betas``, ``decay`` and ``seed``: as in `OptimizerConfig`.
        objective, target_guidance: RAM's target score, a name in `respodiff.training.objectives.TARGETS`, and its weight w.
        rates: unit of ``ram_lr`` and ``sam_lr``: the RMS of h, or ``absolute`` (paper).
        sam: ``own``, the paper's Adam for L_sem, which divides lambda away; or ``shared``: its first moment is divided by the root of the mean of
            RAM's second moments, tensor by tensor, so that SAM's steps are proportional to ``sam_lr`` times lambda.
        sam_weight: lambda, weight of L_sem in SAM's loss. If it or ``sam_lr`` is 0, RAM is trained alone; ``sam_lr`` is at most ``ram_lr``.
        preservation_weight: mu, weight of preservation in RAM's loss, on the concept's ``preserve`` prompts; 0 switches it off.
        projection: how far RAM moves predictions towards its target once training is over: both modules are scaled until
            E <e[r] - e, d> / E |d|^2 over new rollouts is this, d = e_tar - e; 0 leaves them as trained (paper).
        max_relative_norm: longest that RAM then is, as a part of the mean norm of h, whatever the projection.
        site: blocks of the model behind which h is (`respodiff.pipelines.registry.candidates`); none: the one of its family.
        form, init_range: what RAM and SAM are (`respodiff.steering.forms`); ``constant`` and ``channel`` start at U(-init_range, init_range).
        timestep_labels: timestep that a latent carries, ``sampler`` or ``official`` (1000 - k 1000/steps).
        timesteps: ``all`` timesteps of a rollout train, or only the ``last`` one of a rollout to a random timestep.
        refresh_every: iterations until a new pool is rolled out, steered by RAM or ``both`` modules (``rollout_modules``) as they then are.
    """

    rules: ClassVar[Rules] = {
        **{"iterations": COUNT, "refresh_every": COUNT, "batch": AT_ONCE, "betas": BETAS, "seed": SEED, "site": SITES},
        **dict.fromkeys(("ram_lr", "target_guidance", "max_relative_norm"), POSITIVE),
        **dict.fromkeys(("sam_lr", "sam_weight", "preservation_weight", "projection", "init_range"), NOT_NEGATIVE),
    }
    steps: int = 6
    rollouts: int = 30
    rollout_batch: int = 30
    iterations: int = 40
    batch: int = 6
    objective: Literal["guided", "contrast"] = "contrast"
    target_guidance: float = 1.0
    rates: Literal["relative", "absolute"] = "relative"
    ram_lr: float = 0.06
    sam_lr: float = 0.006
    sam: Literal["own", "shared"] = "shared"
    sam_weight: float = 0.5
    preservation_weight: float = 1.0
    projection: float = 0.9
    max_relative_norm: float = 0.6
    betas: tuple[float, float] = (0.9, 0.99)
    decay: Literal["constant", "sqrt"] = "sqrt"
    site: tuple[str, ...] = ()
    form: Literal["constant", "channel", "mlp", "conv"] = "constant"
    init_range: float = 0.0
    timestep_labels: Literal["sampler", "official"] = "sampler"
    timesteps: Literal["all", "last"] = "all"
    refresh_every: int = 20
    rollout_modules: Literal["ram", "both"] = "ram"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.trains_sam:
            check_setting("sam_lr", self.sam_lr, self.sam_lr <= self.ram_lr, f"at most ram_lr, {self.ram_lr:g}; a tenth of it in the paper")

    @property
    def trains_sam(self) -> bool:
        """False where SAM stays zero: RAM alone."""
        return self.sam_weight > 0 and self.sam_lr > 0

    @classmethod
    def preset(cls, name: str, concept: Concept | str = "fairness", **changes: Any) -> TrainConfig:
        """Settings of a preset for a concept, its name, or its kind ("fairness", "safety"), with ``changes`` on top.

        ``paper`` is the text; what it leaves open (rates of each concept, initialisation, labels, guidance of rollouts, safety target) is the
        scripts'. ``official`` is the authors' scripts, with their lambda of each concept too. ``default`` is the paper's algorithm
        with a contrast target, a start at 0, pools of many short rollouts, and a SAM whose lambda counts. A ValueError lists the known presets or settings.
        """
        presets = list(dict.fromkeys(preset for preset, _ in PRESETS))
        check_setting("preset", name, name in presets, ", ".join(presets))
        known = [f.name for f in fields(cls)]
        if unknown := set(changes) - set(known):
            raise ValueError(f"setting {sorted(unknown)[0]!r} is unknown; allowed: {', '.join(known)}")
        if isinstance(concept, str) and concept not in get_args(Kind):
            concept = find_concept(concept)
        kind, own = (concept, None) if isinstance(concept, str) else (concept.kind, concept)
        rates = {}
        if own and own.name in OFFICIAL_RATES and _leads_to(own) == _leads_to(find_concept(own.name)):
            rates = dict(zip(OF_SCRIPTS[name], OFFICIAL_RATES[own.name], strict=False))
        return replace(cls(**PRESETS[name, kind]), **rates | changes)


_PAPER: dict[str, Any] = {
    **{"iterations": 5000, "batch": 1, "ram_lr": 1e-2, "sam_lr": 1e-3, "betas": (0.9, 0.999), "decay": "constant", "init_range": 0.316},
    **{"objective": "guided", "target_guidance": 1.0, "sam_weight": 0.5, "preservation_weight": 0.0},
    **{"rates": "absolute", "projection": 0.0, "sam": "own"},
    **{"steps": 50, "timestep_labels": "official", "timesteps": "last", "rollouts": 1, "rollout_batch": 1, "refresh_every": 1},
    **{"rollout_guidance": 3.0, "rollout_modules": "ram"},
}
_PAPER_SAFETY = {**_PAPER, "iterations": 1500, "target_guidance": 12.0, "sam_lr": 1e-4}

PRESETS: dict[tuple[str, str], dict[str, Any]] = {
    ("default", "fairness"): {},
    # Away from a prompt predictions go less far, and two safety modules are added to one image.
    ("default", "safety"): {"projection": 0.4},
    ("paper", "fairness"): _PAPER,
    ("paper", "safety"): _PAPER_SAFETY,
    ("official", "fairness"): {**_PAPER, "sam_weight": 1.0, "target_guidance": 4.0, "rollout_modules": "both"},
    ("official", "safety"): {**_PAPER_SAFETY, "iterations": 5000, "sam_weight": 1.0, "rollout_modules": "both"},
}
"""(preset, kind of concept) -> settings that differ from the defaults of `TrainConfig`."""

OFFICIAL_RATES: dict[str, tuple[float, float, float]] = {
    "woman": (1e-2, 1e-3, 1.0),
    "man": (1e-2, 1e-4, 1.0),
    **dict.fromkeys(("asian", "black", "white"), (1e-1, 1e-2, 0.3)),
    **dict.fromkeys(("violence", "sexual"), (1e-2, 1e-4, 1.0)),
}
"""Concept -> (ram_lr, sam_lr, sam_weight) of the authors' scripts. Other concepts have those of "woman", or of "violence"."""
OF_SCRIPTS: dict[str, tuple[str, ...]] = {
    "default": (),
    "paper": ("ram_lr", "sam_lr"),
    "official": ("ram_lr", "sam_lr", "sam_weight"),
}
"""Preset -> settings that it takes from `OFFICIAL_RATES`."""


def _leads_to(concept: Concept) -> tuple[str, str]:
    """Its target and negative prompts: an own concept of a known name has others."""
    return concept.target, concept.negative


def official_concept(concept: Concept) -> Concept:
    """The concept as the authors' scripts train it: ``sexual`` is taken out of "a gorgeous person"; others as they are."""
    return replace(concept, neutral="a gorgeous person") if concept == find_concept("sexual") else concept
