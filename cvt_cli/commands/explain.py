"""``cvt explain``: what in an image an answer rests on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_args

import typer

from cvt_cli.base import torchrun
from cvt_cli.base.text import counted
from cvt_cli.commands import options, output
from cvt_cli.commands.predict import Images

if TYPE_CHECKING:
    from cvt_cli.engines.ready import ReadyModel
    from cvt_cli.explanation.explain import Explanation
    from cvt_cli.explanation.explainer import TracedEngine
    from cvt_cli.explanation.job import Explanations

EXPLAIN = "Explanation"

FOLDER = "explanations"
"""Where pictures go unless another place is given."""

MethodName = Literal["occlusion", "hirescam", "layercam", "relevance", "attention"]


def _methods(incomplete: str) -> list[str]:
    return [name for name in get_args(MethodName) if name.startswith(incomplete)]


def _method(value: str) -> str:
    if value not in get_args(MethodName):
        raise typer.BadParameter(
            f"`{value}` is not a method; accepted are {options.either(MethodName)}"
        )
    return value


Methods = Annotated[
    list[str] | None,
    options.text_option(
        "NAME",
        f"Method: {options.either(MethodName)}. Can be repeated. occlusion takes about 50 "
        "passes through the network, the others one. [default: occlusion]",
        EXPLAIN,
        parser=_method,
        autocompletion=_methods,
    ),
]
Targets = Annotated[
    list[str] | None,
    options.text_option(
        "CLASS",
        "Explain this class, by its name, WNID or index. Can be repeated. [default: the most "
        "likely class of each image]",
        EXPLAIN,
    ),
]
Against = Annotated[
    str | None,
    options.text_option("A,B", "Explain why class A and not class B, such as cat,dog.", EXPLAIN),
]
TopK = Annotated[
    int | None,
    options.value_option(
        "N",
        "Explain the N most likely classes of each image. [default: 1; 3 with --html]",
        EXPLAIN,
        "--top-k",
        "-k",
        min=1,
    ),
]
Stage = Annotated[
    int | None,
    options.value_option(
        "N",
        "Stage of the network whose features hirescam and layercam use: 0, 1 or 2. [default: 1]",
        EXPLAIN,
    ),
]
Score = Annotated[
    bool,
    options.flag(
        "Measure how true each map is (SaCo, ROAD, insertion, deletion), beside a random and a "
        "centred map. Takes about 60 passes through the network for each of them.",
        EXPLAIN,
        "--score",
    ),
]
Output = Annotated[
    Path | None,
    options.path_option(
        "PLACE",
        "Folder for the pictures, one PNG per image, or for one image a .png file. [default: "
        "explanations, if neither --html, --npz nor --json is given]",
        options.OUTPUT,
        "--output",
        "-o",
    ),
]
Html = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "Write one page with all images, on which classes, methods, blocks and heads can be "
        "chosen.",
        options.OUTPUT,
    ),
]
Npz = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "Write the raw maps (float32), at the network's resolution and at each photograph's.",
        options.OUTPUT,
    ),
]


def explain(
    ctx: typer.Context,
    images: Images,
    model: options.Model = None,
    res: options.Res = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    activation: options.Activation = None,
    method: Methods = None,
    target: Targets = None,
    against: Against = None,
    top_k: TopK = None,
    stage: Stage = None,
    score: Score = False,
    place: Output = None,
    html: Html = None,
    npz: Npz = None,
    overwrite: options.Overwrite = False,
    json_output: options.JsonOrFile = False,
    json_file: options.JsonFile = None,
    verbose: options.Verbose = False,
    exif: options.Exif = True,
    background: options.Background = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
) -> None:
    """Show what in an image an answer rests on.

    Draws a map on each photograph: where the network found what speaks for the class. What the crop
    leaves out is hatched. The map is an estimate; --score measures how far it can be trusted.

    Takes the same inputs as cvt predict, and any model but an exported graph. Computes in fp32.

    Examples:
      cvt explain photo.jpg --model cvt-nano-cifar10
      cvt explain photo.jpg --model cvt-nano-cifar10 --against cat,dog -o why.png
      cvt explain photos/ --model cvt-13 --method attention --html page.html
      cvt explain photos/ --model cvt-13 --score --json > scores.json

    See also: cvt predict (answers without maps), cvt evaluate (how often they are right)
    """
    torchrun.refuse("an explanation")
    _check_options(ctx, target, against, method, score)
    options.refuse_replacing(json_file, overwrite)
    if place is None and not (html or npz or json_output or json_file):
        place = Path(FOLDER)
    if not (place or html or npz or json_file):
        options.refuse(ctx, ["--overwrite"], "there is no output file to replace")
    from cvt_cli.checkpoints import locate
    from cvt_cli.explanation import explainer, job
    from cvt_cli.explanation.explain import Asked
    from cvt_cli.explanation.methods import DEFAULT

    if model is not None:
        locate.check_revision(model, revision)
    asked = Asked(
        methods=cast("tuple[MethodName, ...]", tuple(dict.fromkeys(method or [DEFAULT]))),
        targets=tuple(target or ()),
        against=against,
        top_k=top_k or (3 if html else 1),
        stage=stage,
        score=score,
        exif=exif,
        background=background,
        workers=workers,
    )

    def load() -> "tuple[ReadyModel, TracedEngine]":
        access = output.access(revision, offline, verbose)
        ready, engine = explainer.load(model, res, activation, device, access, or_embedded=True)
        output.note_conditions(ready, verbose)
        return ready, engine

    printed = json_output or json_file is not None
    results: list[dict[str, Any]] = []
    with job.explained(images, asked, job.Files(place, html, npz, overwrite), load) as found:
        printer = _Printer(found, quiet=json_output)
        try:
            with output.progress("explaining", found.total) as advance:
                for one, picture in found:
                    printer.print(one, picture)
                    if printed:
                        results.append(one.to_json())
                    advance(1, "")
        except KeyboardInterrupt:
            output.note(f"stopped after {counted(found.answered, 'image')}")
            raise
        document = {**found.conditions, "results": results} if printed else {}
    if score:
        document["scores"] = found.means.to_json()
        printer.print_scores()
    if json_file is not None:
        output.write_json(document, json_file)
    if json_output:
        output.print_json(document)
    _end(found, images, place, [path for path in (html, npz) if path])


def _check_options(
    ctx: typer.Context,
    target: list[str] | None,
    against: str | None,
    method: list[str] | None,
    score: bool,
) -> None:
    """Raises UsageError for options that exclude each other, or have no effect."""
    if not {"hirescam", "layercam"} & set(method or ()):
        options.refuse(ctx, ["--stage"], "it is of --method hirescam and layercam")
    if set(method or ()) == {"attention"} and not score:
        options.refuse(
            ctx,
            ["--target", "--against", "--top-k"],
            "no effect, since a map of --method attention is of no class",
            "add another method, or --score, which measures a map by a class",
        )
    if against is not None:
        options.refuse(ctx, ["--target"], "--against names the classes; give only one of the two")
    if against is not None or target:
        named = "--against" if against is not None else "--target"
        options.refuse(ctx, ["--top-k"], f"{named} names the classes already")


def _end(found: "Explanations", images: list[str], place: Path | None, written: list[Path]) -> None:
    """What is said after the last image; ends with 1 where one could not be read."""
    for path in written:
        output.note(f"written: `{path}`")
    above = set(place.resolve().parents) if place else set()
    around = next((one for one in images if Path(one).resolve() in above), None) if above else None
    if around is not None and found.answered > found.failed:
        output.note(
            f"the pictures in `{place}` are images of `{around}` too, for whatever reads it next; "
            "--output writes them elsewhere"
        )
    if str(found.passed):
        output.note(str(found.passed))
    if not found.answered:
        output.error(f"no images in {', '.join(f'`{text}`' for text in images)}")
        raise typer.Exit(1)
    if found.failed:
        output.note(f"{found.failed} of {counted(found.answered, 'image')} could not be read")
        raise typer.Exit(1)


class _Printer:
    """A line for each map on stdout; errors on stderr."""

    def __init__(self, found: "Explanations", quiet: bool) -> None:
        self._found, self._quiet = found, quiet
        self._width = min(30, max(map(len, found.ready.labels.names)))
        self._begun = False

    def print(self, one: "Explanation", picture: Path | None) -> None:
        if one.error is not None:
            output.error(f"`{one.path}`: {one.error}")
            return
        if self._quiet:
            return
        if not self._begun:
            output.emit(
                f"{'class':<{self._width}}  probability  {'method':<20}  "
                f"{'strongest half at':<19}  image"
            )
            self._begun = True
        for each in one.explained:
            for found in each.maps:
                box = one.box(found)
                where = "nowhere" if box is None else ",".join(map(str, box))
                name = each.prediction.label
                if each.against is not None:
                    name += f", not {each.against.label}"
                output.emit(
                    f"{name:<{self._width}}  {each.prediction.score:>11.4f}  "
                    f"{found.method:<20}  {where:<19}  {one.path}"
                )
        if picture is not None:
            output.note(f"written: `{picture}`")

    def print_scores(self) -> None:
        """The means of all scores, the truest method first."""
        if self._quiet or not self._found.means.sums:
            return
        document = self._found.means.to_json()
        names = ("saco", "road", "insertion", "deletion", "saco_above_random")
        output.emit("")
        output.print_table(
            "How true the maps are: means with 95 % intervals",
            ("method", "maps", "SaCo", "ROAD", "insertion", "deletion", "SaCo above random"),
            [
                (method, str(row["n"]), *(_with_interval(row[name]) for name in names))
                for method, row in document["methods"].items()
            ],
        )


def _with_interval(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if found["interval"] is None:
        return f"{found['mean']:.3f}"
    return f"{found['mean']:.3f} ±{found['interval'][1] - found['mean']:.3f}"
