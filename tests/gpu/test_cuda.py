"""What a CUDA device computes, and what a user sees of it; `tests/gpu_check.sh` runs all of it."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from cvt_cli.base.package import DATA
from cvt_cli.images import decode, transform
from cvt_cli.model import weights
from cvt_cli.model.cuda import CudaEngine
from cvt_cli.model.engine import TorchEngine
from tests_shared import Machine, golden, golden_config, golden_input, golden_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

CUDA = torch.device("cuda")
PHOTOS = Path(__file__).parents[1] / "photos"
TOLERANCES = {"fp32": 5e-5, "fp16": 5e-3, "bf16": 1e-1}
"""Of logits, as parts of the largest one; TF32, PyTorch's default for convolutions, has 1e-3."""


@pytest.fixture(scope="module")
def digits(signdigits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three of the ten classes, and few images of each."""
    root = tmp_path_factory.mktemp("digits")
    for name in ("0", "1", "5"):
        (root / name).mkdir()
        for path in sorted((signdigits / "train" / name).iterdir())[:64]:
            shutil.copy(path, root / name)
    return root


def training(digits: Path, run: Path, *more: object, batch_size: int = 32) -> list[object]:
    return [
        "finetune", "--data", digits, "--variant", "nano", "--augment", "medium",
        "--device", "cuda", "--warmup-epochs", 1, "--batch-size", batch_size,
        "--output", run, *more,
    ]  # fmt: skip


@pytest.mark.parametrize("precision", TOLERANCES)
@pytest.mark.parametrize("name", ["tiny-123", "cvt-13"])
def test_logits_equal_the_official_implementation(name: str, precision: str) -> None:
    file = golden(f"golden-{name}")
    for case in file["cases"]:
        model = golden_model(golden_config(file["spec"], case["num_classes"]))
        batch = golden_input(2, case["height"], case["width"])[[0, 1, 0]].numpy()

        logits = TorchEngine(model, CUDA, precision)(batch)

        wanted = np.array(case["logits"])
        apart = np.abs(logits[[0, 2]] - wanted).max() / np.abs(wanted).max()
        print(f"APART {name} {precision} {case['height']}: {apart:.1e}")
        assert apart < TOLERANCES[precision]


@pytest.mark.parametrize("compiled", [False, True])
def test_recorded_calls_answer_as_plain_ones(cifar10: Path, compiled: bool) -> None:
    """From bytes as from what a CPU has normalised, whole batches and a part of one."""
    loaded = weights.load(DATA / "cvt-nano-cifar10")
    pictures = [decode.load(path, False) for path in sorted((cifar10 / "test").rglob("*.png"))[:24]]
    crops = [np.asarray(transform.resize(p, loaded.preprocessing)) for p in pictures]
    arrays = [transform.preprocess(p, loaded.preprocessing) for p in pictures]
    wanted = TorchEngine(loaded.model, CUDA, "fp32")(np.stack(arrays))
    engine = CudaEngine(loaded.model, CUDA, "fp32", loaded.preprocessing, compiled)

    for given in (crops, arrays):
        for _ in range(2):
            for part in (slice(0, 8), slice(8, 16), slice(16, 24), slice(3, 8)):
                assert np.abs(engine.begin(given[part])() - wanted[part]).max() < 1e-4
    finishes = [engine.begin(crops[i : i + 8]) for i in (0, 8, 16)]
    assert np.abs(np.concatenate([f() for f in finishes]) - wanted).max() < 1e-4
    assert engine.busy_sec > 0 and engine.transfer_sec > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_evaluate_counts_what_a_cpu_counts(cvt, cifar10: Path, precision: str) -> None:
    line = ["evaluate", cifar10 / "test", "--model", "cvt-nano-cifar10", "--json"]
    wanted = cvt(*line, "--device", "cpu", "--precision", "fp32").json

    found = cvt(*line, "--device", "cuda", "--precision", precision).json

    assert found["device"].startswith("cuda") and found["precision"] == precision
    counted = ("n", "top1_correct", "top5_correct")
    if precision == "fp32":
        assert [found[key] for key in counted] == [wanted[key] for key in counted]
        assert found["loss"] == pytest.approx(wanted["loss"], abs=1e-5)
    assert abs(found["top1_correct"] - wanted["top1_correct"]) <= 0.003 * wanted["n"]


def test_predict_answers_as_a_cpu_does(cvt, cifar10: Path) -> None:
    line = ["predict", cifar10 / "test", "--model", "cvt-nano-cifar10", "--jsonl"]
    wanted = cvt(*line, "--device", "cpu", "--engine", "torch").json_lines

    found = cvt(*line, "--device", "cuda", "--precision", "fp32", "--batch-size", 64).json_lines

    assert [a["path"] for a in found] == [a["path"] for a in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a["predictions"][0]["label"] == b["predictions"][0]["label"]
        assert a["predictions"][0]["score"] == pytest.approx(b["predictions"][0]["score"], abs=1e-4)


def test_features_are_those_of_a_cpu(cvt, cifar10: Path, tmp_path: Path) -> None:
    line = ["predict", cifar10 / "test", "--model", "cvt-nano-cifar10", "--precision", "fp32"]
    found = []
    for device in ("cpu", "cuda"):
        file = tmp_path / f"{device}.npz"
        assert cvt(*line, "--device", device, "--features", file).exit_code == 0
        with np.load(file) as content:
            found.append({name: content[name] for name in content.files})
    assert np.abs(found[0]["features"] - found[1]["features"]).max() < 1e-3


def test_low_precisions_agree_on_all_but_one_image_in_two_hundred(cifar10: Path) -> None:
    loaded = weights.load(DATA / "cvt-nano-cifar10")
    paths = sorted((cifar10 / "test").rglob("*.png"))
    batch = np.stack(
        [transform.preprocess(decode.load(p, False), loaded.preprocessing) for p in paths]
    )
    exact = TorchEngine(loaded.model, torch.device("cpu"), "fp32")(batch).argmax(1)
    for precision in ("bf16", "fp16"):
        assert (TorchEngine(loaded.model, CUDA, precision)(batch).argmax(1) == exact).mean() > 0.995


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_learns(cvt, digits: Path, tmp_path: Path, precision: str) -> None:
    run = tmp_path / "run"

    done = cvt(*training(digits, run, "--precision", precision, "--epochs", 12, "--json"))

    assert done.exit_code == 0, done.stderr
    rows = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    losses = [float(row[rows[0].index("training_loss")]) for row in rows[1:]]
    assert losses[-1] < losses[0]
    if precision == "fp16":
        with safe_open(run / "state" / "state.safetensors", "pt") as file:
            assert "scale" in str(file.metadata())


def what_came_of_it(run: Path) -> tuple[bytes, bytes]:
    best, last = ((run / place / "model.safetensors").read_bytes() for place in ("best", "last"))
    return best, last


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(
    cvt, digits: Path, tmp_path: Path, precision: str
) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    options = ("--precision", precision, "--epochs", 12)
    assert cvt(*training(digits, straight, *options)).exit_code == 0
    line = [sys.executable, "-m", "cvt_cli", *map(str, training(digits, run, *options))]
    state = run / "state" / "state.safetensors"
    for end in (signal.SIGINT, signal.SIGKILL):
        process = subprocess.Popen(line, stderr=subprocess.PIPE, text=True)
        before = state.stat().st_mtime_ns if state.exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if state.exists() and state.stat().st_mtime_ns > before:
                break
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(end)
        _, stderr = process.communicate(timeout=60)
        assert process.returncode != 1, stderr
        line = [sys.executable, "-m", "cvt_cli", "finetune", "--resume", str(run)]

    assert cvt("finetune", "--resume", run).exit_code == 0

    assert what_came_of_it(run) == what_came_of_it(straight)


def test_a_linear_probe_solves_to_a_result(cvt, digits: Path, tmp_path: Path) -> None:
    found = []
    for device in ("cpu", "cuda"):
        done = cvt(
            "finetune", "--data", digits, "--model", "cvt-nano-cifar10", "--recipe", "linear-probe",
            "--device", device, "--precision", "fp32", "--output", tmp_path / device, "--json",
        )  # fmt: skip
        assert done.exit_code == 0, done.stderr
        found.append(done.json["val_top1"])
    assert found[0] == pytest.approx(found[1], abs=0.03)


def test_torchrun_trains_in_one_process(machine: Machine, digits: Path, tmp_path: Path) -> None:
    through = ("torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m")
    line = training(digits, tmp_path / "run", "--epochs", 2)

    done = machine.wait(machine.start(*line, through=through))

    assert done.exit_code == 0, done.stderr


def test_two_processes_on_one_device_are_explained(
    machine: Machine, digits: Path, tmp_path: Path
) -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("every process has a device of its own")

    done = machine.torchrun(*training(digits, tmp_path / "run", "--epochs", 2))

    assert done.exit_code != 0
    assert "2 processes share 1 CUDA device" in done.stderr


def test_a_benchmark_has_a_row_for_each_precision(cvt) -> None:
    done = cvt(
        "benchmark", "nano", "--engine", "torch", "--device", "cuda", "--batch-size", 4,
        "--precision", "fp32,bf16,fp16", "--rounds", 1, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    rows = done.json["rows"]
    assert [row["precision"] for row in rows] == ["fp32", "bf16", "fp16"]
    assert all(row["images_per_sec"] > 0 and row["peak_memory_bytes"] > 0 for row in rows)


def test_too_large_a_batch_is_explained(cvt, digits: Path, tmp_path: Path) -> None:
    everything = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction(3 * 1024**3 / everything)
    try:
        line = ["predict", digits, "--model", "cvt-nano-cifar10", "--device", "cuda"]
        done = cvt(*line, "--res", 1024, "--batch-size", 192, "--jsonl")
        trained = cvt(*training(digits, tmp_path / "run", "--res", 1024, batch_size=96))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()

    for one in (done, trained):
        assert one.exit_code == 1
        assert "not enough memory" in one.stderr and "--batch-size" in one.stderr


def test_a_device_that_is_not_there_is_refused_in_words(cvt) -> None:
    done = cvt(
        "predict", PHOTOS / "chelsea.png", "--model", "cvt-nano-cifar10", "--device", "cuda:7"
    )

    assert done.exit_code == 2
    assert "device `cuda:7` does not exist" in done.stderr


def test_a_checkpoint_is_exported_where_there_is_a_gpu(cvt, tmp_path: Path) -> None:
    file = tmp_path / "nano.onnx"

    done = cvt("export", "cvt-nano-cifar10", "--output", file)

    assert done.exit_code == 0, done.stderr
    assert json.loads(cvt("predict", PHOTOS / "chelsea.png", "--model", file, "--jsonl").stdout)
