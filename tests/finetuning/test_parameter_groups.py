"""Weight decay and rates by depth are the reference's."""

import pytest
import torch

from cvt_cli.finetuning.parameter_groups import parameter_groups
from cvt_cli.model.network import CvT
from cvt_cli.spec.variants import VARIANTS
from tests_shared import golden, small_model


@pytest.mark.parametrize("name", ["cvt-13", "cvt-21", "cvt-w24"])
def test_biases_norms_and_the_class_token_are_not_decayed(name: str) -> None:
    with torch.device("meta"):
        model = CvT(VARIANTS[name.removeprefix("cvt-")].config)

    decayed, spared = sorted(parameter_groups(model, 0.05), key=lambda g: -g["weight_decay"])

    wanted = golden("weight-decay-groups")[name]
    assert decayed["weight_decay"] == 0.05 and spared["weight_decay"] == 0.0
    assert len(decayed["params"]) == wanted["with_decay_tensors"]
    assert len(spared["params"]) == wanted["without_decay_tensors"]
    assert sum(p.numel() for p in decayed["params"]) == wanted["with_decay_params"]
    assert sum(p.numel() for p in spared["params"]) == wanted["without_decay_params"]


def test_lower_blocks_learn_more_slowly() -> None:
    groups = parameter_groups(small_model(), 0.05, layer_decay=0.5)

    model = small_model()
    names = {p.shape: n for n, p in model.named_parameters()}
    scales = {
        names[p.shape]: g["rate_scale"] for g in groups for p in g["params"] if p.shape in names
    }
    assert scales["head.weight"] == 1.0
    # head; then from the top: two blocks, token embedding, one block, token embedding
    assert scales["stage0.patch_embed.proj.weight"] == 0.5**5
    assert scales["stage1.patch_embed.proj.weight"] == 0.5**3
    assert {g["rate_scale"] for g in groups} == {0.5**i for i in range(6)}
