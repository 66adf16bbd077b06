"""Maps belong to what the network knows, and to the class that is asked for."""

import numpy as np
import pytest
import torch

from cvt_cli.base.package import DATA
from cvt_cli.explanation.methods import METHODS, Maps
from cvt_cli.explanation.target import Target
from cvt_cli.explanation.traced import TracedCvT
from cvt_cli.images import decode, transform
from cvt_cli.model import weights
from cvt_cli.model.network import CvT, init_weights
from tests_shared import CHELSEA, TINY, golden_input, golden_model


@pytest.fixture(scope="module")
def cat() -> torch.Tensor:
    loaded = weights.load(DATA / "cvt-nano-cifar10")
    image = decode.load(CHELSEA, exif=False)
    return torch.from_numpy(transform.preprocess(image, loaded.preprocessing))[None]


def nano() -> CvT:
    return weights.load(DATA / "cvt-nano-cifar10").model


def of(model: CvT, picture: torch.Tensor, method: str, target: Target) -> np.ndarray:
    return Maps(TracedCvT(model), picture).of(method, target).values


def alike(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation."""
    ranks = [np.argsort(np.argsort(values.ravel())) for values in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


@pytest.mark.parametrize("method", METHODS)
def test_a_map_changes_when_weights_are_drawn_anew_from_the_head_down(
    method: str, cat: torch.Tensor
) -> None:
    """The sanity check of Adebayo et al. 2018: what shows edges whatever the weights does not."""
    target = Target(3)
    wanted = of(nano(), cat, method, target)
    torch.manual_seed(1)
    found = []
    model = nano()
    for part in (model.head, model.stage2, model.stage1):
        fresh = torch.nn.ModuleList([part])
        init_weights(fresh)
        found.append(alike(wanted, of(model, cat, method, target)))

    assert alike(wanted, of(nano(), cat, method, target)) == pytest.approx(1)
    if METHODS[method].by_class:
        assert found[0] < 0.9  # the head alone
    assert min(found[1:]) < 0.7


@pytest.mark.parametrize("method", [name for name, one in METHODS.items() if one.by_class])
def test_maps_of_two_classes_differ_and_one_against_the_other_is_neither(
    method: str, cat: torch.Tensor
) -> None:
    model = nano()
    maps = Maps(TracedCvT(model), cat)

    first, second, both = (
        maps.of(method, target).values for target in (Target(3), Target(6), Target(3, 6))
    )

    assert alike(first, second) < 0.9
    assert not np.allclose(both, first) and not np.allclose(both, second)
    if METHODS[method].signed:  # these are linear in what is explained
        assert np.abs(both - (first - second)).max() < 1e-4 * np.abs(first).max() + 1e-6


def test_hirescam_and_layercam_are_products_of_gradients_and_features_as_autograd_has_them() -> (
    None
):
    model = golden_model(TINY).double()
    network, images = TracedCvT(model), golden_input(1, 64, 96).double()
    kept: list[torch.Tensor] = []
    model.stage2.patch_embed.register_forward_hook(
        lambda module, inputs, output: kept.append(inputs[0])
    )
    images.requires_grad_()
    logits = model(images)  # of the training form itself, as a check
    kept[0].retain_grad()
    logits[0, 2].backward()
    product = (kept[0].grad * kept[0]).detach()[0]
    positive = (kept[0].grad.clamp(min=0) * kept[0]).detach()[0].sum(0).clamp(min=0)

    maps = Maps(network, images.detach(), stage=1)

    hirescam, layercam = (maps.of(name, Target(2)).values for name in ("hirescam", "layercam"))
    assert np.abs(hirescam - product.sum(0).numpy()).max() < 1e-6 * np.abs(hirescam).max()
    assert np.abs(layercam - positive.numpy()).max() < 1e-6 * layercam.max()


@pytest.mark.parametrize("size", [(64, 96), (70, 45)])
def test_occlusion_is_the_one_that_captum_computes(size: tuple[int, int]) -> None:
    from captum.attr import Occlusion

    network, images = TracedCvT(golden_model(TINY)).double(), golden_input(1, *size).double()
    window = [side // 4 for side in size]
    wanted = Occlusion(lambda pictures: network(pictures)[:, 2]).attribute(
        images, sliding_window_shapes=(3, *window), strides=(3, *(side // 2 for side in window))
    )

    found = Maps(network, images).of("occlusion", Target(2)).values

    assert np.abs(found - wanted[0, 0].numpy()).max() < 1e-6 * np.abs(found).max()
