"""What is found out about labelled images before anything is trained on them."""

import io
import shutil
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from PIL import Image

from cvt_cli.base.errors import ImageError
from cvt_cli.datasets import datacheck
from cvt_cli.datasets.datacheck import check
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.datasets.layouts import open_dataset
from cvt_cli.images.trees import Folder


def picture(number: int, kind: str = "PNG", side: int = 64) -> bytes:
    """An image that compresses badly, another for every number."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 3, 2 and 4 images."""
    root = tmp_path / "animals"
    for name, count in (("cat", 3), ("dog", 2), ("eel", 4)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            kind = "JPEG" if number % 2 else "PNG"
            (root / name / f"{number}.{kind.lower()}").write_bytes(picture(number, kind))
    return root


def opened(path: Path) -> LabelledImages:
    return open_dataset(str(path), "train", path)


def zipped(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.*")):
            archive.write(file, file.relative_to(folder))
    return path


def tarred(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        archive.add(folder, ".")
    return path


def test_of_sound_images_none_is_unreadable(folder: Path) -> None:
    found = check(opened(folder), workers=2)

    assert found.unreadable == () and not found.only_headers


def test_a_folder_without_images_is_no_class(folder: Path) -> None:
    (folder / "fox").mkdir()

    data = opened(folder)

    assert data.classes == ("cat", "dog", "eel") and data.sizes.tolist() == [3, 2, 4]


def test_a_tar_that_is_replaced_gives_no_picture_of_another_class(
    folder: Path, tmp_path: Path
) -> None:
    data = opened(tarred(folder, tmp_path / "data.tar"))
    assert isinstance(data.load(0, exif=False), Image.Image)
    (folder / "cat").rename(folder / "x")
    (folder / "dog").rename(folder / "cat")
    (folder / "x").rename(folder / "dog")
    tarred(folder, tmp_path / "other.tar").replace(tmp_path / "data.tar")

    for index in range(len(data)):
        with pytest.raises(ImageError, match="the archive was replaced or changed"):
            data.load(index, exif=False)


def damage(folder: Path) -> dict[str, str]:
    """Break some images of the folder; the reason to be given for each."""
    (folder / "cat" / "empty.png").touch()
    (folder / "dog" / "page.jpg").write_text("<html>404 Not Found</html>")
    (folder / "dog" / "cut.jpg").write_bytes(picture(7, "JPEG")[:2000])
    (folder / "dog" / "cut.png").write_bytes(picture(7)[:2000])
    (folder / "eel" / "gone.png").symlink_to("nowhere.png")
    content = bytearray(picture(8))
    content[1000] ^= 255
    (folder / "eel" / "flipped.png").write_bytes(content)
    return {
        "cat/empty.png": "empty file (0 bytes)",
        "dog/page.jpg": "not an image, or of a type that Pillow cannot read",
        "dog/cut.jpg": "image file is truncated",
        "dog/cut.png": "image file is truncated",
        "eel/gone.png": "no such file or directory",
        "eel/flipped.png": "broken data stream when reading image file",
    }


def test_every_unreadable_image_is_named_with_its_reason(folder: Path) -> None:
    reasons = damage(folder)
    data = opened(folder)

    found = check(data, workers=2)

    assert [index for index, _ in found.unreadable] == sorted(i for i, _ in found.unreadable)
    named = {data.names[index]: reason for index, reason in found.unreadable}
    assert named.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert named[name].startswith(reason), name


def test_of_many_images_only_the_headers_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = damage(folder)
    data = opened(folder)
    monkeypatch.setattr(datacheck, "DECODED_UP_TO", len(data) - 1)

    found = check(data, workers=2)

    assert found.only_headers
    named = {data.names[index]: reason for index, reason in found.unreadable}
    assert named == {
        name: reasons[name] for name in ("cat/empty.png", "dog/page.jpg", "eel/gone.png")
    }


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF")
def test_the_odd_and_broken_files_are_judged_as_decoding_them_whole_does(awkward: Path) -> None:
    names = tuple(sorted(path.name for path in awkward.iterdir()))
    data = LabelledImages(awkward, ("odd",), names, np.zeros(len(names), np.int64))
    wanted = []
    for index in range(len(data)):
        try:
            data.load(index, exif=False)
        except ImageError as error:
            wanted.append((index, str(error)))

    found = check(data, workers=2)

    assert [index for index, _ in found.unreadable] == [index for index, _ in wanted]
    assert len(wanted) == 10
    for (_, reason), (index, expected) in zip(found.unreadable, wanted, strict=True):
        # How many bytes were left over depends on the size that is decoded to.
        assert reason.partition(" (")[0] == expected.partition(" (")[0], names[index]


def test_a_jpeg_cut_anywhere_is_found_as_by_decoding_it_whole(
    awkward: Path, tmp_path: Path
) -> None:
    for name in ("landscape-exif1.jpg", "progressive.jpg"):  # one baseline
        content = (awkward / name).read_bytes()
        for tenth in range(1, 11):
            place = tmp_path / "cut" / f"{tenth}-{name}"
            place.parent.mkdir(exist_ok=True)
            place.write_bytes(content[: len(content) * tenth // 10 - (tenth == 10) * 200])
    data = opened(tmp_path)
    damaged = []
    for index in range(len(data)):
        try:
            data.load(index, exif=False)
        except ImageError:
            damaged.append(index)

    found = check(data, workers=2)

    assert len(damaged) >= 18
    assert [index for index, _ in found.unreadable] == damaged


def test_threads_do_not_change_what_is_found(folder: Path) -> None:
    damage(folder)
    data = opened(folder)

    assert check(data, workers=1) == check(data, workers=8)


def test_the_fingerprint_is_that_of_the_data_and_not_of_their_place(
    folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere" / "copied")

    fingerprints = {
        check(opened(path), workers=2).fingerprint
        for path in (
            folder,
            copy,
            zipped(folder, tmp_path / "animals.zip"),
            tarred(folder, tmp_path / "animals.tar"),
        )
    }

    assert len(fingerprints) == 1
    assert len(fingerprints.pop()) == 64


def test_damage_in_an_archive_is_found(folder: Path, tmp_path: Path) -> None:
    reasons = damage(folder)
    (folder / "eel" / "gone.png").unlink()
    del reasons["eel/gone.png"]

    for path in (zipped(folder, tmp_path / "a.zip"), tarred(folder, tmp_path / "a.tar")):
        data = opened(path)

        found = check(data, workers=2)

        assert {data.names[index] for index, _ in found.unreadable} == reasons.keys()
        assert data.tree.size("cat/empty.png") == 0
        assert data.tree.size("cat/none.png") is None


def add_an_image(root: Path) -> None:
    (root / "cat" / "9.png").write_bytes(picture(9))


def remove_an_image(root: Path) -> None:
    (root / "cat" / "0.png").unlink()


def rename_an_image(root: Path) -> None:
    (root / "cat" / "0.png").rename(root / "cat" / "00.png")


def rename_a_class(root: Path) -> None:
    (root / "cat").rename(root / "cats")


def move_an_image(root: Path) -> None:
    (root / "cat" / "0.png").rename(root / "dog" / "3.png")


def replace_an_image(root: Path) -> None:
    (root / "cat" / "0.png").write_bytes(picture(0, side=65))


@pytest.mark.parametrize(
    "change",
    [
        add_an_image,
        remove_an_image,
        rename_an_image,
        rename_a_class,
        move_an_image,
        replace_an_image,
    ],
)
def test_other_data_have_another_fingerprint(folder: Path, change) -> None:
    before = check(opened(folder), workers=2).fingerprint

    change(folder)

    assert check(opened(folder), workers=2).fingerprint != before


def test_images_in_memory_are_told_apart_by_their_pixels_and_labels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    data = LabelledImages(
        Path("nowhere"), ("a", "b"), tuple("wxyz"), np.array([0, 1, 1, 0]), pixels
    )
    other = pixels.copy()
    other[3, 7, 7, 2] ^= 1

    found = check(data, workers=2)

    assert found.unreadable == ()
    assert found == check(replace(data, pixels=pixels.copy()), workers=1)
    for changed in (replace(data, pixels=other), replace(data, labels=np.array([0, 1, 1, 1]))):
        assert check(changed, workers=2).fingerprint != found.fingerprint


def test_progress_is_told_of_every_image_and_of_damage(folder: Path) -> None:
    damage(folder)
    told: list[object] = []

    @contextmanager
    def progress(what: str, total: int | None, *, unit: str = "images", done: int = 0):
        told.append((what, total, unit, done))
        yield lambda items, note: told.append(note)

    check(opened(folder), workers=2, progress=progress)

    assert told[0] == ("checking images", 15, "images", 0)
    assert len(told) == 1 + 15 and told[-1] == "6 unreadable"


@pytest.mark.parametrize("only_headers", [False, True])
@pytest.mark.parametrize("seen", [False, True])
def test_an_image_is_opened_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, only_headers: bool, seen: bool
) -> None:
    """One on the web may be had now, and not when it is asked for again."""
    if only_headers:
        monkeypatch.setattr(datacheck, "DECODED_UP_TO", 0)
    opened_before, asked = Folder.open, list[str]()

    def once(tree: Folder, name: str) -> BinaryIO:
        asked.append(name)
        return opened_before(tree, name)

    monkeypatch.setattr(Folder, "open", once)
    data = opened(folder)

    check(data, 2, seen=seen)

    assert sorted(asked) == sorted(data.names)
