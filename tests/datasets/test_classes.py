"""A data set's classes as a model's: by name, WordNet identifier, number or map."""

import json
import time
from pathlib import Path

import pytest

from cvt_cli.base.errors import DataError
from cvt_cli.datasets.classes import match_classes
from cvt_cli.datasets.layouts import open_dataset
from cvt_cli.spec.labels import Labels, imagenet
from small_sets import (
    eleven_classes,
)
from tests_shared import test_data

WNIDS = imagenet().wnids or ()


def test_classes_are_matched_by_name_and_never_by_order() -> None:
    numbers = Labels(("0", "1", "10", "2"))

    assert match_classes(("0", "1", "2", "10"), numbers)[0].tolist() == [0, 1, 3, 2]


def test_imagenet_classes_are_matched_by_wnid_or_number() -> None:
    by_wnid, how = match_classes(("n01443537", "n02123045"), imagenet())
    assert (by_wnid.tolist(), how) == ([1, 281], "WordNet identifiers")
    by_number, how = match_classes(("10", "2"), imagenet())
    assert (by_number.tolist(), how) == ([10, 2], "class numbers")


def test_twenty_thousand_classes_are_matched_at_once(tmp_path: Path) -> None:
    names = tuple(f"class {number}" for number in range(21_841))
    (tmp_path / "map.json").write_text(json.dumps(dict(zip(names, names[::-1], strict=True))))
    started = time.process_time()

    index, _ = match_classes(names[::-1], Labels(names))
    mapped, _ = match_classes(names, Labels(names), tmp_path / "map.json")

    assert time.process_time() - started < 1  # it took 13 s
    assert index.tolist() == mapped.tolist() == list(range(21_841))[::-1]


def test_unknown_classes_are_refused_and_named() -> None:
    with pytest.raises(
        DataError, match="1 of 2 classes of the data are not classes of the model, which has 2"
    ):
        match_classes(("a", "c"), Labels(("a", "b")))
    with pytest.raises(DataError, match="is the name of several classes"):
        match_classes(("crane",), Labels(("crane", "crane")))


def test_a_models_own_class_names_win_over_numbers_and_order(tmp_path: Path) -> None:
    folders = open_dataset(str(eleven_classes(tmp_path)), "test", tmp_path)
    own = Labels(tuple(folders.classes))  # as `cvt finetune` keeps them: 0, 1, 10, 2, …
    other = Labels(tuple(str(number) for number in range(11)))

    index, how = match_classes(folders.classes, own)
    by_name, _ = match_classes(folders.classes, other)

    assert how == "the model's class names"
    assert [own.names[i] for i in index] == list(folders.classes)
    assert index.tolist() == list(range(11))  # not the folders' numbers
    assert by_name.tolist() == [0, 1, 10, *range(2, 10)]  # not their positions


def test_numbers_and_wnids_mean_nothing_to_a_model_of_other_classes() -> None:
    for classes in (("0", "1"), ("n01440764", "n01443537")):
        with pytest.raises(DataError, match="2 of 2 classes") as caught:
            match_classes(classes, Labels(("cat", "dog")))
        assert "--label-map FILE" in str(caught.value.hint)


def test_numbered_folders_are_numbers_for_imagenet_however_they_sort() -> None:
    index, how = match_classes(("0", "1", "10", "100", "2"), imagenet())

    assert (index.tolist(), how) == ([0, 1, 10, 100, 2], "class numbers")


@pytest.mark.parametrize(
    "name", ["imagenette_wnids", "imagewoof_wnids", "imagenet_a_synsets", "imagenet_r_synsets"]
)
def test_a_subset_of_imagenet_is_matched_by_wnid_and_not_by_position(name: str) -> None:
    lines = test_data(f"labels/{name}.txt").read_text().splitlines()
    wnids = tuple(sorted(line.split()[0] for line in lines))

    index, how = match_classes(wnids, imagenet())

    assert how == "WordNet identifiers"
    assert tuple(WNIDS[i] for i in index) == wnids


def test_a_label_map_takes_names_wnids_and_indices_and_entries_for_other_data(
    tmp_path: Path,
) -> None:
    path = tmp_path / "map.json"
    table = {"fish": "tench", "bird": 15, "cat": "n02123045", "0": 999, "not here": "no class"}
    path.write_text(json.dumps(table))

    index, how = match_classes(("0", "bird", "cat", "fish"), imagenet(), path)

    assert index.tolist() == [999, 15, 281, 0]
    assert how == f"the label map `{path}`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "x"}', "lacks classes of the data: b$"),
        ('{"a": "x", "b": "z"}', '"z" of `b` in .* is not a class of the model; accepted'),
        ('{"a": "x", "b": 4}', "4 of `b` in .* is not a class of the model"),
        ('{"a": "x", "b": true}', "true of `b` in .* is not a class of the model"),
        ('{"a": "x", "b": "n01440764"}', '"n01440764" of `b`'),
        ('{"a": "x", "b": "twin"}', "`twin` of `b` in .* is the name of several classes"),
        ('["x", "y"]', "is not a JSON object"),
        ("{", "is not JSON"),
        (None, "cannot read the label map .*: No such file"),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused(tmp_path: Path, text, message: str) -> None:
    path = tmp_path / "map.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(DataError, match=message):
        match_classes(("a", "b"), Labels(("x", "y", "twin", "twin")), path)
