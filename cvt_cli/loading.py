"""What follows ``--model``: a name, a folder or a file, to something ready to run.

Imports torch only inside the functions that need it.
"""

import functools
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from cvt_cli.base import conditions, files, machine, places, stamps
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CheckpointError, CvtError, UnreachableError, UsageError
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Progress, Say
from cvt_cli.checkpoints import export_metadata, folders, headers, hub, store
from cvt_cli.checkpoints.export_metadata import Precision, Record
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.checkpoints.names import reference_names
from cvt_cli.checkpoints.store import Snapshot
from cvt_cli.spec import published
from cvt_cli.spec.config import (
    DEFAULT_SIZES,
    VARIANTS,
    Activation,
    CvTConfig,
    parse_size,
    parse_variant,
)
from cvt_cli.spec.costs import Costs, costs
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.published import CHECKPOINTS, Checkpoint

if TYPE_CHECKING:
    from cvt_cli.engines.protocol import Engine
    from cvt_cli.model.network import CvT
    from cvt_cli.model.weights import LoadedCheckpoint

DEFAULT_MODEL = "cvt-21-384-22k"
WITHOUT_NETWORK = "cvt-nano-cifar10"
"""What `predict` answers with when the default model is not here and its hub does not answer."""

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
class Access:
    """How a model that is not on this machine may be fetched."""

    say: Say
    progress: Progress
    revision: str | None = None
    offline: bool = False
    detail: Say = lambda _: None  # takes what is said only to who asks for it


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies, and which known one it is, if any."""

    name: str  # as results and messages name it
    path: Path
    known: Checkpoint | None
    snapshot: Snapshot | None = None  # of a hub repository

    @property
    def revision(self) -> str | None:
        """The commit of the hub's repository that it is."""
        return self.snapshot.commit if self.snapshot else None


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


@dataclass(frozen=True)
class Repository:
    """A hub repository that the user named, whatever of it is on this machine."""

    name: str
    known: Checkpoint | None


def find(text: str, access: Access) -> Location | Repository:
    """What the user calls a model: a file or folder, a known name, a hub repository.

    The one place that decides it, for every command; asks no hub. What is on this machine under
    that name comes first, and a line says so where the name is a known checkpoint's too. Of a
    training run the best epoch is meant.

    Raises:
        UsageError: it is empty, or a revision of something that has none.
        CheckpointError: it is nowhere, or unreadable.
    """
    known = published.find(text)
    path = Path(places.expanded(text))
    here = _mode(path, or_raise=known is None)
    if access.revision is not None and (here is not None or (known and known.embedded)):
        raise UsageError(f"`{text}` is on this machine; --revision is for repositories on the hub")
    if here is not None:
        is_folder, name = stat.S_ISDIR(here), text
        if not (is_folder or stat.S_ISREG(here)):
            raise CheckpointError(f"`{path}` is neither a folder nor a regular file")
        if known is not None and path.suffix not in folders.SUFFIXES:
            name = os.path.join(os.curdir, text)  # in results, which it would be mistaken in
            other = known.repository or known.name.replace("-", "_")
            access.say(
                f"`{text}` is taken as the {'folder' if is_folder else 'file'} of that name here; "
                f"`{other}` means the known checkpoint"
            )
        if is_folder and (best := folders.best_of(path)):
            access.say(f"`{path}` is a training run: its best epoch is taken, `{best}`")
            return Location(os.path.join(name, best.name), best, None)
        return Location(name, path, known or _known_by_path(path.resolve()))
    if known and known.embedded:
        return embedded(known)
    repository = known.repository if known else _repository(text)
    if repository is None:
        raise CheckpointError(
            f"there is no model `{text}`: neither a file or folder, nor a known name, "
            "nor a repository (owner/name)",
            hint=published.suggestion(text),
        )
    return Repository(repository, known)


def _mode(path: Path, or_raise: bool) -> int | None:
    """The kind of what is at a path, as `stat` tells it; None where there is nothing.

    Raises:
        CheckpointError: nobody may look there, if ``or_raise``.
    """
    try:
        return path.stat().st_mode
    except PermissionError as error:
        if or_raise:
            raise folders.unreadable(path, error) from None
    except (OSError, ValueError):  # ValueError: no system takes such a name
        pass
    return None


def embedded(known: Checkpoint) -> Location:
    """A checkpoint that is part of this package."""
    assert known.embedded is not None
    return Location(known.name, known.embedded, known)


def locate(text: str, access: Access, need: Literal["weights", "config"] = "weights") -> Location:
    """Where on this machine that is which the user calls a model (`find`).

    What the cache does not hold is fetched; what it holds costs no network call.

    Raises:
        UsageError: as `find`.
        CheckpointError: as `find`, or it cannot be fetched (`hub.fetch`).
    """
    found = find(text, access)
    return found if isinstance(found, Location) else held(found, access, need)


def held(
    repository: Repository, access: Access, need: Literal["weights", "config"] = "weights"
) -> Location:
    """Where a hub repository is on this machine, fetched if need be.

    Raises:
        CheckpointError: it cannot be fetched (`hub.fetch`).
    """
    known = repository.known
    snapshot = store.find(repository.name, access.revision)
    missing = set(snapshot.missing) if snapshot else {folders.CONFIG_FILE}
    if known:  # its preprocessing is known too
        missing -= {folders.PREPROCESSING_FILE}
    if need == "config":
        missing -= {folders.WEIGHTS_FILE}
    if snapshot is None or missing:
        try:
            snapshot = hub.fetch(
                repository.name,
                access.revision,
                known=known,
                weights=need == "weights",
                offline=access.offline,
                say=access.say,
                progress=access.progress,
            )
        except UnreachableError:
            if snapshot is None or missing != {folders.PREPROCESSING_FILE}:
                raise
    return fetched(snapshot)


def fetched(snapshot: Snapshot) -> Location:
    """Where a hub repository is that the cache holds.

    Raises:
        CheckpointError: a link out of the cache.
    """
    store.refuse_links_out_of_the_cache(snapshot)
    known = published.find(snapshot.repository)
    name = known.name if known else snapshot.repository
    return Location(name, snapshot.folder, known, snapshot)


def _repository(text: str) -> str | None:
    """The hub repository that a text can mean; None for what can only be a path."""
    suffixes = (*folders.SUFFIXES, *export_metadata.SUFFIXES.values())
    if not hub.REPOSITORY.fullmatch(text) or ".." in text or Path(text).suffix in suffixes:
        return None
    return None if Path(text).parent.exists() else text


def _known_by_path(path: Path) -> Checkpoint | None:
    """The published checkpoint that a path says it holds: by name, or in the hub client's cache."""
    cached = [part.split("--") for part in path.parts if part.startswith("models--microsoft--")]
    names = [
        (folders.folder_of(path) or path).name,
        *(parts[2] for parts in cached if len(parts) == 3),
    ]
    return next((found for name in names if (found := published.find(name))), None)


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
    location = locate(text, access)
    if export_metadata.format_of(location.path):
        raise UsageError(
            f"`{text}` is a graph, which can be run, but neither trained nor exported again",
            hint="give the checkpoint that it was exported from",
        )
    stored = _weights_of(location, access)
    from cvt_cli.model import weights  # last: what fails above fails without waiting for torch

    return location, weights.load(location.path, location.known, size, activation, stored)


def record_of(
    location: Location,
    described: CheckpointConfig,
    *,
    inside: bool = False,
    precision: Precision = "fp32",
    dynamic_size: bool = False,
) -> Record:
    """What a file that is made of a checkpoint shall say of itself.

    Reads the weights for their hash, where the hub has not announced it.

    Args:
        location: of the checkpoint.
        described: what it is.
        inside: whether the file does the preprocessing.
        precision: of the file.
        dynamic_size: whether it takes images of any height and width.
    """
    known, snapshot = location.known, location.snapshot
    if snapshot is not None:
        source = snapshot.repository
    elif known is not None and known.embedded == location.path:
        source = "cvt-cli"
    else:  # a path may say more of the machine than the user wants to pass on
        source = location.path.resolve().name
    folder = folders.folder_of(location.path)
    if snapshot is None and folder and source != "cvt-cli":
        known = None  # its name alone says too little
    licence = known.licence if known else folder and folders.licence_in(folder)
    announced = store.weights_hash(snapshot) if snapshot else None
    if announced is None or len(announced) != 64:
        announced = stamps.hash_of(_tensors_of(location))
    name = known.name if known else source if snapshot is None else location.name
    return Record(
        name,
        source,
        location.revision,
        announced,
        licence or None,
        described.config,
        described.labels,
        described.preprocessing,
        inside,
        precision,
        dynamic_size,
    )


def _tensors_of(location: Location) -> Path:
    """The file with a checkpoint's tensors as somebody gave them."""
    folder = folders.folder_of(location.path)
    return folders.weights_in(folder) if folder else location.path


def checkpoint_to_convert(
    text: str, res: str | None, activation: Activation | None, access: Access
) -> "tuple[Location, LoadedCheckpoint, Path, str | None]":
    """Likewise with the file that its tensors are in, and its model card.

    Raises:
        UsageError, CheckpointError, ConfigError: as `load_checkpoint`.
    """
    location, loaded = load_checkpoint(text, res, activation, access)
    stored = _weights_of(location, access) or _tensors_of(location)
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
        found = DEFAULT_MODEL if text is None else text
        location = found if isinstance(found, Location) else locate(found, access)
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
        location = embedded(CHECKPOINTS[WITHOUT_NETWORK])
        classes = folders.read_folder(location.path).labels.names
        access.say(
            f"answering with {WITHOUT_NETWORK} in its place, which sees 32x32 pixels and knows "
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
    graph_of = functools.cache(lambda: _graph_of(location, stored, said))  # reads the weights
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
                _prepare(graph, made_under, location, loaded, access)
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


_MAKERS = ("torch", "onnx", "onnxscript")
"""Of a graph; another version of them may write another one."""


def _graph_of(location: Location, stored: Path, said: CheckpointConfig) -> tuple[Path, Conditions]:
    """Where the graph of these weights at this size is kept, and what it depends on beside them.

    Reads the weights for their hash, unless that is known.
    """
    announced = location.snapshot and store.weights_hash(location.snapshot)
    weights_hash = announced or stamps.hash_of(stored)
    preprocessing = said.preprocessing
    made_under = Conditions(
        {
            "weights": weights_hash,
            "config": repr(said.config),
            "size": [preprocessing.height, preprocessing.width],
            "outputs": ["logits", "features"],
            "cvt-cli": __version__,
            **{name: machine.version_of(name) for name in _MAKERS},
        }
    )
    return places.graph_path(weights_hash, made_under), made_under


def _prepare(
    graph: Path,
    made_under: Conditions,
    location: Location,
    loaded: "LoadedCheckpoint",
    access: Access,
) -> None:
    """Write a checkpoint's graph to the cache, once for all processes."""
    from cvt_cli.export import graphs

    preprocessing = loaded.preprocessing
    metadata = record_of(location, loaded.described).to_strings()
    what = f"preparing the graph of {location.name}"
    with files.locked(graph.with_name("prepare.lock"), what, access.say):
        if stamps.is_right(graph):
            return
        if graph.is_file():
            access.say(f"`{graph}` is damaged, and is made again")
        access.say(f"{what} at {preprocessing.height}x{preprocessing.width}, once")
        graphs.write_onnx(
            loaded.model,
            graph,
            preprocessing.height,
            preprocessing.width,
            metadata,
            made_under={**made_under.values, "model": location.name},
        )


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


def read_architecture(text: str, access: Access) -> tuple[str, CvTConfig, tuple[int, int]]:
    """Name, config and input size of a model, from its name, JSON files or header alone.

    Raises:
        UsageError: as `find`.
        CheckpointError: not found, or a pickle, which does not say without torch.
        ConfigError: its config holds a value that no published CvT has.
    """
    found = find(text, access)
    if isinstance(found, Repository):
        if found.known:
            known = found.known
            return known.name, VARIANTS[known.variant], (known.size, known.size)
        found = held(found, access, need="config")
    path = found.path
    if export_metadata.format_of(path):
        said = export_metadata.read(path).described
    elif (folder := folders.folder_of(path)) is not None:
        said = folders.read_folder(folder, found.known)
    elif path.suffix == ".safetensors":
        record = export_metadata.of_safetensors(path)
        if record is None:
            shapes = headers.safetensors_shapes(path)
            ours = reference_names(shapes, path)
            variant, config = headers.variant_of_shapes(
                {ours[name]: shape for name, shape in shapes.items()}, path
            )
            size = found.known.size if found.known else DEFAULT_SIZES[variant]
            return found.name, config, (size, size)
        said = record.described
    else:
        raise CheckpointError(
            f"`{path}` cannot be read without torch, which this command does not load",
            hint="give the architecture in place of the file: --variant 13, 21, w24 or nano",
        )
    return found.name, said.config, (said.preprocessing.height, said.preprocessing.width)


def costs_of(
    variant: str | None,
    model: str | None,
    res: str | None,
    num_classes: int | None,
    access: Access,
) -> list[Costs]:
    """What ``flops`` and ``count-params`` are asked for; without a model, all variants.

    Raises:
        UsageError, CheckpointError, ConfigError: as `architectures_of`.
    """
    found = architectures_of(variant, model, res, num_classes, access)
    return [costs for costs, _ in found]


def architectures_of(
    variant: str | None,
    model: str | None,
    res: str | None,
    num_classes: int | None,
    access: Access,
) -> list[tuple[Costs, CvTConfig]]:
    """The networks that are asked for, with their costs at their sizes; else all variants.

    Raises:
        UsageError: both a variant and a model, or a value that cannot be.
        CheckpointError, ConfigError: as `read_architecture`.
    """
    if variant and model:
        raise UsageError("give --variant or --model, not both")
    size = parse_size(res) if res else None
    asked: list[tuple[str, CvTConfig, list[tuple[int, int]]]]
    if model:
        name, config, own_size = read_architecture(model, access)
        asked = [(name, config, [own_size])]
    elif variant:
        key = parse_variant(variant)
        asked = [(key, VARIANTS[key], [(DEFAULT_SIZES[key],) * 2])]
    else:
        asked = [
            (key, config, [(32, 32)] if key == "nano" else [(224, 224), (384, 384)])
            for key, config in VARIANTS.items()
        ]
    found = []
    for name, config, own in asked:
        config = config.with_classes(num_classes or config.num_classes)
        for height, width in [size] if size else own:
            found.append((costs(name, config, height, width), config))
    return found
