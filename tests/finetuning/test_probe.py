"""Features are computed once; the head on them is the one that independent code finds."""

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from cvt_cli.base.errors import CvtError, DataError
from cvt_cli.base.package import DATA
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.datasets.layouts import open_dataset
from cvt_cli.engines.protocol import logits_of
from cvt_cli.finetuning import probe
from cvt_cli.finetuning.probe import Solution, cached_features, solve
from cvt_cli.images.transform import preprocess
from cvt_cli.model import weights
from cvt_cli.model.engine import TorchEngine
from warm_processes import start

CPU = torch.device("cpu")
NANO = DATA / "cvt-nano-cifar10"


class Engine(TorchEngine):
    """Counts its images, and is interrupted where it is told to be."""

    def __init__(self, last: int | None = None) -> None:
        super().__init__(weights.load(NANO).model, CPU, "fp32")
        self.seen = 0
        self.last = last

    def features(self, batch: np.ndarray) -> np.ndarray:
        if self.seen == self.last:
            raise KeyboardInterrupt
        self.seen += len(batch)
        return super().features(batch)


@pytest.fixture(scope="module")
def digits(signdigits: Path) -> SimpleNamespace:
    """Every fifth image of sign-language digits to train on, and of the others 200 to validate."""
    data = open_dataset(str(signdigits), "train", signdigits)
    training = data.subset(np.arange(0, len(data), 5))
    validation = data.subset(np.arange(1, len(data), 8))
    return SimpleNamespace(training=training, validation=validation)


@pytest.fixture(scope="module")
def found(digits: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Their features by nano, and labels."""
    folder = tmp_path_factory.mktemp("features")
    x, y = computed(Engine(), digits.training, folder / "training")
    val_x, val_y = computed(Engine(), digits.validation, folder / "validation")
    return SimpleNamespace(x=x, y=y, val_x=val_x, val_y=val_y)


def computed(
    engine: TorchEngine, data: LabelledImages, path: Path, key: str = "nano", **settings: object
) -> tuple[np.ndarray, np.ndarray]:
    preprocessing = weights.load(NANO).preprocessing
    return cached_features(
        engine, data, preprocessing, path, key, **{"batch_size": 32, "workers": 2, **settings}
    )


# --- features


def test_features_are_what_the_head_reads_of_each_image(
    digits: SimpleNamespace, found: SimpleNamespace
) -> None:
    loaded = weights.load(NANO)
    head = loaded.model.head
    arrays = [
        preprocess(digits.training.load(index, exif=False), loaded.preprocessing)
        for index in range(8)
    ]

    logits = found.x[:8] @ head.weight.detach().numpy().T + head.bias.detach().numpy()

    assert found.x.shape == (331, 160) and found.x.dtype == np.float32
    assert found.y.tolist() == digits.training.labels.tolist()
    np.testing.assert_allclose(logits, logits_of(Engine(), arrays), atol=1e-4)


def test_features_are_computed_once(digits: SimpleNamespace, tmp_path: Path) -> None:
    first, second = Engine(), Engine()

    before, _ = computed(first, digits.training, tmp_path / "run" / "features")
    after, labels = computed(second, digits.training, tmp_path / "run" / "features")

    assert (first.seen, second.seen) == (len(digits.training), 0)
    assert np.array_equal(before, after)
    assert labels is digits.training.labels
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["features"]


def test_an_interrupted_computation_goes_on_where_it_was(
    digits: SimpleNamespace, found: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        computed(Engine(last=96), digits.training, path)
    rest = Engine()

    features, _ = computed(rest, digits.training, path)

    assert rest.seen == len(digits.training) - 96
    assert np.array_equal(features, found.x)


KILLED = """
import sys, time
from pathlib import Path
import torch
from cvt_cli.base.package import DATA
from cvt_cli.datasets.layouts import open_dataset
from cvt_cli.finetuning import probe
from cvt_cli.model import weights
from cvt_cli.model.engine import TorchEngine

class Slow(TorchEngine):
    seen = 0

    def features(self, batch):
        if self.seen >= 128:
            time.sleep(60)
        self.seen += len(batch)
        return super().features(batch)

probe.SAVED_EVERY = 64
loaded = weights.load(DATA / "cvt-nano-cifar10")
probe.cached_features(
    Slow(loaded.model, torch.device("cpu"), "fp32"),
    open_dataset(sys.argv[1], "train", Path()), loaded.preprocessing, Path(sys.argv[2]),
    "nano", batch_size=32, workers=2,
)
"""


def test_what_was_written_survives_a_kill(signdigits: Path, tmp_path: Path) -> None:
    path = tmp_path / "features"
    process = start(None, signdigits, path, code=KILLED, environment=dict(os.environ))
    data = open_dataset(str(signdigits), "train", signdigits).subset(np.arange(200))
    deadline = time.monotonic() + 200
    while (stored := probe._stored(path, "nano")) is None or len(stored) < 128:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    process.communicate()
    rest = Engine()

    features, _ = computed(rest, data, path)

    assert rest.seen == 200 - 128
    assert np.array_equal(features, computed(Engine(), data, tmp_path / "anew")[0])


def test_features_under_another_key_are_computed_anew(
    digits: SimpleNamespace, tmp_path: Path
) -> None:
    data = digits.training.subset(np.arange(40))
    computed(Engine(), data, tmp_path / "features")
    other = Engine()

    computed(other, data, tmp_path / "features", key="another model")

    assert other.seen == 40
    assert probe._stored(tmp_path / "features", "nano") is None


@pytest.mark.parametrize("keep", [0, 5, 100, 10_000])
def test_a_damaged_file_is_computed_anew(
    digits: SimpleNamespace, found: SimpleNamespace, tmp_path: Path, keep: int
) -> None:
    path = tmp_path / "features"
    data = digits.training.subset(np.arange(64))
    computed(Engine(), data, path)
    path.write_bytes(path.read_bytes()[:keep])
    engine = Engine()

    features, _ = computed(engine, data, path)

    assert engine.seen == 64
    assert np.array_equal(features, found.x[:64])


def test_an_unreadable_image_is_named_and_what_came_before_it_is_kept(tmp_path: Path) -> None:
    for number in range(6):
        place = tmp_path / "data" / "cat" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(place)
    broken = tmp_path / "data" / "cat" / "4.png"
    content = broken.read_bytes()
    broken.write_bytes(b"<html>")
    data = open_dataset(str(tmp_path / "data"), "train", tmp_path)

    with pytest.raises(DataError) as caught:
        computed(Engine(), data, tmp_path / "features", batch_size=2)

    reason = "not an image, or of a type that Pillow cannot read"
    assert str(caught.value) == f"cannot train on `{broken}`: {reason}"
    assert caught.value.hint == "replace the file, and continue with --resume"  # of none read
    broken.write_bytes(content)
    rest = Engine()
    computed(rest, data, tmp_path / "features", batch_size=2)
    assert rest.seen == 2


def test_a_place_that_cannot_be_written_is_said(digits: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = digits.training.subset(np.arange(4))

    with pytest.raises(CvtError, match="cannot write `.*features`"):
        computed(Engine(), data, tmp_path / "file" / "features")


# --- the head


def solved(found: SimpleNamespace, **settings: object) -> Solution:
    return solve(found.x, found.y, found.val_x, found.val_y, 10, **settings)


@pytest.fixture(scope="module")
def solution(found: SimpleNamespace) -> Solution:
    """With the penalty that is best on the validation images."""
    return solved(found)


def reference(
    x: np.ndarray, y: np.ndarray, penalty: float, class_weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The weight and bias that scikit-learn finds, on features that are not standardised."""
    scaler = StandardScaler().fit(x.astype(np.float64))
    of_images = np.ones(len(y)) if class_weights is None else class_weights[y]
    # With two classes it has one row of weights w for our w/2 and -w/2, so half our penalty.
    half = 0.5 if len(set(y)) == 2 else 1
    model = LogisticRegression(
        C=1 / (half * penalty * of_images.sum()), tol=1e-7, solver="newton-cholesky"
    ).fit(scaler.transform(x), y, sample_weight=of_images)
    weight, bias = model.coef_, model.intercept_
    if half == 0.5:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def only(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PENALTIES", (penalty,))


def assert_same_head(
    solution: Solution, wanted: tuple[np.ndarray, np.ndarray], x: np.ndarray
) -> None:
    """To five digits of the largest weight, and as many of the logits."""
    weight, bias = wanted
    assert solution.weight.dtype == solution.bias.dtype == np.float32
    np.testing.assert_allclose(solution.weight, weight, atol=1e-5 * abs(weight).max())
    logits = x.astype(np.float64) @ solution.weight.T + solution.bias
    expected = x @ weight.T + bias
    # Logits are told apart by their differences.
    logits -= logits.mean(axis=1, keepdims=True)
    expected -= expected.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * max(1, abs(expected).max()))


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "class weights"])
def test_the_head_is_scikit_learns(
    found: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, penalty: float, weighted: bool
) -> None:
    class_weights = np.linspace(0.2, 3, 10) if weighted else None
    only(penalty, monkeypatch)

    solution = solved(found, class_weights=class_weights)

    assert solution.penalty == penalty
    assert_same_head(solution, reference(found.x, found.y, penalty, class_weights), found.val_x)


def test_a_weak_penalty_is_solved_to_convergence(
    found: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(1e-6, monkeypatch)  # where scikit-learn's own answer has two digits

    solution = solved(found)

    x = StandardScaler().fit_transform(found.x.astype(np.float64))
    weight = solution.weight * found.x.std(axis=0, dtype=np.float64)
    bias = solution.bias + solution.weight.astype(np.float64) @ found.x.mean(0, dtype=np.float64)
    probabilities = scipy.special.softmax(x @ weight.T + bias, axis=1)
    slopes = (probabilities - np.eye(10)[found.y]) / len(x)
    assert abs(slopes.T @ x + 1e-6 * weight).max() < 1e-8
    assert abs(slopes.sum(axis=0)).max() < 1e-8


def test_a_head_found_from_stronger_penalties_is_the_same(
    found: SimpleNamespace, solution: Solution
) -> None:
    assert len(solution.rows) > 3
    assert_same_head(solution, reference(found.x, found.y, solution.penalty), found.val_x)


def test_the_penalty_is_the_best_on_the_validation_images(
    found: SimpleNamespace, solution: Solution
) -> None:
    best = max(solution.rows, key=lambda row: (row.val_top1, -row.val_loss))
    assert solution.penalty == best.penalty
    assert solution.val_correct == round(best.val_top1 * len(found.val_y))
    penalties = [row.penalty for row in solution.rows]
    assert penalties == list(probe.PENALTIES[: len(penalties)])
    losses = [row.train_loss for row in solution.rows]
    assert losses == sorted(losses, reverse=True)
    assert all(0 < loss < np.log(10) for loss in losses)  # better than a guess, from the first on
    assert penalties.index(solution.penalty) + probe.PATIENCE == len(penalties) - 1
    assert solution.val_correct > 0.7 * len(found.val_y)  # a tenth by chance


def test_its_figures_are_those_of_the_model_with_this_head(
    digits: SimpleNamespace, solution: Solution
) -> None:
    loaded = weights.load(NANO)
    model = weights.replace_head(loaded.model, 10, seed=0)
    with torch.no_grad():
        model.head.weight.copy_(torch.from_numpy(solution.weight))
        model.head.bias.copy_(torch.from_numpy(solution.bias))
    data = digits.validation
    arrays = [preprocess(data.load(i, exif=False), loaded.preprocessing) for i in range(len(data))]

    logits = torch.from_numpy(logits_of(TorchEngine(model, CPU, "fp32"), arrays))

    assert int((logits.argmax(1).numpy() == data.labels).sum()) == solution.val_correct
    row = next(row for row in solution.rows if row.penalty == solution.penalty)
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.labels))
    assert row.val_loss == pytest.approx(float(loss), abs=1e-4)


def test_the_same_features_give_the_same_bits(found: SimpleNamespace, solution: Solution) -> None:
    again = solved(found)

    assert np.array_equal(again.weight, solution.weight)
    assert np.array_equal(again.bias, solution.bias)
    assert again.rows == solution.rows


@pytest.mark.parametrize("kept", [0, 8 * 10 * 150], ids=["none", "one part of four"])
def test_probabilities_that_are_computed_again_give_the_same_bits(
    found: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(probe, "_ROWS", 100)
    whole = solved(found)
    monkeypatch.setattr(probe, "_KEPT_BYTES", kept)

    again = solved(found)

    assert np.array_equal(again.weight, whole.weight)
    assert np.array_equal(again.bias, whole.bias)
    assert again.rows == whole.rows


MANY_CLASSES = """
import resource
import numpy as np
from cvt_cli.finetuning import probe

probe.PENALTIES, probe._KEPT_BYTES, probe._LOGITS = (1.0,), 8_000_000, 250_000
y = np.arange(6000) % 1000
x = np.random.default_rng(0).standard_normal((6000, 8)).astype(np.float32)
probe.solve(x[:9], y[:9], x[:9], y[:9], 1000)  # what torch loads when it is first used
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
probe.solve(x, y, x[:1000], y[:1000], 1000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is counted in other units")
def test_memory_does_not_grow_with_images_times_classes() -> None:
    process = start(None, code=MANY_CLASSES, environment=dict(os.environ))

    output, errors = process.communicate(timeout=200)

    assert process.returncode == 0, errors
    assert int(output) * 1024 < 8 * 6000 * 1000  # the probabilities of all, once


def test_scale_and_offset_of_a_feature_do_not_matter(
    found: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(1e-2, monkeypatch)
    scale, offset = np.geomspace(1e-3, 1e3, 160), np.linspace(-5, 5, 160)
    # Noise, so that no feature is so nearly constant that an offset would round it away.
    noise = np.random.default_rng(0).standard_normal(160)
    varied = SimpleNamespace(
        x=found.x + np.outer(np.cos(np.arange(len(found.x))), noise).astype(np.float32),
        val_x=found.val_x + np.outer(np.cos(np.arange(len(found.val_x))), noise).astype(np.float32),
        y=found.y,
        val_y=found.val_y,
    )
    moved = SimpleNamespace(
        x=(varied.x * scale + offset * scale).astype(np.float32),
        val_x=(varied.val_x * scale + offset * scale).astype(np.float32),
        y=found.y,
        val_y=found.val_y,
    )

    plain, other = solved(varied), solved(moved)

    largest = abs(plain.weight).max()
    np.testing.assert_allclose(other.weight * scale, plain.weight, atol=1e-3 * largest)
    assert other.rows[0].val_loss == pytest.approx(plain.rows[0].val_loss, abs=1e-5)


def test_two_classes_are_solved_as_any_number(
    found: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(1e-2, monkeypatch)
    x, y = found.x[found.y < 2], found.y[found.y < 2]

    solution = solve(x, y, x, y, 2)

    assert solution.weight.shape == (2, 160)
    assert_same_head(solution, reference(x, y, 1e-2), x)


def test_a_class_with_one_image_is_solved(
    found: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(1e-2, monkeypatch)
    keep = np.flatnonzero(found.y != 7).tolist() + [int(np.flatnonzero(found.y == 7)[0])]
    x, y = found.x[keep], found.y[keep]

    solution = solve(x, y, found.val_x, found.val_y, 10)

    assert_same_head(solution, reference(x, y, 1e-2), x)


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
def test_a_constant_feature_has_no_weight(
    found: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    only(1e-3, monkeypatch)
    x, val_x = found.x.copy(), found.val_x.copy()
    x[:, 3] = value
    val_x[:, 3] = value

    solution = solve(x, found.y, val_x, found.val_y, 10)

    assert not solution.weight[:, 3].any()
    others = np.delete(np.arange(160), 3)
    without = solve(x[:, others], found.y, val_x[:, others], found.val_y, 10)
    largest = abs(without.weight).max()
    np.testing.assert_allclose(solution.weight[:, others], without.weight, atol=1e-4 * largest)
    assert solution.val_correct == without.val_correct


def test_fewer_images_than_features_are_solved(
    found: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(1e-2, monkeypatch)
    few = np.arange(0, len(found.y), 12)

    solution = solve(found.x[few], found.y[few], found.val_x, found.val_y, 10)

    assert_same_head(solution, reference(found.x[few], found.y[few], 1e-2), found.val_x)


def test_features_that_are_all_constant_leave_the_shares_of_the_classes() -> None:
    x, y = np.ones((10, 4), np.float32), np.array([0] * 7 + [1] * 2 + [2])

    solution = solve(x, y, x, y, 3)

    assert not solution.weight.any()
    shares = np.exp(solution.bias) / np.exp(solution.bias).sum()
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=1e-5)


def test_a_class_that_no_training_image_has_is_never_the_answer(found: SimpleNamespace) -> None:
    seen = found.y != 4

    solution = solve(found.x[seen], found.y[seen], found.val_x, found.val_y, 10)

    logits = found.val_x @ solution.weight.T + solution.bias
    assert np.isfinite(logits).all()
    assert 4 not in logits.argmax(axis=1)


def test_large_weights_of_small_features_go_into_the_norm_and_no_bit_changes() -> None:
    model = weights.load(DATA / "cvt-nano-cifar10").model.eval()
    small = model.norm.weight.abs() < 1e-3
    with torch.no_grad():
        model.head.weight[:, small] = torch.randn(10, int(small.sum())) * 1e5
    images = torch.randn(4, 3, 32, 32)
    before, largest = model(images), model.head.weight.abs().amax(0)

    weights.balance_head(model)

    after = model.head.weight.abs().amax(0)
    assert small.sum() > 5 and torch.equal(model(images), before)
    assert largest.max() > 65504 and after.max() < 4 * largest.median()
