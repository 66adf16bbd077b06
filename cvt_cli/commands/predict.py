"""``cvt predict``: what is in a photograph."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cvt_cli.base import progress, torchrun
from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import counted
from cvt_cli.commands import options, output

if TYPE_CHECKING:
    from cvt_cli.engines.ready import ReadyModel
    from cvt_cli.prediction.answers import Answer
    from cvt_cli.prediction.predict import Answers, Asked

FEW_IMAGES = 4
"""That have a table each; of more, each has a line."""

WIDEST_CLASS = 30
"""Columns of the class in such lines; a longer name pushes the rest of its line."""

Images = Annotated[
    list[str],
    typer.Argument(
        parser=options.source,
        metavar="IMAGE...",
        help="Image files, folders, patterns, .zip and .tar archives, URLs (https, s3, hf, ...), "
        "@FILE with a list of these, or - for one image or a list on stdin.",
        show_default=False,
    ),
]
TopK = Annotated[
    int | None,
    options.value_option(
        "N",
        "Number of classes to print per image. [default: 5; with several labels an image, all at "
        "or above their thresholds]",
        options.OUTPUT,
        "--top-k",
        "-k",
        min=1,
    ),
]
Threshold = Annotated[
    float | None,
    options.value_option(
        "P",
        "Answer `unknown` if the highest probability is below P (0 to 1). With several labels an "
        "image: P in place of each class's own threshold.",
        options.OUTPUT,
        min=0,
        max=1,
    ),
]
FastDecode = Annotated[
    bool,
    options.flag(
        "Decode large JPEGs at reduced resolution: several times faster, not exact.",
        options.DATA,
        "--fast-decode",
    ),
]
JsonLines = Annotated[
    bool,
    options.flag(
        "Print JSON lines: one object per image, as soon as it is classified.",
        options.OUTPUT,
        "--jsonl",
    ),
]
Csv = Annotated[bool, options.flag("Print CSV, one row per image.", options.OUTPUT, "--csv")]
Outputs = Annotated[
    list[Path] | None,
    options.path_option(
        "FILE",
        "Write results to FILE, by its suffix: .csv, .json, .jsonl, .parquet, .html (a page of "
        "thumbnails), .npz or .safetensors (feature vectors). Can be repeated.",
        options.OUTPUT,
        "--output",
        "-o",
    ),
]
Resume = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "Append results to FILE (JSON lines); skip images already in it.",
        options.OUTPUT,
    ),
]
AsOutput = Annotated[
    Path | None,
    options.path_option("FILE", "As --output.", options.OUTPUT, hidden=True),
]
"""What wrote a file of one kind before --output did; still understood."""
Features = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "Write feature vectors (the classifier head's input) instead of predictions: .npz or "
        ".safetensors.",
        options.OUTPUT,
    ),
]


def predict(
    ctx: typer.Context,
    images: Images,
    model: options.Model = None,
    res: options.Res = None,
    resize: options.Resize = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    activation: options.Activation = None,
    top_k: TopK = None,
    threshold: Threshold = None,
    outputs: Outputs = None,
    resume: Resume = None,
    overwrite: options.Overwrite = False,
    csv: Csv = False,
    json_output: options.JsonOrFile = False,
    jsonl: JsonLines = False,
    parquet: AsOutput = None,
    html: AsOutput = None,
    features: Features = None,
    verbose: options.Verbose = False,
    device: options.Device = "auto",
    batch_size: options.BatchSize = 16,
    workers: options.Workers = None,
    engine: options.Engine = "auto",
    precision: options.AnswersPrecision = "auto",
    calibration: options.Calibration = None,
    max_drop: options.MaxDrop = None,
    exif: options.Exif = True,
    background: options.Background = None,
    fast_decode: FastDecode = False,
) -> None:
    """Classify images and print the most likely classes.

    Folders are searched recursively for image files; hidden files are skipped. An image that cannot
    be read is reported, the others are classified, and the exit code is 1.

    Models are downloaded on first use. If the default cannot be downloaded, the bundled
    cvt-nano-cifar10 (10 classes) is used, with a warning.

    Examples:
      cvt predict photo.jpg
      cvt predict photo.jpg --model cvt-nano-cifar10 --top-k 3
      cvt predict photos/ --model cvt-13 -o answers.csv -o answers.html
      cvt predict photos/ --model cvt-13 --resume answers.jsonl

    See also: cvt models (names for --model), cvt evaluate (measure accuracy), cvt finetune (train
    on your own classes)
    """
    from cvt_cli import loading
    from cvt_cli.checkpoints import locate
    from cvt_cli.engines.ready import engine_to_go_on_with
    from cvt_cli.prediction import predict as predicting

    printed = [name for name, asked in (("--json", json_output), ("--jsonl", jsonl), ("--csv", csv))
               if asked]  # fmt: skip
    written: dict[str, Any] = {}
    named = [("parquet", parquet), ("html", html), ("features", features)]
    for kind, path in [*named, *((predicting.kind_of(path), path) for path in outputs or ())]:
        if kind in written and path is not None:
            raise UsageError(f"`{written[kind]}` and `{path}` would hold the same; give only one")
        if path is not None:
            written[kind] = path
    _check_options(ctx, printed, written, resume)
    in_precision = options.quantised(ctx, precision, calibration, max_drop)
    if model is not None:
        locate.check_revision(model, revision)
    asked = predicting.Asked(
        top_k=top_k,
        threshold=threshold,
        exif=exif,
        background=background,
        fast_decode=fast_decode,
        batch_size=batch_size,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        **written,
    )

    def load(made: dict[str, Any] | None, total: int | None) -> "ReadyModel":
        access = output.access(revision, offline, verbose)
        ready = loading.load_classifier(
            model, res, activation, device, in_precision, access,
            resize=resize,
            engine=engine_to_go_on_with(made, engine),
            images=loading.MANY_IMAGES if total is None else total,
            together=batch_size if total is None else min(total, batch_size),
            or_embedded=True,
        )  # fmt: skip
        if torchrun.rank() == 0:
            output.note_conditions(ready, verbose)
            if fast_decode:
                output.note(
                    "--fast-decode: large JPEGs are decoded at reduced resolution; results differ "
                    "slightly"
                )
        return ready

    to_files = asked.lines is not None or bool(asked.files)
    every_class = top_k is not None and top_k > 1
    with predicting.predict(images, asked, load, output.note) as answers:
        printer = _Printer(answers, printed, to_files, every_class)
        to_terminal = not to_files and not json_output and sys.stdout.isatty()
        shown = progress.silent if to_terminal or torchrun.rank() else output.progress
        try:
            with shown("predicting", answers.total, done=answers.done) as advance:
                for answer in answers:
                    printer.print(answer)
                    advance(1, "")
        except KeyboardInterrupt:
            _say_what_is_kept(answers, asked)
            raise
    if not _ended_well(answers, images, printer, asked):
        raise typer.Exit(1)


def _say_what_is_kept(answers: "Answers", asked: "Asked") -> None:
    """A line for who has pressed Ctrl-C."""
    done = answers.done + answers.answered
    of = str(done) if answers.total is None else f"{done} of {answers.total}"
    images = f"{of} image{'' if of == '1' else 's'}"
    verb = "is" if of == "1" else "are"
    if asked.lines is not None:
        writing = ("-o", "--output", "--jsonl", "--json", "--csv", "--parquet", "--html")
        line = output.gone_on_with(asked.lines, *writing, without=asked.files)
        output.note(
            f"stopped: {images} {verb} classified in `{torchrun.own_path(asked.lines)}`; "
            f"to continue: {line}"
        )
    elif asked.files:
        output.note(
            f"stopped after {images}; no file was written. `--resume FILE.jsonl` "
            "keeps each result at once, and can be continued"
        )
    else:
        output.note(f"stopped: {images} {verb} classified")


class _Printer:
    """The answers on stdout, as they come but for one JSON document; errors on stderr."""

    def __init__(
        self, answers: "Answers", printed: list[str], to_files: bool, every_class: bool
    ) -> None:
        self._answers, self._to_files = answers, to_files
        many = answers.total is None or answers.total > FEW_IMAGES
        self._a_line_each = many and not every_class
        self._width = min(WIDEST_CLASS, max(map(len, answers.ready.labels.names)))
        self._form = printed[0] if printed else "table"
        self._conditions = answers.conditions if self._form == "--json" else {}
        self._results: list[dict[str, Any]] = []
        self._begun = False  # the lines have a head

    def print(self, answer: "Answer") -> None:
        if answer.error is not None:
            output.error(f"`{answer.path}`: {answer.error}")
        if self._form == "--json":
            self._results.append(answer.to_json())
        elif self._form == "--jsonl":
            output.print_json_line(answer.to_json())
        elif self._form == "--csv":
            columns = self._answers.row(answer)
            if self._answers.answered == 1:
                output.print_csv_row(columns)
            output.print_csv_row(columns.values())
        elif answer.error is None and not self._to_files:
            if self._a_line_each:
                self._print_line(answer)
            else:
                _print_table(answer)

    def _print_line(self, answer: "Answer") -> None:
        """The likeliest class: lines come as images are answered, each column has its place."""
        if answer.several:
            return self._print_several(answer)
        if not self._begun:
            output.emit(f"{'class':<{self._width}}  probability  image")
            self._begun = True
        likeliest = answer.predictions[0]
        label = answer.answer or likeliest.label
        output.emit(f"{label:<{self._width}}  {likeliest.score:>11.4f}  {answer.path}")

    def _print_several(self, answer: "Answer") -> None:
        """All classes of an image, which may be none."""
        from cvt_cli.prediction.answers import NONE

        if not self._begun:
            output.emit(f"{'classes with probabilities':<{WIDEST_CLASS}}  image")
            self._begun = True
        told = ", ".join(f"{one.label} {one.score:.4f}" for one in answer.predictions) or NONE
        output.emit(f"{told:<{WIDEST_CLASS}}  {answer.path}")

    def end(self) -> None:
        if self._form == "--json":
            output.print_json({**self._conditions, "results": self._results})


def _ended_well(answers: "Answers", images: list[str], printer: _Printer, asked: "Asked") -> bool:
    """Print what is said after the last answer; whether all images of all processes were read."""
    failed, everything = answers.failed, answers.done + answers.answered
    if answers.total is None and not everything and torchrun.count() == 1:
        output.error(f"no images in {', '.join(f'`{text}`' for text in images)}")
        failed = 1
    printer.end()
    for path in [*asked.files, *([asked.jsonl] if asked.jsonl else [])]:
        output.note(f"written: `{torchrun.own_path(path)}`")
    if str(answers.passed) and torchrun.rank() == 0:
        output.note(str(answers.passed))
    if failed and everything:
        output.note(f"{failed} of {counted(everything, 'image')} could not be read")
    return not sum(torchrun.gather(failed))


def _check_options(
    ctx: typer.Context,
    printed: list[str],
    written: dict[str, Path],
    resume: Path | None,
) -> None:
    """Raises UsageError for options that exclude each other, or that have no effect here."""
    from cvt_cli.prediction.predict import KINDS

    if len(printed) > 1:
        raise UsageError(f"give only one of {' and '.join(printed)}")
    if "features" in written:
        which = "--features" if "--features" in options.given(ctx) else "--output"
        why = f"{which} `{written['features']}` writes feature vectors, not classes"
        options.refuse(
            ctx,
            ["--json", "--jsonl", "--csv", "--resume", "--parquet", "--html"],
            f"{why}; give it without other outputs",
        )
        options.refuse(ctx, ["--top-k", "--threshold"], why)
        if len(written) > 1:
            raise UsageError(f"{why}; give it without other outputs")
    if not written:
        options.refuse(ctx, ["--overwrite"], "there is no output file to replace")
    if resume is not None:
        if KINDS.get(resume.suffix.lower(), "jsonl") != "jsonl":
            raise UsageError(
                f"--resume `{resume}`: only JSON lines can be continued; accepted are names "
                "that end in `.jsonl`, or in none of the other suffixes that --output knows",
                hint=f"-o {shlex.quote(str(resume))} writes such a file anew",
            )
        options.refuse(
            ctx,
            ["--parquet", "--html", "--output", "--overwrite"],
            "--resume writes only JSON lines",
        )
    if torchrun.count() > 1 and printed != ["--jsonl"] and not (written or resume):
        raise UsageError(
            "the outputs of several processes would be mixed; accepted are --jsonl, and "
            "--resume or --output with a file: each process writes its own"
        )


def _print_table(answer: "Answer") -> None:
    from cvt_cli.prediction.answers import NONE

    if answer.several and not answer.predictions:
        output.emit(f"{answer.path}: {NONE}", "")
        return
    with_wnid = any(p.wnid for p in answer.predictions)
    output.print_table(
        answer.path if answer.answer is None else f"{answer.path}: {answer.answer}",
        ("class", "probability", "index", *(("WNID",) if with_wnid else ())),
        [
            (p.label, f"{p.score:.4f}", str(p.index), *((p.wnid or "",) if with_wnid else ()))
            for p in answer.predictions
        ],
    )
