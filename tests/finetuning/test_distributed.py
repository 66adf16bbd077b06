"""Two processes under torchrun learn what one process learns."""

import csv
import json
import os
import re
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from cvt_cli.finetuning.schedule import Schedule
from cvt_cli.finetuning.trainer import Part, Trainer
from cvt_cli.spec.recipes import Recipe
from tests_shared import (
    TESTS,
    golden,
    golden_config,
    golden_input,
    golden_model,
    importing_tests_of,
)
from warm_processes import Started, start

STEP = golden("train-tiny")
CLASSES = STEP["num_classes"]
WEIGHTS = torch.linspace(0.5, 4.0, CLASSES, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """How a step of four images is computed by two processes."""

    batchnorm: str  # in "inference" or "training" mode
    weights: torch.Tensor | None = None  # of the classes
    mixed: bool = False  # the classes of an image are shares, as MixUp makes them
    first: int = 2  # images of the first process

    def whole(self) -> Part:
        images = golden_input(4, STEP["height"], STEP["width"]).double()
        labels = torch.arange(4) % CLASSES
        if not self.mixed:
            return images, labels
        shares = F.one_hot(labels, CLASSES), F.one_hot(labels.roll(1), CLASSES)
        return images, 0.75 * shares[0].double() + 0.25 * shares[1].double()

    def shares(self) -> list[Part]:
        images, targets = self.whole()
        return [(images[: self.first], targets[: self.first]),
                (images[self.first :], targets[self.first :])]  # fmt: skip


CASES = {
    "inference": Case("inference"),
    "training": Case("training"),
    "weighted": Case("inference", WEIGHTS),
    "weighted and mixed": Case("inference", WEIGHTS, mixed=True),
    "weighted, of three and one": Case("inference", WEIGHTS, first=3),
}


def trainer_of(batchnorm: str, class_weights: torch.Tensor | None = None) -> Trainer:
    """The golden network without stochastic depth in float64, BatchNorm in either mode."""
    spec = golden("golden-tiny")["spec"] | STEP["changes"] | {"DROP_PATH_RATE": [0.0, 0.0, 0.0]}
    model = golden_model(golden_config(spec, CLASSES)).double()
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    return Trainer(
        model,
        Recipe("plain", "adamw", 1, 4, 1e-3, 0, 0.05, "none", clip_norm=0.0),
        Schedule(1e-3, 1, 0),
        device=torch.device("cpu"),
        precision="fp32",
        seed=0,
        class_weights=class_weights,
        frozen=norms if batchnorm == "inference" else (),
    )


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    path = tmp_path_factory.mktemp("two") / "found.safetensors"
    script = TESTS / "helpers" / "two_processes.py"
    process = start(*TORCHRUN, script, path, environment=importing_tests_of(Path(__file__).parent))
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr
    return load_file(path)


def assert_gradients(trainer: Trainer, found: dict[str, torch.Tensor], mode: str) -> None:
    for name, parameter in trainer.model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, found[f"{mode}.{name}"], rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("mode", [mode for mode in CASES if mode != "training"])
def test_with_batchnorm_in_inference_mode_they_equal_the_whole_batch(of_two, mode: str) -> None:
    case = CASES[mode]
    trainer = trainer_of(case.batchnorm, case.weights)

    loss = trainer.backward([case.whole()])

    assert of_two[f"{mode}.loss"].mean().item() == pytest.approx(loss.item(), rel=1e-12)
    assert_gradients(trainer, of_two, mode)


def test_with_batchnorm_in_training_mode_they_equal_two_separate_halves(of_two) -> None:
    trainer = trainer_of("training")

    loss = trainer.backward(CASES["training"].shares())

    assert of_two["training.loss"].mean().item() == pytest.approx(loss.item(), rel=1e-12)
    assert_gradients(trainer, of_two, "training")
    with pytest.raises(AssertionError):  # not the whole batch, whose statistics are others
        assert_gradients(trainer_of_whole(), of_two, "training")


def trainer_of_whole() -> Trainer:
    trainer = trainer_of("training")
    trainer.backward([CASES["training"].whole()])
    return trainer


# --- the command

TORCHRUN = ("forked_torchrun", "2")
ONE_THREAD = {**importing_tests_of(TESTS / "finetuning"), "OMP_NUM_THREADS": "1"}

OFTEN = (
    "from cvt_cli.finetuning import training_loop; training_loop.SAVE_EVERY_SEC = 0.05; "
    "from cvt_cli.cli import app; app()"
)
"""`cvt`, with a state after almost every step."""


def start_two(script: Path, *arguments: object) -> Started:
    script.write_text(OFTEN)
    return start(*TORCHRUN, script, *arguments, environment=ONE_THREAD)


def command(data: Path, run: Path) -> list[object]:
    return [
        "finetune", "--data", data, "--model", "cvt-nano-cifar10", "--augment", "medium",
        "--epochs", 3, "--warmup-epochs", 1, "--batch-size", 10, "--lr", 2e-3, "--workers", 0,
        "--output", run, "--json",
    ]  # fmt: skip


@dataclass(frozen=True)
class Trained:
    run: Path
    found: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def digits(signdigits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five of the ten classes with few images: train/ and val/."""
    root = tmp_path_factory.mktemp("digits")
    for split, count in (("train", 30), ("val", 20)):
        for name in "01234":
            (root / split / name).mkdir(parents=True)
            for path in sorted((signdigits / split / name).iterdir())[:count]:
                shutil.copy(path, root / split / name)
    return root


@pytest.fixture(scope="module")
def straight(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run in two processes that nothing happened to."""
    folder = tmp_path_factory.mktemp("two")
    process = start_two(folder / "often.py", *command(digits, folder / "run"))
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return Trained(folder / "run", json.loads(stdout), stderr)


def test_two_processes_say_of_the_best_epoch_what_evaluate_says_of_it(
    cvt, digits: Path, straight: Trained
) -> None:
    found, run = straight.found, straight.run
    assert (found["processes"], found["steps"], found["val_n"]) == (2, 3 * 8, 100)
    assert "20 images per step (10 x 2 processes)" in straight.said
    assert found["hardware"] == "2 processes, each 1 thread"
    assert "in each process" in straight.said
    assert straight.said.count("epoch 1/3: loss") == 1
    assert "Warning" not in straight.said

    judged = cvt(
        "evaluate", "--data", digits, "--model", run / "best", "--engine", "torch",
        "--precision", "fp32", "--json",
    ).json  # fmt: skip

    assert found["val_top1"] == judged["top1"] and found["val_top5"] == judged["top5"]
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    best = rows[found["best_epoch"] - 1]
    for column, key in (("val_top1", "top1"), ("val_top5", "top5")):
        assert best[column] == f"{judged[key]:.6g}"
    assert float(best["val_loss"]) == pytest.approx(judged["loss"], abs=6e-6)
    card = (run / "best" / "README.md").read_text()
    assert f" % ({judged['top1_correct']} of 100; " in card
    assert "cpu, 2 processes, each 1 thread, " in card
    assert "top-5" not in card  # of five classes it says nothing


def test_the_training_loss_is_of_the_images_of_all_processes(
    cvt, digits: Path, tmp_path: Path
) -> None:
    def told(run: str, batch_size: int) -> list[object]:
        return [
            "finetune", "--data", digits, "--model", "cvt-nano-cifar10", "--freeze", "backbone",
            "--augment", "none", "--epochs", 1, "--lr", 1e-8, "--workers", 0, "--precision", "fp32",
            "--batch-size", batch_size, "--output", tmp_path / run,
        ]  # fmt: skip

    of_one = cvt(*told("one", 20))
    process = start_two(tmp_path / "often.py", *told("two", 10))
    _, said = process.communicate(timeout=300)

    assert of_one.exit_code == process.returncode == 0, of_one.stderr + said
    tables = [(tmp_path / run / "metrics.csv").read_text().splitlines() for run in ("one", "two")]
    one, two = (float(next(csv.DictReader(table))["training_loss"]) for table in tables)
    assert one == pytest.approx(two, rel=1e-4)


def test_all_processes_of_a_script_are_told_the_one_folder_of_their_run(
    digits: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "from cvt_cli import finetune\n"
        f"found = finetune({str(digits)!r}, model='cvt-nano-cifar10', epochs=1, workers=0)\n"
        "print(found.run, found.best.is_dir())\n"
    )
    process = start(*TORCHRUN, script, environment=ONE_THREAD, cwd=tmp_path)
    stdout, stderr = process.communicate(timeout=300)

    assert process.returncode == 0, stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert stdout.splitlines() == [f"runs/{run.name} True"] * 2


SEVERAL_CALLS = """
import json, sys
import torch
from cvt_cli import evaluate, finetune
from cvt_cli.base.errors import CvtError

data, folder = sys.argv[1:]

def trained(seed):
    told = {"model": "cvt-nano-cifar10", "epochs": 1, "workers": 0}
    return finetune(data, output=f"{folder}/{seed}", seed=seed, **told)

found = []
for seed in (1, 1, 2):  # the second time one process finds that the folder is taken
    try:
        found.append(trained(seed).val_top1)
    except CvtError as error:
        print(error, file=sys.stderr)
for seed in (1, 2):
    found.append(evaluate(data, f"{folder}/{seed}", split="val").metrics.top1)
evaluate(data, f"{folder}/1", report=f"{folder}/report")
found.append(evaluate(data, f"{folder}/2", split="val").metrics.top1)

torch.distributed.init_process_group("gloo")  # the script's own
found.append(evaluate(data, f"{folder}/2", split="val").metrics.top1)
all_found = [None, None]
torch.distributed.all_gather_object(all_found, found)
if torch.distributed.get_rank() == 0:
    print(json.dumps(all_found))
torch.distributed.destroy_process_group()
"""


def test_a_script_in_two_processes_trains_and_evaluates_as_often_as_it_likes(
    digits: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SEVERAL_CALLS)

    process = start(*TORCHRUN, script, digits, tmp_path, environment=ONE_THREAD)
    stdout, stderr = process.communicate(timeout=300)

    assert process.returncode == 0, stderr
    mine, theirs = json.loads(stdout.splitlines()[-1])  # gloo greets a script's own group (2.10)
    assert mine == theirs
    assert mine == [*mine[:2], *mine[:2], mine[1], mine[1]]
    assert (tmp_path / "report" / "index.html").exists()
    assert f"`{tmp_path / '1'}` exists" in stderr
    assert stderr.count("process 1 has nobody to go on with: another of the 2 has ended") == 1


FAILS_IN_ONE = """
import json, sys
from datetime import timedelta
import torch
from cvt_cli import evaluate, finetune
from cvt_cli.base.errors import CvtError

data, folder = sys.argv[1:]
# The script's own, as most have it; what waits for ever fails the test.
torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=100))
rank, found = torch.distributed.get_rank(), []
trained = finetune(data, model="cvt-nano-cifar10", epochs=1, workers=0, output=f"{folder}/run")
for where in (data if rank == 0 else f"{folder}/nothing", data):
    try:
        found.append(evaluate(where, f"{folder}/run", split="val").metrics.top1 == trained.val_top1)
    except CvtError as error:
        found.append(str(error))
    torch.distributed.barrier()
try:
    evaluate(data, f"{folder}/run", split="val") if rank == 0 else finetune(data, epochs=1)
except CvtError as error:
    found.append(str(error))
all_found = [None, None]
torch.distributed.all_gather_object(all_found, found)
if rank == 0:
    print(json.dumps(all_found))
torch.distributed.destroy_process_group()
"""


def test_what_fails_in_one_process_fails_in_all_where_the_script_has_its_own_process_group(
    digits: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(FAILS_IN_ONE)

    process = start(*TORCHRUN, script, digits, tmp_path, environment=ONE_THREAD)
    stdout, stderr = process.communicate(timeout=300)

    assert process.returncode == 0, stderr
    mine, theirs = json.loads(stdout.splitlines()[-1])  # gloo greets a script's own group (2.10)
    assert mine == [
        "process 0 has nobody to go on with: another of the 2 has ended",
        True,
        "process 0 has come to evaluate, and process 1 to finetune",
    ]
    assert f"{tmp_path}/nothing" in theirs[0]
    assert theirs[1:] == [True, "process 1 has come to finetune, and process 0 to evaluate"]


CALLS_THAT_DIFFER = """
import os, sys
from cvt_cli import evaluate, finetune
from cvt_cli.base.errors import CvtError

data, folder = sys.argv[1:]
called = {"model": "cvt-nano-cifar10", "epochs": 1, "workers": 0, "output": f"{folder}/run"}
first = os.environ["RANK"] == "0"
try:
    finetune(data, **called) if first else evaluate(data, "cvt-nano-cifar10")
except CvtError as error:
    print(os.environ["RANK"], error, flush=True)
finetune(data, **called)
if first:
    try:
        evaluate(data, f"{folder}/run", split="val")
    except CvtError as error:
        print("alone:", error, flush=True)
"""


def test_a_script_whose_processes_call_different_things_is_told_and_nobody_waits_for_ever(
    digits: Path, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(CALLS_THAT_DIFFER)

    process = start(*TORCHRUN, script, digits, tmp_path, environment=ONE_THREAD)
    stdout, stderr = process.communicate(timeout=300)

    assert process.returncode == 0, stderr
    assert sorted(stdout.splitlines()) == [
        "0 process 0 has come to finetune, and process 1 to evaluate",
        "1 process 1 has come to evaluate, and process 0 to finetune",
        "alone: process 0 has nobody to go on with: process 1 of the 2 has ended and did not come "
        "to evaluate",
    ]


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def test_two_processes_that_are_killed_go_on_to_the_same_bits(
    digits: Path, straight: Trained, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start_two(tmp_path / "often.py", *command(digits, run))
    deadline = time.monotonic() + 200
    while not (run / "last" / "model.safetensors").exists():  # the first epoch is done
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    for pid in [*descendants(process.pid), process.pid]:  # torchrun's processes lead groups
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)

    again = start_two(tmp_path / "often.py", "finetune", "--resume", run, "--workers", 0)
    _, stderr = again.communicate(timeout=300)

    assert again.returncode == 0, stderr
    assert "the run began in" not in stderr
    said = re.search(r"continuing at step (\d+) of 24", stderr)
    assert said is not None and 8 <= int(said[1]) < 24
    for name in ("best/model.safetensors", "last/model.safetensors"):
        assert (run / name).read_bytes() == (straight.run / name).read_bytes()
    timeless = [
        [
            re.sub(r",[^,]*(,[^,]*)$", r"\1", row)
            for row in (at / "metrics.csv").read_text().splitlines()
        ]
        for at in (run, straight.run)
    ]
    assert timeless[0] == timeless[1]
    with safe_open(run / "state" / "state.safetensors", "pt") as mine:
        with safe_open(straight.run / "state" / "state.safetensors", "pt") as theirs:
            assert all(torch.equal(mine.get_tensor(n), theirs.get_tensor(n)) for n in theirs.keys())


def test_what_torchrun_starts_again_goes_on_with_its_own_run_and_with_no_other(
    digits: Path, straight: Trained, tmp_path: Path
) -> None:
    script, run = tmp_path / "often.py", tmp_path / "run"
    script.write_text(OFTEN)
    once_more = ("forked_torchrun", "2+1", script, *command(digits, run))
    process = start(*once_more, environment=ONE_THREAD)
    deadline = time.monotonic() + 200
    while not (run / "last" / "model.safetensors").exists():  # the first epoch is done
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(descendants(process.pid)[-1], signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=300)
    other = start(*once_more, environment=ONE_THREAD)
    _, refused = other.communicate(timeout=300)

    assert process.returncode == 0, stderr
    assert f"torchrun has started this again: going on with `{run}`" in stderr
    assert re.search(r"continuing at step \d+ of 24", stderr)
    assert json.loads(stdout)["val_top1"] == straight.found["val_top1"]
    for name in ("best/model.safetensors", "last/model.safetensors"):
        assert (run / name).read_bytes() == (straight.run / name).read_bytes()
    assert other.returncode == 1
    assert refused.count(f"`{run}` exists and is not empty") >= 2  # its second start as well


def test_a_run_of_two_processes_that_goes_on_in_one_says_so(
    cvt, digits: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = start_two(tmp_path / "often.py", *command(digits, run), "--max-time", "0s")
    assert process.communicate(timeout=300) and process.returncode == 0

    again = cvt("finetune", "--resume", run, "--workers", 0, "--max-time", "0s")

    wanted = "the run began in 2 processes and goes on in 1, with 20 images at once in each"
    assert again.exit_code == 0 and again.stderr.count(wanted) == 1
