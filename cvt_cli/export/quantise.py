"""Weights and activations in 8-bit integers, with ranges measured on images.

The linear layers alone in ONNX, where most of the work is: ONNX Runtime's depthwise convolutions
are slower in 8 bits than in float32, and products of two activations lose exactness for nothing.
"""

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cvt_cli.base.errors import CvtError

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


def quantise_onnx(path: Path, images: Images) -> None:
    """Quantise an ONNX network in place: static, QDQ, a scale for each channel of the weights.

    Args:
        path: of the file, in float32.
        images: float32 (1, 3, H, W), normalised.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            image = next(self.left, None)
            return None if image is None else {"images": image}

    ready = path.with_name("quantising.onnx")
    with _quiet():
        quant_pre_process(str(path), str(ready), skip_symbolic_shape=True)
        quantization.quantize_static(
            str(ready),
            str(path),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True},
        )
    ready.unlink()


def quantise_openvino(model: Any, images: Images, right: Right | None = None) -> Any:
    """Quantise an OpenVINO model by NNCF, which knows transformers' layers (SmoothQuant).

    Raises:
        CvtError: it is not right often enough, whatever layers stay in float32.
    """
    with _quiet(), redirect_stdout(sys.stderr):  # where NNCF's own progress belongs
        import nncf

        nncf.set_log_level(logging.ERROR)
        every = list(images)
        if right is not None:
            return _held(model, every, right)
        return nncf.quantize(
            model,
            nncf.Dataset(every),
            subset_size=len(every),
            model_type=nncf.ModelType.TRANSFORMER,
        )


def _held(model: Any, every: list[NDArray[np.float32]], right: Right) -> Any:
    """Quantise an OpenVINO model by NNCF; layers go back to float32 until it is right often enough.

    Raises:
        CvtError: even so it is not.
    """
    import nncf
    import openvino

    core = openvino.Core()

    def computing(compiled: Any) -> Compute:
        return lambda image: compiled(image)["logits"]

    in_float = computing(core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}))
    meant = right.meant(in_float)
    before = right.share(in_float, meant)

    def judged(compiled: Any, given: Iterable[Any]) -> tuple[float, list[float]]:
        hits = [float(compiled(image)["logits"].argmax() == label) for image, label in given]
        return sum(hits) / len(hits), hits

    found = nncf.quantize_with_accuracy_control(
        model,
        nncf.Dataset(every),
        nncf.Dataset(list(zip(every, meant, strict=True)), lambda one: one),
        validation_fn=judged,
        max_drop=right.most_lost,
        subset_size=len(every),
        model_type=nncf.ModelType.TRANSFORMER,
    )
    after = right.share(computing(core.compile_model(found, "CPU")), meant)
    if before - after > right.most_lost + 1e-9:
        raise CvtError(
            f"in int8 it is right on {100 * after:.2f} % of the calibration images, in fp32 on "
            f"{100 * before:.2f} %: more is lost than --max-drop {100 * right.most_lost:g}",
            hint="calibrate on more images like those in use (--calibration FOLDER), allow more, "
            "or use --precision fp32",
        )
    return found


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
