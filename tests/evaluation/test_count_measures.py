"""Measures against scikit-learn, and their intervals against resampling."""

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from cvt_cli.base.text import threshold
from cvt_cli.evaluation import count_measures, intervals, ranking_measures
from cvt_cli.evaluation.coverage import risk_coverage

EXACT = {"rel": 1e-12, "abs": 1e-12}


class Case:
    """Answers of 7 classes: the fifth has no image, the sixth is never answered; ties, failures."""

    def __init__(self, weighted: bool, seed: int = 0, n: int = 400) -> None:
        generator = np.random.default_rng(seed)
        self.actual = generator.choice([0, 1, 2, 3, 5, 6], n, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
        scores = generator.normal(size=(n, 7)) + 1.5 * np.eye(7)[self.actual]
        scores[:, 5] = -9
        self.scores = np.round(scores, 1).astype(np.float32)  # with ties
        self.answered = np.argmax(self.scores, axis=1)
        self.answered[generator.random(n) < 0.03] = count_measures.NO_ANSWER
        self.weights = generator.uniform(0.1, 3, n) if weighted else None
        self.present = np.unique(self.actual)


@pytest.fixture(params=[False, True], ids=["unweighted", "weighted"])
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_shares_of_classes_are_those_of_scikit_learn(case: Case) -> None:
    found = count_measures.shares(
        count_measures.margins(case.actual, case.answered, 7, case.weights)
    )

    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        case.actual,
        case.answered,
        labels=range(7),
        sample_weight=case.weights,
        zero_division=np.nan,
    )
    table = sk.multilabel_confusion_matrix(
        case.actual, case.answered, labels=range(7), sample_weight=case.weights
    )
    assert found.precision == pytest.approx(precision, nan_ok=True, **EXACT)
    assert found.recall == pytest.approx(recall, nan_ok=True, **EXACT)
    assert found.f1 == pytest.approx(f1, nan_ok=True, **EXACT)
    specificity = table[:, 0, 0] / (table[:, 0, 0] + table[:, 0, 1])
    assert found.specificity == pytest.approx(specificity, **EXACT)
    assert np.isnan(found.precision[5]) and np.isnan(found.recall[4])


def test_the_summary_is_that_of_scikit_learn(case: Case) -> None:
    of = count_measures.margins(case.actual, case.answered, 7, case.weights)

    found = count_measures.summary(of)

    truth = (case.actual, case.answered)
    wanted = {
        "accuracy": sk.accuracy_score(*truth, sample_weight=case.weights),
        "matthews": sk.matthews_corrcoef(*truth, sample_weight=case.weights),
        "kappa": sk.cohen_kappa_score(*truth, sample_weight=case.weights),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the answer "none" is no class of the data
        wanted["balanced_accuracy"] = sk.balanced_accuracy_score(*truth, sample_weight=case.weights)
    for mean in ("macro", "weighted"):
        scores = sk.precision_recall_fscore_support(
            *truth, labels=case.present, average=mean, sample_weight=case.weights, zero_division=0
        )
        names = ("precision", "recall", "f1")
        wanted |= {f"{mean}_{name}": scores[i] for i, name in enumerate(names)}
    assert {name: float(found[name]) for name in wanted} == pytest.approx(wanted, **EXACT)
    support = of.actual[case.present]
    specificity = count_measures.shares(of).specificity[case.present]
    assert found["macro_specificity"] == pytest.approx(specificity.mean(), **EXACT)
    assert found["weighted_specificity"] == pytest.approx(
        (support * specificity).sum() / support.sum(), **EXACT
    )


def test_one_class_and_one_answer_say_nothing() -> None:
    found = count_measures.summary(count_measures.margins(np.zeros(5, int), np.zeros(5, int), 3))

    assert (found["accuracy"], found["matthews"]) == (1, 0)
    assert np.isnan(found["kappa"])


def test_area_and_average_precision_are_those_of_scikit_learn(case: Case) -> None:
    found = ranking_measures.ranked_classes(
        case.scores, case.actual, np.arange(7), case.weights, threads=2
    )

    for label in range(7):
        truth = (case.actual == label, case.scores[:, label])
        if label == 4:
            assert np.isnan(found.roc_auc[4]) and np.isnan(found.average_precision[4])
            continue
        area = sk.roc_auc_score(*truth, sample_weight=case.weights)
        mean = sk.average_precision_score(*truth, sample_weight=case.weights)
        assert found.roc_auc[label] == pytest.approx(area, **EXACT)
        assert found.average_precision[label] == pytest.approx(mean, **EXACT)


def test_light_images_above_heavy_ones_are_not_lost_in_the_sums() -> None:
    generator = np.random.default_rng(3)
    scores, positive = np.linspace(0, 1, 1000), generator.random(1000) < 0.5
    weights = np.where(scores > 0.99, 1e-12, 1e12)

    found = ranking_measures.ranked(scores, positive, weights)

    assert found.average_precision == pytest.approx(
        sk.average_precision_score(positive, scores, sample_weight=weights)
    )
    assert np.isfinite(found.average_precision_by).all()


def test_several_labels_an_image_are_ranked_likewise() -> None:
    generator = np.random.default_rng(1)
    truth = (generator.random((200, 5)) < 0.3).astype(np.uint8)
    scores = np.round(generator.random((200, 5)) + 0.3 * truth, 2).astype(np.float32)

    found = ranking_measures.ranked_classes(scores, truth, np.arange(5))

    assert found.roc_auc.mean() == pytest.approx(sk.roc_auc_score(truth, scores), **EXACT)
    wanted = sk.average_precision_score(truth, scores)
    assert found.average_precision.mean() == pytest.approx(wanted, **EXACT)


@pytest.mark.parametrize("weighted", [False, True])
def test_influences_say_what_a_small_change_of_weight_does(weighted: bool) -> None:
    case = Case(weighted)
    weights = np.ones(len(case.actual)) if case.weights is None else case.weights
    found = ranking_measures.ranked_classes(case.scores, case.actual, case.present, weights)

    for image in range(0, 400, 37):
        heavier = weights.copy()
        heavier[image] *= 1 + 1e-6
        other = ranking_measures.ranked_classes(case.scores, case.actual, case.present, heavier)
        for name in ("roc_auc", "average_precision"):
            slope = (getattr(other, name).mean() - getattr(found, name).mean()) / 1e-6
            assert getattr(found, f"{name}_by")[image] == pytest.approx(slope, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_interval_by_influence_is_what_a_bootstrap_gives(grouped: bool) -> None:
    case, generator = Case(weighted=False, n=1500), np.random.default_rng(2)
    groups = np.arange(1500) // 5 if grouped else None
    count = 300 if grouped else 1500
    found = ranking_measures.ranked_classes(case.scores, case.actual, case.present)

    drawn = []
    for _ in range(200):
        times = np.bincount(generator.integers(0, count, count), minlength=count)
        weights = times[groups] if grouped else times
        kept = weights > 0
        again = ranking_measures.ranked_classes(
            case.scores[kept], case.actual[kept], case.present, weights[kept]
        )
        drawn.append([again.roc_auc.mean(), again.average_precision.mean()])
    for place, name in enumerate(("roc_auc", "average_precision")):
        by = getattr(found, f"{name}_by")
        value = getattr(found, name).mean()
        low, high = intervals.by_influence(value, by, groups)
        spread = np.std([row[place] for row in drawn])
        assert (high - low) / 2 / 1.96 == pytest.approx(spread, rel=0.2)


def test_a_bootstrap_over_images_is_that_of_scipy() -> None:
    case = Case(weighted=False)

    def kappa(actual: np.ndarray, answered: np.ndarray) -> float:
        return float(count_measures.summary(count_measures.margins(actual, answered, 7))["kappa"])

    found = intervals.bootstrap(case.actual, case.answered)

    wanted = stats.bootstrap(
        (case.actual, case.answered), kappa, paired=True, vectorized=False, n_resamples=2000,
        method="percentile", rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert found["kappa"] == pytest.approx((wanted.low, wanted.high), abs=0.01)
    again = intervals.bootstrap(case.actual, case.answered)
    assert found == again


def test_weights_of_one_and_groups_of_one_change_no_bootstrap_by_more_than_chance() -> None:
    case = Case(weighted=False)
    found = intervals.bootstrap(case.actual, case.answered)

    weighted = intervals.bootstrap(case.actual, case.answered, np.ones(400))
    grouped = intervals.bootstrap(case.actual, case.answered, groups=np.arange(400))

    for name, (low, high) in found.items():
        assert weighted[name] == pytest.approx((low, high), abs=0.015)
        assert grouped[name] == pytest.approx((low, high), abs=0.015)


def test_whole_groups_give_a_wider_interval_where_their_images_are_alike() -> None:
    right = np.random.default_rng(4).random(40) < 0.7
    actual = np.zeros(400, int)
    answered = np.where(np.repeat(right, 10), 0, 1)

    by_image = intervals.bootstrap(actual, answered)["accuracy"]
    by_group = intervals.bootstrap(actual, answered, groups=np.arange(400) // 10)["accuracy"]

    assert np.diff(by_group) > 2.5 * np.diff(by_image)  # the square root of 10, but for chance


def test_the_interval_of_a_gap_is_newcombes() -> None:
    # Newcombe 1998, table II, (a): 56/70 - 48/80, method 10.
    low, high = intervals.gap_interval((48, 80), (56, 70), 2)

    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)
    wider = intervals.gap_interval((48, 80), (56, 70), 5)
    assert wider[0] < low and wider[1] > high
    assert intervals.gap_interval((48, 80), (48, 80), 1) is None


def test_risk_falls_as_fewer_images_are_answered() -> None:
    confidence = np.array([0.9, 0.8, 0.8, 0.6, 0.5])
    right = np.array([True, True, False, True, False])

    found = risk_coverage(confidence, right, total=10, targets=(0, 0.3, 0.5))

    assert [(p.threshold, p.n, p.wrong) for p in found.points] == [
        (0.9, 1, 0), (0.8, 3, 1), (0.6, 4, 1), (0.5, 5, 2),
    ]  # fmt: skip
    assert [p.coverage for p in found.points] == [0.1, 0.3, 0.4, 0.5]
    assert found.area == pytest.approx((0 + 2 * (1 / 3) + 1 / 4 + 2 / 5) / 5)
    assert [point and point.threshold for _, point in found.at_risk] == [0.9, 0.6, 0.5]
    assert risk_coverage(confidence[:0], right[:0], total=3) is None


@pytest.mark.parametrize("seed", range(20))
def test_what_is_said_of_a_threshold_is_true_of_it_as_it_is_printed(seed: int) -> None:
    random = np.random.default_rng(seed)
    confidence = random.random(200).astype(np.float32) ** 0.25
    right = random.random(200) < confidence

    found = risk_coverage(confidence, right, total=210)

    for most, point in found.at_risk:
        if point is not None:
            answered = confidence >= float(threshold(point.threshold))
            assert (point.n, point.wrong) == (answered.sum(), (answered & ~right).sum())
            assert point.coverage == point.n / 210 and point.risk <= most


def test_of_an_overconfident_model_as_many_answers_are_told_as_can_be() -> None:
    confidence = 1 - np.linspace(1e-6, 3e-6, 200)
    right = np.arange(200) < 120  # of the first 126 one in twenty is wrong

    found = risk_coverage(confidence, right, total=200)

    _, five = found.at_risk[2]
    assert five is not None and 116 <= five.n <= 126


def test_a_curve_of_many_images_has_a_point_for_each_hundredth() -> None:
    confidence = np.random.default_rng(5).random(20_000)

    found = risk_coverage(confidence, confidence > 0.3, total=20_000)

    assert len(found.points) == 100
    assert [round(p.coverage, 2) for p in found.points] == [i / 100 for i in range(1, 101)]
