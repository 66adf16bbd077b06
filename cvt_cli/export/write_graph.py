"""The inference form as a graph in a file: ONNX, OpenVINO, PyTorch. The one place that exports.

A graph takes `images`, float32 (B, 3, H, W), normalised, with any B, and gives `logits`
(B, classes) and `features` (B, C), what the head reads; both float32, in whatever precision it
computes. With preprocessing inside it takes `pixels` (see `graph_preprocessing`). OpenVINO's is
made from ONNX.
"""

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cvt_cli.base import files, stamps
from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.base.package import installing
from cvt_cli.checkpoints.export_metadata import (
    BIN_HASH,
    OPENVINO_SECTION,
    PIXELS,
    PT2_FILE,
    Record,
)
from cvt_cli.engines import runtimes
from cvt_cli.export import quantise
from cvt_cli.export.preprocessing_graph import InsidePreprocessing
from cvt_cli.model import devices
from cvt_cli.model.inference import InferenceCvT, inference_form
from cvt_cli.model.network import CvT
from cvt_cli.spec.config import SMALLEST_SIZE
from cvt_cli.spec.formats import GraphFormat
from cvt_cli.spec.preprocessing import Preprocessing

if TYPE_CHECKING:
    from cvt_cli.export.quantise import Right

PREPROCESSING_FILE = "preprocessing.onnx"
"""Name of what `write` leaves beside a file with preprocessing inside: that alone."""

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

# Of the example that a graph of any size is made with: with axes of equal length, or of length 1
# somewhere inside, they might be taken for the same or as fixed.
_EXAMPLE_SIZE = (96, 160)
_ANY_PIXELS = {0: "batch", 1: "height", 2: "width"}


class _WithFeatures(nn.Module):
    """The network, float32 in and out, computed in another precision or this one."""

    def __init__(self, form: InferenceCvT, dtype: torch.dtype) -> None:
        super().__init__()
        self.form, self.dtype = form.to(dtype), dtype

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.form.features(images.to(self.dtype))
        return self.form.head(features).float(), features.float()


def write_onnx(
    model: CvT,
    path: Path,
    height: int,
    width: int,
    metadata: Mapping[str, str],
    *,
    precision: str = "fp32",
    dynamic_size: bool = False,
    convolutions: bool = False,
    made_under: Mapping[str, Any] | None = None,
) -> None:
    """Write a network as an ONNX file.

    Args:
        model: in its training form, on the CPU.
        path: of the file, which is written whole or not at all.
        height: of the images in pixels.
        width: of the images in pixels.
        metadata: kept inside the file, by name.
        precision: of weights and of what is computed: "fp32", "fp16" or "bf16".
        dynamic_size: take images of any height and width; else of these alone.
        convolutions: write linear layers as 1 x 1 convolutions.
        made_under: conditions, for a file that is kept and gets a stamp.

    Raises:
        UsageError: what writes ONNX is not installed.
        CvtError: the folder cannot be written to.
    """
    if not runtimes.can_prepare():
        raise UsageError(
            "writing ONNX needs the package `onnx`, which is not installed",
            hint=installing("onnxruntime"),
        )
    import onnx

    from cvt_cli.export.onnx_graph import network_graph

    size = None if dynamic_size else (height, width)
    with devices.default_is_cpu():
        graph = network_graph(inference_form(model), size, _DTYPES[precision], convolutions)
    onnx.helper.set_model_props(graph, dict(metadata))
    replacing = files.replacing(path) if made_under is None else stamps.making(path, made_under)
    with replacing as temporary:
        onnx.save(graph, temporary)


def write(
    model: CvT,
    record: Record,
    form: GraphFormat,
    path: Path,
    calibration: Any,
    right: "Right | None" = None,
) -> None:
    """Write a network as the file that a record describes.

    Args:
        model: in its training form, on the CPU.
        record: precision, preprocessing and the rest; all of it is kept inside the file.
        form: of the file.
        path: of the file, in a folder that may hold others: of an ``.xml`` the ``.bin`` beside
            it, and what is needed on the way.
        calibration: for "int8": images, float32 (1, 3, H, W), that can be gone through repeatedly.
        right: for "int8" with OpenVINO: how often it must be right; layers stay in floats for it.

    Raises:
        UsageError: what writes the format is not installed.
        CvtError: the disk is full, the graph cannot be made, or is not right often enough.
    """
    try:
        if form == "pt2":
            _write_pt2(model, record, path)
            return
        preprocessing, onnx_file = record.preprocessing, path.with_name("network.onnx")
        write_onnx(
            model,
            onnx_file,
            preprocessing.height,
            preprocessing.width,
            {},
            # OpenVINO rounds weights to float16 itself; int8 starts from float32.
            precision="bf16" if record.precision == "bf16"
            else "fp16" if record.precision == "fp16" and form == "onnx"
            else "fp32",
            dynamic_size=record.dynamic_size,
            # In int8 OpenVINO has a kernel for these on every processor; its matrix product needs
            # VNNI, and without it takes as long as in float32.
            convolutions=record.precision == "int8" and form == "openvino",
        )  # fmt: skip
        before = path.with_name(PREPROCESSING_FILE)
        if record.preprocessing_inside:
            _write_preprocessing(preprocessing, before)
        if form == "onnx":
            _finish_onnx(record, onnx_file, before, path, calibration)
        else:
            _finish_openvino(record, onnx_file, before, path, calibration, right)
    except OSError as error:
        raise files.unwritable(path, error) from error


def _write_preprocessing(preprocessing: Preprocessing, path: Path) -> None:
    from cvt_cli.export.onnx_graph import OPSET

    pixels = torch.zeros(2, *_EXAMPLE_SIZE, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            InsidePreprocessing(preprocessing).eval(),
            (pixels,),
            dynamo=True,
            dynamic_shapes=(_dimensions(pixels, _ANY_PIXELS),),
            input_names=(PIXELS,),
            output_names=("prepared",),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None  # with dynamo there is one
    program.save(path)


def _dimensions(
    example: Tensor, free: Mapping[int, str], least: int = SMALLEST_SIZE
) -> dict[int, Any]:
    smallest = least if example.is_floating_point() else 1  # pixels are resized first
    return {
        axis: torch.export.Dim(name, min=smallest if axis else 1) for axis, name in free.items()
    }


def _finish_onnx(record: Record, network: Path, before: Path, path: Path, calibration: Any) -> None:
    import onnx

    if record.precision == "int8":
        quantise.quantise_onnx(network, calibration)
    model = onnx.load(network)
    if record.preprocessing_inside:
        first = onnx.load(before)
        first.ir_version = model.ir_version
        first = onnx.compose.add_prefix(
            first, "preprocessing.", rename_inputs=False, rename_outputs=False
        )
        model = onnx.compose.merge_models(first, model, io_map=[("prepared", "images")])
    onnx.helper.set_model_props(model, record.to_strings())
    onnx.save(model, path)


_TO_COME = f"{'the hash of the .bin':-^64}"
"""As long as a SHA-256; OpenVINO writes both files at once."""


def _finish_openvino(
    record: Record,
    network: Path,
    before: Path,
    path: Path,
    calibration: Any,
    right: "Right | None",
) -> None:
    import openvino

    core = runtimes.openvino_core()
    model = core.read_model(network)
    if record.precision == "int8":
        model = quantise.quantise_openvino(model, calibration, right)
    if record.preprocessing_inside:
        first = core.read_model(before)
        prepared = first.get_results()[0].input_value(0)
        (images,) = model.get_parameters()
        for target in images.output(0).get_target_inputs():
            target.replace_source_output(prepared)
        model.remove_parameter(images)
        model.add_parameters(first.get_parameters())
        model.validate_nodes_and_infer_types()
    for name, text in {**record.to_strings(), BIN_HASH: _TO_COME}.items():
        model.set_rt_info(text, [OPENVINO_SECTION, name])
    try:
        openvino.save_model(model, path, compress_to_fp16=record.precision == "fp16")
    except RuntimeError as error:  # a full disk, say
        raise CvtError(f"OpenVINO cannot write `{path}`: {error}") from error
    sha256 = files.content_hash(path.with_suffix(".bin"))
    path.write_bytes(path.read_bytes().replace(_TO_COME.encode(), sha256.encode()))


def _write_pt2(model: CvT, record: Record, path: Path) -> None:
    module: nn.Module = _WithFeatures(inference_form(model), _DTYPES[record.precision])
    height, width = record.preprocessing.size
    if record.preprocessing_inside:
        module = nn.Sequential(InsidePreprocessing(record.preprocessing), module)
        example = torch.zeros(2, *_EXAMPLE_SIZE, 3, dtype=torch.uint8)
        free = _ANY_PIXELS
    else:
        size = _EXAMPLE_SIZE if record.dynamic_size else (height, width)
        example = torch.zeros(2, 3, *size)
        free = {0: "batch", 2: "height", 3: "width"} if record.dynamic_size else {0: "batch"}
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            module.eval(),
            (example,),
            dynamic_shapes=(_dimensions(example, free, model.config.smallest_traced),),
        )
        # Not needed to run it, and the only part of the file that would be pickled.
        program.example_inputs = None
        texts = json.dumps(record.to_strings())
        # Not to the file itself: on a full disk torch's writer ends the process (SIGABRT).
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={PT2_FILE: texts})
    with path.open("wb") as file:
        file.write(content.getbuffer())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' own remarks, of deprecations and the like, from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
