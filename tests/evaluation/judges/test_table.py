"""Labels made elsewhere, read from a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from respodiff.concepts.concept import Attribute, Concept
from respodiff.data.records import ImageRecord
from respodiff.evaluation import judges
from respodiff.evaluation.judges import JudgeInput, LabellingTask, TableJudge

RECORDS = [ImageRecord(id=f"p-{i:04d}", file=f"images/p-{i:04d}.png", prompt="a", prompt_id="p") for i in range(4)]
BY_ID = "id,gender,tone,subject,unsafe\np-0002,man,,cook,no\np-0000, woman ,dark,,Yes\n"


def table(path: Path, text: str) -> TableJudge:
    path.write_text(text, encoding="utf-8")
    found = judges.load_judge(f"table:{path}")
    assert isinstance(found, TableJudge)
    return found


def column(judge: TableJudge, name: str) -> list[object]:
    """One column of the answers, None where unknown."""
    return [(judge.answer(record) or {}).get(name) for record in RECORDS]


def test_rows_are_joined_by_id_and_missing_ones_are_unknown(tmp_path: Path) -> None:
    judge = table(tmp_path / "t.csv", BY_ID)
    assert [judge.answer(record) for record in RECORDS] == [
        {"gender": "woman", "tone": "dark", "unsafe": "Yes"},
        None,
        {"gender": "man", "subject": "cook", "unsafe": "no"},
        None,
    ]
    assert column(judge, "tone") == ["dark", None, None, None]
    assert judge.key == "id" and judge.columns == ("gender", "tone", "subject", "unsafe")
    scores = judge.score([JudgeInput(record) for record in RECORDS], LabellingTask(()))
    assert [score.unsafe for score in scores] == [True, None, False, None]
    assert [score.problem for score in scores] == [None, "unlisted", None, "unlisted"]


def test_rows_are_joined_by_file(tmp_path: Path) -> None:
    judge = table(
        tmp_path / "t.csv", "file,gender\nimages/p-0000.png,woman\n/far/away/p-0001.png,man\na/p-0002.png,man\nb/p-0002.png,woman\n"
    )
    assert column(judge, "gender") == ["woman", "man", None, None]  # p-0002 could be either
    windows = table(tmp_path / "w.csv", "file,gender\nimages\\p-0003.png,man\n")
    assert column(windows, "gender")[3] == "man"


def test_identity(tmp_path: Path) -> None:
    one, two = table(tmp_path / "a.csv", BY_ID), table(tmp_path / "b.csv", BY_ID.replace("cook", "judge"))
    assert one.name == f"table:{tmp_path / 'a.csv'}" and one.version == "table of 2 rows"
    assert one.digest != two.digest and len(one.digest) == 16
    assert isinstance(one, judges.Judge) and one.kind == "table"  # it is asked for records, not for images


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfid,gender\r\np-0000,woman\r\n")
    assert column(TableJudge.load(f"table:{tmp_path / 't.csv'}"), "gender")[0] == "woman"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "allowed: a column id or file"),
        ("id,gender\n", "a table of no rows; allowed: a column id or file"),
        ("name,gender\na,woman\n", "a table with name, gender; allowed: a column id or file"),
        ("id\na\n", "a table with id; allowed: a column id or file, then labels"),
        ("id,gender\na,woman\na,man\n", "row 3 is a second row of id 'a'"),
        ("id,gender\n,woman\n", "row 2 has an empty id"),
        ("id,gender,gender\na,woman,man\n", "column 'gender' twice"),
        ("id,gender\na,b,c\n", "line 2 has 3 fields, the first line names 2"),
        ("id,unsafe\na,maybe\n", "unsafe is 'maybe'; allowed: yes, true, 1, no, false, 0"),
        ('id,gender\na,"woman\n', "cannot be read"),
    ],
)
def test_tables_that_cannot_be(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        table(tmp_path / "t.csv", text)
    assert "\n" not in str(caught.value)


def test_a_table_without_any_label_that_is_asked_for_is_refused(tmp_path: Path) -> None:
    judge, images = table(tmp_path / "t.csv", "id,gendre\np-0000,woman\n"), [JudgeInput(record) for record in RECORDS]
    gender = Attribute("gender", (Concept("woman", "a woman"), Concept("man", "a man")))
    with pytest.raises(ValueError, match=r"t\.csv: a table with gendre; allowed: a column of gender, subject, unsafe"):
        judge.score(images, LabellingTask((gender,)))
    assert table(tmp_path / "t.csv", "id,subject\np-0000,cook\n").score(images, LabellingTask((gender,)))[0].subject == "cook"


def test_not_utf8_and_no_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"id,gender\na,\xff\xfe\n")
    with pytest.raises(ValueError, match="give a text file in UTF-8"):
        judges.load_judge(f"table:{tmp_path / 't.csv'}")
    with pytest.raises(FileNotFoundError, match=r"is no file; allowed: table:FILE\.csv"):
        judges.load_judge("table:/no/such.csv")
