"""What a file that ``cvt export`` wrote says of itself, read without the runtime that it is for.

ONNX keeps it as metadata properties, OpenVINO as run-time information of the ``.xml``, PyTorch's
``.pt2`` as an extra file, safetensors in its header; everywhere as the same texts by name, so that
a plain program can use them too.
"""

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, get_args
from xml.etree import ElementTree

from cvt_cli.base import text
from cvt_cli.base.errors import CheckpointError, CvtError, UsageError
from cvt_cli.base.limits import LARGEST_DESCRIPTION_BYTES
from cvt_cli.base.package import __version__
from cvt_cli.checkpoints import folders, headers
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.spec.config import SMALLEST_SIZE, Activation, CvTConfig, Size, shown
from cvt_cli.spec.formats import FORMATS, FilePrecision, GraphFormat, by_suffix, format_of
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing, Resize

PIXELS = "pixels"
"""Name of the input of a file with preprocessing inside; else it is `images`."""

OPENVINO_SECTION = "cvt"
"""The section of an ``.xml``'s run-time information that is ours."""

PT2_FILE = "cvt.json"
"""Name of the extra file in a ``.pt2``."""

BIN_HASH = "bin_sha256"
"""Name in that section of the SHA-256 of the ``.bin`` that belongs to the ``.xml``."""

_VERSION = "cvt_cli_version"
_METADATA_PROPS = 14
"""Number of ModelProto's field with the metadata, in ONNX's own definition (onnx.proto)."""


@dataclass(frozen=True)
class Record:
    """What one needs to know to feed an exported file and to understand its answers."""

    model: str  # the checkpoint, as the user called it
    source: str  # its hub repository, else "cvt-cli" for a part of this package, else a file's name
    revision: str | None  # commit of the hub repository
    weights_sha256: str | None  # of the file that the tensors are from
    license: str | None
    config: CvTConfig
    labels: Labels
    preprocessing: Preprocessing
    preprocessing_inside: bool = False  # the file takes uint8 RGB (B, H, W, 3) of any size
    precision: FilePrecision = "fp32"
    dynamic_size: bool = False  # the file takes images of any height and width
    version: str = __version__  # of this project
    bin_sha256: str | None = field(default=None, compare=False)  # of an .xml: its .bin's

    def to_strings(self) -> dict[str, str]:
        """The texts by name that every format keeps; what is not known is empty."""
        names = self.labels
        config = folders.transformers_config(self.config, names, self.version)
        del config["id2label"], config["label2id"]
        return {
            _VERSION: self.version,
            "model": self.model,
            "source": self.source,
            "revision": self.revision or "",
            "weights_sha256": self.weights_sha256 or "",
            "license": self.license or "",
            "activation": self.config.activation,
            "classes": json.dumps(names.names, ensure_ascii=False),
            "wnids": json.dumps(names.wnids) if names.wnids else "",
            **self._task(),
            "preprocessing": json.dumps(self.preprocessing.to_json()),
            "preprocessing_inside": json.dumps(self.preprocessing_inside),
            "precision": self.precision,
            "dynamic_size": json.dumps(self.dynamic_size),
            "config": json.dumps(config),
        }

    def _task(self) -> dict[str, str]:
        """Said where an image may have several classes: sigmoids, and the least that counts."""
        if self.labels.thresholds is None:
            return {}
        return {"task": "multi_label", "thresholds": json.dumps(self.labels.thresholds)}

    @classmethod
    def from_strings(cls, texts: Mapping[str, str]) -> "Record":
        """Read what `to_strings` gives.

        Raises:
            KeyError, ValueError, TypeError, ConfigError: it is something else.
        """
        names = tuple(text.parsed_json(texts["classes"]))
        wnids = tuple(text.parsed_json(texts["wnids"])) if texts["wnids"] else None
        if not all(isinstance(name, str) for name in (*names, *(wnids or ()))):
            raise ValueError("a class name is not text")
        labels = Labels(names, wnids)
        described = text.parsed_json(texts["config"])
        described["id2label"] = dict(enumerate(names))
        config, said = folders.config_from_transformers(described)
        labels = replace(labels, thresholds=said.thresholds)
        preprocessing = text.parsed_json(texts["preprocessing"])
        for name in ("mean", "std"):
            preprocessing[name] = tuple(preprocessing[name])
        if texts["precision"] not in get_args(FilePrecision):
            raise ValueError(f"there is no precision `{shown(texts['precision'])}`")
        return cls(
            texts["model"],
            texts["source"],
            texts["revision"] or None,
            texts["weights_sha256"] or None,
            texts["license" if "license" in texts else "licence"] or None,  # as 0.1 wrote it
            config,
            labels,
            Preprocessing(**preprocessing),
            _truth(texts["preprocessing_inside"]),
            texts["precision"],  # type: ignore[arg-type]
            _truth(texts["dynamic_size"]),
            texts[_VERSION],
            texts.get(BIN_HASH) or None,
        )

    @property
    def described(self) -> CheckpointConfig:
        """What the file is, as of any checkpoint."""
        return CheckpointConfig(self.config, self.labels, self.preprocessing)

    def at(self, size: Size | None, path: Path) -> "Record":
        """The same for images of another height and width.

        Raises:
            UsageError: the file takes its own size alone.
        """
        own = self.preprocessing.size
        if size is None or size == own:
            return self
        if not self.dynamic_size:
            other = "--dynamic-size"
            if self.preprocessing_inside:
                other += " instead of --with-preprocessing"
            raise UsageError(
                f"`{path}` takes {own} pixels only, not {size}",
                hint=f"export the checkpoint again with --res {size}, or with {other}",
            )
        least = self.config.smallest_traced if by_suffix(path) == "pt2" else SMALLEST_SIZE
        if min(size) < least:
            raise UsageError(
                f"`{path}` takes at least {least} pixels, not {size}",
                hint=f"give --res {least} or more, or export the checkpoint as .onnx",
            )
        return replace(self, preprocessing=self.preprocessing.with_size(size))

    def refuse_resizing(self, resize: Resize | None, path: Path) -> None:
        """Raises UsageError if a way to resize is asked for, and the file does it itself."""
        if resize is not None and self.preprocessing_inside:
            raise UsageError(
                f"--resize {resize} has no effect: `{path}` resizes images itself, to "
                f"`{self.preprocessing.resize}`",
                hint="export the checkpoint with `--with-preprocessing --resize`, or without",
            )

    def refuse_other(self, activation: Activation | None, path: Path) -> None:
        """Raises UsageError for an activation that is not the one that the file computes."""
        own = self.config.activation
        if activation not in (None, own):
            raise UsageError(
                f"`{path}` computes `{own}`, not `{activation}`",
                hint=f"export the checkpoint again with --activation {activation}",
            )


def _truth(value: str) -> bool:
    return {"true": True, "false": False}[value]


UNREADABLE: tuple[type[Exception], ...] = (
    *(OSError, EOFError, LookupError, OverflowError, NotImplementedError, RuntimeError),
    *(ValueError, zipfile.BadZipFile, zlib.error, ElementTree.ParseError),
)
"""What reading damaged files raises, encrypted archives and unknown ways of packing too."""


def read(path: Path) -> Record:
    """What a graph file says of itself.

    Raises:
        CheckpointError: it is damaged, or another tool wrote it.
    """
    readers: dict[GraphFormat, Callable[[Path], dict[str, str]]] = {
        "onnx": _read_onnx,
        "openvino": _read_openvino,
        "pt2": _read_pt2,
    }
    form = format_of(path)
    assert form is not None
    try:
        texts = readers[form](path)
    except UNREADABLE as error:
        raise CheckpointError(
            f"`{path}` is damaged, or not a file of format {form}: {error}"
        ) from None
    if _VERSION not in texts:
        raise CheckpointError(
            f"`{path}` was not written by `cvt export`: it has no metadata about "
            "preprocessing and classes",
            hint="export it again from its checkpoint: "
            f"cvt export MODEL --format {form} --output FILE{FORMATS[form].suffix}",
        )
    return _record(texts, path)


def of_safetensors(path: Path) -> Record | None:
    """What a safetensors file says of itself; None where another tool wrote it.

    Raises:
        CheckpointError: the file or what it says is damaged.
    """
    texts = headers.safetensors_header(path).metadata
    return _record(texts, path) if _VERSION in texts else None


_NOT_OURS: tuple[type[Exception], ...] = (
    *(LookupError, ValueError, TypeError, AttributeError, ArithmeticError, RecursionError),
    CvtError,
)
"""What reading texts raises that are no `Record`'s."""


def _record(texts: Mapping[str, str], path: Path) -> Record:
    try:
        return Record.from_strings(texts)
    except _NOT_OURS as error:
        raise CheckpointError(
            f"the metadata in `{path}` is damaged, or from another version "
            f"({texts[_VERSION]}) of `cvt export`: {error!r}"
        ) from None


def _read_openvino(path: Path) -> dict[str, str]:
    if (size := path.stat().st_size) > LARGEST_DESCRIPTION_BYTES:
        raise ValueError(f"it has {size:,} bytes, where the largest CvT's has some million")
    section = ElementTree.parse(path).getroot().find(f"rt_info/{OPENVINO_SECTION}")
    return {} if section is None else {entry.tag: entry.get("value", "") for entry in section}


def _read_pt2(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(f"/extra/{PT2_FILE}"):
                content = text.parsed_json(unpacked(archive, info))
                if not isinstance(content, dict):
                    raise ValueError(f"its `{PT2_FILE}` holds no texts by name")
                return {key: str(value) for key, value in content.items()}
    return {}


def unpacked(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """A part of a ``.pt2`` that describes it; raises ValueError if that is too large to be one."""
    if info.file_size > LARGEST_DESCRIPTION_BYTES:
        raise ValueError(f"`{info.filename}` in it has {info.file_size:,} bytes")
    return archive.read(info)


def _read_onnx(path: Path) -> dict[str, str]:
    """The metadata properties of an ONNX file, passing over its graph.

    Protocol Buffers are fields one after another: a number, a kind, and a value or its length
    (protobuf.dev/programming-guides/encoding). A runtime would read all weights for these texts.
    """
    found, left = {}, LARGEST_DESCRIPTION_BYTES
    with path.open("rb") as file:
        for pair in _metadata(file):
            left -= len(pair)
            if left < 0:
                raise ValueError(f"its metadata have more than {LARGEST_DESCRIPTION_BYTES:,} bytes")
            texts = dict(_fields(io.BytesIO(pair), {1, 2}))
            found[texts.get(1, b"").decode()] = texts.get(2, b"").decode()
    return found


def _metadata(file: BinaryIO) -> Iterator[bytes]:
    return (value for _, value in _fields(file, {_METADATA_PROPS}))


def _fields(file: BinaryIO, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that hold bytes and have one of these numbers."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    while file.tell() < end:
        key = _varint(file)
        number, kind = key >> 3, key & 7
        if kind == 0:
            _varint(file)
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"a field of kind {kind}")
        length = {1: 8, 5: 4}[kind] if kind != 2 else _varint(file)
        if length > end - file.tell():
            raise ValueError("it is cut short")
        if kind == 2 and number in wanted:
            yield number, file.read(length)
        else:
            file.seek(length, io.SEEK_CUR)


def _varint(file: BinaryIO) -> int:
    value = shift = 0
    while True:
        (byte,) = file.read(1) or _cut_short()
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise ValueError("a number without end")


def _cut_short() -> bytes:
    raise ValueError("it is cut short")
