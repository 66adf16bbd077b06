"""Weights and activations in 8-bit integers, with ranges measured on images.

The linear layers, where most of the work is, and for OpenVINO the convolutions of the embeddings:
depthwise convolutions and products of two activations are no faster in 8 bits, and less exact.
"""

import errno
import importlib
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base.aside import aside
from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.base.package import installing
from cvt_cli.engines import runtimes
from cvt_cli.engines.runtimes import FloatPrecision
from cvt_cli.spec.formats import Runtime

Images = Iterable[NDArray[np.float32]]

Compute = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Images (1, 3, H, W) to logits (1, classes)."""


@dataclass(frozen=True)
class Right:
    """How often a graph is right on images: by their labels, or by what it said in float32."""

    images: Images
    labels: list[int] | None  # None where the images have no labels
    most_lost: float  # share of the images

    def share(self, compute: Compute, meant: list[int]) -> float:
        """Of the images whose likeliest class is the one that is meant."""
        found = [int(compute(image).argmax()) for image in self.images]
        return sum(a == b for a, b in zip(found, meant, strict=True)) / len(meant)

    def meant(self, in_float: Compute) -> list[int]:
        """The right class of every image."""
        return self.labels or [int(in_float(image).argmax()) for image in self.images]


def require(runtime: Runtime) -> None:
    """Raises UsageError, with the command that installs it, if what quantises for it is missing."""
    if runtime == "openvino" and not runtimes.installed("nncf"):
        raise UsageError("int8 needs `nncf`, which is not installed", hint=installing("nncf"))
    if not runtimes.can_prepare():
        raise UsageError("int8 needs `onnx`, which is not installed", hint=installing(runtime))


def quantise_onnx(path: Path, images: Images) -> None:
    """Quantise an ONNX network in place: static, QDQ, a scale for each channel of the weights.

    Args:
        path: of the file, in float32.
        images: float32 (1, 3, H, W), normalised.

    Raises:
        OSError: the disk is full.
    """
    import onnxruntime
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.left, None)
            return None if image is None else {"images": image}

    # Not by `quant_pre_process`, which goes on with another graph where the disk is full.
    ready = path.with_name("quantising.onnx")
    optimising = onnxruntime.SessionOptions()
    optimising.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    optimising.optimized_model_filepath = str(ready)
    with _quiet(), _full_disk_told(path), _temporary_in(path.parent):
        onnxruntime.InferenceSession(str(path), optimising, providers=["CPUExecutionProvider"])
        quantization.quantize_static(
            str(ready),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            reduce_range=True,  # 7 bits, as in `quantise_openvino`
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    ready.unlink()


@contextmanager
def _temporary_in(folder: Path) -> Iterator[None]:
    """Have ONNX Runtime's quantiser put its graphs there: where others' temporary files go may be
    small. Only what the quantiser sees changes, not what other threads do."""
    module: Any = importlib.import_module("onnxruntime.quantization.quantize")
    there = partial(tempfile.TemporaryDirectory, dir=folder)
    module.tempfile = SimpleNamespace(**{**vars(tempfile), "TemporaryDirectory": there})
    try:
        yield
    finally:
        module.tempfile = tempfile


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    """Raises OSError for whatever a quantiser raises where the disk has no room for its graphs: two
    at a time beside this file, each about as large."""
    size = path.stat().st_size
    try:
        yield
    except OSError:
        raise
    except Exception:
        if shutil.disk_usage(path.parent).free < 3 * size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        raise


def quantise_openvino(model: Any, images: Images, right: Right | None = None) -> Any:
    """Quantise an OpenVINO model by NNCF, which knows transformers' layers.

    Weights take 7 of the 8 bits: a processor without VNNI or AMX adds two products of an activation
    and a weight in 16 bits, which 8 bits overflow, unnoticed. Ranges hold all values of all images:
    with NNCF's own, means over images, answers differ twice as much from float32's.

    Args:
        model: made with its linear layers as convolutions; it is changed.
        images: float32 (1, 3, H, W), normalised.
        right: how often it must be right; layers stay in floats for it.

    Raises:
        CvtError: it is not right often enough, whatever layers stay in floats.
    """
    # NNCF has several of OpenVINO's cores at once: see `runtimes.openvino_core`.
    return aside(lambda: _quantised(model, images, right))


def _quantised(model: Any, images: Images, right: Right | None) -> Any:
    with _quiet(), redirect_stdout(sys.stderr):  # where NNCF's own progress belongs
        with _some_home():
            import nncf
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet

        nncf.set_log_level(logging.ERROR)
        every = list(images)
        how = {
            "subset_size": len(every),
            "model_type": nncf.ModelType.TRANSFORMER,
            "ignored_scope": nncf.IgnoredScope(names=_better_in_float(model)),
        }
        exact = nncf.AdvancedQuantizationParameters(
            overflow_fix=nncf.OverflowFix.ENABLE,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        )
        if right is not None:
            how["advanced_quantization_parameters"] = exact
            return _held(model, every, right, how)
        made = nncf.quantize(model, nncf.Dataset(every), advanced_parameters=exact, **how)
        return _rounded_late(made)


def _better_in_float(model: Any) -> list[str]:
    """The products of two activations, whose softmax is fused with them, and what is depthwise."""
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "GroupConvolution"
        or (
            node.get_type_name() == "MatMul"
            and node.input_value(1).get_node().get_type_name() != "Constant"
        )
    ]


def _rounded_late(model: Any) -> Any:
    """Round what depthwise convolutions give behind the layout's changes that follow, not before.

    Before, OpenVINO makes the rounding a part of the convolution, which gives floats all the same,
    and then copies them to integers slowly.
    """
    for rounding in model.get_ordered_ops():
        if rounding.get_type_name() != "FakeQuantize":
            continue
        given = rounding.input_value(0)
        makers = [given.get_node()]
        if makers[0].get_type_name() == "Add":  # of the bias
            makers = [value.get_source_output().get_node() for value in makers[0].inputs()]
        if all(node.get_type_name() != "GroupConvolution" for node in makers):
            continue
        users = rounding.output(0).get_target_inputs()
        last = rounding.output(0)
        while len(after := last.get_target_inputs()) == 1:
            (user,) = after
            if user.get_node().get_type_name() not in ("Transpose", "Reshape", "Unsqueeze"):
                break
            last = user.get_node().output(0)
        if last != rounding.output(0):
            for user in users:
                user.replace_source_output(given)
            rounding.input(0).replace_source_output(last)
            for user in after:
                user.replace_source_output(rounding.output(0))
    model.validate_nodes_and_infer_types()
    return model


def _held(model: Any, every: list[NDArray[np.float32]], right: Right, how: dict[str, Any]) -> Any:
    """Quantise an OpenVINO model by NNCF; layers go back to floats until it is right often enough.

    NNCF judges it with what is left in floats in float32. Where that runs in bfloat16, a model that
    it finds just good enough may not be; then one is asked for that loses nothing in NNCF's eyes.

    Raises:
        CvtError: even so it is not.
    """
    import nncf

    def computing(model: Any, floats: FloatPrecision) -> Compute:
        hint = {"INFERENCE_PRECISION_HINT": runtimes.HINT_OF[floats]}
        compiled = runtimes.compiled_for_cpu(model, hint)
        return lambda image: compiled(image)["logits"]

    in_float = computing(model, "fp32")
    meant = right.meant(in_float)
    before = right.share(in_float, meant)

    def judged(compiled: Any, given: Iterable[Any]) -> tuple[float, list[float]]:
        hits = [float(compiled(image)["logits"].argmax() == label) for image, label in given]
        return sum(hits) / len(hits), hits

    floats = runtimes.floats_in("int8")
    for lost_in_float32 in (right.most_lost,) if floats == "fp32" else (right.most_lost, 0.0):
        found = nncf.quantize_with_accuracy_control(
            model,
            nncf.Dataset(every),
            nncf.Dataset(list(zip(every, meant, strict=True)), lambda one: one),
            validation_fn=judged,
            max_drop=lost_in_float32,
            **how,
        )
        found = _rounded_late(found)
        after = right.share(computing(found, floats), meant)
        if before - after <= right.most_lost + 1e-9:
            return found
    raise CvtError(
        f"in int8 it is right on {100 * after:.2f} % of the calibration images, in fp32 on "
        f"{100 * before:.2f} %: more is lost than --max-drop {100 * right.most_lost:g}",
        hint="calibrate on more images like those in use (--calibration FOLDER), allow more, "
        "or use --precision fp32",
    )


@contextmanager
def _some_home() -> Iterator[None]:
    """NNCF asks for the user's home when it is imported; nothing there is used here."""
    unknown = os.path.expanduser("~") == "~"  # as in a container, of a user without a name
    if unknown:
        os.environ["HOME"] = os.devnull
    try:
        yield
    finally:
        if unknown:
            del os.environ["HOME"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantisers' own remarks from the user."""
    logger = logging.getLogger()
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
