"""The training form equals the official implementation; its golden numbers are in tests/golden."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from cvt_cli.model.network import Block, CvT, drop_path, init_weights, pointwise
from cvt_cli.spec.config import CvTConfig
from cvt_cli.spec.variants import VARIANTS
from tests_shared import (
    GOLDEN_CASES,
    golden,
    golden_config,
    golden_input,
    golden_model,
    with_all_tokens,
)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("name", "position"), GOLDEN_CASES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.float64, 1e-7)], ids=["fp32", "fp64"]
)
def test_logits_equal_the_official_implementation(
    name: str, position: int, dtype: torch.dtype, tolerance: float
) -> None:
    file = golden(f"golden-{name}")
    case = file["cases"][position]
    model = golden_model(golden_config(file["spec"], case["num_classes"])).to(dtype)
    batch = golden_input(2, case["height"], case["width"]).to(dtype)

    with torch.inference_mode():
        both, first = model(batch), model(batch[:1])

    wanted = torch.tensor(case["logits"], dtype=torch.float64)
    assert first.shape == (1, case["num_classes"])
    assert (first[0] - wanted).abs().max() < tolerance
    assert (both[0] - wanted).abs().max() < tolerance
    second = torch.tensor(case["logits_image1_first8"], dtype=torch.float64)
    assert (both[1, : len(second)] - second).abs().max() < tolerance
    assert first[0].topk(5).indices.tolist() == case["top5"]


def test_stage_maps_and_the_vector_before_the_head_equal_the_official_ones() -> None:
    file = golden("golden-tiny-123")
    case = file["cases"][1]  # 96x80, not square
    model = golden_model(golden_config(file["spec"], 1000)).double()
    x = golden_input(2, case["height"], case["width"]).double()

    with torch.inference_mode():
        prehead = model.forward_features(x)
        for index, wanted in enumerate(case["stages"]):
            x, class_token = model.get_submodule(f"stage{index}")(x)
            assert list(x.shape[1:]) == wanted["shape"]
            assert x[0].flatten()[:8].tolist() == pytest.approx(wanted["first8"], abs=1e-7)
            assert (class_token is None) == (wanted["cls_token"] is None)

    assert prehead[0, :8].tolist() == pytest.approx(case["prehead"]["first8"], abs=1e-7)


@pytest.mark.parametrize("name", ["tiny", "tiny-123", "cvt-13", "cvt-w24"])
def test_tensor_names_shapes_and_order_are_the_official_ones(name: str) -> None:
    file = golden(f"golden-{name}")
    with torch.device("meta"):
        model = CvT(golden_config(file["spec"], 1000))

    listing = [(tensor, list(value.shape)) for tensor, value in model.state_dict().items()]

    assert listing == [(row[0], row[1]) for row in file["state_dict"]]


@pytest.mark.parametrize(("variant", "name"), [("13", "cvt-13"), ("w24", "cvt-w24")])
def test_variants_are_what_the_official_yaml_files_say(variant: str, name: str) -> None:
    assert VARIANTS[variant].config == golden_config(golden(f"golden-{name}")["spec"], 1000)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (64, 32), (95, 101)])
def test_any_size_from_32_up_works(size: tuple[int, int]) -> None:
    model = CvT(VARIANTS["nano"].config).eval()

    with torch.inference_mode():
        assert model(torch.zeros(1, 3, *size)).shape == (1, 10)


def test_exact_gelu_is_chosen_by_the_config() -> None:
    quick = golden_config(golden("golden-tiny")["spec"], 10)
    exact = golden_model(CvTConfig(quick.stages, 10, "gelu"))
    batch = golden_input(1, 64, 64)

    with torch.inference_mode():
        difference = (exact(batch) - golden_model(quick)(batch)).abs().max()

    assert 1e-3 < difference < 0.2


def test_stochastic_depth_keeps_the_expected_value_and_drops_whole_samples() -> None:
    torch.manual_seed(0)
    branch = torch.ones(20_000, 3, 2)

    dropped = drop_path(branch, 0.25, training=True)

    per_sample = dropped.flatten(1)
    assert sorted(per_sample.unique().tolist()) == pytest.approx([0, 1 / 0.75])
    assert (per_sample == per_sample[:, :1]).all()
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert drop_path(branch, 0.25, training=False) is branch


def test_a_dropped_sample_keeps_its_residual_stream() -> None:
    model = golden_model(golden_config(golden("golden-tiny")["spec"], 10)).train()
    block = model.get_submodule("stage2.blocks.1")
    block.drop_path_rate = 1 - 1e-9
    tokens = torch.randn(4, 17, 64)

    assert torch.equal(block(tokens, 4, 4), tokens)


def learnt(model: CvT, logits: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
    """What a step in training mode gives: logits, gradients, statistics."""
    model.zero_grad()
    torch.manual_seed(0)
    found = logits(golden_input(5, 64, 64).double())
    found.square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None for gradient in gradients)
    return [found, *gradients, *model.buffers()]


def test_a_branch_that_is_not_computed_is_learnt_from_as_one_that_is_dropped(monkeypatch) -> None:
    def step() -> list[torch.Tensor]:
        model = golden_model(golden_config(golden("golden-tiny")["spec"], 10)).double().train()
        for block in model.modules():
            if isinstance(block, Block):
                block.drop_path_rate = 0.4
        return learnt(model, model)

    spared = step()
    monkeypatch.setattr(Block, "_kept", lambda self, x: None)
    dropped = step()

    for one, other in zip(spared, dropped, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


def test_the_class_token_alone_learns_as_with_the_other_tokens() -> None:
    def step(alone: bool) -> list[torch.Tensor]:
        model = golden_model(golden_config(golden("golden-tiny")["spec"], 10)).double().train()
        return learnt(model, model if alone else partial(with_all_tokens, model))

    for one, other in zip(step(alone=True), step(alone=False), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("width", "to"), [(48, 96), (96, 48)])
def test_a_linear_layer_as_a_convolution_is_the_same_function(
    width: int, to: int, monkeypatch
) -> None:
    monkeypatch.setattr("cvt_cli.model.network._has_amx", lambda: False)
    torch.manual_seed(0)
    # So many numbers as are computed as a convolution.
    tensors = [torch.randn(shape) for shape in ((17, 30, width), (to, width), (to,))]

    def results(compute, dtype: torch.dtype) -> list[torch.Tensor]:
        own = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in tensors]
        y = compute(*own)
        y.square().sum().backward()
        return [y.detach(), *(tensor.grad for tensor in own)]

    for found, wanted in zip(
        results(pointwise, torch.float32),
        results(torch.nn.functional.linear, torch.float64),
        strict=True,
    ):
        assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_stochastic_depth_rises_linearly_inside_each_stage() -> None:
    model = CvT(VARIANTS["13"].config)

    rates = [block.drop_path_rate for block in model.get_submodule("stage2").blocks]

    assert rates == pytest.approx([0.1 * i / 9 for i in range(10)])
    assert all(block.drop_path_rate == 0 for block in model.get_submodule("stage1").blocks)


def test_bfloat16_on_a_cpu_stays_close_to_float32() -> None:
    model = golden_model(golden_config(golden("golden-tiny")["spec"], 10))
    batch = golden_input(2, 64, 64)

    with torch.inference_mode():
        exact = model(batch)
        with torch.autocast("cpu", torch.bfloat16):
            rough = model(batch)

    assert rough.dtype == torch.bfloat16
    assert 0 < (rough.float() - exact).abs().max() < 0.1


def test_fresh_weights_have_the_official_spread() -> None:
    torch.manual_seed(0)
    model = CvT(VARIANTS["nano"].config)
    init_weights(model)

    weight = model.get_parameter("stage2.blocks.0.mlp.fc1.weight")
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert model.get_parameter("stage2.cls_token").std().item() == pytest.approx(0.02, rel=0.2)
    assert not model.get_parameter("stage2.blocks.0.mlp.fc1.bias").any()
