"""File formats of checkpoints and graphs, and the engines that run them: one row for each.

To add a format is to add a row here, what reads its metadata (`export_metadata`) and what writes it
(`export/write_graph.py`); which engine runs it, what it needs and what is impossible is asked here.
"""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cvt_cli.base import places
from cvt_cli.base.errors import UsageError, refuse_no_number

FormatName = Literal["onnx", "openvino", "pt2", "safetensors"]
GraphFormat = Literal["onnx", "openvino", "pt2"]  # of files that are run as they are

Runtime = Literal["onnxruntime", "openvino"]  # engines that run a graph without torch
EngineName = Literal["torch", "onnxruntime", "openvino"]
EngineChoice = Literal["auto", "torch", "onnxruntime", "openvino"]  # what follows --engine

Precision = Literal["fp32", "bf16", "fp16"]  # that a checkpoint is computed in
PrecisionChoice = Literal["auto", "fp32", "bf16", "fp16"]  # what follows --precision
AnswerPrecision = Literal["auto", "fp32", "bf16", "fp16", "int8"]  # where nothing is trained
FilePrecision = Literal["fp32", "fp16", "bf16", "int8"]  # of an exported file

PRECISIONS: dict[EngineName, tuple[Precision, ...]] = {
    "torch": ("fp32", "bf16", "fp16"),
    "onnxruntime": ("fp32",),
    "openvino": ("fp32", "bf16"),  # bf16 where the processor has it
}
"""What an engine computes a checkpoint in."""


@dataclass(frozen=True)
class Int8:
    """Computing a checkpoint in 8-bit integers, whose ranges are measured on images.

    Raises:
        UsageError: a value of another kind, or a loss that is no number from 0 on.
    """

    calibration: Path | None = None  # folder of these images, also as text; None are the package's
    max_drop: float | None = None  # percentage points of top-1 that may be lost on them

    def __post_init__(self) -> None:
        if isinstance(self.calibration, str):
            object.__setattr__(self, "calibration", Path(places.expanded(self.calibration)))
        if not isinstance(self.calibration, Path | None):
            raise UsageError(
                f"Int8's calibration is {self.calibration!r}; accepted is a folder of images"
            )
        if self.max_drop is not None:
            refuse_no_number("Int8's max_drop", self.max_drop, whole=False)
            if not 0 <= self.max_drop < math.inf:
                raise UsageError(
                    f"Int8's max_drop is {self.max_drop}; accepted are numbers from 0 on"
                )


@dataclass(frozen=True)
class Format:
    """A format that `cvt export` writes."""

    suffix: str
    engines: tuple[EngineName, ...] = ()  # those that run it, its own first; none of mere tensors
    extra: str | None = None  # the extra of this package that brings all that it needs
    packages: tuple[str, ...] = ()  # what writes and runs it
    preprocessing_package: str | None = None  # needed for --with-preprocessing beside these
    int8_package: str | None = None  # needed for int8 beside these; an extra has its name
    impossible: Mapping[FilePrecision, str] = field(default_factory=dict)  # with the reason
    second_suffix: str | None = None  # of the file that belongs to it, beside it


FORMATS: dict[FormatName, Format] = {
    "onnx": Format(
        ".onnx",
        ("onnxruntime", "openvino"),
        "onnxruntime",
        ("onnxruntime", "onnx"),
        preprocessing_package="onnxscript",
        impossible={
            "bf16": "ONNX Runtime has no bfloat16 convolution on a CPU, and loads no such file"
        },
    ),
    "openvino": Format(
        ".xml",
        ("openvino",),
        "openvino",
        ("openvino", "onnx"),
        preprocessing_package="onnxscript",
        int8_package="nncf",
        second_suffix=".bin",
    ),
    "pt2": Format(
        ".pt2",
        ("torch",),
        impossible={
            "int8": "PyTorch's own quantisation is in a package, torchao, that this tool does not "
            "use"
        },
    ),
    "safetensors": Format(".safetensors"),
}


def by_suffix(path: Path) -> FormatName | None:
    """The format that a file's name says."""
    suffix = path.suffix.lower()
    return next((name for name, form in FORMATS.items() if form.suffix == suffix), None)


def format_of(path: Path) -> GraphFormat | None:
    """The format of an existing file, by its suffix; None for what is no graph."""
    found = by_suffix(path)
    return found if found and found != "safetensors" and path.is_file() else None


def second_file(path: Path) -> Path | None:
    """The file that belongs to another, of an ``.xml`` the ``.bin``; None of most."""
    found = by_suffix(path)
    suffix = FORMATS[found].second_suffix if found else None
    return path.with_suffix(suffix) if suffix else None


def _as_onnx(output: Path) -> Path:
    if output.stem in ("", ".."):  # of a folder that is not named
        return output / "model.onnx"
    return output.with_name(f"{output.stem}.onnx")


def resolve(form: FormatName | None, output: Path) -> FormatName:
    """The format that is asked for, by name or by the suffix of the file.

    Raises:
        UsageError: neither says it, or one says another than the other.
    """
    said = by_suffix(output)
    if said and output.suffix != (suffix := FORMATS[said].suffix):  # some runtimes take no other
        raise UsageError(f"`{output}`: the suffix of {said} is written `{suffix}`")
    suffixes = ", ".join(f"`{form.suffix}` ({name})" for name, form in FORMATS.items())
    folder = "; safetensors also a folder, whose name has no suffix"
    if form is None:
        if said is None:
            raise UsageError(
                f"`{output}` does not say the format; accepted are {suffixes}{folder}",
                hint=f"for example --output {shlex.quote(str(_as_onnx(output)))}"
                + ("" if output.suffix else ", or --format safetensors for a folder"),
            )
        return said
    if said != form and not (form == "safetensors" and not output.suffix):
        raise UsageError(
            f"`{output}` does not have the suffix of {form}; accepted are {suffixes}{folder}"
        )
    return form
