"""The learning rate of every step."""

import pytest

from cvt_cli.finetuning.schedule import schedule_of
from cvt_cli.spec.recipes import named_recipe
from cvt_cli.spec.variants import VARIANTS


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    schedule = schedule_of(named_recipe("imagenet", VARIANTS["13"].config), 10)

    rates = [schedule(step) for step in (0, 25, 50, 1525, 3000)]

    assert rates == pytest.approx([1e-6, 1.0005e-3, 2e-3, 1.005e-3, 1e-5])


def test_no_step_is_above_the_peak_that_was_asked_for() -> None:
    schedule = schedule_of(named_recipe("default").override(learning_rate=1e-7), 10)

    assert max(schedule(step) for step in range(200)) == pytest.approx(1e-7)
