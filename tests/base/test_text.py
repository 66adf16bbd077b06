"""Text files are read whatever tool saved them, or refused with the reason."""

import codecs
import math
from pathlib import Path

import pytest

from cvt_cli.base import text


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(mark: bytes, encoding: str) -> None:
    assert text.decoded(mark + "café".encode(encoding)) == "café"


def test_another_encoding_is_refused_by_the_place_of_its_first_byte(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_bytes("Caffè".encode("latin-1"))

    with pytest.raises(ValueError, match="byte 4 is not UTF-8; save the file as UTF-8"):
        text.read_text(path)


def test_names_of_files_keep_bytes_that_are_no_text() -> None:
    assert text.decoded(b"caf\xe9.jpg", names=True) == "caf\udce9.jpg"


def test_a_threshold_never_reads_as_one_that_all_or_none_reach() -> None:
    written = [text.threshold(value) for value in (0.98765, 0.9996, 0.99999998, 1.0, 0.00002, 0.0)]

    assert written == ["0.988", "0.99960", "0.999999980", "1.000", "0.00002", "0.000"]


def test_from_a_threshold_as_it_is_written_on_no_answer_is_that_was_not_counted() -> None:
    values = [
        0.85307,
        0.85349,
        0.8535,
        0.1,
        0.9994,
        0.99951,
        0.0004,
        *(1 - 0.4**n for n in range(30)),
    ]

    written = [text.threshold(value) for value in values]

    assert written[:7] == ["0.854", "0.854", "0.854", "0.100", "0.99940", "0.99951", "0.0004"]
    assert all(float(shown) >= value for shown, value in zip(written, values, strict=True))


def test_what_breaks_a_line_or_hides_is_escaped_and_blanks_are_not() -> None:
    assert text.printable("写真\u3000集 \xa0\u202f") == "写真\u3000集 \xa0\u202f"
    assert text.printable("a\nb\x1b\u2028\u202e") == r"a\nb\x1b\u2028\u202e"


def test_json_that_would_exhaust_the_stack_is_refused() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        text.parsed_json(b"[" * 100_000)


@pytest.mark.parametrize("unique", [True, False])
def test_a_whole_number_beyond_all_floats_is_infinite_in_json(unique: bool) -> None:
    digits = "9" * 308

    found = text.parsed_json(f"[{digits}, {digits}9, -{digits}9]", unique=unique)

    assert found == [int(digits), math.inf, -math.inf]


def test_a_text_of_more_bytes_than_any_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"x" * 1001)

    with pytest.raises(ValueError, match="more than 1,000 bytes"):
        text.read_text(path, most=1000)


def test_a_number_stands_with_its_noun_in_the_right_form() -> None:
    assert [text.counted(n, "image") for n in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert [text.counted(n, "class") for n in (1, 3)] == ["1 class", "3 classes"]
    epochs = [text.counted(n, "epoch") for n in (1.0, 0.5, 20.0, 1_000_000.0)]
    assert epochs == ["1 epoch", "0.5 epochs", "20 epochs", "1000000 epochs"]
