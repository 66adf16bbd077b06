"""What is known of a checkpoint besides its own files: ``card.json`` in its folder.

    {"version": 1,
     "training": what `cvt finetune` did, or null,
     "results": [{"kind": "evaluation" | "benchmark" | "export", "added": a date, "document": …}]}

The card is drawn from it. It stays on this machine: it is not sent to a hub.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cvt_cli.base import files, text
from cvt_cli.base.errors import CheckpointError, DataError
from cvt_cli.base.package import __version__

RECORD_FILE = "card.json"

RECORD_VERSION = 1

Kind = Literal["evaluation", "benchmark", "export"]

_KEYS: dict[Kind, frozenset[str]] = {
    "evaluation": frozenset(
        ("data", "n", "n_failed", "classes", "weights_sha256", "classes_sha256", "engine",
         "precision", "hardware", "preprocessing", "version", "images_per_sec")
    ),
    "benchmark": frozenset(("rows", "rounds", "versions", "macs", "height", "width", "hardware")),
    "export": frozenset(("file", "format", "bytes", "weights_sha256", "verification", "speed")),
}  # fmt: skip
"""What tells the documents of our commands apart, and what a card needs of them."""

_LEFT_OUT = ("confusion_matrix", "record")
"""Of an evaluation: as many cells as two classes of a thousand have, and what is known anyway."""

MOST_CLASSES = 50
"""Of which a card has a line each; of more it has the worst and the best."""


@dataclass(frozen=True)
class Subject:
    """What a result must be of, to be in a card."""

    name: str
    weights_sha256: str | None  # None where the weights are not on this machine
    classes_sha256: str
    macs: int
    preprocessing: Mapping[str, Any]
    activation: str

    @property
    def size(self) -> dict[str, int]:
        """Of the network's input, by its names in results."""
        return {name: self.preprocessing[name] for name in ("height", "width")}


@dataclass(frozen=True)
class Record:
    """What is known of a checkpoint besides its own files."""

    training: Mapping[str, Any] | None = None
    results: tuple[Mapping[str, Any], ...] = field(default=())

    def of(self, kind: Kind) -> list[dict[str, Any]]:
        """The results of one kind, the oldest first."""
        return [dict(one["document"]) for one in self.results if one["kind"] == kind]

    def write(self, folder: Path) -> None:
        """Write it into the checkpoint's folder; raises CvtError if that cannot be."""
        content = {
            "version": RECORD_VERSION,
            "training": self.training,
            "results": list(self.results),
        }
        files.write_text(folder / RECORD_FILE, json.dumps(content, indent=1) + "\n")


def read(folder: Path) -> Record:
    """The record of a checkpoint's folder; an empty one where there is none.

    Raises:
        CheckpointError: it is damaged, or of a newer version.
    """
    path = folder / RECORD_FILE
    hint = how_to_mend(folder)
    try:
        found = text.read_json(path)
        version = found["version"]
        if version != RECORD_VERSION:
            raise CheckpointError(
                f"`{path}` is of version {json.dumps(version)}; this version of cvt reads "
                f"version {RECORD_VERSION}",
                hint=hint,
            )
        results = tuple(found["results"])
        for one in results:
            if one["kind"] not in _KEYS or _KEYS[one["kind"]] - set(one["document"]):
                raise ValueError(f"it holds a damaged result of kind {one['kind']!r}")
        return Record(found["training"], results)
    except FileNotFoundError:
        return Record()
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}", hint=hint) from None


def how_to_mend(folder: Path) -> str:
    """What to do about a damaged record."""
    path = folder / RECORD_FILE
    return f"move `{path}` away; what it held can be added again: cvt card FOLDER --add FILE"


def documents_in(path: Path) -> list[dict[str, Any]]:
    """The results that a JSON file holds: one, or a list of them as of several models.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        found = text.read_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"`{path}` cannot be read as JSON: {reason}") from None
    documents = found if isinstance(found, list) else [found]
    if not documents or not all(isinstance(one, dict) for one in documents):
        raise DataError(f"`{path}` holds no result of a command of cvt")
    return documents


def kind_of(document: Mapping[str, Any], source: str) -> Kind:
    """Of which command a result is.

    Raises:
        DataError: of none, it lacks something, or a newer version wrote it.
    """
    newer = _version_in(document)
    if newer is not None and _parts(newer) > _parts(__version__):
        raise DataError(
            f"{source} was written by version {newer} of cvt, which is newer than this one "
            f"({__version__})",
            hint="add it with the version of cvt that wrote it",
        )
    lacking = {kind: keys - set(document) for kind, keys in _KEYS.items()}
    kind, missing = min(lacking.items(), key=lambda item: len(item[1]) / len(_KEYS[item[0]]))
    if not missing:
        return kind
    if len(missing) > len(_KEYS[kind]) / 2:
        raise DataError(
            f"{source} is not the result of a command that a card takes",
            hint="it takes what `--json FILE.json` of cvt evaluate and cvt benchmark writes, and "
            "the .json beside an exported file",
        )
    raise DataError(
        f"{source} is a damaged result of `cvt {_COMMANDS[kind]}`: it has no "
        f"{', '.join(f'`{name}`' for name in sorted(missing))}"
    )


_COMMANDS = {"evaluation": "evaluate", "benchmark": "benchmark", "export": "export"}


def _version_in(document: Mapping[str, Any]) -> str | None:
    versions = document.get("versions")
    found = versions.get("cvt-cli") if isinstance(versions, dict) else document.get("version")
    return found if isinstance(found, str) else None


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def with_results(
    record: Record,
    subject: Subject,
    documents: Sequence[tuple[str, Mapping[str, Any]]],
    added: str,
    *,
    overwrite: bool = False,
) -> tuple[Record, list[str]]:
    """The record with more results in it.

    A result takes the place of an earlier one of the same: data and part of it, architecture,
    exported file.

    Args:
        record: as it is.
        subject: what they must be of.
        documents: each with what it is called in messages.
        added: the date.
        overwrite: results of the same data's name, but other images, may be replaced.

    Returns:
        The record, and a sentence for each result that took the place of another.

    Raises:
        DataError: see `kind_of`; or a result is of other weights or classes, of another
            architecture or size, or of other images under the same name.
    """
    results, said = list(record.results), []
    for source, document in documents:
        kind = kind_of(document, source)
        refuse_other(kind, document, subject, source)
        kept = {k: v for k, v in document.items() if k not in _LEFT_OUT}
        if isinstance(kept.get("risk_coverage"), dict):
            kept["risk_coverage"] = {
                k: v for k, v in kept["risk_coverage"].items() if k != "points"
            }
        entry = {"kind": kind, "added": added, "document": kept}
        place = next((i for i, one in enumerate(results) if _same(one, entry)), None)
        if place is None:
            results.append(entry)
            continue
        before = results[place]["document"]
        if kind == "evaluation" and not overwrite:
            _refuse_other_images(before, kept, source)
        results[place] = entry
        said.append(f"{source} takes the place of what was there of {_about(kind, kept)}")
    return Record(record.training, tuple(results)), said


def without_other_weights(record: Record, subject: Subject) -> tuple[Record, list[str]]:
    """The record without results of other weights, such as of an earlier best epoch, and a
    sentence for each that is left out."""
    kept, said = [], []
    for one in record.results:
        document = one["document"]
        found = document.get("weights_sha256")
        if subject.weights_sha256 and found and found != subject.weights_sha256:
            said.append(
                f"a result of {_about(one['kind'], document)} is left out: it is of the weights "
                f"{found[:12]}…, and these are {subject.weights_sha256[:12]}…"
            )
        else:
            kept.append(one)
    return Record(record.training, tuple(kept)), said


def _about(kind: Kind, document: Mapping[str, Any]) -> str:
    if kind == "evaluation":
        part = f" (part {document['split']})" if document.get("split") else ""
        return f"`cvt evaluate` on `{document['data']}`{part}"
    if kind == "export":
        return f"`cvt export` to `{Path(document['file']).name}`"
    return f"`cvt benchmark` on {document['hardware']}"


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two results are of the same, so that the later one is the one that counts."""
    if one["kind"] != other["kind"]:
        return False
    names = {
        "evaluation": ("data", "split", "exif", "engine", "precision"),
        "benchmark": ("device", "hardware", "height", "width"),
        "export": ("file",),
    }[one["kind"]]
    return all(one["document"].get(name) == other["document"].get(name) for name in names)


def refuse_other(kind: Kind, document: Mapping[str, Any], subject: Subject, source: str) -> None:
    """Raises DataError if a result is not of this model, by what it was measured under."""
    differs = []
    if kind == "benchmark":
        differs += _differences(document, {"macs": subject.macs, **subject.size})
    else:
        found, own_hash = document["weights_sha256"], subject.weights_sha256
        if own_hash is None:
            raise DataError(
                f"{source} cannot be added: the weights of `{subject.name}` are not here",
                hint=f"cvt download {subject.name}",
            )
        if found != own_hash:
            differs.append(
                f"weights with SHA-256 {str(found)[:12]}…, where the model has {own_hash[:12]}…"
            )
        classes = document.get("classes_sha256", subject.classes_sha256)
        if classes != subject.classes_sha256:
            differs.append("other class names, or these in another order")
        if kind == "evaluation":  # of an export they are those of the file, which may be another
            differs += _differences(document, {"activation": subject.activation})
            told = document["preprocessing"]
            told = told if isinstance(told, Mapping) else {}
            differs += [f"preprocessing {one}" for one in _differences(told, subject.preprocessing)]
    if differs:
        raise DataError(
            f"{source} is not a result of `{subject.name}`: it is of {'; of '.join(differs)}",
            hint=f"measure it: cvt {_COMMANDS[kind]} … --card, or name the model that it is of",
        )


def _differences(document: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    """What of a result is otherwise than of the model, each as a phrase."""
    cropped = own.get("resize") == "crop"  # else no crop's share has an effect
    return [
        f"`{name}` {json.dumps(document.get(name))}, where the model has {json.dumps(value)}"
        for name, value in own.items()
        if not _alike(document.get(name), value) and (cropped or name != "crop_pct")
    ]


def _alike(one: Any, other: Any) -> bool:
    """Whether two JSON values are the same, but for the last bits of numbers."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_alike, one, other))
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _refuse_other_images(before: Mapping[str, Any], now: Mapping[str, Any], source: str) -> None:
    """Raises DataError where the data of the same name hold other images than before."""
    differs = [
        f"{name} {_short(now.get(key))}, where the card has {_short(before.get(key))}"
        for name, key in (("images:", "n"), ("fingerprint", "fingerprint"))
        if before.get(key) is not None and now.get(key) is not None and before[key] != now[key]
    ]
    if differs:
        raise DataError(
            f"{source} is of other images than the result of `{now['data']}` that the card has: "
            f"{'; '.join(differs)}",
            hint="--overwrite puts it in the place of that one",
        )


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) > 12 else str(value)
