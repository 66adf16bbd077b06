"""ImageNet's validation images and Tiny ImageNet's, by the tables that tell their classes."""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from cvt_cli.base.errors import DataError, ImageError
from cvt_cli.base.package import installing
from cvt_cli.datasets.classes import match_classes
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.datasets.layouts import open_dataset
from cvt_cli.spec.labels import Labels, imagenet
from small_sets import (
    eleven_classes,
    flat_validation,
    greys,
    picture,
    same,
    tarred,
    tiny_imagenet,
)
from tests_shared import test_data

WNIDS = imagenet().wnids or ()
MODEL = ("--model", "cvt-nano-cifar10", "--engine", "torch")

# Of the devkit: its own number, WNID and how many children; the order is not that of the WNIDs, and
# the numbers go on above the leaves.
SYNSETS = [
    (1, "n02119789", 0),  # kit fox, 278 of the sorted WNIDs
    (2, "n02100735", 0),  # English setter, 212
    (3, "n01440764", 0),  # tench, 0
    (1001, "n01443537", 2),
]
DEVKIT_LABELS = [3, 1, 2]
"""Of ILSVRC2012_val_00000001 and so on: tench, kit fox, English setter."""


def indices(data: LabelledImages) -> list[int]:
    """Which of ImageNet's classes each image has."""
    return [WNIDS.index(data.classes[label]) for label in data.labels]


def meta_mat(path: Path) -> None:
    """The devkit's table, with the fields that torchvision's parse_devkit reads."""
    savemat = pytest.importorskip("scipy.io").savemat
    columns = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images"
    rows = [
        (number, wnid, "words", "gloss", children, np.array([7.0]), 0, 1300)
        for number, wnid, children in SYNSETS
    ]
    table = np.array(rows, dtype=[(name, object) for name in columns.split()])
    savemat(path, {"synsets": table[:, None]})


def devkit(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{number}\n" for number in DEVKIT_LABELS)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    meta_mat(folder / "meta.mat")
    return folder


def test_names_with_indices_count_the_sorted_wnids_from_0(tmp_path: Path) -> None:
    flat_validation(tmp_path)
    lines = ["00000002.JPEG 0", "00000001.JPEG 278", "00000003.JPEG 999"]
    (tmp_path / "val.txt").write_text("\n".join(f"ILSVRC2012_val_{line}" for line in lines))

    data = open_dataset(str(tmp_path), "test", tmp_path)

    assert data.layout == "val.txt"
    assert indices(data) == [0, 278, 999] and data.classes == (WNIDS[0], WNIDS[278], WNIDS[999])
    assert greys(data) == [2, 1, 3]
    assert data.names[0] == "ILSVRC2012_val_00000002.JPEG"


def test_val_txt_may_lie_beside_the_folder_and_name_it(tmp_path: Path) -> None:
    flat_validation(tmp_path / "val")
    lines = [f"val/ILSVRC2012_val_{number:08}.JPEG {number}\n" for number in (1, 2, 3)]
    (tmp_path / "val.txt").write_text("".join(lines))

    data = open_dataset(str(tmp_path), "test", tmp_path)

    assert indices(data) == greys(data) == [1, 2, 3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    flat_validation(tmp_path / "flat" / "val")
    lines = [f"ILSVRC2012_val_{number:08}.JPEG {number}\r\n" for number in (1, 2, 3)]
    (tmp_path / "flat" / "val.txt").write_bytes("".join(lines).encode(encoding))
    table = tiny_imagenet(tmp_path / "tiny") / "val" / "val_annotations.txt"
    table.write_bytes(table.read_text().encode(encoding))
    names = tmp_path / "map.json"
    names.write_bytes(json.dumps({"a": "y", "b": "x"}).encode(encoding))

    flat = open_dataset(str(tmp_path / "flat"), "test", tmp_path)
    tiny = open_dataset(str(tmp_path / "tiny"), "test", tmp_path)

    assert (indices(flat), greys(flat)) == ([1, 2, 3], [1, 2, 3])
    assert (tiny.labels.tolist(), greys(tiny)) == ([2, 0, 1, 0], [0, 1, 2, 3])
    assert match_classes(("a", "b"), Labels(("x", "y")), names)[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    "place", ["", "val", "ILSVRC2012_devkit_t12/data", "val/ILSVRC2012_devkit_t12/data"]
)
def test_the_devkits_numbers_are_translated_by_its_own_table(tmp_path: Path, place: str) -> None:
    flat_validation(tmp_path / "val")
    devkit(tmp_path / place)

    data = open_dataset(str(tmp_path / "val"), "test", tmp_path)

    assert data.layout == "the devkit's ground truth"
    assert [WNIDS[index] for index in indices(data)] == ["n01440764", "n02119789", "n02100735"]
    assert indices(data) == [0, 278, 212]
    assert greys(data) == [1, 2, 3]


@pytest.mark.parametrize("name", ["ILSVRC2012_validation_ground_truth.txt", "val.txt"])
def test_bare_numbers_without_the_devkits_table_are_refused(tmp_path: Path, name: str) -> None:
    flat_validation(tmp_path)
    (tmp_path / name).write_text("490\n361\n171\n")

    with pytest.raises(DataError, match="devkit's own order; only the devkit's `meta.mat`"):
        open_dataset(str(tmp_path), "test", tmp_path)


def test_the_devkit_without_scipy_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    flat_validation(tmp_path)
    devkit(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)

    with pytest.raises(DataError, match="needs SciPy") as caught:
        open_dataset(str(tmp_path), "test", tmp_path)

    assert caught.value.hint == installing("devkit")


def test_a_number_above_the_leaves_is_refused(tmp_path: Path) -> None:
    flat_validation(tmp_path)
    devkit(tmp_path)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n1001\n2\n")

    with pytest.raises(DataError, match="line 2 of .* is `1001`, which in .* is none of"):
        open_dataset(str(tmp_path), "test", tmp_path)


def test_a_named_image_that_is_missing_stays_an_item_and_cannot_be_read(tmp_path: Path) -> None:
    flat_validation(tmp_path)
    devkit(tmp_path)
    (tmp_path / "ILSVRC2012_val_00000002.JPEG").unlink()

    data = open_dataset(str(tmp_path), "test", tmp_path)

    assert indices(data) == [0, 278, 212]
    with pytest.raises(ImageError, match="no such file"):
        data.load(1, exif=False)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("1.png 0\n2.png 1\n", "1 image in .* without a label in .*val.txt`, first `3.png`"),
        ("1.png 0\n2.png 1\n3.png 1000\n", "line 3 of .* is `3.png 1000`; expected are lines"),
        ("1.png 0\n2.png\n3.png 4\n", "line 2 of .* is `2.png`; expected are lines"),
        ("1.png 0\n2.png 1\n3.png 2\n1.png 3\n", "lists `1.png` more than once"),
    ],
    ids=["unlabelled", "from 1", "no index", "twice"],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, table: str, message: str) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "val.txt").write_text(table)

    with pytest.raises(DataError, match=message):
        open_dataset(str(tmp_path), "test", tmp_path)


def test_images_with_nothing_that_tells_their_classes_are_refused(tmp_path: Path) -> None:
    flat_validation(tmp_path)

    with pytest.raises(DataError, match="3 images directly in .* nothing says of which class"):
        open_dataset(str(tmp_path), "test", tmp_path)


def test_class_folders_stay_so_with_a_table_around_them(tmp_path: Path) -> None:
    eleven_classes(tmp_path)
    for place in (tmp_path, tmp_path / "val"):
        (place / "val.txt").write_text("0/1.png 5\n")

    data = open_dataset(str(tmp_path), "test", tmp_path)

    assert (len(data), data.layout) == (33, "class folders")


def test_imagenet_is_read_from_its_tars_as_they_are_published(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    root.mkdir()
    tarred(flat_validation(tmp_path / "flat"), root / "ILSVRC2012_img_val.tar")
    devkit(tmp_path / "kit" / "data")
    archive = root / "ILSVRC2012_devkit_t12.tar.gz"
    tarred(tmp_path / "kit", archive, "ILSVRC2012_devkit_t12", "w:gz")
    before = sorted(root.iterdir())

    whole = open_dataset(str(root), "test", tmp_path)
    named = open_dataset(str(root / "ILSVRC2012_img_val.tar"), "test", tmp_path)

    assert whole.layout == "the devkit's ground truth in a tar archive"
    assert indices(whole) == [0, 278, 212]
    assert greys(whole) == [1, 2, 3]
    assert whole.names[0] == "ILSVRC2012_val_00000001.JPEG"
    assert same(whole, named)
    assert sorted(root.iterdir()) == before


def test_imagenet_as_torchvision_unpacks_it_is_class_folders(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    root.mkdir()
    (root / "meta.bin").write_bytes(b"")
    shutil.copytree(test_data("photos/val"), root / "val")

    data = open_dataset(str(root), "test", tmp_path)

    assert len(data) == len(data.classes) == 122
    index, how = match_classes(data.classes, imagenet())
    assert how == "WordNet identifiers"
    assert [WNIDS[i] for i in index[data.labels]] == [n.partition("/")[0] for n in data.names]


def test_tiny_imagenets_annotations_tell_the_classes(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)

    val = open_dataset(str(tmp_path), "test", tmp_path)
    train = open_dataset(str(tmp_path), "train", tmp_path)

    assert val.classes == train.classes == tuple(sorted(val.classes))
    assert val.labels.tolist() == [2, 0, 1, 0]
    assert greys(val) == [0, 1, 2, 3]
    assert val.layout == "Tiny ImageNet's annotations"


def test_a_picture_that_tiny_imagenets_annotations_lack_is_named(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    (root / "val" / "images" / "val_77.JPEG").write_bytes(picture(77))

    with pytest.raises(DataError, match="first `images/val_77.JPEG`"):
        open_dataset(str(root), "test", tmp_path)


def test_a_devkit_that_unpacks_without_end_is_not_unpacked(cvt, tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_val_00000001.JPEG").write_bytes(picture(1))
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("data/ILSVRC2012_validation_ground_truth.txt")
        member.size = 17 * 1024**2
        archive.addfile(member, io.BytesIO(b"\n" * member.size))

    result = cvt("evaluate", "--data", tmp_path, *MODEL)

    assert result.exit_code == 1 and "is too large: more than 16,777,216 bytes" in result.stderr
