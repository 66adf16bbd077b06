"""Layouts of data sets in folders and in archives."""

import gzip
import io
import pickle
import tarfile
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cvt_cli.base import limits
from cvt_cli.base.errors import DataError, ImageError
from cvt_cli.base.progress import Say
from cvt_cli.datasets import layouts
from cvt_cli.datasets.classes import match_classes
from cvt_cli.datasets.labelled import LabelledImages, Split, made
from cvt_cli.datasets.layouts import open_dataset
from cvt_cli.images.trees import Tree
from cvt_cli.spec.labels import Labels
from small_sets import (
    class_folders,
    eleven_classes,
    flat_validation,
    greys,
    picture,
    same,
    tarred,
    tiny_imagenet,
    zipped,
    zipped_by_a_mac,
)
from tests_shared import test_data

MODEL = ("--model", "cvt-nano-cifar10", "--engine", "torch")


@pytest.mark.parametrize("top", [".", "some/set"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_of_class_folders_equals_the_folder(tmp_path: Path, kind: str, top: str) -> None:
    root = eleven_classes(tmp_path / "set")
    archive = (zipped if kind == "zip" else tarred)(root, tmp_path / f"a.{kind}", top)

    for split in ("train", "test"):
        folder = open_dataset(str(root), split, tmp_path)
        data = open_dataset(str(archive), split, tmp_path)
        assert same(data, folder)
        assert (folder.layout, data.layout) == (
            "class folders",
            f"class folders in a {kind} archive",
        )

    assert folder.classes[:3] == ("0", "1", "10")
    assert folder.names[:3] == ("0/1.png", "0/2.png", "0/10.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([archive.name, "set"])


def test_a_zip_that_a_mac_made_has_the_classes_of_the_folder(cvt, tmp_path: Path) -> None:
    names = ("Épagneul", "Ko\u0308ter", "猫")  # the second in two characters, as macOS writes it
    root = class_folders(tmp_path / "set", dict.fromkeys(names, 2))
    archive = zipped_by_a_mac(root, tmp_path / "a.zip")

    data = open_dataset(str(archive), "train", tmp_path)
    refused = cvt("evaluate", "--data", archive, *MODEL)

    assert sorted(data.classes) == sorted(names)
    assert same(data, open_dataset(str(root), "train", tmp_path))
    assert "which has 10: Ko\u0308ter, Épagneul, 猫" in refused.stderr


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("layout", ["val.txt", "Tiny ImageNet's annotations"])
def test_other_layouts_are_read_from_archives_too(tmp_path: Path, kind: str, layout: str) -> None:
    root = tmp_path / "set"
    if layout == "val.txt":
        flat_validation(root)
        lines = [f"ILSVRC2012_val_{number:08}.JPEG {number}\n" for number in (1, 2, 3)]
        (root / "val.txt").write_text("".join(lines))
    else:
        tiny_imagenet(root)
    archive = (zipped if kind == "zip" else tarred)(root, tmp_path / f"a.{kind}", "top")

    data = open_dataset(str(archive), "test", tmp_path)

    assert data.layout == f"{layout} in a {kind} archive"
    assert same(data, open_dataset(str(root), "test", tmp_path))


def test_the_sample_of_tiny_imagenet_is_read_from_its_archive(tmp_path: Path) -> None:
    packed = test_data("sets/tinyimagenet20.tar.gz")
    plain = tmp_path / "tinyimagenet20.tar"
    with tarfile.open(packed) as source, tarfile.open(plain, "w") as target:
        for member in source:
            if "/val/" in member.name or member.isdir():
                target.addfile(member, source.extractfile(member) if member.isreg() else None)

    data = open_dataset(str(plain), "test", tmp_path)

    assert (len(data), len(data.classes)) == (1000, 20)
    assert data.root == plain / "tinyimagenet20" / "val"
    assert data.load(999, exif=False).size == (64, 64)
    with pytest.raises(DataError, match="cannot be read in place: it is compressed") as caught:
        open_dataset(str(packed), "test", tmp_path)
    assert f"gunzip -k {packed}" in str(caught.value.hint)
    assert f"tar -xf {packed}" in str(caught.value.hint)


def test_a_table_by_another_suffix_is_told_of_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("path\tlabel\n")

    with pytest.raises(DataError, match="is not a folder, a .zip or a .tar") as caught:
        open_dataset(str(tmp_path / "t.txt"), "train", tmp_path)

    assert "a table of images ends in .csv, .tsv, .jsonl, .parquet: call it so" in str(
        caught.value.hint
    )


def test_a_table_that_is_compressed_is_named_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv.gz"
    with gzip.open(path, "wt") as file:
        file.write("path,label\n")

    with pytest.raises(DataError, match="is a table that is compressed") as caught:
        open_dataset(str(path), "test", tmp_path)
    assert f"`gunzip -k {path}`, and name what this makes" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_many_threads_and_another_process_read_the_right_members(tmp_path: Path, kind) -> None:
    root = eleven_classes(tmp_path / "set")
    archive = (zipped if kind == "zip" else tarred)(root, tmp_path / f"a.{kind}")
    data = open_dataset(str(archive), "test", tmp_path)
    expected = [20 * int(data.classes[i]) + n for i in range(11) for n in (1, 2, 10)]

    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda i: data.load(i, False).getpixel((0, 0))[0], [*range(33)] * 20)

    assert list(read) == expected * 20
    sent = pickle.loads(pickle.dumps(data))  # as to a worker process
    assert greys(sent.subset(np.array([32, 0]))) == [expected[32], expected[0]]


def test_an_archive_gives_nothing_but_its_regular_files(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "secret.png").write_bytes(picture(99))
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:

        def add(name: str, content: bytes = b"", **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))

        add("../../a/1.png", picture(1))
        add("/a/2.png", b"")
        add("a/3.png", type=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.png"))
        add("a/4.png", type=tarfile.FIFOTYPE)
        add("a/5.png", picture(5) + bytes(2000))
        add("a/.hidden.png", picture(6))
        add("__MACOSX/a/1.png", picture(7))
    monkeypatch.setattr(limits, "LARGEST_FILE", 1000)

    data = open_dataset(str(archive), "test", tmp_path)

    assert data.names == ("a/1.png", "a/2.png", "a/3.png", "a/4.png", "a/5.png")
    assert data.load(0, exif=False).getpixel((0, 0)) == (1, 1, 1)
    for index, reason in [(1, "empty"), (2, "a link"), (3, "or device"), (4, "too large")]:
        with pytest.raises(ImageError, match=reason):
            data.load(index, exif=False)


def test_a_damaged_archive_is_refused_and_a_damaged_member_is_an_image_error(tmp_path) -> None:
    root = eleven_classes(tmp_path / "set") / "val"
    whole = zipped(root, tmp_path / "whole.zip").read_bytes()
    tar = tarred(root, tmp_path / "whole.tar").read_bytes()
    # The checksum of a member in the middle, where tarfile ends its listing and says nothing.
    header = tar.index(b"./1/1.png") + 148
    damaged = {
        "cut.zip": whole[: len(whole) // 2],
        "empty.zip": b"",
        "cut.tar": tar[: len(tar) // 2 + 100],
        "middle.tar": tar[:header] + b"xxxxxx" + tar[header + 6 :],
        "text.tar": b"no archive at all\n" * 100,
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}` is damaged"):
            open_dataset(str(tmp_path / name), "test", tmp_path)

    start = whole.index(b"10/10.png") + 20  # in the first member's bytes
    (tmp_path / "member.zip").write_bytes(whole[:start] + bytes(30) + whole[start + 30 :])
    data = open_dataset(str(tmp_path / "member.zip"), "test", tmp_path)
    failures = 0
    for index in range(len(data)):
        try:
            data.load(index, exif=False)
        except ImageError as error:
            failures += 1
            assert "damaged in the archive" in str(error)
    assert failures == 1


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """A folder of one class, one of whose images lies behind a link to a folder."""
    for name in ("set/cat/1.png", "elsewhere/2.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(1))
    (tmp_path / "set" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "set"


def test_a_link_to_a_folder_that_is_not_followed_is_said(cvt, cats: Path) -> None:
    said = f"skipped: links to folders (1, such as `{cats}/cat/more`)"

    assert said in cvt("evaluate", "--data", cats, *MODEL).stderr
    assert said in cvt("predict", cats, *MODEL).stderr


def test_class_folders_that_look_alike_are_named(tmp_path: Path) -> None:
    accents = [unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD")]
    for name in ("dog", "Dog", *accents):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(picture(1))
    said: list[str] = []

    images = open_dataset(str(tmp_path), "train", tmp_path, say=said.append)

    told = "differ in blanks, the case of letters or the form of accents alone"
    assert len(images.classes) == 4
    assert sum(f"`Dog` (1) and `dog` (1) in `{tmp_path}` {told}" in one for one in said) == 1
    assert sum(f"(1) and `{accents[0]}` (1) in `{tmp_path}` {told}" in one for one in said) == 1
    with pytest.raises(DataError, match=f"differs from the model's `{accents[0]}` only in"):
        match_classes((accents[1],), Labels((accents[0],)))


def test_a_folder_of_tables_alone_says_to_name_one(cvt, tmp_path: Path) -> None:
    table = tmp_path / "data" / "train-00000-of-00001.parquet"
    table.parent.mkdir()
    table.write_bytes(b"PAR1")

    result = cvt("finetune", tmp_path, "--model", "cvt-nano-cifar10", "--dry-run")

    assert result.exit_code == 1
    assert f"hint: if a table has the images, name it: {table}" in result.stderr


def test_of_several_tables_in_a_folder_none_is_taken_for_all_of_the_data(
    cvt, tmp_path: Path
) -> None:
    for shard in range(2):
        (tmp_path / f"train-0000{shard}-of-00002.parquet").touch()

    result = cvt("evaluate", tmp_path, "--model", "cvt-nano-cifar10")

    first = tmp_path / "train-00000-of-00002.parquet"
    assert f"such as {first}: there are 2, of which one is read at a time" in result.stderr


def test_a_table_given_to_predict_is_named_as_one(cvt, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("path,label\na.png,cat\n")

    result = cvt("predict", table, "--model", "cvt-nano-cifar10")

    assert result.exit_code == 1
    assert f"a table, not an image; `@{table}` is the images that it lists" in result.stderr


def test_what_a_table_says_twice_and_differently_is_refused(cvt, cats: Path) -> None:
    table = cats.parent / "table"
    for option, content, said in (
        ("--label-map", '{"cat": 3, "cat": 5}', "it has 'cat' twice"),
        ("--groups", "path,group\ncat/1.png,a\ncat/1.png,b\n", "two groups for `cat/1.png`"),
        ("--groups", "path,group\ncat/1.png,\n", "has no group for `cat/1.png`"),
    ):
        table.write_text(content)

        result = cvt("evaluate", "--data", cats, option, table, *MODEL)

        assert result.exit_code == 1 and said in result.stderr, result


def test_a_layout_from_outside_is_one_reader(tmp_path: Path, monkeypatch) -> None:
    def csv_table(tree: Tree, split: Split, say: Say) -> LabelledImages | None:
        """Lines of image and class in ``labels.csv``, in a part or in a place without parts."""
        if not tree.has("labels.csv"):
            return None
        rows = [line.split(",") for line in tree.read("labels.csv").decode().split()]
        classes = sorted({label for _, label in rows})
        labels = [classes.index(label) for _, label in rows]
        return made(tree, classes, (name for name, _ in rows), labels, "a table")

    for part, number in (("train", 1), ("val", 2)):
        (tmp_path / "set" / part / "any").mkdir(parents=True)
        (tmp_path / "set" / part / "any" / "1.png").write_bytes(picture(number))
        (tmp_path / "set" / part / "labels.csv").write_text("any/1.png,cat\n")
    at = layouts.READERS.index(layouts.class_folders)
    readers = (*layouts.READERS[:at], csv_table, *layouts.READERS[at:])
    monkeypatch.setattr(layouts, "READERS", readers)
    archive = zipped(tmp_path / "set", tmp_path / "set.zip")

    folder = open_dataset(str(tmp_path / "set"), "test", tmp_path)
    packed = open_dataset(str(archive), "train", tmp_path)

    assert (folder.classes, folder.layout, greys(folder)) == (("cat",), "a table", [2])
    assert (packed.classes, packed.layout, greys(packed)) == (
        ("cat",),
        "a table in a zip archive",
        [1],
    )
