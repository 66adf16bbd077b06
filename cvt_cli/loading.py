"""What follows ``--model``: a name, a folder or a file, to something ready to run.

Imports torch only inside the functions that need it.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from cvt_cli.base import conditions, machine, stamps
from cvt_cli.base.errors import CheckpointError, CvtError, UnreachableError, UsageError
from cvt_cli.base.package import __version__
from cvt_cli.checkpoints import export_metadata, folders, locate, store
from cvt_cli.checkpoints.architecture import architectures_of as architectures_of
from cvt_cli.checkpoints.locate import Access, Location
from cvt_cli.checkpoints.locate import record_of as record_of
from cvt_cli.spec import published
from cvt_cli.spec.config import (
    DEFAULT_SIZES,
    VARIANTS,
    Activation,
    parse_size,
    parse_variant,
)
from cvt_cli.spec.costs import costs
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.published import DEFAULT_MODEL as DEFAULT_MODEL

if TYPE_CHECKING:
    from cvt_cli.engines.protocol import Engine
    from cvt_cli.model.network import CvT
    from cvt_cli.model.weights import LoadedCheckpoint


EngineName = Literal["auto", "torch", "onnxruntime", "openvino"]

MANY_IMAGES = 50
"""From here on OpenVINO's faster rate outweighs its slower start (CvT-13 at 224, two cores)."""

WORTH_PREPARING_MACS = 3_000_000_000_000
"""Work for each thread from which on a graph is prepared unasked: some 80 s on torch, of which a
runtime saves a quarter; to prepare takes 10 to 20 s (CvT-13, two cores)."""

MOST_UNNAMED_CLASSES = 1000
"""A larger head without a class list is refused: no one can read its answers."""

DECIDE = (
    *("model", "revision", "weights_sha256", "classes_sha256", "activation", "preprocessing"),
    *("engine", "precision"),
)
"""Those of the conditions of a result that must be the same for it to be gone on with."""


@dataclass(frozen=True)
class ReadyModel:
    """An engine with what its logits mean and how to feed it."""

    model: str
    revision: str | None  # commit of its hub repository
    engine: "Engine"
    labels: Labels
    preprocessing: Preprocessing
    activation: Activation
    notes: tuple[str, ...]
    tensors: tuple[Path, ...]  # the files that they are in, as somebody gave them

    @functools.cached_property
    def weights_sha256(self) -> str:
        """A SHA-256 of the tensors' file, or of those of a graph; of unchanged ones remembered.

        Raises:
            CheckpointError: a file has gone since.
        """
        try:
            hashes = [stamps.hash_of(path) for path in self.tensors]
        except OSError as error:
            raise CheckpointError(f"cannot read `{self.tensors[0]}`: {error.strerror}") from None
        return hashes[0] if len(hashes) == 1 else conditions.names_hash(hashes)

    @property
    def classes_sha256(self) -> str:
        """A SHA-256 of the class names, and of their WNIDs where they have them."""
        wnids = (wnid or "" for wnid in self.labels.wnids or ())
        return conditions.names_hash([*self.labels.names, *wnids])

    def conditions(self) -> dict[str, Any]:
        """What a result depends on, as the documented JSON keys."""
        return {
            "model": self.model,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "classes_sha256": self.classes_sha256,
            "activation": self.activation,
            "preprocessing": self.preprocessing.to_json(),
            "device": self.engine.device,
            "hardware": self.engine.hardware,
            "precision": self.engine.precision,
            "engine": self.engine.name,
            "version": __version__,
        }

    def describe(self) -> str:
        """What a result depends on, in a line for a person."""
        names, engine = self.labels.names, self.engine
        classes = f"{len(names)} classes" + (f": {', '.join(names)}" if len(names) <= 20 else "")
        at = f" at {self.revision[:7]}" if self.revision else ""
        return (
            f"{self.model}{at} ({classes}; {self.activation}); {self.preprocessing.describe()}; "
            f"{engine.device}, {engine.hardware}, {engine.name}, {engine.precision}"
        )


def _weights_of(location: Location, access: Access) -> Path | None:
    """The verified weights of a hub repository, as safetensors; None for anything else."""
    if location.snapshot is None:
        return None
    stored = store.ready_weights(location.snapshot)
    if stored is None:
        from cvt_cli.model import weights

        stored = weights.as_safetensors(location.snapshot, access.say)
    return stored


def load_checkpoint(
    text: str, res: str | None, activation: Activation | None, access: Access
) -> "tuple[Location, LoadedCheckpoint]":
    """Find and load a model for torch; ``res`` as after ``--res``.

    Raises:
        UsageError: no such size.
        CheckpointError, ConfigError: as in `locate` and `weights.load`.
    """
    size = parse_size(res) if res else None
    location = locate.locate(text, access)
    if export_metadata.format_of(location.path):
        raise UsageError(
            f"`{text}` is a graph, which can be run, but neither trained nor exported again",
            hint="give the checkpoint that it was exported from",
        )
    stored = _weights_of(location, access)
    from cvt_cli.model import weights  # last: what fails above fails without waiting for torch

    return location, weights.load(location.path, location.known, size, activation, stored)


def checkpoint_to_convert(
    text: str, res: str | None, activation: Activation | None, access: Access
) -> "tuple[Location, LoadedCheckpoint, Path, str | None]":
    """Likewise with the file that its tensors are in, and its model card.

    Raises:
        UsageError, CheckpointError, ConfigError: as `load_checkpoint`.
    """
    location, loaded = load_checkpoint(text, res, activation, access)
    stored = _weights_of(location, access) or locate.tensors_of(location)
    folder = folders.folder_of(location.path)
    return location, loaded, stored, folders.card_in(folder) if folder else None


def load_classifier(
    text: str | Location | None,
    res: str | None,
    activation: Activation | None,
    device: str,
    precision: str,
    access: Access,
    *,
    engine: EngineName = "auto",
    images: int = 1,
    together: int = 1,
    or_embedded: bool = False,
) -> ReadyModel:
    """Find, load and place a model; each argument as after the option of that name.

    Args:
        text: what follows ``--model``, or where that is; None for the default model.
        res: what follows ``--res``, likewise the next three.
        activation: of the MLPs.
        device: where to compute.
        precision: to compute in.
        access: how to fetch what is not here.
        engine: what follows ``--engine``.
        images: how many there are to answer, for the choice of the engine.
        together: how many of them are computed in one call, for the number of threads.
        or_embedded: take the embedded model where the default one cannot be had.

    Raises:
        UsageError: no such size, device or precision, or the engine is not installed.
        CheckpointError, ConfigError: as in `locate` and `weights.load`.
    """
    size = parse_size(res) if res else None
    try:
        found = published.DEFAULT_MODEL if text is None else text
        location = found if isinstance(found, Location) else locate.locate(found, access)
    except UnreachableError as error:
        if text is not None or not or_embedded:
            raise
        access.say(str(error))
        left_out = " and ".join(
            option
            for option, value in (("--res", size), ("--activation", activation))
            if value is not None
        )
        size = activation = None
        location = locate.embedded(published.CHECKPOINTS[published.WITHOUT_NETWORK])
        classes = folders.read_folder(location.path).labels.names
        access.say(
            f"answering with {location.name} in its place, which sees 32x32 pixels and knows "
            f"these classes only: {', '.join(classes)}"
            + (f"; {left_out}, meant for the other model, has no effect" if left_out else "")
        )
    if export_metadata.format_of(location.path):
        return _load_exported(
            location, size, activation, device, precision, engine, together, access
        )
    stored = _weights_of(location, access)
    folder = folders.folder_of(location.path)
    loaded: LoadedCheckpoint | None = None
    if folder is not None:
        said = folders.read_folder(folder, location.known, size, activation)
        stored = stored or folders.weights_in(folder)
    else:  # a bare file says what it is by its tensors alone
        from cvt_cli.model import weights

        loaded = weights.load(location.path, location.known, size, activation)
        stored, said = location.path, loaded.described
    if not said.labels.named and len(said.labels) > MOST_UNNAMED_CLASSES:
        raise CheckpointError(
            f"`{location.path}` has a head of {len(said.labels)} classes and no class list, "
            "and lists of that size exist in several orders",
            hint="put a `config.json` with its `id2label` beside it; "
            "`cvt finetune` takes it as it is, since it replaces the head",
        )
    height, width = said.preprocessing.height, said.preprocessing.width
    macs = costs(location.name, said.config, height, width).macs
    from cvt_cli.export import prepared

    # It reads the weights.
    graph_of = functools.cache(lambda: prepared.graph_of(location, stored, said))
    chosen, why = _choose_engine(
        engine, device, precision, images, images * macs, lambda: graph_of()[0].is_file()
    )
    running: Engine | None = None
    if chosen != "torch":
        from cvt_cli.engines import runtimes

        graph, made_under = graph_of()
        try:
            if not stamps.is_right(graph):
                from cvt_cli.model import weights

                if loaded is None:
                    loaded = weights.load(location.path, location.known, size, activation, stored)
                prepared.prepare(graph, made_under, location, loaded, access)
            running = runtimes.open_graph(
                chosen, graph, precision, macs=macs * together, say=access.say
            )
        except CvtError as error:
            if engine != "auto":
                raise
            why = f"{chosen} was not to be had: {error}"
    if running is None:
        from cvt_cli.model import devices, weights
        from cvt_cli.model.engine import TorchEngine

        place = devices.choose_device(device)
        precision = devices.choose_precision(precision, place)
        if loaded is None:
            loaded = weights.load(location.path, location.known, size, activation, stored)
        running = TorchEngine(loaded.model, place, precision, macs * together)
    access.detail(f"engine {running.name}: {why}")
    return ReadyModel(
        location.name,
        location.revision,
        running,
        said.labels,
        said.preprocessing,
        said.config.activation,
        said.notes,
        (stored,),
    )


def engine_to_go_on_with(made: Mapping[str, Any] | None, asked: EngineName) -> EngineName:
    """The engine for what was begun under conditions: its own, unless another is asked for."""
    begun = next((e for e in get_args(EngineName) if made and made.get("engine") == e), asked)
    return begun if asked == "auto" else asked


def _load_exported(
    location: Location,
    size: tuple[int, int] | None,
    activation: Activation | None,
    device: str,
    precision: str,
    engine: EngineName,
    together: int,
    access: Access,
) -> ReadyModel:
    """A file that `cvt export` wrote, on its own runtime; arguments as of `load_classifier`.

    Raises:
        UsageError: it takes no such size, activation, device or precision, or runs on no such
            engine, or that is not installed.
        CheckpointError: it is damaged, or another tool wrote it.
    """
    path, form = location.path, export_metadata.format_of(location.path)
    record = export_metadata.read(path).at(size, path)
    record.refuse_other(activation, path)
    if device not in ("auto", "cpu"):
        raise UsageError(f"`{path}` runs on the CPU here, not on `{device}`")
    height, width = record.preprocessing.height, record.preprocessing.width
    macs = together * costs(location.name, record.config, height, width).macs
    running: Engine
    if form == "pt2":
        if engine not in ("auto", "torch"):
            raise UsageError(f"`{path}` runs on `torch`, not on `{engine}`")
        if precision not in ("auto", record.precision):
            raise UsageError(f"`{path}` is in `{record.precision}`, not in `{precision}`")
        from cvt_cli.model.engine import ExportedEngine

        running = ExportedEngine(path, record, macs)
    else:
        from cvt_cli.engines import runtimes

        able: tuple[runtimes.Runtime, ...] = ("openvino",)
        if form == "onnx":
            able = ("onnxruntime", "openvino")
        if engine != "auto" and engine not in able:
            runs = " and ".join(f"`{name}`" for name in able)
            raise UsageError(f"`{path}` runs on {runs}, not on `{engine}`")
        wanted = [name for name in able if name == engine]
        chosen = [*wanted, *(name for name in able if runtimes.installed(name)), able[0]][0]
        running = runtimes.open_graph(chosen, path, precision, record, macs=macs)
    access.detail(f"engine {running.name}: `{path}` is an exported file")
    return ReadyModel(
        location.name,
        record.revision,
        running,
        record.labels,
        record.preprocessing,
        record.config.activation,
        (),
        (path, path.with_suffix(".bin")) if form == "openvino" else (path,),
    )


def _choose_engine(
    asked: EngineName,
    device: str,
    precision: str,
    images: int,
    work: int,
    prepared: Callable[[], bool],
) -> tuple[Literal["torch", "onnxruntime", "openvino"], str]:
    """The engine asked for; for "auto" the fastest for this work; and why.

    On a CPU a prepared graph on a runtime that is installed beats torch: it starts in a fraction of
    the time. OpenVINO is faster by the image and slower to start than ONNX Runtime.

    Args:
        asked: what follows ``--engine``, likewise the next two.
        device: where to compute.
        precision: to compute in.
        images: how many there are to answer.
        work: MACs of all of them.
        prepared: whether the graph is there; asked only if that decides.

    Raises:
        UsageError: a runtime is asked for that is not installed, or on another device than a CPU.
    """
    from cvt_cli.engines import runtimes

    if asked not in get_args(EngineName):  # from Python
        accepted = ", ".join(f"`{name}`" for name in get_args(EngineName))
        raise UsageError(f"engine `{asked}`; accepted are {accepted}")
    if asked == "onnxruntime" or asked == "openvino":
        if device not in ("auto", "cpu"):
            raise UsageError(f"engine `{asked}` runs on the CPU, not on `{device}`")
        runtimes.require(asked)  # before a graph is prepared for it
    if asked != "auto":
        return asked, "asked for with --engine"
    if device not in ("auto", "cpu") or (device == "auto" and machine.may_have_gpu()):
        return "torch", "the other engines run on the CPU alone"
    preferred: tuple[runtimes.Runtime, ...] = ("onnxruntime", "openvino")
    if images >= MANY_IMAGES:
        preferred = ("openvino", "onnxruntime")
    wanted = "fp32" if precision == "auto" else precision
    able = (r for r in preferred if runtimes.installed(r) and runtimes.computes_in(r, wanted))
    name = next(able, None)
    if name is None:
        return "torch", f"no other engine that is installed computes in {wanted} here"
    many = "1 image" if images == 1 else f"{images} images"
    suits = "starts soonest" if images < MANY_IMAGES else "is the fastest by the image"
    if prepared():
        return name, f"its graph is prepared, and for {many} it {suits}"
    if work < WORTH_PREPARING_MACS * machine.threads() or not runtimes.can_prepare():
        return "torch", f"no graph is prepared, and for {many} it does not pay to"
    return name, f"for {many} it pays to prepare a graph"


@dataclass(frozen=True)
class Start:
    """What a training run starts from."""

    name: str
    model: "CvT"
    preprocessing: Preprocessing
    notes: tuple[str, ...]


def start_of_training(
    classes: tuple[str, ...],
    *,
    model: str | None,
    variant: str | None,
    res: str | None,
    activation: Activation | None,
    seed: int,
    access: Access,
) -> Start:
    """A checkpoint with a head for these classes, or a fresh variant.

    A checkpoint's head is kept where its classes are these, in this order, else replaced.

    Raises:
        UsageError: there is no such variant.
        CheckpointError: as `locate` and `weights.load`.
    """
    from cvt_cli.model import network as networks
    from cvt_cli.model import weights

    if model is not None:
        location, loaded = load_checkpoint(model, res, activation, access)
        network, notes = loaded.model, loaded.notes
        if loaded.labels.names != classes and loaded.labels.wnids != classes:
            network = weights.replace_head(network, len(classes), seed)
            notes += (
                f"head replaced: {len(loaded.labels)} classes of `{location.name}`, "
                f"{len(classes)} other ones in the data",
            )
        return Start(Path(location.name).stem, network, loaded.preprocessing, notes)
    key = parse_variant(variant or "")
    config = VARIANTS[key].with_classes(len(classes)).with_activation(activation)
    size = parse_size(res) if res else (DEFAULT_SIZES[key],) * 2
    preprocessing = Preprocessing.of_variant(key, *size)
    return Start(key, networks.fresh_model(config, seed), preprocessing, ())
