"""The inference form gives the training form's logits from less work."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cvt_cli.base.package import DATA
from cvt_cli.images import decode, transform
from cvt_cli.model import weights
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.inference import Depthwise, inference_form
from tests_shared import GOLDEN_CASES, TINY, golden, golden_config, golden_input, golden_model


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("name", "position"), GOLDEN_CASES)
@pytest.mark.parametrize("packed", [False, True], ids=["linear", "packed"])
def test_logits_equal_the_official_implementation(name: str, position: int, packed: bool) -> None:
    file = golden(f"golden-{name}")
    case = file["cases"][position]
    model = golden_model(golden_config(file["spec"], case["num_classes"]))
    form = inference_form(model)
    if packed:
        form.pack()
    wanted = torch.tensor(case["logits"])

    for batch in (1, 2, 7) if name.startswith("tiny") else (1, 2):
        with torch.inference_mode():
            logits = form(golden_input(2, case["height"], case["width"])[[0, 1] * 3 + [0]][:batch])
        assert logits.shape == (batch, case["num_classes"])
        assert (logits[0] - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_in_float64_it_is_the_same_function(activation: str) -> None:
    model = golden_model(TINY.with_activation(activation)).double()
    batch = golden_input(3, 72, 104).double()

    with torch.inference_mode():
        expected, logits = model(batch), inference_form(model)(batch)

    assert (logits - expected).abs().max() < 1e-12


def test_the_network_that_it_is_made_from_stays_as_it_is() -> None:
    model = golden_model(TINY)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    form = inference_form(model).bfloat16()
    form.pack()
    form(golden_input(2, 64, 64).bfloat16())

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_memory_grows_with_the_pixels_not_with_their_square() -> None:
    form = inference_form(golden_model(TINY)).bfloat16()
    form.pack()
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            nonlocal largest
            result = function(*arguments, **(keywords or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    with torch.inference_mode(), Watch():
        form(golden_input(1, 512, 512).bfloat16())

    assert largest < 3_000_000  # 16,384 queries on 4,096 keys would be 67 million scores


def test_bfloat16_agrees_on_all_but_one_image_in_two_hundred(cifar10: Path) -> None:
    loaded = weights.load(DATA / "cvt-nano-cifar10")
    paths = sorted((cifar10 / "test").rglob("*.png"))[::5]
    batch = np.stack(
        [transform.preprocess(decode.load(p, False), loaded.preprocessing) for p in paths]
    )
    cpu = torch.device("cpu")

    exact = TorchEngine(loaded.model, cpu, "fp32")(batch).argmax(1)
    rounded = TorchEngine(loaded.model, cpu, "bf16")(batch).argmax(1)

    assert len(paths) == 2000
    assert (exact == rounded).mean() >= 0.995


def test_convolutions_as_sums_are_the_same_function() -> None:
    """As a compiler gets them on a GPU."""
    form = inference_form(golden_model(TINY).double())
    batch = golden_input(2, 72, 104).double()

    with torch.inference_mode():
        expected = form(batch)
        for module in form.modules():
            if isinstance(module, Depthwise):
                module.forward = partial(sums, module)
        logits = form(batch)

    assert (logits - expected).abs().max() < 1e-5


def sums(module: Depthwise, x: torch.Tensor) -> torch.Tensor:
    return module._by_products(x)
