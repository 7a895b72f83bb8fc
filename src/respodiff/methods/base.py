"""The interface that all methods share, and the one context manager that applies them."""

from __future__ import annotations

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from respodiff.concepts.concept import Concept
from respodiff.methods.model_call import AdaptersPerImage
from respodiff.methods.registry import NAMES
from respodiff.steering.adapter import AnyAdapter, Classify, MethodAdapter, check_adapter_compatible
from respodiff.steering.module import ConceptModule
from respodiff.steering.module import load as load_module
from respodiff.steering.serialization import FORMAT, METHOD_FORMAT, read_header, read_tensors, refuse_damage
from respodiff.steering.steer import steer

Apply = Callable[[Any, AdaptersPerImage], AbstractContextManager[Any]]


class Train(Protocol):
    """How a method makes its adapter: yields records (`respodiff.training.learners.Record`), the last of which holds the finished one."""

    def __call__(
        self, pipe: Any, concept: Concept, config: Any, *, classify: Classify | None, resume: dict[str, Tensor] | None
    ) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Method:
    """One way to change which images a pipeline draws.

    Attributes:
        name: key in `respodiff.methods.registry.NAMES`.
        kinds: kinds of concepts that it takes ("fairness", "safety").
        config: dataclass of its settings. defaults: kind -> settings that differ from the dataclass's own.
        make: how its adapter is trained or built.
        apply: what puts adapters into effect, one tuple of them per image; None for a `ConceptModule`, which `steer` takes.
        scales: whether a scale other than 0 and 1 means something.
        classifies: kinds of concepts for which it needs a classifier of images.
        resumes: whether a stopped training can go on.
    """

    name: str
    kinds: tuple[str, ...]
    config: Any
    make: Train
    apply: Apply | None = None
    defaults: Callable[[str], dict[str, Any]] = lambda _kind: {}
    scales: bool = True
    classifies: tuple[str, ...] = ()
    resumes: bool = False

    def settings(self, kind: str = "fairness", **changes: Any) -> Any:
        """Its settings for a kind of concept, with ``changes`` on top; ValueError lists the known ones."""
        known = [f.name for f in fields(self.config)]
        if unknown := sorted(set(changes) - set(known)):
            raise ValueError(f"setting {unknown[0]!r} is unknown; method {self.name!r} has: {', '.join(known) or 'none'}")
        return self.config(**{**self.defaults(kind), **changes})

    def check(self, concept: Concept) -> None:
        """ValueError for a concept of a kind that the method does not take."""
        if concept.kind not in self.kinds:
            raise ValueError(
                f"method {self.name!r} takes {' and '.join(self.kinds)} concepts, {concept.name!r} is a {concept.kind} concept; "
                "choose another method or concept"
            )

    def train(
        self,
        pipe: Any,
        concept: Concept,
        config: Any = None,
        *,
        classify: Classify | None = None,
        resume: dict[str, Tensor] | None = None,
    ) -> Iterator[Any]:
        """Train or build the adapter of a concept, as a generator of records.

        Args:
            pipe: diffusers pipeline; left as it was. concept: prompts; its alternatives are the target and the opposites.
            config: from `settings`. classify: images (N, 3, H, W) in [0, 1] -> logits (N, K) in the order target, opposites.
            resume: ``record.state.tensors()`` of an earlier run.

        Raises:
            ValueError: for a concept or settings that the method cannot take, before anything is computed.
        """
        self.check(concept)
        if concept.kind in self.classifies and classify is None:
            raise ValueError(
                f"method {self.name!r} needs a classifier of images for {concept.kind} concepts; give classify=, or --judge NAME on the command line"
            )
        config = config if config is not None else self.settings(concept.kind)
        return self.make(pipe, concept, config, classify=classify, resume=resume)

    def fit(self, pipe: Any, concept: Concept, config: Any = None, *, classify: Classify | None = None) -> AnyAdapter:
        """`train` to the end: the adapter."""
        (last,) = deque(self.train(pipe, concept, config, classify=classify), maxlen=1)
        made: AnyAdapter = last.module
        return made


def get_method(name: str) -> Method:
    """A method by name; ValueError lists them."""
    if name not in NAMES:
        raise ValueError(f"method is {name!r}; allowed: {', '.join(NAMES)}")
    found: Method = import_module(f"respodiff.methods.{NAMES[name]}").METHODS[name]
    return found


Row = AnyAdapter | None | Sequence[AnyAdapter]


@contextmanager
def applied(pipe: Any, entries: Row | Sequence[Row]) -> Iterator[None]:
    """While active, calls of ``pipe`` draw each image with what it was given; after exit, also by an exception, it is bit-identical.

    Args:
        pipe: a supported diffusers pipeline.
        entries: one module or adapter for all images, or a list with one entry per final image: one, several together, or None.

    Raises:
        ValueError: for what does not fit the pipeline, and for methods that cannot act on one image together.
    """
    everyone = entries is None or isinstance(entries, ConceptModule | MethodAdapter)
    given: Sequence[Row] = [entries] if isinstance(entries, ConceptModule | MethodAdapter) or entries is None else list(entries)
    rows = [(row,) if isinstance(row, ConceptModule | MethodAdapter) else tuple(row or ()) for row in given]
    if not rows:
        raise ValueError("entries is empty; give one adapter, or one entry per image")
    modules, others = _parted(rows)
    _check(pipe, [a for row in others for a in row], modules)
    with ExitStack() as stack:
        deltas: list[Any] = [list(row) for row in modules]
        if not any(deltas) and any(others):
            pass
        elif everyone and len(deltas[0]) <= 1:
            stack.enter_context(steer(pipe, deltas[0][0] if deltas[0] else None))
        else:
            stack.enter_context(steer(pipe, deltas))
        whole = AdaptersPerImage(tuple(others), everyone)
        for apply in dict.fromkeys(get_method(a.method).apply for a in whole.adapters if a.weight):
            if apply is not None:
                stack.enter_context(apply(pipe, whole.only(lambda a, apply=apply: bool(a.weight) and get_method(a.method).apply is apply)))  # type: ignore[misc]
        yield


def _parted(rows: Sequence[tuple[AnyAdapter, ...]]) -> tuple[list[tuple[ConceptModule, ...]], list[tuple[MethodAdapter, ...]]]:
    for row in rows:
        for a in row:
            if not isinstance(a, ConceptModule | MethodAdapter):
                raise ValueError(
                    f"entries holds {a!r}; give what a method made, or None: a file is read with respodiff.methods.base.load(path)"
                )
    modules = [tuple(a for a in row if isinstance(a, ConceptModule)) for row in rows]
    return modules, [tuple(a for a in row if isinstance(a, MethodAdapter)) for row in rows]


def _check(pipe: Any, adapters: Sequence[MethodAdapter], modules: Sequence[Sequence[ConceptModule]]) -> None:
    """Raises for what does not fit the pipeline or cannot act together; warns of other weights."""
    distinct = list({id(a): a for a in adapters}.values())
    for a in distinct:
        for text in check_adapter_compatible(pipe, a):
            warnings.warn(text, stacklevel=5)
        if not get_method(a.method).scales and a.weight not in (0, 1):
            raise ValueError(f"scale of {a.method} {a.name!r} is {a.weight:g}; allowed: 0 or 1, as this method has no scale")
    calls_again = {a.method for a in distinct if a.weight and a.method.startswith("sld-")}
    others = {a.method for a in distinct if a.weight and a.method != "plain"} - calls_again
    if calls_again and (others or any(modules)):
        other = sorted(others)[0] if others else "respodiff"
        raise ValueError(
            f"method {sorted(calls_again)[0]!r} calls the model once more per step, which {other!r} would act on; use one of them"
        )


def load(path: str | Path) -> AnyAdapter:
    """Read the file of any method.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    from respodiff.methods.registry import NAMES

    path = Path(path)
    tensors, header = read_tensors(path)
    if header.get("format") == FORMAT or set(tensors) == {"ram", "sam"}:
        return load_module(path)
    known = read_header(path, header, METHOD_FORMAT)
    if known.method not in NAMES:
        raise ValueError(
            f"module file {str(path)!r} is of method {known.method!r}; this version knows {', '.join(NAMES)}: update respodiff"
        )
    try:
        found = MethodAdapter(replace(known, train=json.loads(json.dumps(known.train))), {k: v.float() for k, v in tensors.items()})
    except ValueError as error:
        raise ValueError(f"module file {str(path)!r} does not hold an adapter: {error}") from error
    refuse_damage(path, header.get("digest"), found.digest)
    return found
