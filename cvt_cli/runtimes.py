"""Engines that run a prepared graph without torch: ONNX Runtime and OpenVINO.

A graph is an ONNX file that `graphs` wrote: float32 images (B, 3, H, W), normalised, to logits
(B, classes), with any B. Each engine is an extra of the package.
"""

import os
import platform
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cvt_cli import processes
from cvt_cli.errors import CheckpointError, UsageError

Runtime = Literal["onnxruntime", "openvino"]


def installed(runtime: str) -> bool:
    """Whether a runtime's package is there."""
    return find_spec(runtime) is not None


def require(runtime: str) -> None:
    """Raises UsageError, with the command that installs it, if a runtime is not there."""
    if not installed(runtime):
        raise UsageError(
            f"engine `{runtime}` is not installed", hint=f"pip install 'cvt-cli[{runtime}]'"
        )


def can_prepare() -> bool:
    """Whether the packages with which torch writes a graph are there."""
    return installed("onnx") and installed("onnxscript")


def computes_in(runtime: Runtime, precision: str) -> bool:
    """Whether a runtime, which must be installed, computes in a precision on this processor."""
    if precision == "fp32":
        return True
    if runtime == "onnxruntime" or precision != "bf16":
        return False
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def open_graph(
    runtime: Runtime, path: Path, precision: str
) -> "OnnxRuntimeEngine | OpenVinoEngine":
    """An engine for a graph on this machine's CPU.

    Args:
        runtime: its package must be installed.
        path: of the graph.
        precision: "auto", which is fp32, "fp32", or with OpenVINO "bf16".

    Raises:
        UsageError: the runtime is not installed, or does not compute in that precision here.
        CheckpointError: the file is no graph that the runtime reads.
    """
    require(runtime)
    wanted = "fp32" if precision == "auto" else precision
    if not computes_in(runtime, wanted):
        raise UsageError(
            f"engine `{runtime}` does not compute in `{wanted}` on this processor",
            hint="`--precision fp32` it does, and `--engine torch` may compute in others",
        )
    if runtime == "onnxruntime":
        return OnnxRuntimeEngine(path)
    return OpenVinoEngine(path, wanted)


def may_have_gpu() -> bool:
    """Whether torch may find an accelerator here; asked without importing it."""
    apple = sys.platform == "darwin" and platform.machine() == "arm64"
    return apple or Path("/dev/nvidiactl").exists() or bool(shutil.which("nvidia-smi"))


def threads() -> int:
    """How many processors this process may use; those of a torchrun share a machine's."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, own // processes.local_count())


class OnnxRuntimeEngine:
    """A graph on ONNX Runtime's CPU provider (see `engine.Engine`)."""

    name = "onnxruntime"
    device = "cpu"
    precision = "fp32"
    transfer_sec = 0.0

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3  # errors, which are raised as well
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its own kinds, which share no parent
            raise _unreadable(path, error) from error
        self.hardware = f"{threads()} threads"

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        return self._session.run(["logits"], {"images": batch})[0]  # type: ignore[no-any-return]

    def features(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Likewise to what the head reads (B, C)."""
        return self._session.run(["features"], {"images": batch})[0]  # type: ignore[no-any-return]


class OpenVinoEngine:
    """A graph on OpenVINO's CPU plugin, compiled once and kept beside the graph."""

    name = "openvino"
    device = "cpu"
    transfer_sec = 0.0

    def __init__(self, path: Path, precision: str) -> None:
        import openvino

        core = openvino.Core()
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads(),
            # Its own default is bf16 where the processor has it, without a word.
            "INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision),
            "PERFORMANCE_HINT": "LATENCY",
        }
        if os.access(path.parent, os.W_OK):
            settings["CACHE_DIR"] = str(path.parent / "openvino")
        try:
            self._compiled = core.compile_model(path, "CPU", settings)
        except RuntimeError as error:
            raise _unreadable(path, error) from error
        self.hardware = f"{threads()} threads"
        running = self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.precision = {"f32": "fp32"}.get(running, running)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        return np.array(self._compiled(batch)["logits"])

    def features(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Likewise to what the head reads (B, C)."""
        return np.array(self._compiled(batch)["features"])


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"`{path}` is damaged, or no graph that can be run: {str(error).splitlines()[0]}",
        hint="delete it; a graph of the cache is made again",
    )
