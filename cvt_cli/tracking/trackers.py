"""The tools that a run can be followed with, by name."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from cvt_cli.base import text
from cvt_cli.base.errors import UsageError
from cvt_cli.base.package import installing

FOLDER = "tracking"
"""Below the run: what each tool's process said, and which of the tool's runs it goes on with."""

CHOSEN_FILE = "trackers.json"


@dataclass(frozen=True)
class Tracker:
    """One of the tools."""

    packages: tuple[str, ...]  # as they are imported
    extra: str  # of this package, which installs it
    where: str  # what it writes to, unless the user's own settings say otherwise


TRACKERS = {
    "tensorboard": Tracker(("tensorboard",), "tensorboard", "events/ of the run"),
    "trackio": Tracker(("trackio",), "trackio", "Trackio's own folder; `trackio show` opens it"),
    "wandb": Tracker(
        ("wandb",), "wandb", "tracking/wandb/ of the run, unless you are logged in; `wandb sync`"
    ),
    "mlflow": Tracker(
        ("mlflow", "sqlalchemy", "alembic"),
        "mlflow",
        "mlflow.db here, unless MLFLOW_TRACKING_URI says otherwise; `mlflow ui` opens it",
    ),
}


def parsed(told: str) -> tuple[str, ...]:
    """The tools that ``--track`` names, with commas between.

    Raises:
        UsageError: one of them is not known, or not installed.
    """
    names = tuple(dict.fromkeys(word.strip() for word in told.split(",") if word.strip()))
    unknown = [name for name in names if name not in TRACKERS]
    if unknown or not names:
        raise UsageError(
            f"--track is `{told}`; accepted are {', '.join(TRACKERS)}, or several with commas"
        )
    for name in names:
        if missing := [p for p in TRACKERS[name].packages if find_spec(p) is None]:
            raise UsageError(
                f"--track {name} needs {' and '.join(f'`{package}`' for package in missing)}",
                hint=installing(TRACKERS[name].extra),
            )
    return names


def kept(run: Path) -> tuple[str, ...] | None:
    """The tools that a run was begun with; None where that is not known."""
    try:
        found = text.read_json(run / FOLDER / CHOSEN_FILE)
    except (OSError, ValueError):
        return None
    return tuple(name for name in found if name in TRACKERS) if isinstance(found, list) else None
