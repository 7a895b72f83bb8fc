"""Asks a person for labels of a run's images: in an order of the annotator's own, without prompt, concept or judge."""

from __future__ import annotations

import random
import shutil
import zipfile
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Self

from PIL import Image

from respodiff.app.service import ZIPS, Service, runs_in
from respodiff.concepts.concept import attribute
from respodiff.data.run_folder import RunFolder
from respodiff.data.untrusted import confined
from respodiff.evaluation.judges import UNKNOWN
from respodiff.evaluation.labels import annotator_agreement, annotators, label_table, read_labels, write_label
from respodiff.evaluation.score_files import open_image
from respodiff.reports.tables import shown


@dataclass(frozen=True)
class Task:
    """An annotator's images of one run or several, mixed: ``images`` as (run, file) in the order of asking, of which ``at`` is the next."""

    annotator: str
    attribute: str
    images: tuple[tuple[Path, str], ...]
    at: int = 0

    @classmethod
    def begin(cls, folder: Path, annotator: str, attribute_name: str) -> Self:
        """At the first image without a label. ValueError for a wrong name, an unknown attribute or a folder without images."""
        attribute(attribute_name)
        label_table(folder, annotator := annotator.strip())
        images = [(run, r.file) for run in runs_in(folder) for r in RunFolder(run).records()]
        if not images:
            raise ValueError(f"run is {folder.name!r}, which has no images; choose another one")
        random.Random(annotator).shuffle(images)
        task = cls(annotator, attribute_name, tuple(images))
        return replace(task, at=next((i for i, image in enumerate(images) if image not in task.labelled), len(images)))

    @property
    def runs(self) -> list[Path]:
        """The run folders of the images, by name."""
        return sorted({run for run, _ in self.images})

    @property
    def labelled(self) -> dict[tuple[Path, str], str]:
        """(run, file) -> label of the images that have one."""
        found = {(run, file): labels for run in self.runs for file, labels in read_labels(run, self.annotator).items()}
        return {image: labels[self.attribute] for image, labels in found.items() if self.attribute in labels}

    @property
    def options(self) -> tuple[str, ...]:
        """Labels to choose from: the concepts, and unknown."""
        return (*attribute(self.attribute).names, UNKNOWN)

    @property
    def done(self) -> bool:
        """Whether no image is left."""
        return self.at >= len(self.images)

    @property
    def image(self) -> Image.Image | None:
        """The image that is asked for; None at the end, or if it cannot be read."""
        return None if self.done else open_image(confined(*self.images[self.at]))

    def answer(self, label: str) -> Self:
        """The label is kept; the next image. ValueError for a label that is no option."""
        if label not in self.options:
            raise ValueError(f"label is {label!r}; allowed: {', '.join(self.options)}")
        if not self.done:
            run, file = self.images[self.at]
            write_label(run, self.annotator, file, self.attribute, label)
        return replace(self, at=min(self.at + 1, len(self.images)))

    def back(self) -> Self:
        """The image before, whose label may be given anew."""
        return replace(self, at=max(self.at - 1, 0))

    @property
    def tables(self) -> list[Path]:
        """The annotator's labels as CSV, one a run, as far as there are any."""
        return [table for run in self.runs if (table := label_table(run, self.annotator)).is_file()]

    def download(self, service: Service) -> Path:
        """A copy of the tables where the page may serve it: the CSV, or a zip of several."""
        one, *others = self.tables
        if not others:
            return Path(shutil.copyfile(one, service.new_place(ZIPS, one.stem, ".csv")))
        kept = service.new_place(ZIPS, one.stem, ".zip")
        with zipfile.ZipFile(kept, "w") as zipped:
            for table in self.tables:
                zipped.write(table, f"{table.parent.name}/{table.name}")
        return kept

    def agreements(self) -> list[str]:
        """A line for every two annotators who labelled images of a run in common."""
        out = []
        for run in self.runs:
            for a, b in combinations(annotators(run), 2):
                if found := annotator_agreement(run, a, b, self.attribute):
                    agree, kappa = found
                    more = f", Cohen's kappa {shown(kappa)}" if kappa else ", no kappa: both gave one and the same label throughout"
                    out.append(f"{run.name}, {a} and {b}, {self.attribute}: agreement {shown(agree)} (n = {agree.n}){more}")
        return out
