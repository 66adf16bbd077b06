"""How fast whole jobs are: from files on disk to answers on disk, each in a process of its own.

Every side is a command line. The sides take turns; what a side's process takes from its start to
its end counts, imports included. What is made once for a model, the graphs, is made before.

Imports torch only inside functions.
"""

import json
import os
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

from cvt_cli.base import machine
from cvt_cli.base.errors import UsageError
from cvt_cli.base.progress import Progress, Say, silent
from cvt_cli.base.text import counted
from cvt_cli.datasets import layouts
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.export import benchmark, benchmark_peers, job_processes
from cvt_cli.export.benchmark_peers import Peer
from cvt_cli.export.benchmark_sides import Network, Side, is_lacking, nothing_to_measure
from cvt_cli.export.job_peers import Task
from cvt_cli.images import finding
from cvt_cli.images.trees import Folder
from cvt_cli.spec.formats import EngineName, Precision
from cvt_cli.spec.labels import Labels, unnamed
from cvt_cli.spec.preprocessing import Preprocessing

Job = Literal["predict", "evaluate", "finetune"]
_HELD_OUT, _SEED = 0.1, 0
"""What part of the images "finetune" sets aside for validation, and by what they are drawn."""

TIMM_LOOP = "timm-loop"
PEERS = (*benchmark_peers.PEERS, TIMM_LOOP)


@dataclass(frozen=True)
class Row:
    """What was measured of one side."""

    name: str  # an engine, for our command; else a peer
    precision: str
    images_per_sec: (
        float  # median of the rounds, of all images, from the process's start to its end
    )
    slowest: float
    fastest: float
    ratio: float | None  # to the first side, the median of the rounds
    ratios: tuple[float, float]
    peak_memory_bytes: int  # of the process, not of those that a loader starts; 0 is unknown
    share_of_bound: float | None  # of 1 / (1 / decoding alone + 1 / engine alone), in turn

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "name": self.name,
            "precision": self.precision,
            "images_per_sec": self.images_per_sec,
            "images_per_sec_range": [self.slowest, self.fastest],
            "ratio": self.ratio,
            "ratio_range": list(self.ratios),
            "peak_memory_bytes": self.peak_memory_bytes,
            "share_of_bound": self.share_of_bound,
        }


@dataclass(frozen=True)
class Measured:
    """What was measured of all sides, and where."""

    job: Job
    model: str
    images: int
    batch_size: int
    device: str
    hardware: str
    rounds: int
    versions: Mapping[str, str]
    decode_images_per_sec: float | None  # decoding alone, with every processor
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {**vars(self), "rows": [row.to_json() for row in self.rows]}


@dataclass(frozen=True)
class _Side:
    name: str
    precision: str
    command: list[str]
    prepare: list[str] | None = None  # runs once before, untimed: makes what is kept of a model
    engine: Side | None = None  # ours, on ready arrays
    made: Path | None = None  # a folder that must not be there yet


def measure(
    job: Job,
    data: str,
    network: Network,
    *,
    engines: Sequence[EngineName],
    precisions: Sequence[Precision],
    batch_size: int,
    against: Sequence[str],
    rounds: int,
    device: str,
    folder: Path,
    say: Say,
    progress: Progress,
) -> Measured:
    """Measure a job of every side in turn.

    Args:
        job: which.
        data: a folder of images; of class folders but for "predict".
        network: what runs, with random weights and the classes of the data.
        engines: of our commands; "finetune" has torch alone.
        precisions: of our commands; combinations that an engine does not compute are left out.
        batch_size: of every side.
        against: of `PEERS`; the first is what ratios are to, else our first side.
        rounds: how often every side has its turn.
        device: what follows ``--device``.
        folder: for all that is written.
        say: told what is measured.
        progress: of the rounds.

    Raises:
        UsageError: the data are no such folder, or a peer has no such job or is not installed.
        CvtError: a side's process failed.
    """
    from cvt_cli.model import devices

    _check_peers(job, against)
    place = devices.choose_device(device)
    pictures = _images(job, data)
    paths, classes = pictures.paths, pictures.classes
    network, how = _written(network, folder / "model", classes)
    count = len(paths) + len(pictures.held_out)
    task = Task(
        *("decode", job, paths, pictures.labels, len(classes), str(folder / "model")),
        *how.size,
        round(min(how.size) / how.crop_pct) if how.resize == "crop" else None,
        batch_size=batch_size,
        device=str(place),
        output=str(folder / "decoded"),
        macs=network.macs,
        held_out=pictures.held_out,
        held_out_labels=pictures.held_out_labels,
    )
    sides = [_peer(name, task, network, folder) for name in dict.fromkeys(against)]
    for engine in engines if job != "finetune" else ("torch",):
        for precision in precisions:
            if not is_lacking(engine, precision, place.type):
                sides.append(_ours(engine, precision, data, network, task, folder))
    if len(sides) == len(set(against)):
        raise nothing_to_measure(engines, precisions, str(place))
    hardware = devices.hardware(place)
    say(
        f"{job}, {counted(count, 'image')}, {network.name}; {place}, {hardware}; "
        f"{counted(len(sides), 'configuration')}, {counted(rounds, 'round')}"
    )
    decoding = None if job == "finetune" else _peer_command(task, folder / "decode.json")
    environment = {**os.environ, "CVT_CACHE": str(folder / "cache")}
    for side in sides:
        if side.prepare is not None:
            job_processes.run(side.prepare, environment)
    seconds: list[list[float]] = [[] for _ in sides]
    memory = [0] * len(sides)
    decoded: list[float] = []
    with progress("benchmark", rounds * len(sides), unit="turns") as advance:
        for number in range(rounds):
            if decoding:
                job_processes.run(decoding, environment)
                decoded.append(len(paths) / float(Path(task.output).read_text()))
            order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
            for index in order:
                if (made := sides[index].made) is not None:
                    shutil.rmtree(made, ignore_errors=True)
                took, used = job_processes.run(sides[index].command, environment)
                seconds[index].append(took)
                memory[index] = max(memory[index], used)
                advance(1, "")
    decode_rate = statistics.median(decoded) if decoded else None
    bounds = _bounds(sides, decode_rate, rounds, folder)
    return Measured(
        *(job, network.name, count, batch_size, str(place), hardware, rounds),
        machine.versions(benchmark.VERSIONS),
        decode_rate,
        tuple(_rows(sides, seconds, memory, count, bounds)),
    )


def _check_peers(job: Job, against: Sequence[str]) -> None:
    for name in against:
        if name not in PEERS:
            accepted = ", ".join(f"`{known}`" for known in PEERS)
            raise UsageError(f"--against: there is no `{name}`; accepted are {accepted}")
        if job == "finetune" and name != TIMM_LOOP:
            raise UsageError(f"`{name}` does not train; accepted with finetune is `{TIMM_LOOP}`")
        benchmark_peers.require(cast("Peer", "transformers" if name == TIMM_LOOP else name))


@dataclass(frozen=True)
class _Pictures:
    """A job's: files, and their classes where it needs them."""

    paths: list[str]
    labels: list[int]
    classes: tuple[str, ...] = ()
    held_out: list[str] = field(default_factory=list)  # that "finetune" chooses the best epoch by
    held_out_labels: list[int] = field(default_factory=list)


def _images(job: Job, data: str) -> _Pictures:
    if job == "predict":
        place = Path(data)
        found = [str(path) for path in finding.images_in(place)] if place.is_dir() else []
        if not found:
            raise UsageError(f"--data `{data}`: a job needs a folder with images")
        return _Pictures(found, [])
    split: Literal["train", "test"] = "train" if job == "finetune" else "test"
    images = layouts.open_dataset(data, split, Path(data))
    tree = images.tree
    if images.pixels is not None or images.several or not isinstance(tree, Folder | None):
        raise UsageError(f"--data `{data}`: a job needs a folder of class folders")
    paths = [str(images.root / name) for name in images.names]
    if gone := next((path for path in paths if not os.path.isfile(path)), None):
        raise UsageError(f"--data `{data}`: a job needs files on disk, and `{gone}` is none")
    if job == "finetune":
        training, held_out = images.split(_HELD_OUT, _SEED)
        return _Pictures(*_files(training), images.classes, *_files(held_out))
    return _Pictures(*_files(images), images.classes)


def _files(images: LabelledImages) -> tuple[list[str], list[int]]:
    paths = [str(images.root / name) for name in images.names]
    return paths, [int(label) for label in images.labels]


def _written(
    network: Network, folder: Path, classes: Sequence[str]
) -> tuple[Network, Preprocessing]:
    """Write a checkpoint's folder with random weights for these classes; none are the network's."""
    from cvt_cli.export.benchmark_worker import random_network
    from cvt_cli.model import weights

    count = len(classes) or network.config.num_classes
    config = replace(network.config, num_classes=count)
    labels = Labels(tuple(classes)) if classes else unnamed(count)
    how = Preprocessing.published(network.height, network.width)
    weights.save(folder, random_network(config), labels, how, "")
    return replace(network, config=config), how


def _ours(
    engine: EngineName, precision: Precision, data: str, network: Network, task: Task, folder: Path
) -> _Side:
    """A command of ours, with its output replaced in every round."""
    cvt = [*machine.python(), "-m", "cvt_cli"]
    how = ["--model", task.model, "--precision", precision, "--device", task.device]
    made, data = folder / f"ours-{engine}-{precision}", _argument(data)
    if task.job == "finetune":
        batches = ["--batch-size", str(task.batch_size), "--epochs", "1"]
        batches += ["--val-fraction", str(_HELD_OUT), "--seed", str(_SEED)]
        more = ["--augment", "crop-flip", "--output", str(made)]
        command = [*cvt, "finetune", data, *how, *batches, *more]
        return _Side("torch", precision, command, made=made)
    how += ["--engine", engine]
    prepare = [*cvt, "predict", _argument(task.paths[0]), *how, "--json"]
    how += ["--batch-size", str(task.batch_size), "--overwrite"]
    if task.job == "predict":
        command = [*cvt, "predict", data, *how, "--output", f"{made}.csv"]
    else:
        command = [*cvt, "evaluate", data, *how, "--json", f"{made}.json"]
    network = replace(network, device=task.device)
    return _Side(
        engine, precision, command, prepare, Side(engine, precision, task.batch_size, network)
    )


def _argument(path: str) -> str:
    """A path that is no option, and no list of paths, on a command line."""
    return os.path.join(os.curdir, path) if path.startswith(("-", "@")) else path


def _peer(name: str, task: Task, network: Network, folder: Path) -> _Side:
    """Another's loop; what it exports is made first."""
    exported = None
    if benchmark_peers.exports(name):
        (folder / name).mkdir()
        size = (network.height, network.width)
        exported = benchmark_peers.export(cast("Peer", name), network.config, *size, folder / name)
    theirs = replace(
        task,
        what=name,
        exported=str(exported) if exported else None,
        output=str(folder / f"{name}.out"),
    )
    return _Side(name, "fp32", _peer_command(theirs, folder / f"{name}.json"))


def _peer_command(task: Task, path: Path) -> list[str]:
    path.write_text(json.dumps(asdict(task)))
    return [*machine.python(), "-m", "cvt_cli.export.job_peers", str(path)]


def _bounds(
    sides: Sequence[_Side], decode_rate: float | None, rounds: int, folder: Path
) -> dict[int, float]:
    """Images per second that one of our sides cannot pass; decoding and computing share a CPU."""
    with_engine = [side for side in sides if side.engine is not None]
    if decode_rate is None or not with_engine:
        return {}
    alone = benchmark.measure(
        [cast("Side", side.engine) for side in with_engine],
        rounds=rounds, ratios=False, against_peak=False, folder=folder, progress=silent,
    )  # fmt: skip
    found = {}
    for side, row in zip(with_engine, alone, strict=True):
        on_cpu = row.side.network.device == "cpu"
        both = 1 / (1 / decode_rate + 1 / row.images_per_sec)
        found[id(side)] = both if on_cpu else min(decode_rate, row.images_per_sec)
    return found


def _rows(
    sides: Sequence[_Side],
    seconds: Sequence[Sequence[float]],
    memory: Sequence[int],
    images: int,
    bounds: Mapping[int, float],
) -> Iterator[Row]:
    for side, own, used in zip(sides, seconds, memory, strict=True):
        paired = [first / mine for first, mine in zip(seconds[0], own, strict=True)]
        rate, bound = images / statistics.median(own), bounds.get(id(side))
        yield Row(
            *(side.name, side.precision, rate, images / max(own), images / min(own)),
            statistics.median(paired) if benchmark.agree(paired) else None,
            (min(paired), max(paired)),
            used,
            bound and rate / bound,
        )
