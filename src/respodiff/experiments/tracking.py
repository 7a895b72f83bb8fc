"""Reports a training to TensorBoard, trackio or Weights & Biases while it runs: losses, relative norm, and images of validation prompts."""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from respodiff._optional import optional
from respodiff.generation.config import GenerateConfig
from respodiff.generation.generate import generate
from respodiff.training.config import TrainConfig
from respodiff.training.state import StepRecord

BACKENDS = ("tensorboard", "trackio", "wandb")
IMAGES = 4
"""Times that validation images are drawn in a training, where nothing else is asked for."""


class Tracker(Protocol):
    """Where values and images go, each under a name and the iteration that they are of."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Keeps numbers."""

    def images(self, images: Mapping[str, Image.Image], step: int) -> None:
        """Keeps images."""

    def close(self) -> None:
        """Writes what is left."""


class TensorBoard:
    """Event files in a new folder of ``folder``, named by the time."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(folder / time.strftime("%Y-%m-%d-%H%M%S")))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def images(self, images: Mapping[str, Image.Image], step: int) -> None:
        for name, image in images.items():
            self.writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class HostedRun:
    """A run in the project ``respodiff`` of trackio or wandb, which have one interface; each keeps it where it is set up to."""

    def __init__(self, library: Any, name: str) -> None:
        self.library = library
        library.init(project="respodiff", name=name)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self.library.log(dict(values), step=step)

    def images(self, images: Mapping[str, Image.Image], step: int) -> None:
        self.library.log({name: self.library.Image(image) for name, image in images.items()}, step=step)

    def close(self) -> None:
        self.library.finish()


def backend(report_to: str) -> Any:
    """The package of one of `BACKENDS`. ValueError for another name, RuntimeError that says what to install."""
    if report_to not in BACKENDS:
        raise ValueError(f"report_to is {report_to!r}; allowed: {', '.join(BACKENDS)}")
    return optional(report_to, f"report_to {report_to}", report_to)


def open_tracker(report_to: str, name: str, folder: Path) -> Tracker:
    """A tracker of one training; TensorBoard alone writes to ``folder``. Raises as `backend`."""
    library = backend(report_to)
    return TensorBoard(folder) if report_to == "tensorboard" else HostedRun(library, name)


class TrainingLog:
    """Reports each `StepRecord` that it is given; the training is not changed by it, and goes on with a warning if a tracker fails.

    Args:
        tracker: opens it, once the unsteered images are drawn.
        pipe: the pipeline that is trained on. Images are drawn by a copy that shares its model, with the usual steps and guidance.
        prompts: one image each, unsteered on the left and with the module as it is then on the right, from the same noise.
        every: iterations between images; 0 is a quarter of all. The last iteration always has some. seed: of the noise.

    Raises:
        ValueError: for prompts that the model cannot take, before anything is trained.
    """

    def __init__(self, tracker: Callable[[], Tracker], pipe: Any, prompts: Sequence[str] = (), *, every: int = 0, seed: int = 0) -> None:
        self.pipe, self.prompts, self.every, self.seed = pipe, list(prompts), every, seed
        self.unsteered = self._draw() if prompts else []
        self.tracker: Tracker | None = tracker()

    def __call__(self, record: StepRecord) -> None:
        """Report the losses, |r + s| / |h| of RespoDiff's modules, and images where it is time for some."""
        self._try(lambda tracker: self._report(tracker, record))

    def close(self) -> None:
        """Write what is left."""
        self._try(lambda tracker: tracker.close())

    def _try(self, act: Callable[[Tracker], None]) -> None:
        """Act on the tracker; if it fails, the training goes on without it."""
        try:
            if self.tracker:
                act(self.tracker)
        except Exception as error:
            warnings.warn(f"the training is reported no longer: {error}", stacklevel=3)
            self.tracker = None

    def _report(self, tracker: Tracker, record: StepRecord) -> None:
        every = self.every or max(1, record.iterations // IMAGES)
        due = bool(self.prompts) and (record.iteration % every == 0 or record.iteration == record.iterations)
        modules: dict[str, Any] = {}
        if due or isinstance(getattr(record.state, "config", None), TrainConfig):  # modules of others may be copies of a whole model
            found = record.module
            modules = found if isinstance(found, dict) else {found.name: found}
        norms = {f"relative_norm/{name}": getattr(m, "relative_norm", None) for name, m in modules.items()}
        values = {"loss": record.loss, "loss_sam": record.loss_sam, **norms}
        tracker.scalars({k: v for k, v in values.items() if v is not None and math.isfinite(v)}, record.iteration)
        if due:
            tracker.images({f"{name}/{p}": pair for name, m in modules.items() for p, pair in self._pairs(m)}, record.iteration)

    def _pairs(self, module: Any) -> list[tuple[str, Image.Image]]:
        return [(p, _beside(a, b)) for p, a, b in zip(self.prompts, self.unsteered, self._draw(module), strict=True)]

    def _draw(self, *modules: Any) -> list[Image.Image]:
        """An image of every prompt, with modules on it."""
        shown = copy.copy(self.pipe)
        vars(shown)["scheduler"] = copy.deepcopy(self.pipe.scheduler)
        config = GenerateConfig(images=1, policy="none", seed=self.seed)
        found = {record.prompt: image.convert("RGB") for record, image in generate(shown, self.prompts, config=config, safety=modules)}
        return [found[prompt] for prompt in self.prompts]


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, left.height))
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both
