"""An engine whose device computes apart gives the answers of one that is waited for."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cvt_cli.base.errors import CheckpointError, ImageError
from cvt_cli.base.package import DATA
from cvt_cli.datasets import layouts
from cvt_cli.engines.parts import Part
from cvt_cli.engines.protocol import Apart, Engine, with_begun
from cvt_cli.evaluation import run_models
from cvt_cli.images import transform
from cvt_cli.model import weights
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.inference import InferenceCvT
from cvt_cli.prediction.classify import Wishes, classify
from small_sets import class_folders

NANO = weights.load(DATA / "cvt-nano-cifar10")
CPU = torch.device("cpu")


class Beside(TorchEngine):
    """Computes in a thread of its own, from bytes, as a CUDA device does."""

    takes_crops = True

    def __init__(self, broken: bool = False) -> None:
        super().__init__(NANO.model, CPU, "fp32")
        self.pool, self.broken = ThreadPoolExecutor(1), broken
        self.under_way = self.most = 0
        self.busy_sec = 0.0

    def begin(self, arrays: list[Any], features: bool = False) -> Callable[[], Any]:
        assert {array.dtype for array in arrays} == {np.dtype(np.uint8)}
        ready = [transform.normalise(Image.fromarray(a), NANO.preprocessing) for a in arrays]
        compute = self.features if features else self.__call__
        future = self.pool.submit(compute, np.stack(ready))
        self.under_way += 1
        self.most = max(self.most, self.under_way)

        def finish() -> Any:
            self.under_way -= 1
            self.busy_sec += 0.5
            return future.result() * (np.nan if self.broken else 1)

        return finish


class Noise:
    """A picture that has not been read; every third one cannot be."""

    def __init__(self, number: int) -> None:
        self.name, self.number = str(number), number

    def load(self, *_: Any) -> Image.Image:
        if self.number % 3 == 2:
            raise ImageError("it is torn")
        pixels = np.random.default_rng(self.number).integers(0, 256, (40, 48, 3), np.uint8)
        return Image.fromarray(pixels)


def answers(engine: Engine, count: int, features: bool = False) -> list[Any]:
    pictures = map(Noise, range(count))
    wishes = Wishes(features=features)
    return list(classify(engine, pictures, NANO.preprocessing, NANO.labels, wishes, batch_size=4))


@pytest.mark.parametrize("count", [0, 1, 4, 23])
def test_answers_are_the_same_and_in_order(count: int) -> None:
    beside = Beside()
    assert isinstance(beside, Apart) and not isinstance(TorchEngine, Apart)

    found = answers(beside, count)

    assert found == answers(TorchEngine(NANO.model, CPU, "fp32"), count)
    assert beside.under_way == 0 and beside.most <= 2
    assert beside.most == 2 or count <= 4


def test_a_network_on_the_cpu_computes_a_batch_in_parts() -> None:
    pictures = torch.randn(7, 3, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    sizes = []

    def seen(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, InferenceCvT):
            sizes.append(len(inputs[0]))

    engine = TorchEngine(NANO.model, CPU, "fp32", part=Part(3, fixed=True))
    with torch.nn.modules.module.register_module_forward_pre_hook(seen):
        found = engine(pictures)

    assert sizes == [3, 3, 1]  # nothing is filled up
    assert np.abs(found - TorchEngine(NANO.model, CPU, "fp32")(pictures)).max() < 1e-5


def test_features_are_the_same() -> None:
    found = answers(Beside(), 9, features=True)
    wanted = answers(TorchEngine(NANO.model, CPU, "fp32"), 9, features=True)

    for one, other in zip(found, wanted, strict=True):
        assert (one.error == other.error) and np.array_equal(one.features, other.features)


def test_an_evaluation_counts_the_same_beside_another_model(tmp_path: Path) -> None:
    names = dict.fromkeys(NANO.labels.names, 5)
    class_folders(tmp_path, names)
    (tmp_path / "cat" / "002.png").write_bytes(b"no picture")
    data = layouts.open_dataset(str(tmp_path), "test", Path())

    def judged(*engines: Engine) -> list[Any]:
        places = np.arange(len(data.classes))
        subjects = [
            run_models.subject(e, NANO.preprocessing, NANO.labels, places, data) for e in engines
        ]
        run_models.judge(subjects, data, batch_size=8)
        return [one.result for one in subjects]

    waited = TorchEngine(NANO.model, CPU, "fp32")
    (wanted,) = judged(waited)
    for found in judged(Beside(), waited):
        for name in ("n", "correct_top1", "correct_topk", "loss_sum", "failures", "mistakes"):
            assert getattr(found, name) == getattr(wanted, name)
        assert found.model_sec > 0
    assert judged(Beside())[0].model_sec == 0.5 * 7  # as its device says


def test_answers_that_are_no_numbers_are_refused_a_batch_later_too() -> None:
    with pytest.raises(CheckpointError, match="not finite"):
        answers(Beside(broken=True), 9)


def test_the_next_is_begun_before_the_results_of_this_one_are_given() -> None:
    told: list[str] = []

    for number, _ in with_begun(range(3), lambda n: told.append(f"begin {n}"), apart=True):
        told.append(f"finish {number}")

    assert told == ["begin 0", "begin 1", "finish 0", "begin 2", "finish 1", "finish 2"]
