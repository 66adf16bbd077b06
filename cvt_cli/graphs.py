"""The inference form as an ONNX graph; the one place that exports."""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from cvt_cli import cache, runtimes
from cvt_cli.errors import UsageError
from cvt_cli.inference_form import InferenceCvT, inference_form
from cvt_cli.model import CvT

OPSET = 18
"""Of ONNX; what the exporter writes without converting."""


class _WithFeatures(nn.Module):
    def __init__(self, form: InferenceCvT) -> None:
        super().__init__()
        self.form = form

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.form.features(images)
        return self.form.head(features), features


def write_onnx(
    model: CvT, path: Path, height: int, width: int, metadata: Mapping[str, str]
) -> None:
    """Write a network as a float32 ONNX file: `images` (B, 3, H, W) to `logits` (B, classes).

    A second output, `features` (B, C), is what the head reads.

    Args:
        model: in its training form, on the CPU.
        path: of the file, which is written whole or not at all.
        height: of the images in pixels; fixed, as is the width. The batch is free.
        width: see above.
        metadata: kept inside the file, by name.

    Raises:
        UsageError: what writes ONNX is not installed.
        CvtError: the folder cannot be written to.
    """
    if not runtimes.can_prepare():
        raise UsageError(
            "torch writes no ONNX without the packages `onnx` and `onnxscript`",
            hint="pip install 'cvt-cli[onnxruntime]'",
        )
    form = _WithFeatures(inference_form(model))
    example = torch.zeros(2, 3, height, width)
    with warnings.catch_warnings():  # the exporter's own deprecations
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            form,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["images"],
            output_names=["logits", "features"],
            opset_version=OPSET,
            verbose=False,
        )
    program.model.metadata_props.update(metadata)
    with cache.replacing(path) as temporary:
        program.save(temporary)
