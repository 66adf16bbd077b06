"""The engine on a CUDA device: it computes while this process decodes the next images.

- Images travel as bytes, a quarter of float32, from pinned memory, and are normalised there; they
  travel while those before them are computed.
- A call of a size that comes a second time is recorded as a CUDA graph. The 600 kernels of a
  network start at once then; each by itself waits for the interpreter, which the threads that
  decode hold most of the time.
- Results are fetched when they are asked for (`protocol.Apart`), a batch later.
"""

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from cvt_cli.images import transform
from cvt_cli.model import devices
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.network import CvT
from cvt_cli.spec.formats import Precision
from cvt_cli.spec.preprocessing import Preprocessing

WORTH_COMPILING_MACS = 10_000_000_000_000_000
"""Work of a job, in MACs, from which on `torch.compile` takes less time than it saves.

It takes up to a minute, and saves a third of three (CvT-13 at 224 and CvT-21 at 384, NVIDIA H100).
"""

_FUSION: dict[str, Any] = {"realize_reads_threshold": 1}
"""Of `torch.compile`: keep the residual stream after each branch. By default one kernel adds four
of them, in twenty times the time of another."""


@dataclass(frozen=True)
class _Recorded:
    """A call that was recorded: it reads and writes the same memory each time."""

    graph: torch.cuda.CUDAGraph
    images: Tensor
    results: Tensor


class CudaEngine(TorchEngine):
    """Runs a `CvT` in its inference form on a CUDA device (see `protocol.Engine` and `Apart`).

    Args:
        model: in its training form; it stays as it is and where it is.
        device: where to compute.
        precision: of weights and of everything that is computed; "fp32" without TF32.
        preprocessing: how images are normalised.
        compiled: whether to let `torch.compile` fuse what it can; it takes up to a minute.
    """

    takes_crops = True

    def __init__(
        self,
        model: CvT,
        device: torch.device,
        precision: Precision,
        preprocessing: Preprocessing,
        compiled: bool = False,
    ) -> None:
        super().__init__(model, device, precision)
        # Looked up, not computed: the same bits as on the CPU.
        table = torch.from_numpy(transform.normalisation_table(preprocessing))
        self._table = table.to(self._dtype).reshape(-1, 1).to(device)  # of red, of green, of blue
        self._offsets = torch.tensor([0, 256, 512], dtype=torch.int32, device=device)
        self._fused: Callable[[Tensor, bool], Tensor] | None = None
        if compiled:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice for who writes programs
                self._fused = torch.compile(self._plain, dynamic=False, options=_FUSION)
        self._recorded: dict[Any, _Recorded | None] = {}  # None where there is no memory for it
        self._seen: dict[Any, int] = {}  # how many images the last call had
        self._lock = threading.Lock()  # what is recorded has one place for images
        self._travel = torch.cuda.Stream(device)
        self.busy_sec = 0.0

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Images uint8 (B, H, W, 3), or float32 (B, 3, H, W), to logits (B, classes)."""
        return self.begin(list(batch))()

    def features(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Likewise to what the head reads (B, C)."""
        return self.begin(list(batch), features=True)()

    def begin(
        self, arrays: list[NDArray[Any]], features: bool = False
    ) -> Callable[[], NDArray[np.float32]]:
        """Begin to compute such images of one size; what comes back waits for the results."""
        of_pixels = arrays[0].dtype == np.uint8
        images = torch.empty(
            (len(arrays), *arrays[0].shape),
            dtype=torch.uint8 if of_pixels else torch.float32,
            pin_memory=True,
        )
        np.stack(arrays, out=images.numpy())
        left, moved, start, end = (torch.cuda.Event(enable_timing=True) for _ in range(4))
        with (
            self._lock,
            torch.cuda.device(self._device),
            torch.inference_mode(),
            devices.exactly(),
        ):
            recorded = self._recording(images, features)
            computing = torch.cuda.current_stream()
            with torch.cuda.stream(self._travel):
                left.record()
                there = images.to(self._device, non_blocking=True)
                moved.record()
            there.record_stream(computing)
            computing.wait_event(moved)
            start.record()
            if recorded is None:
                results = self._compute(there, features)
            else:  # the images of a call before may follow these; nobody reads their results
                recorded.images[: len(images)].copy_(there)
                recorded.graph.replay()
                results = recorded.results[: len(images)]
            fetched = torch.empty(results.shape, dtype=results.dtype, pin_memory=True)
            fetched.copy_(results, non_blocking=True)
            end.record()

        def finish() -> NDArray[np.float32]:
            end.synchronize()
            self.transfer_sec += left.elapsed_time(moved) / 1000
            self.busy_sec += start.elapsed_time(end) / 1000
            return fetched.numpy().copy()  # who keeps it keeps no pinned memory

        return finish

    def _plain(self, images: Tensor, features: bool) -> Tensor:
        """Images there, as `begin` takes them, to float32 (B, classes) or (B, C)."""
        if images.dtype == torch.uint8:
            places = images.int() + self._offsets  # (B, H, W, 3)
            images = F.embedding(places, self._table)[..., 0].permute(0, 3, 1, 2)
        run = self._model.features if features else self._model
        return run(images.to(self._dtype)).float()

    def _compute(self, images: Tensor, features: bool) -> Tensor:
        if self._fused is not None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    return self._fused(images, features)
                except torch.OutOfMemoryError:
                    raise
                except Exception:  # without a C compiler, say: what it is made from runs anywhere
                    self._fused = None
        return self._plain(images, features)

    def _recording(self, images: Tensor, features: bool) -> _Recorded | None:
        """The call for so many images or more, recorded; None if this size comes the first time."""
        kind = features, images.dtype, images.shape[1:]
        recorded = self._recorded.get(kind)
        if recorded is not None and len(images) <= len(recorded.images):
            return recorded
        known, self._seen[kind] = self._seen.get(kind), len(images)
        if known != len(images) or (kind in self._recorded and recorded is None):
            return None
        self._recorded.pop(kind, None)
        recorded = None
        try:
            self._recorded[kind] = self._record(images, features)
        except torch.OutOfMemoryError:
            self._recorded[kind] = None
            torch.cuda.empty_cache()
        return self._recorded[kind]

    def _record(self, images: Tensor, features: bool) -> _Recorded:
        there = images.to(self._device)
        beside = torch.cuda.Stream(self._device)
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):  # libraries set up what they need for a stream
            self._compute(there, features)
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may use the device meanwhile, as the one that pins a loader's batches.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            results = self._compute(there, features)
        return _Recorded(graph, there, results)
