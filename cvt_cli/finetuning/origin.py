"""What a training run starts from: the weights of a checkpoint, or fresh ones."""

from dataclasses import dataclass
from pathlib import Path

from cvt_cli import loading
from cvt_cli.base.text import counted
from cvt_cli.checkpoints import folders
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.locate import Access
from cvt_cli.model import network as networks
from cvt_cli.model import weights
from cvt_cli.model.network import CvT
from cvt_cli.spec.config import Activation, Size
from cvt_cli.spec.preprocessing import Preprocessing, Resize
from cvt_cli.spec.variants import VARIANTS, parse_variant


@dataclass(frozen=True)
class Start:
    """What a training run starts from."""

    name: str
    model: CvT
    preprocessing: Preprocessing
    notes: tuple[str, ...]
    repository: str | None = None  # of the hub
    license: str | None = None
    checkpoint: Checkpoint | None = None  # None of fresh weights


def start_of_training(
    classes: tuple[str, ...],
    *,
    several: bool = False,
    model: str | None,
    variant: str | None,
    res: str | None,
    resize: Resize | None = None,
    activation: Activation | None,
    seed: int,
    access: Access,
) -> Start:
    """A checkpoint with a head for these classes, or a fresh variant.

    A checkpoint's head is kept where its classes are these, in this order, and as many of them
    can be an image's (``several``), else replaced.

    Raises:
        UsageError: there is no such variant.
        CheckpointError, ConfigError: as `loading.load_checkpoint`.
    """
    if model is not None:
        checkpoint, loaded = loading.load_checkpoint(model, res, activation, access, resize)
        network, notes = loaded.model, loaded.notes
        same = classes in (loaded.labels.names, loaded.labels.wnids)
        if not same or loaded.labels.several != several:
            network = weights.replace_head(network, len(classes), seed)
            notes += (
                f"head replaced: {counted(len(classes), 'class')} of the data for the "
                f"{len(loaded.labels)} of `{checkpoint.name}`",
            )
        path, repository = Path(checkpoint.name), checkpoint.repository
        name = folders.called(path) if path.exists() else path.name
        record = loaded.preprocessing
        return Start(name, network, record, notes, repository, checkpoint.license, checkpoint)
    key = parse_variant(variant or "")
    chosen = VARIANTS[key]
    config = chosen.config.with_classes(len(classes)).with_activation(activation)
    preprocessing = chosen.preprocessing.with_size(Size.of(res) or chosen.size)
    return Start(key, networks.fresh_model(config, seed), preprocessing.resizing(resize), ())
