"""Model cards in the hub's format, filled from what was measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "oxford-iiit-pet": "timm/oxford-iiit-pet",
    "flowers102": "dpdl-benchmark/oxford_flowers102",
    "imagenette": "frgfm/imagenette",
}
"""What the hub calls the sets that are known by name here."""


@dataclass(frozen=True)
class Score:
    """A measured figure that the hub shows beside the model."""

    name: str  # such as "top-1"
    value: float  # a fraction
    data: str  # the set as the user named it, without the folders before
    split: str  # the part of it that was measured on


def percent(correct: int, n: int) -> str:
    """A share of a count, exact: "84.52 % (8452 of 10000)"."""
    return f"{100 * correct / n:.2f} % ({correct} of {n})"


def model_card(
    name: str,
    summary: str,
    facts: Mapping[str, str],
    results: Mapping[str, str],
    limits: str,
    *,
    license: str | None = None,
    base_model: str | None = None,
    data: str | None = None,
    scores: Sequence[Score] = (),
) -> str:
    """A README.md with the hub's header, which its pages and its search are made of.

    Args:
        name: of the model.
        summary: what it is, in a sentence or two.
        facts: how it was made: command, seed, hardware, time, …
        results: what was measured, with its conditions; "not measured" where it was not.
        limits: what it should not be used for.
        license: of what it was made from, where that is known.
        base_model: the hub repository of what it was trained from.
        data: the set that it was trained on, as the user named it.
        scores: of the results, those that the hub can compare.
    """

    def rows(pairs: Mapping[str, str]) -> str:
        return "\n".join(
            f"| {key} | {value.replace('|', '&#124;')} |" for key, value in pairs.items()
        )

    header = _header(name, license, base_model, data, scores).to_yaml()
    return f"""---
{header}
---

# {name}

{summary}

## Results

| measure | value |
|---|---|
{rows(results)}

## How it was made

| | |
|---|---|
{rows(facts)}

## Limits

{limits}

## Citation

Wu et al., "CvT: Introducing Convolutions to Vision Transformers", ICCV 2021, arXiv 2103.15808.
"""


def _header(
    name: str,
    license: str | None,
    base_model: str | None,
    data: str | None,
    scores: Sequence[Score],
) -> Any:
    from huggingface_hub import EvalResult, ModelCardData  # slow to import

    known = HUB_DATASETS.get(data or "")

    def readable(text: str) -> str:
        """YAML has no place for what is not in UTF-8."""
        return text.encode(errors="backslashreplace").decode()

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=HUB_DATASETS.get(score.data, "image-folder"),
            dataset_name=readable(score.data),
            dataset_split=score.split,
            metric_type="accuracy",
            metric_name=score.name,
            metric_value=score.value,
        )
        for score in scores
    ]
    return ModelCardData(
        library_name="cvt-cli",
        pipeline_tag="image-classification",
        tags=["image-classification", "cvt"],
        model_name=readable(name),
        license=license and license.lower(),
        base_model=base_model,
        datasets=[known] if known else None,
        eval_results=results or None,
    )
