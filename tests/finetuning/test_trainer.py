"""One training step equals the official one, in any number of parts, and can be gone on from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cvt_cli.base.errors import UsageError
from cvt_cli.finetuning.parameter_groups import freeze
from cvt_cli.finetuning.schedule import Schedule
from cvt_cli.finetuning.trainer import Trainer
from cvt_cli.model.engine import TorchEngine
from cvt_cli.model.network import Block, CvT, fresh_model
from cvt_cli.spec.config import CvTConfig, StageConfig
from cvt_cli.spec.recipes import Recipe
from cvt_cli.spec.variants import VARIANTS
from tests_shared import golden, golden_config, golden_input, golden_model, small_model

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


def batch_norms(model: CvT) -> list[torch.nn.Module]:
    return [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


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


@pytest.mark.parametrize(("steps", "timed", "used"), [(3, 3, 4), (1, 1, 2), (0, 1, 1)])
def test_a_trial_leaves_the_network_as_it_was(steps: int, timed: int, used: int) -> None:
    model, before = small_model(), small_model()
    batches = iter([[a_batch(i)] for i in range(9)])

    seconds, tried = make_trainer(model).trial(batches, steps)

    assert seconds > 0 and tried == timed and len(list(batches)) == 9 - used
    assert same(model, before) and all(p.grad is None for p in model.parameters())


def test_a_first_step_whose_gradients_were_computed_ahead_is_that_step_bit_by_bit() -> None:
    model, other, before = (small_model(drop_path=0.5) for _ in range(3))
    recipe = replace(PLAIN, augment="imagenet", clip_norm=1.0)
    straight, ahead = make_trainer(model, recipe, ema=5), make_trainer(other, recipe, ema=5)

    seconds = ahead.first_ahead([a_batch(0)])
    untouched = same(other, before)
    losses = [[t.step([a_batch(i)]).item() for i in range(3)] for t in (straight, ahead)]

    assert seconds > 0 and untouched
    assert losses[0] == losses[1]
    assert same(other, model) and same(ahead.best_model, straight.best_model)


def test_what_was_computed_ahead_is_forgotten_by_a_trainer_that_is_restored() -> None:
    model, other = small_model(), small_model()
    straight, ahead = make_trainer(model), make_trainer(other)
    saved = {name: tensor.clone() for name, tensor in straight.tensors().items()}
    straight.step([a_batch(1)])

    ahead.first_ahead([a_batch(0)])
    ahead.restore(saved, ahead.numbers())
    ahead.step([a_batch(1)])

    assert same(other, model)


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


@pytest.mark.parametrize("augment", ["none", "medium"])  # the second mixes images
def test_an_image_has_the_weight_that_it_is_given(augment: str) -> None:
    recipe = replace(PLAIN, augment=augment, label_smoothing=0.1)
    images, classes = a_batch(images=6)
    trainer = make_trainer(small_model(), recipe)

    def loss(*weights: torch.Tensor) -> float:
        torch.manual_seed(1)
        return trainer.loss((images, classes, *weights)).item()

    plain, ones = loss(), loss(torch.ones(6))
    doubled = loss(torch.full((6,), 2.0, dtype=torch.float64))

    assert ones == pytest.approx(plain, rel=1e-6) and doubled == pytest.approx(2 * plain, rel=1e-6)
    if augment == "none":
        weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0, 0.1])
        torch.manual_seed(1)
        each = F.cross_entropy(
            trainer.model(images), classes, label_smoothing=0.1, reduction="none"
        )
        assert loss(weights) == pytest.approx((each * weights).mean().item(), rel=1e-6)


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


def test_a_seed_gives_the_same_fresh_weights() -> None:
    config = CvTConfig(VARIANTS["nano"].config.stages, 3)

    same = zip(
        fresh_model(config, 7).state_dict().values(),
        fresh_model(config, 7).state_dict().values(),
        strict=True,
    )

    assert all(torch.equal(a, b) for a, b in same)
