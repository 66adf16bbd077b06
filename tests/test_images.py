"""Every odd, broken and hostile file behaves as its table says."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvt_cli import images
from cvt_cli.errors import ImageError
from tests_shared import make_special, test_data

BROKEN = {
    "truncated.jpg": "truncated",
    "truncated.png": "truncated",
    "broken.png": "not an image",
    "broken-stream.png": "unrecognized data stream",
    "crc-error.png": "broken data stream",
    "empty.jpg": "empty file (0 bytes)",
    "text.jpg": "not an image",
    "html.jpg": "not an image",
    "jpeg-magic-only.jpg": "not an image",
    "bomb-text.png": "decompressed data too large",
    "bomb-60000x60000.png": "too large: more than",
}


def entries() -> list[dict[str, str]]:
    return json.loads(test_data("awkward/table.json").read_text())


def mean(path: Path, exif: bool = False) -> list[float]:
    return np.asarray(images.load(path, exif)).reshape(-1, 3).mean(axis=0).tolist()


def test_all_awkward_files_behave_as_their_table_says(awkward: Path, cvt) -> None:
    wanted = {e["file"]: e for e in entries()}
    assert len(wanted) == len(os.listdir(awkward)) == 58
    # Named one by one, since a folder is searched for visible files with a suffix only.
    names = sorted(os.listdir(awkward))

    result = cvt("predict", "--jsonl", *(awkward / name for name in names))

    assert result.exit_code == 1
    answers = {Path(line["path"]).name: line for line in result.json_lines}
    assert list(answers) == names
    for name, answer in answers.items():
        if wanted[name]["expect"].startswith("per-file error"):
            assert BROKEN[name] in answer["error"].lower(), name
            assert answer["error"] in result.stderr
        else:
            assert len(answer["predictions"]) == 5, name
    assert sum("error" in answer for answer in answers.values()) == len(BROKEN)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning", "ignore:Corrupt EXIF")
def test_pictures_have_the_colours_that_the_table_gives(awkward: Path) -> None:
    for entry in entries():
        stated = entry["pillow"].partition("RGB mean [")[2].partition("]")[0]
        if stated and entry["file"] not in ("gray16.png", "photo.avif"):
            wanted = [float(value) for value in stated.split(",")]
            assert mean(awkward / entry["file"]) == pytest.approx(wanted, abs=1), entry["file"]


def test_sixteen_bit_grey_is_scaled_and_not_clipped(awkward: Path, tmp_path: Path) -> None:
    # The same picture in 8 bits, and the 16-bit one as other files hold it.
    eight = mean(awkward / "gray.jpg")
    deep = np.asarray(Image.open(awkward / "gray16.png"))
    Image.fromarray(deep.astype(np.int32)).save(tmp_path / "i.tif")
    Image.fromarray((deep / 65535).astype(np.float32)).save(tmp_path / "f.tif")

    assert mean(awkward / "gray16.png") == pytest.approx(eight, abs=3)
    assert mean(tmp_path / "i.tif") == pytest.approx(mean(awkward / "gray16.png"), abs=0.5)
    assert mean(tmp_path / "f.tif") == pytest.approx(mean(awkward / "gray16.png"), abs=0.5)


def test_exif_orientation_makes_all_landscapes_look_the_same(awkward: Path) -> None:
    def thumbnail(name: str) -> np.ndarray:
        return np.asarray(images.load(awkward / name, exif=True).resize((60, 40)), dtype=int)

    upright = thumbnail("landscape-exif1.jpg")
    for name in ("landscape-exif3.jpg", "landscape-exif6.jpg"):
        assert abs(thumbnail(name) - upright).mean() < 3
    assert images.load(awkward / "landscape-exif6.jpg", exif=False).size == (1200, 1800)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("directory.jpg", "a folder, not a file"),
        ("dangling.jpg", "no such file or directory"),
        ("loop-a.jpg", "too many levels of symbolic links"),
        ("pipe.jpg", "not a regular file"),
        ("unreadable.jpg", "permission denied|empty file"),
        ("never-was.jpg", "no such file or directory"),
    ],
)
def test_what_no_archive_carries_is_refused_with_its_reason(
    tmp_path: Path, name: str, reason: str
) -> None:
    make_special(tmp_path)

    with pytest.raises(ImageError, match=reason):
        images.load(tmp_path / name, exif=True)


def test_a_folder_is_searched_without_following_links(tmp_path: Path, awkward: Path) -> None:
    make_special(tmp_path)
    (tmp_path / "deeper").mkdir()
    shutil.copy(awkward / "UPPER.JPG", tmp_path / "deeper")
    for name in (".hidden.jpg", "noextension", "photo.JPEG"):
        shutil.copy(awkward / name, tmp_path)

    found = [str(p.relative_to(tmp_path)) for p in images.images_in(tmp_path)]

    assert "self/photo.JPEG" not in found
    assert [n for n in found if not n.endswith(".jpg")] == ["photo.JPEG", "deeper/UPPER.JPG"]
    assert ".hidden.jpg" not in found


def test_a_folder_of_special_files_ends_with_an_error_for_each(tmp_path: Path, cvt) -> None:
    make_special(tmp_path)

    result = cvt("predict", tmp_path, "--json")

    assert result.exit_code == 1
    failed = {Path(r["path"]).name for r in result.json["results"] if "error" in r}
    assert failed == {"dangling.jpg", "loop-a.jpg", "loop-b.jpg", "pipe.jpg", "unreadable.jpg"}
