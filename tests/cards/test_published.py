"""The cards of the published seven and of nano: complete, and every number has a source."""

import re
from pathlib import Path

import huggingface_hub
import pytest

from cvt_cli.cards.about import About
from cvt_cli.cards.card import check, compose
from cvt_cli.cards.fields import fields
from cvt_cli.cards.fields_published import NOT_PUBLISHED
from cvt_cli.cards.parts import body_of
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.spec import labels
from cvt_cli.spec.costs import costs
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.published import CHECKPOINTS, KnownCheckpoint
from cvt_cli.spec.variants import VARIANTS
from tests_shared import test_data

SEVEN = [known for known in CHECKPOINTS.values() if known.scores]

TEMPLATE = Path(huggingface_hub.__file__).with_name("templates") / "modelcard_template.md"


def about(known: KnownCheckpoint) -> About:
    config = VARIANTS[known.variant].config.with_classes(known.num_classes)
    size = Preprocessing.published(known.size, known.size)
    described = CheckpointConfig(config, labels.imagenet(), size)
    return About(
        known.name, described, known=known, repository=known.repository, license=known.license
    )


@pytest.mark.parametrize("known", SEVEN, ids=lambda known: known.name)
def test_every_field_of_the_hubs_template_is_filled_or_says_why_not(known) -> None:
    wanted = set(re.findall(r"{{ (\w+) ", TEMPLATE.read_text())) - {"card_data"}
    wanted.remove("get_started_code")  # it is in the template
    assert len(wanted) > 40

    found = fields(about(known))
    text = compose(about(known)).text

    assert {name for name in wanted if not str(found.get(name, "")).strip()} == set()
    assert text.count("```python\n") == 2 and "cvt predict photo.jpg --model microsoft/" in text
    lacking = check(text)
    assert lacking.lacks == () and lacking.not_stated == ()
    # Speed, energy, calibration and robustness are for who has the weights.
    assert len(lacking.not_measured) == 4
    assert text.count(NOT_PUBLISHED) >= 8


def test_nano_leaves_no_field_of_the_hubs_template_empty(cvt) -> None:
    text = cvt("card", "cvt-nano-cifar10").stdout
    found = check(text)

    assert found.lacks == ()
    assert len(found.not_measured) <= 3  # speed, energy, robustness
    assert "| 88.68 % (8868 of 10000; 88.04 to 89.29) |" in text
    assert f"{costs('nano', VARIANTS['nano'].config, 32, 32).params:,} parameters" in text


def numbers(text: str) -> set[str]:
    """Every number in a text, without the commas between thousands."""
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    return {number.lstrip("0") or "0" for number in re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?", text)}


@pytest.mark.parametrize("known", SEVEN, ids=lambda known: known.name)
def test_every_number_is_in_the_facts_the_catalogue_or_counted(known) -> None:
    facts = numbers(test_data("facts.md").read_text())
    config = about(known).described.config
    counted = costs(known.variant, config, known.size, known.size)
    scores = known.scores
    ours = numbers(
        f"{counted.params} {counted.macs} {counted.flops} {4 * counted.params / 1e6:.1f} "
        f"{4 * counted.params / 1e9:.2f} {counted.macs / 1e9:.3f} {scores.top1 - scores.v2:.1f} "
        f"{scores.top1:.2f} {scores.top5:.2f} {VARIANTS[known.variant].paper_params / 1e6:.2f}"
    )
    ours |= {"255", "20", "980", "95", "2021", "3", "4", "9"}
    # Of 0..255; named classes of 1000; intervals; ICCV 2021; kernels, strides and the like.
    ours |= numbers(" ".join(f"{s.width} {s.heads} {s.depth} {s.stride}" for s in config.stages))
    body = re.sub(r"<!--.*?-->|```.*?```", "", body_of(compose(about(known)).text), flags=re.DOTALL)
    body = re.sub(r"cvt-cli \d+\.\d+\.\d+", "", body)

    assert numbers(body) - facts - ours == set()
    # And those that somebody decides by are the catalogue's.
    for value in (f"{scores.paper_top1} %", f"{scores.top1:.2f} %", f"{scores.top5:.2f} %",
                  f"{scores.real} %", f"{scores.v2} %", f"{counted.params:,}"):  # fmt: skip
        assert value in body


def test_the_contradictions_of_the_sources_are_in_the_cards_that_they_are_of() -> None:
    of = {known.name: body_of(compose(about(known)).text) for known in SEVEN}

    for text in of.values():
        assert "| learning rate | 0.02 (paper" in text and "MIT (reference), Apache-2.0" in text
        assert "multiply-adds" in text and "QuickGELU: the weights were trained with it" in text
    assert "31.54 M (paper), 31,622,696 (counted)" in of["cvt-21-384-22k"]
    assert "87.7 % (paper), 87.6 % (reference&#x27;s README)" in of["cvt-w24-384-22k"].replace(
        "'", "&#x27;"
    )
    assert "expect 87.58" in of["cvt-w24-384-22k"] and "298.3 M" in of["cvt-w24-384-22k"]
    assert "| input size | 224 (hub" in of["cvt-13-384-22k"]
    assert "| input size |" not in of["cvt-13-384"]
