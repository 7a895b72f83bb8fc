"""Shards judge their own images; the scores of the run are made of what all of them found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from painted import GENDER, WORDS, ColourJudge, paint
from respodiff.data.shards import Shard
from respodiff.evaluation.evaluate import evaluate, judge_shard
from respodiff.evaluation.judges import FlagJudge

ROWS = [*(("cook", "woman", (i % 2, 0, 0)) for i in range(4)), ("guard", None, (1, 1, 0)), ("guard", None, (1, 1, 1))]


class Flags(FlagJudge):
    name, digest, version, threshold, rule = "flags", "f" * 16, "1", 0.5, "blue"

    def __init__(self) -> None:
        self.seen = 0

    def score_batch(self, images: Sequence[Any]) -> list[float]:
        self.seen += len(images)
        return [image.getpixel((0, 0))[2] / 255 for image in images]


@pytest.mark.parametrize("kind", [ColourJudge, Flags])
def test_what_shards_found_is_summed_up_without_opening_an_image(tmp_path: Path, kind: Any) -> None:
    one = evaluate(paint(tmp_path / "one" / "r", ROWS), [ColourJudge(), kind()], [GENDER], vocabulary=WORDS)
    run, seen = paint(tmp_path / "two" / "r", ROWS), []
    for i in range(2):
        judges = [ColourJudge(), kind()]
        judge_shard(run, judges, [GENDER], Shard(i, 2), vocabulary=WORDS)
        judge_shard(run, judges, [GENDER], Shard(i, 2), vocabulary=WORDS)  # repeated by a restart
        seen.append(judges[1].seen)
    judges = [ColourJudge(), kind()]
    assert evaluate(run, judges, [GENDER], vocabulary=WORDS) == one
    assert [j.seen for j in judges] == [0, 0] and (kind is ColourJudge or seen == [4, 2])


def test_a_shard_that_has_not_judged_is_made_up_for(tmp_path: Path) -> None:
    run, judge = paint(tmp_path / "r", ROWS), ColourJudge()
    judge_shard(run, judge, [GENDER], Shard(0, 2), vocabulary=WORDS)
    assert judge.seen == 4, "the cooks"
    assert evaluate(run, judge, [GENDER], vocabulary=WORDS).n == 6 and judge.seen == 6
