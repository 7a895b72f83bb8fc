"""Asks a person for labels of a run's images: in an order of the annotator's own, without prompt, concept or judge."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Self

from PIL import Image

from respodiff.concepts.concept import attribute
from respodiff.data.run_folder import RunFolder
from respodiff.data.untrusted import confined
from respodiff.evaluation.judges import UNKNOWN
from respodiff.evaluation.labels import annotator_agreement, annotators, label_table, read_labels, write_label
from respodiff.evaluation.score_files import open_image
from respodiff.reports.tables import shown


@dataclass(frozen=True)
class Task:
    """An annotator's images of a run: ``files`` in the order in which they are asked for, of which ``at`` is the next."""

    run: Path
    annotator: str
    attribute: str
    files: tuple[str, ...]
    at: int = 0

    @classmethod
    def begin(cls, run: Path, annotator: str, attribute_name: str) -> Self:
        """At the first image without a label. ValueError for a wrong name, an unknown attribute or a run without images."""
        attribute(attribute_name)
        label_table(run, annotator := annotator.strip())
        files = [r.file for r in RunFolder(run).records()]
        if not files:
            raise ValueError(f"run is {str(run)!r}, which has no images; choose another one")
        random.Random(annotator).shuffle(files)
        task = cls(run, annotator, attribute_name, tuple(files))
        return replace(task, at=next((i for i, file in enumerate(files) if file not in task.labelled), len(files)))

    @property
    def labelled(self) -> dict[str, str]:
        """File -> label of the images that have one."""
        found = read_labels(self.run, self.annotator)
        return {file: labels[self.attribute] for file, labels in found.items() if self.attribute in labels}

    @property
    def options(self) -> tuple[str, ...]:
        """Labels to choose from: the concepts, and unknown."""
        return (*attribute(self.attribute).names, UNKNOWN)

    @property
    def done(self) -> bool:
        return self.at >= len(self.files)

    @property
    def image(self) -> Image.Image | None:
        """The image that is asked for; None at the end, or if it cannot be read."""
        return None if self.done else open_image(confined(self.run, self.files[self.at]))

    def answer(self, label: str) -> Self:
        """The label is kept; the next image. ValueError for a label that is no option."""
        if label not in self.options:
            raise ValueError(f"label is {label!r}; allowed: {', '.join(self.options)}")
        if not self.done:
            write_label(self.run, self.annotator, self.files[self.at], self.attribute, label)
        return replace(self, at=min(self.at + 1, len(self.files)))

    def back(self) -> Self:
        """The image before, whose label may be given anew."""
        return replace(self, at=max(self.at - 1, 0))

    @property
    def table(self) -> Path:
        """The annotator's labels as CSV; it exists from the first label on."""
        return label_table(self.run, self.annotator)


def agreements(run: Path, attribute_name: str) -> list[str]:
    """A line for every two annotators who labelled images of a run in common."""
    out = []
    for a, b in combinations(annotators(run), 2):
        if found := annotator_agreement(run, a, b, attribute_name):
            agree, kappa = found
            more = f", Cohen's kappa {shown(kappa)}" if kappa else ", no kappa: both gave one and the same label throughout"
            out.append(f"{a} and {b}, {attribute_name}: agreement {shown(agree)} (n = {agree.n}){more}")
    return out
