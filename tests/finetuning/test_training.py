"""One training step equals the official one; schedules and recipes are what facts say."""

import gc
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cvt_cli.base.errors import CvtError, DataError, UsageError
from cvt_cli.datasets import labelled, layouts
from cvt_cli.finetuning import batches as training_data
from cvt_cli.finetuning import training
from cvt_cli.finetuning.parameters import freeze, parameter_groups
from cvt_cli.finetuning.schedule import Schedule, schedule_of
from cvt_cli.finetuning.training import Part, Trainer
from cvt_cli.finetuning.watch import Watch
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.network import Block, CvT, fresh_model
from cvt_cli.spec.config import CvTConfig, StageConfig
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import AUGMENTATIONS, Recipe, named_recipe
from cvt_cli.spec.variants import VARIANTS
from tests_shared import golden, golden_config, golden_input, golden_model

STEP = golden("train-tiny")
PLAIN = Recipe("plain", "adamw", 1, 4, 1e-3, 0, 0.05, "none", clip_norm=0.0)


def make_trainer(
    model: CvT, recipe: Recipe = PLAIN, schedule: Schedule | None = None, **options
) -> Trainer:
    return Trainer(
        model,
        recipe,
        schedule or Schedule(recipe.learning_rate, 10, 0),
        device=torch.device("cpu"),
        precision="fp32",
        seed=0,
        **options,
    )


def small_model(drop_path: float = 0.0) -> CvT:
    stages = (StageConfig(8, 1, 1, 5, 2, 2), StageConfig(16, 2, 2, 3, 2, 1, drop_path=drop_path))
    return fresh_model(CvTConfig(stages, 3), 1)


def a_batch(seed: int = 0, images: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(images, 3, 32, 32, generator=generator), torch.arange(images) % 3


def same(first: CvT, second: CvT) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


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
    assert (settings["betas"], settings["eps"]) == ([0.9, 0.999], 1e-8)  # also PyTorch's
    model = golden_model(model.config).double()
    recipe = replace(PLAIN, weight_decay=settings["weight_decay"])
    trainer = make_trainer(model, recipe, Schedule(settings["lr"], 1, 0))
    trainer.backward([(batch, labels)])
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    trainer = make_trainer(golden_model(model.config).double(), recipe, trainer.schedule)

    loss = trainer.step([(batch, labels)])

    assert loss.item() == pytest.approx(STEP["losses"]["label_smoothing_0_1"], abs=1e-7)
    model = trainer.model
    parameters = dict(model.named_parameters())
    compared = 0
    for name, norm, gradient, after, _ in STEP["params"]:
        if name in STEP["zero_grads"]["names"]:
            continue
        grad = gradients[name]
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
        model = CvT(VARIANTS[name.removeprefix("cvt-")].config)

    decayed, spared = sorted(parameter_groups(model, 0.05), key=lambda g: -g["weight_decay"])

    wanted = golden("weight-decay-groups")[name]
    assert decayed["weight_decay"] == 0.05 and spared["weight_decay"] == 0.0
    assert len(decayed["params"]) == wanted["with_decay_tensors"]
    assert len(spared["params"]) == wanted["without_decay_tensors"]
    assert sum(p.numel() for p in decayed["params"]) == wanted["with_decay_params"]
    assert sum(p.numel() for p in spared["params"]) == wanted["without_decay_params"]


def test_the_imagenet_recipe_is_the_reference_files() -> None:
    recipe = named_recipe("imagenet", VARIANTS["13"].config)

    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (300, 2048, 0.002)
    assert (recipe.warmup_epochs, recipe.weight_decay, recipe.augment) == (5, 0.05, "imagenet")
    assert recipe.label_smoothing == 0.1
    assert named_recipe("imagenet", VARIANTS["21"].config).weight_decay == 0.1
    assert named_recipe("imagenet", VARIANTS["w24"].config).weight_decay == 0.1


@pytest.mark.parametrize(
    ("data", "images", "steps"),
    [
        ("cifar10", 50_000, 10_000),
        ("cifar100", 50_000, 10_000),
        ("oxford-iiit-pet", 3_680, 500),
        ("flowers102", 2_040, 500),
        ("imagenet", 1_281_167, 20_000),
    ],
)
def test_the_papers_recipe_has_the_papers_steps(data: str, images: int, steps: int) -> None:
    recipe = named_recipe("paper", None, data, images)

    assert (recipe.optimizer, recipe.batch_size, recipe.res) == ("sgd", 512, 384)
    assert recipe.steps == steps
    assert "learning_rate" in recipe.not_published and recipe.learning_rate == 0.01


@pytest.mark.parametrize(
    ("images", "augment"),
    [(500, "crop-flip"), (5_000, "medium"), (50_000, "medium"), (1_281_167, "imagenet")],
)
def test_the_default_recipe_varies_images_by_how_many_there_are(images: int, augment: str) -> None:
    assert named_recipe("default", None, "folder", images).augment == augment


def test_the_learning_rate_is_linear_in_the_batch_unless_given() -> None:
    recipe = named_recipe("imagenet", VARIANTS["13"].config)

    assert recipe.override(batch_size=512).learning_rate == pytest.approx(0.0005)
    assert recipe.override(batch_size=512, learning_rate=0.1).learning_rate == 0.1
    assert recipe.override(epochs=None) == recipe
    assert named_recipe("paper").override(epochs=3).steps is None
    assert recipe.override(epochs=8).warmup_epochs == 2
    with pytest.raises(UsageError, match="a warm-up of 5 epochs does not fit into 3 epochs"):
        recipe.override(epochs=3, warmup_epochs=5)


def test_the_learning_rate_warms_up_and_follows_a_cosine() -> None:
    schedule = schedule_of(named_recipe("imagenet", VARIANTS["13"].config), 10)

    rates = [schedule(step) for step in (0, 25, 50, 1525, 3000)]

    assert rates == pytest.approx([1e-6, 1.0005e-3, 2e-3, 1.005e-3, 1e-5])


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


def test_stochastic_depth_drops_branches_and_keeps_the_stream() -> None:
    # transformers drops what comes after the sum, so that a sample loses its whole stream.
    torch.manual_seed(0)
    block = Block(StageConfig(8, 1, 1, 3, 2, 1), 0.25, "quick_gelu").double().train()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    x = torch.randn(1, 16, 8).double().repeat(8000, 1, 1)

    y = block(x, 4, 4)

    attended = x + block.attn(block.norm1(x), 4, 4) / 0.75
    both = attended + block.mlp(block.norm2(attended)) / 0.75
    fed = x + block.mlp(block.norm2(x)) / 0.75
    shares = [
        (y - outcome).abs().amax(dim=(1, 2)).lt(1e-9).double().mean().item()
        for outcome in (x, attended, fed, both)
    ]
    assert shares == pytest.approx([0.0625, 0.1875, 0.1875, 0.5625], abs=0.02)


def test_stochastic_depth_rises_within_the_stage() -> None:
    rates = VARIANTS["w24"].config.stages[2].drop_path_rates

    assert (rates[0], rates[-1], len(rates)) == (0.0, pytest.approx(0.3), 20)
    assert np.diff(rates) == pytest.approx(0.3 / 19)


def test_accumulated_parts_learn_as_the_whole_batch_does() -> None:
    images, labels = a_batch(images=6)
    models = [small_model(), small_model()]
    whole, parts = (make_trainer(m, frozen=batch_norms(m)) for m in models)

    loss = whole.backward([(images, labels)])
    mean = parts.backward([(images[:3], labels[:3]), (images[3:], labels[3:])])

    assert mean.item() == pytest.approx(loss.item(), abs=1e-6)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_checkpointed_activations_learn_the_same_bits() -> None:
    models = [small_model(drop_path=0.5), small_model(drop_path=0.5)]
    kept = make_trainer(models[0])
    recomputed = make_trainer(models[1], checkpoint_activations=True)

    for seed in range(3):
        kept.step([a_batch(seed)])
        recomputed.step([a_batch(seed)])

    assert same(*models)


def test_frozen_parts_keep_their_weights_and_statistics() -> None:
    model, before = small_model(), small_model()
    trainer = make_trainer(model, frozen=freeze(model, ["stage0"]))

    trainer.step([a_batch()])

    assert same(model.stage0, before.stage0)
    assert not same(model.stage1, before.stage1)
    with pytest.raises(UsageError, match="there is no part `stage7` to freeze"):
        freeze(model, ["stage7"])


def test_the_moving_average_covers_weights_and_statistics() -> None:
    model = small_model()
    trainer = make_trainer(model, replace(PLAIN, learning_rate=0.01), ema=100)
    expected = {name: t.clone() for name, t in model.state_dict().items()}

    for step in range(1, 4):
        trainer.step([a_batch(step)])
        keep = step / (step + 9)  # below exp(-1/100) so early
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                expected[name] = keep * expected[name] + (1 - keep) * tensor

    average = trainer.best_model.state_dict()
    assert average["stage1.blocks.0.attn.conv_proj_q.bn.num_batches_tracked"] == 3
    for name, tensor in expected.items():
        if tensor.is_floating_point():
            assert torch.allclose(average[name], tensor, atol=1e-6), name


def test_a_restored_trainer_goes_on_bit_by_bit() -> None:
    model, other = small_model(drop_path=0.5), small_model(drop_path=0.5)
    recipe = replace(PLAIN, augment="imagenet")  # mixing draws too
    straight, first = make_trainer(model, recipe, ema=5), make_trainer(other, recipe, ema=5)
    for step in range(4):
        straight.step([a_batch(step)])
    for step in range(2):
        first.step([a_batch(step)])
    tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
    again = make_trainer(fresh_model(other.config, 99), recipe, ema=5)

    again.restore(tensors, first.numbers())
    for step in range(2, 4):
        again.step([a_batch(step)])

    assert same(again.model, model) and same(again.best_model, straight.best_model)


def test_a_trial_leaves_the_network_as_it_was() -> None:
    model, before = small_model(), small_model()

    seconds, tried = make_trainer(model).trial(iter([[a_batch(i)] for i in range(9)]), 3)

    assert seconds > 0 and tried == 3
    assert same(model, before) and all(p.grad is None for p in model.parameters())


def test_balanced_classes_weigh_the_same() -> None:
    weights = training.class_weights([0, 0, 0, 1], 2)

    assert weights.tolist() == pytest.approx([4 / 6, 2.0])


WEIGHTS = torch.tensor([1.0, 2.0, 4.0])


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mixed"])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_each_image_weighs_what_its_class_does_in_any_number_of_parts(
    parts: int, mixed: bool
) -> None:
    images, labels = a_batch(images=8)
    targets = labels
    if mixed:  # as MixUp makes them, here the same in every part
        targets = 0.75 * F.one_hot(labels, 3) + 0.25 * F.one_hot(labels.roll(1), 3)
    model, other = small_model(), small_model()
    trainer = make_trainer(model, class_weights=WEIGHTS, frozen=batch_norms(model))

    loss = trainer.backward(
        [(i, t) for i, t in zip(images.chunk(parts), targets.chunk(parts), strict=True)]
    )

    for module in batch_norms(other.train()):
        module.eval()
    logs = torch.log_softmax(other(images), dim=1)
    shares = F.one_hot(labels, 3).float() if not mixed else targets
    losses = -((0.9 * shares + 0.1 / 3) * logs).sum(dim=1)  # label smoothing
    expected = (losses * (shares @ WEIGHTS)).sum() / len(images)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for one, wanted in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(one.grad, wanted.grad, atol=1e-6)


def test_parts_that_differ_by_an_image_learn_as_the_whole_batch_does() -> None:
    images, labels = a_batch(images=5)
    models = [small_model(), small_model()]
    whole, parts = (make_trainer(m, class_weights=WEIGHTS, frozen=batch_norms(m)) for m in models)

    loss = whole.backward([(images, labels)])
    mean = parts.backward([(images[:3], labels[:3]), (images[3:], labels[3:])])

    assert mean.item() == pytest.approx(loss.item(), abs=1e-6)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-6)


def test_a_network_with_synchronised_batchnorm_answers_as_without() -> None:
    # A CPU cannot train it; what is saved, loaded and judged is checked here.
    model, other = small_model(), small_model()
    make_trainer(other).step([a_batch()])  # statistics that are not the first ones
    model.load_state_dict(other.state_dict())

    trainer = make_trainer(model, ema=5, sync_batchnorm=True)

    norms = [m for m in trainer.model.modules() if isinstance(m, torch.nn.SyncBatchNorm)]
    assert len(norms) == len(batch_norms(other)) and not batch_norms(trainer.model)
    assert trainer.model.state_dict().keys() == other.state_dict().keys()
    for network in (trainer.model, trainer.best_model):
        engines = [TorchEngine(m, torch.device("cpu"), "fp32") for m in (network, other)]
        one, wanted = (engine(a_batch()[0].numpy()) for engine in engines)
        assert np.array_equal(one, wanted)


def test_a_step_that_overflows_in_fp16_is_left_out_and_the_scale_is_gone_on_with() -> None:
    # On a CPU, where the command refuses fp16; the scaler is the one that a GPU has.
    def fp16() -> Trainer:
        return Trainer(
            small_model(), PLAIN, Schedule(1e-2, 10, 0), device=torch.device("cpu"),
            precision="fp16", seed=0,
        )  # fmt: skip

    trainer, start = fp16(), small_model()
    (images, labels), scale = a_batch(), fp16().scaler.get_scale()
    trainer.step([(images * float("inf"), labels)])
    assert all(map(torch.equal, trainer.model.parameters(), start.parameters()))
    assert trainer.scaler.get_scale() == scale / 2

    again = fp16()
    again.restore(
        {name: tensor.clone() for name, tensor in trainer.tensors().items()}, trainer.numbers()
    )

    assert again.scaler.get_scale() == scale / 2
    again.model.load_state_dict(start.state_dict())  # statistics took the overflow in
    again.step([(images, labels)])
    assert not same(again.model, start)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ([1.0, float("nan")], "the loss is nan at step 2, with a learning rate of 1.00e-03"),
        ([2.0] + [40.0] * 30, "the loss has run away to"),
    ],
)
def test_a_lost_run_is_stopped_with_what_to_change(losses: Sequence[float], message: str) -> None:
    watch = Watch(10, PLAIN, "bf16")

    with pytest.raises(CvtError, match=message) as caught:
        for step, loss in enumerate(losses):
            watch(torch.tensor(loss), step, 1e-3)
        watch.all_good()

    assert "--lr 1.0e-04" in caught.value.hint and "--precision fp32" in caught.value.hint


def test_a_loss_that_falls_is_let_go_on() -> None:
    watch = Watch(10, PLAIN, "fp32")

    for step in range(100):
        watch(torch.tensor(3.0 - step / 50), step, 1e-3)
    watch.all_good()

    with pytest.raises(CvtError, match="the loss is nan at step 101"):  # it did look
        watch(torch.tensor(float("nan")), 100, 1e-3)
        watch.all_good()


def batch_norms(model: CvT) -> list[torch.nn.Module]:
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize(
    "record", [Preprocessing(32, 32, "crop", 1.0), Preprocessing(128, 160, "crop")], ids=str
)
def test_every_augmentation_gives_arrays_of_the_input_size(kind, record: Preprocessing) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    torch.manual_seed(0)
    transform = training_data.augmentation(AUGMENTATIONS[kind], record)

    first, second = transform(Image.fromarray(pixels)), transform(Image.fromarray(pixels))

    assert first.shape == (3, record.height, record.width) and first.dtype == torch.float32
    assert torch.equal(first, second) == (kind == "none")


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_travels_to_worker_processes(kind) -> None:
    for size in (32, 224):
        record = Preprocessing.published(size, size)
        here = training_data.augmentation(AUGMENTATIONS[kind], record)
        there = pickle.loads(pickle.dumps(here))
        found = []
        for transform in (here, there):
            torch.manual_seed(3)
            found.append(transform(Image.new("RGB", (300, 260), (200, 100, 50))))
        assert torch.equal(*found)


def test_augmented_images_are_not_resized_a_second_time() -> None:
    # Each column holds its own number, and 160 is the size that 128 is cropped from.
    columns = np.tile(np.arange(160, dtype=np.uint8)[None, :, None], (160, 1, 3))
    record = Preprocessing(128, 128, "crop")
    torch.manual_seed(0)

    transform = training_data.augmentation(AUGMENTATIONS["crop-flip"], record)
    array = transform(Image.fromarray(columns))

    greys = (array[0] * record.std[0] + record.mean[0]) * 255
    steps = greys.diff(dim=1).round().unique().tolist()
    assert steps in ([1.0], [-1.0])


def test_mixing_gives_soft_targets_that_sum_to_one() -> None:
    mix = training_data.mixing(AUGMENTATIONS["imagenet"], 10)

    batch, targets = mix(torch.rand(4, 3, 32, 32), torch.arange(4))

    assert batch.shape == (4, 3, 32, 32)
    assert targets.shape == (4, 10) and targets.sum(1).tolist() == pytest.approx([1] * 4)
    assert training_data.mixing(AUGMENTATIONS["crop-flip"], 10) is None


def batches(
    data: labelled.LabelledImages, rank: int, processes: int, parts: int, workers: int
) -> training_data.Batches:
    """Of 32 images a step, strongly varied."""
    record = Preprocessing(32, 32, "crop", 1.0)
    return training_data.Batches(
        data,
        training_data.augmentation(AUGMENTATIONS["imagenet"], record),
        part_images=32 // processes // parts,
        parts=parts,
        rank=rank,
        processes=processes,
        seed=3,
        workers=workers,
        pin=False,
    )


def test_images_of_a_step_depend_on_the_seed_and_the_epoch_alone(signdigits: Path) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())

    torch.manual_seed(7)
    whole = next(batches(data, 0, 1, 1, 0).of_epoch(2, 5))[0]
    assert torch.initial_seed() == 7  # the model's randomness is not touched
    halves = [next(batches(data, rank, 2, 2, 1).of_epoch(2, 5)) for rank in (0, 1)]

    for position in (0, 1):
        parts = torch.cat([part[position] for half in halves for part in half])
        assert torch.equal(parts, whole[position])
    other = next(batches(data, 0, 1, 1, 0).of_epoch(3, 5))[0]
    assert not torch.equal(other[1], whole[1])


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [
        (239, 64, [59, 60, 60, 60]),
        (128, 64, [64, 64]),
        (7, 2, [2, 2, 3]),  # one image alone would have no statistics for BatchNorm
        (3, 8, [3]),
    ],
    ids=str,
)
def test_every_image_is_seen_once_an_epoch_in_steps_of_nearly_one_size(
    count: int, most: int, sizes: list[int]
) -> None:
    data = labelled.LabelledImages(
        Path("none"), ("a",), tuple(map(str, range(count))), np.zeros(count, np.int64)
    )
    seen: list[list[int]] = []
    for processes, parts in ((1, 1), (1, 2)) if count < 8 else ((1, 1), (1, 2), (2, 2), (4, 1)):
        of_ranks = [
            training_data.Batches(
                data,
                str,
                part_images=max(1, most // processes // parts),
                parts=parts,
                rank=rank,
                processes=processes,
                seed=1,
                workers=0,
                pin=False,
            )  # fmt: skip
            for rank in range(processes)
        ]
        shares = [[[i for _, i in part] for part in ranks._places] for ranks in of_ranks]
        steps = of_ranks[0].steps
        whole = [
            [i for rank in shares for part in rank[step * parts :][:parts] for i in part]
            for step in range(steps)
        ]
        counts = [of_ranks[0].images(step + 1) - of_ranks[0].images(step) for step in range(steps)]
        assert sorted(i for step in whole for i in step) == list(range(count))
        assert [len(step) for step in whole] == counts
        if (processes, parts) == (1, 1):
            assert sorted(counts) == sizes
            seen = whole
        assert whole == seen or most // processes // parts < 2  # the same images in each step


def test_workers_end_as_soon_as_nobody_needs_their_batches(signdigits: Path) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    before = set(multiprocessing.active_children())
    source = batches(data, 0, 1, 1, workers=1)
    epoch = source.of_epoch(0)
    next(epoch)
    (worker,) = set(multiprocessing.active_children()) - before

    gc.disable()
    try:
        del source, epoch
        assert not worker.is_alive()
    finally:
        gc.enable()


def one_worker(source: training_data.Batches) -> tuple[Iterator[list[Part]], BaseProcess]:
    """The batches of an epoch under way, and the worker that decodes them."""
    before = set(multiprocessing.active_children())
    epoch = source.of_epoch(0)
    next(epoch)
    (worker,) = set(multiprocessing.active_children()) - before
    return epoch, worker


def test_a_worker_without_room_for_its_batch_says_so(signdigits: Path) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    epoch, worker = one_worker(batches(data, 0, 1, 1, workers=1))
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1000, 1000))  # of shared memory too

    with pytest.raises(DataError, match="a worker cannot hand over a batch of 393.* kB") as caught:
        for _ in epoch:
            pass

    assert "--workers 0" in caught.value.hint


def test_a_lost_worker_ends_the_run_with_a_sentence(signdigits: Path) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    epoch, worker = one_worker(batches(data, 0, 1, 1, workers=1))
    os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(CvtError, match="a process that decodes images has ended") as caught:
        with training_data.workers_watched("go on"):
            for _ in epoch:
                pass

    assert caught.value.hint == "go on"


def test_a_worker_ends_when_its_parent_says_so_and_nobody_else(
    signdigits: Path, two_threads: None
) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    epoch, worker = one_worker(batches(data, 0, 1, 1, workers=1))

    for which in ("TERM", "HUP", "INT"):
        subprocess.run(["kill", f"-{which}", str(worker.pid)], check=True)  # another process does
    next(epoch)
    assert worker.is_alive()

    worker.terminate()
    worker.join(5)
    assert not worker.is_alive()


def test_batches_are_the_same_through_pipes(signdigits: Path) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    record = Preprocessing(32, 32, "crop", 1.0)
    found = []
    for shared in (True, False):
        source = training_data.Batches(
            data, training_data.augmentation(AUGMENTATIONS["imagenet"], record), part_images=16,
            parts=2, rank=0, processes=1, seed=3, workers=1, pin=False, shared=shared,
        )  # fmt: skip
        found.append([tensor for part in next(source.of_epoch(1)) for tensor in part])

    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_seed_gives_the_same_fresh_weights() -> None:
    config = CvTConfig(VARIANTS["nano"].config.stages, 3)

    same = zip(
        fresh_model(config, 7).state_dict().values(),
        fresh_model(config, 7).state_dict().values(),
        strict=True,
    )

    assert all(torch.equal(a, b) for a, b in same)
