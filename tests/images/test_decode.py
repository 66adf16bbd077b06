"""Every odd, broken and hostile file behaves as its table says."""

import io
import json
import os
import re
import shutil
import struct
import sys
import tempfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps, ImageStat
from PIL.PngImagePlugin import PngInfo

from cvt_cli.base import limits
from cvt_cli.base.errors import ImageError
from cvt_cli.base.package import installing
from cvt_cli.images import decode, finding, sources
from tests_shared import CHELSEA, make_special, test_data, too_deep

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
    "bomb-60000x60000.png": "too large: more than",
}


# The table says what Pillow alone does: it unpacks a PNG's texts, which nobody asked for. The
# pixels are sound.
SOUND = {"bomb-text.png"}


def entries() -> list[dict[str, str]]:
    return json.loads(test_data("awkward/table.json").read_text())


def mean(path: Path, exif: bool = False) -> list[float]:
    return ImageStat.Stat(decode.load(path, exif)).mean  # by a histogram, of any size at once


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
        if wanted[name]["expect"].startswith("per-file error") and name not in SOUND:
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


def test_a_dark_pgm_of_16_bits_is_as_dark_as_a_png(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode, "_told_of", set())
    dark = Image.fromarray(np.full((8, 8), 257 * 100, np.uint16))
    for name in ("dark.png", "dark.pgm"):
        dark.save(tmp_path / name)

        assert mean(tmp_path / name) == [100, 100, 100]
    for name in ("black.png", "black.pgm"):
        Image.fromarray(np.full((8, 8), 250, np.uint16)).save(tmp_path / name)

        assert mean(tmp_path / name) == [1, 1, 1]
    assert capfd.readouterr().err == ""


def retagged(path: Path, tag: int, value: int) -> None:
    """Gives another value to a tag of a TIFF, which is a whole number."""
    content = bytearray(path.read_bytes())
    place = re.search(struct.pack("<H", tag) + b"[\3\4]\0\1\0\0\0", content)
    content[place.end() : place.end() + 2] = struct.pack("<H", value)
    path.write_bytes(content)


def test_a_tiff_of_12_bits_or_whose_zero_is_white_is_as_bright_as_in_8_bits(tmp_path: Path) -> None:
    grey = np.asarray(Image.open(CHELSEA).convert("L"))[:, :450].astype(np.uint32)
    Image.fromarray((65535 - grey * 257).astype(np.uint16)).save(tmp_path / "white.tif")
    retagged(tmp_path / "white.tif", 262, 0)  # how black and white are told
    pairs = grey * 4095 // 255
    pairs = pairs[:, ::2] << 12 | pairs[:, 1::2]
    packed = np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], axis=2).astype(np.uint8)
    Image.fromarray(packed.reshape(len(grey), -1)).save(tmp_path / "12.tif")
    retagged(tmp_path / "12.tif", 256, 450)  # width
    retagged(tmp_path / "12.tif", 258, 12)  # bits

    for name in ("white.tif", "12.tif"):
        read = np.asarray(decode.load(tmp_path / name, exif=True))[:, :, 0].astype(int)
        assert abs(read - grey).max() <= 1
        with Image.open(tmp_path / name) as image:
            image.load()
        kept = decode.from_memory(decode.as_it_is_now(image), exif=True)
        assert np.array_equal(np.asarray(kept)[:, :, 0], read)


def test_the_scale_of_32_bits_is_guessed_by_the_largest_value_and_said(
    cvt, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(decode, "_told_of", set())
    ramp = np.linspace(0, 250, 64 * 64, dtype=np.float32).reshape(64, 64)
    for name, factor in (("a", 1), ("b", 1), ("c", 1.2), ("d", 1 / 250), ("e", 300)):
        Image.fromarray(ramp * np.float32(factor)).save(tmp_path / f"{name}.tif")

    result = cvt("predict", tmp_path, "--model", "cvt-nano-cifar10", "--jsonl")

    assert result.exit_code == 0 and len(result.json_lines) == 5
    said = re.findall("of 32-bit floats does not say which value is white: taken is (.+),",
                      result.stderr)  # fmt: skip
    assert sorted(said) == ["1", "255", "65535", "its largest value"]


@pytest.mark.parametrize(
    "name", ["exif-resolution-as-text.jpg", "exif-resolution-signed-minus-one-over-zero.jpg"]
)
def test_exif_that_is_broken_elsewhere_leaves_the_orientation(cvt, name: str) -> None:
    path = test_data(f"faults-inputs/{name}")

    (line,) = cvt("predict", path, "--model", "cvt-nano-cifar10", "--jsonl").json_lines

    assert line["predictions"]
    with Image.open(path) as image:
        assert image.getexif()[274] == 6  # the sensor's top is on the right
        upright = decode.from_memory(image, exif=True)
        assert upright.size == image.size[::-1]
        assert np.array_equal(decode.load(path, exif=True), upright)
        assert np.array_equal(upright, np.rot90(decode.load(path, exif=False), -1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_are_turned_as_pillow_does(tmp_path: Path, orientation: int) -> None:
    picture = Image.fromarray(np.arange(3 * 5 * 3, dtype=np.uint8).reshape(3, 5, 3))
    exif = Image.Exif()
    exif[274] = orientation
    picture.save(tmp_path / "a.png", exif=exif)

    with Image.open(tmp_path / "a.png") as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode.load(tmp_path / "a.png", exif=True), wanted)


def test_exif_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 4), "red")
    for number, exif in enumerate((b"Exif\0\0II", b"Exif\0\0no TIFF at all", b"x" * 50)):
        path = tmp_path / f"{number}.png"
        picture.save(path, exif=exif)

        assert decode.load(path, exif=True).size == (8, 4)


def test_a_png_is_answered_from_its_pixels_however_large_its_texts_are(tmp_path: Path) -> None:
    picture = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    for number, size in enumerate((1_200_000, 80_000_000)):
        texts = PngInfo()
        texts.add_text("zipped", "x" * size, zip=True)
        texts.add_itxt("international", "y" * size, zip=True)
        exif = Image.Exif()
        exif[274] = 6
        profile = bytes(size)
        path = tmp_path / f"{number}.png"
        picture.save(path, pnginfo=texts, exif=exif, icc_profile=profile)

        assert np.array_equal(decode.load(path, exif=False), picture)
        assert np.array_equal(decode.load(path, exif=True), np.rot90(picture, -1))
        assert decode.size(lambda path=path: path.open("rb")) == (16, 16)


def heic(path: Path) -> Path:
    """A picture as iPhones keep them."""
    pillow_heif = pytest.importorskip("pillow_heif")
    with Image.open(CHELSEA) as image:
        pillow_heif.from_pillow(image.convert("RGB")).save(path, quality=90)
    return path


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path, cvt) -> None:
    path = heic(tmp_path / "chelsea.HEIC")

    result = cvt("predict", tmp_path, "--model", "cvt-nano-cifar10", "--jsonl")

    (line,) = result.json_lines
    assert (line["path"], line["predictions"][0]["label"]) == (str(path), "cat")
    assert "passed over" not in result.stderr
    assert decode.size(lambda: path.open("rb")) == (300, 451)


def test_a_heic_that_is_not_whole_is_called_damaged(tmp_path: Path, cvt) -> None:
    whole = heic(tmp_path / "whole.heic").read_bytes()
    for name, content in {
        "half": whole[: len(whole) // 2],
        "head": whole[:60],
        "name": whole[:12],
        "zeros": whole[:200] + bytes(len(whole) - 200),
    }.items():
        (tmp_path / f"{name}.heic").write_bytes(content)

    result = cvt("predict", tmp_path, "--model", "cvt-nano-cifar10", "--jsonl")

    damaged = {Path(line["path"]).stem: line.get("error", "") for line in result.json_lines}
    assert damaged.pop("whole") == "" and len(damaged) == 4
    for error in damaged.values():
        assert error.startswith("damaged: ") and error == error.strip()


def test_heic_is_counted_and_named_where_it_cannot_be_read(
    tmp_path: Path, cvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    heic(tmp_path / "chelsea.HEIC")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    finding.reads_heif.cache_clear()

    alone = cvt("predict", tmp_path, "--model", "cvt-nano-cifar10")
    named = cvt("predict", tmp_path / "chelsea.HEIC", "--model", "cvt-nano-cifar10", "--jsonl")
    finding.reads_heif.cache_clear()

    assert alone.exit_code == named.exit_code == 1
    assert "skipped: files of other image types (1 .heic)" in alone.stderr
    assert installing("heic") in alone.stderr
    assert "a HEIC image" in named.json_lines[0]["error"]
    assert installing("heic") in named.json_lines[0]["error"]


def half_transparent(mode: str) -> Image.Image:
    """Two black pixels, of which the first is transparent; in some modes one grey level apart."""
    if mode in ("RGBA", "LA", "PA"):
        picture = Image.new(mode[:-1], (2, 1))
        picture.putalpha(Image.fromarray(np.array([[0, 255]], np.uint8)))
        return picture
    file = io.BytesIO()
    picture = Image.fromarray(np.array([[0, 1]], np.uint8)).convert(mode)
    picture.save(file, "PNG", transparency=(0, 0, 0) if mode == "RGB" else 0)
    return Image.open(file)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "RGB", "L"])
def test_a_background_shows_through_what_is_transparent_and_only_there(mode: str) -> None:
    picture = half_transparent(mode)

    plain = np.asarray(decode.from_memory(picture, exif=True))
    on_orange = np.asarray(decode.from_memory(picture, exif=True, background=(255, 128, 0)))

    assert picture.mode == mode
    assert plain[0, 0].max() <= 1 and plain[0, 1].max() <= 1
    assert on_orange[0, 0].tolist() == [255, 128, 0]
    assert on_orange[0, 1].max() <= 1


def test_background_is_an_option_and_kept_with_the_answers(cvt, tmp_path: Path) -> None:
    with Image.open(CHELSEA) as image:
        hidden = image.convert("RGBA")
    hidden.putalpha(0)
    hidden.save(tmp_path / "hidden.png")
    Image.new("RGB", hidden.size, "white").save(tmp_path / "white.png")
    given = ["predict", tmp_path / "hidden.png", tmp_path / "white.png"]
    given += ["--model", "cvt-nano-cifar10", "--json"]

    plain, white = cvt(*given).json, cvt(*given, "--background", "#ffffff").json
    wrong = cvt(*given, "--background", "whitish")
    half = cvt(*given, "--background", "#ffffff80")

    assert "background" not in plain and white["background"] == "#ffffff"
    assert plain["results"][0]["predictions"][0]["label"] == "cat"
    first, second = (result["predictions"][0] for result in white["results"])
    assert first["label"] == second["label"]
    assert first["score"] == pytest.approx(second["score"], abs=1e-5)
    assert wrong.exit_code == 2
    assert "`whitish` is not a color; accepted are names such as `white`" in wrong.stderr
    assert "`#ffffff80` is not a color" in half.stderr


def test_exif_orientation_makes_all_landscapes_look_the_same(awkward: Path) -> None:
    def thumbnail(name: str) -> np.ndarray:
        return np.asarray(decode.load(awkward / name, exif=True).resize((60, 40)), dtype=int)

    upright = thumbnail("landscape-exif1.jpg")
    for name in ("landscape-exif3.jpg", "landscape-exif6.jpg"):
        assert abs(thumbnail(name) - upright).mean() < 3
    assert decode.load(awkward / "landscape-exif6.jpg", exif=False).size == (1200, 1800)


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
        decode.load(tmp_path / name, exif=True)


def test_a_folder_is_searched_without_following_links(tmp_path: Path, awkward: Path) -> None:
    make_special(tmp_path)
    (tmp_path / "deeper").mkdir()
    shutil.copy(awkward / "UPPER.JPG", tmp_path / "deeper")
    for name in (".hidden.jpg", "noextension", "photo.JPEG"):
        shutil.copy(awkward / name, tmp_path)

    found = [str(p.relative_to(tmp_path)) for p in finding.images_in(tmp_path)]

    assert "self/photo.JPEG" not in found
    assert [n for n in found if not n.endswith(".jpg")] == ["photo.JPEG", "deeper/UPPER.JPG"]
    assert ".hidden.jpg" not in found


def test_a_folder_that_cannot_be_read_is_named_in_every_command(tmp_path: Path, cvt) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "1.png")
    too_deep(tmp_path / "dog")
    lost = "deepdeepdeep`: file name too long"
    nano = ["--model", "cvt-nano-cifar10"]

    for given in (tmp_path, f"file://{tmp_path}"):
        result = cvt("predict", given, *nano, "--jsonl")
        assert result.exit_code == 1
        assert [Path(line["path"]).name for line in result.json_lines[:2]] == ["1.png", "1.png"]
        assert lost in result.stderr and "1 of 3 images could not be read" in result.stderr
    for command in (
        ("evaluate", "--data", tmp_path, *nano),
        ("finetune", "--data", tmp_path, *nano),
        ("export", nano[1], "-o", tmp_path / "a.onnx", "--verify-data", tmp_path),
    ):
        result = cvt(*command)
        assert result.exit_code == 1
        assert "error: cannot read `" in result.stderr and lost in result.stderr.lower()


@pytest.fixture
def without_permission() -> Iterator[Path]:
    """A folder with a closed one in it; whoever runs the tests is not allowed to read that."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "cat" / "closed" / "deeper").mkdir(parents=True)
        for place in ("cat", "cat/closed", "cat/closed/deeper"):
            Image.new("RGB", (32, 32)).save(folder / place / "1.png")
        folder.chmod(0o755)
        (folder / "cat" / "closed").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)
        (folder / "cat" / "closed").chmod(0o755)


def test_a_folder_without_permission_is_named_by_folders_and_patterns(
    without_permission: Path,
) -> None:
    for pattern in ("", "cat", "**/*.png", "cat/*/*.png", "*/*/deeper/*.png"):
        given = str(without_permission / pattern)
        found = list(sources.sources([given]))

        lost = [source for source in found if source.name.endswith("closed")]
        assert len(lost) == 1, (pattern, found)
        with pytest.raises(ImageError, match="permission denied"):
            lost[0].load(exif=False)
        assert sources.Listing([given]).total == len(found)


def test_a_name_that_the_system_refuses_is_an_unreadable_image(cvt, tmp_path: Path) -> None:
    result = cvt("predict", tmp_path / ("a" * 300), "--model", "cvt-nano-cifar10", "--jsonl")

    assert result.exit_code == 1
    assert result.json_lines[0]["error"] == "file name too long"


def test_a_budget_gives_room_when_there_is_some_and_to_what_is_larger_when_nobody_waits() -> None:
    budget, order = limits.Budget(100), []
    first, second = budget.take(60), budget.take(40)

    def third() -> None:
        share = budget.take(500)
        order.append("taken")
        share.release()

    thread = threading.Thread(target=third)
    thread.start()
    first.release()
    first.release()
    thread.join(0.3)
    assert thread.is_alive()  # 40 are held still
    order.append("given back")
    second.release()
    thread.join(10)

    assert order == ["given back", "taken"]
    own = limits.Budget(100, own=True)
    shares = [own.take(80) for _ in range(3)]  # a thread does not wait for itself
    assert len(shares) == 3


def test_a_folder_of_special_files_ends_with_an_error_for_each(tmp_path: Path, cvt) -> None:
    make_special(tmp_path)

    result = cvt("predict", tmp_path, "--json")

    assert result.exit_code == 1
    failed = {Path(r["path"]).name for r in result.json["results"] if "error" in r}
    assert failed == {"dangling.jpg", "loop-a.jpg", "loop-b.jpg", "pipe.jpg", "unreadable.jpg"}


def test_a_program_that_is_called_a_picture_is_not_run(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostScript, which Pillow lets Ghostscript run where there is one; this one never ends."""
    ran, gs = tmp_path / "ran", tmp_path / "gs"
    gs.write_text(f'#!/bin/sh\n[ "$1" = --version ] || touch {ran}\n')
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once
    picture = tmp_path / "photo.jpg"
    picture.write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n{} loop\n%%EOF\n"
    )

    result = cvt("predict", picture, "--model", "cvt-nano-cifar10")

    assert result.exit_code == 1
    assert "an EPS file, which is a program and is not run" in result.stderr
    assert not ran.exists()


def test_a_jpeg_that_begins_again_and_again_is_refused(cvt, tmp_path: Path) -> None:
    """A scan of one colour takes some bytes, and at 144 megapixels a tenth of a second."""
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "navy").save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    last = whole[whole.rindex(b"\xff\xc4") : -2]  # with its table
    (tmp_path / "good.jpg").write_bytes(whole[:-2] + 200 * last + whole[-2:])
    (tmp_path / "bad.jpg").write_bytes(whole[:-2] + 500 * last + whole[-2:])

    result = cvt("predict", tmp_path, "--model", "cvt-nano-cifar10", "--jsonl")

    bad, good = result.json_lines
    assert bad["error"] == "a JPEG of more than 500 scans, which takes too long"
    assert good["predictions"]


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_deep_greys_take_no_more_memory_than_a_few_times_the_picture(mode: str) -> None:
    picture = Image.new(mode, (3000, 3000), 7)

    tracemalloc.start()
    decode.to_rgb(picture)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 12 * 3000 * 3000  # bytes; in float64 all at once there were over 32 a pixel


@pytest.mark.parametrize(
    ("suffix", "bytes_a_pixel"), [("webp", 16), ("jp2", 20), ("png", 4), ("jpg", 7)]
)
def test_a_large_picture_waits_for_the_room_that_its_decoder_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, bytes_a_pixel: int
) -> None:
    side, taken = 4500, []
    path = tmp_path / f"large.{suffix}"
    more = {"progressive": True} if suffix == "jpg" else {}
    Image.new("RGB", (side, side)).save(path, **more)
    take = limits.pictures.take
    monkeypatch.setattr(limits.pictures, "take", lambda size: taken.append(size) or take(size))

    picture = decode.load(path, exif=False)

    assert taken == [side * side * bytes_a_pixel] and picture.size == (side, side)
