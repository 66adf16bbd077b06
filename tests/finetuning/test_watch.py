"""A run whose loss makes no sense any more is stopped."""

from collections.abc import Sequence

import pytest
import torch

from cvt_cli.base.errors import CvtError
from cvt_cli.finetuning.watch import Watch
from cvt_cli.spec.recipes import Recipe

PLAIN = Recipe("plain", "adamw", 1, 4, 1e-3, 0, 0.05, "none", clip_norm=0.0)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([1.0, float("nan")], "the loss is nan at step 2, with a learning rate of 1.00e-03"),
        ([2.0] + [40.0] * 30, "the loss has diverged to"),
    ],
)
def test_a_lost_run_is_stopped_with_what_to_change(losses: Sequence[float], message: str) -> None:
    watch = Watch(10, PLAIN, "bf16")

    with pytest.raises(CvtError, match=message) as caught:
        for step, loss in enumerate(losses):
            watch(torch.tensor(loss), step, 1e-3)
        watch.all_good([torch.ones(2)])

    assert "--lr 1.0e-04" in caught.value.hint and "--precision fp32" in caught.value.hint


def test_a_loss_that_falls_is_let_go_on() -> None:
    watch = Watch(10, PLAIN, "fp32")

    for step in range(100):
        watch(torch.tensor(3.0 - step / 50), step, 1e-3)
    watch.all_good([torch.ones(2)])

    with pytest.raises(CvtError, match="the loss is nan at step 101"):  # it did look
        watch(torch.tensor(float("nan")), 100, 1e-3)
        watch.all_good([torch.ones(2)])


def test_a_start_that_is_worse_than_a_guess_is_let_begin_and_stopped_where_it_runs_away() -> None:
    """As a linear probe is on images that it is sure of, once they are augmented."""
    watch = Watch(10, PLAIN, "fp32")

    for step in range(20):
        watch(torch.tensor(8.0 - step / 5), step, 1e-3)

    with pytest.raises(CvtError, match="the loss has diverged to"):
        for step in range(20, 60):
            watch(torch.tensor(40.0), step, 1e-3)


def test_weights_that_the_last_step_has_ruined_are_not_kept() -> None:
    watch = Watch(10, PLAIN, "fp32")

    watch(torch.tensor(2.0), 0, 1e-3)

    with pytest.raises(CvtError, match="the weights are not finite any more at step 1"):
        watch.all_good([torch.ones(2), torch.tensor([1.0, float("inf")])])
