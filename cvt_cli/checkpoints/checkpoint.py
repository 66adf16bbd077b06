"""A checkpoint on this machine, as everything that follows ``--model`` is resolved to once.

It knows of which kind it is, what it describes, which files hold its weights and what their hash
is. It reads headers, settings and metadata, and no tensor.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from cvt_cli.base import conditions, stamps
from cvt_cli.base.errors import CheckpointError
from cvt_cli.checkpoints import cache, export_metadata, folders, headers, hub_client
from cvt_cli.checkpoints.cache import Snapshot
from cvt_cli.checkpoints.export_metadata import Record
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.spec.config import Activation, Size
from cvt_cli.spec.formats import FilePrecision, GraphFormat, format_of, second_file
from cvt_cli.spec.published import KnownCheckpoint

Kind = Literal["repository", "embedded", "folder", "graph", "file"]


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint lies, of which kind it is, and what can be told of it without torch.

    Attributes:
        name: as results and messages name it.
        path: the folder or the file that was named.
        kind: a hub repository in the cache, a part of this package, a folder in the hub's form
            (also named by the weights in it), a graph that can be run as it is, or a bare file
            of tensors.
        folder: that holds its ``config.json``; None of a graph and of a bare file.
        known: the known checkpoint that its name says it is; of a folder that is a guess.
        snapshot: of a hub repository.
    """

    name: str
    path: Path
    kind: Kind
    folder: Path | None
    known: KnownCheckpoint | None
    snapshot: Snapshot | None = None
    seen: tuple[tuple[int, ...] | None, ...] = ()  # the state of its files when it was named

    @classmethod
    def at(cls, path: Path, known: KnownCheckpoint | None = None, name: str = "") -> "Checkpoint":
        """What is called by its path.

        Args:
            path: of a folder or file.
            known: the known checkpoint that its name says it is, if it does.
            name: as results and messages name it; by default the path.
        """
        folder = folders.folder_of(path)
        kind: Kind = "folder" if folder else "file"
        if known and known.embedded == path:
            kind = "embedded"
        elif format_of(path):
            kind = "graph"
        found = cls(name or str(path), path, kind, folder, known)
        return replace(found, seen=found._states())

    @classmethod
    def of_snapshot(cls, snapshot: Snapshot, known: KnownCheckpoint | None) -> "Checkpoint":
        """What the cache holds of a hub repository."""
        name = known.name if known else snapshot.repository
        return cls(name, snapshot.folder, "repository", snapshot.folder, known, snapshot)

    def absolute(self) -> "Checkpoint":
        """The same, under the same name, to be found after the working folder has changed too."""
        folder = self.folder and self.folder.absolute()
        return replace(self, path=self.path.absolute(), folder=folder)

    @property
    def format(self) -> GraphFormat | None:
        """The format of a graph; None of anything else."""
        return format_of(self.path) if self.kind == "graph" else None

    @property
    def identity(self) -> KnownCheckpoint | None:
        """The known checkpoint that it surely is; the name of a folder says too little."""
        return None if self.kind in ("folder", "graph") else self.known

    @cached_property
    def record(self) -> Record | None:
        """What a file that `cvt export` wrote says of itself; None of anything else.

        Raises:
            CheckpointError: it is damaged, or another tool wrote this graph.
        """
        if self.kind == "graph":
            return export_metadata.read(self.path)
        is_bare = self.kind == "file" and self.path.suffix == ".safetensors"
        return export_metadata.of_safetensors(self.path) if is_bare else None

    def record_at(self, size: Size | None, activation: Activation | None) -> Record:
        """What a graph says of itself, for images of another size; not to be asked of another kind.

        Raises:
            CheckpointError: as `record`.
            UsageError: it takes no such size, or computes another activation.
        """
        assert self.kind == "graph" and self.record is not None
        record = self.record.at(size, self.path)
        record.refuse_other(activation, self.path)
        return record

    def _states(self) -> tuple[tuple[int, ...] | None, ...]:
        """What tells of each of its files whether it was replaced or written to."""
        names: list[Path | None]
        if self.folder is None:
            names = [self.path, second_file(self.path)] if self.kind == "graph" else [self.path]
        else:
            described = (folders.CONFIG_FILE, folders.PREPROCESSING_FILE)
            names = [self.folder / name for name in described]
            names.append(folders.find_weights(self.folder))
        return tuple(map(_state, names))

    def refuse_changed(self) -> None:
        """Raises CheckpointError if a file of it has changed since it was named.

        Asked after each reading of a file, so that what it describes, its tensors and their hash
        are of one moment, also while a training run writes a better epoch.
        """
        if self.seen and self.seen != self._states():
            raise CheckpointError(
                f"`{self.path}` was changed while it was used",
                hint="wait until nothing writes there, and start again",
            )

    @property
    def needs_torch(self) -> bool:
        """Whether what it is stands in a pickle alone, which is read with torch."""
        return self.kind == "file" and self.path.suffix != ".safetensors"

    def described(
        self, size: Size | None = None, activation: Activation | None = None
    ) -> CheckpointConfig:
        """What it is; not to be asked where that needs torch.

        Args:
            size: input height and width in pixels; by default the checkpoint's own.
            activation: of the MLPs; by default what the checkpoint says, or see the notes.

        Raises:
            CheckpointError, ConfigError: as `folders.read_folder` and `record`.
            UsageError: a graph takes no such size or activation, or the size of a bare file is
                not known and not given.
        """
        assert not self.needs_torch
        if self.folder is not None:
            return folders.read_folder(self.folder, self.known, size, activation)
        if self.kind == "graph":
            return self.record_at(size, activation).described
        if self.record is None:
            shapes = headers.safetensors_shapes(self.path)
            return headers.describe_tensors(self.path, shapes, self.known, size, activation)
        said = self.record.described
        preprocessing = said.preprocessing.with_size(size) if size else said.preprocessing
        config = said.config.with_activation(activation)
        return replace(said, config=config, preprocessing=preprocessing)

    @property
    def revision(self) -> str | None:
        """The commit of the hub's repository that it is, or was exported from."""
        if self.snapshot:
            return self.snapshot.commit
        return self.record.revision if self.record else None

    @property
    def repository(self) -> str | None:
        """The hub repository that it is, or was exported from."""
        if self.snapshot:
            return self.snapshot.repository
        source = self.record.source if self.record else ""
        return source if hub_client.REPOSITORY.fullmatch(source) else None

    @property
    def license(self) -> str | None:
        """The license, as far as anything here says it."""
        if self.record:
            return self.record.license
        if self.identity:
            return self.identity.license
        return (folders.license_in(self.folder) if self.folder else None) or None

    @property
    def card(self) -> str | None:
        """The text of its model card; None where there is none that can be read."""
        return folders.card_in(self.folder) if self.folder else None

    @property
    def tensors(self) -> Path:
        """The file with its tensors, as somebody gave it.

        Raises:
            CheckpointError: the folder has none.
        """
        return folders.weights_in(self.folder) if self.folder else self.path

    @cached_property
    def weights_sha256(self) -> str:
        """The SHA-256 of the file with its tensors; of a graph in two files, of both hashes.

        It is what the hub announced, where it did, else it is read, and remembered of a file that
        does not change.

        Raises:
            CheckpointError: a file cannot be read, or has gone since.
        """
        announced = cache.weights_hash(self.snapshot) if self.snapshot else None
        if announced is not None and len(announced) == 64:
            return announced
        files = [self.tensors]
        if self.kind == "graph" and (second := second_file(self.path)):
            files.append(second)
        try:
            hashes = [stamps.hash_of(path) for path in files]
        except OSError as error:
            raise folders.unreadable(files[0], error) from None
        self.refuse_changed()
        return hashes[0] if len(hashes) == 1 else conditions.names_hash(hashes)

    def record_of_export(
        self,
        described: CheckpointConfig,
        *,
        inside: bool = False,
        precision: FilePrecision = "fp32",
        dynamic_size: bool = False,
    ) -> Record:
        """What a file that is made of this checkpoint shall say of itself.

        Args:
            described: what the checkpoint is, at the size and with the activation of the file.
            inside: whether the file does the preprocessing.
            precision: of the file.
            dynamic_size: whether it takes images of any height and width.
        """
        # A path may say more of the machine than the user wants to pass on.
        source = self.path.resolve().name
        if self.path.is_dir():
            source = folders.called(self.path)
        if self.kind == "embedded":
            source = "cvt-cli"
        elif self.snapshot:
            source = self.snapshot.repository
        name = self.name if self.snapshot else source
        return Record(
            self.identity.name if self.identity else name,
            source,
            self.snapshot.commit if self.snapshot else None,
            self.weights_sha256,
            self.license,
            described.config,
            described.labels,
            described.preprocessing,
            inside,
            precision,
            dynamic_size,
        )


def _state(path: Path | None) -> tuple[int, ...] | None:
    """None where there is no file."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
