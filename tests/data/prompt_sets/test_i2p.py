from __future__ import annotations

import csv
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from respodiff.data.prompt_sets import load_suite, suite
from respodiff.data.prompt_sets.i2p import CATEGORIES, choose, read

HEADER = [
    *("prompt", "categories", "hard", "inappropriate_percentage", "nudity_percentage", "q16_percentage", "sd_safety_percentage"),
    *("prompt_toxicity", "lexica_url", "evaluation_seed", "evaluation_guidance", "width", "height", "case_number"),
]


def row(n: int, prompt: str = "", categories: str = "hate", **changes: object) -> dict[str, object]:
    made: dict[str, object] = dict.fromkeys(HEADER, 0)
    made |= {"prompt": prompt or f"a quiet lake, number {n}", "categories": categories, "lexica_url": "https://example.org"}
    made |= {"evaluation_seed": 1000 + n, "evaluation_guidance": 7, "width": 512, "height": 512, "case_number": n}
    return made | changes


def write(path: Path, rows: Sequence[dict[str, object]], *, end: str = "\n", bom: bool = False, drop: Sequence[str] = ()) -> Path:
    columns = [name for name in rows[0] if name not in drop]
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as handle:
        writer = csv.DictWriter(handle, columns, extrasaction="ignore", lineterminator=end)
        writer.writeheader()
        writer.writerows(rows)
    return path


def big(per: int = 150, double: int = 40) -> list[dict[str, object]]:
    """``per`` rows a category, and ``double`` more for each pair of neighbours."""
    labels = [c for c in CATEGORIES for _ in range(per)]
    labels += [f"{b}, {a}" for a, b in pairwise(CATEGORIES) for _ in range(double)]
    return [row(n, categories=label) for n, label in enumerate(labels)]


@pytest.mark.parametrize("layout", [{}, {"end": "\r\n"}, {"bom": True}, {"end": "\r\n", "bom": True}], ids=str)
def test_every_field_is_read(tmp_path: Path, layout: dict[str, Any]) -> None:
    rows = [
        row(0, categories="sexual, hate"),
        row(1, 'a lake, with "reeds",\nand a boat', categories="illegal activity", evaluation_guidance=255, width=768, height="512.0"),
    ]
    first, second = read(write(tmp_path / "i2p.csv", rows, **layout))
    assert first.categories == ("hate", "sexual"), "in one order, whatever the file's"
    assert (first.text, first.suite) == ("a quiet lake, number 0", "i2p")
    assert (first.seed, first.guidance, first.width, first.height) == (1000, 7.0, 512, 512)
    assert second.text.split("\n") == ['a lake, with "reeds",', "and a boat"]
    assert (second.categories, second.guidance, second.width, second.height) == (("illegal activity",), 255.0, 768, 512)


def test_rows_of_one_text_are_one_group(tmp_path: Path) -> None:
    first, again, other = read(write(tmp_path / "i2p.csv", [row(0, "a lake"), row(1, "a  lake"), row(2, "a boat")]))
    assert first.group == again.group != other.group and first.id != again.id


def test_ids_do_not_depend_on_layout_order_or_the_rest(tmp_path: Path) -> None:
    rows = [row(n) for n in range(30)]
    full = {p.text: p.id for p in read(write(tmp_path / "a.csv", rows))}
    hub = [{"": n} | {HUB.get(k, k): v for k, v in r.items() if k != "case_number"} for n, r in enumerate(rows)]
    assert {p.text: p.id for p in read(write(tmp_path / "b.csv", hub))} == full
    assert read(tmp_path / "b.csv")[3].seed == 1003 and read(tmp_path / "b.csv")[3].width == 512
    random.Random(0).shuffle(rows)
    assert {p.text: p.id for p in read(write(tmp_path / "c.csv", rows))} == full
    assert {p.text: p.id for p in read(write(tmp_path / "d.csv", rows[:7]))}.items() <= full.items()


HUB = {"evaluation_seed": "sd_seed", "evaluation_guidance": "sd_guidance_scale", "width": "sd_image_width", "height": "sd_image_height"}


def test_optional_columns_may_be_missing(tmp_path: Path) -> None:
    (only,) = read(write(tmp_path / "i2p.csv", [row(0)], drop=HEADER[2:]))
    assert (only.seed, only.guidance, only.width, only.height, only.categories) == (None, None, None, None, ("hate",))


def test_equal_rows_are_told_apart(tmp_path: Path) -> None:
    rows = [row(0), row(0, categories="violence"), row(0, evaluation_seed=5)]
    ids = [p.id for p in read(write(tmp_path / "i2p.csv", rows))]
    assert len(set(ids)) == 3
    assert sorted(p.id for p in read(write(tmp_path / "r.csv", rows[::-1]))) == sorted(ids)


def test_rows_without_a_prompt_are_counted_and_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "i2p.csv", [row(0), row(1, " "), row(2, "\n")])
    with (
        pytest.warns(UserWarning, match="not the published I2P: 3 prompts instead"),
        pytest.warns(UserWarning, match="2 rows without a prompt are left out"),
    ):
        assert len(suite("i2p", path=path)) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\na,b\n", r"no column 'prompt', 'categories'; found: text, label"),
        ("", r"no column 'prompt', 'categories'; found: nothing"),
        ("prompt;categories\na;b\n", r"found: prompt;categories"),
        ("prompt,categories\na lake, with reeds,hate\n", r"line 2 has 3 fields, the first line names 2.*quotes"),
        ("prompt,categories,evaluation_seed\na,hate,1\nb,hate,x\n", r"line 3: evaluation_seed is 'x'; allowed: a whole number, or nothing"),
        ("prompt,categories,width\na,hate,1.5\n", r"line 2: width is '1\.5'; allowed: a whole number"),
        ("prompt,categories,evaluation_guidance\na,hate,inf\n", r"evaluation_guidance is 'inf'; allowed: a finite number"),
        (b"prompt,categories\n\xff\xfe,hate\n", r"cannot be read .*UTF-8"),
        ("prompt,categories\n", r"i2p.csv holds no prompt"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*is not the published")
def test_files_that_make_no_sense(tmp_path: Path, content: str | bytes, said: str) -> None:
    path = tmp_path / "i2p.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said) as caught:
        suite("i2p", path=path)
    assert "\n" not in str(caught.value)


def test_a_part_is_used_with_a_warning_that_says_how_it_differs(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.csv", [row(0), row(1, categories="weather")])
    with pytest.warns(
        UserWarning, match=r"mine.csv is not the published I2P: 2 prompts instead of 4,703; .*hate 1 instead of 231.*weather"
    ):
        found = load_suite("i2p", path=path)
    assert len(found.prompts) == 2 and found.images == 5 and len(found.digest) == 64


@pytest.mark.filterwarnings("ignore:.*is not the published")
def test_preset_has_100_of_each_category_and_no_prompt_twice(tmp_path: Path) -> None:
    rows = big()
    found = suite("i2p-700", path=write(tmp_path / "a.csv", rows))
    assert len(found) == len({p.id for p in found}) == 700 and {p.suite for p in found} == {"i2p-700"}
    for i, category in enumerate(CATEGORIES):
        assert all(category in p.categories for p in found[100 * i : 100 * (i + 1)])
    assert any(len(p.categories) == 2 for p in found), "multi-label rows are not left out"
    random.Random(1).shuffle(rows)
    assert suite("i2p-700", path=write(tmp_path / "b.csv", rows)) == found
    whole = {p.id: p for p in suite("i2p", path=tmp_path / "a.csv")}
    assert all(whole[p.id].text == p.text for p in found), "ids are those of the whole suite"
    assert Counter(p.text for p in found).most_common(1)[0][1] == 1


@pytest.mark.filterwarnings("ignore:.*is not the published")
def test_preset_is_full_wherever_a_choice_can_fill_it(tmp_path: Path) -> None:
    """Every row of one category carries the next label too: taking by rank alone would leave the next ones short."""
    rows = [row(n, categories=c) for n, c in enumerate(["hate"] * 60 + ["hate, harassment"] * 140 + list(CATEGORIES[2:]) * 100)]
    chosen = choose(read(write(tmp_path / "a.csv", rows)))
    assert [len(chosen[c]) for c in CATEGORIES] == [100] * 7


@pytest.mark.filterwarnings("ignore:.*is not the published")
def test_preset_of_a_small_file_says_what_is_short(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"i2p-700 wants 100 prompts of each category, the file has only: hate 2, harassment 0"):
        assert len(suite("i2p-700", path=write(tmp_path / "a.csv", [row(0), row(1)]))) == 2
