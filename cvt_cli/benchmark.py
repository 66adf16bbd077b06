"""How fast each engine runs one network: all sides in one process, turn by turn.

Rates of a machine drift; ratios of sides that took turns drift less. Every side is warmed up, then
measured in as many rounds as asked for, in an order that is reversed every other round, and the
medians are compared. Peak memory is that of a process of its own.
"""

import multiprocessing
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from cvt_cli import devices, graphs, layouts, runtimes
from cvt_cli.config import CvTConfig
from cvt_cli.errors import UsageError
from cvt_cli.labels import unnamed
from cvt_cli.model import CvT, init_weights
from cvt_cli.progress import Progress
from cvt_cli.torch_engine import TorchEngine

Runner = Callable[[NDArray[np.float32]], Any]
Name = Literal["torch", "onnxruntime", "openvino", "transformers"]

SHORTEST_TURN_SEC = 0.25
"""A side computes at least this long in every round."""

_PEAK_SIZE = 2048
"""Of the square matrices whose product shows what the processor can do."""


@dataclass(frozen=True)
class Side:
    """One way to run the network."""

    engine: Name  # "transformers": its eager network, the usual baseline
    precision: devices.Precision
    batch_size: int


@dataclass(frozen=True)
class Row:
    """What was measured of one side."""

    side: Side
    images_per_sec: float  # median of the rounds
    slowest: float  # images per second in the slowest round
    fastest: float
    ratio: float | None  # to transformers at the same batch size, median of the rounds' ratios
    startup_sec: float  # from the network in memory to an engine that can be called
    first_call_sec: float
    share_of_peak: float  # of the matrix product's rate in the same precision, measured in turn
    peak_memory_bytes: int | None

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


def random_network(config: CvTConfig) -> CvT:
    """A network with random weights, which is as fast as one with others."""
    torch.manual_seed(0)
    model = CvT(config)
    init_weights(model)
    return model.eval()


def sides(
    engines: Sequence[str],
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    device: torch.device,
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
                if engine == "torch" and asked == "fp16" and device.type == "cpu":
                    continue
                found.append(Side(engine, asked, batch_size))  # type: ignore[arg-type]
    return found


def measure(
    model: CvT,
    height: int,
    width: int,
    asked: Sequence[Side],
    *,
    device: torch.device,
    macs: int,
    rounds: int,
    memory: bool,
    folder: Path,
    progress: Progress,
) -> list[Row]:
    """Measure every side in turn.

    Args:
        model: in its training form, on the CPU.
        height: of the images in pixels.
        width: likewise.
        asked: what to measure.
        device: of torch and transformers; the other engines run on the CPU.
        macs: multiply-accumulates of one image, for the share of the peak.
        rounds: how often every side has its turn.
        memory: measure the peak memory of each side too, in a process of its own.
        folder: for the graph.
        progress: of the rounds.
    """
    graph = folder / "model.onnx"
    if any(side.engine in ("onnxruntime", "openvino") for side in asked):
        graphs.write_onnx(model, graph, height, width, {})
    generator = np.random.default_rng(0)
    runners: list[Runner] = []
    batches = []
    starts = []
    for side in asked:
        shape = (side.batch_size, 3, height, width)
        batches.append(generator.standard_normal(shape, dtype=np.float32))
        started = perf_counter()
        runners.append(_runner(side, model, graph, device))
        ready = perf_counter()
        runners[-1](batches[-1])
        starts.append((ready - started, perf_counter() - ready))
    calls = []
    for runner, batch in zip(runners, batches, strict=True):  # the second call is a typical one
        started = perf_counter()
        runner(batch)
        calls.append(max(1, round(SHORTEST_TURN_SEC / (perf_counter() - started))))
    rates: list[list[float]] = [[] for _ in asked]
    peaks: dict[str, list[float]] = {side.precision: [] for side in asked}
    with progress("benchmark", rounds * len(asked), unit="turns") as advance:
        for number in range(rounds):
            for precision, found in peaks.items():
                found.append(_matrix_rate(device, precision))  # type: ignore[arg-type]
            order = range(len(asked)) if number % 2 == 0 else reversed(range(len(asked)))
            for index in order:
                runners[index](batches[index])  # what the side before left in the caches is gone
                started = perf_counter()
                for _ in range(calls[index]):
                    runners[index](batches[index])
                images = calls[index] * asked[index].batch_size
                rates[index].append(images / (perf_counter() - started))
                advance(1, "")
    baselines = {
        side.batch_size: own
        for side, own in zip(asked, rates, strict=True)
        if side.engine == "transformers"
    }
    rows = []
    for side, own, (startup, first) in zip(asked, rates, starts, strict=True):
        against = baselines.get(side.batch_size)
        rate = statistics.median(own)
        rows.append(
            Row(
                side,
                rate,
                min(own),
                max(own),
                against and statistics.median(a / b for a, b in zip(own, against, strict=True)),
                startup,
                first,
                2 * macs * rate / statistics.median(peaks[side.precision]),
                None,
            )
        )
    if not memory:
        return rows
    context = multiprocessing.get_context("spawn")
    with_memory = []
    for row in rows:
        with context.Pool(1) as pool:  # a new process for each
            arguments = (row.side, model.config, graph, device, height, width)
            peak = pool.apply(_peak_memory, arguments)
        with_memory.append(replace(row, peak_memory_bytes=peak))
    return with_memory


def _runner(side: Side, model: CvT, graph: Path, device: torch.device) -> Runner:
    if side.engine == "torch":
        return TorchEngine(model, device, side.precision)
    if side.engine == "transformers":
        return _transformers(model, device)
    return runtimes.open_graph(side.engine, graph, side.precision)


def _transformers(model: CvT, device: torch.device) -> Runner:
    """The same network in transformers, eager, float32."""
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


def _matrix_rate(device: torch.device, precision: devices.Precision) -> float:
    """FLOP/s of a product of two square matrices on torch, the fastest of three."""
    shape = (_PEAK_SIZE, _PEAK_SIZE)
    left, right = (torch.ones(shape, dtype=devices.dtype(precision), device=device) for _ in "ab")
    best = float("inf")
    for _ in range(3):
        started = perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        best = min(best, perf_counter() - started)
    return 2 * _PEAK_SIZE**3 / best


def _peak_memory(
    side: Side, config: CvTConfig, graph: Path, device: torch.device, height: int, width: int
) -> int:
    """Peak memory in bytes of this process after two calls; on CUDA, of the device."""
    batch = np.zeros((side.batch_size, 3, height, width), np.float32)
    model = random_network(config) if side.engine in ("torch", "transformers") else None
    runner = _runner(side, model, graph, device)  # type: ignore[arg-type]
    for _ in range(2):
        runner(batch)
    if device.type == "cuda" and model is not None:
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # Linux counts in getrusage what ran in this process before it was replaced
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
