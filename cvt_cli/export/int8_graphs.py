"""A checkpoint as a graph in 8-bit integers: made once as `cvt export --int8` makes one, kept.

Imports torch only inside functions.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cvt_cli.base import files, locks, machine, places, stamps
from cvt_cli.base.conditions import Conditions, names_hash
from cvt_cli.base.errors import CvtError, ImageError, UsageError
from cvt_cli.base.text import counted
from cvt_cli.checkpoints import export_metadata
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.checkpoints.locate import Access
from cvt_cli.engines import runtimes
from cvt_cli.engines.parts import part_of
from cvt_cli.engines.protocol import Engine
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.export import prepared_graphs, quantise
from cvt_cli.export.quantise import Right
from cvt_cli.export.verification import MOST_CALIBRATION_IMAGES, PACKAGED, Arrays, Pictures, verify
from cvt_cli.spec.formats import FORMATS, GraphFormat, Int8, Runtime
from cvt_cli.spec.labels import Labels

if TYPE_CHECKING:
    from cvt_cli.model.network import CvT
    from cvt_cli.model.weights import LoadedCheckpoint


FORM_OF: Mapping[Runtime, GraphFormat] = {"onnxruntime": "onnx", "openvino": "openvino"}
"""The format of a graph in 8 bits that a runtime runs."""

_MAKERS: Mapping[Runtime, tuple[str, ...]] = {
    "onnxruntime": ("onnxruntime",),
    "openvino": ("openvino", "nncf"),
}
"""Packages that quantise; another version of them may make another graph."""

_MOST_VERIFIED = 32
"""Images on which logits are compared with float32's, which torch computes."""


def labels_of(pictures: Pictures, labels: Labels) -> list[int] | None:
    """The classes of pictures in folders that are named by class or WNID; None if some is not."""
    places_of: dict[str, list[int]] = {}
    for index, name in enumerate(labels.names):
        for known in {name, labels.wnid(index) or name}:
            places_of.setdefault(known, []).append(index)
    found = [places_of.get(path.parent.name, []) for path in pictures.paths]
    return [one[0] for one in found] if all(len(one) == 1 for one in found) else None


def _hash_of(picture: Path) -> str:
    """Of its file; raises ImageError if it cannot be read."""
    try:
        return stamps.hash_of(picture)
    except OSError as error:
        raise ImageError(f"`{picture}`: {(error.strerror or str(error)).lower()}") from None


def fingerprint(pictures: Pictures, max_drop: float | None, labels: Labels) -> str:
    """A hash of what a graph was calibrated on: contents, folders, and what may be lost of which
    classes, which decides the layers that stay in floats.

    Raises:
        ImageError: a picture cannot be read.
    """
    found = [f"{_hash_of(path)} {path.parent.name}" for path in pictures.paths]
    if max_drop is not None:
        found += [f"max drop {max_drop}", names_hash(labels.names)]
    return names_hash(found)


def ready(
    checkpoint: Checkpoint,
    said: CheckpointConfig,
    load: "Callable[[], LoadedCheckpoint]",
    macs: int,
    precision: str | Int8,
    engine: str,
    device: str,
    *,
    images: int,
    together: int,
    access: Access,
) -> ReadyModel:
    """A checkpoint that computes in 8-bit integers; the arguments as of `loading.load_classifier`.

    Args:
        checkpoint: which.
        said: its network, classes and preprocessing.
        load: gives its tensors.
        macs: of one image.
        precision: "int8", or with what is asked of it.
        engine: what follows ``--engine``.
        device: what follows ``--device``.
        images: how many there are to answer.
        together: how many of them are computed in one call.
        access: takes what is being done.

    Raises:
        UsageError: another device or engine is asked for, or what is needed is not installed.
        DataError, ImageError: there are no images to calibrate on, or one cannot be read.
        CvtError: it loses more than is allowed.
    """
    runtime: Runtime = "onnxruntime" if engine == "onnxruntime" else "openvino"
    able = engine in ("auto", runtime)
    if not able or device not in ("auto", "cpu"):
        what = f"--device {device}" if able else f"--engine {engine}"
        raise UsageError(
            f"{what} does not compute a checkpoint in `int8`; `--engine openvino` and "
            "`--engine onnxruntime` do, on the CPU"
        )
    runtimes.require(runtime)
    asked = precision if isinstance(precision, Int8) else Int8()
    if runtime == "onnxruntime" and asked.max_drop is not None:
        raise UsageError(
            "--max-drop has no effect with --engine onnxruntime", hint="use --engine openvino"
        )
    if asked.calibration is None and said.labels.several:
        raise UsageError(
            f"--precision int8 of `{checkpoint.name}` needs --calibration: thresholds decide its "
            "classes, and those hold for ranges that were measured on such images as it is given",
            hint="--calibration FOLDER, a few hundred of your own images, without labels",
        )
    if asked.max_drop is not None and said.labels.several:
        raise UsageError(
            f"--max-drop: it is of top-1, and an image may have several of `{checkpoint.name}`'s "
            "classes",
            hint="leave it out, and compare `cvt evaluate` in int8 and fp32",
        )
    part = part_of(together, images, macs)
    calibration = ""

    def prepared() -> Path:
        nonlocal calibration
        path, calibration = open_int8(checkpoint, said, load, asked, runtime, access)
        return path

    def opened(path: Path) -> Engine:
        return runtimes.open_graph(
            *(runtime, path, "auto", export_metadata.read(path)),
            macs=macs * together,
            part=part,
            say=access.say,
        )

    running = prepared_graphs.opened(prepared, opened)
    access.detail(f"engine {running.name}: it computes in int8")
    if asked.calibration is None:
        access.say(
            "int8 is calibrated on a few images of the package; --calibration FOLDER, with your "
            "own, keeps closer to fp32"
        )
    return ReadyModel(checkpoint, running, said, calibration)


def open_int8(
    checkpoint: Checkpoint,
    said: CheckpointConfig,
    load: "Callable[[], LoadedCheckpoint]",
    asked: Int8,
    runtime: Runtime,
    access: Access,
) -> tuple[Path, str]:
    """A checkpoint in 8 bits, made now if it is not kept, and a hash of what it was calibrated on.

    Args:
        checkpoint: which.
        said: its network, classes and preprocessing.
        load: gives its tensors.
        asked: the images, and what may be lost.
        runtime: that shall run it.
        access: takes what is being done.

    Raises:
        UsageError: what makes it is not installed.
        DataError, ImageError: there are no such images, or one cannot be read.
        CvtError: it loses more than is allowed, whatever layers stay in floats, or its logits are
            further from float32's than they may be.
    """
    folder = asked.calibration or PACKAGED
    pictures = Pictures.of(folder, MOST_CALIBRATION_IMAGES)
    calibration = fingerprint(pictures, asked.max_drop, said.labels)
    graph, made_under = prepared_graphs.graph_of(checkpoint, said)
    conditions = Conditions(
        {
            **made_under.values,
            "precision": "int8",
            "preprocessing": said.preprocessing.to_json(),
            "calibration": calibration,
            "max_drop": asked.max_drop,
            # What may be lost was measured on it, and so computed.
            "processor": machine.processor(),
            "floats": runtimes.floats_in("int8") if runtime == "openvino" else "fp32",
            **{name: machine.version_of(name) for name in _MAKERS[runtime]},
        }
    )
    form = FORMATS[FORM_OF[runtime]]
    path = places.graph_path(graph.parent.parent.name, conditions)
    kept = path.with_suffix(form.suffix)
    parts = [kept] if form.second_suffix is None else [path.with_suffix(form.second_suffix), kept]
    if not all(stamps.is_right(part) for part in parts):
        quantise.require(runtime)
        what = f"quantising {checkpoint.name}"
        with locks.locked(kept.with_name("prepare.lock"), what, access.say):
            if not all(stamps.is_right(part) for part in parts):
                access.say(
                    f"{what}, calibrated on {counted(len(pictures), 'image')} "
                    + ("of the package" if asked.calibration is None else f"of `{folder}`")
                    + ", once"
                )
                about = checkpoint, said, load().model, pictures, asked, runtime
                _make(parts, conditions, *about, access)
    return kept, calibration


def _verify(made: Path, model: "CvT", pictures: Pictures, runtime: Runtime) -> None:
    """Raises CvtError if logits are further from float32's than `TOLERANCES` allow in int8."""
    import torch

    from cvt_cli.model.engine import TorchEngine

    record = export_metadata.read(made)
    file = runtimes.open_graph(runtime, made, "auto", record)
    reference = TorchEngine(model, torch.device("cpu"), "fp32")
    some = Pictures(pictures.paths[:_MOST_VERIFIED])
    found = verify(reference, file, record, some, None, lambda *_: None)
    if not found.passed:
        off = found.images.rms_difference / found.images.spread
        raise CvtError(
            f"in int8 the logits of `{record.model}` differ from those in fp32 by {off:.2f} of "
            f"their standard deviation on {counted(len(some), 'image')}; accepted is "
            f"{found.tolerance:g}",
            hint="calibrate on more images like those in use (--calibration FOLDER), or use "
            "--precision fp32",
        )


def _make(
    parts: Sequence[Path],
    conditions: Conditions,
    checkpoint: Checkpoint,
    said: CheckpointConfig,
    model: "CvT",
    pictures: Pictures,
    asked: Int8,
    runtime: Runtime,
    access: Access,
) -> None:
    """Write the files of a graph, the one that names it last."""
    from cvt_cli.export import write_graph

    arrays = Arrays(pictures, said.preprocessing)
    right = None
    if asked.max_drop is not None:
        labels = labels_of(pictures, said.labels)
        right = Right(arrays, labels, asked.max_drop / 100)
        how = "top-1 on them" if labels else "agreement with fp32 on them (they have no labels)"
        access.say(
            f"at most {asked.max_drop:g} points of {how} may be lost; which layers stay in "
            "floating point for it is tried one by one, which can take minutes"
        )
    record = checkpoint.record_of_export(said, precision="int8")
    with files.workplace(parts[-1]) as folder:
        made = folder / parts[-1].name
        write_graph.write(model, record, FORM_OF[runtime], made, arrays, right)
        _verify(made, model, pictures, runtime)
        for path in parts:
            with stamps.making(path, {**conditions.values, "model": checkpoint.name}) as temporary:
                os.replace(folder / path.name, temporary)
