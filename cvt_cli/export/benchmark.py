"""How fast each engine runs a network: every side in a process of its own, turn by turn.

Rates of a machine drift; ratios of sides that took turns drift less. Every side starts as a new
process, as a user's command would, is warmed up, then measured in as many rounds as asked for, in
an order that is reversed every other round, and the medians are compared.

Imports torch only inside functions, so that a runtime's process does without it.
"""

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from cvt_cli.base import files, machine
from cvt_cli.base.errors import UsageError
from cvt_cli.base.progress import Progress, Say
from cvt_cli.base.text import counted
from cvt_cli.cards import gather
from cvt_cli.export import benchmark_peers
from cvt_cli.export.benchmark_peers import exports
from cvt_cli.export.benchmark_sides import Network, Side, sides_of
from cvt_cli.export.benchmark_worker import Worker, random_graph
from cvt_cli.export.verification import PACKAGED, Pictures
from cvt_cli.tracking import energy as energies
from cvt_cli.tracking.energy import Energy

if TYPE_CHECKING:
    from cvt_cli.spec.formats import Precision

MOST_APART = 2.0
"""How much the largest of the rounds' ratios may be of the least, for their median to be one."""

VERSIONS = ("cvt-cli", "torch", "onnxruntime", "openvino", "transformers")
"""The packages whose versions a result depends on."""

ENERGY_SEC = 5.0
"""That every side computes for, to know its energy: some looks at counters a second apart."""

_PEAK_SIZE = 2048
"""Rows of the square matrices whose product shows what the processor can do."""

_LEAST_PEAK = 3e9
"""FLOP/s. Below, torch has no fast product in this precision (bf16 and fp16 on a processor without
instructions for them, 0.6e9 with AVX2): it is no peak, and would take half a minute each time."""


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
    joules_per_image: float | None = None  # of the whole machine, where that was measured

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
            "joules_per_image": self.joules_per_image,
        }


@dataclass(frozen=True)
class Benchmark:
    """What was measured of all sides, and where."""

    networks: tuple[Network, ...]
    device: str
    hardware: str
    rounds: int
    versions: Mapping[str, str]
    rows: tuple[Row, ...]
    date: str  # when it was measured
    energy: Mapping[str, Any] | None = None  # of all sides together, as the documented keys

    @property
    def single(self) -> Network | None:
        """The network, if there is one."""
        return self.networks[0] if len(self.networks) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        single, alike = self.single, _of_one_size(self.networks)
        return {
            "model": single and single.name,
            "height": alike and alike.height,
            "width": alike and alike.width,
            "macs": single and single.macs,
            "weights": _weights(self.networks),
            "device": self.device,
            "hardware": self.hardware,
            "rounds": self.rounds,
            "versions": self.versions,
            "date": self.date,
            "energy": self.energy,
            "rows": [row.to_json() for row in self.rows],
        }


def benchmark(
    networks: Sequence[Network],
    *,
    engines: Sequence[str] | None,
    precisions: Sequence[str],
    batch_sizes: Sequence[int],
    against: Sequence[str],
    rounds: int,
    device: str,
    energy: bool = False,
    country: str | None = None,
    say: Say,
    progress: Progress,
) -> Benchmark:
    """Measure every side of these networks in turn.

    Args:
        networks: at least one; the first is what the ratios are to.
        engines: as of `sides_of`, and so are the next three.
        precisions: of what is no file.
        batch_sizes: images per call.
        against: `benchmark_peers.PEERS`; the ratios are to the first.
        rounds: how often every side has its turn.
        device: what follows ``--device``.
        energy: measure it too, in more turns.
        country: for the CO2 of it.
        say: told what is measured.
        progress: of the rounds.

    Raises:
        UsageError: there is no such engine, precision or device, or a file does not run on it.
        CvtError: a side's process ended, as for want of memory.
    """
    on_cpu = all(network.file for network in networks)  # and what they are compared with
    if on_cpu and device not in ("auto", "cpu"):
        raise UsageError(f"`{networks[0].name}` runs on the CPU here, not on `{device}`")
    from cvt_cli.model import devices

    if energy:
        energies.check(country)
    place = devices.choose_device("cpu" if on_cpu else device)
    networks = [n if n.file else replace(n, device=str(place)) for n in networks]
    sides = sides_of(networks, engines, precisions, batch_sizes, against)
    hardware = devices.hardware(place)
    say(
        f"{title_of(networks)}; {place}, {hardware}; {counted(len(sides), 'configuration')}, "
        f"{counted(rounds, 'round')}"
    )
    if any(side.needs_graph and side.in_int8 for side in sides):
        say(f"int8 is calibrated on {counted(len(Pictures.of(PACKAGED)), 'image')} of the package")
    used: list[Energy] | None = [] if energy else None
    with files.workplace(Path(tempfile.gettempdir(), "cvt-benchmark")) as folder:
        rows = measure(
            sides,
            rounds=rounds,
            ratios=bool(against) or len(networks) > 1 or len(precisions) > 1,
            folder=folder,
            progress=progress,
            energy=used,
            country=country,
        )
    return Benchmark(
        tuple(networks), str(place), hardware, rounds, machine.versions(VERSIONS), tuple(rows),
        gather.today(),
        energies.added([one.to_json() for one in used]) if used else None,
    )  # fmt: skip


def title_of(networks: Sequence[Network]) -> str:
    """The networks in words."""
    alike = _of_one_size(networks)
    at = f" at {alike.height}x{alike.width}" if alike else ""
    names = ", ".join(network.name for network in networks)
    return f"{names}{at}, {_weights(networks)} weights"


def _of_one_size(networks: Sequence[Network]) -> Network | None:
    """One of the networks, if all take images of one size."""
    return networks[0] if len({(n.height, n.width) for n in networks}) == 1 else None


def _weights(networks: Sequence[Network]) -> str:
    return " and ".join(sorted({"exported" if n.file else "random" for n in networks}))


def measure(
    asked: Sequence[Side],
    *,
    rounds: int,
    ratios: bool,
    against_peak: bool = True,
    folder: Path,
    progress: Progress,
    energy: list[Energy] | None = None,
    country: str | None = None,
) -> list[Row]:
    """Measure every side in turn.

    Args:
        asked: what to measure.
        rounds: how often every side has its turn.
        ratios: whether the first side of each batch size is the baseline of the others.
        against_peak: whether to measure the rate of a matrix product too, for the share of it.
        folder: for graphs.
        progress: of the rounds.
        energy: where that is to be measured, takes what each side used, in order.
        country: for the CO2 of it.

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
    peaks = {key: found for key, found in peaks.items() if _matrix_rate(*key, 256) > _LEAST_PEAK}
    with ExitStack() as stack:
        made = dict.fromkeys((s.network, s.in_int8) for s in asked if s.needs_graph)
        graphs = {
            (network, in_int8): random_graph(network, in_int8, folder / f"{number}.onnx")
            for number, (network, in_int8) in enumerate(made)
        }
        theirs: dict[tuple[str, Network], Path] = {}
        for number, side in enumerate(asked):
            peer = (side.engine, side.network)
            if exports(side.engine) and peer not in theirs:
                theirs[peer] = _exported_by_peer(side, folder / f"peer-{number}")
        workers = [
            stack.enter_context(
                Worker(
                    side,
                    side.network.file
                    or theirs.get((side.engine, side.network))
                    or graphs.get((side.network, side.in_int8)),
                )
            )
            for side in asked
        ]
        with progress("benchmark", rounds * len(asked), unit="turns") as advance:
            for number in range(rounds):
                for key, found in peaks.items():
                    found.append(_matrix_rate(*key, _PEAK_SIZE))
                order = range(len(asked)) if number % 2 == 0 else reversed(range(len(asked)))
                for index in order:
                    rates[index].append(workers[index].turn())
                    advance(1, "")
        joules: list[float | None] = [None] * len(workers)
        if energy is not None:
            with progress("energy", len(workers), unit="turns") as advance:
                for index, worker in enumerate(workers):
                    used, joules[index] = _energy_of(worker, country)
                    energy.append(used)
                    advance(1, "")
        memory = [worker.stop() for worker in workers]
    rows = _rows(workers, rates, peaks, memory, ratios)
    return [replace(row, joules_per_image=j) for row, j in zip(rows, joules, strict=True)]


def _energy_of(worker: Worker, country: str | None) -> tuple[Energy, float | None]:
    """The energy of a side that computes without a pause, and its joules for an image."""
    images, before = 0.0, time.perf_counter()
    end = before + ENERGY_SEC
    with energies.measured(country, every_sec=1.0) as used:
        while before < end:
            rate = worker.turn()
            now = time.perf_counter()
            images, before = images + rate * (now - before), now
    return used, None if used.kwh is None else energies.JOULES * used.kwh / images


def _rows(
    workers: Sequence[Worker],
    rates: Sequence[Sequence[float]],
    peaks: Mapping[tuple[str, str], Sequence[float]],
    memory: Sequence[int],
    ratios: bool,
) -> list[Row]:
    """What follows from the rounds.

    Args:
        workers: one for each side.
        rates: images per second of each side in every round.
        peaks: FLOP/s of a matrix product in every round, by device and precision.
        memory: peak memory of each side in bytes.
        ratios: whether the first side of each batch size is the baseline of the others.
    """
    baselines: dict[int, Sequence[float]] = {}
    rows = []
    for worker, own, used in zip(workers, rates, memory, strict=True):
        side, rate = worker.side, statistics.median(own)
        against = baselines.setdefault(side.batch_size, own) if ratios else None
        paired = against and [a / b for a, b in zip(own, against, strict=True)]
        peak = peaks.get((side.network.device, side.precision))
        flops = 2 * side.network.macs * rate
        rows.append(
            Row(
                side=side,
                images_per_sec=rate,
                slowest=min(own),
                fastest=max(own),
                ratio=statistics.median(paired) if paired and agree(paired) else None,
                ratios=(min(paired), max(paired)) if paired else None,
                startup_sec=worker.startup_sec,
                first_call_sec=worker.first_call_sec,
                share_of_peak=flops / statistics.median(peak) if peak else None,
                peak_memory_bytes=used,
            )
        )
    return rows


def agree(ratios: Sequence[float]) -> bool:
    """Whether the rounds' ratios are of one thing; beside other processes they may not be."""
    return max(ratios) <= MOST_APART * min(ratios)


class _Ratios(Protocol):
    @property
    def ratio(self) -> float | None: ...

    @property
    def ratios(self) -> tuple[float, float] | None: ...


def ratio_text(row: _Ratios) -> str:
    """A ratio in as many digits as the rounds agree on; what they say where they do not."""
    if row.ratios is None:
        return ""
    low, high = row.ratios
    if row.ratio is None:
        return f"{low:.1f} to {high:.1f}"
    return f"{row.ratio:.2f}" if high <= 1.1 * low else f"{row.ratio:.1f}"


def _exported_by_peer(side: Side, folder: Path) -> Path:
    """What a peer makes of this side's network."""
    folder.mkdir()
    network = side.network
    return benchmark_peers.export(
        cast("benchmark_peers.Peer", side.engine),
        *(network.config, network.height, network.width, folder),
    )


def _matrix_rate(device: str, precision: str, rows: int) -> float:
    """FLOP/s of a product of two square matrices on torch, the fastest of three."""
    import torch

    from cvt_cli.model import devices

    shape = (rows, rows)
    left, right = (
        torch.ones(shape, dtype=devices.dtype(cast("Precision", precision)), device=device)
        for _ in "ab"
    )
    best = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        (left @ right)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * rows**3 / best
