"""How a checkpoint was trained, as its card tells it: what the run did, and nothing else.

`cvt finetune` gives the facts as JSON values (`finetuning.results`); here they become text.
"""

from collections.abc import Mapping
from typing import Any

from cvt_cli.base.text import counted, duration
from cvt_cli.cards.markdown import Markdown, code, escaped, rows, table
from cvt_cli.cards.record import MOST_CLASSES
from cvt_cli.cards.shown_results import percent, share

Training = Mapping[str, Any]


def summary(training: Training, classes: int) -> str:
    """What came of it, in a sentence."""
    how = "from scratch" if training["from_scratch"] else f"from {code(training['start'])}"
    return (
        f"A CvT of {counted(classes, 'class')}, trained {how} on {code(training['data'])} with "
        f"{code('cvt finetune')}."
    )


def data(training: Training) -> Markdown:
    """What was trained on: counts, the split, the fingerprint."""
    aside = (
        "set aside from the training images" if training["set_aside"] else "the data's own `val`"
    )
    if groups := training.get("val_groups"):  # absent from cards of versions before
        aside += f", {counted(groups, 'whole group')} of {code(training['groups'])}"
    sizes = training["class_sizes"]
    ends: list[tuple[str, Any]] = []
    if sizes:
        ends = [
            (f"{what} class", f"{name}, {counted(sizes[name], 'image')}")
            for what, name in (
                ("smallest", min(sizes, key=lambda one: sizes[one])),
                ("largest", max(sizes, key=lambda one: sizes[one])),
            )
        ]
    fold_n = training.get("fold_n")  # absent from cards of versions before
    of_fold: list[tuple[str, Any]] = (
        [("held out as its fold", counted(fold_n, "image"))] if fold_n else []
    )
    pairs: list[tuple[str, Any]] = [
        ("data", code(training["data"])),
        ("trained on", counted(training["train_n"], "image")),
        ("best epoch chosen by", Markdown(f"{counted(training['val_n'], 'image')}, {aside}")),
        *of_fold,
        ("left out, unreadable", counted(training["unreadable_n"], "image")),
        *ends,
        ("fingerprint", Markdown(", ".join(map(code, training["fingerprint"].split())))),
    ]
    shown = rows(pairs)
    if 0 < len(sizes) <= MOST_CLASSES:
        of_class = table(("class", "training images"), [(n, str(c)) for n, c in sizes.items()])
        shown = Markdown(f"{shown}\n\n{of_class}")
    return shown


def procedure(training: Training) -> Markdown:
    """The settings that had a part in it."""
    pairs: list[tuple[str, Any]] = [("command", code(training["command"]))]
    pairs += [(name.replace("_", " "), str(v)) for name, v in training["settings"].items()]
    pairs += [("seed", str(training["seed"])), ("precision", training["precision"])]
    if training["batch"]:
        pairs.append(("images per step", training["batch"]))
    if training["epochs"]:
        pairs.append(
            (
                "best epoch",
                f"{training['epoch']}"
                + (f" (step {training['step']})" if training["step"] else "")
                + f" of {training['epochs']}",
            )
        )
    return rows(pairs)


def validation(training: Training) -> Markdown:
    """What the best epoch says of the images that it was chosen by."""
    found, n = training["validation"], training["val_n"]
    pairs: list[tuple[str, str]] = []
    if "map" in found:
        pairs += [
            (
                "mAP on the validation images that the best epoch is chosen by",
                percent(found["map"]),
            ),
            ("micro F1 on them, at thresholds chosen on them", percent(found["micro_f1"])),
            ("macro F1, likewise", percent(found["macro_f1"])),
            ("exactly right, likewise", share(found["correct"], n, found["interval"])),
        ]
    else:
        name = "top-1 on the validation images that the best epoch is chosen by"
        pairs.append((name, share(found["correct"], n, found["interval"])))
        if found.get("correct_top5") is not None:
            pairs.append(("top-5 on them", share(found["correct_top5"], n, found["interval_top5"])))
    if seen := found.get("trained_before"):
        what = "of these images, those that the start of the run was trained on: it is too good"
        pairs.append((what, f"{seen} of {n}"))
    return table(("measure", "value (95 % interval)"), pairs)


def times(training: Training) -> str:
    """Start, end, hours; what of it is not known is left out."""
    parts = []
    if training.get("started"):
        parts.append(f"Started {training['started']}")
    if training.get("finished"):
        parts.append(f"ended {training['finished']}")
    parts.append(
        f"{duration(training['seconds'])} of training until "
        + ("its end" if training.get("finished") else "this epoch")
    )
    return escaped("; ".join(parts)) + "."


def hours(training: Training) -> str:
    """Hours that it took."""
    return f"{training['seconds'] / 3600:.3g}"


def energy(training: Training) -> str | None:
    """What it took of energy; None where that was not measured."""
    found = training.get("energy")
    return None if not found else energy_text(found) + part_measured(training)


def part_measured(training: Training) -> str:
    """How much of the training was measured, where that is not all of it: a part was killed, or
    went on where nothing measures."""
    measured, took = training["energy"].get("seconds"), training["seconds"]
    if measured is None or measured > 0.98 * took - 1:
        return ""
    return f"; measured during {duration(measured)} of {duration(took)} of training"


def energy_text(found: Mapping[str, Any]) -> str:
    """A measure of energy with its method, and the CO2 where a country was given."""
    kwh = found["kwh"]
    shown = f"{kwh:.3g} kWh" if kwh >= 1e-3 else f"{1000 * kwh:.3g} Wh"
    text = f"{shown} ({found['method']})"
    if found.get("co2_kg") is not None:
        text += (
            f"; {1000 * found['co2_kg']:.3g} g of CO2 with the electricity of {found['country']}"
        )
    return text
