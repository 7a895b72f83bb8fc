"""Cells of two attributes, asked for, drawn and perceived, by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from painted import GENDER, WORDS, ColourJudge, coloured
from respodiff.concepts.concept import Attribute, Concept, intersection_of
from respodiff.data.records import ImageRecord
from respodiff.data.run_folder import RunFolder
from respodiff.evaluation.evaluate import evaluate
from respodiff.evaluation.summary import Summary
from respodiff.reports.tables import summary_lines

JOB = Attribute("job", (Concept("cook", "a cook"), Concept("guard", "a guard")))
# Colour of an image: the first number is 1 for a man, the second for a guard.
ROWS = [
    ("woman", "cook", (0, 0)),
    ("woman", "cook", (0, 0)),
    ("woman", "guard", (1, 1)),
    ("man", "cook", (1, 0)),
    ("man", "guard", (1, 1)),
    ("man", "guard", (0, 1)),
]


def run(folder: Path, settings: dict[str, Any]) -> RunFolder:
    made = RunFolder(folder).create(settings)
    for i, (gender, job, (red, green)) in enumerate(ROWS):
        record = ImageRecord(f"a-{i}", "", "a person", f"a{i % 3}", group=f"g{i % 3}", concepts={"gender": gender, "job": job})
        made.add(record, coloured((255 * red, 255 * green, 0)))
    return made


def statistics(folder: RunFolder) -> Summary:
    return evaluate(folder, ColourJudge(), [GENDER, JOB], vocabulary=WORDS)


def test_cells_by_hand(tmp_path: Path) -> None:
    found = statistics(run(tmp_path / "r", {}))
    assert [(s.labels, s.count, s.target) for s in found.intersection.subgroups] == [
        (("woman", "cook"), 2, 0.25),
        (("woman", "guard"), 1, 0.25),
        (("man", "cook"), 1, 0.25),
        (("man", "guard"), 2, 0.25),
    ]
    worst, all_asked = found.more["worst_subgroup_deviation"]["gender x job"], found.intersection.concept_accuracy
    assert worst.mean == pytest.approx(1 / 3 - 1 / 4) and worst.low == 0
    assert all_asked.mean == pytest.approx(4 / 6) and all_asked.n == 6


def test_cells_are_held_against_the_shares_of_cells_that_were_drawn(tmp_path: Path) -> None:
    proportions = {"gender*job": {"woman*cook": 1 / 3, "woman*guard": 1 / 6, "man*cook": 1 / 6, "man*guard": 1 / 3}}
    found = statistics(run(tmp_path / "r", {"target_proportions": proportions}))
    assert found.more["worst_subgroup_deviation"]["gender x job"].mean == pytest.approx(0, abs=1e-9)
    assert found.intersection.subgroups[1].target == pytest.approx(1 / 6)
    assert found.devrat["gender"].mean == 0, "a woman and a man in every group, and the margins of these shares are even"


def test_a_product_is_a_question_of_its_own_and_no_third_axis(tmp_path: Path) -> None:
    class Cells(ColourJudge):
        """Knows the texts of subgroups: the dot product of both parts' axes."""

        def embed_texts(self, texts: Any) -> Any:
            return sum(super(Cells, self).embed_texts([self.part(text, i) for text in texts]) for i in (0, 1))

        @staticmethod
        def part(text: str, i: int) -> str:
            return f"a {text.removeprefix('a ').split(' ')[i]}" if " " in text.removeprefix("a ") else text

    whole = Attribute(
        "gender*job",
        tuple(Concept(c.name, f"a {c.name.replace('*', ' ')}", attribute="gender*job") for c in product_names()),
    )
    found = evaluate(run(tmp_path / "r", {}), Cells(), [GENDER, JOB, whole], vocabulary=WORDS)
    assert found.counts["gender*job"]["g0"] == {"woman*cook": 1, "woman*guard": 0, "man*cook": 1, "man*guard": 0, "unknown": 0}
    assert found.concept_accuracy["gender*job"].mean == pytest.approx(4 / 6)
    assert found.intersection.attributes == ("gender", "job") and len(found.intersection.subgroups) == 4


def product_names() -> tuple[Concept, ...]:
    tall = Attribute("job", (Concept("cook", "a person cooking"), Concept("guard", "a person guarding")))
    return intersection_of([GENDER, tall]).concepts


def test_a_cell_that_the_attribute_does_not_have_is_refused(tmp_path: Path) -> None:
    few = Attribute("gender*job", (Concept("woman*cook", "a woman"), Concept("man*cook", "a man")))
    with pytest.raises(
        ValueError, match=r"asked for gender\*job '(wo)?man\*guard', but attribute 'gender\*job' has woman\*cook, man\*cook"
    ):
        evaluate(run(tmp_path / "r", {}), ColourJudge(), [few], vocabulary=WORDS)


def test_the_command_line_says_the_cells(tmp_path: Path) -> None:
    said = summary_lines(statistics(run(tmp_path / "r", {})))
    assert any(line.startswith("woman x cook: ") and line.endswith(", wanted 0.250") for line in said)
    assert any(line.startswith("worst subgroup deviation gender x job: 0.083 [0.000, ") for line in said)
