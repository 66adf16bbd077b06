"""What a card is of: a checkpoint's own facts, whether or not its weights are on this machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cvt_cli.base.conditions import names_hash
from cvt_cli.base.text import human_bytes, human_count
from cvt_cli.cards.record import Record, Subject
from cvt_cli.checkpoints import folders
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.spec.costs import Costs, costs
from cvt_cli.spec.published import KnownCheckpoint
from cvt_cli.spec.variants import variant_of

SENT_FILES = (folders.CONFIG_FILE, folders.PREPROCESSING_FILE, *folders.WEIGHTS_FILES)


@dataclass(frozen=True)
class About:
    """A checkpoint, as its card tells of it."""

    name: str  # as its heading has it
    described: CheckpointConfig
    record: Record = field(default_factory=Record)
    known: KnownCheckpoint | None = None  # one of the published, or the embedded one
    repository: str | None = None  # on the hub
    revision: str | None = None
    license: str | None = None
    weights_sha256: str | None = None
    files: Mapping[str, int] = field(default_factory=dict)  # bytes by name

    @cached_property
    def costs(self) -> Costs:
        """Parameters and multiply-adds at its own size."""
        height, width = self.described.preprocessing.size
        return costs(self.name, self.described.config, height, width)

    @property
    def variant(self) -> str | None:
        """The architecture's name, if it is one of the known ones."""
        return variant_of(self.described.config)

    @property
    def published(self) -> KnownCheckpoint | None:
        """The known checkpoint, where it is one of the seven on the hub."""
        return self.known if self.known and self.known.scores else None

    @property
    def subject(self) -> Subject:
        """What its results must be of."""
        labels = self.described.labels
        return Subject(
            self.name,
            self.weights_sha256,
            names_hash([*labels.names, *(wnid or "" for wnid in labels.wnids or ())]),
            self.costs.macs,
            self.described.preprocessing.to_json(),
            self.described.config.activation,
        )

    @property
    def is_here(self) -> bool:
        """Whether it is a folder of somebody's, where its card can be written."""
        return self.repository is None and self.known is None

    @property
    def argument(self) -> str:
        """What stands for it after ``--model`` in a card that travels."""
        return self.repository or (self.known.name if self.known else "MODEL")

    def sizes(self) -> str:
        """Parameters, multiply-adds and files, as a phrase."""
        found = self.costs
        weights = [size for name, size in self.files.items() if name in folders.WEIGHTS_FILES]
        size = human_bytes(weights[0] if weights else 4 * found.params)
        about = "" if weights else " as float32, four bytes a parameter"
        return (
            f"{found.params:,} parameters ({size}{about}), {human_count(found.macs)}MACs an image"
        )


def of_checkpoint(checkpoint: Checkpoint, described: CheckpointConfig, record: Record) -> About:
    """A checkpoint on this machine; its weights are hashed, which is remembered."""
    folder = checkpoint.folder
    has_weights = folder is None or folders.find_weights(folder) is not None
    return About(
        name=checkpoint.name
        if checkpoint.known or checkpoint.snapshot
        else folders.called(folder or checkpoint.path),
        described=described,
        record=record,
        known=checkpoint.identity,
        repository=checkpoint.repository,
        revision=checkpoint.revision,
        license=checkpoint.license,
        weights_sha256=checkpoint.weights_sha256 if has_weights else None,
        files=sizes_of(folder or checkpoint.path),
    )


def sizes_of(place: Path) -> dict[str, int]:
    """The sizes in bytes of a checkpoint's files, in a folder or alone."""
    paths = [place / name for name in SENT_FILES] if place.is_dir() else [place]
    return {path.name: path.stat().st_size for path in paths if path.is_file()}
