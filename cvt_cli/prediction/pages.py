"""Pages for people, each one HTML file that needs nothing else: Jinja2 templates and one style."""

import base64
import functools
from typing import TYPE_CHECKING, Any

from cvt_cli.base.package import DATA
from cvt_cli.base.text import as_utf8

if TYPE_CHECKING:
    from jinja2 import Environment, Template
    from markupsafe import Markup


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
    return environment


def template(name: str) -> "Template":
    """A page of the package; what is put into it is escaped."""
    return _environment().get_template(name)


def _data_uri(picture: bytes, kind: str) -> "Markup":
    """A picture as an address that holds it: ``kind`` is "png" or "jpeg"."""
    from markupsafe import Markup

    # Base64 has no character that would be escaped, and is too long to search for one.
    return Markup(f"data:image/{kind};base64,{base64.b64encode(picture).decode()}")
