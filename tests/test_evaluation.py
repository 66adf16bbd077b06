"""Counts are integer sums, and do not depend on how the images are batched."""

import numpy as np
import pytest

from cvt_cli.evaluation import Evaluation


def test_top1_and_top5_are_counted_with_ties_to_the_lower_index() -> None:
    logits = np.zeros((3, 7), dtype=np.float32)
    logits[0, 6] = 1.0  # class 6, then 0 to 3
    result = Evaluation()

    result.add(logits, np.array([6, 4, 0]))

    assert (result.n, result.correct_top1, result.correct_top5) == (3, 2, 3)
    result.add(logits[:1], np.array([5]))
    assert (result.n, result.correct_top1, result.correct_top5) == (4, 2, 3)
    assert result.top1 == 0.5


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_sums_do_not_depend_on_the_batch_size(batch_size: int) -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(100, 10)).astype(np.float32)
    labels = generator.integers(0, 10, 100)
    result = Evaluation()

    for start in range(0, 100, batch_size):
        result.add(logits[start : start + batch_size], labels[start : start + batch_size])

    order = logits.argsort(axis=1)[:, ::-1]
    assert result.correct_top1 == (order[:, 0] == labels).sum()
    assert result.correct_top5 == (order[:, :5] == labels[:, None]).sum()
    probabilities = np.exp(logits.astype(float))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert result.loss == pytest.approx(-np.log(probabilities[range(100), labels]).mean())


def test_the_interval_is_wilsons() -> None:
    # Newcombe 1998, table I: 81 of 263, score method: 0.2553 to 0.3662
    low, high = Evaluation(n=263, correct_top1=81).top1_interval

    assert (low, high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))


def test_a_model_with_fewer_than_five_classes_has_a_top5_of_one() -> None:
    result = Evaluation()

    result.add(np.zeros((2, 3), dtype=np.float32), np.array([2, 1]))

    assert result.top5 == 1.0
