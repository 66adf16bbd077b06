"""The process in which one side of a benchmark runs, started and told by the first process.

Imports torch only inside functions, so that a runtime's process does without it.
"""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import machine
from cvt_cli.base.errors import CvtError, is_of_memory
from cvt_cli.checkpoints import export_metadata
from cvt_cli.engines import runtimes
from cvt_cli.engines.parts import part_of
from cvt_cli.engines.protocol import Apart, with_begun
from cvt_cli.export import benchmark_peers
from cvt_cli.export.benchmark_sides import Network, Side
from cvt_cli.spec.config import CvTConfig
from cvt_cli.spec.formats import FORMATS, Runtime
from cvt_cli.spec.preprocessing import Preprocessing

if TYPE_CHECKING:
    from cvt_cli.model.network import CvT

Runner = Callable[[NDArray[Any]], Any]

A_LONG_JOB = 10**6
"""Images of a job whose rate is measured."""

SHORTEST_TURN_SEC = 0.5
"""A side computes at least this long in every round."""


class Worker:
    """One side in its process; the others sleep while it has its turn."""

    def __init__(self, side: Side, graph: Path | None) -> None:
        if "-P" in machine.python():  # which `multiprocessing` takes from the environment alone
            os.environ["PYTHONSAFEPATH"] = "1"
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
        return self._asked(True)

    def stop(self) -> int:
        """Its peak memory in bytes."""
        return self._asked(False)

    def _asked(self, again: bool) -> Any:
        with suppress(ConnectionError):  # it was ended while others had their turn
            self._connection.send(again)
        return self._receive()

    def _receive(self) -> Any:
        try:
            received = self._connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            raise CvtError(
                f"the process of {self.side.engine} in {self.side.precision} at batch "
                f"{self.side.batch_size} ended with exit code {self._process.exitcode}",
                hint="if it ran out of memory, try a smaller --batch-size or --res",
            ) from None
        if isinstance(received, CvtError):
            raise received
        return received

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _work(connection: Connection, spawned: float, side: Side, graph: Path | None) -> None:
    """What a side's process does: `_compute`, or say why it cannot."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's affair
    try:
        _compute(connection, spawned, side, graph)
    except CvtError as error:
        connection.send(error)
    except (EOFError, ConnectionError):
        return  # the first process was killed, and nobody waits for what this one says
    except Exception as error:
        if not is_of_memory(error):
            raise
        connection.send(
            CvtError(
                f"not enough memory for {side.engine} in {side.precision} at batch "
                f"{side.batch_size}",
                hint="try a smaller --batch-size or --res",
            )
        )


def _compute(connection: Connection, spawned: float, side: Side, graph: Path | None) -> None:
    """Say when it is ready, then compute when told to."""
    generator, network = np.random.default_rng(0), side.network
    height, width = network.height, network.width
    batch: NDArray[Any]
    on_cuda = side.engine == "torch" and network.device.startswith("cuda")
    if on_cuda or (network.record is not None and network.record.preprocessing_inside):
        batch = generator.integers(0, 256, (side.batch_size, height, width, 3), np.uint8)
    else:
        shape = (side.batch_size, 3, height, width)
        batch = generator.standard_normal(shape, dtype=np.float32)
    weights_sec, model = 0.0, None
    if network.file is None and side.engine in ("torch", "transformers"):
        import torch  # noqa: F401  its import belongs to the start, the making of weights not

        started = time.perf_counter()
        model = random_network(network.config)
        weights_sec = time.perf_counter() - started
    runner = _runner(side, model, graph)
    startup_sec = time.time() - spawned - weights_sec
    first_call_sec = _seconds(runner, batch)
    if on_cuda:
        runner(batch)  # it records the call
    calls = max(1, round(SHORTEST_TURN_SEC / _seconds(runner, batch)))
    connection.send((startup_sec, first_call_sec))
    while connection.recv():
        runner(batch)  # what the side before left in the caches is gone
        started = time.perf_counter()
        _run(runner, batch, calls)
        connection.send(calls * side.batch_size / (time.perf_counter() - started))
    connection.send(_peak_memory(network.device if model else "cpu"))


def _run(runner: Runner, batch: NDArray[Any], calls: int) -> None:
    """Compute so often; on a device of its own with two calls in flight, as predict does."""
    if not isinstance(runner, Apart):
        for _ in range(calls):
            runner(batch)
        return
    images = list(batch)
    for _, finish in with_begun(range(calls), lambda _: runner.begin(images), apart=True):
        finish()


def _seconds(runner: Runner, batch: NDArray[Any]) -> float:
    started = time.perf_counter()
    runner(batch)
    return time.perf_counter() - started


def random_network(config: CvTConfig) -> "CvT":
    """A network with random weights, which is as fast as one with others."""
    from cvt_cli.model.network import fresh_model

    return fresh_model(config, seed=0).eval()


def random_graph(network: Network, in_int8: Runtime | None, path: Path) -> Path:
    """A network with random weights as a graph: ONNX in a file of this name, or, calibrated on the
    package's images, in 8 bits for this runtime in a folder of this name."""
    from cvt_cli.export import write_graph

    model = random_network(network.config)
    if in_int8 is None:
        write_graph.write_onnx(model, path, network.height, network.width, {}, made_under={})
        return path
    from cvt_cli.checkpoints.export_metadata import Record
    from cvt_cli.export.int8_graphs import FORM_OF
    from cvt_cli.export.verification import PACKAGED, Arrays, Pictures
    from cvt_cli.spec.labels import unnamed

    preprocessing = Preprocessing.published(network.height, network.width)
    record = Record(
        *(network.name, "cvt-cli", None, None, None, network.config),
        *(unnamed(network.config.num_classes), preprocessing),
        precision="int8",
    )
    path.mkdir()
    images = Arrays(Pictures.of(PACKAGED), preprocessing)
    form = FORM_OF[in_int8]
    written = path / f"model{FORMATS[form].suffix}"
    write_graph.write(model, record, form, written, images)
    return written


def _runner(side: Side, model: "CvT | None", graph: Path | None) -> Runner:
    record, macs = side.network.record, side.network.macs * side.batch_size
    part = part_of(side.batch_size, A_LONG_JOB, side.network.macs)
    if side.engine == "onnxruntime" or side.engine == "openvino":
        assert graph is not None
        if side.precision == "int8":
            record = export_metadata.read(graph)
        return runtimes.open_graph(side.engine, graph, side.precision, record, macs=macs, part=part)
    if side.engine == "transformers-openvino" or side.engine == "transformers-onnx":
        assert graph is not None
        return benchmark_peers.runner(side.engine, graph, side.precision, macs)
    import torch

    from cvt_cli.model.engine import ExportedEngine, TorchEngine

    if record is not None:
        assert graph is not None
        return ExportedEngine(graph, record, macs)
    assert model is not None and side.precision != "int8"
    place = torch.device(side.network.device)
    if side.engine == "torch" and place.type == "cuda":
        from cvt_cli.model.cuda import CudaEngine

        network = side.network
        preprocessing = Preprocessing.published(network.height, network.width)
        return CudaEngine(model, place, side.precision, preprocessing, compiled=True)
    if side.engine == "torch":
        on_cpu = part if place.type == "cpu" else None
        return TorchEngine(model, place, side.precision, macs, on_cpu)
    return _transformers(model, place)


def _transformers(model: "CvT", device: Any) -> Runner:
    """The same network in transformers, eager, float32."""
    import torch

    theirs = benchmark_peers.network(model.config, model.state_dict()).to(device)

    def run(batch: NDArray[np.float32]) -> Any:
        with torch.inference_mode():
            return theirs(torch.from_numpy(batch).to(device)).logits.cpu()

    return run


def _peak_memory(device: str) -> int:
    """Peak memory in bytes of this process so far; on CUDA, of the device."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device)
    return machine.peak_memory()
