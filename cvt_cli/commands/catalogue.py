"""What checkpoints there are, which of them are on this machine, and what one of them is."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cvt_cli import loading
from cvt_cli.base import places
from cvt_cli.base.errors import CheckpointError, CvtError, UnreachableError, UsageError
from cvt_cli.cards import published_facts
from cvt_cli.checkpoints import cache, folders, hub, hub_client, locate
from cvt_cli.checkpoints.cache import Snapshot
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.checkpoints.locate import Access
from cvt_cli.spec import labels, published
from cvt_cli.spec.config import Activation, Size
from cvt_cli.spec.costs import costs
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.published import CHECKPOINTS, KnownCheckpoint
from cvt_cli.spec.variants import VARIANTS, variant_of


@dataclass(frozen=True)
class Known:
    """A known checkpoint, what it costs, and what the cache holds of it."""

    checkpoint: KnownCheckpoint
    params: int
    macs: int  # of one image at its own size
    cached: Snapshot | None
    bytes: int  # on this machine, what was made of it included; 0 if it is not here

    def to_json(self) -> dict[str, Any]:
        """The documented keys; shares are fractions."""
        known, scores = self.checkpoint, self.checkpoint.scores
        shares = ("paper_top1", "top1", "top5", "real", "v2")
        return {
            "name": known.name,
            "repository": known.repository,
            "original": known.original,
            "variant": known.variant,
            "height": known.size,
            "width": known.size,
            "num_classes": known.num_classes,
            "params": self.params,
            "macs": self.macs,
            **{key: scores and round(getattr(scores, key) / 100, 4) for key in shares},
            "license": known.license,
            "cached": bool(known.embedded or self.cached),
            "bytes": self.bytes,
            "revision": self.cached and self.cached.commit,
        }


def known_checkpoints() -> list[Known]:
    """Every checkpoint that is known by name."""
    return [_known(checkpoint) for checkpoint in CHECKPOINTS.values()]


def _known(checkpoint: KnownCheckpoint) -> Known:
    config = VARIANTS[checkpoint.variant].config.with_classes(checkpoint.num_classes)
    cost = costs(checkpoint.variant, config, checkpoint.size, checkpoint.size)
    cached = cache.find(checkpoint.repository) if checkpoint.repository else None
    if cached and cached.weights is None:
        cached = None
    size = sum(cache.sizes(cached)) if cached else 0
    if checkpoint.embedded:
        size = cache.size_of(checkpoint.embedded)
    return Known(checkpoint, cost.params, cost.macs, cached, size)


@dataclass(frozen=True)
class Description:
    """What one checkpoint is."""

    name: str
    described: CheckpointConfig
    here: Checkpoint | None  # None: a known checkpoint that is not on this machine
    repository: str | None
    revision: str | None
    license: str | None
    notes: tuple[str, ...]

    @property
    def weights(self) -> Path | None:
        """The file with its tensors; None where that is not on this machine."""
        if self.here is None:
            return None
        folder = self.here.folder
        return folders.find_weights(folder) if folder else self.here.path

    @property
    def weights_sha256(self) -> str | None:
        """The hash of its tensors, where they are on this machine."""
        return self.here.weights_sha256 if self.here and self.weights else None

    @property
    def card(self) -> Path | None:
        """The model card, if there is one."""
        path = self.here.folder / folders.CARD_FILE if self.here and self.here.folder else None
        return path if path and path.is_file() else None

    def _published(self) -> dict[str, Any]:
        """What is published of one of the seven; None of any other."""
        known = published.CHECKPOINTS.get(self.name)
        if known is None or known.scores is None:
            return {"scores": None, "pretrained_on": None, "limits": None}
        shares = ("paper_top1", "top1", "top5", "real", "v2")
        return {
            "scores": {key: round(getattr(known.scores, key) / 100, 4) for key in shares},
            "pretrained_on": published_facts.pretrained_on(known),
            "limits": published_facts.limits(known),
        }

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        config, labels, preprocessing = (
            self.described.config, self.described.labels, self.described.preprocessing
        )  # fmt: skip
        height, width = preprocessing.size
        cost = costs(self.name, config, height, width)
        return {
            "name": self.name,
            "variant": variant_of(config),
            "height": height,
            "width": width,
            "num_classes": len(labels),
            "classes": list(labels.names),
            "thresholds": labels.thresholds and list(labels.thresholds),
            "params": cost.params,
            "macs": cost.macs,
            "preprocessing": preprocessing.to_json(),
            "activation": config.activation,
            "repository": self.repository,
            "revision": self.revision,
            "weights": self.weights and str(self.weights),
            "weights_sha256": self.weights_sha256,
            "license": self.license,
            "card": self.here.card if self.here else None,
            **self._published(),
            "notes": list(self.notes),
        }


def describe(
    text: str,
    access: Access,
    size: Size | None = None,
    activation: Activation | None = None,
) -> Description:
    """What follows ``--model``, without running it.

    A published checkpoint that is not here is described as this project knows it; of another hub
    repository the config, preprocessing and card are fetched, not the weights.

    Args:
        text: what follows it.
        access: how to fetch what is not here.
        size: input height and width in pixels; by default the checkpoint's own.
        activation: of the MLPs; by default what the checkpoint says.

    Raises:
        CheckpointError, ConfigError, UsageError: as `locate.find` and `Checkpoint.described`.
    """
    found = locate.find(text, access)
    if isinstance(found, locate.Repository):
        known = found.known
        if known and not cache.find(found.name, access.revision):
            config = VARIANTS[known.variant].config.with_classes(known.num_classes)
            preprocessing = Preprocessing.published(*(size or (known.size, known.size)))
            config = config.with_activation(activation)
            said = CheckpointConfig(config, labels.imagenet(), preprocessing)
            note = f"not on this machine; `cvt download {known.name}` downloads it"
            return Description(
                known.name, said, None, found.name, access.revision, known.license, (note,)
            )
        found = locate.held(found, access, need="config")
    if found.needs_torch:
        from cvt_cli.model import weights

        said = weights.load_checkpoint(found, size, activation).described
    else:
        said = found.described(size, activation)
    notes = said.notes
    if record := found.record:
        notes = (f"exported from {record.model} in {record.precision} by version {record.version}",)
    return Description(
        found.name, said, found, found.repository, found.revision, found.license, notes
    )


@dataclass(frozen=True)
class Held:
    """What the cache holds of one commit of a repository."""

    name: str  # the known checkpoint's, else the repository's
    snapshot: Snapshot
    bytes: int  # in the hub client's cache
    made_bytes: int  # in ours
    last_use: float | None  # seconds since 1970

    @property
    def as_fetched(self) -> str:
        """What follows `cvt download` for this commit."""
        snapshot = self.snapshot
        is_main = cache.find(snapshot.repository) == snapshot
        return self.name if is_main else f"{self.name} --revision {snapshot.commit}"

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        used = self.last_use
        return {
            "name": self.name,
            "repository": self.snapshot.repository,
            "revision": self.snapshot.commit,
            "refs": self.snapshot.refs,
            "bytes": self.bytes,
            "made_bytes": self.made_bytes,
            "last_use": None
            if used is None
            else datetime.fromtimestamp(used).astimezone().isoformat(timespec="seconds"),
            "missing": self.snapshot.missing,
            "path": str(self.snapshot.folder),
        }


def held(names: list[str]) -> list[Held]:
    """What the cache holds of these checkpoints; without names, of all.

    Raises:
        CheckpointError: it holds nothing of one of them.
    """
    found = cache.snapshots()
    wanted = {repository_of(name): name for name in names}
    if absent := set(wanted) - {snapshot.repository for snapshot in found}:
        raise CheckpointError(
            f"the cache (`{places.hub_dir()}`) holds no CvT "
            + ", ".join(f"`{wanted[repository]}`" for repository in sorted(absent)),
            hint="`cvt cache list` shows what it holds",
        )
    return [_held(s) for s in found if not names or s.repository in wanted]


def meant(names: list[str]) -> dict[str, Snapshot]:
    """Of each of these checkpoints what its name means: ``main``, else what is whole, used last.

    In the order in which they are named.

    Raises:
        CheckpointError: the cache holds nothing of one of them.
    """
    found = {row.snapshot.repository: row for row in sorted(held(names), key=_rank)}
    rows = [found[repository_of(name)] for name in names]
    return {row.name: row.snapshot for row in rows}


def _rank(row: Held) -> tuple[bool, bool, float]:
    snapshot = row.snapshot
    return cache.find(snapshot.repository) == snapshot, not snapshot.missing, row.last_use or 0.0


def _held(snapshot: Snapshot) -> Held:
    known = published.find(snapshot.repository)
    name = known.name if known else snapshot.repository
    return Held(name, snapshot, *cache.sizes(snapshot), cache.last_use(snapshot))


def repository_of(text: str) -> str:
    """The hub repository that a name means.

    Raises:
        UsageError: it is part of the package, or no name of a repository.
    """
    known = published.find(text)
    repository = known.repository if known else text
    if repository is None:
        raise UsageError(
            f"`{text}` is part of the package, not in the cache", hint="it is ready as it is"
        )
    if not hub_client.REPOSITORY.fullmatch(repository):
        raise UsageError(
            f"`{text}` is neither a known model nor a hub repository (owner/name)",
            hint=published.suggestion(text),
        )
    return repository


def download(names: list[str], access: Access) -> Iterator[Held | CvtError]:
    """Bring checkpoints to the newest state of their revision, verified and ready to run.

    Yields:
        For each name what is now held of it, or why it could not be had. Where the hub
        cannot be reached a copy in the cache is kept, and the rest is not tried.
    """
    for name in names:
        repository = repository_of(name)
        known = published.find(name)
        try:
            try:
                snapshot = hub.fetch(
                    repository,
                    access.revision,
                    known=known,
                    offline=access.offline,
                    say=access.say,
                    progress=access.progress,
                )
            except UnreachableError as error:
                found = cache.find(repository, access.revision)
                if found is None or found.missing:
                    raise
                access.say(
                    f"{error}; the copy in the cache stays, and was not checked for a newer version"
                )
                snapshot = found
            for path, right in cache.verify(snapshot):
                if right is not False:
                    continue
                if path in snapshot.used:  # of a copy that stays, since no hub was reached
                    raise CheckpointError(
                        f"`{path}` is damaged",
                        hint="run the same command again where the hub can be reached",
                    )
                ours = not path.is_relative_to(snapshot.folder)
                what = (
                    "was damaged; it is made again" if ours else "is damaged; cvt does not use it"
                )
                access.say(f"`{path}` {what}")
            loading.verified(locate.fetched(snapshot), access)
            yield _held(snapshot)
        except UnreachableError as error:
            yield error
            return
        except CvtError as error:
            yield error
