"""Encodes prompts, and provides a pipeline's model as a function of latents, timestep and condition, the same for every class.

A condition is a dictionary of tensors, rows first: those arguments of the model that differ from prompt to prompt, such as
``encoder_hidden_states`` (B, T, D), by their path. Latents are (B, C, H, W); packing into tokens happens inside.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from respodiff.pipelines.bottleneck import site_shape
from respodiff.pipelines.capture import at, capture, filled, flat, takes_negative
from respodiff.pipelines.latents import latent_shape, pack, pixels_of_latent, unpack
from respodiff.pipelines.registry import backbone, image_tokens, sites_of, spec_of

Condition = Mapping[str, Tensor]
TIME_IDS = "added_cond_kwargs.time_ids"


def repeat(condition: Condition, n: int) -> dict[str, Tensor]:
    """A condition of one row for n rows, without copies."""
    return {k: v.expand(n, *v.shape[1:]) for k, v in condition.items()}


def join(conditions: Sequence[Condition]) -> dict[str, Tensor]:
    """The rows of several conditions as one condition. ValueError for prompts that take tensors of different lengths."""
    if not alike(*conditions):
        raise ValueError("prompts take different numbers of tokens of this model, which does not pad them; give prompts of one length")
    return {k: torch.cat([c[k] for c in conditions]) for k in conditions[0]}


def alike(*conditions: Condition) -> bool:
    """Whether conditions can be rows of one call: a language model may give each prompt a length of its own."""
    return len({tuple((k, v.shape[1:]) for k, v in c.items()) for c in conditions}) <= 1


_rows: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()
"""Model -> paths of its arguments that have a row for each prompt."""


@torch.no_grad()
def encode_prompts(
    pipe: Any, prompts: Sequence[str], height: int = 0, width: int = 0, *, negative: bool = False, **call: Any
) -> list[dict[str, Tensor]]:
    """What the model is told of each prompt, as its pipeline does it: path of an argument -> its row (1, ...).

    ``negative``: as negative prompts, which some pipelines encode in another way. ``call`` are arguments of the pipeline's call. Zeros stand for the
    empty prompt where the checkpoint says so (SDXL). ValueError for a prompt that would be cut off.
    """
    spec, model, unique = spec_of(pipe), backbone(pipe), list(dict.fromkeys(prompts))
    if spec.unread:
        raise ValueError(f"{type(pipe).__name__} does not tell what its model is told of a prompt: {spec.unread}")
    check_length(pipe, prompts)
    negative = negative and takes_negative(pipe)
    size = [side * pixels_of_latent(pipe) for side in latent_shape(pipe, height, width)[1:]]
    calls = [[text] for text in unique] if spec.ragged else [unique]
    told = [_rows_first(spec, capture(pipe, texts, *size, negative=negative, **call).told) for texts in calls]
    if model not in _rows:
        one, two = (flat(_rows_first(spec, capture(pipe, ["a"] * n, *size, **call).told)) for n in (1, 2))
        # Where tokens of an image are, and how it is guided, is no part of a prompt.
        own = {*names_of(model), "img_ids", "guidance", "timestep_cond"}
        _rows[model] = {path for path, value in two.items() if value.ndim and len(value) == 2 * len(one[path])} - own
    # Unconditional rows come in the same call as conditional ones, or in one of their own.
    block = spec.passes.index("uncond") if negative and "negative_prompt_embeds" not in spec.calls else 0
    rows = {
        text: {path: value[block * len(texts) + i][None] for path in _rows[model] if (value := at(t, path)) is not None}
        for texts, t in zip(calls, told, strict=True)
        for i, text in enumerate(texts)
    }
    if pipe.config.get("force_zeros_for_empty_prompt") and "" in rows:
        rows[""] = {path: value if path == TIME_IDS else torch.zeros_like(value) for path, value in rows[""].items()}
    return [rows[text] for text in prompts]


def _rows_first(spec: Any, told: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of a call with the rows of every one along its first dimension."""
    return {**told, **{name: told[name].movedim(axis, 0) for name, axis in spec.axes.items()}}


def flow_matching(scheduler: Any) -> bool:
    """Whether the model of a scheduler predicts the velocity of flow matching."""
    return "FlowMatch" in type(scheduler).__name__ or scheduler.config.get("prediction_type") == "flow_prediction"


def names_of(model: Any) -> tuple[str, str]:
    """The arguments of a model that are the latent and the timestep."""
    first, *others = inspect.signature(model.forward).parameters
    return first, next(name for name in others if name == "t" or name.startswith("timestep"))


@contextmanager
def differentiable(model: Any) -> Iterator[None]:
    """While active and with gradients on, experts of HiDream run as in training: the code of inference gives no gradients."""
    experts = [m for m in model.modules() if hasattr(m, "moe_infer")] if torch.is_grad_enabled() else []
    before = [(m, m.training, m._force_inference_output) for m in experts]
    for m in experts:
        m.training, m._force_inference_output = True, False
    try:
        yield
    finally:
        for m, training, forced in before:
            m.training, m._force_inference_output = training, forced


def check_length(pipe: Any, prompts: Sequence[str]) -> None:
    """ValueError if a prompt has more tokens than the tokenizer takes. Of several tokenizers the one that takes most decides."""
    names = ("tokenizer", "tokenizer_2", "tokenizer_3", "tokenizer_4")
    tokenizers = [getattr(t, "tokenizer", t) for name in names if (t := getattr(pipe, name, None)) is not None]  # or one of a processor
    tokenizer = max(tokenizers, key=lambda t: t.model_max_length)
    limit, around = min(tokenizer.model_max_length, spec_of(pipe).longest), _template(pipe, tokenizer)  # the first may stand for none
    for prompt in dict.fromkeys(prompts):
        if (n := len(tokenizer(prompt).input_ids) + around) > limit:
            raise ValueError(f"prompt {prompt[:60]!r}... has {n} tokens; this model takes {limit}, start and end included: shorten it")


def is_offloaded(model: Any) -> bool:
    """Whether the weights are moved during each call, by accelerate or by group offloading of diffusers."""
    registries = (getattr(module, "_diffusers_hook", None) for module in model.modules())
    return hasattr(model, "_hf_hook") or any(r is not None and r.get_hook("group_offloading") is not None for r in registries)


def _template(pipe: Any, tokenizer: Any) -> int:
    """Tokens that a pipeline puts around a prompt within the longest that is read."""
    if not spec_of(pipe).templated:
        return 0
    if system := getattr(pipe, "system_prompt", ""):
        return len(tokenizer(f"{system} <Prompt Start> ").input_ids)
    if system := getattr(pipe, "system_message", ""):
        said = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in (("system", system), ("user", ""))]
        return len(tokenizer(pipe.tokenizer.apply_chat_template(said, tokenize=False)).input_ids)
    chat = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False, add_generation_prompt=True)
    return len(tokenizer(chat).input_ids)


class Denoiser:
    """The steered model of a pipeline at one image size.

    Attributes:
        model, sites: the UNet or transformer, and the sites that are chosen, in the order of a forward pass. shapes: (C, H, W) of a module at each.
        site, shape: the first of them.
        size: height and width of the image in pixels. latent: (C, H, W) of a latent.
        guides: whether classifier-free guidance is used, with scale ``guidance``; if not, that is embedded where the model takes one.
        forwards: evaluations of one sample so far.
    """

    def __init__(self, pipe: Any, height: int = 0, width: int = 0, guidance: float = 1.0, sites: Sequence[str] = ()) -> None:
        self.pipe, self.spec = pipe, spec_of(pipe)
        self.model, self.guidance, self.forwards = backbone(pipe), guidance, 0
        self.device: torch.device = self.model.device
        self.dtype: torch.dtype = self.model.dtype
        self.sites = sites_of(pipe, sites)
        self.site = self.sites[0]
        if is_offloaded(self.model):
            raise ValueError("the model is offloaded, which moves it during each call; train without offloading, and offload to generate")
        if "DeepCache" in getattr(self.model.forward, "__module__", ""):
            raise ValueError("DeepCache is enabled, which skips most of the model: disable it for training, and enable it to generate")
        if why := self.spec.unread or self.spec.untrained:
            raise ValueError(f"nothing is trained on {type(pipe).__name__}: {why}")
        if self.spec.unchecked and getattr(self.model, "gradient_checkpointing", False):
            raise ValueError(f"gradient checkpointing is on for {type(self.model).__name__}: {self.spec.unchecked}; train without it")
        config = self.model.config
        self.latent = latent_shape(pipe, height, width)
        if self.spec.model == "transformer" and not self.spec.packs and config.in_channels != self.latent[0]:
            raise ValueError(
                f"the transformer takes {config.in_channels} channels, mask included; train on the text-to-image checkpoint, steer this one"
            )
        self.size = (self.latent[1] * pixels_of_latent(pipe), self.latent[2] * pixels_of_latent(pipe))
        self.shapes = {site: site_shape(self.model, *self.latent[1:], site=site) for site in self.sites}
        self.shape = self.shapes[self.site]
        self.embeds_guidance = bool(getattr(config, "time_cond_proj_dim", None) or getattr(config, "guidance_embeds", False))
        self.guides = self.spec.guides and not self.embeds_guidance
        self._extra = self._extra_channels() if self.spec.model == "unet" else None
        self._samplers: dict[int, Any] = {}

    @cached_property
    def empty(self) -> Condition:
        """Condition of the unconditional rows: the empty prompt, as the pipeline encodes it for them."""
        # Some put instructions before a prompt, and none before a negative one.
        return self._encode([self.spec.negative or ""], negative=self.guides and self.spec.model == "transformer")[0]

    @cached_property
    def _told(self) -> dict[str, Any]:
        """Arguments of a call of one row."""
        return dict(capture(self.pipe, [""], *self.size, **self._scale).told)

    @property
    def _scale(self) -> dict[str, Any]:
        return {self.spec.guided_by: self.guidance if self.embeds_guidance else self.spec.off}

    def encode(self, prompts: Sequence[str]) -> list[dict[str, Tensor]]:
        """Conditions of one row each, on the model's device. ValueError for a prompt that would be cut off."""
        return self._encode(prompts) if prompts else []

    def _encode(self, prompts: Sequence[str], negative: bool = False) -> list[dict[str, Tensor]]:
        found = encode_prompts(self.pipe, prompts, *self.size, negative=negative, **self._scale)
        return [{path: v.to(self.device, self.dtype if v.is_floating_point() else v.dtype) for path, v in row.items()} for row in found]

    def __call__(self, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Prediction (B, C, H, W) for latents z (B, C, H, W) at timesteps t (B,) or (), as the scheduler counts them."""
        self.forwards += len(z)
        latent, timestep = names_of(self.model)
        told = self._told[timestep]
        (a, b), when = self.spec.time, t.to(told.dtype)
        when = when if (a, b) == (1, 0) else when * a + b
        if self._extra is not None:
            z = torch.cat([z, self._extra.expand(len(z), -1, -1, -1)], 1)
        rows: Any = [*z[:, :, None]] if self.spec.listed else pack(z, self.spec.packs) if self.spec.packs else z
        own = {latent: rows, timestep: when.expand(len(z)) if told.ndim else when}
        for site in self.sites:
            site.tokens = image_tokens(self.pipe, z, condition.get("encoder_attention_mask"))

        def value_of(path: str, value: Any) -> Any:
            if path in own:
                return own[path]
            if path in condition:
                given = condition[path].movedim(0, self.spec.axes.get(path, 0))
                return [*given] if isinstance(value, list) else given.contiguous()
            if path == "txt_seq_lens":  # Qwen-Image in diffusers 0.36
                return [condition["encoder_hidden_states"].shape[1]] * len(z)
            return value * len(z) if isinstance(value, list) else value  # an entry a row

        with differentiable(self.model):
            found = self.model(**filled(self._told, value_of))[0]
        prediction: Tensor = self.spec.sign * (torch.stack(found)[:, :, 0] if self.spec.listed else found)
        return unpack(prediction, self.spec.packs, *z.shape[2:]) if self.spec.packs else prediction[:, : z.shape[1]]

    def sampler(self, steps: int) -> Any:
        """The scheduler of rollouts: DDIM (paper) whatever the pipeline's own is, LCM's for consistency models, Euler for flow matching.

        Where the pipeline has a solver of higher order, DDIM's timesteps are spaced as in the paper ("leading"), not as that solver wants them.
        Timesteps of flow matching are those of the pipeline's call.
        """
        config = self.pipe.scheduler.config
        if flow_matching(self.pipe.scheduler):
            if steps not in self._samplers:
                shift = {"shift": config.flow_shift} if "flow_shift" in config else {}
                scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, stochastic_sampling=False, **shift)
                if "FlowMatch" in type(self.pipe.scheduler).__name__:
                    capture(self.pipe, [""], *self.size, steps, scheduler, **self._scale)
                else:  # pipelines of other solvers give them the number of steps alone, and some cannot call Euler's (PixArt)
                    scheduler.set_timesteps(steps, device=self.device)
                self._samplers[steps] = scheduler
            return copy.deepcopy(self._samplers[steps])
        if getattr(self.model.config, "time_cond_proj_dim", None) or isinstance(self.pipe.scheduler, LCMScheduler):
            scheduler = LCMScheduler.from_config(config)
        else:
            solver = isinstance(self.pipe.scheduler, DPMSolverMultistepScheduler | UniPCMultistepScheduler)
            paper = {"timestep_spacing": "leading", "set_alpha_to_one": False} if solver else {}
            scheduler = DDIMScheduler.from_config(config, clip_sample=False, **paper)
        scheduler.set_timesteps(steps, device=self.device)
        return scheduler

    @torch.no_grad()
    def _extra_channels(self) -> Tensor | None:
        """Channels (1, C, H, W) that inpainting and InstructPix2Pix append to a latent: everything masked over a blank image, no image."""
        extra = self.model.config.in_channels - self.latent[0]
        if not extra:
            return None
        if "mask_image" not in spec_of(self.pipe).images:
            return torch.zeros(1, extra, *self.latent[1:], device=self.device, dtype=self.dtype)
        blank = torch.zeros(1, 3, *self.size, device=self.pipe.vae.device, dtype=self.pipe.vae.dtype)
        masked = self.pipe.vae.encode(blank).latent_dist.mode() * self.pipe.vae.config.scaling_factor
        return torch.cat([torch.ones_like(masked[:, :1]), masked], 1).to(self.device, self.dtype)
