"""`cvt finetune` and `cvt evaluate` at the command line, on photographs of sign-language digits."""

import ast
import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CvtForImageClassification
from typer.testing import CliRunner

from cvt_cli.base import machine
from cvt_cli.cli import app
from cvt_cli.evaluation import figures
from cvt_cli.model import weights
from cvt_cli.model.network import Attention
from cvt_cli.spec.published import CHECKPOINTS
from small_sets import class_folders
from tests_shared import TESTS, torchrun_environment

KEPT = TESTS / "kept"


def three_digits(signdigits: Path, root: Path, train: int, val: int) -> Path:
    """Three of the ten classes with so many images each: train/ and val/."""
    for split, count in (("train", train), ("val", val)):
        for name in ("0", "1", "5"):
            (root / split / name).mkdir(parents=True)
            for path in sorted((signdigits / split / name).iterdir())[:count]:
                shutil.copy(path, root / split / name)
    return root


@pytest.fixture(scope="module")
def digits(signdigits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 and 24 images."""
    return three_digits(signdigits, tmp_path_factory.mktemp("digits"), 20, 8)


@pytest.fixture(scope="module")
def learnable(signdigits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 and 60 images, which are enough to learn from."""
    return three_digits(signdigits, tmp_path_factory.mktemp("learnable"), 60, 20)


SHORT = ["--epochs", 2, "--warmup-epochs", 0.5, "--batch-size", 16, "--lr", 2e-3]

TINY = ["--model", KEPT / "model", "--epochs", 6, "--warmup-epochs", 0.5, "--batch-size", 8,
        "--lr", 5e-3, "--workers", 0]  # fmt: skip
"""Training of a network that takes some milliseconds a step."""


def test_training_from_scratch_learns_and_leaves_what_is_needed(
    cvt, learnable: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--epochs", 5, "--warmup-epochs", 1, "--batch-size", 16, "--lr", 2e-3]

    result = cvt(
        "finetune", "--data", learnable, "--variant", "nano", "--augment", "crop-flip",
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
    assert len(lines) == 6
    assert lines[0] == (
        "epoch,learning_rate,training_loss,val_loss,val_top1,val_top5,val_balanced_accuracy,"
        "val_macro_f1,val_roc_auc,seconds,step"
    )
    accuracies = [float(line.split(",")[4]) for line in lines[1:]]
    assert max(accuracies) == pytest.approx(result.json["val_top1"], abs=1e-5)
    assert accuracies.index(max(accuracies)) + 1 == result.json["best_epoch"]
    for place in ("best", "last"):
        assert weights.load(run / place).labels.names == ("0", "1", "5")
    card = (run / "best" / "README.md").read_text()
    assert "Not measured: on other images than those; `cvt evaluate DATA " in card

    evaluated = cvt("evaluate", "--data", learnable, "--model", run / "best", "--json")
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
        "finetune", "--data", digits, "--model", "cvt-nano-cifar10", *SHORT, "--epochs", 1,
        "-o", tmp_path / "r",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert start.read_bytes() == before  # it is memory-mapped, and trained in a private copy
    assert "head replaced: 3 classes of the data for the 10 of `cvt-nano-cifar10`" in result.stderr
    assert "best: epoch" in result.stdout
    assert f"next: cvt evaluate {digits} --model {tmp_path / 'r'}" in result.stderr


def test_a_folder_with_a_dot_in_its_name_is_called_by_all_of_it(cvt, tmp_path: Path) -> None:
    shutil.copytree(KEPT / "model", tmp_path / "nano-v1.2")
    options = ["--model", tmp_path / "nano-v1.2", "--val-fraction", 0.3, "--dry-run"]

    assert "model: `nano-v1.2`" in cvt("finetune", KEPT / "images", *options).stderr


def test_the_same_seed_trains_to_the_same_bits(cvt, digits: Path, tmp_path: Path) -> None:
    states = []
    for name in ("a", "b"):
        cvt(
            "finetune", "--data", digits, "--variant", "nano", "--recipe", "imagenet",
            *SHORT, "-o", tmp_path / name,
        )  # fmt: skip
        states.append(weights.load(tmp_path / name / "last").model.state_dict())

    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_bfloat16_trains_too(cvt, tmp_path: Path) -> None:
    result = cvt(
        "finetune", KEPT / "images", "--model", KEPT / "model", "--val-fraction", 0.3, *SHORT,
        "--precision", "bf16", "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert result.json["precision"] == "bf16"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--variant", "nano", "--model", "x"], 2, "give either --model, a checkpoint to start"),
        (["--variant", "nano", "--clip", "inf"], 2, "--clip is inf; it must be a finite number"),
        (
            ["--variant", "nano", "--warmup-epochs", 300],
            2,
            "a warm-up of 300 epochs is longer than",
        ),
        (["--variant", "huge"], 2, "there is no variant `huge`"),
        (["--variant", "nano", "--freeze", "head"], 2, "there is no part `head` to freeze"),
        *(
            (
                ["--variant", "nano", "--checkpoint-activations", "--freeze", parts],
                2,
                "--checkpoint-activations: it has no effect, since --freeze leaves no stage to",
            )
            for parts in ("backbone", "stage0,stage1,stage2")
        ),
        (["--variant", "nano", "--max-time", "soon"], 2, "`soon` is not a time; accepted are"),
        (["--variant", "nano", "--sync-bn"], 2, "BatchNorm cannot be synchronised on `cpu`"),
        (["--variant", "nano", "--gpus", 64], 2, "--gpus 64: this machine has"),
        (["--variant", "nano", "--gpus", 1, "--device", "cpu"], 2, "--gpus 1 trains on CUDA"),
        (["--data-dir", "x", "--variant", "nano"], 2, "--data-dir is only for known data sets"),
        (
            ["--variant", "nano", "--recipe", "paper", "--res", 32, "--warmup-epochs", 1000],
            2,
            "a warm-up of 1000 epochs (1000 steps) is longer than the",
        ),
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


@pytest.mark.parametrize("arguments", [["--seed", 2**64], ["--workers", 10**6]], ids=str)
def test_a_number_beyond_what_can_be_is_refused(cvt, arguments) -> None:
    result = cvt("finetune", "--data", KEPT / "images", "--variant", "nano", *arguments)

    assert result.exit_code == 2
    assert f"Invalid value for '{arguments[0]}'" in result.stderr
    assert str(arguments[1]) in result.stderr


def test_a_linear_probe_is_refused_to_several_processes_before_anything_is_made(
    cvt, tmp_path: Path, monkeypatch
) -> None:
    for name, value in torchrun_environment(rank=0, count=2).items():
        monkeypatch.setenv(name, value)
    probe = ["--data", KEPT / "images", "--recipe", "linear-probe", "-o", tmp_path / "run"]

    result = cvt("finetune", *probe)

    assert result.exit_code == 2
    assert "error: a linear probe runs in one process, not in the 2" in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_place_of_known_sets_is_refused_where_a_run_goes_on_with_a_folder(
    cvt, tmp_path: Path, monkeypatch
) -> None:
    shutil.copytree(KEPT, tmp_path / "kept")
    monkeypatch.chdir(tmp_path / "kept")

    result = cvt("finetune", "--resume", "probe", "--data-dir", "elsewhere")

    assert result.exit_code == 2
    assert "error: --data-dir is only for known data sets, and `images` is not one" in result.stderr


def test_a_recipe_is_not_shown_with_what_it_does_not_use(cvt) -> None:
    result = cvt("finetune", "--show-recipe", "--recipe", "linear-probe", "--lr", 1)

    assert result.exit_code == 2
    assert "error: --lr: a linear probe has no training steps" in result.stderr


def test_a_run_folder_is_never_overwritten(cvt, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")

    result = cvt("finetune", "--data", digits, "--variant", "nano", *SHORT, "-o", tmp_path)

    assert result.exit_code == 1
    assert f"error: `{tmp_path}` exists and is not empty" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_place_that_cannot_be_written_to_is_named_before_the_data_are_read(
    cvt, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")

    for run in (file / "run", file):
        result = cvt("finetune", "--data", tmp_path / "nowhere", "--variant", "nano", "-o", run)

        assert result.exit_code == 1
        assert f"cannot write `{run / 'split.json'}`: `{file}` is not a folder" in result.stderr
        assert "hint: choose another folder, or move that file away" in result.stderr


def test_worker_processes_decode(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, *TINY, "--epochs", 1, "--workers", 1,
        "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr


def test_unreadable_images_are_left_out_and_listed(cvt, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "data")
    bad = sorted((tmp_path / "data" / "train" / "1").iterdir())
    bad[0].write_text("<html>")

    result = cvt(
        "finetune",
        "--data",
        tmp_path / "data",
        *TINY,
        "--epochs",
        1,
        "-o",
        tmp_path / "r",
        "--json",
    )

    assert result.exit_code == 0
    assert "warning: 1 image was left out: cannot be read" in result.stderr
    assert "some could not be read" in result.stderr
    assert f"1 left out, cannot be read: 1/{bad[0].name}: not an image" in result.stderr
    assert (result.json["train_n"], result.json["n_unreadable"]) == (59, 1)
    dry = cvt("finetune", tmp_path / "data", *TINY, "--dry-run")
    strict = cvt("finetune", tmp_path / "data", *TINY, "--dry-run", "--strict")
    assert (dry.exit_code, strict.exit_code) == (0, 1)
    assert all("1 left out, cannot be read" in result.stderr for result in (dry, strict))

    for path in bad:
        path.write_text("<html>")
    result = cvt("finetune", "--data", tmp_path / "data", *TINY, "-o", tmp_path / "s")
    assert result.exit_code == 1
    assert "class `1` with 0; each needs at least 1 that can be read" in result.stderr
    assert f"{len(bad)} cannot be read: 1/{bad[0].name}: not an image" in result.stderr


def test_a_messy_folder_is_told_of_in_one_run_before_an_image_is_read(cvt, tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", {"cat": 1, "dog": 3, "fox": 1})
    (data / "dog" / "000.png").write_text("<html>")
    odd = os.fsencode(data) + b"/\xff"
    os.mkdir(odd)
    shutil.copy(data / "fox" / "000.png", odd + b"/1.png")

    said = cvt("finetune", data, "--variant", "nano")

    assert said.exit_code == 1
    assert r"the name of the class `\udcff`" in said.stderr
    assert "classes `cat` with 1, `fox` with 1, " in said.stderr
    assert "checking images" not in said.stderr and "not an image" not in said.stderr


def test_a_model_that_there_is_not_is_told_of_before_the_images_are_read(
    cvt, tmp_path: Path
) -> None:
    data = class_folders(tmp_path / "data", {"cat": 1, "dog": 3})

    said = cvt("finetune", data, "--model", "nowhere.pth")

    assert said.exit_code == 1 and "there is no model `nowhere.pth`" in said.stderr


def test_a_model_card_of_few_classes_has_no_top_5(cvt, tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", {"cat": 8, "dog": 8})
    cvt(
        "finetune", data, "-m", "cvt-nano-cifar10", "--recipe", "linear-probe", "-o", tmp_path / "r"
    )

    card = (tmp_path / "r" / "best" / "README.md").read_text()
    said = cvt("evaluate", data, "-m", tmp_path / "r")

    assert "top-1 on the validation images" in card and "top-5" not in card
    assert said.stdout.startswith("top-1 ") and "top-5" not in said.stdout
    assert "num_classes" in cvt("evaluate", data, "-m", tmp_path / "r", "--json").json


def test_a_loss_that_is_no_number_stops_the_run(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, "--variant", "nano", "--epochs", 2, "--warmup-epochs", 0,
        "--batch-size", 16, "--lr", 1e30, "-o", tmp_path / "r",
    )  # fmt: skip

    assert result.exit_code == 1
    assert "error: the loss " in result.stderr and "hint: try a tenth" in result.stderr
    assert (tmp_path / "r" / "state" / "state.safetensors").is_file()  # the last good one


def test_unreadable_images_count_as_wrong_and_are_listed(cvt, plain: Path, tmp_path: Path) -> None:
    shutil.copytree(KEPT / "images", tmp_path / "val")
    good = cvt("evaluate", "--data", tmp_path / "val", "--model", plain / "best", "--json")
    (tmp_path / "val" / "red" / "broken.jpg").write_text("no picture")

    bad = cvt("evaluate", "--data", tmp_path / "val", "--model", plain / "best", "--json")

    assert bad.exit_code == 1
    assert (bad.json["n"], bad.json["n_failed"]) == (31, 1)
    assert bad.json["top1_correct"] == good.json["top1_correct"]
    assert bad.json["top1"] == good.json["top1_correct"] / 31
    assert "broken.jpg`: not an image" in bad.stderr


def test_classes_are_matched_by_name_when_the_order_differs(
    cvt, plain: Path, tmp_path: Path
) -> None:
    whole = cvt("evaluate", "--data", KEPT / "images", "--model", plain / "best", "--json").json
    counts = {one["label"]: one["correct"] for one in whole["classes"]}
    assert whole["top1"] > 0.7 and all(counts.values())  # a model at chance would tell nothing
    shutil.copytree(KEPT / "images", tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "blue")

    part = cvt("evaluate", "--data", tmp_path / "part", "--model", plain / "best", "--json").json

    assert part["n"] == 20
    del counts["blue"]
    assert {one["label"]: one["correct"] for one in part["classes"]} == counts
    (tmp_path / "part" / "7").mkdir()
    shutil.copy(KEPT / "images" / "red" / "1.png", tmp_path / "part" / "7")
    refused = cvt("evaluate", "--data", tmp_path / "part", "--model", plain / "best")
    assert refused.exit_code == 1
    assert (
        "1 of 3 classes of the data are not classes of the model, which has 3: 7" in refused.stderr
    )


def test_a_batch_larger_than_the_data_is_made_smaller_with_its_rate(
    cvt, digits: Path, tmp_path: Path
) -> None:
    result = cvt(
        "finetune", "--data", digits, "--variant", "nano", "--epochs", 1, "--warmup-epochs", 0,
        "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert "batch size 60: limited by the number of training images" in result.stderr
    assert result.json["recipe"]["learning_rate"] == pytest.approx(0.002 * 60 / 2048)


def test_without_val_a_part_of_every_class_is_set_aside(
    cvt, digits: Path, tmp_path: Path, own_cache: Path
) -> None:
    result = cvt(
        "finetune", "--data", digits / "train", *TINY, "--epochs", 1,
        "--val-fraction", 0.2, "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert (result.json["train_n"], result.json["val_n"]) == (48, 12)
    split = json.loads((tmp_path / "r" / "split.json").read_text())
    assert sorted(name[0] for name in split["validation"]) == ["0"] * 4 + ["1"] * 4 + ["5"] * 4
    best = tmp_path / "r" / "best"
    whole = cvt("evaluate", "--data", digits / "train", "--model", best)
    assert "trained 48 of these 60 images were trained on; --split val" in whole.stdout
    held = cvt("evaluate", "--data", digits / "train", "--model", best, "--split", "val", "--json")
    assert (held.json["n"], held.json["n_trained_on"]) == (12, 0)
    assert held.json["top1"] == result.json["val_top1"]
    assert held.json["top5"] == result.json["val_top5"]
    other = cvt("evaluate", "--data", digits / "val", "--model", best, "--json")
    assert other.json["n_trained_on"] is None
    assert "more than when" not in whole.stderr + other.stderr
    shutil.copytree(digits / "train", tmp_path / "moved")
    with tarfile.open(tmp_path / "packed.tar", "w") as archive:
        archive.add(digits / "train", "packed")
    for place in ("moved", "packed.tar"):
        whole = cvt("evaluate", "--data", tmp_path / place, "--model", best)
        assert "trained 48 of these 60 images were trained on; --split val" in whole.stdout
    one = next((tmp_path / "moved").glob("*/*"))
    one.write_bytes(one.read_bytes() + b"-")  # another version of the data: the others are known
    was_trained_on = f"{one.parent.name}/{one.name}" not in split["validation"]
    changed = cvt("evaluate", "--data", tmp_path / "moved", "--model", best, "--json")
    assert changed.json["n_trained_on"] == 48 - was_trained_on
    cvt("export", best, "-o", tmp_path / "model.onnx")
    shutil.copytree(best, tmp_path / "copy")
    for model in ("model.onnx", "copy"):
        whole = cvt("evaluate", "--data", digits / "train", "--model", tmp_path / model)
        assert "trained 48 of these 60 images were trained on; --split val" in whole.stdout
        held = cvt(
            "evaluate", "--data", digits / "train", "--model", tmp_path / model,
            "--split", "val", "--json",
        )  # fmt: skip
        assert (held.json["n"], held.json["n_trained_on"]) == (12, 0)
    (tmp_path / "r").rename(tmp_path / "elsewhere")
    other = cvt("evaluate", "--data", digits / "train", "--model", tmp_path / "copy", "--json")
    assert other.json["n_trained_on"] == 48
    shutil.rmtree(own_cache / "runs")  # as on another machine
    other = cvt("evaluate", "--data", digits / "train", "--model", tmp_path / "copy", "--json")
    assert other.exit_code == 0 and other.json["n_trained_on"] is None


def test_a_run_says_which_held_out_images_its_start_was_trained_on(
    cvt, digits: Path, tmp_path: Path
) -> None:
    def trained(run: str, model: object, *options: object) -> tuple[set[str], str]:
        result = cvt(
            "finetune", "--data", digits / "train", "--model", model, "--epochs", 1,
            "--val-fraction", 0.2, *options, "-o", tmp_path / run,
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        held_out = json.loads((tmp_path / run / "split.json").read_text())["validation"]
        return set(held_out), result.stderr

    first, said = trained("first", "cvt-nano-cifar10")
    assert "was trained on" not in said
    same, said = trained("same", tmp_path / "first")
    assert same == first and "was trained on" not in said
    cvt("export", tmp_path / "first", "-o", tmp_path / "first.safetensors")
    for run, start in (("other", "first"), ("third", "other"), ("exported", "first.safetensors")):
        held_out, said = trained(run, tmp_path / start, "--seed", 1)
        seen = len(held_out - first)
        assert seen and f"was trained on {seen} of the 12 images held out, such as `" in said

        judge = ["evaluate", digits / "train", "--model", tmp_path / run, "--split", "val"]
        measured = cvt(*judge)

        wanted = (
            f"trained {seen} of these 12 images were trained on, in copies or by what the run "
            "started from"
        )
        assert wanted in measured.stdout
        card = (tmp_path / run / "best" / "README.md").read_text()
        results = json.loads((tmp_path / run / "results.json").read_text())
        assert results["val_trained_before"] == seen
        assert f"that the start of the run was trained on: it is too good | {seen} of 12 |" in card
        assert f"; {seen} of them were trained on by what the run started from" in card
        assert f"too good, since {seen} of these images were trained on before" in card
        assert f"from `{start.partition('.')[0]}`" in card  # the run, not its `best`
    cvt(*judge, "--card", tmp_path / run)
    card = (tmp_path / run / "best" / "README.md").read_text()
    assert card.count(f"of which {seen} were trained on before: it is too good") > 1
    assert "the start of the run" not in (tmp_path / "same" / "best" / "README.md").read_text()
    whole = cvt("evaluate", digits / "train", "--model", tmp_path / "third", "--json")
    assert whole.json["n_trained_on"] == 60 - len(held_out & first)


def test_images_that_came_after_a_run_began_are_said_to_be_counted_as_trained_on(
    cvt, digits: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(digits / "train", tmp_path / "data")
    begun = cvt("finetune", data, *TINY, "--epochs", 1, "-o", tmp_path / "r")
    assert begun.exit_code == 0, begun.stderr
    for number, image in enumerate(sorted((digits / "val").glob("0/*"))[:2]):
        shutil.copy(image, data / "0" / f"later{number}.png")

    result = cvt("evaluate", data, "--model", tmp_path / "r", "--json")

    said = f"`{data}` has 2 images more than when `{tmp_path / 'r'}` began; they count as trained"
    assert said in result.stderr
    assert result.json["n_trained_on"] == 54 + 2


def test_a_comparison_says_which_model_was_trained_on_the_images(
    cvt, digits: Path, tmp_path: Path
) -> None:
    files = []
    for name in ("train", "val"):
        run, said = tmp_path / name, tmp_path / f"{name}.jsonl"
        assert cvt("finetune", digits / name, *TINY, "--epochs", 1, "-o", run).exit_code == 0
        judged = cvt("evaluate", digits / "train", "--model", run, "--predictions", said, "--json")
        files.append((said, judged.json["n_trained_on"]))
    (seen, n), (unseen, none) = files
    assert n and none is None

    shown = cvt("compare", unseen, seen)
    document = cvt("compare", unseen, seen, "--json").json
    again = cvt("evaluate", digits / "train", "--model", tmp_path / "train", "--predictions", seen,
                "--resume")  # fmt: skip
    gone_on = cvt("compare", seen, unseen, "--json").json
    with seen.open("a") as file:
        file.write(unseen.read_text().splitlines()[0] + "\n")
    other_lines = cvt("compare", seen, unseen)

    assert f"B is too high: its model was trained on {n} images of `{seen}`" in shown.stderr
    assert "A is too high" not in shown.stderr
    assert (document["n_trained_on_a"], document["n_trained_on_b"]) == (None, n)
    assert again.exit_code == 0 and gone_on["n_trained_on_a"] == n
    assert other_lines.exit_code == 0 and "too high" not in other_lines.stderr


def test_another_table_in_the_same_folder_is_not_what_was_trained_on(
    cvt, digits: Path, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        shutil.copytree(digits / split, tmp_path / "set" / split)
        rows = [f"{p.relative_to(tmp_path / 'set')},{p.parent.name}" for p in
                sorted((tmp_path / "set" / split).glob("*/*"))]  # fmt: skip
        (tmp_path / "set" / f"{split}.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    trained = cvt(
        "finetune", tmp_path / "set" / "train.csv", *TINY, "--epochs", 1, "-o", tmp_path / "r",
        "--json",
    )  # fmt: skip
    assert trained.exit_code == 0, trained.stderr

    known, other = (
        cvt("evaluate", tmp_path / "set" / f"{name}.csv", "--model", tmp_path / "r", "--json")
        for name in ("train", "val")
    )

    assert known.json["n_trained_on"] == trained.json["train_n"]
    assert other.exit_code == 0, other.stderr
    assert other.json["n_trained_on"] is None

    # One elsewhere that says the same is the same, and images are known by where they lie.
    moved = tmp_path / "elsewhere" / "train.csv"
    moved.parent.mkdir()
    told = ("--images", tmp_path / "set", "--model", tmp_path / "r", "--json")
    shutil.copy(tmp_path / "set" / "train.csv", moved)
    same = cvt("evaluate", moved, *told)
    lines = moved.read_text().splitlines()
    moved.write_text("\n".join([*lines[:30], lines[-1].rpartition(",")[0] + ",0"]) + "\n")
    changed = cvt("evaluate", moved, *told)

    assert same.json["n_trained_on"] == trained.json["train_n"]
    assert changed.exit_code == 0, changed.stderr
    held = json.loads((tmp_path / "r" / "split.json").read_text())["validation"]
    named = {line.rpartition(",")[0] for line in moved.read_text().splitlines()[1:]}
    assert changed.json["n_trained_on"] == len(named - set(held))


def test_a_dry_run_checks_times_and_writes_nothing(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, "--model", "cvt-nano-cifar10", "--batch-size", 8,
        "--accumulate", 3, "--freeze", "stage0", "--dry-run", "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert not (tmp_path / "r").exists()
    plan = result.json
    assert plan["step_images"] == 24 and plan["steps_per_epoch"] == 3 and plan["steps"] == 60
    rate = plan["settings"]["recipe"]["learning_rate"]
    assert rate == pytest.approx(5e-4 * 24 / 64)
    assert plan["data"]["smallest_n"] == 20 and plan["data"]["unreadable"] == []
    assert 0 < plan["model"]["trained_params"] < plan["model"]["params"] == 831_011
    assert plan["timed_steps"] == 1 and plan["step_sec"] > 0 and plan["estimated_sec"] > 0
    assert plan["peak_memory_bytes"] > 1e8
    for words in (
        "60 training images and 24 validation images (from its `val`)",
        "all were read",
        "peak learning rate 0.000188 for 24 images per step (8 x 3 accumulated)",
        "warm-up 1 epoch, crop-flip",
        "60 steps in 20 epochs, seed 0",
        "measured on 1); peak memory so far",
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


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on all of the images, as the options below would change it."""
    run = tmp_path_factory.mktemp("plain") / "run"
    options = ["finetune", "--data", KEPT / "images", *TINY, "--output", run]
    assert CliRunner().invoke(app, [str(option) for option in options]).exit_code == 0
    return run


def learnt(run: Path) -> dict[str, torch.Tensor]:
    """What the last epoch's head and matrices are."""
    return {n: t for n, t in load_file(run / "last" / "model.safetensors").items() if t.ndim > 1}


def largest_change(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_gradients_are_clipped(cvt, plain: Path, tmp_path: Path) -> None:
    options = ["finetune", "--data", KEPT / "images", *TINY, "--weight-decay", 0]
    cvt(*options, "--clip", 1e-15, "--epochs", 1, "-o", tmp_path / "still")
    cvt(*options, "--clip", 0, "-o", tmp_path / "free")

    start = {n: t for n, t in load_file(KEPT / "model" / "model.safetensors").items() if t.ndim > 1}
    del start["classifier.weight"]  # is drawn anew
    still, free = learnt(tmp_path / "still"), learnt(tmp_path / "free")
    # Far below AdamW's epsilon nothing is learnt.
    assert largest_change(start, still) < 1e-6 < 1e-3 < largest_change(start, free)
    assert largest_change(free, learnt(plain)) > 1e-6


def test_weights_decay(cvt, plain: Path, tmp_path: Path) -> None:
    cvt("finetune", "--data", KEPT / "images", *TINY, "--weight-decay", 20, "-o", tmp_path / "r")

    norms = [sum(t.norm().item() for t in learnt(run).values()) for run in (tmp_path / "r", plain)]
    assert norms[0] < 0.9 * norms[1]


def test_rare_classes_weigh_more(cvt, tmp_path: Path) -> None:
    for name, count in (("red", 10), ("green", 2), ("blue", 2)):
        for number in range(count):
            place = tmp_path / "data" / name / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(KEPT / "images" / name / f"{number}.png", place)
    # The head alone, since BatchNorm's statistics of four images are not those of eight.
    options = ["finetune", "--data", tmp_path / "data", *TINY, "--epochs", 1, "--lr", 1e-8,
               "--freeze", "backbone"]  # fmt: skip
    asked = [
        ("weighted", ["--class-weights", "balanced"]),
        ("in parts", ["--class-weights", "balanced", "--accumulate", 2, "--batch-size", 4]),
        ("plain", []),
    ]

    losses = {}
    for name, more in asked:
        cvt(*options, *more, "-o", tmp_path / name)
        line = (tmp_path / name / "metrics.csv").read_text().splitlines()[1]
        losses[name] = float(line.split(",")[2])

    # Of a network that learns nothing: 9 red, 1 green and 1 blue image to train on.
    assert abs(losses["weighted"] - losses["plain"]) > 0.01
    assert losses["in parts"] == pytest.approx(losses["weighted"], rel=1e-4)


def test_parts_make_one_step(cvt, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", KEPT / "images", *TINY, "--epochs", 2, "--batch-size", 4,
        "--accumulate", 2, "-o", tmp_path / "r", "--json",
    )  # fmt: skip

    assert result.json["steps"] == 2 * 4  # of 27 images, up to 8 each


def test_checkpointed_blocks_are_computed_twice_to_the_same_bits(
    cvt, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = Attention.forward
    monkeypatch.setattr(
        Attention,
        "forward",
        lambda self, *args: calls.append(self.training) or forward(self, *args),
    )
    options = ["finetune", "--data", KEPT / "images", *TINY, "--epochs", 1]
    counts = []
    for name, more in (("kept", []), ("twice", ["--checkpoint-activations"])):
        calls.clear()
        cvt(*options, *more, "-o", tmp_path / name)
        counts.append(sum(calls))

    assert counts[1] == 2 * counts[0]
    assert largest_change(learnt(tmp_path / "kept"), learnt(tmp_path / "twice")) == 0


def test_the_recipe_of_the_paper_trains_in_its_steps(cvt, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", KEPT / "images", "--model", KEPT / "model", "--recipe", "paper",
        "--res", 32, "--batch-size", 27, "--max-time", "0s", "--workers", 0, "-o", tmp_path / "r",
        "--lr", 0.02, "--json",
    )  # fmt: skip

    assert "stopped at step 1 of 500" in result.stderr
    assert result.json["recipe"]["optimizer"] == "sgd"
    assert result.json["recipe"]["res"] is None  # 384 is not what it was trained at
    card = (tmp_path / "r" / "best" / "README.md").read_text()
    assert "| res |" not in card and "| learning rate | 0.02 |" in card
    assert "| chosen by us | warmup epochs, weight decay, augment, label smoothing, clip" in card
    assert "| steps | 500 |" in card and "| epochs |" not in card


def test_seed_device_activation_and_the_place_of_known_sets_are_kept_in_the_run(
    cvt, digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(digits, tmp_path / "sets" / "cifar10")

    result = cvt(
        "finetune", "--data", "cifar10", "--data-dir", tmp_path / "sets", "--variant", "nano",
        "--seed", 5, "--device", "cpu", "--activation", "gelu", *SHORT, "--epochs", 1, "-o",
        tmp_path / "r",
        "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert (result.json["seed"], result.json["device"], result.json["train_n"]) == (5, "cpu", 54)
    assert weights.load(tmp_path / "r" / "best").model.config.activation == "gelu"


def test_every_option_is_in_the_help(cvt) -> None:
    printed = cvt("finetune", "--help").stdout

    for option in (
        "--data", "--data-dir", "--val-fraction", "--model", "--revision", "--offline",
        "--variant", "--res", "--activation", "--freeze", "--recipe", "--show-recipe", "--epochs",
        "--batch-size", "--accumulate", "--lr", "--warmup-epochs", "--weight-decay", "--clip",
        "--augment", "--class-weights", "--sampler", "--select", "--patience", "--max-time",
        "--seed", "--device", "--gpus",
        "--sync-bn", "--precision", "--checkpoint-activations", "--workers", "--resume",
        "--dry-run", "--output", "--json",
    ):  # fmt: skip
        assert option in printed, option


@pytest.mark.parametrize("around", ["", "photos"])
def test_a_run_below_its_own_data_is_no_class_of_them(
    cvt, tmp_path: Path, monkeypatch, around: str
) -> None:
    shutil.copytree(KEPT / "images", tmp_path / around, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    options = ["--model", KEPT / "model", "--epochs", 2, "--warmup-epochs", 0.1, "--workers", 0]

    results = [cvt("finetune", "--data", ".", *options) for _ in range(2)]  # both below runs/
    run = min(Path("runs").iterdir())
    next_command = results[1].stderr.splitlines()[-1].removeprefix("next: cvt ")
    archive = shutil.make_archive(f"{tmp_path}-all", "zip", tmp_path)

    for result in results:
        assert result.exit_code == 0, result.stderr
        assert "3 classes" in result.stderr
    said = "skipped: folders that hold no pictures (1 `runs`)" in results[1].stderr
    assert said == (not around)  # what lies around the lone folder is not
    assert (run / "curves.png").exists()
    assert cvt(*shlex.split(next_command)).exit_code == 0
    assert cvt("finetune", "--resume", run).exit_code == 0
    judged = cvt("evaluate", "--data", archive, "--model", run / "best", "--json")
    assert judged.json["n"] == len(list((tmp_path / around).glob("*/*.png")))


def test_the_next_command_that_is_printed_measures_on_what_was_held_out(
    cvt, tmp_path: Path
) -> None:
    data, run = tmp_path / "my data", tmp_path / "a run"
    shutil.copytree(KEPT / "images", data)

    trained = cvt(
        "finetune", "--data", data, "--model", KEPT / "model", "--epochs", 1, "--precision", "bf16",
        "--workers", 0, "-o", run,
    )  # fmt: skip

    said = next(line for line in trained.stderr.splitlines() if line.startswith("next: "))
    words = shlex.split(said.removeprefix("next: cvt "))
    assert words == ["evaluate", str(data), "--model", str(run), "--split", "val", "--precision",
                     "bf16"]  # fmt: skip
    judged = cvt(*words, "--json").json
    found = json.loads((run / "results.json").read_text())
    assert (judged["n"], judged["top1"]) == (3, found["val_top1"])
    refused = cvt("evaluate", "--data", data, "--model", KEPT / "model", "--split", "val")
    assert refused.exit_code == 2 and "it is not known of which run" in refused.stderr
    (data / "red" / json.loads((run / "split.json").read_text())["validation"][-1][4:]).unlink()
    changed = cvt(*words)
    assert changed.exit_code == 1
    assert f"1 of the 3 images that `{run}` held out are not in `{data}`" in changed.stderr
    assert f"hint: name the data that the run was trained on: --data '{data}'" in changed.stderr


def test_what_was_set_aside_is_not_taken_from_other_data_without_a_word(
    cvt, tmp_path: Path, monkeypatch
) -> None:
    for place in ("one", "other", "moved"):
        shutil.copytree(KEPT / "images", tmp_path / place / "data")
    shutil.copytree(KEPT / "model", tmp_path / "model")
    other = tmp_path / "other" / "data"
    (other / "red").rename(other / "x")
    (other / "blue").rename(other / "red")
    (other / "x").rename(other / "blue")
    monkeypatch.chdir(tmp_path / "one")
    probe = ["--model", "../model", "--recipe", "linear-probe", "-o", "run"]
    cvt("finetune", "--data", "data", *probe)
    measure = ["evaluate", "--data", "data", "--model", "../one/run", "--engine", "torch"]

    found = {}
    for place in ("one", "other", "moved"):
        monkeypatch.chdir(tmp_path / place)
        found[place] = cvt(*measure, "--split", "val"), cvt(*measure)

    assert all(result.exit_code == 0 for pair in found.values() for result in pair)
    for place, (held, whole) in found.items():
        ours = place != "other"
        assert ("`data` is not the data of" in held.stderr) is not ours
        assert "of these 30 images were trained on" in whole.stdout  # by their contents


def test_copies_of_trained_images_among_those_held_out_are_counted_wherever_the_data_lie(
    cvt, tmp_path: Path
) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(KEPT / "images", data)
    for path in sorted(data.glob("*/*")):
        shutil.copy(path, path.with_name(f"again-{path.name}"))
    begun = cvt("finetune", data, "--model", KEPT / "model", "--recipe", "linear-probe", "-o", run)
    told = re.search(r"(\d+) of the (\d+) images held out are copies", begun.stderr)
    measure = ("--model", run, "--split", "val", "--engine", "torch")

    here = cvt("evaluate", data, *measure, "--json").json
    data.rename(tmp_path / "moved")
    moved = cvt("evaluate", tmp_path / "moved", *measure)

    assert 0 < here["n_trained_on"] == int(told[1]) and here["n"] == int(told[2])
    said = f"trained {told[1]} of these {told[2]} images were trained on, in copies or by what"
    assert said in moved.stdout


def test_images_that_the_best_epoch_was_chosen_by_are_known_in_whatever_form_they_come(
    cvt, digits: Path, tmp_path: Path
) -> None:
    run, data, less = tmp_path / "run", tmp_path / "data", tmp_path / "less"
    shutil.copytree(digits / "train", data / "train")
    shutil.copytree(digits / "val", data / "val")
    cvt("finetune", data, "--model", KEPT / "model", *SHORT, "--epochs", 1, "-o", run)
    shutil.copytree(data / "val", less)
    next(less.rglob("*.*")).unlink()
    rows = [f"{p.relative_to(data)},{p.parent.name}" for p in sorted((data / "val").rglob("*.*"))]
    (data / "t.csv").write_text("\n".join(["path,label", *rows]))
    measure = ("--model", run, "--engine", "torch")

    found = {}
    for place in (data, less, data / "t.csv"):
        file = tmp_path / f"{place.name}.json"
        done = cvt("evaluate", place, *measure, "--json", file, "--card", run)
        found = json.loads(file.read_text())
        n = len(rows) - (place == less)
        assert (found["n"], found["n_chosen_on"]) == (n, n)
        assert f"chosen  by {n} of these {n} images the run chose its best epoch" in done.stdout
        assert "not known to have been trained on" not in (run / "best" / "README.md").read_text()
    trained = cvt("evaluate", data / "train", *measure)

    assert "were trained on" in trained.stdout and "chosen  " not in trained.stdout


def test_a_few_trained_images_among_many_others_are_known(cvt, tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    trained = ["--model", KEPT / "model", "--recipe", "linear-probe", "-o", run]
    cvt("finetune", "--data", KEPT / "images", *trained)
    held_out = set(json.loads((run / "split.json").read_text())["validation"])
    known = [
        path
        for path in sorted((KEPT / "images").glob("*/*"))
        if f"{path.parent.name}/{path.name}" not in held_out
    ]
    generator = np.random.default_rng(0)
    for name in ("red", "blue"):
        (data / name).mkdir(parents=True)
        for number in range(300):
            pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(data / name / f"{number:03}.png")
    for number, path in zip((150, 151), known, strict=False):
        shutil.copy(path, data / path.parent.name / f"{number}-again.png")

    found = cvt("evaluate", data, "--model", run, "--engine", "torch", "--json").json

    assert found["n"] == 602 and found["n_trained_on"] == 2


def test_images_that_a_table_names_are_known_as_trained_on_by_their_place(
    cvt, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(KEPT / "images", data)
    names = sorted(f"{path.parent.name}/{path.name}" for path in data.glob("*/*"))
    for table, prefix in (("own.csv", ""), ("other.csv", ""), ("../far.csv", "data/")):
        parts = ("train", "train", "val")
        rows = [f"{prefix}{n},{n.split('/')[0]},{parts[i % 3]}" for i, n in enumerate(names)]
        (data / table).write_text("\n".join(["path,label,split", *rows]) + "\n")
    probe = ["--model", KEPT / "model", "--recipe", "linear-probe", "-o"]
    folder_run, table_run = tmp_path / "of_folder", tmp_path / "of_table"
    cvt("finetune", data, *probe, folder_run)
    cvt("finetune", data / "own.csv", *probe, table_run)

    def trained(images: Path, run: Path, *more: str) -> int | None:
        found = cvt("evaluate", images, "--model", run, "--engine", "torch", "--json", *more)
        return found.json["n_trained_on"]

    n, held = len(names), len(json.loads((folder_run / "split.json").read_text())["validation"])
    for table in (data / "own.csv", data / "other.csv", tmp_path / "far.csv"):
        assert trained(table, folder_run, "--columns", "split=") == n - held
        assert trained(table, table_run, "--columns", "split=") == len(names) * 2 // 3
        assert not trained(table, table_run)  # its `val`
    assert trained(data, table_run) == len(names) * 2 // 3
    shutil.copytree(KEPT / "images", tmp_path / "other")  # another version: one more, one changed
    first, second = sorted((tmp_path / "other").glob("*/*"))[:2]
    shutil.copy(KEPT / "model" / "config.json", first.with_name("more.png"))
    kept = {path.read_bytes() for path in (tmp_path / "other").glob("*/*")}
    assert trained(tmp_path / "other", table_run) == len(names) * 2 // 3
    second.write_bytes(second.read_bytes() + b" ")
    assert trained(tmp_path / "other", table_run) == len(names) * 2 // 3 - 1
    assert len(kept) == len(names) + 1
    (tmp_path / "links").mkdir()
    for path in data.glob("*/"):
        (tmp_path / "links" / path.name).symlink_to(path)
    assert trained(tmp_path / "links", folder_run) == n - held


def test_held_out_images_whose_files_were_renamed_or_replaced_since_are_told(
    cvt, tmp_path: Path
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(KEPT / "images", data)
    trained = cvt(
        "finetune", data, "--model", KEPT / "model", "--recipe", "linear-probe", "-o", run
    )
    measure = ["evaluate", data, "--model", run, "--split", "val", "--engine", "torch"]
    before = cvt(*measure)
    held = json.loads((run / "split.json").read_text())["validation"]
    other = next(f"{f.parent.name}/{f.name}" for f in data.glob("*/*") if f.parent.name in held[0])
    for one, place in ((data / other, "x.png"), (data / held[0], other), (data / "x.png", held[0])):
        one.rename(data / place)  # as where files are numbered anew

    after = cvt(*measure)

    assert trained.exit_code == before.exit_code == after.exit_code == 0
    assert "have changed since" not in before.stderr
    told = f"1 of the {len(held)} images that `{run}` held out have changed since it began, such as"
    assert f"{told} `{held[0]}`: if files were renamed" in after.stderr
    for path in data.glob("*/*"):
        Image.new("RGB", (32, 32), (len(path.parent.name), int(path.stem), 7)).save(path)
    replaced = cvt("evaluate", data, "--model", run, "--engine", "torch")
    assert "no image in" in replaced.stderr and "they were not trained on" in replaced.stderr
    assert "were trained on" not in replaced.stdout


def test_names_that_are_not_in_utf_8_are_written_or_refused_before_anything_is_trained(
    cvt, tmp_path: Path
) -> None:
    data, run = (tmp_path / os.fsdecode(name) for name in (b"da\xffta", b"ru\xffn"))
    shutil.copytree(KEPT / "images", data)
    (data / "red" / "0.png").rename(data / "red" / os.fsdecode(b"\xff.png"))
    options = ["--data", data, "--model", KEPT / "model", "--epochs", 1, "--warmup-epochs", 0.1]

    result = cvt("finetune", *options, "--workers", 0, "-o", run)
    (data / "red").rename(data / os.fsdecode(b"r\xe9d"))
    refused = cvt("finetune", *options, "-o", tmp_path / "other")

    assert result.exit_code == 0, result.stderr
    assert "da\\udcffta` with `cvt finetune`" in (run / "best" / "README.md").read_text()
    assert "epoch 1/1" in (run / "log.txt").read_text()
    assert refused.exit_code == 1
    assert "the name of the class `r\\udce9d` in" in refused.stderr


def test_few_images_get_smaller_batches_and_enough_steps(cvt) -> None:
    result = cvt(
        "finetune", "--data", KEPT / "images", "--model", KEPT / "model", "--workers", 0,
        "--dry-run", "--json",
    )  # fmt: skip

    plan = result.json
    assert (plan["step_images"], plan["steps_per_epoch"], plan["steps"]) == (16, 2, 40)  # of 27
    assert plan["settings"]["recipe"]["learning_rate"] == 5e-4 / 2


def test_a_small_network_is_trained_in_one_thread(
    cvt, two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = []
    for model, res in ((KEPT / "model", 32), ("cvt-nano-cifar10", 72)):
        plan = cvt(
            "finetune", "--data", KEPT / "images", "--model", model, "--res", res, "--dry-run",
            "--batch-size", 4, "--workers", 0, "--json",
        ).json  # fmt: skip
        found.append(plan["hardware"])
    assert torch.get_num_threads() == 2  # is as it was

    assert found == [
        "1 thread",
        f"{min(2, machine.threads())} thread{'s' * (machine.threads() > 1)}",
    ]


def test_a_class_that_only_val_has_is_named_with_what_can_be_done(cvt, tmp_path: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(KEPT / "images", tmp_path / part)
    (tmp_path / "val" / "red").rename(tmp_path / "val" / "crimson")

    result = cvt("finetune", "--data", tmp_path, "--model", KEPT / "model")

    assert result.exit_code == 1
    assert "crimson" in result.stderr and "--label-map" not in result.stderr
    assert "hint: add images of these classes " in result.stderr


def test_other_contents_of_equal_size_are_not_what_a_run_began_with(cvt, tmp_path: Path) -> None:
    rng, data, run = np.random.default_rng(0), tmp_path / "data", tmp_path / "run"
    for name, colour in (("dark", 60), ("light", 190)):
        (data / name).mkdir(parents=True)
        for number in range(8):
            pixels = rng.integers(colour - 40, colour + 40, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(data / name / f"{number}.bmp")
    options = ["--data", data, "--model", KEPT / "model", "--recipe", "linear-probe"]
    assert cvt("finetune", *options, "-o", run).exit_code == 0
    (data / "dark").rename(data / "other")
    (data / "light").rename(data / "dark")
    (data / "other").rename(data / "light")

    result = cvt("finetune", "--resume", run)

    assert result.exit_code == 1
    assert f"error: `{data}` is not the data that the run began with" in result.stderr


def test_a_run_goes_on_with_data_that_were_moved_and_names_them(cvt, tmp_path: Path) -> None:
    data, run, moved = tmp_path / "data", tmp_path / "run", tmp_path / "moved"
    shutil.copytree(KEPT / "images", data)
    options = ["--epochs", 2, "--warmup-epochs", 0.1, "--max-time", "0s", "--workers", 0]
    cvt("finetune", "--data", data, "--model", KEPT / "model", *options, "-o", run)
    data.rename(moved)
    (moved / "red" / "0.png").rename(moved / "red" / "zero.png")

    other = cvt("finetune", "--resume", run, "--data", moved)
    (moved / "red" / "zero.png").rename(moved / "red" / "0.png")
    right = cvt("finetune", "--resume", run, "--data", moved, "--max-time", "1h")

    assert f"error: `{moved}` is not the data that the run began with" in other.stderr
    assert right.exit_code == 0, right.stderr
    assert f"next: cvt evaluate {moved} " in right.stderr
    assert "/moved` |" in (run / "best" / "README.md").read_text()


def test_the_next_command_measures_the_test_part_and_not_what_the_epoch_was_chosen_by(
    cvt, tmp_path: Path
) -> None:
    for part in ("train", "val", "test"):
        shutil.copytree(KEPT / "images", tmp_path / "data" / part)
    (next((tmp_path / "data" / "test").rglob("*.png"))).unlink()
    options = ["--epochs", 1, "--workers", 0, "--allow-overlap", "-o", tmp_path / "run"]

    trained = cvt("finetune", tmp_path / "data", "--model", KEPT / "model", *options)
    said = next(line for line in trained.stderr.splitlines() if line.startswith("next: "))
    judged = cvt(*shlex.split(said.removeprefix("next: cvt ")), "--json")

    assert judged.json["split"] == "test"
    assert judged.json["n"] == json.loads((tmp_path / "run/results.json").read_text())["val_n"] - 1


@pytest.mark.parametrize("own_val", [True, False])
def test_the_next_command_measures_no_test_part_without_labels(
    cvt, tmp_path: Path, own_val: bool
) -> None:
    for part in ("train", "val") if own_val else ("train",):
        shutil.copytree(KEPT / "images", tmp_path / "data" / part)
    unlabelled = tmp_path / "data" / "test" / "unknown"
    unlabelled.mkdir(parents=True)
    shutil.copy(next((KEPT / "images").rglob("*.png")), unlabelled)
    options = ["--epochs", 1, "--workers", 0, "--allow-overlap", "-o", tmp_path / "run"]

    trained = cvt("finetune", tmp_path / "data", "--model", KEPT / "model", *options)
    said = next(line for line in trained.stderr.splitlines() if line.startswith("next: "))
    judged = cvt(*shlex.split(said.removeprefix("next: cvt ")), "--json")

    assert judged.exit_code == 0, judged.stderr
    assert judged.json["n"] == json.loads((tmp_path / "run/results.json").read_text())["val_n"]
    if not own_val:
        plain = cvt("evaluate", tmp_path / "data", "--model", tmp_path / "run")
        assert plain.exit_code == 1
        assert "or measure on the images that its run held out: --split val" in plain.stderr
        gone = ("--label-map", tmp_path / "gone.json")
        mapped = cvt("evaluate", tmp_path / "data", "--model", tmp_path / "run", *gone)
        assert "cannot read the label map" in mapped.stderr and "None" not in mapped.stderr


def test_val_that_is_not_chosen_by_is_said(cvt, tmp_path: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(KEPT / "images", tmp_path / part)
    options = ["--data", tmp_path, "--model", KEPT / "model", "--dry-run", "--workers", 0]

    own = cvt("finetune", *options, "--allow-overlap")
    aside = cvt("finetune", *options, "--val-fraction", 0.3)

    assert "not used" not in own.stderr
    assert f"not used: `{tmp_path / 'val'}`; validation images are held out" in aside.stderr


def test_a_seed_that_draws_nothing_is_refused(cvt, tmp_path: Path) -> None:
    for part in ("train", "val"):
        shutil.copytree(KEPT / "images", tmp_path / part)
    options = ["--data", tmp_path, "--recipe", "linear-probe", "--seed", 7, "--dry-run"]
    checkpoint = ["--model", KEPT / "model"]

    nothing, split = cvt("finetune", *options, *checkpoint), [*checkpoint, "--val-fraction", 0.3]

    assert nothing.exit_code == 2
    assert "error: --seed: it has no effect: the data has its own validation" in nothing.stderr
    for drawn in (split, ["--variant", "nano", "--allow-overlap"]):
        assert cvt("finetune", *options, *drawn).exit_code == 0


def test_features_of_other_weights_are_not_taken_for_these(cvt, tmp_path: Path) -> None:
    options = ["--data", KEPT / "images", "--recipe", "linear-probe", "--val-fraction", 0.3]
    one, other = tmp_path / "one", tmp_path / "other"
    shutil.copytree(KEPT / "model", tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({name: 1.2 * t for name, t in load_file(path).items()}, path, {"format": "pt"})
    found = cvt("finetune", *options, "--model", KEPT / "model", "-o", one, "--json").json
    cvt("finetune", *options, "--model", tmp_path / "model", "-o", other)
    for part in ("train", "val"):
        name = Path("state", f"features-{part}.safetensors")
        assert (one / name).read_bytes() != (other / name).read_bytes()
        shutil.copy(other / name, one / name)
    before = (one / "metrics.csv").read_text().rpartition(",")[0].rpartition(",")[0]

    again = cvt("finetune", "--resume", one, "--json").json

    assert again["val_top1"] == found["val_top1"]
    assert (one / "metrics.csv").read_text().startswith(before)


def test_the_card_of_a_linear_probe_states_what_was_used(cvt, tmp_path: Path) -> None:
    options = ["--data", KEPT / "images", "--model", KEPT / "model", "--recipe", "linear-probe"]
    cvt("finetune", *options, "--class-weights", "balanced", "-o", tmp_path / "run")

    card = (tmp_path / "run" / "best" / "README.md").read_text()

    penalty = json.loads((tmp_path / "run" / "results.json").read_text())["penalty"]
    chosen = f"penalty | {penalty:.3g} on the squares of the weights"
    for row in ("recipe | linear-probe", "optimizer | newton", "class weights | balanced", chosen):
        assert f"| {row} |" in card
    assert "a step" not in card and "epoch 1" not in card


def test_a_machine_with_little_shared_memory_trains_all_the_same(tmp_path: Path) -> None:
    command = shlex.join(
        ["finetune", "--data", str(KEPT / "images"), "--model", str(KEPT / "model"), "--res", "128",
         "--epochs", "1", "--batch-size", "16", "--workers", "2", "-o", str(tmp_path / "run")]
    )  # fmt: skip
    shell = (
        f"mount -t tmpfs -o size=8M tmpfs /dev/shm && exec {sys.executable} -m cvt_cli {command}"
    )
    unshare = ["unshare", "-rm", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("this system gives nobody a /dev/shm of their own")

    done = subprocess.run([*unshare, shell], capture_output=True, text=True, timeout=400)

    assert done.returncode == 0, done.stderr
    assert (
        "/dev/shm has 8.4 MB free, and the batches of 2 workers take up to 18.9 MB" in done.stderr
    )


def test_frozen_parts_stay_as_the_checkpoint_has_them(cvt, digits: Path, tmp_path: Path) -> None:
    run = tmp_path / "r"

    cvt(
        "finetune", "--data", digits, "--model", KEPT / "model", "--freeze", "backbone",
        "--recipe", "quick", "-o", run,
    )  # fmt: skip

    before = weights.load(KEPT / "model").model.state_dict()
    after = weights.load(run / "last").model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_run_stops_when_no_epoch_is_better(cvt, digits: Path, tmp_path: Path) -> None:
    result = cvt(
        "finetune", "--data", digits, *TINY, "--epochs", 50, "--warmup-epochs", 0,
        "--lr", 1e-8, "--batch-size", 30, "--patience", 2, "-o", tmp_path / "r", "--json",
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
    assert "1 s have passed (--max-time)" in result.stderr
    weights.load(tmp_path / "r" / "best")


def test_a_linear_probe_solves_the_head_on_fixed_features(
    cvt, learnable: Path, tmp_path: Path
) -> None:
    run = tmp_path / "r"

    result = cvt(
        "finetune", "--data", learnable, "--model", "cvt-nano-cifar10", "--recipe", "linear-probe",
        "-o", run, "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert result.json["val_top1"] > 0.6
    before = weights.load(CHECKPOINTS["cvt-nano-cifar10"].embedded).model.state_dict()
    after = weights.load(run / "best").model.state_dict()
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.weight", "head.bias", "norm.weight", "norm.bias"}
    # Small features are made larger, by powers of two, so that the head's weights are not large.
    for name in ("norm.weight", "norm.bias"):
        factors = (after[name] / before[name]).log2()
        assert torch.equal(factors, factors.round())
    assert after["head.weight"].abs().max() < 20
    evaluated = cvt("evaluate", "--data", learnable, "--model", run / "best", "--json").json
    assert evaluated["top1"] == result.json["val_top1"]
    again = cvt("finetune", "--resume", run, "--json")
    assert "computing features" not in again.stderr
    assert again.json["val_top1"] == result.json["val_top1"]


@pytest.mark.slow  # what each command does is tested above, and so is the page by test_docs
def test_the_four_commands_of_the_docs_serve_a_strangers_folder(
    signdigits: Path, tmp_path: Path
) -> None:
    for name, count in (("0", 34), ("1", 33), ("5", 33)):
        (tmp_path / "my_folder" / name).mkdir(parents=True)
        for path in sorted((signdigits / "train" / name).iterdir())[:count]:
            shutil.copy(path, tmp_path / "my_folder" / name)
    shutil.copy(next((signdigits / "val" / "5").iterdir()), tmp_path / "photo.jpg")
    page = (TESTS.parent / "docs" / "commands" / "finetune.md").read_text()
    block = page.partition("lead from a folder of pictures to a model in use:\n\n```bash\n")[2]
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


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Eight red pictures, two green and one blue one to train on; no green one to choose by."""
    for part, counts, first in (("train", (8, 2, 1), 0), ("val", (2, 0, 2), 8)):
        for name, count in zip(("red", "green", "blue"), counts, strict=True):
            (tmp_path / "uneven" / part / name).mkdir(parents=True)
            for number in range(first, first + count):
                picture = Path(name, f"{number}.png")
                shutil.copy(KEPT / "images" / picture, tmp_path / "uneven" / part / picture)
    return tmp_path / "uneven"


def test_a_plan_says_what_follows_from_rare_classes(cvt, uneven: Path) -> None:
    more = ["--class-weights", "blue=3,green=1.5", "--select", "auc", "--dry-run", "--json"]

    found = cvt("finetune", uneven, *TINY, *more)

    assert found.exit_code == 0, found.stderr
    assert "1 training image each: `blue`" in found.stderr
    assert "no validation image: `green`" in found.stderr
    assert "class weights (as given): `blue` 3, `green` 1.5, `red` 1" in found.stderr
    assert "best validation auc (--select)" in found.stderr
    assert found.json["class_weights"] == {"blue": 3.0, "green": 1.5, "red": 1.0}


@pytest.mark.parametrize("select", ["balanced", "macro-f1", "auc", "loss"])
def test_the_best_epoch_is_the_best_by_what_is_selected(
    cvt, uneven: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, select: str
) -> None:
    more = ["--sampler", "balanced", "--select", select, "--epochs", 4, "-o", tmp_path / "r"]
    titles: list[str] = []
    monkeypatch.setattr(figures, "_headed", lambda figure, title: titles.append(title))

    result = cvt("finetune", uneven, *TINY, *more, "--json")

    assert result.exit_code == 0, result.stderr
    assert "sampler balanced: each class about 4 times in an epoch, an image of" in result.stderr
    with (tmp_path / "r" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    column = {
        "balanced": "val_balanced_accuracy", "macro-f1": "val_macro_f1", "auc": "val_roc_auc",
        "loss": "val_loss",
    }[select]  # fmt: skip
    values = [(-1 if select == "loss" else 1) * float(row[column]) for row in rows]
    assert result.json["select"] == select
    assert values[result.json["best_epoch"] - 1] == max(values)
    assert titles[0].startswith(f"r; best by {select}: ")
    assert titles[0].endswith(f"after epoch {result.json['best_epoch']}")
    # What it is chosen by is what an evaluation of the same images says.
    said = cvt("evaluate", uneven, "--model", tmp_path / "r", "--json").json
    key = {"balanced": "balanced_accuracy", "macro-f1": "macro_f1", "auc": "roc_auc"}.get(select)
    measured = said["loss"] if key is None else said["measures"][key]["value"]
    assert measured == pytest.approx(float(rows[result.json["best_epoch"] - 1][column]), rel=1e-4)


def test_weights_and_a_sampler_that_do_the_same_are_refused(cvt, uneven: Path) -> None:
    more = ["--sampler", "balanced", "--class-weights", "balanced^0.5"]

    result = cvt("finetune", uneven, *TINY, *more)

    assert result.exit_code == 2 and "would count rare classes twice" in result.stderr


def test_pictures_that_predict_would_turn_and_training_does_not_are_told(
    cvt, tmp_path: Path
) -> None:
    exif = Image.Exif()
    for name, orientation in (("red", 6), ("blue", 1)):
        (tmp_path / "phone" / name).mkdir(parents=True)
        exif[274] = orientation
        for number in range(6):
            place = tmp_path / "phone" / name / f"{number}.jpg"
            Image.new("RGB", (40, 40), (20 * number, 0, ord(name[0]))).save(place, exif=exif)

    planned = cvt("finetune", tmp_path / "phone", *TINY, "--dry-run")

    assert "EXIF says of 50 % of these pictures that they are to be turned" in planned.stderr
    assert "cvt predict turns pictures upright without --no-exif" in planned.stderr


def test_the_way_to_the_size_is_chosen_kept_and_the_crops_cost_is_said(cvt, tmp_path: Path) -> None:
    for part, count in (("train", 6), ("val", 2)):
        for name in ("red", "blue"):
            (tmp_path / "wide" / part / name).mkdir(parents=True)
            for number in range(count):
                place = tmp_path / "wide" / part / name / f"{number}.png"
                Image.new("RGB", (400, 300), (200 + number, count, ord(name[0]))).save(place)
    options = ["finetune", tmp_path / "wide", *TINY, "--epochs", 1]

    cropped = cvt(*options, "--resize", "crop", "--res", 224, "--dry-run", "--json")
    padded = cvt(*options, "--resize", "pad", "-o", tmp_path / "r", "--json")

    # This model's crop has all rows: 224 of 298 columns.
    assert cropped.json["data"]["hidden_by_crop"] == pytest.approx(1 - 224 / 298)
    assert "the centre crop hides 25 % of the area of these pictures" in cropped.stderr
    assert padded.json["preprocessing"]["resize"] == "pad"
    assert "transformers" in padded.stderr and "squashes" in padded.stderr
    assert "which cannot pad: it squashes" in (tmp_path / "r" / "best" / "README.md").read_text()
    said = cvt("evaluate", tmp_path / "wide", "--model", tmp_path / "r", "--json").json
    assert said["preprocessing"]["resize"] == "pad"
    assert said["top1_correct"] == round(4 * padded.json["val_top1"])
    again = cvt("finetune", tmp_path / "wide", "--model", tmp_path / "r", *TINY[2:], "--dry-run",
                "--json")  # fmt: skip
    assert again.json["model"]["preprocessing"]["cvt_resize"] == "pad"
