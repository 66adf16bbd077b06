"""Model cards in the hub's format, filled from what was measured."""

import json
from collections.abc import Mapping


def percent(correct: int, n: int) -> str:
    """A share of a count, exact: "84.52 % (8452 of 10000)"."""
    return f"{100 * correct / n:.2f} % ({correct} of {n})"


def model_card(
    name: str,
    summary: str,
    facts: Mapping[str, str],
    results: Mapping[str, str],
    limits: str,
) -> str:
    """A README.md with the hub's header.

    Args:
        name: of the model.
        summary: what it is, in a sentence or two.
        facts: how it was made: command, seed, hardware, time, …
        results: what was measured, with its conditions; "not measured" where it was not.
        limits: what it should not be used for.
    """

    def rows(pairs: Mapping[str, str]) -> str:
        return "\n".join(
            f"| {key} | {value.replace('|', '&#124;')} |" for key, value in pairs.items()
        )

    return f"""---
library_name: cvt-cli
pipeline_tag: image-classification
tags:
- image-classification
- cvt
model_name: {json.dumps(name)}
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
