"""What was measured of a model, in lines for a person."""

from cvt_cli.base.text import WEIGHTED, counted, threshold
from cvt_cli.evaluation.calibration import Calibration
from cvt_cli.evaluation.measure_outcomes import Estimate, Measures
from cvt_cli.evaluation.metrics import Groups, Metrics
from cvt_cli.evaluation.result import Result
from cvt_cli.evaluation.several_measures import SetMetrics
from cvt_cli.spec.published import MEASURED_BY


def lines(found: Metrics | SetMetrics, result: Result | None = None) -> list[str]:
    """A line for each thing that was measured.

    Args:
        found: what was measured.
        result: that it is of, which says what is known of the model; by default nothing is.
    """
    if isinstance(found, SetMetrics):
        return _of_sets(found, result)
    n, k = found.n, found.k
    lines = [
        f"top-1   {100 * found.top1:.2f} %  ({found.top1_correct} of {n}; "
        f"95 % interval {_range(found.top1_interval)})"
    ]
    if (subset := found.present_classes) is not None:
        lines.append(
            f"top-1   {100 * (subset.rate.accuracy or 0):.2f} %  ({subset.rate.correct} of {n}; "
            f"95 % interval {_range(subset.rate.interval)}) among the "
            f"{counted(subset.n, 'class')} present"
        )
    lines += seen(result, n)
    if not found.topk_is_certain:
        lines.append(f"top-{k:<3} {100 * found.topk:.2f} %  ({found.topk_correct} of {n})")
    if (real := found.real) is not None:
        lines.append(
            f"ReaL    {100 * (real.accuracy or 0):.2f} %  ({real.correct} of "
            f"{counted(real.n, 'image')} "
            "that have labels)"
        )
    if found.loss is not None:
        lines.append(f"loss    {found.loss:.4f} nats, cross-entropy")
    if found.measures is not None:
        lines += _measures(found.measures)
    if found.calibration is not None:
        lines.append(_calibration(found.calibration))
    if found.groups is not None:
        lines += _groups(found.groups)
    if found.confusions:
        pairs = [f"{one.label} as {one.predicted} ({one.n})" for one in found.confusions[:3]]
        lines.append(f"wrong   most often {', '.join(pairs)}")
    if result is not None and (scores := result.published) is not None:
        lines.append(
            f"paper   {100 * scores.paper_top1:.1f} %, {MEASURED_BY} {100 * scores.top1:.2f} %; "
            f"{scores.verdict}"
        )
    return lines + _speed(found)


def of_unreadable(found: Metrics | SetMetrics) -> list[str]:
    """What becomes of images that could not be read; nothing where there are none."""
    if not (unreadable := len(found.failures)):
        return []
    if found.left_out:
        return [f"left out: {counted(unreadable, 'image')} that could not be read"]
    return [
        f"counted as wrong: {unreadable} of {counted(found.n, 'image')}, which could not be read"
    ]


def seen(result: Result | None, n: int) -> list[str]:
    """What the run has seen of these images."""
    if result is None:
        return []
    if result.n_trained_on:
        said = f"trained {result.n_trained_on} of these {n} images were trained on"
        if result.split == "val":
            return [f"{said}, in copies or by what the run started from"]
        return [f"{said}; --split val measures on those held out"]
    if result.n_chosen_on and result.split != "val":  # which asks for them
        return [f"chosen  by {result.n_chosen_on} of these {n} images the run chose its best epoch"]
    return []


def _of_sets(found: SetMetrics, result: Result | None) -> list[str]:
    """The same where an image may have several classes."""
    exact, lines = found.exact, []
    if found.measures is not None:
        numbers = found.measures.numbers

        def said(name: str, key: str) -> str:
            return _number(name, numbers[key], 100, 2)

        lines = [
            f"mAP     {said('', 'map').strip()}; {_number('AUC', numbers['roc_auc'], 1, 4)}",
            f"F1      {said('micro', 'micro_f1')}; {said('macro', 'macro_f1')}; "
            f"{said('sample', 'sample_f1')}",
            f"macro   {said('precision', 'macro_precision')}; {said('recall', 'macro_recall')}",
        ]
        if found.measures.weighted:
            lines.append(f"weights mAP, AUC, F1 and macro are {WEIGHTED}")
    lines.append(
        f"exact   {100 * (exact.accuracy or 0):.2f} %  ({exact.correct} of {exact.n}; "
        f"95 % interval {_range(exact.interval)}) have all their classes and no other"
    )
    lines += seen(result, found.n)
    if found.loss is not None:
        lines.append(f"loss    {found.loss:.4f} nats, binary cross-entropy")
    if found.measures is not None:
        known = [one for one in found.measures.classes if one.average_precision is not None]
        hardest = sorted(known, key=lambda one: one.average_precision or 0.0)[:3]
        told = [
            f"{one.label} (AP {100 * (one.average_precision or 0):.2f} %; from "
            f"{threshold(one.threshold)} precision {100 * (one.precision or 0):.2f} %, "
            f"recall {100 * (one.recall or 0):.2f} %)"
            for one in hardest
        ]
        lines.append(f"hardest {', '.join(told)}")
    if found.groups is not None:
        lines += _groups(found.groups)
    return lines + _speed(found)


def _number(name: str, one: Estimate, factor: float, digits: int) -> str:
    if one.value is None:
        return f"{name} unknown"
    unit = " %" if factor == 100 else ""
    between = ""
    if one.interval is not None:
        between = f" ({' to '.join(f'{factor * bound:.{digits}f}' for bound in one.interval)})"
    return f"{name} {factor * one.value:.{digits}f}{unit}{between}"


def _range(interval: tuple[float, float]) -> str:
    return " to ".join(f"{100 * bound:.2f}" for bound in interval)


def _measures(found: Measures) -> list[str]:
    """The classes together, and how far the model can answer alone."""

    def said(name: str, key: str, factor: float, digits: int) -> str:
        return _number(name, found.numbers[key], factor, digits)

    lines = [
        f"classes {said('balanced accuracy', 'balanced_accuracy', 100, 2)}; "
        f"{said('macro F1', 'macro_f1', 100, 2)}; {said('AUC', 'roc_auc', 1, 4)}"
        + (f"; {WEIGHTED}" if found.weighted else ""),
    ]
    if found.curve is not None:
        told = [
            f"{threshold(point.threshold)} or more: {100 * point.coverage:.1f} % of images, "
            f"at most {100 * most:g} % wrong"
            for most, point in found.curve.at_risk
            if point is not None and most in (0.01, 0.05)
        ]
        if told:
            lines.append(f"sure    probability {'; '.join(told)}")
    return lines


def _calibration(found: Calibration) -> str:
    line = f"ECE     {found.ece:.4f} in {len(found.bins)} bins; Brier {found.brier:.4f}"
    if (temperature := found.temperature) is not None:
        beyond = " or more" if temperature > 1 else " or less"
        line += (
            f"; temperature {temperature:.2f}"
            + (beyond if found.temperature_at_bound else "")
            + f" would give {found.nll_at_temperature:.4f} nats"
        )
    return line


MOST_GROUPS = 20
"""Groups that a person is shown, the worst."""


def _groups(found: Groups) -> list[str]:
    shown = found.groups
    if len(shown) > MOST_GROUPS:  # of patients there may be thousands
        shown = tuple(sorted(shown, key=lambda one: one.rate.accuracy or 0)[:MOST_GROUPS])
    lines = [
        f"group   {one.group}: {100 * (one.rate.accuracy or 0):.2f} %  "
        f"({one.rate.correct} of {one.rate.n}; {_range(one.rate.interval)})"
        for one in shown
    ]
    if len(shown) < len(found.groups):
        lines.append(f"group   {len(found.groups) - len(shown)} more are no worse (--json has all)")
    if len(found.groups) < 2:
        return lines
    between = ""
    if (interval := found.gap_interval) is not None:
        between = f" (95 % interval {_range(interval)})"
    return [
        *lines,
        f"gap     {100 * found.largest_gap:.2f} points{between}, from "
        f"{found.worst.group} to {found.best.group}",
    ]


def _speed(found: Metrics | SetMetrics) -> list[str]:
    if not found.images_per_sec:
        return []
    parts = (
        ("decoding, one thread,", found.decode_images_per_sec),
        ("model", found.model_images_per_sec),
    )
    split = ", ".join(f"{what} {rate:.0f}" for what, rate in parts if rate)
    return [f"speed   {found.images_per_sec:.0f} images/s ({split})"] if split else []
