"""Conditions are written beside what is kept, and what differs is said."""

from pathlib import Path

import pytest

from cvt_cli.base import conditions
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CvtError, UsageError


def test_conditions_come_back_from_beside_the_file_as_they_were_written(tmp_path: Path) -> None:
    written = Conditions({"weights": "ab12", "size": (224, 224), "top_k": 5})

    written.write(tmp_path / "a.jsonl")

    assert written.differences(conditions.read(tmp_path / "a.jsonl")) == []


def test_every_difference_is_named_with_both_values() -> None:
    wanted = Conditions({"weights": "ab12", "precision": "bf16", "exif": True, "top_k": 5})

    with pytest.raises(UsageError) as refused:
        wanted.refuse_other(
            Path("a.jsonl"),
            {"weights": "cd34", "precision": "bf16", "exif": True, "threshold": 0.5},
            "give another file",
        )

    assert str(refused.value) == (
        '`a.jsonl` was made with weights "cd34", this run has "ab12"; top_k (none), '
        "this run has 5; threshold 0.5, this run has (none)"
    )


def test_the_key_depends_on_the_values_and_not_on_their_order() -> None:
    one = Conditions({"a": 1, "b": [2]})

    assert one.key == Conditions({"b": (2,), "a": 1}).key
    assert one.key != Conditions({"a": 1, "b": [3]}).key


@pytest.mark.parametrize("content", [None, b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_conditions_that_cannot_be_read_are_explained(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        conditions.beside(tmp_path / "a.jsonl").write_bytes(content)

    with pytest.raises(CvtError, match=r"a\.jsonl\.conditions\.json`, which says how .* was made"):
        conditions.read(tmp_path / "a.jsonl")
