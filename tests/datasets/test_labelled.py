"""Labelled images, split by a seed."""

from pathlib import Path

import numpy as np

from cvt_cli.base import machine
from cvt_cli.datasets.layouts import open_dataset
from small_sets import (
    class_folders,
)


def test_the_split_is_stratified_and_drawn_by_the_seed(tmp_path: Path) -> None:
    data = open_dataset(str(class_folders(tmp_path, {"a": 40, "b": 10})), "train", tmp_path)

    rest, aside = data.split(0.1, seed=0)

    assert np.bincount(aside.labels).tolist() == [4, 1]
    assert sorted(rest.names + aside.names) == sorted(data.names)
    assert data.split(0.1, seed=0)[1].names == aside.names
    assert data.split(0.1, seed=1)[1].names != aside.names


def test_images_behind_addresses_are_fetched_by_more_threads_than_there_are_processors(
    tmp_path: Path,
) -> None:
    table = tmp_path / "t.csv"
    rows = [f"http://127.0.0.1:9/{number}.png,{number % 2}" for number in range(30)]
    table.write_text("\n".join(["path,label", *rows]))
    here = open_dataset(str(class_folders(tmp_path / "d", {"a": 2, "b": 2})), "train", tmp_path)

    afar = open_dataset(str(table), "train", tmp_path)

    assert here.readers == machine.threads()
    assert afar.readers >= 16
