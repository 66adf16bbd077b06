"""What the version before left half done is gone on with, to the end that it would have come to."""

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from cvt_cli.finetuning.trainer import Trainer
from tests_shared import TESTS

KEPT = TESTS / "kept"
FINISHED = json.loads((KEPT / "finished.json").read_text())
"""What that version came to itself."""

TORCH = ["--engine", "torch", "--precision", "fp32"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what was left, in which commands run: the files hold paths as they were given."""
    place = tmp_path / "kept"
    shutil.copytree(KEPT, place)
    monkeypatch.chdir(place)
    return place


@pytest.mark.parametrize("run", ["run", "probe"])
def test_a_run_is_trained_to_its_end(cvt, run: str) -> None:
    result = cvt("finetune", "--resume", run, "--json")

    assert result.exit_code == 0, result.stderr
    if run == "run":
        assert "continuing at step 8 of 15, epoch 2" in result.stderr
    rows = list(csv.DictReader(Path(run, "metrics.csv").read_text().splitlines()))
    for column, wanted in FINISHED[run].items():
        assert [float(row[column]) for row in rows] == pytest.approx(wanted, rel=1e-3), column
    judged = cvt("evaluate", "--data", "images", "--model", f"{run}/best", *TORCH, "--json")
    assert judged.exit_code == 0 and judged.json["top1"] > 0.7


def test_training_goes_on_past_a_card_that_somebody_spoiled_and_keeps_it(cvt) -> None:
    spoiled = "# Größe\n".encode("latin-1")
    Path("run/best/README.md").write_bytes(spoiled)

    result = cvt("finetune", "--resume", "run")

    assert result.exit_code == 0, result.stderr
    assert Path("run/best/README-2.md").read_bytes() == spoiled
    assert "it is kept as `run/best/README-2.md`" in result.stderr
    assert "<!-- cvt: summary" in Path("run/best/README.md").read_text()


def test_a_run_in_the_background_is_not_stopped_by_the_ctrl_c_that_its_shell_ignores(
    cvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer.step

    def with_ctrl_c(trainer: Trainer, *arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return step(trainer, *arguments)

    monkeypatch.setattr(Trainer, "step", with_ctrl_c)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ignored = cvt("finetune", "--resume", "run", "--json")
    finally:
        signal.signal(signal.SIGINT, before)

    assert ignored.exit_code == 0, ignored.stderr
    assert ignored.json["epochs"] == 3 and "interrupted" not in ignored.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, "is of version 3; this version of cvt continues runs of version 1 to"),
        ({"version": "next"}, 'is of version "next"; this version'),
        ({"settings": {}}, "is not a plan of this version of cvt (version 2): it has no"),
        ({"settings": {"spin": 1}}, "got an unexpected keyword argument 'spin'"),
        ({"data": None}, "is not a plan of this version of cvt (version 2)"),
        ([], "is of version null"),
    ],
    ids=str,
)
def test_a_plan_of_another_version_is_refused_in_a_sentence(cvt, change, message: str) -> None:
    path = Path("run", "plan.json")
    plan = json.loads(path.read_text())
    if change and "settings" in change and change["settings"]:
        change = {"settings": {**plan["settings"], **change["settings"]}}
    path.write_text(json.dumps({**plan, **change} if change else change))

    result = cvt("finetune", "--resume", "run")

    assert result.exit_code == 1
    assert "error: `run/plan.json` is " in result.stderr and message in result.stderr
    assert "hint: continue with the version of cvt that began it" in result.stderr


def test_a_run_in_half_precision_is_not_gone_on_with_on_a_processor(cvt) -> None:
    plan = json.loads(Path("run", "plan.json").read_text())
    plan["settings"]["precision"] = "fp16"
    Path("run", "plan.json").write_text(json.dumps(plan))

    result = cvt("finetune", "--resume", "run", "--device", "cpu")

    assert result.exit_code == 2
    assert "error: a CPU does not compute in `fp16`" in result.stderr


def test_other_images_than_a_run_began_with_are_still_refused(cvt) -> None:
    Path("images", "red", "0.png").unlink()

    result = cvt("finetune", "--resume", "run")

    assert result.exit_code == 1
    assert "error: `images` is not the data that the run began with" in result.stderr


def test_answers_are_gone_on_with(cvt) -> None:
    before = Path("answers.jsonl").read_bytes()

    result = cvt(
        "predict", "images", "--model", "model", "--top-k", 2, *TORCH, "--resume", "answers.jsonl"
    )

    assert result.exit_code == 0, result.stderr
    assert "20 images already in `answers.jsonl`" in result.stderr
    after = Path("answers.jsonl").read_bytes()
    assert after.startswith(before)
    paths = [json.loads(line)["path"] for line in after.splitlines()]
    assert sorted(paths) == sorted(str(path) for path in Path("images").rglob("*.png"))


def test_an_evaluation_is_gone_on_with(cvt) -> None:
    before = Path("judged.jsonl").read_bytes()

    result = cvt(
        "evaluate", "--data", "images", "--model", "model", *TORCH, "--batch-size", 8,
        "--predictions", "judged.jsonl", "--resume", "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    assert Path("judged.jsonl").read_bytes().startswith(before)
    for measure, wanted in FINISHED["judged"].items():
        assert result.json[measure] == pytest.approx(wanted, rel=1e-5), measure
