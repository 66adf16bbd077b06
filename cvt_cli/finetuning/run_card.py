"""The checkpoints of a run with their model cards: how each came about, and when the run ended."""

import datetime
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from cvt_cli.base import files, text, torchrun
from cvt_cli.base.errors import CheckpointError, CvtError
from cvt_cli.base.package import __version__, installing
from cvt_cli.base.progress import Say
from cvt_cli.base.text import counted
from cvt_cli.cards import about as abouts
from cvt_cli.cards import card, gather
from cvt_cli.cards.about import About
from cvt_cli.cards.header import EVAL_RESULTS
from cvt_cli.cards.parts import Merged
from cvt_cli.cards.record import RECORD_FILE, Record
from cvt_cli.cards.record import read as read_record
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.folders import BEST, CARD_FILE, CheckpointConfig, called
from cvt_cli.evaluation import metrics
from cvt_cli.finetuning.batches import Batches
from cvt_cli.finetuning.job import Job, parts_of_a_step
from cvt_cli.finetuning.plan import SPLIT_FILE, refuse_moved
from cvt_cli.finetuning.resume import Epoch
from cvt_cli.model import weights
from cvt_cli.model.network import CvT
from cvt_cli.prediction import shareable
from cvt_cli.tracking import energy
from cvt_cli.tracking.energy import Energy


def keep(
    folder: Path, model: CvT, job: Job, batches: Batches, row: Epoch, epochs: int, say: Say
) -> None:
    """Write a checkpoint, with a model card that says how it came about.

    What was edited by hand of an earlier card stays; one of somebody else is moved aside. Neither
    the card nor what belongs to it ever stands beside weights that it does not tell of.

    Args:
        folder: ``RUN/best`` or ``RUN/last``.
        model: as it is after the epoch.
        job: that it was trained by.
        batches: that it was trained on.
        row: what came of the epoch.
        epochs: that the run is to have.
        say: told of a card that is moved aside.

    Raises:
        CvtError: it cannot be written, or the run was moved away (`plan.refuse_moved`).
    """
    refuse_moved(folder.parent)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise files.unwritable(folder, error) from error
    with gather.alone(folder, say):
        _keep(folder, model, job, batches, row, epochs, say)


def _keep(
    folder: Path, model: CvT, job: Job, batches: Batches, row: Epoch, epochs: int, say: Say
) -> None:
    labels = job.labels
    if row.thresholds is not None:
        labels = replace(labels, thresholds=tuple(row.thresholds))
    record = Record(_facts(job, batches, row, epochs, _begun(folder.parent)))
    described = CheckpointConfig(model.config, labels, job.preprocessing)
    about = About(called(folder), described, record, license=job.license)
    made = _composed(about, folder, say).text
    for name in (RECORD_FILE, EVAL_RESULTS):
        card.remove(folder / name)
    weights.save(folder, model, labels, job.preprocessing, made)
    card.write(folder, replace(about, files=abouts.sizes_of(folder)), made)


def _composed(about: About, folder: Path, say: Say) -> Merged:
    """The card over that of an earlier epoch. One that cannot be gone on with, as of somebody else,
    is moved aside: a training does not end for it."""
    path = folder / CARD_FILE
    try:
        return card.compose(about, card.before_in(folder))
    except CheckpointError as error:
        kept = files.beside(path)
        try:
            path.rename(kept)
        except OSError as why:
            raise files.unwritable(kept, why) from why
        say(f"{error}; it is kept as `{kept}`, and a new one is written")
        return card.compose(about)


def _begun(run: Path) -> str | None:
    """When a run began, as its split says."""
    try:
        found = text.read_json(run / SPLIT_FILE).get("begun")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def now() -> str:
    """The time to a minute, with its zone."""
    return datetime.datetime.now().astimezone().isoformat(timespec="minutes")


def _facts(
    job: Job, batches: Batches, row: Epoch, epochs: int, begun: str | None
) -> dict[str, Any]:
    """How a checkpoint was trained, as its card tells it (`cards.training`), in JSON values."""
    settings, n = job.settings, len(job.images.validation)
    sizes = job.images.training.sizes.tolist()
    facts: dict[str, Any] = {
        "start": job.name,
        "from_scratch": job.scratch,
        "repository": job.repository,
        "data": shareable.shown(settings.data),
        "data_name": Path(settings.data).name or settings.data,
        "command": _shareable(settings.command),
        "settings": {
            {"name": "recipe"}.get(key, key): str(value) for key, value in _used(job, row).items()
        },
        "seed": settings.seed,
        "precision": settings.precision,
        "train_n": len(job.images.training),
        "val_n": n,
        "fold_n": 0 if job.images.held_out is None else len(job.images.held_out),
        "set_aside": job.images.set_aside,
        "groups": job.images.training.grouped_by,
        "val_groups": job.images.held_out_groups,
        "unreadable_n": len(job.images.unreadable),
        "class_sizes": dict(zip(job.images.training.classes, sizes, strict=True)),
        "fingerprint": job.images.fingerprint,
        "batch": None,
        "epoch": row.epoch,
        "step": row.step,
        "epochs": None,
        "hardware": f"{job.device}, {job.hardware}, {counted(os.cpu_count() or 1, 'core')}",
        "software": f"cvt-cli {__version__}, torch {torch.__version__}",
        "seconds": row.elapsed,
        "started": begun,
        "finished": None,
        "energy": None,
        "validation": _validation(job, row, n),
    }
    if job.takes_steps:
        facts["epochs"] = epochs
        facts["batch"] = f"up to {counted(batches.step_images, 'image')}" + parts_of_a_step(
            settings.batch_size, settings.accumulate, torchrun.count()
        )
    return facts


def _shareable(command: str) -> str:
    """The command without the folders of this machine, since a card may be shown to anybody."""
    if command.startswith("cvt "):
        return shareable.command_of(shlex.split(command)[1:])
    return shareable.call(command)


def _validation(job: Job, row: Epoch, n: int) -> dict[str, Any]:
    """What was measured on the images that the best epoch is chosen by."""
    found: dict[str, Any] = {
        "correct": row.val_correct,
        "interval": list(metrics.wilson(row.val_correct, n)),
    }
    if (seen := job.validation_seen) is not None:
        found["trained_before"] = seen
    if job.several:
        found |= {"map": row.val_map, "micro_f1": row.val_micro_f1, "macro_f1": row.val_macro_f1}
    elif len(job.labels) > 5:  # else it is certain
        found["correct_top5"] = row.val_correct_top5
        found["interval_top5"] = list(metrics.wilson(row.val_correct_top5, n))
    return found


ENERGY_FILE = "energy.json"


@contextmanager
def metered(run: Path, job: Job, say: Say) -> Iterator[None]:
    """Inside of it the energy is measured, if that was asked for or is of a run that goes on, and
    added to what earlier parts of the run took. Of a part that is killed no figures are known."""
    parts = _energy_parts(run)
    if torchrun.rank() != 0 or not (job.energy or parts):
        yield
        return
    if not energy.available():
        say(f"this part's energy is not measured: codecarbon is missing; {installing('energy')}")
        yield
        return
    country = job.country or (parts[-1]["country"] if parts else None)
    used = Energy(country=country)
    _write_parts(run, [*parts, used.to_json()])
    try:
        with energy.measured(country) as used:
            yield
    finally:
        _write_parts(run, [*parts, used.to_json()])


def _write_parts(run: Path, parts: list[dict[str, Any]]) -> None:
    files.write_text(run / ENERGY_FILE, json.dumps(parts, indent=1) + "\n")


def _energy_parts(run: Path) -> list[dict[str, Any]]:
    try:
        found = text.read_json(run / ENERGY_FILE)
    except (OSError, ValueError):
        return []
    needed = Energy().to_json().keys()
    found = found if isinstance(found, list) else []
    return [one for one in found if isinstance(one, dict) and one.keys() >= needed]


def energy_of(run: Path) -> dict[str, Any] | None:
    """What all parts of a run took, as the documented keys; None where it was not measured."""
    return energy.added(_energy_parts(run))


def finish(folder: Path, seconds: float, say: Say) -> None:
    """Say in the best epoch's card when the run ended, and what all of it took."""
    best = folder / BEST
    with gather.alone(best, say):
        _finish(folder, best, seconds, say)


def _finish(folder: Path, best: Path, seconds: float, say: Say) -> None:
    try:
        record = read_record(best)
        checkpoint = Checkpoint.at(best)
        about = abouts.of_checkpoint(checkpoint, checkpoint.described(), record)
    except CvtError:  # of a version before, or somebody else is at it: it is as it was
        return
    if record.training is None:
        return
    facts = {**record.training, "seconds": seconds}
    if facts.get("finished") is None or seconds != record.training["seconds"]:
        facts["finished"] = now()  # and not when a finished run was gone on with, for nothing
    facts["energy"] = energy_of(folder)
    about = replace(about, record=replace(record, training=facts))
    card.write(best, about, _composed(about, best, say).text)


def _used(job: Job, row: Epoch) -> dict[str, str]:
    """What of the recipe and the settings had a part in the training."""
    settings = job.settings
    recipe = {k: v for k, v in asdict(settings.recipe).items() if v is not None and v != ()}
    if told_later := recipe.pop("not_published", None):
        recipe["chosen by us"] = ", ".join(told_later).replace("_", " ")
    if not job.takes_steps:
        recipe = {key: recipe[key] for key in ("name", "optimizer")}
        if row.penalty is not None:
            recipe["penalty"] = f"{row.penalty:.3g} on the squares of the weights"
    elif "steps" in recipe:  # which take the place of epochs
        del recipe["epochs"]
    if settings.freeze:
        recipe["frozen"] = " and ".join(settings.freeze)
    if settings.class_weights:
        told = settings.class_weights
        if isinstance(told, dict):
            told = ", ".join(f"{name} {value:g}" for name, value in told.items())
        recipe["class weights"] = "balanced" if told is True else told
    if weights := job.images.training.weighed_by:
        recipe["image weights"] = f"of the column {weights}"
    if settings.sampler:
        recipe["sampler"] = settings.sampler
    if settings.threshold_for:
        recipe["thresholds for"] = settings.threshold_for
        if row.unreached:
            classes = text.some(job.labels.names[place] for place in row.unreached)
            recipe["thresholds for"] += f" (reached by none for {classes})"
    if settings.select != "top1":
        recipe["best epoch by"] = settings.select
    if settings.sync_batchnorm:
        recipe["BatchNorm"] = "synchronised"
    return recipe
