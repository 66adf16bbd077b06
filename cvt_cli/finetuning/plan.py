"""What a run is to do, as plan.json has it: written, read in each of its versions, described."""

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from cvt_cli.base import text, torchrun
from cvt_cli.base.conditions import json_hash
from cvt_cli.base.errors import CheckpointError, CvtError
from cvt_cli.base.package import __version__
from cvt_cli.base.text import counted, human_bytes
from cvt_cli.checkpoints import folders
from cvt_cli.finetuning import balance, geometry
from cvt_cli.finetuning.batches import Batches, workers_watched
from cvt_cli.finetuning.job import Job, Settings, parts_of_a_step
from cvt_cli.finetuning.resume import STATE_FILE
from cvt_cli.finetuning.tensor_files import read_about
from cvt_cli.finetuning.trainer import Trainer
from cvt_cli.model import devices, engine
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import Recipe

PLAN_FILE = "plan.json"
SPLIT_FILE = "split.json"

PLAN_VERSION = 2
"""Of the plan's form. Version 1, without a number, is read too: its fingerprint is of the files'
sizes, and its epochs leave out what does not fill a step."""

TIMED_STEPS = 3
"""By which a plan estimates the time, at most; nothing is learnt in them."""

_STEPS_OF_A_TIMED_ONE = 100
"""So many steps a run has for each that is timed: each takes a hundredth of its time at most. A
shorter run's own first step is timed, and its gradients are kept for it."""

_OTHER_VERSION = (
    "continue with the version of cvt that began it, or start another run, for example from "
    "--model RUN/best"
)

_ASKED_OF_A_PLAN = (
    ("data", "fingerprint"),
    ("data", "train_n"),
    ("data", "val_n"),
    ("data", "val_set_aside"),
    ("data", "val_fraction"),
    ("model", "start"),
    ("model", "config"),
    ("model", "preprocessing"),
)


def plan_of(
    job: Job, batches: Batches, trainer: Trainer | None, val_fraction: float
) -> dict[str, Any]:
    """What is going to happen, as JSON values; the time is taken from a few steps.

    Args:
        job: that is planned.
        batches: the training images.
        trainer: the network in training; a linear probe has none.
        val_fraction: part of the training images that was to be set aside.
    """
    return {
        "version": PLAN_VERSION,
        "data": _data(job, val_fraction),
        "model": _model(job),
        "settings": settings_json(job),
        "class_weights": _class_weights(job),
        "processes": torchrun.count(),
        "workers": job.workers,
        "device": str(job.device),
        "hardware": job.hardware,
        "versions": {
            "cvt-cli": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        **_length(job, batches, trainer),
    }


def settings_json(job: Job) -> dict[str, Any]:
    """All of them but for those of several labels an image, where there is nothing of that."""
    values = {**asdict(job.settings), "recipe": job.settings.recipe.to_json(job.preprocessing.size)}
    for name in ("separator", "threshold_for"):
        if values[name] is None:
            del values[name]
    return values


def _class_weights(job: Job) -> dict[str, float] | None:
    """The factor of each class, as it is used."""
    if job.class_weights is None:
        return None
    return dict(zip(job.images.training.classes, job.class_weights.tolist(), strict=True))


def _data(job: Job, val_fraction: float) -> dict[str, Any]:
    images = job.images
    counts = images.training.sizes
    smallest = int(counts.argmin())
    return {
        "name": job.settings.data,
        "root": str(images.training.root.resolve()),
        **({"table": str(table.table.resolve())} if (table := images.training.table) else {}),
        "classes": len(counts),
        "train_n": len(images.training),
        "val_n": len(images.validation),
        "val_set_aside": images.set_aside,
        "val_fraction": val_fraction,
        "groups": images.training.grouped_by,
        "val_groups": images.held_out_groups,
        "image_weights": images.training.weighed_by,
        "smallest_class": images.training.classes[smallest],
        "smallest_n": int(counts[smallest]),
        "unreadable": list(images.unreadable),
        "only_headers_read": images.only_headers,
        "unread": images.unread,
        "fingerprint": images.fingerprint,
        "used_fingerprint": images.used_fingerprint,
        "left_out": list(map(list, images.left_out)),
        **geometry.of_plan(images.training, job.preprocessing),
        **balance.of_plan(counts, images.validation.sizes, images.training.classes),
    }


def _model(job: Job) -> dict[str, Any]:
    trained = job.model if job.takes_steps else job.model.head
    return {
        "start": job.name,
        "repository": job.repository,
        "license": job.license,
        "scratch": job.scratch,
        "params": sum(p.numel() for p in job.model.parameters()),
        "trained_params": sum(p.numel() for p in trained.parameters() if p.requires_grad),
        "config": folders.transformers_config(job.model.config, job.labels, __version__),
        "preprocessing": job.preprocessing.to_transformers(),
    }


def _length(job: Job, batches: Batches, trainer: Trainer | None) -> dict[str, Any]:
    """How many steps, and how long they take; None of what a linear probe has not."""
    if trainer is None:
        unknown = ("step_images", "steps", "steps_per_epoch", "step_sec")
        return {
            **dict.fromkeys(unknown),
            "timed_steps": 0,
            "estimated_sec": None,
            "peak_memory_bytes": None,
        }
    with (
        workers_watched("free memory, or use --workers 0"),
        engine.computing_in(job.threads),
    ):
        steps = trainer.schedule.steps
        most = TIMED_STEPS
        if job.device.type == "cpu":  # elsewhere the first step is many times as slow as others
            most = min(most, steps // _STEPS_OF_A_TIMED_ONE)
        if most == 0 and torchrun.count() == 1:  # the run's own first step is timed
            step_sec, timed = trainer.first_ahead(batches.first()), 1
        else:
            step_sec, timed = trainer.trial(batches.of_epoch(0), most)
    # Forward alone takes about a third of forward and backward.
    validation = len(job.images.validation) * step_sec / batches.step_images / 3
    epochs = -(-steps // batches.steps)
    return {
        "step_images": batches.step_images,
        "steps": steps,
        "steps_per_epoch": batches.steps,
        "step_sec": step_sec if timed else None,
        "timed_steps": timed,
        "estimated_sec": steps * step_sec + epochs * validation if timed else None,
        "peak_memory_bytes": devices.peak_memory(job.device),
    }


def describe(plan: Mapping[str, Any]) -> list[str]:
    """A plan in lines for a person."""
    data, settings, model = plan["data"], plan["settings"], plan["model"]
    recipe = settings["recipe"]
    origin = "held out" if data["val_set_aside"] else "from its `val`"
    if groups := data.get("val_groups"):  # absent from plans of versions before, as are weights
        origin += f", {counted(groups, 'whole group')} of `{data['groups']}`"
    reading = "some could not be read" if data["unreadable"] else "all were read"
    if data["only_headers_read"]:
        reading = "only their headers were read"
    if data.get("unread"):  # the version before does not say it
        reading = "too many to read them all before training"
    lines = [
        f"data: `{data['name']}`, {counted(data['train_n'], 'training image')} and "
        f"{counted(data['val_n'], 'validation image')} ({origin}) in "
        f"{data['classes']} classes; the smallest class is `{data['smallest_class']}` with "
        f"{counted(data['smallest_n'], 'image')}; {reading}"
    ]
    if unreadable := data["unreadable"]:
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        lines.append(
            f"{len(unreadable)} left out, cannot be read: {'; '.join(unreadable[:5])}{more}"
        )
    if much := much_set_aside(plan):
        lines.append(much)
    if weights := data.get("image_weights"):
        lines.append(f"image weights: an image's loss counts by its weight in `{weights}`")
    lines += balance.described(plan)
    preprocessing = Preprocessing.from_transformers(model["preprocessing"])
    lines.append(
        f"model: `{model['start']}`, {model['params']:,} parameters, "
        f"{model['trained_params']:,} of them trained; {preprocessing.describe()}"
    )
    lines += geometry.described(plan)
    if recipe["optimizer"] == "newton":
        lines.append(
            "recipe linear-probe: features are computed once; the head is solved by Newton's "
            "method, and its penalty is chosen on the validation images"
        )
    else:
        of_a_step = parts_of_a_step(
            settings["batch_size"], settings["accumulate"], plan["processes"]
        )
        schedule = (
            f"{recipe['optimizer']}, peak learning rate {recipe['learning_rate']:.3g} for "
            f"{counted(plan['step_images'], 'image')} per step{of_a_step}, "
            f"warm-up {counted(recipe['warmup_epochs'], 'epoch')}, {recipe['augment']}"
        )
        lines.append(f"recipe {recipe['name']}: {schedule}")
        if unstated := recipe["not_published"]:
            lines.append(f"not in the paper, chosen by us: {', '.join(unstated)}")
        epochs = plan["steps"] / plan["steps_per_epoch"]
        lines.append(
            f"{counted(plan['steps'], 'step')} in {counted(epochs, 'epoch')}, seed "
            f"{settings['seed']}, {plan['device']}, {plan['hardware']}, {settings['precision']}"
        )
    if plan["estimated_sec"] is not None:
        lines.append(
            f"about {_rough(plan['estimated_sec'])} ({plan['step_sec']:.3g} s per step, measured "
            f"on {plan['timed_steps']}); peak memory so far "
            f"{human_bytes(plan['peak_memory_bytes'])}"
            + (" in each process" if plan["processes"] > 1 else "")
        )
    return lines


def much_set_aside(plan: Mapping[str, Any]) -> str | None:
    """That whole groups are much more than the part of the images that was to be set aside."""
    data = plan["data"]
    n = data["train_n"] + data["val_n"]
    if not data.get("val_groups") or data["val_n"] <= 2 * data["val_fraction"] * n:
        return None
    return (
        f"{data['val_n']} of {n} images are set aside to choose the best epoch by, more than "
        f"--val-fraction {data['val_fraction']:g}: groups stay whole, and every class is to be on "
        "both sides"
    )


def _rough(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return counted(max(1, round(seconds)), "second")


def refuse_moved(folder: Path) -> None:
    """Raises CvtError if a run's folder has lost its plan since the run began.

    What is written there afterwards would be no run: nothing could go on with it, or say what it
    was trained on.
    """
    if not os.path.isfile(folder / PLAN_FILE):
        raise CvtError(
            f"`{folder}` is no longer the folder of this run, whose `{PLAN_FILE}` is gone: it was "
            "moved, renamed or removed meanwhile",
            hint="what was saved is where it went; `cvt finetune --resume` continues it there",
        )


def read_plan(folder: Path) -> dict[str, Any]:
    """What `Run.begin` wrote of a run.

    Raises:
        CheckpointError: there is no run in the folder, or none with a state, or its plan is
            damaged, or not the one that the run began with.
    """
    path = folder / PLAN_FILE
    try:
        plan = text.read_json(path)
        version = plan.get("version", 1) if isinstance(plan, dict) else None
        if version in range(1, PLAN_VERSION + 1):
            _refuse_changed(folder, plan)
            settings_of(plan)  # whether it is whole
            for place, key in _ASKED_OF_A_PLAN:
                plan[place][key]
            plan["processes"], plan["step_images"]
            if (folder / STATE_FILE).exists():
                return plan
            if (folder / "results.json").exists():
                raise CheckpointError(
                    f"`{folder}` has ended, and `{STATE_FILE}`, from which it would be gone on "
                    "with, is not there",
                    hint=f"copy all of it, or train its model in a new run: --model {folder}",
                )
            raise CheckpointError(
                f"`{folder}` holds no run that can be continued: it ended before "
                f"`{STATE_FILE}` was written",
                hint=f"start it again: {plan['settings']['command']}",
            )
    except FileNotFoundError:
        raise CheckpointError(
            f"`{folder}` holds no run that can be continued: it has no `{PLAN_FILE}`",
            hint="name the folder that an earlier `cvt finetune` wrote",
        ) from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"`{path}` is not a plan of this version of cvt (version {PLAN_VERSION}): "
            f"{f'it has no {error}' if isinstance(error, KeyError) else error}",
            hint=_OTHER_VERSION,
        ) from None
    raise CheckpointError(
        f"`{path}` is of version {json.dumps(version)}; this version of cvt continues runs of "
        f"version 1 to {PLAN_VERSION}",
        hint=_OTHER_VERSION,
    )


def is_of_this_start(folder: Path, command: str) -> bool:
    """Whether the torchrun that has started this process again began this very run before."""
    own = torchrun.started_by()
    try:
        begun = text.read_json(folder / SPLIT_FILE)["torchrun"]
        return (
            own is not None
            and begun["job"] == own["job"]
            and begun["restarts"] < own["restarts"]
            and read_plan(folder)["settings"]["command"] == command
        )
    except (CvtError, OSError, ValueError, LookupError, TypeError):
        return False  # it is refused as any folder that is taken


def _refuse_changed(folder: Path, plan: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the state says that it is of another plan."""
    try:
        began_with = json.loads(read_about(folder / STATE_FILE)["run"])["position"].get("plan")
    except (OSError, ValueError, LookupError, AttributeError):  # reading all of it says what it is
        return
    if began_with is not None and began_with != json_hash(plan):
        raise CheckpointError(
            f"`{folder / PLAN_FILE}` has been changed since the run began",
            hint="restore it, or start another run with other options, for example from "
            "--model RUN/best",
        )


def settings_of(plan: Mapping[str, Any]) -> Settings:
    """The settings of a plan; raises KeyError or TypeError where it is none."""
    values = dict(plan["settings"])
    recipe = dict(values.pop("recipe"))
    recipe.pop("augmentation", None)  # what the name stands for
    recipe["not_published"] = tuple(recipe["not_published"])
    values["freeze"] = tuple(values["freeze"])
    if "version" not in plan:
        values["every_image"] = False
    return Settings(recipe=Recipe(**recipe), **values)
