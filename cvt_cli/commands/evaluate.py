"""``cvt evaluate``: accuracy on labelled images."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cvt_cli.base import files, places, torchrun
from cvt_cli.commands import options, output
from cvt_cli.spec.published import AGREEMENT, DEFAULT_MODEL

if TYPE_CHECKING:
    from cvt_cli.evaluation.result import Result


Models = Annotated[
    list[str] | None,
    options.text_option(
        "MODEL",
        "A model, as for cvt predict; repeat it to evaluate several models in one pass. "
        f"[default: {DEFAULT_MODEL}]",
        options.MODEL,
        "--model",
        "-m",
        parser=options.place,
    ),
]
Split = Annotated[
    Literal["val", "test"] | None,
    options.value_option(
        "val|test",
        "Use only the images that the training run of this model held out for validation, or only "
        "the part of the data that is called test.",
        options.DATA,
    ),
]
LabelMap = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "JSON that maps the data's classes to the model's class names, WordNet IDs or indices.",
        options.DATA,
    ),
]
Real = Annotated[
    Path | None,
    options.path_option("FILE", "Also report ReaL accuracy, from its real.json.", options.DATA),
]
GroupsFile = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "Also report the accuracy of each group, from a CSV file with the columns path and group.",
        options.DATA,
    ),
]
SkipUnreadable = Annotated[
    bool,
    options.flag(
        "Leave out unreadable images instead of counting them as wrong.",
        options.DATA,
        "--skip-unreadable",
    ),
]
TopK = Annotated[
    int | None,
    options.value_option(
        "N",
        "k of the second accuracy (top-k). [default: 5]",
        options.OUTPUT,
        "--top-k",
        "-k",
        min=2,
    ),
]
Expect = Annotated[
    float | None,
    options.value_option(
        "TOP1",
        "Fail unless top-1 accuracy is this fraction, such as 0.816; with several labels an image, "
        "the mAP.",
        options.OUTPUT,
        min=0,
        max=1,
    ),
]
Tolerance = Annotated[
    float,
    options.value_option("T", "Allowed difference from --expect.", options.OUTPUT, min=0),
]
Predictions = Annotated[
    Path | None,
    options.path_option(
        "FILE", "Write every prediction to a .jsonl, .csv or .parquet file.", options.OUTPUT
    ),
]
Resume = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "Write every prediction to FILE (.jsonl), as --predictions does; if FILE exists, resume "
        "from it.",
        options.OUTPUT,
    ),
]
ResumePredictions = Annotated[bool, typer.Option("--resume-predictions", hidden=True)]
"""What `options.Command` makes of ``--resume`` without a file, as in version 0.1."""
Scores = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "Write the probabilities of all classes for every image to a .npy or .parquet file.",
        options.OUTPUT,
    ),
]
ConfusionFile = Annotated[
    Path | None,
    options.path_option(
        "FILE", "Write the whole confusion matrix to a .csv file.", options.OUTPUT, "--confusion"
    ),
]
Report = Annotated[
    Path | None,
    options.path_option(
        "FOLDER",
        "Write a web page with charts: calibration, confusion matrix, classes, surest mistakes.",
        options.OUTPUT,
    ),
]

Explain = Annotated[
    bool,
    options.flag(
        "With --report: beside each of the surest mistakes, a map of what speaks for the wrong "
        "class (cvt explain). Takes about 50 passes through the network per mistake.",
        options.OUTPUT,
        "--explain",
    ),
]


def evaluate(
    ctx: typer.Context,
    data_argument: options.DataArgument = None,
    split: Split = None,
    columns: options.Columns = None,
    images: options.ImagesFolder = None,
    separator: options.Separator = None,
    label_map: LabelMap = None,
    group_by: options.GroupBy = None,
    groups: GroupsFile = None,
    real: Real = None,
    skip_unreadable: SkipUnreadable = False,
    exif: options.Exif = False,
    data_dir: options.DataDir = None,
    data: options.Data = None,
    model: Models = None,
    res: options.Res = None,
    resize: options.Resize = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    activation: options.Activation = None,
    report: Report = None,
    explain: Explain = False,
    card: options.CardFolder = None,
    predictions: Predictions = None,
    resume: Resume = None,
    scores: Scores = None,
    confusion: ConfusionFile = None,
    top_k: TopK = None,
    expect: Expect = None,
    tolerance: Tolerance = AGREEMENT,
    resume_predictions: ResumePredictions = False,
    overwrite: options.Overwrite = False,
    json_output: options.JsonOrFile = False,
    json_file: options.JsonFile = None,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 64,
    workers: options.Workers = None,
    engine: options.Engine = "auto",
    precision: options.AnswersPrecision = "auto",
    calibration: options.Calibration = None,
    max_drop: options.MaxDrop = None,
    energy: options.Energy = False,
    country: options.Country = None,
) -> None:
    """Measure top-1 and top-5 accuracy on labelled images.

    In a data folder, val/ is used if present, else test/, else the class folders themselves. The
    classes are matched to the model's by name. An image that cannot be read counts as wrong, is
    listed, and makes the exit code 1.

    Examples:
      cvt evaluate cifar10 --model cvt-nano-cifar10
      cvt evaluate photos/ --model runs/my_run --split val --report report/
      cvt evaluate photos/ --model cvt-13 --predictions small.jsonl

    See also: cvt compare (two models on the same images), cvt finetune (train a better one)
    """
    from cvt_cli.evaluation import evaluate as evaluating
    from cvt_cli.evaluation.result import NotWritten, WritingInterrupted

    data = options.once(data_argument, data, "--data")
    if data is None:
        raise places.no_data("evaluate", "evaluate on", data_dir)
    in_precision = options.quantised(ctx, precision, calibration, max_drop)
    if expect is None:
        options.refuse(ctx, ["--tolerance"], "it needs --expect")
    if resume is not None:
        options.refuse(
            ctx, ["--predictions"], "--resume names the file already; give only one of the two"
        )
    elif resume_predictions and predictions and predictions.suffix.lower() == ".jsonl":
        now = f"--resume {shlex.quote(str(predictions))}"
        output.note(f"note: --resume takes the file itself now: `{now}`, without --predictions")
    if not (predictions or report or scores or confusion or json_file or card):
        options.refuse(ctx, ["--overwrite"], "there is no output file to replace")
    options.refuse_replacing(json_file, overwrite)
    if json_file is not None:
        given = (data, label_map, real, groups)
        files.refuse_overwriting([json_file], [str(path) for path in given if path is not None])
    unwritten: NotWritten | WritingInterrupted | None = None
    with torchrun.joined("evaluate"):
        try:
            results = evaluating.evaluate(
                data,
                model or [DEFAULT_MODEL],
                split=split,
                data_dir=data_dir,
                columns=columns,
                images=images,
                separator=separator,
                label_map=label_map,
                real=real,
                group_by=group_by,
                groups=groups,
                skip_unreadable=skip_unreadable,
                res=res,
                resize=resize,
                activation=activation,
                exif=exif,
                batch_size=batch_size,
                workers=workers,
                device=device,
                engine=engine,
                precision=in_precision,
                top_k=top_k,
                predictions=resume or predictions,
                resume=resume is not None or resume_predictions,
                scores=scores,
                confusion=confusion,
                report=report,
                explain=explain,
                card=card,
                energy=energy,
                country=country,
                overwrite=overwrite,
                access=output.access(revision, offline, verbose),
            )
        except (NotWritten, WritingInterrupted) as error:
            results, unwritten = error.results, error
        except KeyboardInterrupt:
            lines = resume or predictions
            able = lines is not None and lines.suffix.lower() == ".jsonl" and len(model or ()) < 2
            _say_how_to_go_on(lines if able else None, resume_predictions)
            raise
        missed = [] if expect is None else _missed(results, expect, tolerance)
        if torchrun.rank() == 0:
            for message in missed:
                output.error(message)
            documents = [one.to_json() for one in results]
            document = documents[0] if len(documents) == 1 else documents
            _say_unreadable(results[0])
            output.print_result(document, lambda: _print(results), json_output, json_file)
        if unwritten is not None:
            raise unwritten
        torchrun.gather(None)  # one that fails ends the others: the one that speaks comes first
    if missed or (results[0].metrics.failures and not skip_unreadable):
        raise typer.Exit(1)


def _missed(results: "list[Result]", expect: float, tolerance: float) -> list[str]:
    """What is said of the models whose top-1, or mAP, is not what was expected."""
    found = [(one.model, *one.metrics.headline) for one in results]
    return [
        f"{name} of `{model}` is {value:.4f}, expected is {expect:.4f} within {tolerance:g}"
        for model, name, value in found
        if abs(value - expect) > tolerance
    ]


def _say_how_to_go_on(lines: Path | None, resumed: bool) -> None:
    """After Ctrl-C; ``resumed`` is whether the command has the old --resume, without a file."""
    if lines is not None:
        again = output.gone_on_with(lines, "--predictions")
        output.note(f"to continue: {shlex.join(['cvt', *sys.argv[1:]]) if resumed else again}")
    elif torchrun.rank() == 0:
        output.note("with --resume FILE.jsonl, an interrupted evaluation can be continued")


def _say_unreadable(result: "Result") -> None:
    from cvt_cli.datasets.labelled import place_of
    from cvt_cli.evaluation import printed_lines

    found = result.metrics
    for failure in found.failures:
        output.error(f"`{place_of(result.root, failure.name)}`: {failure.reason}")
    for line in printed_lines.of_unreadable(found):
        output.note(line)


def _print(results: "list[Result]") -> None:
    from cvt_cli.evaluation import printed_lines

    for one in results:
        title = [one.model] if len(results) > 1 else []
        output.emit(*title, *printed_lines.lines(one.metrics, one))
