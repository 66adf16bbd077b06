"""A checkpoint to a file that runs elsewhere, verified before it has its name."""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from cvt_cli.base import files, machine
from cvt_cli.base.errors import CheckpointError, CvtError, UsageError
from cvt_cli.base.package import installing
from cvt_cli.base.progress import Progress, Say
from cvt_cli.base.text import counted
from cvt_cli.checkpoints.export_metadata import Record
from cvt_cli.engines import runtimes
from cvt_cli.engines.protocol import Engine, prepared
from cvt_cli.export import benchmark, verification, write_graph
from cvt_cli.export.preprocessing_graph import InsidePreprocessing, require
from cvt_cli.export.verification import Parity, Pictures, Verification
from cvt_cli.model.engine import ExportedEngine, TorchEngine
from cvt_cli.model.weights import LoadedCheckpoint
from cvt_cli.spec.costs import costs
from cvt_cli.spec.formats import FORMATS, FilePrecision, GraphFormat, second_file

FAILED = ".failed"
"""Suffix of a file that differs too much from the checkpoint."""

SPEED_ROUNDS = 5

_TURN_SEC = 0.1
"""Each of the two computes at least this long in every round."""

_VERSIONS = ("cvt-cli", "torch", "onnx", "onnxruntime", "openvino", "nncf", "pillow")


@dataclass(frozen=True)
class Speed:
    """A file beside torch in float32 on the CPU: seconds of a call, medians of the rounds."""

    torch_sec: float
    file_sec: float
    ratios: tuple[float, float]  # least and largest of the rounds: how many times as fast
    ratio: float | None  # their median; None where the rounds do not agree


@dataclass(frozen=True)
class Exported:
    """A file, and what was measured of it."""

    path: Path  # ends in FAILED if it was not good enough
    form: GraphFormat
    engine: str
    record: Record
    verification: Verification
    speed: Speed  # of one image at a time
    verified_on: str  # the images that it was compared on, in words
    calibrated_on: int | None  # number of images that its ranges were measured on, for "int8"

    @property
    def bytes(self) -> int:
        """Size of the file in bytes; an ``.xml`` is counted with its ``.bin``."""
        return sum(path.stat().st_size for path in files_of(self.path))

    def refuse_if_failed(self) -> None:
        """Raises CvtError if it differs from the checkpoint by more than it may."""
        if not self.verification.passed:
            raise CvtError(
                f"the outputs of the file differ from torch's by more than the limit of "
                f"`{self.record.precision}`; it is kept as `{self.path}`",
                hint=f"the figures are above and in `{json_beside(self.path)}`; float "
                "precisions differ less; for --int8, calibrate on more images like those in use",
            )

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        record = self.record
        return {
            "file": str(self.path),
            "format": self.form,
            "engine": self.engine,
            "bytes": self.bytes,
            "model": record.model,
            "source": record.source,
            "revision": record.revision,
            "weights_sha256": record.weights_sha256,
            "license": record.license,
            "activation": record.config.activation,
            "num_classes": len(record.labels),
            "preprocessing": record.preprocessing.to_json(),
            "preprocessing_inside": record.preprocessing_inside,
            "precision": record.precision,
            "dynamic_size": record.dynamic_size,
            "calibration_images": self.calibrated_on,
            "verification": {"data": self.verified_on, **self.verification.to_json()},
            "speed": {
                "batch_size": 1,
                "rounds": SPEED_ROUNDS,
                "torch_latency_sec": self.speed.torch_sec,
                "latency_sec": self.speed.file_sec,
                "ratio": self.speed.ratio,
                "ratio_range": list(self.speed.ratios),
            },
            "versions": machine.versions(_VERSIONS),
        }


def check(form: GraphFormat, precision: FilePrecision, inside: bool, dynamic_size: bool) -> None:
    """Refuse what cannot be exported here; asked before a checkpoint is fetched.

    Raises:
        UsageError: no runtime takes it, or what makes or runs it is not installed.
    """
    row = FORMATS[form]
    if reason := row.impossible.get(precision):
        able = [name for name, f in FORMATS.items() if f.engines and "int8" not in f.impossible]
        raise UsageError(
            f"`{form}` is not exported in `{precision}`: {reason}",
            hint=f"every format takes `--precision fp32`; `--int8` works with {' and '.join(able)}",
        )
    if inside and dynamic_size:
        raise UsageError(
            "--with-preprocessing takes images of any size and resizes them; leave out "
            "--dynamic-size"
        )
    extra, packages = row.extra, list(row.packages)
    if inside and row.preprocessing_package:
        packages.append(row.preprocessing_package)
    if precision == "int8" and row.int8_package:
        extra = row.int8_package
        packages.append(extra)
    if missing := [package for package in packages if not runtimes.installed(package)]:
        raise UsageError(
            f"exporting to `{form}` needs {', '.join(f'`{name}`' for name in missing)}",
            hint=installing(extra) if extra else None,
        )


def refuse_unnamed(loaded: LoadedCheckpoint, model: str) -> None:
    """Raises CheckpointError if a checkpoint does not name its classes."""
    if not loaded.labels.named:
        raise CheckpointError(
            f"`{model}` has no names for its {counted(len(loaded.labels), 'class')}, so an "
            "exported file "
            "could not name its answers",
            hint="put a `config.json` with an `id2label` beside the weights",
        )


def export(
    loaded: LoadedCheckpoint,
    record: Record,
    form: GraphFormat,
    target: Path,
    workplace: Path,
    *,
    calibration: Pictures | None,
    verify_on: Pictures,
    say: Say,
    progress: Progress,
) -> Exported:
    """Write a file, verify it, and give it its name; or, if it is not good enough, FAILED.

    Beside it a ``.json`` has what was measured.

    Args:
        loaded: the checkpoint.
        record: what the file shall be.
        form: of the file.
        target: its path.
        workplace: a folder on the same file system, for what is made on the way.
        calibration: images for "int8".
        verify_on: images to compare on.
        say: takes what is being done.
        progress: of the comparison.

    Raises:
        UsageError: its preprocessing cannot be part of a file, or its size is too small for one.
        CvtError: it cannot be written, an image cannot be read, or it does not run.
    """
    if record.preprocessing_inside:
        require(record.preprocessing)
    least = record.config.smallest_traced
    if form == "pt2" and record.dynamic_size and min(record.preprocessing.size) < least:
        raise UsageError(
            f"a .pt2 of this network with --dynamic-size takes at least {least} pixels, and the "
            f"model's own size is {record.preprocessing.size}",
            hint=f"give --res {least} or more, or export to .onnx",
        )
    made = workplace / target.name
    say(
        f"writing `{target}`"
        + (f", calibrated on {counted(len(calibration), 'image')}" if calibration else "")
    )
    arrays = calibration and verification.Arrays(calibration, record.preprocessing)
    write_graph.write(loaded.model, record, form, made, arrays)
    say(f"checking it in its own runtime on {counted(len(verify_on), 'image')} and on noise")
    macs = costs(record.model, record.config, *record.preprocessing.size).macs
    file = open_file(form, made, record, macs)
    reference = TorchEngine(loaded.model, torch.device("cpu"), "fp32", macs)
    parity = _parity(form, record, workplace, verify_on) if record.preprocessing_inside else None
    sizes = 2 if record.dynamic_size else 1
    total = len(verify_on) + sizes * max(verification.BATCHES)
    with progress("verifying", total) as advance:
        found = verification.verify(reference, file, record, verify_on, parity, advance)
    speed = _in_turn(reference, file, record, progress)
    path = target if found.passed else target.with_name(target.name + FAILED)
    _rename(made, path)
    packaged = verify_on.paths[0].parent == verification.PACKAGED
    result = Exported(
        path, form, file.name, record, found, speed,
        f"{counted(len(verify_on), 'image')} " + ("of the package" if packaged else "given"),
        len(calibration) if calibration else None,
    )  # fmt: skip
    files.write_text(json_beside(path), json.dumps(result.to_json(), indent=2) + "\n")
    return result


def _in_turn(torch: Engine, file: Engine, record: Record, progress: Progress) -> Speed:
    """Time calls with one image, torch and the file in turn."""
    pixels = np.random.default_rng(0).integers(0, 256, (*record.preprocessing.size, 3), np.uint8)
    given = Image.fromarray(pixels)
    sides = [(one, prepared(one, given, record.preprocessing)[None]) for one in (torch, file)]
    counts = [max(1, round(_TURN_SEC / _seconds(*side, calls=1))) for side in sides]
    rounds: list[list[float]] = []
    with progress("timing", SPEED_ROUNDS, unit="turns") as advance:
        for _ in range(SPEED_ROUNDS):
            turn = []
            for (engine, array), calls in zip(sides, counts, strict=True):
                engine(array)  # what the other one left in the caches is gone
                turn.append(_seconds(engine, array, calls))
            rounds.append(turn)
            advance(1, "")
    ratios = [one / other for one, other in rounds]
    torch_sec, file_sec = (statistics.median(one) for one in zip(*rounds, strict=True))
    ratio = statistics.median(ratios) if benchmark.agree(ratios) else None
    return Speed(torch_sec, file_sec, (min(ratios), max(ratios)), ratio)


def _seconds(engine: Engine, array: NDArray[Any], calls: int) -> float:
    """How long a call takes, on the average of so many."""
    started = time.perf_counter()
    for _ in range(calls):
        engine(array)
    return (time.perf_counter() - started) / calls


def open_file(form: GraphFormat, path: Path, record: Record, macs: int) -> Engine:
    """An exported file in its own runtime, with the threads that one image of ``macs`` pays for.

    Raises:
        UsageError: that is not installed.
        CheckpointError: the file is damaged.
    """
    engine = FORMATS[form].engines[0]
    if engine == "torch":
        return ExportedEngine(path, record, macs)
    return runtimes.open_graph(engine, path, "auto", record, macs=macs)


def _parity(form: GraphFormat, record: Record, workplace: Path, pictures: Pictures) -> Parity:
    """Run the preprocessing alone, in the runtime of the file."""
    engine = FORMATS[form].engines[0]
    if engine == "torch":
        module = InsidePreprocessing(record.preprocessing)
        return verification.pixel_parity(
            record.preprocessing, lambda pixels: module(torch.tensor(pixels)).numpy(), pictures
        )
    run = runtimes.open_preprocessing(engine, workplace / write_graph.PREPROCESSING_FILE)
    return verification.pixel_parity(record.preprocessing, run, pictures)


def files_of(path: Path) -> list[Path]:
    """An exported file and what belongs to it: of an ``.xml`` the ``.bin``."""
    name = path.name.removesuffix(FAILED)
    second = second_file(path.with_name(name))
    return [second.with_name(second.name + path.name[len(name) :]), path] if second else [path]


def json_beside(path: Path) -> Path:
    """The file with what was measured of another."""
    return path.with_name(path.name + ".json")


def _rename(made: Path, path: Path) -> None:
    try:
        for source, target in zip(files_of(made), files_of(path), strict=True):
            files.rename(source, target)
    except OSError as error:
        raise files.unwritable(path, error) from error
