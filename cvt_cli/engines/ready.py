"""A checkpoint with the engine that runs it: what answers, and what an answer depends on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from cvt_cli.base import torchrun
from cvt_cli.base.conditions import Conditions, json_hash, names_hash
from cvt_cli.base.errors import UsageError
from cvt_cli.base.package import __version__
from cvt_cli.base.text import counted
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.engines.protocol import Engine
from cvt_cli.spec.config import Activation
from cvt_cli.spec.formats import EngineChoice
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing

DECIDE = (
    *("model", "revision", "weights_sha256", "stages_sha256", "classes_sha256", "activation"),
    *("preprocessing", "engine", "precision", "calibrated_on", "floats", "task", "thresholds"),
)
"""Those of the conditions of a result that must be the same for it to be gone on with; the last two
are only there where an image may have several classes, ``calibrated_on`` and ``floats`` in int8."""


def deciding(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the conditions that are among `DECIDE`."""
    return {name: conditions[name] for name in DECIDE if name in conditions}


def engine_to_go_on_with(made: Mapping[str, Any] | None, asked: EngineChoice) -> EngineChoice:
    """The engine for what was begun under conditions: its own, unless another is asked for."""
    begun = next((e for e in get_args(EngineChoice) if made and made.get("engine") == e), asked)
    return begun if asked == "auto" else asked


@dataclass(frozen=True)
class ReadyModel:
    """An engine with what its logits mean and how to feed it."""

    checkpoint: Checkpoint
    engine: Engine
    described: CheckpointConfig  # at the size and with the activation that it runs with
    calibration: str | None = None  # hash of the images that a checkpoint was quantised by

    @property
    def model(self) -> str:
        """The checkpoint, as results and messages name it."""
        return self.checkpoint.name

    @property
    def revision(self) -> str | None:
        """The commit of the checkpoint's hub repository."""
        return self.checkpoint.revision

    @property
    def labels(self) -> Labels:
        """The names of the classes, by index."""
        return self.described.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image becomes the network's input."""
        return self.described.preprocessing

    @property
    def activation(self) -> Activation:
        """The activation of the MLPs."""
        return self.described.config.activation

    @property
    def notes(self) -> tuple[str, ...]:
        """What was assumed, one sentence each."""
        return self.described.notes

    @property
    def weights_sha256(self) -> str:
        """The SHA-256 of the checkpoint's weights.

        Raises:
            CheckpointError: their file has gone since.
        """
        return self.checkpoint.weights_sha256

    @property
    def stages_sha256(self) -> str:
        """A SHA-256 of the stages, whose heads, strides and padding no tensor tells."""
        return json_hash(
            [
                [s.width, s.depth, s.heads, s.kernel, s.stride, s.padding, s.hidden_width]
                for s in self.described.config.stages
            ]
        )

    @property
    def classes_sha256(self) -> str:
        """A SHA-256 of the class names, and of their WNIDs where they have them."""
        wnids = (wnid or "" for wnid in self.labels.wnids or ())
        return names_hash([*self.labels.names, *wnids])

    def conditions(self) -> dict[str, Any]:
        """What a result depends on, as the documented JSON keys."""
        return {
            "model": self.model,
            "revision": self.revision,
            "weights_sha256": self.weights_sha256,
            "stages_sha256": self.stages_sha256,
            "classes_sha256": self.classes_sha256,
            **self._task(),
            "activation": self.activation,
            "preprocessing": self.preprocessing.to_json(),
            "device": self.engine.device,
            "hardware": torchrun.of_all(self.engine.hardware),
            "precision": self.engine.precision,
            "engine": self.engine.name,
            **({} if self.calibration is None else {"calibrated_on": self.calibration}),
            **({} if self.engine.floats is None else {"floats": self.engine.floats}),
            "version": __version__,
        }

    def _task(self) -> dict[str, Any]:
        """Said where an image may have several classes."""
        if self.labels.thresholds is None:
            return {}
        return {"task": "multi_label", "thresholds": list(self.labels.thresholds)}

    def describe(self) -> str:
        """What a result depends on, in a line for a person."""
        names, engine = self.labels.names, self.engine
        kind = ", several an image" if self.labels.several else ""
        classes = f"{counted(len(names), 'class')}{kind}" + (
            f": {', '.join(names)}" if len(names) <= 20 else ""
        )
        at = f" at {self.revision[:7]}" if self.revision else ""
        return (
            f"{self.model}{at} ({classes}; {self.activation}); {self.preprocessing.describe()}; "
            f"{engine.device}, {torchrun.of_all(engine.hardware)}, {engine.name}, "
            f"{engine.precision}"
        )


def refuse_others(models: Sequence[ReadyModel]) -> None:
    """Raises UsageError if another process of a torchrun has other models: on its machine another
    file may have the name, or another engine be installed."""
    own = [Conditions(deciding(ready.conditions())) for ready in models]
    for rank, theirs in enumerate(torchrun.gather([one.values for one in own])):
        for one, other in zip(own, theirs, strict=True):
            if differences := one.differences(other):
                raise UsageError(f"process {rank} answered with {'; '.join(differences)}")
