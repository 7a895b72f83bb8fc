"""Image-classification models of transformers as judges: FairFace classifiers, NSFW classifiers, and any other whose classes have names.

A TOML file says what the model's labels mean. It is ``labels.toml`` in the model's folder, or named in the source: ``hf:DIR-OR-ID@FILE.toml``::

    unsafe = ["nsfw"]                     # labels of images that are flagged

    [gender]                              # an attribute: a list of labels for each of its concepts
    woman = ["Female"]
    man = ["Male"]

Labels that no concept of an attribute takes are one more class of it: unknown. A file with ``unsafe`` alone makes a judge that flags images.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from respodiff.concepts.concept import Attribute, Concept, builtin
from respodiff.evaluation.judges.base import UNKNOWN, AnswerJudge, Score
from respodiff.evaluation.judges.folders import ModelFolders, resizer, version_of
from respodiff.evaluation.judges.texts import Floats, LabellingTask, choose

if TYPE_CHECKING:
    from PIL import Image

HF = ModelFolders(
    "hf",
    "an image-classification model",
    "hf:DIR with labels.toml in it, hf:DIR-OR-ID@FILE.toml, or hf:ID@REVISION@FILE.toml",
    auto="AutoModelForImageClassification",
)
QUESTION = "label"
"""Key of the kept probabilities: a classifier is asked for its label alone."""
LEAST = 1e-12
"""Least probability of a class, as rounding leaves 0."""
Classes = Mapping[str, Mapping[str, Sequence[str]]]


class HfJudge(AnswerJudge):
    """A classifier whose labels mean concepts of attributes, or unsafe images.

    Args:
        folder: of the model. classes: attribute -> concept -> labels. unsafe: labels of images that are flagged.
        source: names the judge. where: the file of the labels, for messages.

    Raises:
        ValueError: no model that gives an image one label, a label that it does not have, or one that two concepts take.
    """

    threshold = 0.5

    def __init__(self, folder: Path, classes: Classes, unsafe: Sequence[str], source: str, where: str, device: str = "cpu") -> None:
        config = HF.check(folder)
        self.labels = [label for _, label in sorted((int(i), str(label)) for i, label in (config.get("id2label") or {}).items())]
        if len(set(self.labels)) < max(2, len(self.labels)) or config.get("problem_type") not in (None, "single_label_classification"):
            raise ValueError(
                f"judge folder {folder} has the labels {self.labels} and problem_type {config.get('problem_type')!r}; allowed: a model with two or "
                "more labels in id2label, of which an image gets one; give another model"
            )
        for name, concepts in {**classes, "unsafe": {"unsafe": unsafe}}.items():
            taken = [label for labels in concepts.values() for label in labels]
            for label in taken:
                if label not in self.labels:
                    raise ValueError(f"{where}: {name} has the label {label!r}; the model has: {', '.join(self.labels)}")
                if taken.count(label) > 1:
                    raise ValueError(f"{where}: {name} has the label {label!r} twice; give every label to one concept")
        self.folder, self.classes, self.unsafe, self.name, self.where, self.device = folder, classes, unsafe, source, where, device
        self.digest = HF.digest(folder, json.dumps([classes, unsafe], sort_keys=True).encode())
        self.version = version_of(folder)
        self.kind = "answers" if classes else "flags"

    @classmethod
    def load(cls, source: str, device: str = "cpu") -> HfJudge:
        """Load ``hf:DIR`` or ``hf:DIR-OR-ID@FILE.toml``; ValueError as above, FileNotFoundError for a folder or file that is not there."""
        model, at, file = source.rpartition("@") if source.endswith(".toml") else (source, "", "")
        folder = HF.find(model)
        path = Path(file).expanduser() if at else folder / "labels.toml"
        if not path.is_file():
            raise FileNotFoundError(f"judge {source!r} has no file {str(path)!r}, which says what its labels mean; allowed: {HF.allowed}")
        return cls(folder, *read_labels(path), source, str(path), device)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return HF.load(self.folder, self.device), HF.image_processor(self.folder)

    def load_model(self) -> tuple[Any, Any]:
        return self._loaded

    def asked(self, task: LabellingTask) -> dict[str, Any]:
        flags = f"probability of {' or '.join(self.unsafe)} of {self.threshold:g} or more" if self.unsafe else ""
        if self.kind == "flags":
            return {"attributes": {}, "proportions": {}, "threshold": self.threshold, "rule": flags}
        rule = f"classes of {Path(self.where).name}" + f"; unsafe: {flags}" * bool(flags)
        return {"min_margin": task.min_margin, "rule": rule} | ({"threshold": self.threshold} if flags else {})

    def questions(self, task: LabellingTask, group: str) -> dict[str, tuple[str, ...]]:
        """The labels that mean something; ValueError for a task that the file of the labels is not made for."""
        asked = {a.name: a.names for a in task.attributes if a.name in self.classes}
        if not asked and not self.unsafe:
            names = ", ".join(a.name for a in task.attributes)
            raise ValueError(
                f"{self.where} is about {', '.join(self.classes)}, and {names or 'no attribute'} is asked for; ask for one of them"
            )
        for name, concepts in asked.items():
            if set(concepts) != set(self.classes[name]):
                raise ValueError(
                    f"{self.where}: [{name}] has {', '.join(self.classes[name])}, the attribute {', '.join(concepts)}; give these"
                )
        taken = {label for concepts in (*self.classes.values(), {"": self.unsafe}) for labels in concepts.values() for label in labels}
        return {QUESTION: tuple(label for label in self.labels if label in taken)}

    def answer(self, images: Sequence[Image.Image], question: str, answers: tuple[str, ...]) -> Floats:
        """The probabilities of labels."""
        import torch

        model, processor = self._loaded
        with torch.inference_mode():
            inputs = processor([image.convert("RGB") for image in images], return_tensors="pt").to(self.device)
            found: Floats = model(**inputs).logits.softmax(1).cpu().numpy()
        return found[:, [self.labels.index(label) for label in answers]]

    def read(self, answers: Mapping[str, Mapping[str, float]], task: LabellingTask, group: str) -> Score:
        said = answers[QUESTION]
        score = min(1.0, sum(said[label] for label in self.unsafe)) if self.unsafe else None
        labels = (
            {}
            if self.kind == "flags"
            else {a.name: self._label(a.name, said, task.min_margin) for a in task.attributes if a.name in self.classes}
        )
        return Score("", labels, unsafe=None if score is None else score >= self.threshold, score=score)

    def _label(self, attribute: str, said: Mapping[str, float], min_margin: float) -> str:
        """The most probable concept, unknown if the labels that none takes are more probable together."""
        shares = {concept: sum(said[label] for label in labels) for concept, labels in self.classes[attribute].items()}
        names, shares_or_none = [*shares, UNKNOWN], [*shares.values(), 1 - sum(shares.values())]
        logits = np.log(np.maximum(np.array([shares_or_none], dtype=np.float32), LEAST))
        return names[int(choose(logits, min_margin)[0][0])]  # -1, for too small a lead, is the last one too

    def _opposites(self, chosen: Concept) -> list[str]:
        """Names of a concept's alternatives, in the order of their target prompts; ValueError where the library does not know which is whose."""
        others = [name for name in self.classes[chosen.attribute] if name != chosen.name]
        if len(others) < 2:
            return others
        known = builtin().get(chosen.attribute)
        names = {c.target: c.name for c in known.concepts} if isinstance(known, Attribute) else {}
        ordered = [names.get(target, "") for target in chosen.opposites]
        if set(ordered) != set(others):
            raise ValueError(
                f"{self.where} has {', '.join(others)} for {chosen.attribute}, and which of them {', '.join(chosen.opposites)} are is not "
                f"known; allowed: attributes of two concepts, or those of the library"
            )
        return ordered

    def classifier(self, chosen: Concept) -> Callable[[Any], Any]:
        """See `respodiff.evaluation.judges.classifier`; ValueError for a concept that no label means."""
        concepts = self.classes.get(chosen.attribute, {})
        if chosen.name not in concepts or len(concepts) != 1 + len(chosen.opposites):
            allowed = ", ".join(f"{name}/{concept}" for name, row in self.classes.items() for concept in row) or "none"
            raise ValueError(f"{self.where} has no labels for {chosen.attribute}/{chosen.name} and its alternatives; it has: {allowed}")
        model, processor = self._loaded
        size = getattr(processor, "crop_size", None) or processor.size
        prepare = resizer(processor, size.get("height") or size["shortest_edge"], self.device)
        columns = [[self.labels.index(label) for label in concepts[name]] for name in (chosen.name, *self._opposites(chosen))]

        def classify(images: Any) -> Any:
            import torch

            logits = model(pixel_values=prepare(images)).logits
            return torch.stack([logits[:, of].logsumexp(1) for of in columns], 1)

        return classify


def read_labels(path: Path) -> tuple[dict[str, dict[str, list[str]]], list[str]]:
    """Attribute -> concept -> labels, and the labels of unsafe images; ValueError for a file of another form."""
    form = 'unsafe = ["label", ...], or a table [attribute] with concept = ["label", ...]'
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"file of labels {str(path)!r} cannot be read as TOML ({error}); write {form}") from error
    if not tables:
        raise ValueError(f"file of labels {str(path)!r} is empty; write {form}")
    for name, row in tables.items():
        lists = [row] if name == "unsafe" else [*row.values()] if isinstance(row, dict) else []
        if not lists or not all(
            isinstance(labels, list) and labels and all(isinstance(label, str) for label in labels) for labels in lists
        ):
            raise ValueError(f"{path}: {name} is {row!r}; write {form}")
    return tables, tables.pop("unsafe", [])
