"""What follows ``--model``: a name, a folder or a file, to something ready to run.

Imports torch only inside the functions that need it.
"""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from cvt_cli.base import machine, stamps
from cvt_cli.base.errors import CheckpointError, CvtError, UnreachableError, UsageError
from cvt_cli.base.text import counted
from cvt_cli.checkpoints import cache, locate
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.export_metadata import Record
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.checkpoints.locate import Access
from cvt_cli.spec import published
from cvt_cli.spec.config import Activation, Size
from cvt_cli.spec.costs import costs
from cvt_cli.spec.formats import FORMATS, EngineChoice, EngineName, Int8, Runtime
from cvt_cli.spec.preprocessing import Resize

if TYPE_CHECKING:
    from cvt_cli.engines.protocol import Engine
    from cvt_cli.engines.ready import ReadyModel
    from cvt_cli.model.weights import LoadedCheckpoint


MANY_IMAGES = 50
"""From here on OpenVINO's faster rate outweighs its slower start (CvT-13 at 224, two cores)."""

WORTH_PREPARING_MACS = 1_500_000_000_000
"""Work for each thread, in MACs, from which on a graph is prepared unasked: some 40 s on torch.
A runtime saves a quarter of it; preparing and opening takes 4 s of CvT-13, 10 s of W24."""

MOST_UNNAMED_CLASSES = 1000
"""A larger head without a class list is refused: no one can read its answers."""


def verified(checkpoint: Checkpoint, access: Access) -> Path:
    """The file to read a checkpoint's tensors from; of a hub repository verified, as safetensors.

    A pickle of the hub is converted, once.

    Raises:
        CheckpointError: it is not what the hub announced, or the folder has none.
    """
    snapshot = checkpoint.snapshot
    if snapshot is None:
        return checkpoint.tensors
    ready = cache.ready_weights(snapshot)
    if ready is not None:
        return ready
    from cvt_cli.model import weights

    return weights.as_safetensors(snapshot, access.say)


def load_checkpoint(
    text: str,
    res: str | None,
    activation: Activation | None,
    access: Access,
    resize: Resize | None = None,
) -> "tuple[Checkpoint, LoadedCheckpoint]":
    """Find and load a model for torch; ``res`` and ``resize`` are what follows the options.

    Raises:
        UsageError: there is no such size, or the model is a graph.
        CheckpointError, ConfigError: as in `locate.locate` and `weights.load_checkpoint`.
    """
    size = Size.of(res)
    checkpoint = locate.locate(text, access)
    if checkpoint.kind == "graph":
        raise UsageError(
            f"`{text}` is an exported graph: it can be run, but not trained or exported again",
            hint="give the checkpoint that it was exported from",
        )
    stored = verified(checkpoint, access) if checkpoint.snapshot else None
    from cvt_cli.model import weights  # last: what fails above fails without waiting for torch

    loaded = weights.load_checkpoint(checkpoint, size, activation, stored)
    return checkpoint, replace(loaded, preprocessing=loaded.preprocessing.resizing(resize))


@dataclass(frozen=True)
class _Asked:
    """What is asked of an engine, each as after the option of that name."""

    engine: EngineChoice
    device: str
    precision: str
    images: int  # how many there are to answer
    together: int  # how many of them are computed in one call


def load_classifier(
    text: str | Checkpoint | None,
    res: str | None,
    activation: Activation | None,
    device: str,
    precision: str | Int8,
    access: Access,
    *,
    resize: Resize | None = None,
    engine: EngineChoice = "auto",
    images: int = 1,
    together: int = 1,
    or_embedded: bool = False,
) -> "ReadyModel":
    """Find, load and place a model; each argument as after the option of that name.

    Args:
        text: what follows ``--model``, or what that was resolved to; None for the default model.
        res: what follows ``--res``.
        activation: of the MLPs.
        device: where to compute.
        precision: to compute in; "int8" is calibrated on the package's images.
        access: how to fetch what is not here.
        resize: what follows ``--resize``.
        engine: what follows ``--engine``.
        images: how many there are to answer, for the choice of the engine.
        together: how many of them are computed in one call, for the number of threads.
        or_embedded: take the embedded model where the default one cannot be had.

    Raises:
        UsageError: no such size, device, precision or engine here, or a graph resizes by itself.
        CheckpointError, ConfigError: as in `locate.locate` and `weights.load_checkpoint`.
    """
    from cvt_cli.engines.ready import ReadyModel

    size = Size.of(res)
    in_precision = precision if isinstance(precision, str) else "int8"
    asked = _Asked(engine, device, in_precision, images, together)
    checkpoint, size, activation = _found(text, size, activation, access, or_embedded)
    if checkpoint.kind == "graph":
        record = checkpoint.record_at(size, activation)
        record.refuse_resizing(resize, checkpoint.path)
        _refuse_quantising(precision, checkpoint.path)
        running = _run_exported(checkpoint, record, asked)
        checkpoint.refuse_changed()
        access.detail(f"engine {running.name}: `{checkpoint.path}` is an exported file")
        return ReadyModel(checkpoint, running, record.described.resizing(resize))
    opened = _open(checkpoint, size, activation, access)
    opened = replace(opened, described=opened.described.resizing(resize))
    if in_precision == "int8":
        from cvt_cli.export import int8_graphs

        about = checkpoint, opened.described, opened.load, opened.macs
        return int8_graphs.ready(
            *about, precision, engine, device, images=images, together=together, access=access
        )
    running, why = _run(opened, asked, access)
    access.detail(f"engine {running.name}: {why}")
    if precision == "auto" and images > MANY_IMAGES:
        from cvt_cli.engines import bf16_advice, parts

        def other(name: EngineName) -> "Engine":
            return _run(opened, replace(asked, precision="bf16", engine=name), access)[0]

        job = images, parts.part_of(together, images, opened.macs), opened.macs
        bf16_advice.advise(running, other, opened.described, *job, access.say)
    return ReadyModel(checkpoint, running, opened.described)


def _refuse_quantising(asked: str | Int8, path: Path) -> None:
    """Raises UsageError if an exported file, which is as it is, shall be quantised in some way."""
    told = {
        "--calibration": isinstance(asked, Int8) and asked.calibration,
        "--max-drop": isinstance(asked, Int8) and asked.max_drop is not None,
    }
    if named := [name for name, value in told.items() if value]:
        raise UsageError(
            f"{' and '.join(named)}: no effect on `{path}`, which is an exported file",
            hint="give the checkpoint that it was exported from",
        )


def load_to_explain(
    text: str | Checkpoint | None,
    res: str | None,
    activation: Activation | None,
    access: Access,
    or_embedded: bool = False,
    resize: Resize | None = None,
) -> "tuple[Checkpoint, LoadedCheckpoint, int]":
    """Find and load a model for torch, and its MACs; arguments and errors as `load_checkpoint`."""
    checkpoint, size, activation = _found(text, Size.of(res), activation, access, or_embedded)
    if checkpoint.kind == "graph":
        raise UsageError(
            f"`{checkpoint.path}` is an exported graph: it has no gradients and keeps no attention",
            hint="give the checkpoint that it was exported from",
        )
    opened = _open(checkpoint, size, activation, access)
    loaded = opened.load()
    how = loaded.preprocessing.resizing(resize)
    return checkpoint, replace(loaded, preprocessing=how), opened.macs


def _found(
    text: str | Checkpoint | None,
    size: Size | None,
    activation: Activation | None,
    access: Access,
    or_embedded: bool,
) -> tuple[Checkpoint, Size | None, Activation | None]:
    """The checkpoint, or the embedded one without what was asked of the other."""
    try:
        found = published.DEFAULT_MODEL if text is None else text
        checkpoint = found if isinstance(found, Checkpoint) else locate.locate(found, access)
        return checkpoint, size, activation
    except CheckpointError as error:  # also where the hub, or a proxy before it, refuses to give it
        no_such_revision = access.revision and not isinstance(error, UnreachableError)
        if text is not None or not or_embedded or no_such_revision:
            raise
        return _embedded_instead(error, size, activation, access), None, None


def _embedded_instead(
    error: CheckpointError,
    size: Size | None,
    activation: Activation | None,
    access: Access,
) -> Checkpoint:
    """The embedded checkpoint, and what it means that the default one is not to be had."""
    access.say(str(error))
    left_out = " and ".join(
        option
        for option, value in (("--res", size), ("--activation", activation))
        if value is not None
    )
    checkpoint = locate.embedded(published.CHECKPOINTS[published.WITHOUT_NETWORK])
    said = checkpoint.described()
    access.say(
        f"using {checkpoint.name} instead, which takes "
        f"{said.preprocessing.height}x{said.preprocessing.width} pixels and knows "
        f"these classes only: {', '.join(said.labels.names)}"
        + (f"; {left_out}, given for the other model, has no effect" if left_out else "")
    )
    return checkpoint


@dataclass(frozen=True)
class _Opened:
    """A checkpoint that says what it is; its tensors are read when they are asked for, once."""

    checkpoint: Checkpoint
    described: CheckpointConfig
    load: "Callable[[], LoadedCheckpoint]"

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        preprocessing = self.described.preprocessing
        height, width = preprocessing.size
        return costs(self.checkpoint.name, self.described.config, height, width).macs


def _open(
    checkpoint: Checkpoint,
    size: Size | None,
    activation: Activation | None,
    access: Access,
) -> _Opened:
    """Read what a checkpoint is; of a bare file its tensors too, since they alone say it.

    Raises:
        CheckpointError: it has more classes than anybody knows without their names.
    """

    @functools.cache
    def load() -> "LoadedCheckpoint":
        from cvt_cli.model import weights

        return weights.load_checkpoint(checkpoint, size, activation, stored)

    if checkpoint.folder is None:
        stored = checkpoint.path
        said = load().described
    else:
        said = checkpoint.described(size, activation)
        stored = verified(checkpoint, access)
    if not said.labels.named and len(said.labels) > MOST_UNNAMED_CLASSES:
        raise CheckpointError(
            f"`{checkpoint.path}` has {counted(len(said.labels), 'class')} and no "
            "class names, "
            "and such lists exist in several orders",
            hint="put a `config.json` with an `id2label` beside it; "
            "`cvt finetune` needs none, because it replaces the head",
        )
    return _Opened(checkpoint, said, load)


def _run(opened: _Opened, asked: _Asked, access: Access) -> "tuple[Engine, str]":
    """The engine for a checkpoint, ready, and why it is this one.

    Raises:
        UsageError: there is no such device, precision or engine, or it is not installed.
        CheckpointError: the weights are damaged.
    """
    from cvt_cli.export import prepared_graphs

    checkpoint = opened.checkpoint
    # It may read the weights for their hash.
    graph_of = functools.cache(lambda: prepared_graphs.graph_of(checkpoint, opened.described))
    chosen, why = _choose_engine(asked, opened.macs, lambda: os.path.isfile(graph_of()[0]))
    macs = opened.macs * asked.together
    from cvt_cli.engines import parts, runtimes

    part = parts.part_of(asked.together, asked.images, opened.macs)
    if chosen != "torch":
        graph, made_under = graph_of()
        open_graph = functools.partial(
            runtimes.open_graph, chosen,
            precision=asked.precision, macs=macs, part=part, say=access.say,
        )  # fmt: skip

        def prepared() -> Path:
            if not stamps.is_right(graph):
                prepared_graphs.prepare(graph, made_under, checkpoint, opened.load(), access)
            return graph

        try:
            return prepared_graphs.opened(prepared, open_graph), why
        except CvtError as error:
            if asked.engine != "auto":
                raise
            why = f"{chosen} could not be used: {error}"
    from cvt_cli.model import devices
    from cvt_cli.model.engine import TorchEngine

    place = devices.choose_device(asked.device)
    precision = devices.choose_precision(asked.precision, place, ("int8",))
    model = opened.load().model
    if place.type != "cuda":
        on_cpu = part if place.type == "cpu" else None
        return TorchEngine(model, place, precision, macs, on_cpu, asked.together), why
    from cvt_cli.model.cuda import WORTH_COMPILING_MACS, CudaEngine

    compiled = asked.images * opened.macs >= WORTH_COMPILING_MACS
    if compiled:
        why += f"; for {counted(asked.images, 'image')} it pays to compile the network"
    return CudaEngine(model, place, precision, opened.described.preprocessing, compiled), why


def _run_exported(checkpoint: Checkpoint, record: Record, asked: _Asked) -> "Engine":
    """The engine for a file that `cvt export` wrote, on its own runtime.

    Raises:
        UsageError: it takes no such device, precision or engine, or that is not installed.
        CheckpointError: it is damaged.
    """
    path, form = checkpoint.path, checkpoint.format
    if asked.device not in ("auto", "cpu"):
        raise UsageError(f"`{path}` runs on the CPU here, not on `{asked.device}`")
    height, width = record.preprocessing.size
    of_one = costs(checkpoint.name, record.config, height, width).macs
    macs = asked.together * of_one
    from cvt_cli.engines import parts, runtimes

    assert form is not None
    able = FORMATS[form].engines
    if asked.engine not in ("auto", *able):
        runs = " and ".join(f"`{name}`" for name in able)
        raise UsageError(f"`{path}` runs on {runs}, not on `{asked.engine}`")
    wanted = [name for name in able if name == asked.engine]
    chosen = [*wanted, *(name for name in able if runtimes.installed(name)), able[0]][0]
    if chosen != "torch":
        part = parts.part_of(asked.together, asked.images, of_one)
        return runtimes.open_graph(chosen, path, asked.precision, record, macs=macs, part=part)
    if asked.precision not in ("auto", record.precision):
        raise UsageError(f"`{path}` is in `{record.precision}`, not in `{asked.precision}`")
    from cvt_cli.model.engine import ExportedEngine

    return ExportedEngine(path, record, macs, asked.together)


def _choose_engine(
    asked: _Asked, macs: int, prepared: Callable[[], bool]
) -> tuple[EngineName, str]:
    """The engine asked for; for "auto" the fastest for this work; and why.

    On a CPU a prepared graph on a runtime that is installed beats torch: it starts in a fraction of
    the time. OpenVINO is faster by the image and slower to start than ONNX Runtime. Whether the
    graph is there is asked only if that decides.

    Raises:
        UsageError: a runtime is asked for that is not installed, or on another device than a CPU.
    """
    from cvt_cli.engines import runtimes

    engine, device, images = asked.engine, asked.device, asked.images
    if engine not in get_args(EngineChoice):  # from Python
        accepted = ", ".join(f"`{name}`" for name in get_args(EngineChoice))
        raise UsageError(f"there is no engine `{engine}`; accepted are {accepted}")
    if engine == "onnxruntime" or engine == "openvino":
        if device not in ("auto", "cpu"):
            raise UsageError(f"engine `{engine}` runs on the CPU, not on `{device}`")
        runtimes.require(engine)  # before a graph is prepared for it
    if engine != "auto":
        return engine, "asked for with --engine"
    if device not in ("auto", "cpu") or (device == "auto" and machine.may_have_gpu()):
        return "torch", "the other engines run only on the CPU"
    preferred: tuple[Runtime, ...] = ("onnxruntime", "openvino")
    if images >= MANY_IMAGES:
        preferred = ("openvino", "onnxruntime")
    wanted = "fp32" if asked.precision == "auto" else asked.precision
    able = (r for r in preferred if runtimes.installed(r) and runtimes.computes_in(r, wanted))
    if (name := next(able, None)) is None:
        return "torch", f"no other engine that is installed computes in {wanted} here"
    many = counted(images, "image")
    suits = "starts soonest" if images < MANY_IMAGES else "is the fastest by the image"
    if prepared():
        return name, f"its graph is prepared, and for {many} it {suits}"
    if images * macs < WORTH_PREPARING_MACS * machine.threads() or not runtimes.can_prepare():
        return "torch", f"no graph is prepared, and for {many} it does not pay to"
    return name, f"for {many} it pays to prepare a graph"
