"""How fast each engine runs a network: every side in a process of its own, turn by turn.

Rates of a machine drift; ratios of sides that took turns drift less. Every side starts as a new
process, as a user's command would, is warmed up, then measured in as many rounds as asked for, in
an order that is reversed every other round, and the medians are compared.

Imports torch only inside functions, so that a runtime's process does without it.
"""

import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import machine
from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.base.progress import Progress
from cvt_cli.checkpoints import export_metadata, folders
from cvt_cli.checkpoints.export_metadata import Record
from cvt_cli.checkpoints.names import to_transformers
from cvt_cli.engines import runtimes
from cvt_cli.spec.config import CvTConfig
from cvt_cli.spec.costs import costs
from cvt_cli.spec.labels import unnamed

if TYPE_CHECKING:
    from cvt_cli.model.devices import Precision
    from cvt_cli.model.network import CvT

Runner = Callable[[NDArray[Any]], Any]
Name = Literal["torch", "onnxruntime", "openvino", "transformers"]

SHORTEST_TURN_SEC = 0.5
"""A side computes at least this long in every round."""

MOST_APART = 2.0
"""How much the largest of the rounds' ratios may be of the least, for their median to be one."""

_PEAK_SIZE = 2048
"""Of the square matrices whose product shows what the processor can do."""


@dataclass(frozen=True)
class Network:
    """What a side runs, and where."""

    name: str
    config: CvTConfig
    height: int  # of the images in pixels
    width: int
    macs: int  # multiply-accumulates of one image
    device: str = "cpu"  # of torch and transformers; the other engines run on the CPU
    file: Path | None = None  # one that `cvt export` wrote; else the weights are random
    record: Record | None = None  # what it says of itself

    @classmethod
    def of(cls, name: str, config: CvTConfig, height: int, width: int) -> "Network":
        """One with random weights."""
        return cls(name, config, height, width, costs(name, config, height, width).macs)

    @classmethod
    def of_file(cls, path: Path, size: tuple[int, int] | None = None) -> "Network":
        """One that was exported.

        Raises:
            UsageError: it does not take this size.
            CheckpointError: it is damaged, or another tool wrote it.
        """
        record = export_metadata.read(path).at(size, path)
        height, width = record.preprocessing.height, record.preprocessing.width
        network = cls.of(str(path), record.config, height, width)
        return replace(network, file=path, record=record)

    @property
    def engines(self) -> tuple[Name, ...]:
        """Those that run the file, its own first."""
        assert self.file is not None
        form = export_metadata.format_of(self.file)
        return {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}.get(
            form, ("torch",)
        )


@dataclass(frozen=True)
class Side:
    """One way to run a network."""

    engine: Name  # "transformers": its eager network, the usual baseline
    precision: str
    batch_size: int
    network: Network

    @property
    def needs_graph(self) -> bool:
        """Whether it runs a graph that is still to be made."""
        return self.network.file is None and self.engine in ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Row:
    """What was measured of one side."""

    side: Side
    images_per_sec: float  # median of the rounds
    slowest: float  # images per second in the slowest round
    fastest: float
    ratio: float | None  # to the first side of the same batch size, median of the rounds' ratios;
    # None also where these do not agree
    ratios: tuple[float, float] | None  # the least and the largest of the rounds
    startup_sec: float  # from a new process to an engine that can be called, imports included
    first_call_sec: float
    share_of_peak: float | None  # of a matrix product's rate in the same precision, in turn
    peak_memory_bytes: int  # of the process; on CUDA, of the device

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "model": self.side.network.name,
            "engine": self.side.engine,
            "precision": self.side.precision,
            "batch_size": self.side.batch_size,
            "images_per_sec": self.images_per_sec,
            "images_per_sec_range": [self.slowest, self.fastest],
            "latency_sec": self.side.batch_size / self.images_per_sec,
            "ratio": self.ratio,
            "ratio_range": self.ratios and list(self.ratios),
            "startup_sec": self.startup_sec,
            "first_call_sec": self.first_call_sec,
            "share_of_peak": self.share_of_peak,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def sides(
    networks: Sequence[Network],
    engines: Sequence[str] | None,
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    against_transformers: bool,
) -> list[Side]:
    """Every combination that can run; the baseline first for each batch size.

    Args:
        networks: a file runs in its own precision; the first one's architecture is the baseline's.
        engines: None for all that are installed, of a file its own.
        precisions: of what is no file.
        batch_sizes: images per call.
        against_transformers: whether its eager network is the baseline.

    Raises:
        UsageError: an engine or precision that does not exist, or an engine that is not installed
            or does not run a file.
    """
    for name in (*(engines or ()), *(("transformers",) if against_transformers else ())):
        if name not in ("torch", "onnxruntime", "openvino", "transformers"):
            raise UsageError(
                f"there is no engine `{name}`; accepted are `torch`, `onnxruntime`, `openvino`"
            )
        if not runtimes.installed(name):
            raise UsageError(f"`{name}` is not installed", hint=f"pip install {name}")
    for asked in precisions:
        if asked not in ("fp32", "bf16", "fp16"):
            raise UsageError(
                f"there is no precision `{asked}`; accepted are `fp32`, `bf16`, `fp16`"
            )
    found = []
    every = [n for n in ("torch", "onnxruntime", "openvino") if runtimes.installed(n)]
    for batch_size in batch_sizes:
        if against_transformers:
            plain = replace(networks[0], file=None, record=None)
            found.append(Side("transformers", "fp32", batch_size, plain))
        for network in networks:
            if network.record is not None:
                found += _sides_of_file(network, network.record, engines, batch_size)
                continue
            for engine in every if engines is None else engines:
                for asked in precisions:
                    if engine == "onnxruntime" and asked != "fp32":
                        continue
                    if engine == "openvino" and asked == "fp16":
                        continue
                    if engine == "torch" and asked == "fp16" and network.device == "cpu":
                        continue
                    found.append(Side(engine, asked, batch_size, network))
    return found


def _sides_of_file(
    network: Network, record: Record, engines: Sequence[str] | None, batch_size: int
) -> list[Side]:
    found = []
    for engine in network.engines[:1] if engines is None else engines:
        if engine in network.engines:
            found.append(Side(engine, record.precision, batch_size, network))
        else:
            runs = " and ".join(f"`{name}`" for name in network.engines)
            raise UsageError(f"`{network.file}` runs on {runs}, not on `{engine}`")
    return found


def measure(
    asked: Sequence[Side],
    *,
    rounds: int,
    ratios: bool,
    against_peak: bool = True,
    folder: Path,
    progress: Progress,
) -> list[Row]:
    """Measure every side in turn.

    Args:
        asked: what to measure.
        rounds: how often every side has its turn.
        ratios: whether the first side of each batch size is the baseline of the others.
        against_peak: whether to measure the rate of a matrix product too, for the share of it.
        folder: for graphs.
        progress: of the rounds.

    Raises:
        UsageError: a side does not compute in its precision here.
        CvtError: a side's process ended, as for want of memory.
    """
    rates: list[list[float]] = [[] for _ in asked]
    peaks: dict[tuple[str, str], list[float]] = {
        (side.network.device, side.precision): []
        for side in asked
        if against_peak and side.precision != "int8"  # torch has no such product to compare with
    }
    with ExitStack() as stack:
        graphs = {
            network: _random_graph(network, folder / f"{number}.onnx")
            for number, network in enumerate(
                dict.fromkeys(side.network for side in asked if side.needs_graph)
            )
        }
        workers = [
            stack.enter_context(_Worker(side, side.network.file or graphs.get(side.network)))
            for side in asked
        ]
        with progress("benchmark", rounds * len(asked), unit="turns") as advance:
            for number in range(rounds):
                for (device, precision), found in peaks.items():
                    found.append(_matrix_rate(device, precision))  # type: ignore[arg-type]
                order = range(len(asked)) if number % 2 == 0 else reversed(range(len(asked)))
                for index in order:
                    rates[index].append(workers[index].turn())
                    advance(1, "")
        memory = [worker.stop() for worker in workers]
    baselines: dict[int, list[float]] = {}
    rows = []
    for worker, own, used in zip(workers, rates, memory, strict=True):
        side = worker.side
        against = baselines.setdefault(side.batch_size, own) if ratios else None
        rate = statistics.median(own)
        paired = against and [a / b for a, b in zip(own, against, strict=True)]
        peak = peaks.get((side.network.device, side.precision))
        rows.append(
            Row(
                side,
                rate,
                min(own),
                max(own),
                statistics.median(paired) if paired and agree(paired) else None,
                (min(paired), max(paired)) if paired else None,
                worker.startup_sec,
                worker.first_call_sec,
                peak and 2 * side.network.macs * rate / statistics.median(peak),
                used,
            )
        )
    return rows


def agree(ratios: Sequence[float]) -> bool:
    """Whether the rounds' ratios are of one thing; beside other processes they may not be."""
    return max(ratios) <= MOST_APART * min(ratios)


def ratio_text(row: Row) -> str:
    """A ratio in as many digits as the rounds agree on; what they say where they do not."""
    if row.ratios is None:
        return ""
    low, high = row.ratios
    if row.ratio is None:
        return f"{low:.1f} to {high:.1f}"
    return f"{row.ratio:.2f}" if high <= 1.1 * low else f"{row.ratio:.1f}"


def _random_graph(network: Network, path: Path) -> Path:
    from cvt_cli.export import graphs

    graphs.write_onnx(
        random_network(network.config), path, network.height, network.width, {}, made_under={}
    )
    return path


class _Worker:
    """One side in its process; the others sleep while it has its turn."""

    def __init__(self, side: Side, graph: Path | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.side = side
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, time.time(), side, graph), daemon=True
        )
        self._process.start()
        theirs.close()  # so that its end is noticed
        self.startup_sec, self.first_call_sec = self._receive()

    def turn(self) -> float:
        """Images per second."""
        self._connection.send(True)
        return self._receive()  # type: ignore[no-any-return]

    def stop(self) -> int:
        """Its peak memory in bytes."""
        self._connection.send(False)
        return self._receive()  # type: ignore[no-any-return]

    def _receive(self) -> Any:
        try:
            received = self._connection.recv()
        except EOFError:
            self._process.join()
            raise CvtError(
                f"the process of {self.side.engine} in {self.side.precision} at batch "
                f"{self.side.batch_size} ended with exit code {self._process.exitcode}",
                hint="if it was killed for want of memory, try a smaller --batch-size or --res",
            ) from None
        if isinstance(received, CvtError):
            raise received
        return received

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _work(connection: Connection, spawned: float, side: Side, graph: Path | None) -> None:
    """What a side's process does: say when it is ready, then compute when told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's affair
    generator, network = np.random.default_rng(0), side.network
    height, width = network.height, network.width
    batch: NDArray[Any]
    if network.record is not None and network.record.preprocessing_inside:
        batch = generator.integers(0, 256, (side.batch_size, height, width, 3), np.uint8)
    else:
        shape = (side.batch_size, 3, height, width)
        batch = generator.standard_normal(shape, dtype=np.float32)
    weights_sec, model = 0.0, None
    try:
        if network.file is None and side.engine in ("torch", "transformers"):
            import torch  # noqa: F401  its import belongs to the start, the making of weights not

            started = time.perf_counter()
            model = random_network(network.config)
            weights_sec = time.perf_counter() - started
        runner = _runner(side, model, graph)
    except CvtError as error:
        connection.send(error)
        return
    startup_sec = time.time() - spawned - weights_sec
    first_call_sec = _seconds(runner, batch)
    calls = max(1, round(SHORTEST_TURN_SEC / _seconds(runner, batch)))
    connection.send((startup_sec, first_call_sec))
    while connection.recv():
        runner(batch)  # what the side before left in the caches is gone
        started = time.perf_counter()
        for _ in range(calls):
            runner(batch)
        connection.send(calls * side.batch_size / (time.perf_counter() - started))
    connection.send(_peak_memory(network.device if model else "cpu"))


def _seconds(runner: Runner, batch: NDArray[Any]) -> float:
    started = time.perf_counter()
    runner(batch)
    return time.perf_counter() - started


def random_network(config: CvTConfig) -> "CvT":
    """A network with random weights, which is as fast as one with others."""
    from cvt_cli.model.network import fresh_model

    return fresh_model(config, seed=0).eval()


def _runner(side: Side, model: "CvT | None", graph: Path | None) -> Runner:
    record, macs = side.network.record, side.network.macs * side.batch_size
    if side.engine == "onnxruntime" or side.engine == "openvino":
        assert graph is not None
        return runtimes.open_graph(side.engine, graph, side.precision, record, macs=macs)
    import torch

    from cvt_cli.model.engine import ExportedEngine, TorchEngine

    if record is not None:
        assert graph is not None
        return ExportedEngine(graph, record, macs)
    assert model is not None
    place = torch.device(side.network.device)
    if side.engine == "torch":
        return TorchEngine(model, place, side.precision, macs)
    return _transformers(model, place)


def _transformers(model: "CvT", device: Any) -> Runner:
    """The same network in transformers, eager, float32."""
    import torch
    from transformers import CvtConfig, CvtForImageClassification

    names = unnamed(model.config.num_classes)
    config = CvtConfig(**folders.transformers_config(model.config, names, ""))
    theirs = CvtForImageClassification(config)
    state = {to_transformers(name): t for name, t in model.state_dict().items()}
    theirs.load_state_dict(state)
    theirs.eval().to(device)

    def run(batch: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return theirs(torch.from_numpy(batch).to(device)).logits.cpu()

    return run


def _matrix_rate(device: str, precision: "Precision") -> float:
    """FLOP/s of a product of two square matrices on torch, the fastest of three."""
    import torch

    from cvt_cli.model import devices

    shape = (_PEAK_SIZE, _PEAK_SIZE)
    left, right = (torch.ones(shape, dtype=devices.dtype(precision), device=device) for _ in "ab")
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * _PEAK_SIZE**3 / best


def _peak_memory(device: str) -> int:
    """Peak memory in bytes of this process so far; on CUDA, of the device."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return machine.peak_memory()


def names_of(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
