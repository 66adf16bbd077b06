"""What a result depends on, as a value: written beside whatever is kept, compared before use.

A kept thing (a file of answers, a run's state, features, a graph, a compiled blob) is used again
only under the conditions that it was made under. `Conditions` names them: the SHA-256 of the
weights and of the class names, preprocessing, activation, engine, the precision that ran, versions,
the data's fingerprint, the hashes of the files that decided something.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvt_cli.base import files, text
from cvt_cli.base.errors import CvtError, UsageError

_NAMES = ("model", "revision")
"""What a model is called, as typed: by another path, or moved, it is the same model."""

_LONGEST = 60
"""Characters of a value that a message shows."""


@dataclass(frozen=True)
class Conditions:
    """Conditions by name, as JSON has them.

    Names are stable: what is kept under one version is compared under the next. A name that only
    one side has is a difference, so that a new condition is never taken as met.
    """

    values: Mapping[str, Any]

    def __post_init__(self) -> None:
        # As they come back from a file: tuples are lists there.
        object.__setattr__(self, "values", json.loads(json.dumps(dict(self.values))))

    @property
    def key(self) -> str:
        """A SHA-256 of all of them, for the name of what is kept."""
        return json_hash(self.values)

    def differences(self, found: Mapping[str, Any]) -> list[str]:
        """What differs from the conditions that something was made under, a phrase each.

        The names of a model are compared only where no hash says that its weights are the same.
        """
        weights = self.values.get("weights_sha256")
        told = _NAMES if weights and found.get("weights_sha256") == weights else ()
        return [
            f"{name} {_shown(found, name)}, this run has {_shown(self.values, name)}"
            for name in dict.fromkeys([*self.values, *found])
            if name not in told
            and (name not in found or name not in self.values or found[name] != self.values[name])
        ]

    def refuse_other(self, path: Path, found: Mapping[str, Any], hint: str) -> None:
        """Raises UsageError, naming what differs, if something was made under other conditions.

        Args:
            path: of what was made.
            found: the conditions that it was made under.
            hint: what to do then.
        """
        if differences := self.differences(found):
            raise UsageError(f"`{path}` was made with {'; '.join(differences)}", hint=hint)

    def write(self, path: Path) -> None:
        """Write them beside a file that is kept; raises CvtError if that cannot be."""
        files.write_text(beside(path), json.dumps(self.values, indent=1) + "\n")


def beside(path: Path) -> Path:
    """Where the conditions of a kept file are written: ``FILE.conditions.json``."""
    return path.with_name(path.name + ".conditions.json")


def read(path: Path) -> dict[str, Any]:
    """The conditions of a kept file.

    Raises:
        CvtError: they are not there, or no conditions.
    """
    try:
        found = text.read_json(beside(path), most=64 * 1024**2)
        if isinstance(found, dict):
            return found
        reason = "it holds no JSON object"
    except FileNotFoundError:
        reason = "it does not exist"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise CvtError(
        f"`{beside(path)}`, which says how `{path}` was made, cannot be read: {reason}",
        hint="name another file, or move this one away",
    )


def names_hash(names: Iterable[str]) -> str:
    """A SHA-256 of names in their order, such as a model's classes."""
    return json_hash(list(names))


def json_hash(value: Any) -> str:
    """A SHA-256 of a value as JSON has it, whatever the order of its names."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "(none)"
    value = json.dumps(values[name], ensure_ascii=False)
    return value if len(value) <= _LONGEST else f"{value[: _LONGEST - 1]}…"
