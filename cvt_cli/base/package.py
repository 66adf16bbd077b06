"""This package itself: its version, and the folder of the data that it brings."""

import re
import shlex
from pathlib import Path

__version__ = "0.1.0"

DATA = Path(__file__).parents[1] / "data"
"""ImageNet's class list, the embedded checkpoint, images to verify exports on."""


def installing(extra: str) -> str:
    """The command that installs what an extra of this package brings.

    It names these packages: this one is on no registry, where somebody else may take its name.
    """
    from importlib.metadata import PackageNotFoundError, requires

    of_extra = re.compile(rf"""(.+?) *; *extra == ['"]{extra}['"]""")
    try:
        found = [
            match[1] for line in requires("cvt-cli") or () if (match := of_extra.fullmatch(line))
        ]
    except PackageNotFoundError:  # run from a copy that is not installed
        found = []
    return f"pip install {shlex.join(sorted(found) or [f'.[{extra}]'])}"
