"""The engine on torch."""

import numpy as np
import torch
from numpy.typing import NDArray

from cvt_cli import devices
from cvt_cli.devices import Precision
from cvt_cli.model import CvT


class TorchEngine:
    """Runs a `CvT` on a torch device (see `engine.Engine`)."""

    name = "torch"

    def __init__(self, model: CvT, device: torch.device, precision: Precision) -> None:
        self._model = model.to(device)
        self._device = device
        self.device = str(device)
        self.hardware = devices.hardware(device)
        self.precision: Precision = precision

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        self._model.eval()
        with torch.inference_mode(), devices.autocast(self._device, self.precision):
            logits = self._model(torch.from_numpy(batch).to(self._device))
            return logits.float().cpu().numpy()
