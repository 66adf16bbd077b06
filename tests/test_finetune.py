"""`cvt finetune` and `cvt evaluate` at the command line, on photographs of sign-language digits."""

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import CvtForImageClassification

from cvt_cli import weights
from cvt_cli.checkpoints import CHECKPOINTS
from tests_shared import Machine


@pytest.fixture(scope="module")
def digits(signdigits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the ten classes with few images: train/ and val/."""
    root = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 60), ("val", 20)):
        for name in ("0", "1", "5"):
            (root / split / name).mkdir(parents=True)
            for path in sorted((signdigits / split / name).iterdir())[:count]:
                shutil.copy(path, root / split / name)
    return root


SHORT = ["--epochs", 2, "--warmup-epochs", 0.5, "--batch-size", 16, "--lr", 2e-3]


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a short run on all of the images."""
    run = tmp_path_factory.mktemp("trained") / "run"
    options = ["--data", digits, "--variant", "nano", *SHORT, "--output", run]
    assert Machine(run, dict(os.environ)).run("finetune", *options).exit_code == 0
    return run / "best"


def test_training_from_scratch_learns_and_leaves_what_is_needed(
    cvt, digits: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--epochs", 8, "--warmup-epochs", 1, "--batch-size", 16, "--lr", 2e-3]

    result = cvt(
        "finetune", "--data", digits, "--variant", "nano", "--augment", "crop-flip",
        *options, "-o", run, "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert result.json["val_n"] == 60 and result.json["train_n"] == 180
    assert result.json["val_top1"] > 0.5  # of three classes
    split = json.loads((run / "split.json").read_text())
    assert len(split["validation"]) == 60 and split["validation"][0].startswith("0/")
    low, high = result.json["val_top1_interval"]
    assert low < result.json["val_top1"] < high
    assert json.loads((run / "results.json").read_text()) == result.json
    lines = (run / "metrics.csv").read_text().splitlines()
    assert len(lines) == 9
    assert lines[0] == ("epoch,learning_rate,training_loss,val_loss,val_top1,val_top5,seconds,step")
    accuracies = [float(line.split(",")[4]) for line in lines[1:]]
    assert max(accuracies) == pytest.approx(result.json["val_top1"], abs=1e-5)
    assert accuracies.index(max(accuracies)) + 1 == result.json["best_epoch"]
    for place in ("best", "last"):
        assert weights.load(run / place).labels.names == ("0", "1", "5")
    card = (run / "best" / "README.md").read_text()
    assert "| top-1 on test images | not measured |" in card

    evaluated = cvt("evaluate", "--data", digits, "--model", run / "best", "--json")
    assert evaluated.exit_code == 0
    assert evaluated.json["n"] == 60 and evaluated.json["n_failed"] == 0
    assert evaluated.json["top1"] > 0.5 and evaluated.json["top5"] == 1.0
    assert "matched by the model's class names" in evaluated.stderr

    model, info = CvtForImageClassification.from_pretrained(run / "best", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model.config.id2label == {0: "0", 1: "1", 2: "5"}


def test_a_checkpoint_is_fine_tuned_with_another_head(cvt, digits: Path, tmp_path: Path) -> None:
    start = CHECKPOINTS["cvt-nano-cifar10"].embedded / "model.safetensors"
    before = start.read_bytes()

    result = cvt(
        "finetune", "--data", digits, "--model", "cvt-nano-cifar10", *SHORT, "-o", tmp_path / "r"
    )

    assert result.exit_code == 0, result.stderr
    assert start.read_bytes() == before  # it is memory-mapped, and trained in a private copy
    assert "head replaced: 10 classes of `cvt-nano-cifar10`, 3 other ones" in result.stderr
    assert "best: epoch" in result.stdout
    assert f"next: cvt evaluate --data {digits} --model {tmp_path / 'r' / 'best'}" in result.stderr


def test_the_same_seed_trains_to_the_same_bits(cvt, digits: Path, tmp_path: Path) -> None:
    states = []
    for name in ("a", "b"):
        cvt(
            "finetune", "--data", digits, "--variant", "nano", "--recipe", "imagenet",
            *SHORT, "-o", tmp_path / name,
        )  # fmt: skip
        states.append(weights.load(tmp_path / name / "last").model.state_dict())

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_bfloat16_trains_too(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, "--variant", "nano", *SHORT, "--precision", "bf16",
        "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert result.json["precision"] == "bf16"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--variant", "nano", "--model", "x"], 2, "give either --model, a checkpoint to start"),
        (["--variant", "nano", "--warmup-epochs", 300], 2, "a warm-up of 300 epochs does not fit"),
        (["--variant", "huge"], 2, "there is no variant `huge`"),
        (["--variant", "nano", "--freeze", "head"], 2, "there is no part `head` to freeze"),
        (["--variant", "nano", "--max-time", "soon"], 2, "`soon` is no time; accepted are such"),
        (["--variant", "nano", "--sync-bn"], 2, "BatchNorm cannot be synchronised on `cpu`"),
        (["--variant", "nano", "--gpus", 64], 2, "--gpus 64: this machine has"),
        (["--offline"], 1, "`microsoft/cvt-21-384-22k` is not in the cache"),
        (["--model", "cvt-nano-cifar10", "--revision", "main"], 2, "`cvt-nano-cifar10` is on this"),
        (["--variant", "nano", "--device", "cuda:63"], 2, "device `cuda:63` is not available here"),
    ],
    ids=str,
)
def test_a_wrong_option_is_explained(cvt, digits: Path, arguments, code: int, message: str) -> None:
    result = cvt("finetune", "--data", digits, *arguments)

    assert result.exit_code == code
    assert f"error: {message}" in result.stderr


def test_a_run_folder_is_never_overwritten(cvt, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")

    result = cvt("finetune", "--data", digits, "--variant", "nano", *SHORT, "-o", tmp_path)

    assert result.exit_code == 1
    assert f"error: `{tmp_path}` exists and is not an empty folder" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written_to_is_named(cvt, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = tmp_path / "file" / "run"

    result = cvt("finetune", "--data", digits, "--variant", "nano", *SHORT, "-o", run)

    assert result.exit_code == 1
    assert f"error: cannot write `{run / 'split.json'}`: Not a directory" in result.stderr


def test_worker_processes_decode(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, "--variant", "nano", *SHORT, "--workers", 1,
        "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr


def test_unreadable_images_are_left_out_and_listed(cvt, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "data")
    bad = sorted((tmp_path / "data" / "train" / "1").iterdir())
    bad[0].write_text("<html>")

    result = cvt(
        "finetune", "--data", tmp_path / "data", "--variant", "nano", *SHORT, "-o", tmp_path / "r",
        "--json",
    )  # fmt: skip

    assert result.exit_code == 1
    assert f"1 unreadable left out: 1/{bad[0].name}: not an image" in result.stderr
    assert (result.json["train_n"], result.json["n_unreadable"]) == (179, 1)

    for path in bad:
        path.write_text("<html>")
    result = cvt(
        "finetune", "--data", tmp_path / "data", "--variant", "nano", *SHORT, "-o", tmp_path / "s"
    )
    assert result.exit_code == 1
    assert "error: class `1` in" in result.stderr
    assert "has no image that can be read" in result.stderr


def test_a_loss_that_is_no_number_stops_the_run(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, "--variant", "nano", "--epochs", 2, "--warmup-epochs", 0,
        "--batch-size", 16, "--lr", 1e30, "-o", tmp_path / "r",
    )  # fmt: skip

    assert result.exit_code == 1
    assert "error: the loss " in result.stderr and "hint: try a tenth" in result.stderr
    assert (tmp_path / "r" / "state" / "state.safetensors").is_file()  # the last good one


def test_unreadable_images_count_as_wrong_and_are_listed(
    cvt, digits: Path, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits / "val", tmp_path / "val")
    good = cvt("evaluate", "--data", tmp_path / "val", "--model", trained, "--json")
    (tmp_path / "val" / "0" / "broken.jpg").write_text("no picture")

    bad = cvt("evaluate", "--data", tmp_path / "val", "--model", trained, "--json")

    assert bad.exit_code == 1
    assert (bad.json["n"], bad.json["n_failed"]) == (61, 1)
    assert bad.json["top1_correct"] == good.json["top1_correct"]
    assert bad.json["top1"] == good.json["top1_correct"] / 61
    assert "broken.jpg`: not an image" in bad.stderr


def test_classes_are_matched_by_name_when_the_order_differs(
    cvt, digits: Path, trained: Path, tmp_path: Path
) -> None:
    whole = cvt("evaluate", "--data", digits, "--model", trained, "--json").json
    shutil.copytree(digits / "val", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "0")

    part = cvt("evaluate", "--data", tmp_path / "part", "--model", trained, "--json")

    assert part.json["n"] == 40
    assert 0 <= whole["top1_correct"] - part.json["top1_correct"] <= 20
    (tmp_path / "part" / "7").mkdir()
    shutil.copy(next((digits / "val" / "1").iterdir()), tmp_path / "part" / "7")
    refused = cvt("evaluate", "--data", tmp_path / "part", "--model", trained)
    assert refused.exit_code == 1
    assert "1 of 3 classes of the data are not among the model's 3: 7" in refused.stderr


def test_a_batch_larger_than_the_data_is_made_smaller_with_its_rate(
    cvt, digits: Path, tmp_path: Path
) -> None:
    result = cvt(
        "finetune", "--data", digits, "--variant", "nano", "--epochs", 1, "--warmup-epochs", 0,
        "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert "batch size 180: the data has no more training images" in result.stderr
    assert result.json["recipe"]["learning_rate"] == pytest.approx(0.002 * 180 / 2048)


def test_without_val_a_part_of_every_class_is_set_aside(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits / "train", "--variant", "nano", *SHORT, "--val-fraction", 0.2,
        "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert (result.json["train_n"], result.json["val_n"]) == (144, 36)
    split = json.loads((tmp_path / "r" / "split.json").read_text())
    assert sorted(name[0] for name in split["validation"]) == ["0"] * 12 + ["1"] * 12 + ["5"] * 12


def test_a_dry_run_checks_times_and_writes_nothing(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, "--model", "cvt-nano-cifar10", "--batch-size", 8,
        "--accumulate", 3, "--freeze", "stage0", "--dry-run", "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "r").exists()
    plan = result.json
    assert plan["step_images"] == 24 and plan["steps_per_epoch"] == 7 and plan["steps"] == 140
    rate = plan["settings"]["recipe"]["learning_rate"]
    assert rate == pytest.approx(5e-4 * 24 / 64)
    assert plan["data"]["smallest_n"] == 60 and plan["data"]["unreadable"] == []
    assert 0 < plan["model"]["trained_params"] < plan["model"]["params"] == 831_011
    assert plan["timed_steps"] == 3 and plan["step_sec"] > 0 and plan["estimated_sec"] > 0
    assert plan["peak_memory_bytes"] > 1e8
    for words in (
        "180 images to train on, 60 of its own `val`",
        "every file was read",
        "peak learning rate 0.000188 for 24 images a step (8 x 3 accumulated x 1 processes)",
        "measured on 3); peak memory so far",
    ):
        assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        ([], "optimizer", "adamw"),
        (["--recipe", "paper"], "learning_rate", 0.01),
        (["--recipe", "paper", "--lr", 0.1], "learning_rate", 0.1),
        (["--recipe", "quick"], "epochs", 3),
        (["--recipe", "linear-probe"], "optimizer", "newton"),
        (["--variant", "13"], "epochs", 300),
        (["--recipe", "imagenet", "--augment", "none"], "augment", "none"),
    ],
    ids=str,
)
def test_a_recipe_is_shown(cvt, arguments, key: str, value) -> None:
    result = cvt("finetune", *arguments, "--show-recipe")

    assert result.exit_code == 0 and result.json[key] == value


@pytest.mark.parametrize(
    "arguments",
    [
        ["--class-weights", "balanced", "--clip", 0],
        ["--checkpoint-activations", "--accumulate", 2],
        ["--recipe", "default", "--weight-decay", 0.1],
        ["--recipe", "paper", "--res", 32],
    ],
    ids=str,
)
def test_options_train(cvt, digits: Path, tmp_path: Path, arguments) -> None:
    options = ["--epochs", 1, "--warmup-epochs", 0, "--batch-size", 16, "-o", tmp_path / "r"]

    result = cvt("finetune", "--data", digits, "--variant", "nano", *arguments, *options, "--json")

    assert result.exit_code == 0, result.stderr
    assert result.json["recipe"]["clip_norm"] == (0.0 if "--clip" in arguments else 1.0)


def test_seed_device_activation_and_the_place_of_known_sets_are_kept_in_the_run(
    cvt, digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits, tmp_path / "sets" / "cifar10")

    result = cvt(
        "finetune", "--data", "cifar10", "--data-dir", tmp_path / "sets", "--variant", "nano",
        "--seed", 5, "--device", "cpu", "--activation", "gelu", *SHORT, "-o", tmp_path / "r",
        "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert (result.json["seed"], result.json["device"], result.json["train_n"]) == (5, "cpu", 162)
    assert weights.load(tmp_path / "r" / "best").model.config.activation == "gelu"


def test_every_option_is_in_the_help(cvt) -> None:
    printed = cvt("finetune", "--help").stdout

    for option in (
        "--data", "--dataset", "--data-dir", "--val-fraction", "--model", "--revision", "--offline",
        "--variant", "--res", "--activation", "--freeze", "--recipe", "--show-recipe", "--epochs",
        "--batch-size", "--accumulate", "--lr", "--warmup-epochs", "--weight-decay", "--clip",
        "--augment", "--class-weights", "--patience", "--max-time", "--seed", "--device", "--gpus",
        "--sync-bn", "--precision", "--checkpoint-activations", "--workers", "--resume",
        "--dry-run", "--output", "--json",
    ):  # fmt: skip
        assert option in printed, option


def test_frozen_parts_stay_as_the_checkpoint_has_them(cvt, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"

    cvt(
        "finetune", "--data", digits, "--model", "cvt-nano-cifar10", "--freeze", "backbone",
        "--recipe", "quick", "-o", run,
    )  # fmt: skip

    before = weights.load(CHECKPOINTS["cvt-nano-cifar10"].embedded).model.state_dict()
    after = weights.load(run / "last").model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_run_stops_when_no_epoch_is_better(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, "--variant", "nano", "--epochs", 50, "--warmup-epochs", 0,
        "--lr", 1e-8, "--batch-size", 90, "--patience", 2, "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert result.json["epochs"] == result.json["best_epoch"] + 2 < 50
    assert "stopped: no better epoch in 2 (--patience)" in result.stderr


def test_a_run_stops_when_its_time_is_over(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, "--variant", "nano", "--epochs", 1000,
        "--batch-size", 16, "--max-time", "1s", "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert "1 s are over (--max-time)" in result.stderr
    weights.load(tmp_path / "r" / "best")


def test_a_linear_probe_solves_the_head_on_fixed_features(
    cvt, digits: Path, tmp_path: Path
) -> None:
    run = tmp_path / "r"

    result = cvt(
        "finetune", "--data", digits, "--model", "cvt-nano-cifar10", "--recipe", "linear-probe",
        "-o", run, "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert result.json["val_top1"] > 0.6
    before = weights.load(CHECKPOINTS["cvt-nano-cifar10"].embedded).model.state_dict()
    after = weights.load(run / "best").model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}
    evaluated = cvt("evaluate", "--data", digits, "--model", run / "best", "--json").json
    assert evaluated["top1"] == result.json["val_top1"]
    again = cvt("finetune", "--resume", run, "--json")
    assert "computing features" not in again.stderr
    assert again.json["val_top1"] == result.json["val_top1"]


def test_the_four_commands_of_the_readme_serve_a_strangers_folder(
    signdigits: Path, tmp_path: Path
) -> None:
    for name, count in (("0", 34), ("1", 33), ("5", 33)):
        (tmp_path / "my_folder" / name).mkdir(parents=True)
        for path in sorted((signdigits / "train" / name).iterdir())[:count]:
            shutil.copy(path, tmp_path / "my_folder" / name)
    shutil.copy(next((signdigits / "val" / "5").iterdir()), tmp_path / "photo.jpg")
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    block = readme.partition("from a folder of pictures to a model in use:\n\n```bash\n")[2]
    commands = [shlex.split(line) for line in block.partition("\n```")[0].splitlines()]
    assert [command[0] for command in commands] == ["cvt", "cvt", "cvt", "python"]

    answers = []
    for command in commands:
        start = ["-m", "cvt_cli", *command[1:]] if command[0] == "cvt" else command[1:]
        done = subprocess.run(
            [sys.executable, *start], cwd=tmp_path, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        answers.append(done.stdout)

    trained, evaluated, predicted, by_transformers = answers
    assert "best: epoch" in trained and "top-1" in evaluated
    record = json.loads((tmp_path / "my_run" / "best" / "preprocessor_config.json").read_text())
    assert record["size"] == {"shortest_edge": 64}
    first = ast.literal_eval(by_transformers)[0]["label"]
    assert first in predicted and first in ("0", "1", "5")
