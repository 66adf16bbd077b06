"""Results put into the card of the checkpoint that they are of."""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvt_cli.base import files, locks
from cvt_cli.base.errors import CheckpointError, CvtError, DataError
from cvt_cli.base.progress import Say
from cvt_cli.cards import about as abouts
from cvt_cli.cards import card, record
from cvt_cli.cards.about import About
from cvt_cli.cards.parts import Merged
from cvt_cli.cards.record import Kind
from cvt_cli.checkpoints import folders
from cvt_cli.checkpoints.checkpoint import Checkpoint

Sources = Sequence[tuple[str, Mapping[str, Any]]]
"""Results, each with what it is called in messages."""


def today() -> str:
    """The date, in this machine's zone."""
    return datetime.datetime.now().astimezone().date().isoformat()


def folder_of(path: Path) -> Path:
    """The checkpoint folder that ``--card`` names: a run's best epoch, or the folder itself.

    Raises:
        CheckpointError: it is neither.
    """
    found = folders.folder_of(path)
    if found is not None and (found / folders.CONFIG_FILE).is_file():
        return found
    if found is not None and (best := folders.best_of(found)):
        return best
    raise CheckpointError(
        f"--card: `{path}` is neither a run folder nor a checkpoint folder",
        hint="a card lies beside the weights that it tells of; of a published model write the "
        "result with --json FILE.json, then: cvt card MODEL --add FILE.json --output card.md",
    )


def alone(folder: Path, say: Say) -> AbstractContextManager[None]:
    """A checkpoint's card is read and written inside of it by one process at a time."""
    return locks.folder(folder, f"writing the card of `{folder}`", say)


def check(path: Path, *, overwrite: bool = False) -> None:
    """Raises CvtError for what `add` would refuse, before anything is measured for it."""
    folder = folder_of(path)
    card.before_in(folder, overwrite=overwrite)
    record.read(folder)
    for name in (record.RECORD_FILE, folders.CARD_FILE):
        files.refuse_unwritable(folder / name)


def check_is_of(path: Path, kind: Kind, measured_under: Mapping[str, Any]) -> None:
    """Raises DataError, before anything is measured, if a result would not be of this folder's
    checkpoint: of other weights or classes, of another architecture, size or preprocessing."""
    about = about_folder(folder_of(path))
    record.refuse_other(kind, measured_under, about.subject, "--card: what would be measured")


def refuse_stale(path: Path) -> None:
    """Raises CheckpointError if the card of a run or a checkpoint folder has results of other
    weights than are there. What else is wrong with it is not asked."""
    try:
        about = about_folder(folder_of(path))
    except CvtError:
        return
    _, said = record.without_other_weights(about.record, about.subject)
    if said:
        raise CheckpointError(
            f"the model card is of other weights than those that are there: {said[0]}",
            hint=f"`cvt card {shlex.quote(str(path))}` writes it again",
        )


def about_folder(folder: Path) -> About:
    """A checkpoint's folder with its record.

    Raises:
        CheckpointError, ConfigError: it is damaged.
    """
    checkpoint = Checkpoint.at(folder)
    about = abouts.of_checkpoint(checkpoint, checkpoint.described(), record.read(folder))
    if why := card.why_not_shown(about):
        raise CheckpointError(
            f"`{folder / record.RECORD_FILE}` holds what a card cannot be made of: {why}",
            hint=record.how_to_mend(folder),
        )
    return about


def with_results(about: About, sources: Sources, say: Say, *, overwrite: bool = False) -> About:
    """A checkpoint with more results, and without those of other weights.

    Raises:
        DataError: a result that is not of it, or damaged; see `record.with_results`.
    """
    found, left_out = record.without_other_weights(about.record, about.subject)
    for source, document in sources:
        alone = record.Record(
            about.record.training,
            ({"kind": record.kind_of(document, source), "document": document},),
        )
        if why := card.why_not_shown(replace(about, record=alone)):
            raise DataError(f"{source} is a damaged result, of which a card cannot be made: {why}")
    found, replaced = record.with_results(
        found, about.subject, sources, today(), overwrite=overwrite
    )
    for message in (*left_out, *replaced):
        say(message)
    return replace(about, record=found)


def add(path: Path, sources: Sources, say: Say, *, overwrite: bool = False) -> Merged:
    """Put results into the card of a run or a checkpoint folder, and say what has changed.

    Raises:
        CheckpointError: it is none, or its card is not ours.
        DataError: a result that is not of it.
    """
    folder = folder_of(path)
    with alone(folder, say):
        about = with_results(about_folder(folder), sources, say, overwrite=overwrite)
        made = card.save(folder, about, overwrite=overwrite)
    card.say_changes(made, folder / folders.CARD_FILE, say)
    return made
