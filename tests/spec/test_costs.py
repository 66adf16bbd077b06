"""Parameters and MACs by arithmetic are the module's and torch.utils.flop_counter's."""

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from cvt_cli.model.network import CvT
from cvt_cli.spec.costs import costs, tensor_shapes
from cvt_cli.spec.variants import VARIANTS
from tests_shared import golden, golden_config, with_all_tokens

MACS = golden("macs")["models"]


def config_of(name: str):
    if name.startswith("tiny"):
        return golden_config(golden("golden-tiny")["spec"], 1000)
    return VARIANTS[name.removeprefix("cvt-")].config


@pytest.mark.parametrize("key", MACS)
def test_params_and_macs_equal_the_golden_counts(key: str) -> None:
    name, _, size = key.partition("@")
    height, width = map(int, size.split("x"))

    counted = costs(name, config_of(name), height, width)

    exact = MACS[key]["exact_macs"]
    assert counted.params == MACS[key]["params"]
    assert counted.macs == exact["total"]
    by_kind = {
        kind: sum(row.macs for row in counted.rows if row.kind == kind)
        for kind in ("linear", "convolution", "attention")
    }
    assert list(by_kind.values()) == [
        exact["linear"],
        exact["convolution"],
        exact["attention_matmuls"],
    ]


@pytest.mark.parametrize(
    ("variant", "height", "width"),
    [("13", 224, 224), ("13", 97, 131), ("21", 384, 384), ("w24", 224, 224), ("nano", 32, 48)],
)
def test_macs_are_half_of_what_the_flop_counter_finds(
    variant: str, height: int, width: int
) -> None:
    with torch.device("meta"):
        model = CvT(VARIANTS[variant].config).eval()
        batch = torch.empty(1, 3, height, width)

    # The plain attention kernel is two matrix products that the counter knows on every version.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        with_all_tokens(model, batch)

    counted = costs(variant, VARIANTS[variant].config, height, width)
    assert counted.macs * 2 == counter.get_total_flops()
    assert counted.params == sum(parameter.numel() for parameter in model.parameters())


def test_facts_hold_to_the_digit() -> None:
    params = {name: costs(name, v.config, 224, 224).params for name, v in VARIANTS.items()}
    gigamacs = {
        (name, size): round(costs(name, VARIANTS[name].config, size, size).macs / 1e9, 3)
        for name in ("13", "21", "w24")
        for size in (224, 384)
    }

    assert params == {"13": 19_997_480, "21": 31_622_696, "w24": 277_196_392, "nano": 832_138}
    assert gigamacs == {
        ("13", 224): 4.566,
        ("13", 384): 16.269,
        ("21", 224): 7.178,
        ("21", 384): 24.849,
        ("w24", 224): 60.917,
        ("w24", 384): 194.222,
    }


def test_the_paper_is_quoted_only_where_it_speaks() -> None:
    assert costs("13", VARIANTS["13"].config, 224, 224).paper_macs == 4_530_000_000
    assert costs("13", VARIANTS["13"].config, 256, 256).paper_macs is None
    assert costs("13", VARIANTS["13"].config, 256, 256).paper_params == 19_980_000
    assert costs("13", VARIANTS["13"].config.with_classes(10), 224, 224).paper_params is None
    assert costs("nano", VARIANTS["nano"].config, 32, 32).paper_params is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_shapes_of_all_tensors_are_those_of_the_network(variant: str) -> None:
    with torch.device("meta"):
        state = CvT(VARIANTS[variant].config).state_dict()

    assert tensor_shapes(VARIANTS[variant].config) == {n: tuple(t.shape) for n, t in state.items()}
    trained = {n: s for n, s in tensor_shapes(VARIANTS[variant].config).items() if ".bn.r" not in n}
    counted = sum(math.prod(s) for n, s in trained.items() if not n.endswith("_tracked"))
    assert counted == costs(variant, VARIANTS[variant].config, 224, 224).params
