"""A checkpoint whose answers are explained: on torch, in float32, where gradients are."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvt_cli import loading
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.locate import Access
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.explanation import faithfulness
from cvt_cli.explanation.faithfulness import Scores
from cvt_cli.explanation.geometry import Grid, on_input, token_grid
from cvt_cli.explanation.methods import METHODS, STAGE, Map, Maps
from cvt_cli.explanation.target import Target
from cvt_cli.explanation.traced import TracedCvT
from cvt_cli.model import devices
from cvt_cli.model.engine import computing_in, threads_for
from cvt_cli.spec.config import Activation, Size
from cvt_cli.spec.formats import Precision
from cvt_cli.spec.preprocessing import Resize

if TYPE_CHECKING:
    from cvt_cli.model.weights import LoadedCheckpoint


def _with_gradients() -> AbstractContextManager[Any]:
    """Inside of it tensors may have gradients, also where the caller computes without."""
    return torch.inference_mode(False)


class TracedEngine:
    """A network as `protocol.Engine`, and its maps.

    Args:
        loaded: its network is put on the device, and keeps its weights there.
        device: where to compute.
        macs: of one picture, for the number of threads on a CPU.
    """

    name = "torch"
    precision: Precision = "fp32"
    takes_pixels = takes_crops = False
    floats = None
    transfer_sec = 0.0

    def __init__(
        self, loaded: "LoadedCheckpoint", device: torch.device, macs: int | None = None
    ) -> None:
        self.network = TracedCvT(loaded.model.to(device))
        self._device, self._threads = device, threads_for(macs)
        self.device = str(device)
        self.hardware = devices.hardware(device)

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        with torch.inference_mode(), computing_in(self._threads), devices.exactly():
            logits: torch.Tensor = self.network(torch.from_numpy(batch).to(self._device))
            return logits.cpu().numpy()

    def features(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Likewise to what the head reads (B, C)."""
        with torch.inference_mode(), computing_in(self._threads), devices.exactly():
            found = self.network.model.forward_features(torch.from_numpy(batch).to(self._device))
            return found.cpu().numpy()

    def maps(
        self,
        picture: NDArray[np.float32],
        targets: list[Target],
        methods: tuple[Any, ...],
        stage: int | None,
    ) -> list[list[Map]]:
        """The maps of a picture (3, H, W) by each method, for each target.

        Those of methods that know no class are among the first target's alone.
        """
        with (
            _with_gradients(),
            computing_in(self._threads),
            devices.exactly(),
            devices.default_is_cpu(),
        ):
            maps = Maps(self.network, torch.from_numpy(picture[None]).to(self._device), stage)
            return [
                [maps.of(m, target) for m in methods if target is targets[0] or METHODS[m].by_class]
                for target in targets
            ]

    def scores(
        self, picture: NDArray[np.float32], maps: list[Map], target: Target, seed: int
    ) -> dict[str, Scores]:
        """How true the maps of a picture (3, H, W) are, by method, beside two that know nothing."""
        found: dict[str, tuple[NDArray[np.float32], Grid]] = {
            one.method: (one.values, one.grid) for one in maps
        }
        grid = token_grid(self.network.config, min(STAGE, len(self.network.config.stages) - 1))
        shape = tuple(max(1, round(side / grid.stride)) for side in picture.shape[1:])
        for name, values in faithfulness.baselines(shape, seed).items():
            found[name] = values, grid
        on_device = torch.from_numpy(picture).to(self._device)

        def answer(pictures: torch.Tensor) -> torch.Tensor:
            return target.probability(self.network(pictures))

        with computing_in(self._threads), devices.exactly(), devices.default_is_cpu():
            return {
                name: faithfulness.scores(answer, on_device, self._on_input(*one, picture), seed)
                for name, one in found.items()
            }

    def _on_input(
        self, values: NDArray[np.float32], grid: Grid, picture: NDArray[np.float32]
    ) -> torch.Tensor:
        laid = on_input(values, grid, Size(*picture.shape[1:]))
        return torch.from_numpy(np.ascontiguousarray(laid)).to(self._device)


def load(
    text: str | Checkpoint | None,
    res: str | None,
    activation: Activation | None,
    device: str,
    access: Access,
    or_embedded: bool = False,
    resize: Resize | None = None,
) -> tuple[ReadyModel, TracedEngine]:
    """Find and load a model to be explained; arguments and errors as of `load_classifier`.

    Raises:
        UsageError: besides, it is a graph, which has no gradients.
    """
    place = devices.choose_device(device)
    with _with_gradients():
        checkpoint, loaded, macs = loading.load_to_explain(
            text, res, activation, access, or_embedded, resize
        )
        engine = TracedEngine(loaded, place, macs)
    return ReadyModel(checkpoint, engine, loaded.described), engine
