"""Cross-validation: folds that no group crosses, killed and gone on with to the same table."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from cvt_cli import finetune
from cvt_cli.base import package
from cvt_cli.evaluation.metrics import wilson
from cvt_cli.finetuning import preparation
from cvt_cli.finetuning import run as run_of_a_fold
from tests_shared import TESTS, Machine, Result

SHORT = ["--variant", "nano", "--epochs", "1", "--batch-size", "8", "--warmup-epochs", "0"]
SHORT += ["--lr", "2e-3", "--workers", "0"]
BY_VIDEO = ["--group-by", r"(v\d+)_"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of twelve made-up videos of two classes, which differ in colour."""
    root = tmp_path_factory.mktemp("videos") / "set"
    generator = np.random.default_rng(3)
    for video in range(12):
        folder = root / ("cat", "dog")[video % 2]
        folder.mkdir(parents=True, exist_ok=True)
        for frame in range(3):
            pixels = generator.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., video % 2] += 60
            Image.fromarray(pixels).save(folder / f"v{video}_{frame}.png")
    return root


@pytest.fixture(scope="module")
def straight(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folds that nothing happened to, in a process of their own."""
    run = tmp_path_factory.mktemp("straight") / "run"
    line = ["finetune", videos, *SHORT, "--folds", 3, *BY_VIDEO, "-o", run]
    result = Machine(run, dict(os.environ)).run(*line)
    assert result.exit_code == 0, result.stderr
    assert "fold 1  top-1 " in result.stdout and "over 12 groups)" in result.stdout
    assert repr(finetune(resume=run)) == result.stdout.strip()
    return run


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "out_of_fold.jsonl").read_text().splitlines()]


def test_every_image_is_judged_once_by_a_run_that_saw_none_of_its_group(
    videos: Path, straight: Path
) -> None:
    lines = lines_of(straight)
    names = [str(file.relative_to(videos)) for file in sorted(videos.rglob("*.png"))]
    fold_of = {line["path"]: line["fold"] for line in lines}

    assert sorted(fold_of) == sorted(names) and len(lines) == len(names)
    assert set(fold_of.values()) == {1, 2, 3}
    for fold in (1, 2, 3):
        split = json.loads((straight / f"fold-{fold}" / "split.json").read_text())
        held_out = {name for name in names if fold_of[name] == fold}
        assert set(split["held_out"]) == held_out
        videos_of = [{n.split("/")[1].split("_")[0] for n in part} for part in (
            held_out, split["validation"], set(names) - held_out - set(split["validation"])
        )]  # fmt: skip
        assert sum(map(len, videos_of)) == 12  # none is in two
        assert {name[:3] for name in split["validation"]} == {"cat", "dog"}


def test_the_table_and_the_intervals_follow_from_what_was_said(cvt, straight: Path) -> None:
    lines, result = lines_of(straight), json.loads((straight / "results.json").read_text())
    rows = [row.split(",") for row in (straight / "folds.csv").read_text().splitlines()]

    assert rows[0][:4] == ["fold", "n", "correct", "top1"]
    rates = []
    for number, row in enumerate(rows[1:], 1):
        own = [line["correct"] for line in lines if line["fold"] == number]
        assert row[:4] == [str(number), str(len(own)), str(sum(own)), str(sum(own) / len(own))]
        rates.append(sum(own) / len(own))
    correct = sum(line["correct"] for line in lines)
    assert result["correct"] == correct and result["top1"] == correct / 36
    assert result["mean"] == pytest.approx(np.mean(rates))
    reach = 4.303 * np.std(rates, ddof=1) / 3**0.5  # Student's, two degrees of freedom
    low, high = wilson(correct, 36)
    assert result["mean_interval"][0] == pytest.approx(
        max(0, min(np.mean(rates) - reach, low)), abs=1e-9
    )
    assert result["top1_interval"][0] <= low and result["top1_interval"][1] >= high

    compared = cvt(
        "compare", straight / "out_of_fold.jsonl", straight / "out_of_fold.jsonl", "--json"
    )

    assert compared.json["n"] == 36 and compared.json["accuracy_a"] == correct / 36


def test_folds_killed_in_the_middle_end_with_the_same_table_to_the_byte(
    cvt, videos: Path, straight: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    line = ["finetune", videos, *SHORT, "--folds", 3, *BY_VIDEO, "-o", run]
    process = Machine(tmp_path, dict(os.environ)).start(*line)
    deadline = time.monotonic() + 300
    while not (run / "fold-2" / "state" / "state.safetensors").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL and not (run / "folds.csv").exists()

    part = cvt("finetune", "--resume", run / "fold-2")
    result = Machine(tmp_path, dict(os.environ)).run("finetune", "--resume", run)

    assert part.exit_code == 2 and f"hint: cvt finetune --resume {run}" in part.stderr
    assert result.exit_code == 0, result.stderr
    assert "fold 1 of 3 is done" in result.stderr
    for name in ("folds.csv", "out_of_fold.jsonl"):
        assert (run / name).read_bytes() == (straight / name).read_bytes()


def test_folds_go_on_with_the_class_weights_that_were_read_though_their_file_has_gone(
    cvt, videos: Path, tmp_path: Path
) -> None:
    file, run, model = tmp_path / "w.json", tmp_path / "run", tmp_path / "model"
    classes = sorted(path.name for path in videos.iterdir() if path.is_dir())
    file.write_text(json.dumps({classes[0]: 3.0}))
    shutil.copytree(TESTS / "kept" / "model", model)
    line = ["finetune", videos, "--model", model, "--epochs", 1, "--workers", 0, "--folds", 3]
    whole = cvt(*line, *BY_VIDEO, "--class-weights", file, "-o", run)
    assert whole.exit_code == 0, whole.stderr
    for name in ("folds.csv", "results.json"):
        (run / name).unlink()
    table = (run / "fold-3" / "out_of_fold.jsonl").read_bytes()
    shutil.rmtree(run / "fold-3")
    file.unlink()

    again = cvt("finetune", "--resume", run)

    assert again.exit_code == 0, again.stderr
    assert (run / "fold-3" / "out_of_fold.jsonl").read_bytes() == table
    shutil.rmtree(run / "fold-3")
    (run / "fold-2" / "out_of_fold.jsonl").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "activation": "gelu"}))
    other = cvt("finetune", "--resume", run)
    assert other.exit_code == 2 and "fold 2 of 3" not in other.stderr  # before any fold goes on
    assert "activation" in other.stderr


def test_a_model_of_a_fold_is_known_not_to_have_seen_it(cvt, videos: Path, straight: Path) -> None:
    result = cvt("evaluate", videos, "--model", straight / "fold-1" / "best", "--json")

    split = json.loads((straight / "fold-1" / "split.json").read_text())
    unseen = len(split["held_out"]) + len(split["validation"])
    assert result.json["n_trained_on"] == 36 - unseen
    whole = cvt("evaluate", videos, "--model", straight)
    wanted = f"whose models are those of its folds, such as `{straight / 'fold-1'}`"
    assert whole.exit_code == 1 and wanted in whole.stderr


def test_the_card_of_a_fold_says_that_it_was_measured_on_its_fold(straight: Path) -> None:
    card = (straight / "fold-1" / "best" / "README.md").read_text()
    n = len((straight / "fold-1" / "out_of_fold.jsonl").read_text().splitlines())

    assert f"On the {n} images of its fold, which it has not seen: see the cross-valid" in card
    assert f"| held out as its fold | {n} images |" in card
    assert "no others were evaluated" not in card and "on other images than those" not in card


def test_folds_of_other_images_are_not_gone_on_with(
    cvt, videos: Path, straight: Path, tmp_path: Path
) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "dog").mkdir()
    for file in sorted(videos.rglob("*.png"))[:-1]:
        (tmp_path / file.relative_to(videos)).write_bytes(file.read_bytes())

    result = cvt("finetune", "--resume", straight, "--data", tmp_path)

    assert result.exit_code == 1
    assert f"the images are not what `{straight}` began with" in result.stderr
    assert "1 of its images is gone or changed" in result.stderr


def test_folds_leave_out_to_their_end_what_could_not_be_read_when_they_began(
    cvt, videos: Path, tmp_path: Path
) -> None:
    data, run, whole = (tmp_path / name for name in ("data", "run", "whole"))
    shutil.copytree(videos, data)
    bad = data / "cat" / "v0_0.png"
    sound = bad.read_bytes()
    bad.write_bytes(b"<html>")
    line = ["finetune", data, *SHORT, "--folds", 3, *BY_VIDEO]
    begun = run_of_a_fold.Run.begin

    def second_is_interrupted(run: run_of_a_fold.Run, folder: Path, *told: Any) -> Any:
        if folder.name == "fold-2":
            raise KeyboardInterrupt
        return begun(run, folder, *told)

    with mock.patch.object(run_of_a_fold.Run, "begin", second_is_interrupted):
        assert cvt(*line, "-o", run).exit_code == 130
    cvt(*line, "-o", whole)
    bad.write_bytes(sound)
    result = cvt("finetune", "--resume", run)

    assert result.exit_code == 0, result.stderr
    assert "1 left out, as when the run began: cat/v0_0.png" in result.stderr
    assert lines_of(run) == lines_of(whole)
    found, straight = (json.loads((one / "results.json").read_text()) for one in (run, whole))
    for name in ("n_unreadable", "fingerprint", "n", "correct"):
        assert found[name] == straight[name]
    plans = [json.loads((run / f"fold-{n}" / "plan.json").read_text())["data"] for n in (1, 2)]
    for name in ("left_out", "unreadable", "fingerprint", "used_fingerprint"):
        assert plans[0][name] == plans[1][name]


def test_all_folds_start_from_the_same_weights(
    cvt, videos: Path, straight: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(package.DATA / "cvt-nano-cifar10", tmp_path / "model")
    run, options = tmp_path / "run", [*SHORT[2:], *BY_VIDEO]
    cvt("finetune", videos, "--model", model, *options, "--folds", 3, "-o", run)
    whole = (run / "folds.csv").read_bytes()
    for name in ("fold-2", "fold-3"):
        shutil.rmtree(run / name)
    weights = next(model.glob("*.safetensors"))
    before = weights.read_bytes()
    shutil.copy(straight / "fold-1" / "best" / "model.safetensors", weights)
    shutil.copy(straight / "fold-1" / "best" / "config.json", model)

    other = cvt("finetune", "--resume", run)
    shutil.copy(package.DATA / "cvt-nano-cifar10" / "config.json", model)
    weights.write_bytes(before)
    same = cvt("finetune", "--resume", run)

    assert other.exit_code == 2 and "folds.json` was made with weights" in other.stderr
    assert same.exit_code == 0 and (run / "folds.csv").read_bytes() == whole, same.stderr


def test_what_a_fold_left_is_read_only_if_it_is_of_its_images(
    cvt, straight: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(straight, tmp_path / "run")
    said = run / "fold-2" / "out_of_fold.jsonl"
    said.write_text("".join(said.read_text().splitlines(keepends=True)[1:]))

    result = cvt("finetune", "--resume", run)

    assert result.exit_code == 1 and "what fold 2 left in" in result.stderr
    assert "is not of the fold's 12 images" in result.stderr


def test_of_two_that_begin_in_one_folder_the_second_is_refused(
    cvt, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    checked = preparation.check_free

    def faster(folder: Path) -> None:  # the first begins after the second has looked
        checked(folder)
        monkeypatch.undo()
        first.append(cvt("finetune", videos, *SHORT, "--folds", 2, "-o", run))

    first: list[Result] = []
    monkeypatch.setattr(preparation, "check_free", faster)
    second = cvt("finetune", videos, *SHORT, "--folds", 2, "--seed", 3, "-o", run)

    assert first[0].exit_code == 0, first[0].stderr
    assert second.exit_code == 1 and f"`{run}` exists and is not empty" in second.stderr
    assert json.loads((run / "folds.json").read_text())["seed"] == 0


def test_folds_that_cannot_be_are_refused_before_training(
    cvt, videos: Path, tmp_path: Path
) -> None:
    for told, code, said in (
        (["--folds", "1"], 2, "--folds"),
        (["--folds", "2", "--max-time", "1h"], 2, "--max-time: "),
        (["--folds", "13", *BY_VIDEO], 1, "there are 12 groups, and --folds is 13"),
        (["--folds", "2", "--group-by", "cat|dog"], 1, "all images of `cat`, `dog` would lie in"),
    ):
        result = cvt("finetune", videos, *SHORT, *told, "-o", tmp_path / "run")

        assert result.exit_code == code and said in result.stderr
        assert not (tmp_path / "run").exists()


def test_folds_without_groups_have_every_class_alike(cvt, videos: Path) -> None:
    result = cvt("finetune", videos, *SHORT, "--folds", 4, "--dry-run", "--json")

    assert result.exit_code == 0, result.stderr
    assert "4 folds of 9 to 9 images" in result.stderr
    assert result.json["folds"] == 4 and result.json["data"]["train_n"] == 25


def test_folds_whose_start_has_seen_their_images_say_how_many(
    cvt, videos: Path, tmp_path: Path
) -> None:
    start = ["--model", "cvt-nano-cifar10", "--recipe", "linear-probe"]
    cvt("finetune", videos, *start, "-o", tmp_path / "seen")
    split = json.loads((tmp_path / "seen" / "split.json").read_text())
    wanted = 36 - len(split["validation"])

    told = ["--model", tmp_path / "seen", "--recipe", "linear-probe", "--folds", 2]
    result = cvt("finetune", videos, *told, "-o", tmp_path / "folds")
    fresh = cvt("finetune", videos, *start, "--folds", 2, "-o", tmp_path / "fresh", "--json")

    document = json.loads((tmp_path / "folds" / "results.json").read_text())
    assert document["trained_before"] == wanted
    assert sum(fold["trained_before"] for fold in document["folds"]) == wanted
    assert f"the start was trained on {wanted} of these 36 images" in result.stdout
    assert fresh.json["trained_before"] is None
    files = [tmp_path / name / "out_of_fold.jsonl" for name in ("folds", "fresh")]
    compared = cvt("compare", *files, "--json").json
    assert (compared["n_trained_on_a"], compared["n_trained_on_b"]) == (wanted, None)
