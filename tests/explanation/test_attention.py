"""Attention is the one that transformers computes; what is made of it equals plain loops."""

import numpy as np
import pytest
import torch
from transformers import CvtConfig, CvtForImageClassification
from transformers.models.cvt import modeling_cvt

from cvt_cli.explanation import attention
from cvt_cli.explanation.traced import TracedCvT
from cvt_cli.model.inference import inference_form
from tests_shared import golden, golden_config, golden_input, golden_model


class QuickGelu(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(1.702 * x)


def of_transformers(name: str) -> tuple[CvtForImageClassification, TracedCvT]:
    """Both networks with the golden weights, in float64."""
    file = golden(f"hf-{name}")
    config = CvtConfig(**{k: v for k, v in file["config"].items() if k != "model_type"})
    config.num_labels = 1000
    theirs = CvtForImageClassification(config).eval()
    ours = golden_model(golden_config(golden(f"golden-{name}")["spec"], 1000))
    official = ours.state_dict()
    names = {theirs_name: ours_name for theirs_name, _, _, ours_name in file["state_dict"]}
    theirs.load_state_dict({name: official[ours_name] for name, ours_name in names.items()})
    for module in theirs.modules():
        if isinstance(module, modeling_cvt.CvtIntermediate):
            module.activation = QuickGelu()
    return theirs.double(), TracedCvT(ours.double())


@pytest.mark.parametrize(("name", "size"), [("tiny-123", (64, 96)), ("cvt-13", (64, 96))])
def test_every_head_of_every_block_is_what_hooks_on_transformers_see(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = of_transformers(name)
    images = golden_input(1, *size).double()
    seen: list[torch.Tensor] = []
    softmax = torch.nn.functional.softmax

    def watched(values: torch.Tensor, **keywords: int) -> torch.Tensor:
        seen.append(softmax(values, **keywords))
        return seen[-1]

    monkeypatch.setattr(torch.nn.functional, "softmax", watched)
    with torch.no_grad():
        logits = theirs(images).logits
        trace = ours.trace(images, keep=0, all_queries=True)

    found = [trace.attention[place] for place in sorted(trace.attention)]
    assert len(found) == len(seen) == sum(stage.depth for stage in ours.config.stages)
    for mine, other in zip(found, seen, strict=True):
        assert mine.shape == other.shape
        assert (mine - other).abs().max() < 1e-6
        assert (mine.sum(-1) - 1).abs().max() < 1e-12
    assert (trace.logits - logits).abs().max() < 1e-9


def traced(all_queries: bool = False) -> tuple[TracedCvT, torch.Tensor]:
    model = golden_model(golden_config(golden("golden-tiny-123")["spec"], 10)).double()
    return TracedCvT(model), golden_input(1, 112, 80).double()


def test_logits_are_those_of_the_form_that_predicts() -> None:
    network, images = traced()

    with torch.no_grad():
        wanted = inference_form(network.model)(images)
        found = network.trace(images, keep=0, all_queries=True).logits

        assert (network(images) - wanted).abs().max() < 1e-12
        assert (found - wanted).abs().max() < 1e-12


def matrix_by_loops(weights: np.ndarray, height: int, width: int) -> np.ndarray:
    """Attention (N, K) with each key's part shared among the tokens under its 3x3 window.

    The middle counts twice along each axis.
    """
    keys_across = (width + 1) // 2
    found = np.zeros((len(weights), 1 + height * width))
    found[:, 0] = weights[:, 0]
    for key in range(weights.shape[1] - 1):
        row, column = 2 * (key // keys_across), 2 * (key % keys_across)
        under = [
            (y, x, (2 - abs(y - row)) * (2 - abs(x - column)))
            for y in range(row - 1, row + 2)
            for x in range(column - 1, column + 2)
            if 0 <= y < height and 0 <= x < width
        ]
        for y, x, share in under:
            whole = sum(share for _, _, share in under)
            found[:, 1 + y * width + x] += weights[:, 1 + key] * share / whole
    return found


def test_rollout_is_the_product_of_all_blocks_as_plain_loops_compute_it() -> None:
    network, images = traced()
    with torch.no_grad():
        whole = network.trace(images, keep=2, all_queries=True)
        alone = network.trace(images, keep=2)
    shape = tuple(
        whole.maps[2].shape[2:]
    )  # 7 x 5: the last row and column have no key of their own

    product = np.eye(1 + shape[0] * shape[1])
    for place in sorted(whole.attention):
        matrix = matrix_by_loops(whole.attention[place][0].mean(0).numpy(), *shape)
        product = (0.5 * matrix + 0.5 * np.eye(len(matrix))) @ product

    for trace in (whole, alone):
        blocks = [trace.attention[place] for place in sorted(trace.attention)]
        found = attention.rollout(blocks, shape)
        assert found.shape == shape
        assert np.abs(found.numpy().ravel() - product[0, 1:]).max() < 1e-12
    assert abs(product.sum(1) - 1).max() < 1e-12


def test_relevance_is_the_sum_over_blocks_as_plain_loops_compute_it() -> None:
    network, images = traced()
    trace = network.trace(images, keep=2, gradients_from=2)
    blocks = [trace.attention[place] for place in sorted(trace.attention)]
    gradients = torch.autograd.grad(trace.logits[0, 3], blocks)
    shape = tuple(trace.maps[2].shape[2:])

    tokens = 1 + shape[0] * shape[1]
    sum_ = np.eye(tokens)
    for block, gradient in zip(blocks, gradients, strict=True):
        weighted = (block * gradient)[0].clamp(min=0).mean(0).detach().numpy()
        matrix = np.zeros((tokens, tokens))
        matrix[: len(weighted)] = matrix_by_loops(weighted, *shape)
        sum_ = sum_ + matrix @ sum_

    found = attention.relevance(blocks, list(gradients), shape).detach().numpy()
    assert np.abs(found.ravel() - sum_[0, 1:]).max() < 1e-12
    assert found.max() > 1e-5


def test_gradients_from_a_stage_are_those_of_the_whole_network() -> None:
    """Autograd is off before it, which must change nothing after it."""
    network, images = traced()
    whole = network.trace(images.clone().requires_grad_(), keep=2)
    part = network.trace(images, keep=2, gradients_from=2)

    for trace in (whole, part):
        trace.gradients = torch.autograd.grad(
            trace.logits[0, 3], [trace.maps[1], trace.maps[2], trace.attention[2, 0]]
        )

    for mine, other in zip(part.gradients, whole.gradients, strict=True):
        assert (mine - other).abs().max() < 1e-12
        assert other.abs().max() > 1e-9
