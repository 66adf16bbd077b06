"""Models on labelled images: what `cvt evaluate` does, as a function."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np

from cvt_cli import loading
from cvt_cli.base import machine, places, streams, torchrun
from cvt_cli.base.errors import DataError, UsageError, refuse_other_kinds
from cvt_cli.base.progress import Say, silent, unheard
from cvt_cli.base.text import counted, some
from cvt_cli.cards import gather
from cvt_cli.checkpoints import locate
from cvt_cli.checkpoints.locate import Access
from cvt_cli.datasets import datacheck, held_out
from cvt_cli.datasets.classes import match_classes
from cvt_cli.datasets.labelled import LabelledImages, Split, place_of
from cvt_cli.datasets.table_sets import Told
from cvt_cli.datasets.torchvision_sets import as_data
from cvt_cli.engines.ready import ReadyModel, engine_to_go_on_with, refuse_others
from cvt_cli.evaluation import (
    annotations,
    measure_outcomes,
    printed_lines,
    run_models,
    several_measures,
    written_files,
)
from cvt_cli.evaluation.metrics import Metrics
from cvt_cli.evaluation.predictions import PredictionFiles
from cvt_cli.evaluation.request import TOP_K, Asked, check, check_task
from cvt_cli.evaluation.result import NotWritten, Part, Result, published_beside
from cvt_cli.evaluation.run_models import Subject
from cvt_cli.evaluation.several_labels import SetCounts, SetOutcomes
from cvt_cli.evaluation.several_measures import SetMetrics
from cvt_cli.spec import published
from cvt_cli.spec.config import Activation
from cvt_cli.spec.formats import EngineChoice, Int8
from cvt_cli.spec.preprocessing import Resize

Place = str | Path


@overload
def evaluate(data: Place, model: Place | None = None, **options: Any) -> Result: ...


@overload
def evaluate(data: Place, model: Sequence[Place], **options: Any) -> list[Result]: ...


def evaluate(  # type: ignore[misc]  # the options are the same in both, and are listed here alone
    data: Place,
    model: Place | Sequence[Place] | None = None,
    *,
    split: Part | None = None,
    data_dir: Place | None = None,
    columns: str | None = None,
    images: Place | None = None,
    label_map: Place | None = None,
    real: Place | None = None,
    separator: str | None = None,
    group_by: str | None = None,
    groups: Place | None = None,
    skip_unreadable: bool = False,
    res: int | str | None = None,
    resize: Resize | None = None,
    activation: Activation | None = None,
    exif: bool = False,
    batch_size: int = 64,
    workers: int | None = None,
    device: str = "auto",
    engine: EngineChoice = "auto",
    precision: str | Int8 = "auto",
    top_k: int | None = None,
    predictions: Place | None = None,
    resume: bool = False,
    scores: Place | None = None,
    confusion: Place | None = None,
    report: Place | None = None,
    explain: bool = False,
    card: Place | None = None,
    energy: bool = False,
    country: str | None = None,
    overwrite: bool = False,
    revision: str | None = None,
    offline: bool = False,
    access: Access | None = None,
) -> Result | list[Result]:
    """Measure accuracy on labelled images, by the same path as ``cvt evaluate``.

        from cvt_cli import evaluate

        result = evaluate("cifar10", "cvt-nano-cifar10")
        result.metrics.top1                 # a fraction; metrics.calibration, metrics.classes, …
        a, b = evaluate("photos", ["cvt-13", "my_run"])  # both, each image read once

    An image that cannot be read counts as wrong and is in ``metrics.failures``. Under torchrun the
    processes share the images, and each returns the whole result.

    Args:
        data: as after ``--data``; every argument but the last means what the option of its name
            does, with the same default.
        model: one of them, or several; by default ``cvt-21-384-22k``.
        access: how models are fetched, and who is told what; it takes the place of ``revision``
            and ``offline``. By default messages are on stderr.

    Returns:
        The result; a list of results, in order, if models were given as a sequence.

    Raises:
        NotWritten: a file could not be written; the error has the results.
        CvtError: one of its children, as the command explains it.
    """
    asked: Sequence[Place]
    if model is None or isinstance(model, str | Path):
        asked = [published.DEFAULT_MODEL if model is None else model]
    elif isinstance(model, Sequence):
        asked = model
    else:
        raise UsageError(
            f"model is of type {type(model).__name__}; it must be a name, a path, or a list of them"
        )
    settings = Asked(
        data=as_data(data),
        split=split,
        data_dir=_path(data_dir),
        told=Told(columns, _path(images), group_by, separator),
        label_map=_path(label_map),
        real=_path(real),
        groups=_path(groups),
        skip_unreadable=skip_unreadable,
        res=None if res is None else str(res),
        resize=resize,
        activation=activation,
        exif=exif,
        batch_size=batch_size,
        workers=workers,
        device=device,
        engine=engine,
        precision=precision,
        top_k=top_k,
        predictions=_path(predictions),
        resume=resume,
        scores=_path(scores),
        confusion=_path(confusion),
        report=_path(report),
        explain=explain,
        card=_path(card),
        energy=energy,
        country=country,
        overwrite=overwrite,
    )
    by_a_program = access is None
    access = access or Access(streams.say, silent, revision, offline)
    refuse_other_kinds(access)
    with torchrun.joined("evaluate"):  # from the start, so that who fails is not waited for
        results = _evaluate([places.expanded(str(name)) for name in asked], settings, access)
    if by_a_program and torchrun.rank() == 0:  # the command prints it with the result
        for one in results:
            for line in printed_lines.seen(one, one.metrics.n):
                access.say(f"{one.conditions['model']}: {line.split(maxsplit=1)[1]}")
    return results if asked is model else results[0]


def _path(place: Place | None) -> Path | None:
    return None if place is None else Path(places.expanded(str(place)))


@np.errstate(under="ignore")  # whatever the program that calls has set
def _evaluate(names: list[str], settings: Asked, access: Access) -> list[Result]:
    check(names, settings)
    table = None if settings.groups is None else annotations.read_groups_file(settings.groups)
    if settings.split == "val":
        images = _held_out(names, settings, access)
    else:
        images = settings.opened("test", access.offline, access.say, access.progress)
    rank, threads = torchrun.rank(), settings.workers or images.readers
    progress = access.progress if rank == 0 else silent
    mine: Sequence[int] = range(len(images))
    if torchrun.count() > 1:
        mine = [index for index in mine if torchrun.is_mine(images.names[index])]
    share = -(-len(images) // torchrun.count())  # as many for every process, and so one engine
    models: list[ReadyModel] = []
    subjects: list[Subject] = []
    several = len(names) > 1
    with PredictionFiles(settings.predictions, settings.resume, several, access.say) as written:
        engine = engine_to_go_on_with(written.made, settings.engine)
        for name in names:
            ready, one = _loaded(name, images, table, settings, engine, share, access)
            models.append(ready)
            subjects.append(one)
            if settings.card is not None:
                gather.check_is_of(settings.card, "evaluation", ready.conditions())
        trained_on: list[set[str] | None] = []  # of each model
        chosen_on: list[int | None] = []
        for ready, one in zip(models, subjects, strict=True):
            say = access.say if rank == 0 else unheard
            origin = held_out.origin_of(ready.checkpoint)
            seen = None
            if origin is not None:
                seen = _trained_on(origin, images, settings, access.offline, say)
            trained_on.append(seen)
            chosen_on.append(None if origin is None else origin.chosen_by(images))
            conditions = {**ready.conditions(), "data": settings.data, "exif": settings.exif}
            written.begin(
                one, conditions, images, len(mine), threads, progress,
                trained_on=None if seen is None else sum(images.names[i] in seen for i in mine),
            )  # fmt: skip
        judged = written.judged()
        left = mine
        if judged:
            left = [index for index in mine if images.names[index] not in judged]
        written.save(at_once=True)
        done = 0

        def after_batch(new: int) -> None:
            nonlocal done
            done = new
            written.save()

        try:
            with settings.metered() as energy:
                run_models.judge(
                    subjects,
                    images,
                    indices=left,
                    hashes=written.needs_hashes,
                    batch_size=settings.batch_size,
                    exif=settings.exif,
                    workers=threads,
                    after_batch=after_batch,
                    before_failures=written.before_failures if written.needs_hashes else None,
                    progress=progress,
                )
        except KeyboardInterrupt:
            if rank == 0:
                if written.needs_hashes:
                    so_far, kept = written.kept, f"kept in `{settings.predictions}`"
                else:
                    so_far, kept = len(mine) - len(left) + done, "not kept"
                access.say(f"stopped: {so_far} of {len(mine)} images are evaluated and {kept}")
            raise
        written.finish()
    refuse_others(models)
    _add_up(subjects, len(images), mine)
    if not subjects[0].result.n:  # with --skip-unreadable
        name, reason = subjects[0].result.failures[0]
        raise DataError(
            f"nothing was measured: none of {counted(len(images), 'image')} could be read, such as "
            f"`{place_of(images.root, name)}`: {reason}"
        )
    results = []
    for ready, one, seen, chosen in zip(models, subjects, trained_on, chosen_on, strict=True):
        found = _result(ready, one, images, settings, seen, chosen)
        results.append(found if energy is None else replace(found, energy=energy.to_json()))
    if rank == 0:
        written_files.write(models, subjects, images, results, settings, access)
    if (unwritten := written.unwritten) is not None:
        raise NotWritten(unwritten, results) from unwritten
    return results


def _held_out(names: list[str], settings: Asked, access: Access) -> LabelledImages:
    """The images that the models' runs chose their best epochs by; see ``--split``."""
    found = []
    for name in names:
        checkpoint = locate.locate(name, replace(access, say=unheard))
        if (origin := held_out.origin_of(checkpoint)) is None:
            raise UsageError(
                f"--split val: it is not known of which run `{name}` is, whose `split.json` lists "
                "the images that were held out",
                hint="leave out --split, or name the run's folder as --model",
            )
        part: Split = "train" if origin.set_aside else "test"
        images = settings.opened(part, access.offline, access.say, access.progress)
        found.append(origin.held_out(images, access.say))
    if any((one.root, one.names) != (found[0].root, found[0].names) for one in found):
        raise UsageError(
            "--split val: these models' runs held out different images",
            hint="evaluate them one by one",
        )
    return found[0]


def _loaded(
    name: str,
    images: LabelledImages,
    table: dict[str, str] | None,
    settings: Asked,
    engine: EngineChoice,
    share: int,
    access: Access,
) -> tuple[ReadyModel, Subject]:
    """A model that is ready, and what it is judged by.

    Args:
        name: of the model.
        images: all of them.
        table: the group of each image, if groups were given.
        settings: of the evaluation.
        engine: what follows ``--engine``, or what a file was begun with.
        share: how many of the images each process has.
        access: how to fetch it.
    """
    ready = loading.load_classifier(
        *(name, settings.res, settings.activation, settings.device, settings.precision, access),
        resize=settings.resize,
        engine=engine,
        images=share,
        together=min(share, settings.batch_size),
    )
    check_task(ready.model, ready.labels, images, settings)
    try:
        class_index, how = match_classes(images.classes, ready.labels, settings.label_map)
    except DataError as error:
        of_run = held_out.origin_of(ready.checkpoint) is not None
        if of_run and settings.split is None and settings.label_map is None:
            held = "or measure on the images that its run held out: --split val"
            raise DataError(str(error), f"{error.hint}; {held}") from None
        raise
    one = run_models.subject(
        *(ready.engine, ready.preprocessing, ready.labels, class_index, images),
        settings.top_k or TOP_K,
        keep=None if settings.scores is None else True,
        folder=settings.scores and settings.scores.parent,
    )
    one.result.skipped = settings.skip_unreadable
    if settings.real is not None:
        if not ready.labels.are_imagenet:
            raise UsageError(
                f"--real needs ImageNet's classes, which `{ready.model}` does not have"
            )
        accepted = annotations.read_real_file(settings.real)
        one.real = annotations.real_labels(images.names, accepted, str(settings.real))
    if table is not None:
        one.groups = annotations.groups_of(table, images.names, str(settings.groups))
    elif images.groups is not None:
        groups = [images.group_names[group] for group in images.groups.tolist()]
        one.groups = dict(zip(images.names, groups, strict=True))
    if torchrun.rank() == 0:
        for message in ready.notes:
            access.say(message)
        access.detail(ready.describe())
        access.say(
            f"{counted(len(images), 'image')} in {counted(len(images.classes), 'class')} below "
            f"`{images.root}` ({images.layout}), matched by {how}"
        )
        if images.several:
            there = set(class_index.tolist())
            rest = [f"`{name}`" for i, name in enumerate(ready.labels.names) if i not in there]
            if rest:
                access.say(
                    f"no image is said to be of {some(sorted(rest))}: an answer of "
                    f"{'it' if len(rest) == 1 else 'these'} counts as wrong"
                )
    return ready, one


def _add_up(subjects: Sequence[Subject], total: int, mine: Sequence[int]) -> None:
    """Add what the other processes counted, so that all have counted all images."""
    for one in subjects:
        if one.outcomes is not None:
            one.outcomes.gather(mine)
    states = torchrun.gather([one.result.state() for one in subjects])
    for place, one in enumerate(subjects):
        for other, state in enumerate(states):
            if other != torchrun.rank():
                one.result.add_state(state[place], at_once=True)
        counted = one.result.n + (len(one.result.failures) if one.result.skipped else 0)
        if counted != total:
            raise AssertionError(f"{one.result.n} images were counted of {total}")


def _metrics(one: Subject, images: LabelledImages, settings: Asked) -> Metrics | SetMetrics:
    """What was counted of a model, and what follows from the outcome of each image."""
    how: dict[str, Any] = {
        "groups": [one.groups.get(name, "") for name in images.names] if one.groups else (),
        "weights": images.weights,
        "threads": settings.workers or machine.threads(),
    }
    if isinstance(one.result, SetCounts):
        assert isinstance(one.outcomes, SetOutcomes)
        measures = several_measures.measure(one.outcomes, one.right(images), one.labels, **how)
        return several_measures.metrics_of(one.result, measures)
    metrics = one.result.metrics(one.labels)
    if one.outcomes is None:
        return metrics
    right = one.class_index[images.labels]
    found = measure_outcomes.measure(one.outcomes, right, len(one.labels), **how)
    return measure_outcomes.with_measures(metrics, found, one.labels)


def _trained_on(
    origin: held_out.Origin, images: LabelledImages, settings: Asked, offline: bool, say: Say
) -> set[str] | None:
    """Names of those images that a model's run trained on; None where that is unknown."""
    training: Callable[[], LabelledImages] = partial(settings.opened, "train", offline, unheard)
    seen = origin.trained_on(images, training, say)
    return None if seen is None else set(seen)


def _result(
    ready: ReadyModel,
    one: Subject,
    images: LabelledImages,
    settings: Asked,
    seen: set[str] | None,
    chosen: int | None,
) -> Result:
    metrics = _metrics(one, images, settings)
    return Result(
        data=settings.data,
        root=images.root,
        metrics=metrics,
        conditions=ready.conditions(),
        exif=settings.exif,
        published=published_beside(ready.model, ready.preprocessing, metrics),
        split=settings.split,
        n_trained_on=None if seen is None else len(seen),
        n_chosen_on=chosen,
        date=gather.today(),
        fingerprint=datacheck.fingerprint(images, settings.workers or images.readers)
        if settings.card is not None and torchrun.rank() == 0
        else None,
    )
