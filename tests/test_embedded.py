"""The checkpoint that is part of the package scores what its card says."""

import re
from pathlib import Path

import pytest

from cvt_cli.model import weights
from cvt_cli.spec.published import CHECKPOINTS
from cvt_cli.spec.variants import VARIANTS

FOLDER = CHECKPOINTS["cvt-nano-cifar10"].embedded


def stated(what: str) -> tuple[int, int]:
    """Correct and all images, as the card states them."""
    card = (FOLDER / "README.md").read_text()
    match = re.search(rf"^\| {what} \| (.+) % \((\d+) of (\d+); .+ to .+\) \|$", card, re.M)
    correct, n = int(match[2]), int(match[3])
    assert float(match[1]) == round(100 * correct / n, 2)
    return correct, n


def test_it_is_small_complete_and_the_variant_it_says() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000
    loaded = weights.load(FOLDER)
    assert loaded.notes == ()
    assert loaded.model.config == VARIANTS["nano"].config
    assert loaded.preprocessing.height == loaded.preprocessing.width == 32


def test_its_card_states_how_it_was_made_and_what_it_scores() -> None:
    card = (FOLDER / "README.md").read_text()

    for row in ("command", "seed", "recipe"):
        assert re.search(rf"^\| {row} \| .+ \|$", card, re.M), row
    for line in ("Hardware Type", "Hours used"):
        assert re.search(rf"^- \*\*{line}:\*\* .*\d", card, re.M), line
    assert "cvt finetune --data cifar10 --variant nano --recipe imagenet" in card
    assert stated("top-1")[0] >= 8400
    assert stated("top-5")[0] > stated("top-1")[0]


def test_a_part_of_the_test_images_scores_near_the_card(cvt, cifar10: Path, tmp_path: Path) -> None:
    for folder in (cifar10 / "test").iterdir():
        (tmp_path / folder.name).mkdir()
        for path in sorted(folder.iterdir())[:50]:
            (tmp_path / folder.name / path.name).symlink_to(path)

    result = cvt("evaluate", "--data", tmp_path, "--model", "cvt-nano-cifar10", "--json")

    assert result.json["n"] == 500
    # Three standard deviations of a share of 500 images around 0.85 are 0.05.
    assert result.json["top1"] == pytest.approx(stated("top-1")[0] / 10_000, abs=0.05)


@pytest.mark.slow
def test_evaluating_it_prints_what_its_card_states(cvt, cifar10: Path) -> None:
    result = cvt(
        "evaluate", "--data", "cifar10", "--data-dir", cifar10.parent,
        "--model", "cvt-nano-cifar10",
    )  # fmt: skip

    for row, what in (("top-1", "top-1"), ("top-5", "top-5")):
        correct, n = stated(what)
        assert f"{row}   {100 * correct / n:.2f} %  ({correct} of {n}" in result.stdout
