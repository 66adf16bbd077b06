"""Weights and activations in 8-bit integers, with ranges measured on images.

The linear layers alone in ONNX, where most of the work is: ONNX Runtime's depthwise convolutions
are slower in 8 bits than in float32, and products of two activations lose exactness for nothing.
"""

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = Iterable[NDArray[np.float32]]


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


def quantise_openvino(model: Any, images: Images) -> Any:
    """Quantise an OpenVINO model by NNCF, which knows transformers' layers (SmoothQuant)."""
    with _quiet(), redirect_stdout(sys.stderr):  # where NNCF's own progress belongs
        import nncf

        nncf.set_log_level(logging.ERROR)
        every = list(images)
        return nncf.quantize(
            model,
            nncf.Dataset(every),
            subset_size=len(every),
            model_type=nncf.ModelType.TRANSFORMER,
        )


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
