"""Engines that run a graph without torch: ONNX Runtime and OpenVINO.

A graph is a file that `graphs` wrote: float32 images (B, 3, H, W), normalised, to logits
(B, classes), with any B; with preprocessing inside, uint8 RGB (B, H, W, 3) of any size. Each engine
is an extra of the package.
"""

import ctypes
import functools
import io
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base import machine, stamps
from cvt_cli.base.aside import aside
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CheckpointError, CvtError, UsageError, is_of_memory
from cvt_cli.base.package import installing
from cvt_cli.base.progress import Say
from cvt_cli.checkpoints.export_metadata import PIXELS, Record
from cvt_cli.engines.parts import Calls, Part
from cvt_cli.spec.formats import PRECISIONS, Runtime, by_suffix

if TYPE_CHECKING:
    import openvino

# Neither reports to its maker what it was used for; each would, from its import on. OpenVINO and
# NNCF do without the package that does it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

_MUCH = 10**15
"""MACs that pay for every thread."""

FloatPrecision = Literal["fp32", "bf16"]  # that OpenVINO computes in

_BRIEF_SPIN_US = "20"
"""As long as a thread of ONNX Runtime waits awake for others, which may not be running."""

_engines: weakref.WeakSet[Any] = weakref.WeakSet()
"""Those of this process that hold threads."""

_threads_wait = False  # OpenVINO's, of a model that is no more, for the next one like it
_threads_are_gone = False  # they waited in the process that this one was forked from


def _after_fork() -> None:
    """Nothing waits here for threads of the runtimes, which a fork does not have.

    An engine made before computes in the thread that calls it. To end it would be to wait for its
    threads: it stays.
    """
    global _threads_are_gone
    _threads_are_gone = _threads_wait
    for engine in _engines:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def installed(runtime: str) -> bool:
    """Whether a runtime's package is there."""
    return find_spec(runtime) is not None


def require(runtime: str) -> None:
    """Raises UsageError, with the command that installs it, if a runtime is not there."""
    if not installed(runtime):
        raise UsageError(f"engine `{runtime}` is not installed", hint=installing(runtime))


def can_prepare() -> bool:
    """Whether the package that writes a graph is there."""
    return installed("onnx")


def computes_in(runtime: Runtime, precision: str) -> bool:
    """Whether a runtime, which must be installed, computes in a precision on this processor, in
    this process."""
    if precision not in PRECISIONS[runtime] or (runtime == "openvino" and _threads_are_gone):
        return False
    if precision == "fp32":
        return True
    return "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def openvino_core() -> "openvino.Core":
    """The one of this process, with its plugin for CPUs.

    The thread that loads the plugin gets a stack for signals (AMX needs a large one), which is
    freed with the plugin. Of several that end in another order than they came, the main thread
    would be left with one that is no more: the next signal, Ctrl-C too, would end the process.

    Raises:
        UsageError: OpenVINO's threads are those of the process that this one was forked from.
    """
    if _threads_are_gone:
        raise UsageError(
            "OpenVINO was used before this process was forked, and would wait here for threads "
            "that only the other process has",
            hint="start processes by `spawn` or `forkserver` (`multiprocessing.get_context`), or "
            "use another engine here",
        )
    return _core()


@functools.cache
def _core() -> "openvino.Core":
    import openvino

    core = openvino.Core()
    aside(lambda: core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))
    return core


def compiled_for_cpu(model: Any, settings: Mapping[str, Any]) -> Any:
    """A model of OpenVINO, or a file of one, compiled.

    Raises:
        RuntimeError: OpenVINO cannot read the file.
        UsageError: as `openvino_core`.
    """
    return _counted(openvino_core().compile_model(model, "CPU", settings))


def _counted(compiled: Any) -> Any:
    """A compiled model; that it ended will be known."""

    def ended() -> None:
        global _threads_wait
        _threads_wait = True

    weakref.finalize(compiled, ended).atexit = False
    return compiled


def floats_in(precision: str, takes_pixels: bool = False) -> FloatPrecision:
    """What OpenVINO computes the floats of a graph in, on this processor.

    In int8 that is bf16 on one with AMX, for what is left in floating point, attention most of all:
    beside the rounding to 256 steps that to bf16 hardly counts, and in fp32 it would make int8
    slower than bf16. Without AMX, bf16 gains nothing. Preprocessing inside stays in fp32, which
    grey levels need.

    Args:
        precision: of the graph, or that is asked for.
        takes_pixels: preprocessing is inside.
    """
    in_bf16 = precision == "bf16" or (
        precision == "int8" and not takes_pixels and machine.has("amx_bf16")
    )
    return "bf16" if in_bf16 and computes_in("openvino", "bf16") else "fp32"


HINT_OF: Mapping[FloatPrecision, str] = {"fp32": "f32", "bf16": "bf16"}
"""How OpenVINO calls it. Unasked it takes bf16 where the processor has it, without a word."""


def open_preprocessing(
    runtime: Runtime, path: Path
) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The preprocessing of an exported file on its own: pixels to images, in float32."""
    if runtime == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(None, {PIXELS: pixels})[0]
    settings = {"INFERENCE_PRECISION_HINT": HINT_OF["fp32"]}
    compiled = compiled_for_cpu(path, settings)
    return lambda pixels: np.array(compiled(pixels)[0])


def open_graph(
    runtime: Runtime,
    path: Path,
    precision: str,
    record: Record | None = None,
    *,
    macs: int | None = None,
    part: Part | None = None,
    say: Say = lambda _: None,
) -> "OnnxRuntimeEngine | OpenVinoEngine":
    """An engine for a graph on this machine's CPU.

    Args:
        runtime: its package must be installed.
        path: of the graph.
        precision: "auto", which is the file's, the file's, or with OpenVINO "bf16" for a file in
            fp32.
        record: what an exported file says of itself; None for a prepared graph, in fp32.
        macs: of a call, for the number of threads; by default many.
        part: how a batch is computed, as `part_of` says; by default in one call.
        say: told of what was kept, is damaged, and is made again.

    Raises:
        UsageError: the runtime is not installed, cannot be used in this process, or does not
            compute in that precision here.
        CheckpointError: the file is no graph that the runtime reads.
    """
    require(runtime)
    if runtime == "openvino":
        openvino_core()  # which may not be had
    own = record.precision if record else "fp32"
    wanted = own if precision == "auto" else precision
    if wanted != own and own != "fp32":
        raise UsageError(f"`{path}` computes in `{own}` only, not in `{wanted}`")
    if wanted != own and not computes_in(runtime, wanted):
        raise UsageError(
            f"engine `{runtime}` does not compute in `{wanted}` on this processor",
            hint="it does with `--precision fp32`"
            + ("; `--engine torch` may support others" if record is None else ""),
        )
    threads = machine.threads_for(_MUCH if macs is None else macs)
    if record is not None and record.preprocessing_inside:
        part = None  # its pictures come one by one, of any size
    if runtime == "onnxruntime":
        return OnnxRuntimeEngine(path, threads, record, part)
    return OpenVinoEngine(path, wanted, threads, record, part, say)


class OnnxRuntimeEngine:
    """A graph on ONNX Runtime's CPU provider, as a `protocol.Engine`."""

    name: Runtime = "onnxruntime"
    device = "cpu"
    transfer_sec = 0.0
    takes_crops = False
    floats = None

    def __init__(
        self, path: Path, threads: int, record: Record | None = None, part: Part | None = None
    ) -> None:
        import onnxruntime

        self._path, self._record = path, record
        self.takes_pixels = record is not None and record.preprocessing_inside
        self.precision: str = record.precision if record else "fp32"
        self._input = PIXELS if self.takes_pixels else "images"
        self._calls = Calls(part)

        options = onnxruntime.SessionOptions()
        # Each call computes in the thread that makes it, and in those of the session.
        options.intra_op_num_threads = threads + 1 - (part.at_once if part else 1)
        options.add_session_config_entry("session.intra_op.spin_duration_us", _BRIEF_SPIN_US)
        if part is not None and part.fixed:
            options.add_free_dimension_override_by_name("batch", part.images)
        options.log_severity_level = 3  # errors, which are raised as well
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own kinds, which share no parent
            raise _unreadable(path, error, record, self.name) from error
        self.hardware = machine.named_threads(threads)
        _engines.add(self)

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, or pixels, to logits (B, classes)."""
        return self._run("logits", batch)

    def features(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Images to what the head reads (B, C)."""
        return self._run("features", batch)

    def _run(self, name: str, batch: NDArray[Any]) -> NDArray[np.float32]:
        def run(some: NDArray[Any]) -> NDArray[np.float32]:
            with _explained(self._path, self._record, self.name):
                return self._session.run([name], {self._input: some})[0]  # type: ignore[no-any-return]

        return self._calls(run, batch)


class OpenVinoEngine:
    """A graph on OpenVINO's CPU plugin; a prepared one is compiled once and kept beside it.

    Not by OpenVINO's own ``CACHE_DIR``: its key holds neither the precision nor the processor's
    features, and what it finds there it trusts.
    """

    name: Runtime = "openvino"
    device = "cpu"
    transfer_sec = 0.0
    takes_crops = False

    def __init__(
        self,
        path: Path,
        precision: str,
        threads: int,
        record: Record | None,
        part: Part | None,
        say: Say,
    ) -> None:
        core = openvino_core()
        self._path, self._record = path, record
        self.takes_pixels = record is not None and record.preprocessing_inside
        self.floats: str | None = None
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": HINT_OF[floats_in(precision, self.takes_pixels)],
            "PERFORMANCE_HINT": "LATENCY",
            **({"NUM_STREAMS": part.at_once} if part and part.at_once > 1 else {}),
        }
        if record is not None and record.bin_sha256 is not None:
            _check_weights(path, record.bin_sha256)
        self._of_thread, self._calls = threading.local(), Calls(part)
        exactly = part.images if part is not None and part.fixed else None
        try:
            graph = stamps.read(path)  # an exported file has none
            if graph is None:
                self._compiled, self._memory = _compiled(core, path, exactly, settings), None
            else:
                self._compiled, self._memory = _compiled_once(
                    core, path, graph["sha256"], exactly, settings, say
                )
        except RuntimeError as error:
            raise _unreadable(path, error, record, self.name) from error
        self.hardware = machine.named_threads(threads)
        running = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision: str = {"f32": "fp32"}.get(running, running)
        if record is not None and record.precision == "int8":
            self.precision = "int8"
            if running == "bf16":  # a matter of the processor, not of the file
                self.floats = running
                self.hardware += ", floats in bf16"
        _engines.add(self)

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, or pixels, to logits (B, classes)."""
        return self._run("logits", batch)

    def features(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Images to what the head reads (B, C)."""
        return self._run("features", batch)

    def _run(self, name: str, batch: NDArray[Any]) -> NDArray[np.float32]:
        """What the graph says, by each thread's own request: one that is busy takes no other."""

        def run(some: NDArray[Any]) -> NDArray[np.float32]:
            if not hasattr(self._of_thread, "request"):
                self._of_thread.request = self._compiled.create_infer_request()
            with _explained(self._path, self._record, self.name):
                return np.array(self._of_thread.request.infer(some, share_inputs=True)[name])

        return self._calls(run, batch)


def _compiled(core: Any, path: Path, part: int | None, settings: dict[str, Any]) -> Any:
    """A graph, compiled for calls of this size or of any.

    Raises:
        RuntimeError: OpenVINO cannot read the graph.
    """
    if part is None:
        return compiled_for_cpu(path, settings)
    graph = core.read_model(path)
    shape = graph.input(0).partial_shape
    shape[0] = part
    graph.reshape(shape)
    return compiled_for_cpu(graph, settings)


def _compiled_once(
    core: Any, path: Path, sha256: str, part: int | None, settings: dict[str, Any], say: Say
) -> tuple[Any, Any]:
    """A prepared graph, compiled for these conditions: what was kept of it, or made and kept now.

    With it comes the memory that its weights lie in, which must last as long as it.

    Raises:
        RuntimeError: OpenVINO cannot read the graph.
    """
    import openvino

    made_under = {
        "graph": sha256,
        "openvino": openvino.get_version(),
        "precision": settings["INFERENCE_PRECISION_HINT"],
        "processor": machine.processor(),
        "capabilities": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        **({} if part is None else {"batch": part}),  # absent as in blobs of versions before
    }
    kept = path.parent / "openvino" / f"{Conditions(made_under).key}.blob"
    if stamps.is_right(kept, made_under):
        with suppress(RuntimeError, OSError):
            return _imported(core, kept, settings)
    if os.path.exists(kept):
        say(f"`{kept}` is damaged; it is made again")
    compiled = _compiled(core, path, part, settings)
    if os.access(path.parent, os.W_OK):
        try:
            with stamps.making(kept, made_under) as temporary:
                blob = io.BytesIO()
                compiled.export_model(blob)  # what it gives back without one differs by version
                temporary.write_bytes(blob.getbuffer())
        except CvtError as error:
            say(f"{error}; OpenVINO compiles the graph anew each time")
    return compiled, None


def _imported(core: Any, kept: Path, settings: dict[str, Any]) -> tuple[Any, Any]:
    import openvino

    memory = np.memmap(kept, np.uint8, mode="c")  # "r" is not taken; nothing is written to it
    try:
        content = openvino.Tensor(memory, shared_memory=True)
        return _counted(core.import_model(content, "CPU", settings)), (content, memory)
    except TypeError:  # an older version, which takes bytes alone
        return _counted(core.import_model(memory.tobytes(), "CPU", settings)), None


def _check_weights(path: Path, sha256: str) -> None:
    """Raises CheckpointError if beside an ``.xml`` there is not the ``.bin`` that it was made with.

    OpenVINO takes any that is large enough.
    """
    weights = path.with_suffix(".bin")
    try:
        found = stamps.hash_of(weights)
    except OSError as error:
        raise CheckpointError(
            f"`{weights}`, which holds the weights of `{path}`, cannot be read: "
            f"{error.strerror or error}",
            hint="the two files belong together",
        ) from None
    if found != sha256:
        raise CheckpointError(
            f"`{weights}` is damaged, or from another export than `{path}`: its SHA-256 is "
            f"{found}, not {sha256}",
            hint="the two files belong together: copy both, or export them again",
        )


@contextmanager
def _explained(path: Path, record: Record | None, runtime: Runtime) -> Iterator[None]:
    """Inside of it an exported file runs, which may be damaged where only a call finds out.

    A prepared graph is compared with its hash before: what it fails by is a bug, or the machine.
    """
    try:
        yield
    except Exception as error:
        if record is None or is_of_memory(error):
            raise
        raise _unreadable(path, error, record, runtime) from error


def _unreadable(
    path: Path, error: Exception, record: Record | None, runtime: Runtime
) -> CheckpointError:
    reason = _reason(error)
    if not os.path.exists(path):
        return CheckpointError(
            f"`{path}` was removed before it was open", hint="run the same command again"
        )
    if record is None:
        return CheckpointError(
            f"`{path}` is damaged, or not a graph that can be run: {reason}",
            hint="delete it; graphs in the cache are made again, others by `cvt export`",
        )
    hint = "export it again, if it is damaged"
    if runtime == "openvino" and by_suffix(path) == "onnx":
        hint = (
            "onnxruntime runs it (`--engine onnxruntime`), if it is sound; for OpenVINO export an "
            ".xml"
        )
    return CheckpointError(
        f"`{runtime}` cannot run `{path}` in `{record.precision}`: {reason}", hint
    )


def _reason(error: Exception) -> str:
    """What a runtime says of an error, without the lines that name places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith("Exception from ")]
    reason = (said or lines or [type(error).__name__])[0]
    return reason if len(reason) <= 200 else f"{reason[:199]}…"
