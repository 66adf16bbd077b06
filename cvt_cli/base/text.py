"""Text for people (sizes, times, counts, names that cannot break a line), and from files."""

import codecs
import io
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

WEIGHTED = "by the weights of the images"
"""How measures count the images where a table weighs them."""


def printable(text: str) -> str:
    """The text with control characters escaped, so that a file name cannot break a line. Blanks of
    every kind stay: folders have them (U+3000 in Japanese), and shells are given what is printed.
    """
    if text.isprintable():
        return text
    return "".join(
        c
        if c.isprintable() or unicodedata.category(c) == "Zs"
        else c.encode("unicode_escape").decode()
        for c in text
    )


def as_utf8(name: str) -> str:
    """A file name as text that UTF-8 can hold: itself, or with escapes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return name.encode("utf-8", "backslashreplace").decode()
    return name


_PASSWORD = re.compile(r"(?<=://)([^/?#:@]*):[^/?#]*@")


def without_password(address: str) -> str:
    """An address as messages and records have it: of ``http://me:secret@host`` the password hidden.

    Any other text is as it was.
    """
    return _PASSWORD.sub(r"\1:***@", address) if "@" in address else address


def plain(name: str) -> str:
    """By which names are alike that differ in blanks, the case of letters or the form of accents
    alone: macOS writes é as two characters."""
    return " ".join(unicodedata.normalize("NFC", name).split()).casefold()


LOOKS = "blanks, the case of letters or the form of accents"
"""What names differ in that are alike by `plain`."""


def alike(names: Iterable[str]) -> list[list[str]]:
    """Those names that are alike by `plain`, each list of at least two."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(plain(name), []).append(name)
    return [some for some in found.values() if len(some) > 1]


def csv_row(values: Iterable[Any]) -> str:
    """A row of a CSV table, without the line's end; what could end one in a text is quoted."""
    import csv
    import io

    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(values)  # it quotes what is in this alone
    return line.getvalue().removesuffix("\r\n")


def human_bytes(size: float) -> str:
    """A size as "80.1 MB" (1 MB is 1,000,000 bytes, as downloads are counted)."""
    if size < 1000:
        return "1 byte" if round(size) == 1 else f"{size:.0f} bytes"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    size /= 1000
    return f"{size:.2f} GB"


def duration(seconds: float) -> str:
    """A time as "0:42" or "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def threshold(value: float) -> str:
    """A probability that answers begin from: "0.987"; with as many digits as tell it from 0, and
    two that tell it from 1, where those of overconfident models lie. Rounded up, since who uses
    what is written here would else let answers in that were not counted. What is read from it is
    of the same value when it is written again."""
    for digits in range(3, 17):
        nearest = float(f"{value:.{digits}f}")
        shown = f"{nearest if nearest >= value else nearest + 10**-digits:.{digits}f}"
        from_0, from_1 = (round(one * 10**digits, 6) for one in (value, 1 - float(shown)))
        if value in (0, 1) or (from_0 >= 1 and from_1 >= 10):
            break
    return shown


def fraction(value: float | None) -> str:
    """A measure from 0 to 1, "0.8750"; "none" where there is none."""
    return "none" if value is None else f"{value:.4f}"


def human_count(value: int | None) -> str:
    """A large count with its metric prefix, "4.566 G"; empty for None."""
    if value is None:
        return ""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3f} {prefix}"
    return f"{value} "


def counted(n: float, noun: str) -> str:
    """A number with its noun: "1 image", "2 images", "3 classes", "0.5 epochs"."""
    ending = "" if n == 1 else "es" if noun.endswith("s") else "s"
    number = f"{n:.2f}".rstrip("0").rstrip(".") if isinstance(n, float) else n
    return f"{number} {noun}{ending}"


def some(names: Iterable[str]) -> str:
    """The first five names, for a message."""
    shown = list(names)
    return ", ".join(shown[:5]) + (", …" if len(shown) > 5 else "")


# --- reading

LARGEST_BYTES = 512 * 1024**2
"""Of a text file that is read whole; a label map or a config has some thousands."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""How a list in UTF-16 begins (in UTF-32 too)."""


def encoding_of(start: bytes) -> tuple[str, int]:
    """The encoding that a byte order mark says, UTF-8 without one, and the mark's length."""
    for mark, marked in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return marked, len(mark)
    return "utf-8", 0


def decoded(content: bytes, *, names: bool = False) -> str:
    """Text in UTF-8, or in what its byte order mark says; the mark is left out.

    Args:
        content: of the whole file.
        names: it lists file names, which may hold any bytes: what is no UTF-8 is kept for the
            system as Python keeps it (``surrogateescape``).

    Raises:
        ValueError: it is in another encoding; the message is a sentence.
    """
    encoding, mark = encoding_of(content)
    content = content[mark:]
    try:
        return content.decode(encoding, "surrogateescape" if names else "strict")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start:,} is not {encoding.upper()}; save the file as UTF-8"
        ) from None


def read_text(path: Path, *, names: bool = False, most: int = LARGEST_BYTES) -> str:
    """All of a text file; see `decoded`.

    Raises:
        OSError: it cannot be read.
        ValueError: it has more than ``most`` bytes, or is in another encoding.
    """
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return decoded(content, names=names)


def lines_of(file: BinaryIO) -> Iterator[str]:
    """The lines of a list of file names, as they come; it may begin with a byte order mark.

    Raises:
        ValueError: it is in UTF-16, and not right.
    """
    start = file.peek(4) if isinstance(file, io.BufferedReader) else b""
    if start.startswith(WIDE_MARKS):
        yield from decoded(file.read(), names=True).split("\n")
        return
    for number, line in enumerate(file):
        content = line if number else line.removeprefix(codecs.BOM_UTF8)
        yield content.decode("utf-8", "surrogateescape")


def parsed_json(content: str | bytes, *, unique: bool = False) -> Any:
    """What a JSON document holds, whoever wrote it; a number beyond all floats is infinite.

    Args:
        content: of the document.
        unique: refuse an object that has one name twice, of which the last would win.

    Raises:
        ValueError: it is no JSON, or nested more deeply than any of ours; the message is a
            sentence.
    """
    text = content if isinstance(content, str) else decoded(content)
    try:
        return (_UNIQUE if unique else _ANY).decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice[:60]!r} twice")
    return found


def _whole(digits: str) -> int | float:
    """A whole number; what no float can hold is infinite, as 1e400 is. (Python would count on, and
    fail wherever such a number meets another.)"""
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


_MOST_DIGITS = 308
"""The largest float has a digit more."""

_ANY = json.JSONDecoder(parse_int=_whole)
_UNIQUE = json.JSONDecoder(parse_int=_whole, object_pairs_hook=_without_repeats)


def read_json(path: Path, *, most: int = LARGEST_BYTES, unique: bool = False) -> Any:
    """What a JSON file holds; raises as `read_text` and `parsed_json`."""
    return parsed_json(read_text(path, most=most), unique=unique)
