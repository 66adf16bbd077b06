"""Pages for people, each one HTML file that needs nothing else: Jinja2 templates and one style."""

import base64
import datetime
import functools
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cvt_cli.base.package import DATA
from cvt_cli.base.text import as_utf8, counted, threshold
from cvt_cli.prediction import shareable
from cvt_cli.spec.preprocessing import Preprocessing

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup

SMALL_PIXELS = 64
"""Pixels of a picture's longer side up to which it is enlarged in squares, not blurred."""

_ENGINES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
_ACTIVATIONS = {"gelu": "GELU", "quick_gelu": "QuickGELU"}


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    def writable(value: Any) -> Any:
        """Text without what UTF-8 lacks, as file names may have it."""
        return as_utf8(value) if type(value) is str and not value.isascii() else value

    environment = Environment(
        loader=FileSystemLoader(DATA / "templates", encoding="utf-8"),
        auto_reload=False,
        autoescape=True,
        undefined=StrictUndefined,
        finalize=writable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["breakable"] = _breakable
    environment.filters["percent"] = percent
    environment.filters["count"] = "{:,}".format
    environment.filters["threshold"] = threshold
    environment.filters["images"] = functools.partial(counted, noun="image")
    environment.filters["short_count"] = short_count
    return environment


def template(name: str) -> "Template":
    """A page of the package; what is put into it is escaped."""
    return _environment().get_template(name)


def about(conditions: Mapping[str, Any], **more: str | None) -> list[tuple[str, str]]:
    """How a page came about, as terms and what there is to say of them.

    Args:
        conditions: of the result, as the documented JSON keys.
        more: further terms, after those of the model; None is left out.
    """
    return [(term, text) for term, text in _about(conditions, more) if text]


def _about(
    conditions: Mapping[str, Any], more: Mapping[str, str | None]
) -> Iterator[tuple[str, str | None]]:
    revision, weights = conditions["revision"], conditions.get("weights_sha256")
    yield "Model", shareable.shown(str(conditions["model"]))
    yield "Commit", revision and revision[:12]
    yield "Weights", weights and f"SHA-256 {weights[:12]}…"
    for term, text in more.items():
        yield term.replace("_", " ").capitalize(), text
    yield "Preprocessing", _described(Preprocessing(**conditions["preprocessing"]))
    yield "Activation", _ACTIVATIONS.get(conditions["activation"], conditions["activation"])
    engine = _ENGINES.get(conditions["engine"], conditions["engine"])
    yield "Engine", f"{engine}, {conditions['precision']}"
    yield "Device", f"{conditions['device']}, {conditions['hardware']}"
    yield "Command", shareable.command()
    yield "Date", now().strftime("%Y-%m-%d %H:%M %Z").strip()
    yield "Version", f"cvt {conditions['version']}"


def _described(how: Preprocessing) -> str:
    size = f"{how.height}x{how.width}"
    if how.resize == "squash":
        return f"resized to {size} pixels, whatever the proportions ({how.interpolation})"
    if how.resize == "pad":
        return f"fitted into {size} pixels, the rest filled with a colour ({how.interpolation})"
    return (
        f"shorter side resized to {how.shorter_side} pixels, then a centre crop of {size} "
        f"({how.interpolation})"
    )


def now() -> datetime.datetime:
    """The time, in this machine's zone."""
    return datetime.datetime.now().astimezone()


def images(n: int) -> str:
    """So many images, in words."""
    return "1 image" if n == 1 else f"{n:,} images"


def classes(n: int) -> str:
    """So many classes, in words."""
    return "1 class" if n == 1 else f"{n:,} classes"


def short_count(n: int, digits: int = 4) -> str:
    """A count of at most so many digits exactly, a larger one as "2.2k" or "1.3M"."""
    if n < 10**digits:
        return str(n)
    short, unit = (n / 1e3, "k") if n < 999_500 else (n / 1e6, "M")
    return f"{short:.1f}{unit}" if short < 9.95 else f"{short:.0f}{unit}"


def percent(share: float | None, digits: int = 0) -> str:
    """A fraction in per cent; that of nothing is no number."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def jpeg_size(picture: bytes) -> tuple[int, int]:
    """Width and height of a JPEG that this tool made, in pixels."""
    place = 2
    while not 0xC0 <= picture[place + 1] <= 0xC2:  # segments before the frame's head
        place += 2 + int.from_bytes(picture[place + 2 : place + 4])
    height, width = picture[place + 5 : place + 7], picture[place + 7 : place + 9]
    return int.from_bytes(width), int.from_bytes(height)


def _data_uri(picture: bytes, kind: str) -> "Markup":
    """A picture as an address that holds it: ``kind`` is "png" or "jpeg"."""
    from markupsafe import Markup

    # Base64 has no character that would be escaped, and is too long to search for one.
    return Markup(f"data:image/{kind};base64,{base64.b64encode(picture).decode()}")


def _breakable(path: str) -> "Markup":
    """A path that is broken between its words where it is too long for a line."""
    from markupsafe import Markup, escape

    words = re.split(r"(?<=[/\\_])(?=[^/\\_])", as_utf8(path))
    return Markup("<wbr>").join(map(escape, words))
