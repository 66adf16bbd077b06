"""``cvt evaluate``: accuracy on labelled images."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cvt_cli import loading
from cvt_cli.base import machine, places, progress, text, torchrun
from cvt_cli.base.conditions import Conditions, names_hash
from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.progress import Say
from cvt_cli.base.text import printable
from cvt_cli.commands import options, output
from cvt_cli.spec import published

if TYPE_CHECKING:
    from cvt_cli.datasets.held_out import Origin
    from cvt_cli.datasets.labelled import LabelledImages, Split
    from cvt_cli.evaluation.judge import Subject

IMAGENET_VALIDATION = 50_000
"""Images of the set that the published numbers are of."""

AGREEMENT = 0.001
"""Of top-1: how near a published number counts as the same."""


def evaluate(
    ctx: typer.Context,
    data: options.Data,
    model: Annotated[
        list[str] | None,
        typer.Option(
            parser=options.place,
            metavar="NAME|PATH",
            help="A checkpoint, as for predict; given twice, both are evaluated on each image. "
            f"By default {published.DEFAULT_MODEL}.",
            rich_help_panel=options.MODEL,
            show_default=False,
        ),
    ] = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    data_dir: options.DataDir = None,
    split: Annotated[
        Literal["val"] | None,
        typer.Option(
            help="val: those images alone that the run which made the model chose its best epoch "
            "by; of a folder without parts, what it set aside.",
            rich_help_panel=options.DATA,
            show_default=False,
        ),
    ] = None,
    label_map: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FILE",
            help="JSON that maps the data's classes to the model's names, WNIDs or indices.",
            rich_help_panel=options.DATA,
            show_default=False,
        ),
    ] = None,
    real: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FILE",
            help="ReaL's real.json, for its accuracy beside.",
            rich_help_panel=options.DATA,
            show_default=False,
        ),
    ] = None,
    groups: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FILE",
            help="CSV with the columns path and group, for the accuracy of each group.",
            rich_help_panel=options.DATA,
            show_default=False,
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool,
        typer.Option(
            "--skip-unreadable",
            help="Leave unreadable images out in place of counting them as wrong.",
            rich_help_panel=options.DATA,
        ),
    ] = False,
    res: options.Res = None,
    activation: options.Activation = None,
    exif: options.Exif = False,
    batch_size: options.BatchSize = 64,
    workers: options.Workers = None,
    device: options.Device = "auto",
    engine: options.Engine = "auto",
    precision: options.Precision = "auto",
    top_k: Annotated[
        int,
        typer.Option(
            "--top-k", "-k", min=2, help="The second accuracy.", rich_help_panel=options.OUTPUT
        ),
    ] = 5,
    expect: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            metavar="TOP1",
            help="Fail unless top-1 is this fraction, such as 0.816.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Of --expect.", rich_help_panel=options.OUTPUT)
    ] = AGREEMENT,
    predictions: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FILE",
            help="Write what was said of every image: .jsonl, .csv or .parquet.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the --predictions file (.jsonl) of an interrupted run.",
            rich_help_panel=options.OUTPUT,
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            parser=options.path,
            metavar="FOLDER",
            help="Write a page with pictures: confusions, calibration, classes, worst mistakes.",
            rich_help_panel=options.OUTPUT,
            show_default=False,
        ),
    ] = None,
    verbose: options.Verbose = False,
    json_output: options.Json = False,
) -> None:
    """Measure top-1 and top-5 accuracy on labelled images.

    Of a folder, val/ is taken, else test/, else its own class folders. Classes are matched by name.
    An image that cannot be read counts as wrong, is listed, and makes the exit code 1.

    Example: cvt evaluate --data cifar10 --model cvt-nano-cifar10
    """
    from cvt_cli.datasets import classes, held_out, layouts
    from cvt_cli.evaluation import annotations, judge
    from cvt_cli.evaluation import report as reports
    from cvt_cli.prediction import writers

    names = model or [published.DEFAULT_MODEL]
    _check_options(ctx, names, data, expect, predictions, resume)
    options.refuse_overwriting(
        [path for path in (predictions, report) if path is not None],
        [str(path) for path in (label_map, real, groups) if path is not None],
    )
    if report is not None:
        reports.check(report)
    if predictions is not None and predictions.suffix.lower() == ".parquet":
        writers.require_parquet()
    accepted = None
    table = None if groups is None else _read_groups(groups)
    access = output.access(revision, offline, verbose)

    def opened(part: "Split", say: Say) -> "LabelledImages":
        return layouts.open_dataset(
            data, part, data_dir or places.data_dir(), offline=offline, say=say
        )

    origins = [held_out.origin_of(name) for name in names]
    if split is None:
        images = opened("test", access.say)
    else:
        images = _held_out(names, origins, partial(opened, say=access.say))
    rank = torchrun.rank()
    mine = [index for index, name in enumerate(images.names) if torchrun.is_mine(name)]
    threads = workers or machine.threads()
    subjects, conditions, outputs = [], [], []
    with ExitStack() as stack:
        lines: writers.Checkpointed | None = None
        if predictions is not None and predictions.suffix.lower() == ".jsonl" and len(names) == 1:
            # Its lock is held before anything is loaded, so that a second process waits for it.
            lines = stack.enter_context(
                writers.Checkpointed(torchrun.own_path(predictions), resume, access.say)
            )
            engine = loading.engine_to_go_on_with(lines.made, engine)
        for name in names:
            ready = loading.load_classifier(
                name,
                res,
                activation,
                device,
                precision,
                access,
                engine=engine,
                images=len(mine),
                together=min(len(mine), batch_size),
            )
            class_index, how = classes.match_classes(images.classes, ready.labels, label_map)
            one = judge.subject(
                ready.engine, ready.preprocessing, ready.labels, class_index, images, top_k
            )
            one.result.skipped = skip_unreadable
            if real is not None:
                if not ready.labels.are_imagenet:
                    raise UsageError(
                        f"--real is of ImageNet's classes, which `{ready.model}` has not"
                    )
                accepted = accepted or _read_json(real)
                one.real = annotations.real_labels(images.names, accepted, str(real))
            if table is not None:
                one.groups = annotations.groups_of(table, images.names, str(groups))
            subjects.append(one)
            conditions.append(ready.conditions())
            if rank == 0:
                output.note_conditions(ready)
                output.note(
                    f"{len(images)} images in {len(images.classes)} classes below `{images.root}` "
                    f"({images.layout}), matched by {how}"
                )
        for one, condition in zip(subjects, conditions, strict=True):
            if predictions is None:
                break
            path = torchrun.own_path(_path_of(predictions, condition["model"], len(names)))
            kept = {**condition, "data": data, "exif": exif}
            if path.suffix.lower() != ".jsonl":
                written = stack.enter_context(_open_table(path, kept, one))
                one.judged = written.write
                continue
            if lines is None or len(names) > 1:
                lines = stack.enter_context(writers.Checkpointed(path, False, access.say))
            lines.begin(_kept_under(kept, one))
            if lines.counted is not None:
                judge.check_lines(
                    lines.path,
                    lines.lines,
                    lines.truth,
                    one,
                    images,
                    workers=threads,
                    progress=output.progress if rank == 0 else progress.silent,
                )
                try:
                    one.result.add_state(lines.counted)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise lines.unfit(error) from None
                done = len(lines.lines)
                output.note(f"{done} of {len(mine)} images are in `{lines.path}` already")
            one.judged = lines.write
            outputs.append((lines, one))
        judged = {line.path for lines, _ in outputs for line in lines.lines}
        left = [index for index in mine if images.names[index] not in judged]

        def after_batch(new: int, at_once: bool = False) -> None:
            for lines, one in outputs:
                done = len(lines.lines) + new
                lines.save(done, one.result.state, one.truth.hashes(), at_once)

        after_batch(0, at_once=True)
        judge.judge(
            subjects,
            images,
            indices=left,
            hashes=bool(outputs),
            batch_size=batch_size,
            exif=exif,
            workers=threads,
            after_batch=after_batch,
            progress=output.progress if rank == 0 else progress.silent,
        )
        after_batch(len(left), at_once=True)
    states = torchrun.gather([one.result.state() for one in subjects])
    documents = []
    for place, (one, condition) in enumerate(zip(subjects, conditions, strict=True)):
        for other, state in enumerate(states):
            if other != rank:
                one.result.add_state(state[place], at_once=True)
        if one.result.n + (len(one.result.failures) if skip_unreadable else 0) != len(images):
            raise AssertionError(f"{one.result.n} images were counted of {len(images)}")
        measured = one.result.metrics(one.labels).to_json()
        document = {"data": data, **measured, **condition, "exif": exif}
        document["record"] = _record(document)
        origin = origins[place]
        seen = None
        if origin is not None:
            seen = origin.trained_on(images, partial(opened, "train", progress.unheard))
        document |= {"split": split, "n_trained_on": None if seen is None else len(seen)}
        documents.append(document)
    failed = _verdicts(documents, expect, tolerance) if rank == 0 else 0
    if rank == 0:
        for reason in subjects[0].result.failures:
            output.error(f"`{images.root / reason[0]}`: {reason[1]}")
        if report is not None:
            for one, document in zip(subjects, documents, strict=True):
                _write_report(report, one, document, images, exif, len(names) > 1)
        if json_output:
            output.print_json(documents[0] if len(documents) == 1 else documents)
        else:
            for document in documents:
                _print(document, top_k, title=len(documents) > 1)
    unreadable = len(subjects[0].result.failures)
    if unreadable and rank == 0:
        output.note(
            f"{unreadable} images could not be read and are left out"
            if skip_unreadable
            else f"{unreadable} of {len(images)} images could not be read and count as wrong"
        )
    if failed or (unreadable and not skip_unreadable):
        raise typer.Exit(1)


def _check_options(
    ctx: typer.Context,
    names: list[str],
    data: str,
    expect: float | None,
    predictions: Path | None,
    resume: bool,
) -> None:
    """Raises UsageError for options that do not go together, or that have no effect here."""
    from cvt_cli.datasets.torchvision_sets import KNOWN_SETS

    suffix = predictions.suffix.lower() if predictions else ""
    if predictions is not None and suffix not in (".jsonl", ".csv", ".parquet"):
        raise UsageError(
            f"predictions cannot be written as `{predictions}`; "
            "accepted are `.jsonl`, `.csv` and `.parquet`"
        )
    if resume and (suffix != ".jsonl" or len(names) > 1):
        raise UsageError("--resume goes with one model and --predictions FILE.jsonl")
    if expect is None:
        options.refuse(ctx, ["--tolerance"], "it is of --expect, which is not given")
    if data not in KNOWN_SETS:
        options.refuse(
            ctx,
            ["--data-dir"],
            f"it is where sets that are known by name are kept, and `{data}` is none",
        )
    known = [found.name if (found := published.find(name)) else name for name in names]
    called = [_name_in_files(name) for name in known]
    if twice := [name for name, call in zip(names, called, strict=True) if called.count(call) > 1]:
        raise UsageError(
            f"--model {' and --model '.join(f'`{name}`' for name in twice)} are the same, or would "
            "have the same name in the files that are written",
            hint="give each model once; a link to a folder gives it another name",
        )


def _name_in_files(model: str) -> str:
    """What a model is called in names of files and folders."""
    return model.replace("/", "--")


def _path_of(path: Path, model: str, models: int) -> Path:
    """The predictions file of one of several models."""
    if models == 1:
        return path
    return path.with_name(f"{path.stem}.{_name_in_files(model)}{path.suffix}")


def _held_out(
    names: list[str],
    origins: "list[Origin | None]",
    opened: "Callable[[Split], LabelledImages]",
) -> "LabelledImages":
    """The images that the models' runs chose their best epochs by; see ``--split``."""
    found = []
    for name, origin in zip(names, origins, strict=True):
        if origin is None:
            raise UsageError(
                f"--split val: `{name}` lies in no run folder, whose `split.json` says which "
                "images were set aside",
                hint="leave --split out, or name a folder with these images as --data",
            )
        found.append(origin.held_out(opened("train" if origin.set_aside else "test")))
    if any(one.names != found[0].names for one in found):
        raise UsageError(
            "--split val: these models' runs have set different images aside",
            hint="evaluate them one by one",
        )
    return found[0]


def _read_json(path: Path) -> Any:
    try:
        return text.read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read `{path}`: {error}") from None


def _read_groups(path: Path) -> dict[str, str]:
    import csv
    import io

    from cvt_cli.evaluation import annotations

    try:
        lines = io.StringIO(text.read_text(path, names=True), newline="")
        return annotations.read_groups(csv.DictReader(lines), str(path))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot read `{path}`: {error}") from None


def _open_table(path: Path, conditions: dict[str, Any], one: "Subject") -> Any:
    from cvt_cli.evaluation import judge
    from cvt_cli.prediction import writers

    row = partial(judge.judged_row, top_k=one.result.k)
    empty = judge.Judged("", "")
    if path.suffix.lower() == ".csv":
        return writers.Csv(path, row, empty)
    return writers.Parquet(path, conditions, row, empty)


def _kept_under(conditions: dict[str, Any], one: "Subject") -> Conditions:
    """What the counts and lines of a file depend on, beside what each image is judged by."""
    present = one.result.present
    among = None  # the second accuracy is among the classes that the data has
    if present is not None:
        indices = names_hash(map(str, present.tolist()))
        among = f"{len(present)} of {len(one.labels)}, {indices[:16]}"
    return Conditions(
        {
            **{name: conditions[name] for name in (*loading.DECIDE, "exif")},
            "processes": torchrun.count(),
            "skipped": one.result.skipped,
            "k": one.result.k,
            "classes_present": among,
        }
    )


def _record(document: dict[str, Any]) -> dict[str, Any] | None:
    """What is published of this checkpoint, where this was measured on the same images."""
    known = published.CHECKPOINTS.get(document["model"])
    if known is None or known.scores is None or document["n"] != IMAGENET_VALIDATION:
        return None
    size = (document["preprocessing"]["height"], document["preprocessing"]["width"])
    if len(document["classes"]) != known.num_classes or size != (known.size, known.size):
        return None
    paper, third = known.scores.paper_top1 / 100, known.scores.top1 / 100
    apart = document["top1"] - third
    verdict = "agrees with" if abs(apart) <= AGREEMENT else "does not agree with"
    return {
        "paper_top1": paper,
        "top1": third,
        "verdict": f"{verdict} the third-party measurement: {100 * apart:+.2f} points, "
        f"where {100 * AGREEMENT:.1f} count as the same",
    }


def _verdicts(documents: list[dict[str, Any]], expect: float | None, tolerance: float) -> int:
    """How many models miss what is expected; each is reported."""
    missed = 0
    for document in documents:
        if expect is not None and abs(document["top1"] - expect) > tolerance:
            missed += 1
            output.error(
                f"top-1 of `{document['model']}` is {document['top1']:.4f}, expected is "
                f"{expect:.4f} within {tolerance:g}"
            )
    return missed


def _print(document: dict[str, Any], k: int, title: bool) -> None:
    """The result for a person."""
    n = document["n"]
    low, high = (100 * bound for bound in document["top1_interval"])
    lines = [document["model"]] if title else []
    lines.append(
        f"top-1   {100 * document['top1']:.2f} %  ({document['top1_correct']} of {n}; "
        f"95 % interval {low:.2f} to {high:.2f})"
    )
    if (subset := document["present_classes"]) is not None:
        low, high = (100 * bound for bound in subset["top1_interval"])
        lines.append(
            f"top-1   {100 * subset['top1']:.2f} %  ({subset['top1_correct']} of {n}; "
            f"95 % interval {low:.2f} to {high:.2f}) among the {subset['n']} classes present"
        )
    if document["n_trained_on"]:
        lines.append(
            f"trained {document['n_trained_on']} of these {n} images were trained on; "
            "--split val measures on those set aside"
        )
    lines.append(
        f"top-{k:<3} {100 * document[f'top{k}']:.2f} %  ({document[f'top{k}_correct']} of {n})"
    )
    if (real := document["real"]) is not None:
        lines.append(
            f"ReaL    {100 * real['accuracy']:.2f} %  ({real['correct']} of {real['n']} images "
            "that have labels)"
        )
    loss = "none readable" if document["loss"] is None else f"{document['loss']:.4f} nats"
    lines.append(f"loss    {loss}, cross-entropy")
    if (calibration := document["calibration"]) is not None:
        line = f"ECE     {calibration['ece']:.4f} in 15 bins; Brier {calibration['brier']:.4f}"
        if (temperature := calibration["temperature"]) is not None:
            beyond = " or more" if temperature > 1 else " or less"
            line += (
                f"; temperature {temperature:.2f}"
                + (beyond if calibration["temperature_at_bound"] else "")
                + f" would give {calibration['nll_at_temperature']:.4f} nats"
            )
        lines.append(line)
    if (groups := document["groups"]) is not None:
        for group in groups["groups"]:
            low, high = (100 * bound for bound in group["interval"])
            lines.append(
                f"group   {printable(group['group'])}: {100 * group['accuracy']:.2f} %  "
                f"({group['correct']} of {group['n']}; {low:.2f} to {high:.2f})"
            )
        gap = groups["largest_gap"]
        lines.append(
            f"gap     {100 * gap['gap']:.2f} points, from {printable(gap['worst'])} to "
            f"{printable(gap['best'])}"
        )
    if document["confusions"]:
        pairs = [f"{c['label']} as {c['predicted']} {c['n']}" for c in document["confusions"][:3]]
        lines.append(f"wrong   most often {printable('; '.join(pairs))}")
    if (record := document["record"]) is not None:
        lines.append(
            f"paper   {100 * record['paper_top1']:.1f} %, third party "
            f"{100 * record['top1']:.2f} %; {record['verdict']}"
        )
    split = ", ".join(
        f"{what} {document[key]:.0f}"
        for what, key in (
            ("decoding, one thread,", "decode_images_per_sec"),
            ("model", "model_images_per_sec"),
        )
        if document[key]
    )
    if document["images_per_sec"]:
        lines.append(f"speed   {document['images_per_sec']:.0f} images/s ({split})")
    output.emit("\n".join(lines))


def _write_report(
    folder: Path,
    one: "Subject",
    document: dict[str, Any],
    data: "LabelledImages",
    exif: bool,
    several: bool,
) -> None:
    from cvt_cli.evaluation import report as reports
    from cvt_cli.prediction import classify

    if several:
        folder = folder / _name_in_files(document["model"])
    where = {name: index for index, name in enumerate(data.names)}
    mistakes = []
    for score, name, right, answered in one.result.mistakes:
        names = one.labels.names
        picture = classify.thumbnail(data.load(where[name], exif))
        mistakes.append(reports.Mistake(name, names[right], names[answered], score, picture))
    present, matrix = one.result.matrix()
    labels = [one.labels.names[label] for label in present]
    title = f"{document['model']} on {document['data']}"
    path = reports.write_report(folder, title, document, matrix, labels, mistakes)
    output.note(f"written: `{path}`")
