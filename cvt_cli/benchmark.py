"""How fast each engine runs one network: every side in a process of its own, turn by turn.

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
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cvt_cli import layouts, processes, runtimes
from cvt_cli.config import CvTConfig
from cvt_cli.errors import CvtError, UsageError
from cvt_cli.labels import unnamed
from cvt_cli.progress import Progress

if TYPE_CHECKING:
    from cvt_cli.devices import Precision
    from cvt_cli.model import CvT

Runner = Callable[[NDArray[np.float32]], Any]
Name = Literal["torch", "onnxruntime", "openvino", "transformers"]

SHORTEST_TURN_SEC = 0.5
"""A side computes at least this long in every round."""

_PEAK_SIZE = 2048
"""Of the square matrices whose product shows what the processor can do."""


@dataclass(frozen=True)
class Side:
    """One way to run the network."""

    engine: Name  # "transformers": its eager network, the usual baseline
    precision: "Precision"
    batch_size: int


@dataclass(frozen=True)
class Network:
    """What every side runs, and where."""

    config: CvTConfig
    height: int  # of the images in pixels
    width: int
    macs: int  # multiply-accumulates of one image
    device: str  # of torch and transformers; the other engines run on the CPU


@dataclass(frozen=True)
class Row:
    """What was measured of one side."""

    side: Side
    images_per_sec: float  # median of the rounds
    slowest: float  # images per second in the slowest round
    fastest: float
    ratio: float | None  # to transformers at the same batch size, median of the rounds' ratios
    startup_sec: float  # from a new process to an engine that can be called, imports included
    first_call_sec: float
    share_of_peak: float  # of the matrix product's rate in the same precision, measured in turn
    peak_memory_bytes: int  # of the process; on CUDA, of the device

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "engine": self.side.engine,
            "precision": self.side.precision,
            "batch_size": self.side.batch_size,
            "images_per_sec": self.images_per_sec,
            "images_per_sec_range": [self.slowest, self.fastest],
            "latency_sec": self.side.batch_size / self.images_per_sec,
            "ratio": self.ratio,
            "startup_sec": self.startup_sec,
            "first_call_sec": self.first_call_sec,
            "share_of_peak": self.share_of_peak,
            "peak_memory_bytes": self.peak_memory_bytes,
        }


def sides(
    engines: Sequence[str],
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    device: str,
    against_transformers: bool,
) -> list[Side]:
    """Every combination that can run; the baseline first for each batch size.

    Raises:
        UsageError: an engine or precision that does not exist, or an engine that is not installed.
    """
    for name in (*engines, *(("transformers",) if against_transformers else ())):
        if name not in ("torch", "onnxruntime", "openvino", "transformers"):
            raise UsageError(
                f"there is no engine `{name}`; accepted are `torch`, `onnxruntime`, `openvino`"
            )
        if not runtimes.installed(name):
            raise UsageError(f"`{name}` is not installed", hint=f"pip install {name}")
    found = []
    for batch_size in batch_sizes:
        if against_transformers:
            found.append(Side("transformers", "fp32", batch_size))
        for engine in engines:
            for asked in precisions:
                if asked not in ("fp32", "bf16", "fp16"):
                    raise UsageError(
                        f"there is no precision `{asked}`; accepted are `fp32`, `bf16`, `fp16`"
                    )
                if engine == "onnxruntime" and asked != "fp32":
                    continue
                if engine == "openvino" and asked == "fp16":
                    continue
                if engine == "torch" and asked == "fp16" and device == "cpu":
                    continue
                found.append(Side(engine, asked, batch_size))  # type: ignore[arg-type]
    return found


def measure(
    network: Network, asked: Sequence[Side], *, rounds: int, folder: Path, progress: Progress
) -> list[Row]:
    """Measure every side in turn.

    Args:
        network: what they run.
        asked: what to measure.
        rounds: how often every side has its turn.
        folder: for the graph.
        progress: of the rounds.

    Raises:
        UsageError: a side does not compute in its precision here.
        CvtError: a side's process ended, as for want of memory.
    """
    graph = folder / "model.onnx"
    if any(side.engine in ("onnxruntime", "openvino") for side in asked):
        from cvt_cli import graphs

        graphs.write_onnx(random_network(network.config), graph, network.height, network.width, {})
    rates: list[list[float]] = [[] for _ in asked]
    peaks: dict[str, list[float]] = {side.precision: [] for side in asked}
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(side, network, graph)) for side in asked]
        with progress("benchmark", rounds * len(asked), unit="turns") as advance:
            for number in range(rounds):
                for precision, found in peaks.items():
                    found.append(_matrix_rate(network.device, precision))  # type: ignore[arg-type]
                order = range(len(asked)) if number % 2 == 0 else reversed(range(len(asked)))
                for index in order:
                    rates[index].append(workers[index].turn())
                    advance(1, "")
        memory = [worker.stop() for worker in workers]
    baselines = {
        side.batch_size: own
        for side, own in zip(asked, rates, strict=True)
        if side.engine == "transformers"
    }
    rows = []
    for worker, own, used in zip(workers, rates, memory, strict=True):
        side = worker.side
        against = baselines.get(side.batch_size)
        rate = statistics.median(own)
        rows.append(
            Row(
                side,
                rate,
                min(own),
                max(own),
                against and statistics.median(a / b for a, b in zip(own, against, strict=True)),
                worker.startup_sec,
                worker.first_call_sec,
                2 * network.macs * rate / statistics.median(peaks[side.precision]),
                used,
            )
        )
    return rows


class _Worker:
    """One side in its process; the others sleep while it has its turn."""

    def __init__(self, side: Side, network: Network, graph: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.side = side
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, time.time(), side, network, graph), daemon=True
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


def _work(
    connection: Connection, spawned: float, side: Side, network: Network, graph: Path
) -> None:
    """What a side's process does: say when it is ready, then compute when told to."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's affair
    generator = np.random.default_rng(0)
    shape = (side.batch_size, 3, network.height, network.width)
    batch = generator.standard_normal(shape, dtype=np.float32)
    weights_sec, model = 0.0, None
    try:
        if side.engine in ("torch", "transformers"):
            import torch  # noqa: F401  its import belongs to the start, the making of weights not

            started = time.perf_counter()
            model = random_network(network.config)
            weights_sec = time.perf_counter() - started
        runner = _runner(side, model, graph, network.device)
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


def _seconds(runner: Runner, batch: NDArray[np.float32]) -> float:
    started = time.perf_counter()
    runner(batch)
    return time.perf_counter() - started


def random_network(config: CvTConfig) -> "CvT":
    """A network with random weights, which is as fast as one with others."""
    import torch

    from cvt_cli.model import CvT, init_weights

    torch.manual_seed(0)
    model = CvT(config)
    init_weights(model)
    return model.eval()


def _runner(side: Side, model: "CvT | None", graph: Path, device: str) -> Runner:
    if side.engine == "onnxruntime" or side.engine == "openvino":
        return runtimes.open_graph(side.engine, graph, side.precision)
    import torch

    from cvt_cli.torch_engine import TorchEngine

    assert model is not None
    place = torch.device(device)
    if side.engine == "torch":
        return TorchEngine(model, place, side.precision)
    return _transformers(model, place)


def _transformers(model: "CvT", device: Any) -> Runner:
    """The same network in transformers, eager, float32."""
    import torch
    from transformers import CvtConfig, CvtForImageClassification

    names = unnamed(model.config.num_classes)
    config = CvtConfig(**layouts.transformers_config(model.config, names, ""))
    theirs = CvtForImageClassification(config)
    state = {layouts.to_transformers(name): t for name, t in model.state_dict().items()}
    theirs.load_state_dict(state)
    theirs.eval().to(device)

    def run(batch: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return theirs(torch.from_numpy(batch).to(device)).logits.cpu()

    return run


def _matrix_rate(device: str, precision: "Precision") -> float:
    """FLOP/s of a product of two square matrices on torch, the fastest of three."""
    import torch

    from cvt_cli import devices

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
    return processes.peak_memory()


def versions() -> dict[str, str]:
    """Versions of what was or could be measured, by package."""
    from importlib import metadata

    found = {}
    for name in ("cvt-cli", "torch", "onnxruntime", "openvino", "transformers"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def names_of(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
