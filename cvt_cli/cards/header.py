"""The header of a card, which the hub's pages and search are made of, and ``.eval_results``.

Results go into both forms of the hub: ``model-index`` in the header, which it calls legacy, and a
file of entries in ``.eval_results/``. The client reads both back.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cvt_cli.base.text import WEIGHTED
from cvt_cli.cards import shown_results
from cvt_cli.cards.about import About
from cvt_cli.spec.published import MEASURED_AT, MEASURED_BY

EVAL_RESULTS = ".eval_results/cvt.yaml"
"""Beside the card; the hub reads every YAML file of that folder."""

HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "oxford-iiit-pet": "timm/oxford-iiit-pet",
    "flowers102": "dpdl-benchmark/oxford_flowers102",
    "imagenette": "frgfm/imagenette",
}
"""What the hub calls the sets that are known by name here."""

IMAGENET = "ILSVRC/imagenet-1k"

OF_A_FOLDER = "imagefolder"
"""What the hub calls data that are a folder of images, and none of its own data sets."""


@dataclass(frozen=True)
class Score:
    """A figure that the hub shows beside the model."""

    metric: str  # the hub's name of it
    name: str
    value: float  # a fraction
    data: str  # what the data are called
    dataset: str  # the hub's name of them, or `OF_A_FOLDER`
    split: str
    notes: str
    fingerprint: str | None = None
    date: str | None = None
    source: tuple[str, str] | None = None  # name and address of who measured it


def header(about: About) -> dict[str, Any]:
    """Names and values, as the hub has them."""
    from huggingface_hub import EvalResult, ModelCardData  # slow to import

    found = list(scores(about))
    facts = about.record.training
    data = HUB_DATASETS.get(facts["data"]) if facts else None
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=one.dataset,
            dataset_name=_writable(one.data),
            dataset_split=one.split,
            dataset_args={"fingerprint": one.fingerprint} if one.fingerprint else None,
            metric_type=one.metric,
            metric_name=one.name,
            metric_value=one.value,
            metric_args={"notes": _writable(one.notes)},
            source_name=one.source[0] if one.source else None,
            source_url=one.source[1] if one.source else None,
        )
        for one in found
    ]
    base = facts["repository"] if facts and not facts["from_scratch"] else None
    more: dict[str, Any] = {"base_model_relation": "finetune"} if base else {}
    data_sets = [IMAGENET] if about.published else [data] if data else None
    card = ModelCardData(
        library_name="transformers",  # which opens the folder too
        pipeline_tag="image-classification",
        tags=["image-classification", "cvt", "cvt-cli"],
        model_name=_writable(about.name),
        license=about.license and about.license.lower(),
        base_model=base,
        datasets=data_sets,
        metrics=sorted({one.metric for one in found}) or None,
        eval_results=results or None,
        **more,
    )
    return dict(card.to_dict())  # type: ignore[no-untyped-call]


def entries(about: About) -> list[dict[str, Any]]:
    """What ``.eval_results`` holds: a list of entries as the hub specifies them."""
    found, tasks = [], set[str]()
    for one in scores(about):
        told = one.name if one.dataset != OF_A_FOLDER else f"{one.name}, {one.data}, {one.split}"
        task = f"{one.name}, {one.data}, {one.split}" if told in tasks else told
        tasks.add(told)
        entry: dict[str, Any] = {
            "dataset": {"id": one.dataset, "task_id": _writable(task)},
            "value": one.value,
        }
        if one.date:
            entry["date"] = one.date
        if one.source:
            entry["source"] = {"url": one.source[1], "name": one.source[0]}
        entry["notes"] = _writable(one.notes)
        found.append(entry)
    return found


def scores(about: About) -> Iterator[Score]:
    """The figures that others compare models by."""
    if about.published:
        yield from _published(about)
    facts = about.record.training
    documents = about.record.of("evaluation")
    for document, named in zip(documents, shown_results.names_of(documents), strict=True):
        yield from _evaluated(document, facts, named)
    if facts and not any(shown_results.was_chosen_by(one, facts) for one in documents):
        yield from _of_validation(facts)


def _published(about: About) -> Iterator[Score]:
    assert about.published is not None and about.published.scores is not None
    known = about.published.scores
    third = (MEASURED_BY, MEASURED_AT)
    for name, value in (("top-1", known.top1), ("top-5", known.top5)):
        notes = about.described.preprocessing.describe()
        yield Score("accuracy", name, round(value / 100, 4), "ImageNet-1k", IMAGENET, "validation",
                    notes, source=third)  # fmt: skip


def _evaluated(
    document: Mapping[str, Any], facts: Mapping[str, Any] | None, named: str
) -> Iterator[Score]:
    part = shown_results.part_of(document, facts)
    seen = shown_results.trained_on(document, facts)
    split = "val" if shown_results.was_chosen_by(document, facts) else "train" if seen else "test"
    measures = document["measures"] or {}
    if shown_results.is_several(document):
        told = [("map", "mAP", measures.get("map")), ("f1", "macro F1", measures.get("macro_f1"))]
        known = [(m, n, one["value"], one["interval"]) for m, n, one in told if one]
    else:
        known = [("accuracy", "top-1", document["top1"], document["top1_interval"])]
        if "top5" in document and document["num_classes"] > 5:
            known.append(("accuracy", "top-5", document["top5"], document["top5_interval"]))
        if one := measures.get("macro_f1"):
            known.append(("f1", "macro F1", one["value"], one["interval"]))
    for metric, name, value, interval in known:
        if value is None:
            continue
        notes = f"{document['n']} images, {part}"
        if interval:
            notes += f"; 95 % interval {interval[0]:.4f} to {interval[1]:.4f}"
        if seen:
            notes += f"; {seen} of them were trained on"
        if metric != "accuracy" and measures.get("weighted"):
            notes += f"; {WEIGHTED}"
        notes += f"; {document['engine']}, {document['precision']}; cvt {document['version']}"
        if document.get("fingerprint"):
            notes += f"; fingerprint {document['fingerprint']}"
        yield Score(metric, name, value, named, HUB_DATASETS.get(document["data"], OF_A_FOLDER),
                    split, notes, document.get("fingerprint"), document.get("date"))  # fmt: skip


def _of_validation(facts: Mapping[str, Any]) -> Iterator[Score]:
    """What the best epoch was chosen by."""
    found, n = facts["validation"], facts["val_n"]
    split = "train, a part held out" if facts["set_aside"] else "val"
    named = facts["data_name"]
    notes = f"{n} images, those that the best epoch was chosen by"
    if seen := found.get("trained_before"):
        notes += f"; {seen} of them were trained on by what the run started from"
    if "map" in found:
        told = [("map", "mAP", found["map"], None), ("f1", "macro F1", found["macro_f1"], None)]
    else:
        told = [("accuracy", "top-1", found["correct"] / n, found["interval"])]
        if found.get("correct_top5") is not None:
            rate = found["correct_top5"] / n
            told.append(("accuracy", "top-5", rate, found["interval_top5"]))
    for metric, name, value, interval in told:
        if value is None:
            continue
        more = f"; 95 % interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
        yield Score(metric, name, value, named, HUB_DATASETS.get(facts["data"], OF_A_FOLDER), split,
                    notes + more, (facts["fingerprint"].split() or [None])[-1])  # fmt: skip


def _writable(text: str) -> str:
    """YAML has no place for what is not in UTF-8."""
    return text.encode(errors="backslashreplace").decode()
