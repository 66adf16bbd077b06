"""Pages for people, each one HTML file that needs nothing else: Jinja2 templates and one style."""

import base64
import functools
from typing import TYPE_CHECKING, Any

from cvt_cli.base.package import DATA
from cvt_cli.base.text import as_utf8

if TYPE_CHECKING:
    from jinja2 import Environment, Template


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    def writable(value: Any) -> Any:
        """Text without what UTF-8 lacks, as file names may have it."""
        return as_utf8(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        loader=FileSystemLoader(DATA / "templates", encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=writable,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment


def template(name: str) -> "Template":
    """A page of the package; what is put into it is escaped."""
    return _environment().get_template(name)


def data_uri(picture: bytes, kind: str) -> str:
    """A picture as an address that holds it: ``kind`` is "png" or "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
