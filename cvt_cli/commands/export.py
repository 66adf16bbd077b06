"""``cvt export``: a file that runs elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cvt_cli.base import files, torchrun
from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import counted, human_bytes
from cvt_cli.commands import completion, options, output
from cvt_cli.spec import formats, published
from cvt_cli.spec.config import Activation
from cvt_cli.spec.formats import FormatName
from cvt_cli.spec.preprocessing import Resize

if TYPE_CHECKING:
    from cvt_cli.checkpoints.locate import Access
    from cvt_cli.export.convert import Layout
    from cvt_cli.export.export import Exported

FILE = "File"
PRECISION = "Precision"


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        parser=options.place,
        metavar="MODEL",
        autocompletion=completion.models,
        help="Model name, folder, file or hub repository.",
    ),
]
Model = Annotated[
    str | None,
    options.text_option(
        "MODEL",
        "The same as the argument MODEL.",
        options.MODEL,
        "--model",
        "-m",
        parser=options.place,
    ),
]
Target = Annotated[
    Path | None,
    options.path_option(
        "FILE",
        "Output file: .onnx, .xml (OpenVINO, with a .bin beside it), .pt2 or .safetensors; for "
        "safetensors also a folder. [default: MODEL.onnx in this folder, or with the suffix of "
        "--format]",
        FILE,
        "--output",
        "-o",
    ),
]
Format = Annotated[
    FormatName | None,
    options.value_option(
        "NAME",
        f"Format: {options.either(FormatName)}. [default: by the suffix of the output file]",
        FILE,
        "--format",
    ),
]
TensorLayout = Annotated[
    Literal["transformers", "reference"],
    options.value_option(
        "NAME",
        "Tensor names in safetensors: transformers or reference (the official code's).",
        FILE,
    ),
]
WithPreprocessing = Annotated[
    bool,
    options.flag(
        "Include preprocessing in the graph: it takes uint8 RGB images (B, H, W, 3) of any size.",
        FILE,
        "--with-preprocessing",
    ),
]
DynamicSize = Annotated[
    bool,
    options.flag(
        "Accept any image height and width from 32 pixels (.pt2: 35). Any batch size is "
        "always accepted.",
        FILE,
        "--dynamic-size",
    ),
]
Precision = Annotated[
    Literal["fp32", "fp16", "bf16"],
    options.value_option(
        "NAME", "Precision of weights and computation: fp32, fp16 or bf16.", PRECISION
    ),
]
Int8 = Annotated[
    bool,
    options.flag(
        "Quantise to 8-bit integers; needs --calibration (onnx and openvino).",
        PRECISION,
        "--int8",
    ),
]
Calibration = Annotated[
    Path | None,
    options.path_option(
        "FOLDER",
        "Typical images, to measure the value ranges for --int8; at most 300 are used.",
        PRECISION,
    ),
]
VerifyData = Annotated[
    Path | None,
    options.path_option(
        "FOLDER",
        "Images on which the file is compared with torch. [default: ten bundled images]",
        "Verification",
    ),
]


def export(
    ctx: typer.Context,
    model_argument: ModelArgument = None,
    target: Target = None,
    form: Format = None,
    card: options.CardFolder = None,
    overwrite: options.Overwrite = False,
    with_preprocessing: WithPreprocessing = False,
    dynamic_size: DynamicSize = False,
    layout: TensorLayout = "transformers",
    precision: Precision = "fp32",
    int8: Int8 = False,
    calibration: Calibration = None,
    verify_data: VerifyData = None,
    res: options.Res = None,
    resize: options.Resize = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    activation: options.Activation = None,
    model: Model = None,
    json_output: options.Json = False,
) -> None:
    """Export a model to a file, and check that its outputs match torch's.

    The file is run in its own runtime, at several batch sizes, on noise and on images, before it
    is moved into place. Differences and speed compared with torch are printed and saved as
    FILE.json. A file that differs too much is named FILE.failed, and the exit code is 1.
    safetensors files hold the same tensors bit by bit.

    Examples:
      cvt export cvt-nano-cifar10
      cvt export runs/my_run --output model.onnx --with-preprocessing
      cvt export cvt-13 --output cvt-13-int8.xml --int8 --calibration photos/

    See also: cvt predict --model FILE (run the file), cvt benchmark (measure its speed)
    """
    from cvt_cli import loading
    from cvt_cli.cards import gather
    from cvt_cli.datasets import held_out

    torchrun.refuse("an export")
    model = options.once(model_argument, model, "--model")
    if model is None:
        raise UsageError(
            "no model to export", hint="name one, for example: cvt export cvt-nano-cifar10"
        )
    target = target or _default_target(model, form or "onnx", "int8" if int8 else precision)
    form = formats.resolve(form, target)
    _check_options(ctx, form, int8, calibration)
    _refuse_existing(form, target, overwrite)
    if card is not None:
        gather.check(card, overwrite=overwrite)
    access = output.access(revision, offline)
    if form == "safetensors":
        _convert(model, target, layout, res, resize, activation, access, json_output)
        return
    from cvt_cli.export import verification

    with files.workplace(target) as folder:
        # Before torch is waited for.
        verify_on = verification.Pictures.of(verify_data or verification.PACKAGED)
        measured_on = None
        if calibration is not None:
            most = verification.MOST_CALIBRATION_IMAGES
            measured_on = verification.Pictures.of(calibration, most)
        from cvt_cli.export import export as exporting

        in_precision: formats.FilePrecision = "int8" if int8 else precision
        exporting.check(form, in_precision, with_preprocessing, dynamic_size)
        checkpoint, loaded = loading.load_checkpoint(model, res, activation, access, resize)
        exporting.refuse_unnamed(loaded, model)
        for message in loaded.notes:
            output.note(message)
        record = checkpoint.record_of_export(
            loaded.described,
            inside=with_preprocessing,
            precision=in_precision,
            dynamic_size=dynamic_size,
        )
        held_out.remember(checkpoint)
        if card is not None:
            gather.check_is_of(card, "export", {"weights_sha256": record.weights_sha256})
        result = exporting.export(
            loaded,
            record,
            form,
            target,
            folder,
            calibration=measured_on,
            verify_on=verify_on,
            say=access.say,
            progress=access.progress,
        )
    if json_output:
        output.print_json(result.to_json())
    else:
        _print(result, model)
    result.refuse_if_failed()
    if card is not None:
        gather.add(card, [("the result", result.to_json())], output.note, overwrite=overwrite)


def _default_target(model: str, form: FormatName, precision: str) -> Path:
    """A file in this folder with the name of the model, and of its precision unless it is fp32."""
    if known := published.find(model):
        name = known.name
    else:
        from cvt_cli.checkpoints import folders

        path = Path(model)
        name = folders.called(path) if path.exists() else path.name
    return Path(
        name + ("" if precision == "fp32" else f"-{precision}") + formats.FORMATS[form].suffix
    )


def _convert(
    model: str,
    target: Path,
    layout: "Layout",
    res: str | None,
    resize: Resize | None,
    activation: Activation | None,
    access: "Access",
    json_output: bool,
) -> None:
    """Write a checkpoint's tensors as they are."""
    from cvt_cli import loading
    from cvt_cli.datasets import held_out

    with files.workplace(target) as folder:
        from cvt_cli.export import convert

        checkpoint, loaded = loading.load_checkpoint(model, res, activation, access, resize)
        record = checkpoint.record_of_export(loaded.described)
        held_out.remember(checkpoint)
        stored, card = loading.verified(checkpoint, access), checkpoint.card
        converted = convert.convert(stored, loaded, card, record, layout, target, folder)
        for message in loaded.notes:
            output.note(message)
    if json_output:
        output.print_json(converted.to_json())
        return
    output.emit(
        f"{target}: {converted.tensors} tensors "
        f"({human_bytes(converted.bytes)}) under {layout}'s names, equal bit by bit to "
        f"{record.model}'s"
    )


def _check_options(
    ctx: typer.Context, form: FormatName, int8: bool, calibration: Path | None
) -> None:
    """Raises UsageError for options that do not go together, or have no effect."""
    if form == "safetensors":
        options.refuse(
            ctx,
            ["--with-preprocessing", "--dynamic-size", "--precision", "--int8", "--calibration",
             "--verify-data"],
            "safetensors files hold a checkpoint's tensors as they are; use it with onnx, "
            "openvino or pt2",
        )  # fmt: skip
        options.refuse(ctx, ["--card"], "nothing is measured of a copy of the tensors")
    else:
        options.refuse(ctx, ["--layout"], "only safetensors files have tensor names to choose")
    if int8:
        options.refuse(ctx, ["--precision"], "give it or --int8, not both")
    if int8 and calibration is None:
        raise UsageError(
            "--int8 needs images to measure value ranges on: --calibration FOLDER",
            hint="about 100 images like those that the model will see",
        )
    if calibration is not None and not int8:
        raise UsageError("--calibration is only for --int8")


def _refuse_existing(form: FormatName, target: Path, overwrite: bool) -> None:
    """Raises CvtError if something is there that would be replaced, or nothing can be."""
    beside = [target]
    if form != "safetensors":  # of which nothing is measured
        beside.append(target.with_name(target.name + ".json"))
    if second := formats.second_file(target):
        beside.append(second)
    files.refuse_replacing(beside, overwrite)
    if target.suffix:
        files.refuse_unwritable(target)


def _print(result: "Exported", model: str) -> None:
    """What was measured, for a person; `model` as the user named it."""
    found, record = result.verification, result.record
    takes = "pixels of any size" if record.preprocessing_inside else (
        "any size" if record.dynamic_size
        else f"{record.preprocessing.height}x{record.preprocessing.width}"
    )  # fmt: skip
    output.print_table(
        f"{result.path}: {model} for {result.engine}, {record.precision}, any batch, "
        f"{takes}, {human_bytes(result.bytes)}",
        ("compared with torch", "size", "batch", "n", "largest", "RMS", "spread", "same class"),
        [
            (
                check.data if check.data == "random" else result.verified_on,
                f"{check.height}x{check.width}",
                ", ".join(map(str, check.batch_sizes)),
                str(check.n),
                f"{check.largest_difference:.1e}",
                f"{check.rms_difference:.1e}",
                f"{check.spread:.2f}",
                f"{check.agreeing} of {check.n}",
            )
            for check in found.checks
        ],
    )
    output.emit(*_summary(result))


def _summary(result: "Exported") -> list[str]:
    found = result.verification
    what = "RMS on images" if found.precision == "int8" else "largest"
    verdict = "within" if found.passed else "beyond"
    lines = [
        "largest, RMS: difference of logits to torch in fp32 on the CPU; spread: standard "
        "deviation of torch's logits",
        f"the {what} difference is {verdict} the limit, {found.tolerance:g} x spread",
    ]
    if (parity := found.parity) is not None:
        lines.append(
            f"preprocessing inside: at most {parity.largest_grey_levels:g} of 255 grey levels from "
            f"Pillow's, {100 * parity.share_differing:.3f} % of values differ "
            f"({counted(parity.n, 'image')})"
        )
    taken = result.speed
    file, torch = 1000 * taken.file_sec, 1000 * taken.torch_sec
    speed = f"one image at a time: {file:.1f} ms, torch {torch:.1f} ms"
    if taken.ratio is not None:
        speed += f"; {taken.ratio:.1f} times as fast (median of 5 rounds)"
    else:
        low, high = taken.ratios
        speed += (
            f"; the 5 rounds do not agree ({low:.1f} to {high:.1f} times as fast): "
            "other processes are busy"
        )
    lines.append(speed)
    return lines
