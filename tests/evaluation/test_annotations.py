"""Which image a label or a group is of: told by names, never by order."""

from pathlib import Path

import pytest

from cvt_cli.base.errors import DataError
from cvt_cli.evaluation.annotations import groups_of, read_groups, read_groups_file, real_labels


def test_real_refuses_images_that_have_lost_their_names() -> None:
    with pytest.raises(DataError, match="`n01440764/1.JPEG` does not say which"):
        real_labels(["n01440764/1.JPEG"], [[0]], "real.json")


def test_every_image_needs_a_group() -> None:
    table = read_groups(iter([{"path": "a.png", "group": "x"}]), "g.csv")

    with pytest.raises(
        DataError, match="1 of 2 images without a group in `g.csv`, such as `b.png`"
    ):
        groups_of(table, ["a.png", "b.png"], "g.csv")
    with pytest.raises(DataError, match="needs the columns `path` and `group`"):
        read_groups(iter([{"file": "a.png"}]), "g.csv")


def test_of_two_columns_called_group_none_is_chosen(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("path,group,group\na.png,x,y\n")

    with pytest.raises(DataError, match="has two columns that are called `group`"):
        read_groups_file(tmp_path / "g.csv")
