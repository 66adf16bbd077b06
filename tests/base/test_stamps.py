"""What was made is checked before use, at the cost of a `stat`."""

import json
import os
from pathlib import Path

import pytest

from cvt_cli.base import stamps

WITH = {"precision": "fp32", "versions": {"torch": "2"}, "size": (2, 3)}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "made.bin"
    with stamps.making(path, WITH) as temporary:
        temporary.write_bytes(b"right")
    return path


def test_a_made_file_is_right_under_its_conditions_alone(made: Path) -> None:
    assert stamps.is_right(made) and stamps.is_right(made, WITH)
    assert stamps.verify(made) is True

    assert not stamps.is_right(made, {**WITH, "precision": "bf16"})
    assert list(stamps.stamped_below(made.parent)) == [made]


def test_a_changed_file_is_noticed_and_a_copied_one_is_not_refused(made: Path) -> None:
    os.utime(made, ns=(1, 1))
    assert stamps.is_right(made)
    assert json.loads(stamps.beside(made).read_text())["mtime_ns"] == 1

    made.write_bytes(b"wrong")

    assert not stamps.is_right(made)
    assert stamps.verify(made) is False and not stamps.beside(made).exists()


def test_what_a_stat_does_not_tell_reading_all_of_it_does(made: Path) -> None:
    before = made.stat()
    made.write_bytes(b"wrong")
    os.utime(made, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert stamps.is_right(made)

    assert stamps.verify(made) is False

    assert not stamps.is_right(made)


@pytest.mark.parametrize("content", ["", "[1]", "{}", "null", "[" * 100_000, "no conditions"])
def test_a_file_without_a_readable_stamp_is_not_right(made: Path, content: str) -> None:
    if content == "no conditions":
        content = json.dumps({**json.loads(stamps.beside(made).read_text()), "conditions": None})
    stamps.beside(made).write_text(content)

    assert not stamps.is_right(made) and not stamps.is_right(made, WITH)
    assert stamps.verify(made) is None


def test_a_file_that_was_not_finished_has_no_stamp(made: Path) -> None:
    with pytest.raises(KeyboardInterrupt), stamps.making(made, WITH) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt

    assert made.read_bytes() == b"right" and not stamps.is_right(made)


def test_a_users_file_is_hashed_again_when_only_its_content_changed(tmp_path: Path) -> None:
    path = tmp_path / "theirs"
    path.write_bytes(b"one")
    long_ago = 10**18
    os.utime(path, ns=(long_ago, long_ago))
    first = stamps.hash_of(path)

    path.write_bytes(b"two")
    os.utime(path, ns=(long_ago, long_ago))

    assert stamps.hash_of(path) != first
