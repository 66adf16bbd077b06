"""Counts are sums that do not depend on batches or processes; metrics equal independent code's."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score
from torchmetrics.classification import MulticlassCalibrationError

from cvt_cli.evaluation.annotations import real_labels
from cvt_cli.evaluation.counts import Counts
from cvt_cli.evaluation.metrics import wilson
from cvt_cli.spec.labels import Labels
from tests_shared import test_data

TEN = Labels(tuple("abcdefghij"))


def drawn(n: int = 500, classes: int = 10) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, right classes that they often name, and probabilities."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, classes, n)
    logits = generator.normal(size=(n, classes)).astype(np.float32) * 2
    logits[np.arange(n), labels] += generator.normal(2, 2, n)
    wide = np.exp(logits.astype(float))
    return logits, labels, wide / wide.sum(axis=1, keepdims=True)


def counted(batch_size: int = 500, **settings: object) -> Counts:
    logits, labels, _ = drawn()
    result = Counts(10, **settings)
    for start in range(0, 500, batch_size):
        batch = slice(start, start + batch_size)
        names = [f"{i}.png" for i in range(start, min(start + batch_size, 500))]
        groups = [f"group {label % 2}" for label in labels[batch]]
        result.add(logits[batch], labels[batch], names, groups)
    return result


def test_a_tie_goes_to_the_lower_index() -> None:
    logits = np.zeros((3, 7), dtype=np.float32)
    logits[0, 6] = 1.0  # class 6, then 0 to 3
    result = Counts(7)

    result.add(logits, np.array([6, 4, 0]))
    result.add(logits[:1], np.array([4]))  # the sixth of the first image

    assert (result.n, result.correct_top1, result.correct_topk) == (4, 2, 3)


def test_the_interval_is_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263, score method: 0.2553 to 0.3662
    low, high = wilson(81, 263)

    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_an_interval_of_none_or_all_does_not_leave_0_to_1() -> None:
    none, all_of_them = ([wilson(k * n, n) for n in range(1, 2000)] for k in (0, 1))

    assert {low for low, _ in none} == {0.0} and {high for _, high in all_of_them} == {1.0}


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_top_k_equals_scikit_learns(k: int) -> None:
    _, labels, probabilities = drawn()

    result = counted(k=k)

    wanted = top_k_accuracy_score(labels, probabilities, k=k, normalize=False)
    assert result.correct_topk == wanted


def test_loss_and_brier_equal_scikit_learns() -> None:
    _, labels, probabilities = drawn()

    calibration = counted().metrics(TEN).calibration

    assert calibration.nll == pytest.approx(log_loss(labels, probabilities), rel=1e-9)
    wanted = brier_score_loss(labels, probabilities, scale_by_half=False)
    assert calibration.brier == pytest.approx(wanted, rel=1e-9)


def test_the_calibration_error_equals_torchmetrics() -> None:
    _, labels, probabilities = drawn()
    metric = MulticlassCalibrationError(10, n_bins=15, norm="l1")

    wanted = metric(torch.from_numpy(probabilities), torch.from_numpy(labels))

    calibration = counted().metrics(TEN).calibration
    assert calibration.ece == pytest.approx(float(wanted), abs=1e-6)
    assert sum(b.n for b in calibration.bins) == 500
    filled = [b for b in calibration.bins if b.n]
    assert all(b.low <= b.confidence <= b.high for b in filled)


@pytest.mark.parametrize("scale", [0.2, 1.0, 1.9, 6.0])
def test_the_temperature_is_where_the_loss_is_least(scale: float) -> None:
    logits, labels, _ = drawn()
    logits = logits * np.float32(scale)
    parts = [Counts(10), Counts(10)]
    for part, half in zip(parts, (slice(0, 200), slice(200, 500)), strict=True):
        part.add(logits[half], labels[half])

    parts[0].add_state(json.loads(json.dumps(parts[1].state())))
    found = parts[0].metrics(TEN).calibration

    def loss(inverse: float) -> float:
        return log_loss(labels, softmax(logits.astype(float) * inverse, axis=1))

    best = minimize_scalar(loss, bounds=(1 / 16, 16), method="bounded", options={"xatol": 1e-10})
    assert found.temperature == pytest.approx(1 / best.x, rel=1e-5)
    assert found.nll_at_temperature == pytest.approx(best.fun, abs=1e-7)
    assert found.temperature_at_bound is False


@pytest.mark.parametrize(("random", "bound"), [(True, 16.0), (False, 1 / 16)])
def test_a_best_temperature_beyond_the_last_that_is_tried_is_said(random, bound: float) -> None:
    logits, labels, _ = drawn()
    result = Counts(10)
    result.add(logits, np.roll(labels, 1) if random else logits.argmax(axis=1))

    found = result.metrics(TEN).calibration

    assert (found.temperature, found.temperature_at_bound) == (bound, True)
    assert found.nll_at_temperature < found.nll


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_nothing_depends_on_the_batch_size(batch_size: int) -> None:
    ours, whole = (counted(size).metrics(TEN).to_json() for size in (batch_size, 500))

    assert json.dumps(ours["classes"]) == json.dumps(whole["classes"])
    assert ours["confusions"] == whole["confusions"] and ours["groups"] == whole["groups"]
    for key in ("top1_correct", "top5_correct"):
        assert ours[key] == whole[key]
    assert ours["loss"] == pytest.approx(whole["loss"], rel=1e-12)
    assert ours["calibration"]["ece"] == pytest.approx(whole["calibration"]["ece"], rel=1e-9)


def test_parts_add_up_to_the_whole_through_json() -> None:
    logits, labels, _ = drawn()
    parts = [Counts(10), Counts(10)]
    for rank, part in enumerate(parts):
        names = [f"{i}.png" for i in range(rank, 500, 2)]
        groups = [f"group {label % 2}" for label in labels[rank::2]]
        part.add(logits[rank::2], labels[rank::2], names, groups)
        part.add_failure(f"bad {rank}", "broken", 3)

    parts[0].add_state(json.loads(json.dumps(parts[1].state())))

    whole = counted()
    assert parts[0].n == 502 and whole.n == 500
    assert parts[0].correct_top1 == whole.correct_top1
    assert parts[0].groups == whole.groups and parts[0].confusions == whole.confusions
    assert parts[0].mistakes == whole.mistakes
    assert parts[0].failures == [("bad 0", "broken"), ("bad 1", "broken")]
    assert isinstance(parts[0].correct_top1, int) and isinstance(parts[0].loss_sum, float)


def test_among_the_classes_present_only_those_compete() -> None:
    present = np.array([2, 5])
    logits = np.array([[9, 0, 1, 0, 0, 0], [0, 0, 2, 0, 0, 1]], dtype=np.float32)
    result = Counts(6, present)

    result.add(logits, np.array([2, 5]))

    assert (result.correct_top1, result.correct_present) == (0, 1)
    assert result.metrics(Labels(tuple("abcdef"))).present_classes.rate.accuracy == 0.5


def test_the_matrix_holds_right_by_answered_class() -> None:
    logits, labels, _ = drawn()

    present, matrix = counted().matrix()

    wanted = np.zeros((10, 10), dtype=int)
    np.add.at(wanted, (labels, logits.argmax(axis=1)), 1)
    assert present.tolist() == list(range(10))
    assert (matrix == wanted).all()


def test_the_surest_mistakes_are_kept() -> None:
    logits, labels, probabilities = drawn()

    mistakes = counted(batch_size=7).mistakes

    wrong = np.flatnonzero(logits.argmax(axis=1) != labels)
    surest = sorted(wrong, key=lambda i: -probabilities[i].max())[:24]
    assert [name for _, name, _, _ in mistakes] == [f"{i}.png" for i in surest]


def test_an_unreadable_image_is_wrong_or_left_out() -> None:
    counts = []
    for skipped in (False, True):
        result = Counts(3, skipped=skipped)
        result.add(np.eye(3, dtype=np.float32), np.arange(3))
        result.add_failure("a.png", "empty file", 1)
        document = result.metrics(Labels(("a", "b", "c"))).to_json()
        counts.append((document["n"], document["top1"], document["n_failed"]))
        assert document["n_skipped"] == skipped
        assert document["loss"] is not None

    assert counts == [(4, 0.75, 1), (3, 1.0, 1)]


def test_real_counts_images_with_labels_by_any_of_them() -> None:
    names = ["ILSVRC2012_val_00000002.JPEG", "deeper/ILSVRC2012_val_00000001.JPEG"]
    content = [[], [4, 1]]
    result = Counts(5)
    real = real_labels(names, content, "real.json")

    result.add(np.eye(5, dtype=np.float32)[[1, 0]], np.array([0, 0]), real=[real[n] for n in names])

    assert (result.real_n, result.real_correct) == (1, 1)


@pytest.mark.parametrize(("skipped", "counted"), [(False, (3, 1)), (True, (1, 1))])
def test_real_counts_an_unreadable_image_as_wrong_unless_it_is_left_out(
    skipped: bool, counted: tuple[int, int]
) -> None:
    result = Counts(5, skipped=skipped)

    result.add(np.eye(5, dtype=np.float32)[[1]], np.array([0]), real=[[1]])
    for number, real in enumerate(([2], [0, 3], [])):
        result.add_failure(f"{number}.png", "damaged", 0, real=real)

    assert (result.real_n, result.real_correct) == counted


def test_real_equals_a_direct_count_over_all_its_labels() -> None:
    content = json.loads(test_data("labels/real.json").read_text())
    generator = np.random.default_rng(0)
    answers = generator.integers(0, 1000, 50_000)
    told = generator.random(50_000) < 0.7  # as often a model is right
    answers = np.where(told, [labels[0] if labels else 0 for labels in content], answers)
    names = [f"ILSVRC2012_val_{i + 1:08}.JPEG" for i in range(50_000)]
    order = generator.permutation(50_000)  # images come in any order
    result = Counts(1000)
    real = real_labels(names, content, "real.json")

    for batch in np.array_split(order, 50):
        logits = np.zeros((len(batch), 1000), np.float32)
        logits[np.arange(len(batch)), answers[batch]] = 1
        result.add(logits, answers[batch], real=[real[names[i]] for i in batch])

    labelled = [i for i in range(50_000) if content[i]]
    assert result.real_n == len(labelled) == 46_837
    assert result.real_correct == sum(answers[i] in content[i] for i in labelled)
