"""Results put into the card of the checkpoint that they are of."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cvt_cli.base.errors import CheckpointError
from cvt_cli.base.progress import Say
from cvt_cli.cards import about as abouts
from cvt_cli.cards import card, record
from cvt_cli.cards.about import About
from cvt_cli.cards.parts import Merged
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


def check(path: Path, *, overwrite: bool = False) -> None:
    """Raises CheckpointError for what `add` would refuse, before anything is measured for it."""
    folder = folder_of(path)
    card.before_in(folder, overwrite=overwrite)
    record.read(folder)


def about_folder(folder: Path) -> About:
    """A checkpoint's folder with its record.

    Raises:
        CheckpointError, ConfigError: it is damaged.
    """
    checkpoint = Checkpoint.at(folder)
    return abouts.of_checkpoint(checkpoint, checkpoint.described(), record.read(folder))


def with_results(about: About, sources: Sources, say: Say, *, overwrite: bool = False) -> About:
    """A checkpoint with more results, and without those of other weights.

    Raises:
        DataError: a result that is not of it; see `record.with_results`.
    """
    found, left_out = record.without_other_weights(about.record, about.subject)
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
    about = with_results(about_folder(folder), sources, say, overwrite=overwrite)
    made = card.save(folder, about, overwrite=overwrite)
    card.say_changes(made, folder / folders.CARD_FILE, say)
    return made
