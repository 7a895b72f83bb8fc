"""Settings of drawing and of training."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from respodiff.concepts.concept import Concept, Kind
from respodiff.data.checks import check_setting, is_finite, is_whole
from respodiff.training.axes import OWN, check_axes
from respodiff.training.presets import PRESETS, Preset


@dataclass(frozen=True)
class TrainConfig:
    """All settings of one training run; the defaults are those of the preset ``neutral`` for fairness.

    Attributes:
        iterations: Adam steps on each module.
        objective: target score of RAM, a name in `respodiff.training.objectives.TARGETS`.
        target_guidance: weight w of that target.
        ram_lr, sam_lr: learning rates of Adam. ``sam_lr`` 0 trains RAM alone.
        sam_weight: lambda, weight of L_sem in SAM's loss; 0 trains RAM alone.
        preservation_weight: weight of preservation in RAM's loss, measured on latents of the concept's ``preserve`` prompts; 0 switches it off.
        train_scale: factor on both modules after training: a direction learned at guidance 1 is taken further.
        many: factor on train_scale and max_relative_norm for a concept with several opposites, whose images are all steered at full scale.
        max_relative_norm: with that factor the norm of RAM is at most this part of the mean norm of h, beyond which images lose their subject; 0 sets no limit.
        betas: Adam's.
        decay: learning rate over the run: ``constant``, or ``sqrt`` = (1 - i / iterations)^(1/2).
        init_range: both modules start at U(-init_range, init_range); 0 starts at zero.
        batch: latents per iteration.
        steps: DDIM steps of a rollout. timestep_labels: timestep that a latent carries, ``sampler`` or ``official`` (1000 - k 1000/steps).
        rollouts: latents rolled out for one pool. rollout_batch: how many of them at a time: bounds memory, and seeds one batch.
        rollout_prompts: ``neutral`` (paper), or ``all``: an equal part of the rollouts from neutral, target and opposite prompts, unsteered
            where they are not neutral.
        timesteps: ``all`` timesteps of a rollout train, or only the ``last`` one of a rollout to a random timestep.
        refresh_every: iterations until a new pool is rolled out through the modules as they then are, without the training scale: with more iterations
            than this, later rollouts are steered less far than the images that the finished module draws.
        rollout_guidance: guidance scale of rollouts. rollout_modules: ``ram`` or ``both`` steer them.
        height, width: of the images in pixels; 0 is the size that the model was trained at.
        per_channel: one number a channel, the same at every position, in place of tensors of the bottleneck's shape (paper): fits
            every image size. Transformers have no other.
        form: what RAM and SAM are (`respodiff.steering.parameterisations`): a ``constant`` each (paper), one number a ``channel`` (a constant with
            ``per_channel``; can be fused into a checkpoint), constants ``binned`` by timestep, or a ``lowrank`` function of h.
        bins: of ``binned``, equal parts of the timesteps.
        map_rank: columns k of A and B of ``lowrank``. map_rate: how fast A learns beside r, 1 as fast; B a C-th of that.
        modules: ``two`` tensors, a loss each (paper), or one ``shared`` tensor that both losses train in turn (its ablation).
        blend: lambda of a target blended of target and neutral score (`respodiff.training.objectives.blended`), for one tensor; 0 blends nothing.
        replay: pools that are kept: a batch is drawn from the newest and those before it; 1 replaces the pool.
        contexts: prompts ("a doctor") in which the concept is trained too, beside its own neutral prompt (`respodiff.concepts.prompt_editing`); rollouts
            cycle through them. ("own",) stands for the concept's own, with at least three rollouts in each.
        release: share of the timesteps, at the clean end, at which the finished module adds nothing (`ConceptModule.released`).
        seed: everything random in training follows from it.
    """

    iterations: int = 100
    objective: str = "contrast"
    target_guidance: float = 1.0
    ram_lr: float = 0.2
    sam_lr: float = 0.0
    sam_weight: float = 0.5
    preservation_weight: float = 1.0
    train_scale: float = 2.0
    max_relative_norm: float = 0.8
    betas: tuple[float, float] = (0.9, 0.99)
    decay: Literal["constant", "sqrt"] = "sqrt"
    init_range: float = 0.0
    batch: int = 12
    steps: int = 16
    timestep_labels: Literal["sampler", "official"] = "sampler"
    rollouts: int = 12
    rollout_batch: int = 12
    rollout_prompts: Literal["neutral", "all"] = "all"
    timesteps: Literal["all", "last"] = "all"
    refresh_every: int = 100
    rollout_guidance: float = 3.0
    rollout_modules: Literal["ram", "both"] = "both"
    height: int = 0
    width: int = 0
    per_channel: bool = False
    form: Literal["constant", "channel", "binned", "lowrank"] = "constant"
    bins: int = 4
    map_rank: int = 4
    map_rate: float = 0.1
    modules: Literal["two", "shared"] = "two"
    blend: float = 0.0
    replay: int = 1
    contexts: tuple[str, ...] = ()
    release: float = 0.0
    many: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        from respodiff.training.objectives import TARGETS  # brings torch, which the help of the command line need not wait for

        for name in ("iterations", "batch", "rollouts", "rollout_batch", "refresh_every", "map_rank", "replay"):
            check_setting(
                name, getattr(self, name), is_whole(getattr(self, name)) and getattr(self, name) >= 1, "a whole number of at least 1"
            )
        check_setting("steps", self.steps, is_whole(self.steps) and 2 <= self.steps <= 999, "2 to 999, whole")
        check_setting("bins", self.bins, is_whole(self.bins) and self.bins >= 2, "a whole number of at least 2 (one bin is form=constant)")
        for name in ("height", "width"):
            value = getattr(self, name)
            check_setting(name, value, is_whole(value) and value >= 0, "a whole number of pixels, or 0 for the model's own size")
        for name in ("ram_lr", "target_guidance", "rollout_guidance", "train_scale", "map_rate", "many"):
            value = getattr(self, name)
            check_setting(name, value, is_finite(value) and value > 0, "a finite number above 0")
        for name in ("sam_lr", "sam_weight", "preservation_weight", "max_relative_norm", "init_range", "blend"):
            value = getattr(self, name)
            check_setting(name, value, is_finite(value) and value >= 0, "a finite number of at least 0")
        check_setting("release", self.release, is_finite(self.release) and 0 <= self.release < 1, "0 to below 1")
        check_setting("objective", self.objective, self.objective in TARGETS, ", ".join(TARGETS))
        for name, hint in get_type_hints(type(self)).items():
            if choices := get_args(hint) if get_origin(hint) is Literal else ():
                check_setting(name, getattr(self, name), getattr(self, name) in choices, ", ".join(choices))
        good = isinstance(self.betas, tuple) and len(self.betas) == 2 and all(is_finite(b) and 0 <= b < 1 for b in self.betas)
        check_setting("betas", self.betas, good, "two numbers from 0 to below 1")
        check_setting("per_channel", self.per_channel, isinstance(self.per_channel, bool), "True, False")
        check_setting("seed", self.seed, is_whole(self.seed) and 0 <= self.seed < 1 << 63, "0 to 2^63 - 1")
        check_axes(self)

    def of(self, concept: Concept) -> TrainConfig:
        """The same with the concept's own contexts in the place of ("own",), and with what ``many`` makes of train_scale and max_relative_norm."""
        config = self
        if len(concept.opposites) > 1:
            config = replace(config, train_scale=config.train_scale * config.many, max_relative_norm=config.max_relative_norm * config.many)
        config = replace(config, many=1.0)
        if config.contexts != OWN:
            return config
        least = 3 * (len(concept.contexts) + 1) if concept.contexts else 1
        return replace(config, contexts=concept.contexts, rollouts=max(config.rollouts, least))

    @property
    def trains_sam(self) -> bool:
        """False where SAM stays zero: RAM alone."""
        return self.sam_weight > 0 and self.sam_lr > 0

    @property
    def flat(self) -> bool:
        """True where tensors are one number a channel."""
        return self.per_channel or self.form == "channel"

    @classmethod
    def preset(cls, name: str, kind: Kind = "fairness", **changes: Any) -> TrainConfig:
        """Settings of a preset for a kind of concept, with ``changes`` on top. ValueError lists the presets, or the known settings."""
        if name not in get_args(Preset):
            raise ValueError(f"preset is {name!r}; allowed: {', '.join(get_args(Preset))}")
        if unknown := set(changes) - {f.name for f in fields(cls)}:
            raise ValueError(f"setting {sorted(unknown)[0]!r} is unknown; allowed: {', '.join(f.name for f in fields(cls))}")
        return replace(cls(**PRESETS[name, kind]), **changes)
