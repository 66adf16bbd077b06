"""The engine on torch."""

from collections.abc import Callable
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from cvt_cli import devices
from cvt_cli.devices import Precision
from cvt_cli.inference_form import inference_form
from cvt_cli.model import CvT


class TorchEngine:
    """Runs a `CvT` in its inference form on a torch device (see `engine.Engine`).

    Args:
        model: in its training form; it stays as it is and where it is.
        device: where to compute.
        precision: of weights and of everything that is computed.
    """

    name = "torch"

    def __init__(self, model: CvT, device: torch.device, precision: Precision) -> None:
        form = inference_form(model, as_convolutions=device.type == "cpu")
        self._dtype = devices.dtype(precision)
        self._model = form.to(device, self._dtype)
        self._device = device
        self.device = str(device)
        self.hardware = devices.hardware(device)
        self.precision: Precision = precision
        self.transfer_sec = 0.0

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        return self._run(self._model, batch)

    def features(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Likewise to what the head reads (B, C)."""
        return self._run(self._model.features, batch)

    def _run(
        self, compute: Callable[[torch.Tensor], torch.Tensor], batch: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        with torch.inference_mode():
            started = perf_counter()
            images = torch.from_numpy(batch).to(self._device)  # from pageable memory: it waits
            if self._device.type != "cpu":
                self.transfer_sec += perf_counter() - started
            result = compute(images.to(self._dtype))
            return result.float().cpu().numpy()  # type: ignore[no-any-return]
