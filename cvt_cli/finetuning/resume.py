"""What a run goes on from: how far it has come, and the file with its tensors."""

import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from cvt_cli.base.errors import CheckpointError
from cvt_cli.checkpoints.folders import unreadable
from cvt_cli.finetuning.tensor_files import read_tensors, write_tensors
from cvt_cli.finetuning.trainer import Trainer
from cvt_cli.model.network import CvT

STATE_FILE = Path("state", "state.safetensors")

WHOLE_BEST = Path("state", "best")
"""Where the best whole epoch is kept while `best` holds a part of one."""


@dataclass(frozen=True)
class Epoch:
    """What came of an epoch, or of the part of one that was done."""

    epoch: int  # its number, from 1
    learning_rate: float  # of its last step
    training_loss: float  # mean over its steps, in nats
    val_loss: float | None
    val_top1: float
    val_top5: float
    seconds: float  # that it took
    step: int  # steps that the run has taken at its end
    elapsed: float  # seconds that the run has taken at its end
    val_correct: int  # validation images whose likeliest class is right
    val_correct_top5: int
    val_balanced_accuracy: float | None = None  # None too in states of earlier versions
    val_macro_f1: float | None = None
    val_roc_auc: float | None = None  # where the best epoch is chosen by it
    # Where an image may have several classes; `val_top1` is then the share of exact matches.
    val_map: float | None = None
    val_micro_f1: float | None = None
    thresholds: tuple[float, ...] | None = None  # chosen on the validation images
    penalty: float | None = None  # of a linear probe's weights, chosen on the validation images
    unreached: tuple[int, ...] | None = None  # as of `thresholds.Chosen`
    absent: tuple[int, ...] | None = None

    def score(self, select: str) -> float:
        """How good it is by what the best epoch is chosen by; higher is better, all above -1."""
        if select == "top1":
            return self.val_correct
        if select == "loss":  # the geometric mean of the right classes' probabilities
            return 0.0 if self.val_loss is None else math.exp(-self.val_loss)
        value = {
            "balanced": self.val_balanced_accuracy,
            "macro-f1": self.val_macro_f1,
            "auc": self.val_roc_auc,
            "map": self.val_map,
        }[select]
        return -0.5 if value is None else value


@dataclass
class Position:
    """How far a run has come, besides its tensors."""

    rows: list[Epoch]  # the whole epochs
    best: int | None = None  # the best one's place among them, from 1
    best_correct: float = -1  # its `Epoch.score`, which is of right images unless told otherwise
    loss_sum: float | Tensor = 0.0  # over the steps of the epoch under way
    loss_steps: int = 0
    seconds: float = 0.0  # of all parts of the run
    finished: bool = False
    plan: str | None = None  # hash of the plan that it is of; not known of the version before


def save(folder: Path, position: Position, model: CvT, trainer: Trainer | None) -> None:
    """Write the state of a run in place of the one before.

    Args:
        folder: of the run.
        position: how far it has come.
        model: what the features of a linear probe, which has no trainer, are computed with.
        trainer: the network in training.

    Raises:
        CvtError: it cannot be written; then the state before is still there.
    """
    position.loss_sum = float(position.loss_sum)
    state = _of_model(model) if trainer is None else trainer.tensors()
    numbers = {
        "trainer": trainer.numbers() if trainer else None,
        "position": asdict(position),
    }
    write_tensors(folder / STATE_FILE, state, {"run": json.dumps(numbers)})


def restore(folder: Path, model: CvT, trainer: Trainer | None, steps_per_epoch: int) -> Position:
    """Put model or trainer into the state that a run was saved in, and say how far it had come.

    Raises:
        CheckpointError: the file is damaged, or the state of another run.
    """
    path = folder / STATE_FILE
    try:
        tensors, about = read_tensors(path)
        numbers = json.loads(about["run"])
        if trainer is None:
            model.load_state_dict({name.removeprefix("model."): t for name, t in tensors.items()})
        else:
            trainer.restore(tensors, numbers["trainer"])
            for row in numbers["position"]["rows"]:  # once they were counted as judged
                row["epoch"] = -(-row["step"] // steps_per_epoch)
        position = dict(numbers["position"])
        return Position([Epoch(**row) for row in position.pop("rows")], **position)
    except PermissionError as error:
        raise unreadable(path, error) from None
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"`{path}` is not this run's state: {error}",
            hint="start again in another folder, if possible from --model "
            f"{shlex.quote(str(folder / 'last'))}",
        ) from None


def _of_model(model: CvT) -> dict[str, Tensor]:
    return {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
