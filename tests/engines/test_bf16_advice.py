"""What a long job is told of bfloat16, on processors that are made for it."""

import dataclasses
import math

import numpy as np
import pytest

from cvt_cli import loading
from cvt_cli.base import machine
from cvt_cli.base.progress import silent
from cvt_cli.checkpoints import locate
from cvt_cli.checkpoints.locate import Access
from cvt_cli.engines import bf16_advice
from cvt_cli.engines.bf16_advice import Measured
from cvt_cli.spec import published
from cvt_cli.spec.labels import Labels


@pytest.mark.parametrize(
    ("features", "made_for_it"),
    [
        ("x86_64 amx_bf16 amx_tile avx2 avx512f", True),
        ("x86_64 avx2 avx512_bf16", True),
        ("aarch64 asimd bf16 sve", True),
        ("x86_64 avx avx2 avx512f fma", False),
        ("x86_64 not_bf16", False),
        ("arm64 arm", False),
    ],
)
def test_a_processor_is_made_for_bf16_by_its_instructions(features: str, made_for_it: bool) -> None:
    assert bf16_advice.made_for_bf16(features) == made_for_it


def test_the_sentence_says_what_was_measured_and_nothing_where_little_is_saved() -> None:
    assert bf16_advice.sentence(Measured(0.05, 0.02, 10, 0.0123, 9), 50_000) == (
        "--precision bf16 would take about 16:40 here instead of 41:40; on 10 images "
        "probabilities differ by up to 0.012, and 9 of 10 answers are the same"
    )
    assert bf16_advice.sentence(Measured(0.05, 0.045, 10, 0.01, 10), 50_000) is None


@pytest.mark.parametrize(
    ("features", "images", "precision", "told"),
    [
        ("x86_64 amx_bf16", 10**7, "auto", True),
        ("x86_64 avx2", 10**7, "auto", False),
        ("x86_64 amx_bf16", 1000, "auto", False),
        ("x86_64 amx_bf16", 10**7, "fp32", False),  # who asks for it knows
    ],
)
def test_a_long_job_is_told_once_from_a_measurement_of_both(
    monkeypatch: pytest.MonkeyPatch, features: str, images: int, precision: str, told: bool
) -> None:
    """bf16 runs on any processor with torch, if slowly: what it measures here is true, and said
    whatever it saves."""
    monkeypatch.setattr(machine, "processor", lambda: features)
    monkeypatch.setattr(bf16_advice, "WORTH_TELLING", 0.0)
    said: list[str] = []

    ready = loading.load_classifier(
        *("cvt-nano-cifar10", None, None, "cpu", precision, Access(said.append, silent)),
        engine="torch", images=images, together=16,
    )  # fmt: skip

    assert ready.engine.precision == "fp32"
    lines = [line for line in said if line.startswith("--precision bf16 would take about ")]
    assert len(lines) == told
    assert all("of 10 answers are the same" in line for line in lines)


class Recorded:
    """An engine that keeps how many images it was called with, and says the same logits shifted."""

    name, device, precision = "openvino", "cpu", "fp32"
    hardware, transfer_sec, takes_pixels, takes_crops = "", 0.0, False, False
    floats = None

    def __init__(self, shift: float) -> None:
        self.shift, self.calls = shift, set[int]()

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        self.calls.add(len(batch))
        return np.tile(np.array([[3.0, 1.0 + self.shift]], np.float32), (len(batch), 1))

    features = __call__


def test_both_are_measured_in_whole_calls_and_by_what_the_model_answers_with() -> None:
    described = locate.embedded(published.CHECKPOINTS["cvt-nano-cifar10"]).described()
    several = dataclasses.replace(
        described, labels=Labels(("a", "b"), thresholds=(0.5, 1 / (1 + math.exp(-1.05))))
    )
    engines = Recorded(0.0), Recorded(0.1)

    of_one = bf16_advice.measured(*engines, described, 1)
    of_several = bf16_advice.measured(*engines, several, 64)

    assert engines[0].calls == engines[1].calls == {10, 64}
    assert (of_one.images, of_one.same, of_several.images, of_several.same) == (10, 10, 10, 0)
    difference = 1 / (1 + math.exp(-1.1)) - 1 / (1 + math.exp(-1))
    assert of_several.largest_difference == pytest.approx(difference, abs=1e-6)
