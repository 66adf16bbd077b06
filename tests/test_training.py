"""One training step equals the official one; schedules and recipes are what facts say."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cvt_cli import training
from cvt_cli.config import VARIANTS, CvTConfig
from cvt_cli.errors import UsageError
from cvt_cli.model import CvT
from cvt_cli.preprocessing import Preprocessing
from cvt_cli.training import Recipe, learning_rate_at, named_recipe, parameter_groups
from tests_shared import golden, golden_config, golden_input, golden_model

STEP = golden("train-tiny")


@pytest.fixture
def model() -> CvT:
    spec = golden("golden-tiny")["spec"] | STEP["changes"]
    return golden_model(golden_config(spec, STEP["num_classes"])).double().train()


def test_losses_gradients_and_an_adamw_step_equal_the_official_ones(model: CvT) -> None:
    batch = golden_input(STEP["batch"], STEP["height"], STEP["width"]).double()
    labels = torch.tensor(STEP["labels"])

    logits = model(batch)
    smoothed = F.cross_entropy(logits, labels, label_smoothing=0.1)
    smoothed.backward()

    assert logits[0].tolist() == pytest.approx(STEP["logits"][0], abs=1e-7)
    assert F.cross_entropy(logits, labels).item() == pytest.approx(
        STEP["losses"]["cross_entropy"], abs=1e-7
    )
    assert smoothed.item() == pytest.approx(STEP["losses"]["label_smoothing_0_1"], abs=1e-7)
    settings = STEP["optimizer"]
    optimizer = torch.optim.AdamW(
        parameter_groups(model, settings["weight_decay"]),
        lr=settings["lr"],
        betas=tuple(settings["betas"]),
        eps=settings["eps"],
    )
    optimizer.step()
    parameters = dict(model.named_parameters())
    compared = 0
    for name, norm, gradient, after, _ in STEP["params"]:
        if name in STEP["zero_grads"]["names"]:
            continue
        grad = parameters[name].grad
        assert grad.norm().item() == pytest.approx(norm, rel=1e-6), name
        assert grad.flatten()[:4].tolist() == pytest.approx(gradient, abs=1e-6, rel=1e-6), name
        assert parameters[name].flatten()[:4].tolist() == pytest.approx(after, abs=1e-6), name
        compared += 1
    assert compared == 108
    buffers = dict(model.named_buffers())
    for name, wanted in STEP["buffers_after"].items():
        assert buffers[name].flatten()[:4].tolist() == pytest.approx(wanted[:4], abs=1e-6), name


@pytest.mark.parametrize("name", ["cvt-13", "cvt-21", "cvt-w24"])
def test_biases_norms_and_the_class_token_are_not_decayed(name: str) -> None:
    with torch.device("meta"):
        model = CvT(VARIANTS[name.removeprefix("cvt-")])

    decayed, spared = parameter_groups(model, 0.05)

    wanted = golden("weight-decay-groups")[name]
    assert decayed["weight_decay"] == 0.05 and spared["weight_decay"] == 0.0
    assert len(decayed["params"]) == wanted["with_decay_tensors"]
    assert len(spared["params"]) == wanted["without_decay_tensors"]
    assert sum(p.numel() for p in decayed["params"]) == wanted["with_decay_params"]
    assert sum(p.numel() for p in spared["params"]) == wanted["without_decay_params"]


def test_the_imagenet_recipe_is_the_reference_files() -> None:
    recipe = named_recipe("imagenet", VARIANTS["13"])

    assert recipe == Recipe(300, 2048, 0.002, 5, 0.05, "imagenet", label_smoothing=0.1)
    assert named_recipe("imagenet", VARIANTS["21"]).weight_decay == 0.1
    assert named_recipe("imagenet", VARIANTS["w24"]).weight_decay == 0.1


def test_the_learning_rate_is_linear_in_the_batch_unless_given() -> None:
    recipe = named_recipe("imagenet", VARIANTS["13"])

    assert recipe.override(batch_size=512).learning_rate == pytest.approx(0.0005)
    assert recipe.override(batch_size=512, learning_rate=0.1).learning_rate == 0.1
    assert recipe.override(epochs=None) == recipe
    with pytest.raises(UsageError, match="a warm-up of 5 epochs does not fit into 3 epochs"):
        recipe.override(epochs=3)


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    recipe = named_recipe("imagenet", VARIANTS["13"])

    rates = [learning_rate_at(step, 10, recipe) for step in (0, 25, 50, 1525, 3000)]

    assert rates == pytest.approx([1e-6, 1.0005e-3, 2e-3, 1.005e-3, 1e-5])


@pytest.mark.parametrize("kind", ["none", "crop-flip", "imagenet"])
@pytest.mark.parametrize(
    "record", [Preprocessing(32, 32, "crop", 1.0), Preprocessing(128, 160, "crop")], ids=str
)
def test_every_augmentation_gives_arrays_of_the_input_size(kind, record: Preprocessing) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    torch.manual_seed(0)
    transform = training.augmentation(kind, record)

    first, second = transform(Image.fromarray(pixels)), transform(Image.fromarray(pixels))

    assert first.shape == (3, record.height, record.width) and first.dtype == torch.float32
    assert torch.equal(first, second) == (kind == "none")


@pytest.mark.parametrize("kind", ["none", "crop-flip", "imagenet"])
def test_augmentation_travels_to_worker_processes(kind) -> None:
    for size in (32, 224):
        pickle.loads(pickle.dumps(training.augmentation(kind, Preprocessing.published(size, size))))


def test_augmented_images_are_not_resized_a_second_time() -> None:
    # Each column holds its own number, and 160 is the size that 128 is cropped from.
    columns = np.tile(np.arange(160, dtype=np.uint8)[None, :, None], (160, 1, 3))
    record = Preprocessing(128, 128, "crop")
    torch.manual_seed(0)

    array = training.augmentation("crop-flip", record)(Image.fromarray(columns))

    greys = (array[0] * record.std[0] + record.mean[0]) * 255
    steps = greys.diff(dim=1).round().unique().tolist()
    assert steps in ([1.0], [-1.0])


def test_mixing_gives_soft_targets_that_sum_to_one() -> None:
    mix = training.mixing("imagenet", 10)

    batch, targets = mix(torch.rand(4, 3, 32, 32), torch.arange(4))

    assert batch.shape == (4, 3, 32, 32)
    assert targets.shape == (4, 10) and targets.sum(1).tolist() == pytest.approx([1] * 4)
    assert training.mixing("crop-flip", 10) is None


def test_a_seed_gives_the_same_fresh_weights() -> None:
    config = CvTConfig(VARIANTS["nano"].stages, 3)

    same = zip(
        training.fresh_model(config, 7).state_dict().values(),
        training.fresh_model(config, 7).state_dict().values(),
        strict=True,
    )

    assert all(torch.equal(a, b) for a, b in same)
