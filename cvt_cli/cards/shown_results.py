"""What was measured, as parts of a card: each number with what it was measured on, and how."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cvt_cli.base.text import WEIGHTED, counted, human_bytes, threshold
from cvt_cli.cards.markdown import Markdown, code, escaped, rows, table
from cvt_cli.cards.record import MOST_CLASSES

Document = Mapping[str, Any]

NO_FINGERPRINT = "not taken (`cvt evaluate --card` takes it)"

_ENGINES = {"torch": "torch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction in per cent."""
    return "unknown" if value is None else f"{100 * value:.{digits}f} %"


def with_interval(
    value: float | None, interval: Sequence[float] | None, factor: float = 100
) -> str:
    """A measure with its 95 % interval."""
    if value is None:
        return "unknown"
    digits, unit = (2, " %") if factor == 100 else (4, "")
    shown = f"{factor * value:.{digits}f}{unit}"
    if not interval:
        return shown
    # Rounding may leave a zero with a sign.
    low, high = (f"{round(factor * bound, digits) + 0.0:.{digits}f}" for bound in interval)
    return f"{shown} ({low} to {high})"


def share(correct: int, n: int, interval: Sequence[float] | None) -> str:
    """A share of a count: "84.52 % (8452 of 10000; 83.80 to 85.21)"."""
    between = "" if not interval else f"; {100 * interval[0]:.2f} to {100 * interval[1]:.2f}"
    return f"{100 * correct / max(n, 1):.2f} % ({correct} of {n}{between})"


def is_several(document: Document) -> bool:
    """Whether it is of images that may have several classes."""
    return "exact_match" in document


def data_name(document: Document) -> str:
    """What the data of an evaluation are called, without the folders before."""
    return Path(document["data"]).name or str(document["data"])


def names_of(documents: Sequence[Document]) -> list[str]:
    """`data_name` of each; where several are of the same data, with what they were computed by."""
    keys = [(data_name(one), one.get("split"), bool(one.get("exif"))) for one in documents]
    return [
        name
        if sum(other[:2] == (name, split) for other in keys) == 1
        else f"{name} ({_ENGINES.get(one['engine'], one['engine'])}, {one['precision']}"
        + f"{', turned as EXIF says' * exif})"
        for one, (name, split, exif) in zip(documents, keys, strict=True)
    ]


def part_of(document: Document, training: Document | None) -> str:
    """Which part of the data was measured on, in words."""
    if document.get("split") == "val" or was_chosen_by(document, training):
        seen = document.get("n_trained_on")  # in copies, or by what the run started from
        too_good = f", of which {seen} were trained on before: it is too good" if seen else ""
        return f"the images that the best epoch was chosen by{too_good}"
    if seen := trained_on(document, training):
        return f"images of which {seen} were trained on"
    if seen == 0:
        return "images that were not trained on"
    if training is None:
        return "data of your own"
    return "data that it is not known to have been trained on"


def trained_on(document: Document, training: Document | None) -> int | None:
    """How many of an evaluation's images were trained on; None where that is not known.

    A checkpoint that lies in its run's folder no more is judged on that run's images by their
    fingerprint alone.
    """
    if (seen := document.get("n_trained_on")) is not None or training is None:
        return seen
    mark, known = document.get("fingerprint"), training["fingerprint"].split()
    return training["train_n"] if mark and known and mark == known[0] else None


def was_chosen_by(document: Document, training: Document | None) -> bool:
    """Whether an evaluation is on the images that the run's best epoch was chosen by."""
    if document.get("split") == "val":
        return True
    if document.get("n_chosen_on"):
        return not document.get("n_trained_on")
    if training is None or not document.get("fingerprint") or not training["fingerprint"]:
        return False
    *_, validation = training["fingerprint"].split()
    return not training["set_aside"] and validation == document["fingerprint"]


def headline(document: Document) -> tuple[str, str]:
    """The first figure of an evaluation, by name."""
    if is_several(document):
        measure = (document["measures"] or {}).get("map", {})
        return "mAP", with_interval(measure.get("value"), measure.get("interval"))
    return "top-1", share(document["top1_correct"], document["n"], document["top1_interval"])


def _measures(document: Document) -> list[tuple[str, str]]:
    found = document["measures"] or {}
    names = (
        ("micro F1", "micro_f1", 100), ("macro F1", "macro_f1", 100),
        ("sample F1", "sample_f1", 100), ("balanced accuracy", "balanced_accuracy", 100),
        ("macro precision", "macro_precision", 100), ("macro recall", "macro_recall", 100),
        ("ROC-AUC, mean over classes", "roc_auc", 1), ("Matthews correlation", "matthews", 1),
    )  # fmt: skip
    return [
        (name, with_interval(found[key]["value"], found[key]["interval"], factor))
        for name, key, factor in names
        if key in found
    ]


def evaluation(document: Document, training: Document | None) -> Markdown:
    """The measures of an evaluation, and their conditions."""
    pairs: list[tuple[str, str]] = [headline(document)]
    if is_several(document):
        exact = document["exact_match_correct"]
        pairs.append(("exactly right", share(exact, document["n"], None)))
    else:
        k = next(key for key in document if key.startswith("top") and key.endswith("_interval")
                 and key != "top1_interval").removesuffix("_interval")  # fmt: skip
        if document["num_classes"] > int(k.removeprefix("top")):
            correct = document[f"{k}_correct"]
            name = f"top-{k.removeprefix('top')}"
            pairs.append((name, share(correct, document["n"], document[f"{k}_interval"])))
        if document.get("real"):
            pairs.append(("ReaL", with_interval(document["real"].get("accuracy"), None)))
    pairs += _measures(document)
    if document["loss"] is not None:
        pairs.append(("loss", f"{document['loss']:.4f} nats"))
    heading = f"#### {escaped(data_name(document))}: {part_of(document, training)}\n\n"
    notes = []
    if document["n_failed"]:
        how = "left out" if document.get("n_skipped") else "counted as wrong"
        notes.append(f"{counted(document['n_failed'], 'image')} could not be read, and {how}.")
    if seen := trained_on(document, training):
        notes.append(
            f"**{seen} of the {document['n']} images were trained on, so these figures are too "
            "high.**"
        )
    elif was_chosen_by(document, training):
        notes.append(
            "The best epoch was chosen on these images, so expect a little less on new ones."
        )
    if (document["measures"] or {}).get("weighted"):
        of_each = "precision, recall and average precision"
        if not is_several(document):  # whose recall is shown as the share of the images
            of_each = "precision and F1"
        notes.append(
            f"What is said of the classes together, and the {of_each} of each, is {WEIGHTED}. "
            "Everything else counts images."
        )
    notes.append(conditions(document))
    shown = table(("measure", "value (95 % interval)"), pairs)
    return Markdown(heading + shown + "\n\n" + "\n\n".join(notes))


def conditions(document: Document) -> str:
    """What an evaluation depends on, in a sentence."""
    engine = _ENGINES.get(document["engine"], document["engine"])
    mark = document.get("fingerprint")
    parts = [
        counted(document["n"], "image"),
        f"data fingerprint {code(mark)}" if mark else f"data fingerprint {NO_FINGERPRINT}",
        f"{engine}, {document['precision']}",
        escaped(f"{document['device']}, {document['hardware']}"),
        f"images turned as their EXIF says: {'yes' if document.get('exif') else 'no'}",
    ]
    if document.get("revision"):
        parts.append(f"revision {code(document['revision'])}")
    parts += [f"weights {code(document['weights_sha256'][:16])}…", f"cvt {document['version']}"]
    if document.get("date"):
        parts.append(document["date"])
    return "Measured on " + "; ".join(parts) + "."


def classes(document: Document) -> Markdown:
    """A line per class; of many classes the worst and the best."""
    found = list(document["classes"])
    if not found:
        return Markdown("")
    several = is_several(document)
    key = "average_precision" if several else "accuracy"
    shown, intro = found, ""
    if len(found) > MOST_CLASSES:
        ordered = sorted(found, key=lambda one: (one[key] is None, one[key] or 0.0))
        shown = [*ordered[:10], *ordered[-10:]]
        intro = f"Of {len(found)} classes the ten worst and the ten best.\n\n"
    if several:
        head = ["class", "images", "threshold", "precision", "recall", "average precision"]
        body = [
            [one["label"], str(one["n"]), threshold(one["threshold"]), percent(one["precision"]),
             percent(one["recall"]), percent(one["average_precision"])]
            for one in shown
        ]  # fmt: skip
    else:
        head = ["class", "images", "right (95 % interval)", "precision", "F1"]
        body = [
            [one["label"], str(one["n"]), with_interval(one["accuracy"], one["interval"]),
             percent(one.get("precision")), percent(one.get("f1"))]
            for one in shown
        ]  # fmt: skip
    return Markdown(intro + table(head, body))


def worst_class(document: Document) -> str:
    """The class of which the smallest share is found; empty where no class has images."""
    # By counts, as the interval: what `recall` says may be by the weights of the images.
    rates = [(one["correct"] / one["n"], one) for one in document["classes"] if one["n"]]
    if not rates:
        return ""
    rate, one = min(rates, key=lambda pair: pair[0])
    shown = with_interval(rate, one.get("interval"))
    return f"{one['label']}: {shown} of its {counted(one['n'], 'image')} are found"


def groups(document: Document) -> Markdown:
    """The accuracy of each group, and the largest gap."""
    found = document["groups"]
    if not found:
        return Markdown("")
    ordered = sorted(found["groups"], key=lambda one: one["accuracy"] or 0.0)
    shown = ordered if len(ordered) <= MOST_CLASSES else [*ordered[:10], *ordered[-10:]]
    gap = found["largest_gap"]
    between = gap.get("interval")
    bounds = f" (95 % interval {100 * between[0]:.2f} to {100 * between[1]:.2f})" if between else ""
    body = table(
        ("group", "images", "right (95 % interval)"),
        [(one["group"], str(one["n"]), with_interval(one["accuracy"], one["interval"]))
         for one in shown],
    )  # fmt: skip
    return Markdown(
        f"The largest gap is {100 * gap['gap']:.2f} points{bounds}, from "
        f"{escaped(gap['worst'])} to {escaped(gap['best'])}.\n\n{body}"
    )


def calibration(document: Document) -> Markdown:
    """How far its probabilities are to be believed."""
    found = document.get("calibration")
    if not found:
        return Markdown("")
    pairs = [
        ("expected calibration error", f"{found['ece']:.4f} in {len(found['bins'])} bins"),
        ("Brier score", f"{found['brier']:.4f}"),
    ]
    if found["temperature"] is not None:
        after = f"{found['nll_at_temperature']:.4f}"
        pairs.append(
            ("temperature that fits best", f"{found['temperature']:.2f} (loss {after} nats)")
        )
    curve = document.get("risk_coverage") or {}
    for point in curve.get("at_risk", ()):
        if point.get("threshold") is not None and point["at_most"] in (0.01, 0.05):
            pairs.append(
                (f"answered with at most {100 * point['at_most']:g} % wrong",
                 f"{percent(point['coverage'], 1)} of images (probability "
                 f"{threshold(point['threshold'])} or more)")
            )  # fmt: skip
    return rows(pairs)


def confusions(document: Document) -> str:
    """The worst mistakes, as a sentence."""
    found = document.get("confusions") or []
    told = [
        f"{escaped(c['label'])} for {escaped(c['predicted'])} ({counted(c['n'], 'image')})"
        for c in found[:5]
    ]
    return f"Most often it mistakes {', '.join(told)}." if told else ""


def benchmark(document: Document) -> Markdown:
    """The rates of every engine."""
    rows_of = document["rows"]
    joules = any(row.get("joules_per_image") for row in rows_of)
    head = ["engine", "precision", "images at once", "images/s (range)", "first call", "memory"]
    body = []
    for row in rows_of:
        low, high = row["images_per_sec_range"]
        line = [
            _ENGINES.get(row["engine"], row["engine"]), row["precision"], str(row["batch_size"]),
            f"{row['images_per_sec']:.1f} ({low:.1f} to {high:.1f})",
            f"{row['first_call_sec']:.2f} s", human_bytes(row["peak_memory_bytes"]),
        ]  # fmt: skip
        if joules:
            value = row.get("joules_per_image")
            line.append("" if value is None else f"{value:.3g} J")
        body.append(line)
    if joules:
        head.append("energy of an image")
    found = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    date = f"; {document['date']}" if document.get("date") else ""
    weights = "; random weights, on which the speed does not depend" * (
        document.get("weights") == "random"
    )
    method = _energy_method(document)
    return Markdown(
        table(head, body) + f"\n\nThe network alone, without decoding, at {document['height']}x"
        f"{document['width']}; {escaped(document['device'])}, {escaped(document['hardware'])}; "
        f"median of {counted(document['rounds'], 'round')}{weights}; {escaped(found)}{date}."
        + (f" Energy: {escaped(method)}." if method else "")
    )


def _energy_method(document: Document) -> str:
    return str((document.get("energy") or {}).get("method") or "")


def exports(documents: Sequence[Document]) -> Markdown:
    """The exported files, and how far their answers are from the checkpoint's."""
    body = []
    for one in documents:
        found = one["verification"]
        agree = found.get("top1_agreement")
        body.append(
            (Path(one["file"]).name, one["precision"], human_bytes(one["bytes"]),
             "yes" if found["passed"] else "no",
             "" if agree is None else percent(agree, 1),
             f"{1000 * one['speed']['latency_sec']:.1f} ms")
        )  # fmt: skip
    head = ("file", "precision", "size", "passed verification", "same answer", "one image")
    return table(head, body)
