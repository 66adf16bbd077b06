"""Two processes under torchrun learn what one process learns."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cvt_cli import weights
from cvt_cli.recipes import Recipe
from cvt_cli.training import Part, Schedule, Trainer
from tests_shared import Machine, golden, golden_config, golden_input, golden_model

STEP = golden("train-tiny")


def trainer_of(batchnorm: str) -> Trainer:
    """The golden network without stochastic depth in float64, BatchNorm in either mode."""
    spec = golden("golden-tiny")["spec"] | STEP["changes"] | {"DROP_PATH_RATE": [0.0, 0.0, 0.0]}
    model = golden_model(golden_config(spec, STEP["num_classes"])).double()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    return Trainer(
        model,
        Recipe("plain", "adamw", 1, 4, 1e-3, 0, 0.05, "none", clip_norm=0.0),
        Schedule(1e-3, 1, 0),
        device=torch.device("cpu"),
        precision="fp32",
        seed=0,
        frozen=norms if batchnorm == "inference" else (),
    )


def halves() -> list[Part]:
    images = golden_input(4, STEP["height"], STEP["width"]).double()
    labels = torch.arange(4) % STEP["num_classes"]
    return [(images[:2], labels[:2]), (images[2:], labels[2:])]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    path = tmp_path_factory.mktemp("two") / "found.safetensors"
    script = Path(__file__).with_name("two_processes.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node=2", str(script), str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return load_file(path)


def assert_gradients(trainer: Trainer, found: dict[str, torch.Tensor], mode: str) -> None:
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, found[f"{mode}.{name}"], rtol=1e-9, atol=1e-12), name


def test_with_batchnorm_in_inference_mode_they_equal_the_whole_batch(of_two) -> None:
    trainer = trainer_of("inference")
    (first, labels), (second, others) = halves()

    loss = trainer.backward([(torch.cat((first, second)), torch.cat((labels, others)))])

    assert of_two["inference.loss"].mean().item() == pytest.approx(loss.item(), rel=1e-12)
    assert_gradients(trainer, of_two, "inference")


def test_with_batchnorm_in_training_mode_they_equal_two_separate_halves(of_two) -> None:
    trainer = trainer_of("training")

    loss = trainer.backward(halves())

    assert of_two["training.loss"].mean().item() == pytest.approx(loss.item(), rel=1e-12)
    assert_gradients(trainer, of_two, "training")
    with pytest.raises(AssertionError):  # not the whole batch, whose statistics are others
        assert_gradients(trainer_of_whole(), of_two, "training")


def trainer_of_whole() -> Trainer:
    trainer = trainer_of("training")
    (first, labels), (second, others) = halves()
    trainer.backward([(torch.cat((first, second)), torch.cat((labels, others)))])
    return trainer


def test_the_command_trains_evaluates_and_goes_on_in_two_processes(
    machine: Machine, signdigits: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    result = machine.torchrun(
        "finetune", "--data", signdigits, "--model", "cvt-nano-cifar10", "--recipe", "quick",
        "--epochs", 1, "--batch-size", 50, "--output", run, "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    found = result.json
    assert (found["processes"], found["steps"]) == (2, 1651 // 100)
    assert found["val_n"] == 408 and found["val_top1"] > 0.3
    assert "100 images a step (50 x 1 accumulated x 2 processes)" in result.stderr
    assert result.stderr.count("epoch 1/1: loss") == 1
    weights.load(run / "best")
    judged = machine.run("evaluate", "--data", signdigits, "--model", run / "best", "--json")
    assert judged.json["top1"] == found["val_top1"]
