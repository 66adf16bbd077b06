"""`cvt export`: files that run elsewhere, and say the same there and here."""

import functools
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file, save_file

from cvt_cli import Classifier
from cvt_cli.base.package import installing
from cvt_cli.checkpoints import export_metadata, folders
from cvt_cli.checkpoints.names import is_transformers
from cvt_cli.engines import runtimes
from cvt_cli.export import verification
from cvt_cli.model import weights
from cvt_cli.spec.labels import Labels, imagenet
from cvt_cli.spec.preprocessing import Preprocessing, Resize
from cvt_cli.spec.variants import VARIANTS
from tests_shared import (
    CHELSEA,
    TESTS,
    TINY,
    Machine,
    as_unknown_user,
    golden_model,
    golden_state,
    python,
    test_data,
    with_a_small_disk,
)

NANO = "cvt-nano-cifar10"
FILES = ("nano.onnx", "nano.xml", "nano.pt2")
ENGINES = {"nano.onnx": "onnxruntime", "nano.xml": "openvino", "nano.pt2": "torch"}
DEPLOYMENT = (TESTS.parent / "docs" / "deployment.md").read_text()
README = (TESTS.parent / "README.md").read_text()


def slow(*values: object):
    """One more format; in the default run one of each kind is exported."""
    return pytest.param(*values, marks=pytest.mark.slow)


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "CVT_CACHE": str(folder), "HF_HUB_OFFLINE": "1"}


def run(folder: Path, *arguments: object):
    return Machine(folder, environment(folder)).run(*arguments)


ONE_ROUND = (
    "from cvt_cli.export import export; export.SPEED_ROUNDS = 1; "
    "from cvt_cli.cli import app; app(prog_name='cvt')"
)
"""`cvt`, whose `export` times one round: the rounds take longer than to make a small file."""


def exported(folder: Path, *arguments: object):
    """What `cvt export` says, but for how fast the file is, which `files` has."""
    return python(ONE_ROUND, "export", *arguments, environment=environment(folder))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cvt-nano-cifar10 in every format."""
    folder = tmp_path_factory.mktemp("exported")
    for name in FILES:
        result = run(folder, "export", NANO, "--output", folder / name)
        assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="module")
def prepared(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """cvt-nano-cifar10 as ONNX that takes pictures as they are."""
    path = tmp_path_factory.mktemp("prepared") / "nano.onnx"
    result = exported(files, NANO, "--output", path, "--with-preprocessing")
    assert result.exit_code == 0, result.stderr
    return path


@pytest.fixture(scope="module")
def five_hundred(tmp_path_factory: pytest.TempPathFactory, cifar10: Path) -> Path:
    """The first 50 test images of each class of CIFAR-10."""
    folder = tmp_path_factory.mktemp("cifar")
    for source in (cifar10 / "test").iterdir():
        (folder / source.name).mkdir()
        for image in sorted(source.iterdir())[:50]:
            (folder / source.name / image.name).symlink_to(image)
    return folder


def checkpoint(folder: Path, config, size: int, names: Labels | None = None) -> Path:
    """A folder with golden weights."""
    names = names or Labels(tuple(f"class {i}" for i in range(config.num_classes)))
    weights.save(folder, golden_model(config), names, Preprocessing.published(size, size), "card")
    return folder


# --- what is written


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_verified_in_its_own_runtime_and_says_how(files: Path, name: str) -> None:
    document = json.loads((files / f"{name}.json").read_text())

    measured = document["verification"]
    assert document["engine"] == ENGINES[name] and measured["passed"]
    assert measured["checks"][0]["data"] == "random"
    assert measured["checks"][0]["batch_sizes"] == [1, 2, 7]
    assert measured["checks"][-1]["data"] == "images" and measured["checks"][-1]["n"] == 10
    assert measured["data"] == "10 images of the package"
    assert 0 <= measured["largest_difference"] < 1e-4
    assert measured["top1_agreement"] == 1.0
    speed = document["speed"]
    low, high = speed["ratio_range"]
    assert 0 < low <= high and speed["latency_sec"] > 0
    assert (speed["ratio"] is None) == (high > 2 * low)  # turns that do not agree say nothing
    assert document["bytes"] > 1_000_000
    expected = set(FILES) | {f"{file}.json" for file in FILES} | {"nano.bin"}
    assert {path.name for path in files.iterdir() if path.is_file()} == expected


def test_the_onnx_file_is_valid_and_its_metadata_read_back(files: Path) -> None:
    model = onnx.load(files / "nano.onnx")

    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["activation"] == "quick_gelu" and metadata["license"] == "MIT"
    assert metadata["source"] == "cvt-cli" and metadata["revision"] == ""
    assert json.loads(metadata["classes"])[8] == "ship"
    assert json.loads(metadata["preprocessing"])["crop_pct"] == 1.0
    assert export_metadata.read(files / "nano.onnx").to_strings() == metadata


@pytest.mark.parametrize("name", FILES)
def test_every_format_keeps_the_same_metadata(files: Path, name: str) -> None:
    record = export_metadata.read(files / name)

    assert record == export_metadata.read(files / "nano.onnx")
    assert record.labels.names[0] == "airplane" and len(record.weights_sha256) == 64
    assert record.config == weights.load(exported_source()).model.config


def exported_source() -> Path:
    from cvt_cli.spec.published import CHECKPOINTS

    return CHECKPOINTS[NANO].embedded


def test_the_lines_of_the_docs_answer_with_plain_onnxruntime(
    files: Path, prepared: Path, tmp_path: Path
) -> None:
    (long,) = re.findall(r"```python\n(import json\n.+?)```", DEPLOYMENT, re.DOTALL)
    (short,) = re.findall(r"```python\n(import json, .+?)```", README, re.DOTALL)
    assert len([line for line in long.splitlines() if line.strip()]) <= 10
    code = long + short.replace("my_model.onnx", "nano.onnx")
    for path in (prepared, prepared.with_name("nano.onnx.json")):
        shutil.copy(path, tmp_path)
    shutil.copy(TESTS / "photos" / "nagasaki-boats.jpg", tmp_path / "photo.jpg")

    done = subprocess.run(
        [sys.executable, "-c", code + "\nimport sys\nassert 'cvt_cli' not in sys.modules"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["ship", "ship"]
    ours = run(
        files, "predict", tmp_path / "photo.jpg", "--model", tmp_path / "nano.onnx", "--json"
    )
    assert ours.json["results"][0]["predictions"][0]["label"] == "ship"
    document = json.loads((tmp_path / "nano.onnx.json").read_text())
    assert document["preprocessing_inside"]
    assert document["verification"]["preprocessing_parity"]["largest_grey_levels"] <= 1.001
    other = ["--model", tmp_path / "nano.onnx", "--res", "64"]
    refused = run(files, "predict", tmp_path / "photo.jpg", *other)
    assert refused.exit_code == 2
    assert "--res 64x64, or with --dynamic-size instead of --with-preprocessing" in refused.stderr


def test_the_lines_of_the_docs_compute_with_plain_openvino_as_exactly_as_was_checked(
    files: Path, tmp_path: Path
) -> None:
    """Also on a processor on which OpenVINO computes in bfloat16 by itself."""
    (code,) = re.findall(r"```python\n(import openvino\n.+?)```", DEPLOYMENT, re.DOTALL)
    images = np.random.default_rng(0).standard_normal((50, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    around = "import numpy as np\nimages = np.load(sys.argv[1])", "np.save(sys.argv[2], logits)"

    done = subprocess.run(
        [sys.executable, "-c", "\n".join(["import sys", around[0], code, around[1]]),
         tmp_path / "images.npy", tmp_path / "logits.npy"],
        cwd=files, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(files / "nano.onnx")
    (wanted,) = session.run(["logits"], {"images": images})
    apart = np.abs(np.load(tmp_path / "logits.npy") - wanted).max()
    assert apart <= 2 * 2e-4 * wanted.std()


# --- first-class models here


@pytest.fixture(scope="module")
def counted(files: Path, five_hundred: Path) -> Callable[[str], dict[str, Any]]:
    """What an evaluation of 500 images on one of the files says."""
    return functools.cache(
        lambda name: (
            run(files, "evaluate", "--data", five_hundred, "--json", "--model", files / name).json
        )
    )


@pytest.fixture(scope="module")
def of_torch(files: Path, five_hundred: Path, tmp_path_factory: pytest.TempPathFactory):
    """What the checkpoint says on torch: of 500 images, of a photograph, and its features."""
    features = tmp_path_factory.mktemp("torch") / "features.npz"
    checkpoint = ["--model", NANO, "--engine", "torch"]
    evaluated = run(files, "evaluate", "--data", five_hundred, *checkpoint, "--json").json
    answered = run(files, "predict", CHELSEA, *checkpoint, "--json").json
    assert run(files, "predict", CHELSEA, *checkpoint, "--features", features).exit_code == 0
    return evaluated, answered, np.load(features)["features"]


@pytest.mark.parametrize("name", FILES)
def test_it_counts_what_torch_counts_on_500_images(
    counted: Callable[[str], dict[str, Any]], of_torch, name: str
) -> None:
    ours = counted(name)
    theirs, _, _ = of_torch

    assert ours["n"] == 500 and ours["engine"] == ENGINES[name]
    for key in ("top1_correct", "top5_correct", "preprocessing", "activation", "precision"):
        assert ours[key] == theirs[key], key
    assert [c["correct"] for c in ours["classes"]] == [c["correct"] for c in theirs["classes"]]


@pytest.mark.parametrize("name", ["nano.onnx", "nano.xml"])
def test_predicting_on_it_imports_no_torch(files: Path, name: str) -> None:
    script = (
        "import sys\nfrom cvt_cli.cli import app\n"
        f"try: app(['predict', {str(CHELSEA)!r}, '--model', {str(files / name)!r}, '--json'],"
        " prog_name='cvt')\n"
        "except SystemExit as e: assert not e.code\n"
        "heavy = {'torch', 'torchvision', 'huggingface_hub', 'safetensors', 'onnx', 'nncf'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["engine"] == ENGINES[name]


@pytest.mark.parametrize("name", FILES)
def test_its_answers_and_features_are_those_of_the_checkpoint(
    files: Path, of_torch, tmp_path: Path, name: str
) -> None:
    predict = ["predict", CHELSEA, "--model", files / name]

    ours = run(files, *predict, "--json").json
    _, theirs, wanted = of_torch
    assert run(files, *predict, "--features", tmp_path / "features.npz").exit_code == 0

    assert ours["preprocessing"] == theirs["preprocessing"]
    for own, other in zip(*(d["results"][0]["predictions"] for d in (ours, theirs)), strict=True):
        assert own["label"] == other["label"]
        assert own["score"] == pytest.approx(other["score"], abs=1e-5)
    features = np.load(tmp_path / "features.npz")["features"]
    assert features.shape == wanted.shape and np.abs(features - wanted).max() < 1e-4


def test_an_unreadable_image_is_reported_as_ever(files: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")

    result = run(files, "predict", CHELSEA, tmp_path, "--model", files / "nano.onnx", "--jsonl")

    assert result.exit_code == 1
    assert "predictions" in result.json_lines[0]
    assert "not an image" in result.json_lines[1]["error"]


def test_onnx_also_runs_on_openvino_and_in_bf16_where_the_processor_has_it(files: Path) -> None:
    arguments = ["predict", CHELSEA, "--json", "--engine", "openvino", "--model"]

    assert run(files, *arguments, files / "nano.onnx").json["engine"] == "openvino"
    result = run(files, *arguments, files / "nano.xml", "--precision", "bf16")

    if runtimes.computes_in("openvino", "bf16"):
        assert result.json["precision"] == "bf16"
    else:
        assert result.exit_code == 2


@pytest.mark.parametrize("name", FILES)
def test_info_and_predict_tell_the_same_of_a_file(files: Path, name: str, cvt) -> None:
    told = cvt("info", files / name, "--json").json
    used = cvt("predict", CHELSEA, "--model", files / name, "--json").json

    assert used["model"] == told["name"]
    shared = ("revision", "weights_sha256", "activation", "preprocessing")
    assert {key: used[key] for key in shared} == {key: told[key] for key in shared}


def test_a_benchmark_of_files_is_of_the_processor_also_beside_a_gpu(
    files: Path, cvt, monkeypatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)

    words = ("benchmark", files / "nano.onnx", "--rounds", 1, "--batch-size", 1, "--json")
    found = cvt(*words).json

    assert found["device"] == "cpu" and found["hardware"].endswith(("thread", "threads"))
    refused = cvt(*words, "--device", "mps", "--against", "transformers")
    assert refused.exit_code == 2 and "runs on the CPU here, not on `mps`" in refused.stderr


def test_info_flops_and_benchmark_take_it(files: Path, cvt, tmp_path: Path) -> None:
    picture = tmp_path / "rates.svg"
    described = cvt("info", files / "nano.onnx", "--json").json
    counted = cvt("flops", "--model", files / "nano.pt2", "--json").json
    shown = run(
        files, "benchmark", "--model", files / "nano.onnx", "--model", files / "nano.xml",
        "--rounds", 1, "--batch-size", 2, "--plot", picture, "--json", tmp_path / "rates.json",
    ).stdout  # fmt: skip
    measured = json.loads((tmp_path / "rates.json").read_text())

    drawn = picture.read_text()
    assert "Images per second of nano.onnx, nano.xml at 32x32" in drawn
    assert "rate compared with" in drawn and "nano.onnx, onnxruntime fp32" in drawn
    said = " ".join(shown.split())
    assert "median of 1 round\n" in shown and "Median and range of 1 round, " in drawn
    assert f"divided by those of {files / 'nano.onnx'}, onnxruntime fp32" in said
    assert "the median of the rounds, or the range where they do not agree" in said
    assert "None" not in drawn.partition("</metadata>")[2] and str(files) not in drawn
    assert (described["variant"], described["license"]) == ("nano", "MIT")
    assert counted["macs"] == 18_700_800
    assert [(row["engine"], row["precision"]) for row in measured["rows"]] == [
        ("onnxruntime", "fp32"),
        ("openvino", "fp32"),
    ]
    assert [row["model"] for row in measured["rows"]] == [
        str(files / "nano.onnx"),
        str(files / "nano.xml"),
    ]
    assert measured["rows"][0]["ratio"] == 1.0 and measured["weights"] == "exported"
    for arguments, message in (
        (["--engine", "torch"], "runs on `onnxruntime` and `openvino`, not on `torch`"),
        (["--precision", "fp32"], "--precision: an exported file has its own precision"),
        (["--device", "cuda"], "runs on the CPU here, not on `cuda`"),
    ):
        refused = cvt("benchmark", "--model", files / "nano.onnx", *arguments)
        assert refused.exit_code == 2 and message in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nano.onnx", "--res", "64"], "takes 32x32 pixels only, not 64x64"),
        (["nano.onnx", "--activation", "gelu"], "computes `quick_gelu`, not `gelu`"),
        (["nano.onnx", "--device", "cuda"], "runs on the CPU here, not on `cuda`"),
        (
            ["nano.onnx", "--engine", "torch"],
            "runs on `onnxruntime` and `openvino`, not on `torch`",
        ),
        (["nano.xml", "--engine", "onnxruntime"], "runs on `openvino`, not on `onnxruntime`"),
        (["nano.pt2", "--engine", "openvino"], "runs on `torch`, not on `openvino`"),
        (["nano.pt2", "--precision", "bf16"], "is in `fp32`, not in `bf16`"),
        (["nano.onnx", "--precision", "fp16"], "does not compute in `fp16` on this processor"),
        (["nano.onnx", "--revision", "main"], "--revision is only for repositories on the hub"),
    ],
)
def test_what_a_file_cannot_do_is_a_usage_error(
    files: Path, cvt, arguments: list[str], message: str
) -> None:
    name, *more = arguments

    result = cvt("predict", CHELSEA, "--model", files / name, *more)
    described = cvt("info", files / name, *more) if more[0] in ("--res", "--activation") else result

    assert result.exit_code == described.exit_code == 2
    assert message in result.stderr and message in described.stderr


# --- options


def test_a_pt2_is_run_on_the_cpu_whatever_device_is_the_default(files: Path) -> None:
    plain = Classifier(files / "nano.pt2")(CHELSEA)

    with torch.device("meta"):
        assert Classifier(files / "nano.pt2")(CHELSEA) == plain


def test_a_pt2_of_dynamic_size_runs_down_to_the_size_that_it_was_traced_for(
    cvt_process, cvt, tmp_path: Path
) -> None:
    file, own = tmp_path / "any.pt2", TESTS / "kept" / "model"  # with the published strides

    small = cvt("export", own, "-o", file, "--dynamic-size")
    made = exported(tmp_path, own, "-o", file, "--dynamic-size", "--res", 64)
    least = cvt_process("predict", CHELSEA, "--model", file, "--res", 35, "--json")
    refused = cvt("predict", CHELSEA, "--model", file, "--res", "64x32")

    assert small.exit_code == 2 and "takes at least 35 pixels" in small.stderr
    assert made.exit_code == 0, made.stderr
    assert made.stdout.startswith(f"{file}: {own} for torch, fp32, any batch, any size, ")
    by_torch = cvt("predict", CHELSEA, "--model", own, "--res", 35, "--json").json
    ours, theirs = (d["results"][0]["predictions"] for d in (least.json, by_torch))
    assert [a["index"] for a in ours] == [b["index"] for b in theirs]
    assert all(
        a["score"] == pytest.approx(b["score"], abs=1e-5) for a, b in zip(ours, theirs, strict=True)
    )
    assert refused.exit_code == 2
    assert "takes at least 35 pixels, not 64x32" in refused.stderr


@pytest.mark.parametrize("name", ["any.onnx", slow("any.xml"), slow("any.pt2")])
def test_a_file_of_dynamic_size_is_verified_at_two_and_runs_at_any(
    files: Path, tmp_path: Path, name: str
) -> None:
    result = exported(files, NANO, "--output", tmp_path / name, "--dynamic-size", "--json")

    assert result.exit_code == 0, result.stderr
    sizes = [(c["height"], c["width"]) for c in result.json["verification"]["checks"]]
    assert sizes == [(32, 32), (48, 56), (32, 32)]
    arguments = ["predict", CHELSEA, "--json", "--res", "64x48", "--model"]
    ours = run(files, *arguments, tmp_path / name).json
    theirs = run(files, *arguments, NANO, "--engine", "torch").json
    assert ours["preprocessing"] == theirs["preprocessing"]
    pairs = zip(*(d["results"][0]["predictions"] for d in (ours, theirs)), strict=True)
    assert all(a["score"] == pytest.approx(b["score"], abs=1e-5) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "resize"),
    [("in.onnx", "squash"), slow("in.xml", "squash"), slow("in.pt2", "squash"), ("in.onnx", "pad"),
     slow("in.xml", "pad"), slow("in.pt2", "pad")],
)  # fmt: skip
def test_preprocessing_inside_is_within_a_grey_level_and_answers_the_same(
    files: Path, tmp_path: Path, name: str, resize: Resize
) -> None:
    """Photographs of several sizes, some upright, in one batch; squashed, so both orders count."""
    photos = test_data("photos/val")
    some = sorted(photos.glob("*/*"))[:12]
    result = exported(
        files, resizing(tmp_path / "squash", resize), "--output", tmp_path / name,
        "--with-preprocessing", "--verify-data", linked(tmp_path / "some", some), "--json",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    parity = result.json["verification"]["preprocessing_parity"]
    assert parity["n"] == 12
    assert parity["largest_grey_levels"] <= 1.001 and parity["share_differing"] < 0.001
    arguments = ["predict", *some, "--jsonl", "--top-k", "1", "--model"]
    ours = run(files, *arguments, tmp_path / name).json_lines
    theirs = run(files, *arguments, tmp_path / "squash", "--engine", "torch").json_lines
    for own, other in zip(ours, theirs, strict=True):
        assert own["predictions"][0]["label"] == other["predictions"][0]["label"]
        assert own["predictions"][0]["score"] == pytest.approx(
            other["predictions"][0]["score"], abs=1e-3
        )


def test_large_pictures_are_answered_by_a_file_that_prepares_them_in_bounded_memory(
    prepared: Path, tmp_path: Path
) -> None:
    """They wait whole for the model, and members of a tar for room: neither waits for the other."""
    Image.new("RGB", (4000, 3000), "navy").save(tmp_path / "0.bmp")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        for number in range(9):
            archive.add(tmp_path / "0.bmp", f"{number}.bmp")
    code = (
        "import atexit, sys; from cvt_cli.base import limits, machine; "
        "limits.contents = limits.Budget(100 << 20); limits.LARGEST_WAITING = 250 << 20; "
        "atexit.register(lambda: print(machine.peak_memory(), file=sys.stderr)); "
        "from cvt_cli.cli import app; app()"
    )

    told = ("predict", tmp_path / "a.tar.gz", "--model", prepared, "--jsonl")
    done = subprocess.run(
        [sys.executable, "-c", code, *told],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 9
    assert int(done.stderr.splitlines()[-1]) < 1_500_000_000  # all in one call: some 3 GB


def resizing(folder: Path, resize: Resize) -> Path:
    """nano, but for photographs that are squashed or padded, in whichever shape they come."""
    shutil.copytree(exported_source(), folder)
    record = Preprocessing(64, 64, resize)
    path = folder / folders.PREPROCESSING_FILE
    path.write_text(json.dumps(record.to_transformers()))
    return folder


def linked(folder: Path, paths: list[Path]) -> Path:
    folder.mkdir()
    for path in paths:
        (folder / path.name).symlink_to(path)
    return folder


@pytest.mark.parametrize(
    ("name", "precision", "runs_in"),
    [("h.onnx", "fp16", "fp16"), slow("h.xml", "fp16", "fp32"), slow("h.xml", "bf16", None),
     slow("h.pt2", "bf16", "bf16")],
)  # fmt: skip
def test_half_precision_is_half_as_large_and_within_its_tolerance(
    files: Path, tmp_path: Path, name: str, precision: str, runs_in: str | None
) -> None:
    result = exported(files, NANO, "--output", tmp_path / name, "--precision", precision, "--json")

    assert result.exit_code == 0, result.stderr
    assert result.json["precision"] == precision and result.json["verification"]["passed"]
    whole = json.loads((files / f"nano{Path(name).suffix}.json").read_text())
    assert result.json["bytes"] < 0.65 * whole["bytes"]
    answered = run(files, "predict", CHELSEA, "--model", tmp_path / name, "--json")
    if runs_in is None:
        runs_in = "bf16" if runtimes.computes_in("openvino", "bf16") else "fp32"
    assert answered.json["precision"] == runs_in


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory, cifar10: Path) -> Path:
    """Ten training images of each class."""
    paths = [p for d in sorted((cifar10 / "train").iterdir()) for p in sorted(d.iterdir())[:10]]
    return linked(tmp_path_factory.mktemp("calibration") / "images", paths)


@pytest.mark.parametrize("name", ["q.onnx", slow("q.xml")])
def test_int8_is_calibrated_on_images_and_counts_nearly_the_same(
    files: Path, tmp_path: Path, calibration: Path, five_hundred: Path, counted, name: str
) -> None:
    pytest.importorskip("nncf") if name == "q.xml" else None
    result = exported(
        files, NANO, "--output", tmp_path / name, "--int8", "--calibration", calibration, "--json"
    )

    assert result.exit_code == 0, result.stderr
    assert result.json["calibration_images"] == 100 and result.json["precision"] == "int8"
    whole = json.loads((files / f"nano{Path(name).suffix}.json").read_text())
    assert result.json["bytes"] < 0.6 * whole["bytes"]
    ours = run(files, "evaluate", "--data", five_hundred, "--json", "--model", tmp_path / name).json
    theirs = counted(f"nano{Path(name).suffix}")
    if name == "q.onnx":  # sound, though OpenVINO does not run it
        other = run(files, "predict", CHELSEA, "--engine", "openvino", "--model", tmp_path / name)
        if other.exit_code:
            assert f"`openvino` cannot run `{tmp_path / name}` in `int8`" in other.stderr
            assert "onnxruntime runs it (`--engine onnxruntime`), if it is sound" in other.stderr
            assert "delete" not in other.stderr
    assert ours["precision"] == "int8"
    assert abs(ours["top1_correct"] - theirs["top1_correct"]) <= 10  # of 500


# --- what goes wrong


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.gguf"], "`a.gguf` does not say the format; accepted are `.onnx` (onnx), "
         "`.xml` (openvino), `.pt2` (pt2), `.safetensors` (safetensors)"),
        (["-o", "folder"], "`folder` does not say the format"),
        (["-o", "a.XML"], "`a.XML`: the suffix of openvino is written `.xml`"),
        (["-o", "a.SAFETENSORS"], "the suffix of safetensors is written `.safetensors`"),
        (["-o", "my model"], "--output 'my model.onnx', or --format safetensors for a folder"),
        (["-o", "a.onnx", "--format", "pt2"], "`a.onnx` does not have the suffix of pt2"),
        (["-o", "a.onnx", "--format", "gguf"], "'gguf'"),
        (["-o", "a.onnx", "--precision", "bf16"], "`onnx` is not exported in `bf16`: ONNX Runtime"),
        (["-o", "a.pt2", "--int8", "--calibration", "."], "`pt2` is not exported in `int8`"),
        (["-o", "a.onnx", "--int8"], "--int8 needs images to measure value ranges on"),
        (["-o", "a.onnx", "--calibration", "."], "--calibration is only for --int8"),
        (["-o", "a.onnx", "--int8", "--calibration", ".", "--precision", "fp16"], "not both"),
        (["-o", "a.onnx", "--int8", "--calibration", ".", "--precision", "fp32"], "not both"),
        (["-o", "a.onnx", "--with-preprocessing", "--dynamic-size"], "leave out --dynamic-size"),
        (["-o", "a.safetensors", "--precision", "fp16"], "--precision: safetensors files hold"),
        (["-o", "f", "--format", "safetensors", "--layout", "reference"], "has the hub's layout"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_is_a_usage_error(
    cvt, tmp_path: Path, monkeypatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("picture.png")

    result = cvt("export", NANO, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"]


def test_without_images_nothing_is_quantised(cvt, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    result = cvt(
        "export", NANO, "-o", tmp_path / "a.onnx", "--int8", "--calibration", tmp_path / "empty"
    )

    assert result.exit_code == 1
    assert f"no images below `{tmp_path / 'empty'}`" in result.stderr


def test_int8_puts_its_graphs_beside_the_file_and_not_where_temporary_files_go(
    tmp_path: Path, calibration: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    made = tmp_path / "a.onnx"

    result = with_a_small_disk(
        *(small, 1, "export", NANO, "-o", made, "--int8", "--calibration", calibration),
        environment={**os.environ, "TMPDIR": str(small)},
    )

    assert result.exit_code == 0, result.stderr
    assert made.exists() and "Traceback" not in result.stderr


@pytest.mark.parametrize("megabytes", [3, 6, 8])  # at different steps of the quantiser
def test_a_full_disk_under_a_file_in_int8_is_explained(
    tmp_path: Path, calibration: Path, megabytes: int
) -> None:
    small = tmp_path / "small"
    small.mkdir()

    result = with_a_small_disk(
        *(small, megabytes, "export", NANO, "-o", small / "a.onnx"),
        *("--int8", "--calibration", calibration),
    )

    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith("hint: choose another folder, or free space")
    assert f"error: cannot write `{small}/" in result.stderr
    assert "No space left on device" in result.stderr and "Traceback" not in result.stderr


def test_int8_needs_no_home_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "HF_HOME")}
    environment["CVT_CACHE"] = str(tmp_path / "cache")

    asked = ["predict", CHELSEA, "--model", NANO, "--precision", "int8", "--engine", "openvino"]
    result = as_unknown_user(*asked, environment=environment)

    assert result.exit_code == 0, result.stderr
    assert "cat" in result.stdout and "Traceback" not in result.stderr


def test_an_image_that_cannot_be_calibrated_on_is_named_with_what_to_do(
    cvt, tmp_path: Path
) -> None:
    broken = tmp_path / "images" / "broken.jpg"
    broken.parent.mkdir()
    broken.write_text("no image")

    result = cvt(
        "export", NANO, "-o", tmp_path / "a.onnx", "--int8", "--calibration", broken.parent
    )

    assert result.exit_code == 1
    assert f"error: `{broken}`: not an image" in result.stderr
    assert "hint: every image is needed here: remove or replace it" in result.stderr
    assert not (tmp_path / "a.onnx").exists()


@pytest.mark.parametrize(
    ("name", "missing", "command"),
    [
        ("a.onnx", {"onnxruntime"}, installing("onnxruntime")),
        ("a.onnx", {"onnx"}, installing("onnxruntime")),
        ("a.xml", {"openvino"}, installing("openvino")),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    cvt, tmp_path: Path, monkeypatch, name: str, missing: set[str], command: str
) -> None:
    monkeypatch.setattr(runtimes, "installed", lambda package: package not in missing)

    result = cvt("export", NANO, "-o", tmp_path / name)

    assert result.exit_code == 2
    assert "needs " + ", ".join(f"`{n}`" for n in sorted(missing)) in result.stderr
    assert command in result.stderr


def test_without_nncf_openvino_is_not_quantised(cvt, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runtimes, "installed", lambda package: package != "nncf")

    result = cvt(
        "export", NANO, "-o", tmp_path / "a.xml", "--int8", "--calibration", CHELSEA.parent
    )

    assert result.exit_code == 2
    assert installing("nncf") in result.stderr


def test_an_existing_file_is_replaced_only_when_asked(files: Path, cvt) -> None:
    before = (files / "nano.onnx").read_bytes()

    result = cvt("export", NANO, "--output", files / "nano.onnx")

    assert result.exit_code == 1
    assert f"`{files / 'nano.onnx'}` exists and was not replaced" in result.stderr
    assert "replace this one with --overwrite" in result.stderr
    assert (files / "nano.onnx").read_bytes() == before
    converted = files / "over.safetensors"
    converted.write_text("")
    assert cvt("export", NANO, "--output", converted, "--overwrite").exit_code == 0
    assert load_file(converted)
    converted.unlink()


def test_an_unwritable_target_is_named_before_anything_is_computed(cvt, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = cvt("export", NANO, "--output", tmp_path / "file" / "a.onnx")

    assert result.exit_code == 1
    assert f"cannot write `{tmp_path / 'file' / 'a.onnx'}`" in result.stderr


@pytest.mark.parametrize("name", ["a.onnx", "a.pt2"])
def test_a_full_disk_leaves_nothing_and_is_explained(machine: Machine, name: str) -> None:
    machine.popen = {"largest_file": 10_000}  # a file of this network has more
    target, model = machine.home / "out", TESTS / "kept" / "model"

    result = machine.run("export", model, "--output", target / name, HF_HUB_OFFLINE="1")

    assert result.exit_code == 1
    assert "cannot write" in result.stderr and "Traceback" not in result.stderr
    assert not list(target.iterdir())


def test_what_a_killed_export_left_is_swept_by_the_next(
    cvt, tmp_path: Path, machine: Machine
) -> None:
    process = machine.start("export", NANO, "-o", tmp_path / "a.onnx", HF_HUB_OFFLINE="1")
    for _ in range(600):  # until it has its workplace
        time.sleep(0.1)
        if left := list(tmp_path.glob(".a.onnx.*")):
            break
    process.kill()
    process.communicate()
    assert left and left[0].is_dir()

    assert cvt("export", NANO, "-o", tmp_path / "b.safetensors").exit_code == 0

    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_model_without_class_names_is_refused(cvt, tmp_path: Path) -> None:
    from cvt_cli.spec.labels import unnamed

    folder = checkpoint(tmp_path / "model", TINY, 64, unnamed(10))

    result = cvt("export", folder, "--output", tmp_path / "a.onnx")

    assert result.exit_code == 1
    assert f"`{folder}` has no names for its 10 classes" in result.stderr
    assert "`config.json` with an `id2label`" in result.stderr
    assert not list(tmp_path.glob("a.onnx*"))


def test_a_file_of_another_tool_is_explained(files: Path, cvt, tmp_path: Path) -> None:
    model = onnx.load(files / "nano.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    plain = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(plain, tmp_path / "other.pt2")
    xml = (files / "nano.xml").read_text()
    section = re.compile(r"<cvt>.*?</cvt>", re.DOTALL)
    (tmp_path / "other.xml").write_text(section.sub("", xml))

    for name in ("other.onnx", "other.pt2", "other.xml"):
        for command in (["predict", CHELSEA], ["evaluate", "--data", CHELSEA.parent]):
            result = cvt(*command, "--model", tmp_path / name)
            assert result.exit_code == 1
            assert f"`{tmp_path / name}` was not written by `cvt export`" in result.stderr or (
                command[0] == "evaluate" and "class" in result.stderr
            )


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_explained(files: Path, tmp_path: Path, cvt, name: str) -> None:
    whole = (files / name).read_bytes()
    for kept in (0, 20, len(whole) // 2, len(whole) - 5):
        (tmp_path / name).write_bytes(whole[:kept])

        result = cvt("predict", CHELSEA, "--model", tmp_path / name)

        assert result.exit_code == 1
        assert f"`{tmp_path / name}`" in result.stderr
        assert "Traceback" not in result.stderr


def test_a_damage_that_only_a_call_finds_is_explained(files: Path, tmp_path: Path, cvt) -> None:
    graph = onnx.load(files / "nano.onnx")
    conv = next(node for node in graph.graph.node if node.op_type == "Conv")
    next(one for one in conv.attribute if one.name == "group").i = 9
    onnx.save(graph, tmp_path / "nano.onnx")

    result = cvt("predict", CHELSEA, "--model", tmp_path / "nano.onnx")

    assert result.exit_code == 1
    assert f"`onnxruntime` cannot run `{tmp_path / 'nano.onnx'}` in `fp32`" in result.stderr


def test_without_a_folder_for_temporary_files_a_sentence_says_so(
    files: Path, cvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])

    result = cvt("benchmark", files / "nano.onnx", "--rounds", 1)

    assert result.exit_code == 1
    assert "no folder for temporary files can be written to" in result.stderr
    assert "hint: set TMPDIR to one that can" in result.stderr


def test_an_xml_does_not_take_the_weights_of_another_export(
    files: Path, tmp_path: Path, cvt
) -> None:
    for name in ("nano.xml", "nano.bin"):
        shutil.copy(files / name, tmp_path)
    content = bytearray((tmp_path / "nano.bin").read_bytes())
    content[len(content) // 2] ^= 0x40  # as of another training: it fits
    (tmp_path / "nano.bin").write_bytes(content)

    changed = cvt("predict", CHELSEA, "--model", tmp_path / "nano.xml")
    (tmp_path / "nano.bin").unlink()
    missing = cvt("predict", CHELSEA, "--model", tmp_path / "nano.xml")

    assert changed.exit_code == missing.exit_code == 1
    assert f"`{tmp_path / 'nano.bin'}` is damaged, or from another export" in changed.stderr
    assert f"`{tmp_path / 'nano.bin'}`, which holds the weights of" in missing.stderr
    assert export_metadata.read(files / "nano.xml").bin_sha256 is not None


def protobuf(number: int, content: bytes) -> bytes:
    """A field that holds bytes, shorter than 128."""
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (bytes([14 << 3 | 2]) + b"\xff" * 8 + b"\x7f", "it is cut short"),  # 2^63 bytes
        (bytes([7 << 3 | 2]) + b"\xff" * 8 + b"\x7f", "it is cut short"),
        (protobuf(14, bytes([1 << 3 | 2, 0x7F])), "it is cut short"),
        (protobuf(14, b""), "was not written by `cvt export`"),
        (protobuf(14, protobuf(1, b"\xff\xfe")), "is damaged, or not a file of format onnx"),
        (b"\x0b", "a field of kind 3"),
    ],
)
def test_a_damaged_length_in_an_onnx_file_is_explained(
    cvt, tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.onnx").write_bytes(content)

    result = cvt("info", tmp_path / "a.onnx")

    assert result.exit_code == 1
    assert f"`{tmp_path / 'a.onnx'}`" in result.stderr and message in result.stderr


RECORD = export_metadata.Record(
    "m", "s", None, None, None, TINY, Labels(tuple(f"class {i}" for i in range(10))),
    Preprocessing.published(64, 64),
).to_strings()  # fmt: skip


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ([], "its `cvt.json` holds no texts by name"),
        ("[" * 100_000, "nested too deeply"),
        ({**RECORD, "classes": "[" * 100_000}, "nested too deeply"),
        ({**RECORD, "classes": json.dumps([[]] * 10)}, "a class name is not text"),
        ({**RECORD, "classes": "5"}, "the metadata in"),
        ({**RECORD, "config": "[]"}, "the metadata in"),
        ({**RECORD, "preprocessing": '{"mean": 1, "std": 2}'}, "the metadata in"),
        (
            {**RECORD, "preprocessing": json.dumps({**Preprocessing.published(64, 64).to_json(),
                                                    "height": 10**9})},
            "`height` is 1000000000",
        ),
        ({**RECORD, "precision": "fp64"}, "there is no precision"),
        ({**RECORD, "dynamic_size": '"no"'}, "the metadata in"),
    ],
)  # fmt: skip
def test_what_a_stranger_wrote_into_a_pt2_is_refused_with_a_sentence(
    cvt, tmp_path: Path, description: object, message: str
) -> None:
    path = tmp_path / "a.pt2"
    text = description if isinstance(description, str) else json.dumps(description)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/extra/cvt.json", text)

    for command in (["info", path], ["predict", CHELSEA, "--model", path]):
        result = cvt(*command)

        assert result.exit_code == 1
        assert f"`{path}`" in result.stderr and message in result.stderr


def test_nothing_in_a_pt2_is_executed(files: Path, tmp_path: Path, cvt) -> None:
    class Harmful:
        def __reduce__(self):
            return (Path(tmp_path / "executed").touch, ())

    path = tmp_path / "harmful.pt2"
    with zipfile.ZipFile(files / "nano.pt2") as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith("sample_inputs/model.pt"):
                content = pickle.dumps(Harmful())
            new.writestr(info.filename, content)

    result = cvt("predict", CHELSEA, "--model", path)

    assert result.exit_code == 1
    assert "holds more than `cvt export` writes, and was not loaded" in result.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        # torch gives sizes to `eval`, and looks operators up from `torch` on.
        (
            "models/model.json",
            lambda text: re.sub(r"Symbol\('s\d+'[^\"]*", "open('executed', 'w')", text),
            "a size that is not a sum or product, \"open('executed', 'w')\"",
        ),
        (
            "models/model.json",
            lambda text: text.replace("torch.ops.aten.conv2d.default", "torch.os.system"),
            "an operator 'torch.os.system'",
        ),
        ("models/model.json", lambda text: "[" * 100_000, "nested too deeply"),
        ("weights/model_weights_config.json", lambda text: "[]", "is damaged"),
    ],
)
def test_what_a_pt2_computes_is_looked_at_before_it_is_loaded(
    files: Path, tmp_path: Path, cvt, monkeypatch, part: str, change, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(files / "nano.pt2") as old, zipfile.ZipFile("a.pt2", "w") as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename.endswith(part):
                changed = change(content.decode()).encode()
                assert changed != content
                content = changed
            new.writestr(info.filename, content)

    result = cvt("predict", CHELSEA, "--model", "a.pt2")

    assert result.exit_code == 1
    assert message in result.stderr
    assert not Path("executed").exists()


def test_a_file_that_differs_too_much_keeps_the_name_failed(tmp_path: Path) -> None:
    script = (
        "from cvt_cli.export import verification\nfrom cvt_cli.cli import app\n"
        "verification.TOLERANCES['fp32'] = 1e-9\n"
        f"app(['export', {NANO!r}, '-o', {str(tmp_path / 'a.xml')!r}], prog_name='cvt')"
    )

    done = python(script)

    assert done.exit_code == 1, done.stderr
    assert "differ from torch's by more than the limit of `fp32`" in done.stderr
    assert "\nthe largest difference is beyond the limit, 1e-09 x spread\n" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "a.xml.failed", "a.bin.failed", "a.xml.failed.json"
    }  # fmt: skip
    document = json.loads((tmp_path / "a.xml.failed.json").read_text())
    assert not document["verification"]["passed"]


def test_a_graph_is_neither_trained_nor_exported_again(files: Path, cvt, tmp_path: Path) -> None:
    result = cvt("export", files / "nano.onnx", "-o", tmp_path / "a.pt2")

    assert result.exit_code == 2
    assert "is an exported graph: it can be run, but not trained or exported again" in result.stderr


def test_every_option_is_in_the_help(cvt) -> None:
    printed = cvt("export", "--help").stdout

    for option in (
        "--output", "--format", "--layout", "--with-preprocessing", "--dynamic-size", "--overwrite",
        "--precision", "--int8", "--calibration", "--verify-data", "--res", "--activation",
        "--revision", "--offline", "--json",
    ):  # fmt: skip
        assert option in printed, option


def test_the_images_of_the_package_are_small_and_have_their_license() -> None:
    pictures = verification.Pictures.of(verification.PACKAGED)

    assert len(list(pictures)) == 10
    assert sum(path.stat().st_size for path in pictures.paths) < 12_000
    assert "Apache License" in (verification.PACKAGED / "LICENSE").read_text()


# --- safetensors


LAYOUTS = ("reference", "transformers")


@pytest.mark.parametrize(
    "variant",
    [pytest.param(v, marks=pytest.mark.slow if v in ("21", "w24") else ()) for v in VARIANTS],
)
def test_layouts_are_converted_to_each_other_bit_by_bit(cvt, tmp_path: Path, variant: str) -> None:
    size = VARIANTS[variant].preprocessing.height
    state = golden_state(VARIANTS[variant].config)
    state["norm.weight"][0] = -0.0
    save_file(state, tmp_path / "0.safetensors")

    for number, layout in enumerate(("transformers", "reference", "transformers"), start=1):
        source, target = (tmp_path / f"{n}.safetensors" for n in (number - 1, number))
        size_of_first = ["--res", size] if number == 1 else []
        result = cvt("export", source, "-o", target, "--layout", layout, *size_of_first)
        assert result.exit_code == 0, result.stderr
        assert f"{len(state)} tensors" in result.stdout

    back = load_file(tmp_path / "2.safetensors")
    assert back.keys() == state.keys()
    assert all(bits(back[name]).equal(bits(state[name])) for name in state)
    assert is_transformers(load_file(tmp_path / "3.safetensors"))
    first, third = ((tmp_path / f"{n}.safetensors").read_bytes() for n in (1, 3))
    tensors = [data[8 + int.from_bytes(data[:8], "little") :] for data in (first, third)]
    assert tensors[0] == tensors[1]


def test_the_same_tensors_and_texts_are_the_same_file(cvt, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]

    for file in files:
        assert cvt("export", NANO, "-o", file).exit_code == 0

    assert len({file.read_bytes() for file in files}) == 1


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def test_nothing_of_another_checkpoint_stays_beside_a_converted_one(
    cvt, tmp_path: Path, monkeypatch
) -> None:
    words = ("--format", "safetensors", "-o", tmp_path / "folder", "--overwrite")
    cvt("export", NANO, "-o", tmp_path / "bare.safetensors")
    cvt("export", NANO, *words)
    names = (folders.CARD_FILE, folders.WEIGHTS_FILE)
    assert all((tmp_path / "folder" / name).is_file() for name in names)

    assert cvt("export", tmp_path / "bare.safetensors", *words).exit_code == 0  # it has no card

    assert not (tmp_path / "folder" / folders.CARD_FILE).exists()

    def killed(*_: object) -> None:
        assert not (tmp_path / "folder" / folders.WEIGHTS_FILE).exists()
        raise OSError("killed when the description was written, and the tensors were not")

    monkeypatch.setattr("cvt_cli.base.files.rename", killed)
    assert cvt("export", NANO, *words).exit_code == 1


def test_a_name_beside_a_converted_checkpoint_is_not_in_its_way(cvt, tmp_path: Path) -> None:
    (tmp_path / "folder.json").write_text("of something else")

    done = cvt("export", NANO, "--format", "safetensors", "-o", tmp_path / "folder")

    assert done.exit_code == 0, done.stderr


def test_an_export_to_a_pipe_is_written_into_it(cvt, tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe.safetensors", list[bytes]()
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()

    done = cvt("export", NANO, "-o", pipe)

    reader.join(10)
    assert done.exit_code == 0 and pipe.is_fifo()
    assert load(found[0]).keys() == load_file(exported_source() / folders.WEIGHTS_FILE).keys()


def test_a_half_stored_checkpoint_keeps_its_types_and_its_card(cvt, tmp_path: Path) -> None:
    source = exported_source()

    file = cvt("export", NANO, "-o", tmp_path / "a.safetensors", "--layout", "reference")
    folder = cvt("export", tmp_path / "a.safetensors", "--format", "safetensors",
                 "-o", tmp_path / "folder")  # fmt: skip
    direct = cvt("export", NANO, "--format", "safetensors", "-o", tmp_path / "direct", "--json")

    assert (file.exit_code, folder.exit_code, direct.exit_code) == (0, 0, 0), folder.stderr
    assert direct.json["equal_bit_by_bit"] and direct.json["layout"] == "transformers"
    for path in (tmp_path / "folder", tmp_path / "direct"):
        ours, theirs = (load_file(p / folders.WEIGHTS_FILE) for p in (path, source))
        assert {n: t.dtype for n, t in ours.items()} == {n: t.dtype for n, t in theirs.items()}
        assert all(bits(ours[name]).equal(bits(theirs[name])) for name in theirs)
    card = (tmp_path / "direct" / folders.CARD_FILE).read_text()
    assert card == (source / folders.CARD_FILE).read_text()
    # The bare file says its size, classes and activation itself.
    loaded = weights.load(tmp_path / "a.safetensors")
    assert loaded.described == weights.load(source).described


def test_transformers_opens_a_converted_folder(tmp_path: Path, cvt_process) -> None:
    from transformers import CvtForImageClassification

    source = checkpoint(tmp_path / "13", VARIANTS["13"].config, 224, imagenet())
    file = cvt_process("export", source, "-o", tmp_path / "a.safetensors", "--layout", "reference")
    folder = cvt_process(
        "export", tmp_path / "a.safetensors", "--format", "safetensors", "-o", tmp_path / "again"
    )

    assert (file.exit_code, folder.exit_code) == (0, 0), folder.stderr
    _, told = CvtForImageClassification.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]


# --- every variant


@pytest.mark.parametrize("target", ["model", "model/model.safetensors", "link.safetensors"])
def test_the_file_that_is_read_is_not_replaced(cvt, tmp_path: Path, target: str) -> None:
    model = tmp_path / "model"
    cvt("export", NANO, "-o", model, "--format", "safetensors")
    (tmp_path / "link.safetensors").symlink_to(model / "model.safetensors")
    before = {path.name: path.read_bytes() for path in model.iterdir()}

    words = ("-o", tmp_path / target, "--format", "safetensors", "--overwrite")
    said = cvt("export", model, *words)

    assert said.exit_code == 2
    assert "model.safetensors` is " in said.stderr and "would replace it" in said.stderr
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before


@pytest.mark.parametrize("name", ["a.onnx", slow("a.xml"), slow("a.pt2")])
def test_cvt_13_at_a_small_size_says_the_same_in_every_format(tmp_path: Path, name: str) -> None:
    source = checkpoint(tmp_path / "model", VARIANTS["13"].config, 64, imagenet())

    result = exported(tmp_path, source, "-o", tmp_path / name, "--json")

    assert result.exit_code == 0, result.stderr
    assert result.json["verification"]["passed"]
    assert result.json["verification"]["top1_agreement"] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.onnx", "a.xml", "a.pt2"])
@pytest.mark.parametrize(("variant", "size"), [("13", 224), ("21", 224), ("w24", 64)])
def test_every_variant_counts_what_torch_counts_on_photographs(
    tmp_path: Path, variant: str, size: int, name: str
) -> None:
    photos = test_data("photos/val")
    source = checkpoint(tmp_path / "model", VARIANTS[variant].config, size, imagenet())
    target = tmp_path / name

    result = run(tmp_path, "export", source, "-o", target, "--verify-data", photos, "--json")
    assert result.exit_code == 0, result.stderr
    both = [
        run(tmp_path, "evaluate", "--data", photos, "--model", model, "--json", *more)
        for model, more in ((target, ()), (source, ("--engine", "torch")))
    ]

    assert not any(one.exit_code for one in both), [one.stderr for one in both]
    ours, theirs = (one.json for one in both)
    assert result.json["verification"]["top1_agreement"] == 1.0
    assert ours["n"] == theirs["n"] == 122
    assert ours["top1_correct"] == theirs["top1_correct"]
    assert ours["top5_correct"] == theirs["top5_correct"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q.onnx", "q.xml"])
def test_int8_loses_at_most_a_point_on_10000_images(
    files: Path, tmp_path: Path, calibration: Path, cifar10: Path, name: str
) -> None:
    made = exported(files, NANO, "-o", tmp_path / name, "--int8", "--calibration", calibration)
    arguments = ["evaluate", "--data", cifar10, "--json", "--model"]

    ours = run(files, *arguments, tmp_path / name).json
    theirs = run(files, *arguments, files / f"nano{Path(name).suffix}").json

    assert made.exit_code == 0, made.stderr
    assert ours["n"] == theirs["n"] == 10_000
    assert ours["top1"] >= theirs["top1"] - 0.01


def test_a_file_whose_license_is_called_as_in_version_0_1_says_the_same(
    cvt, tmp_path: Path
) -> None:
    new, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    assert cvt("export", "cvt-nano-cifar10", "--output", new).exit_code == 0
    old.write_bytes(new.read_bytes().replace(b'"license"', b'"licence"', 1))
    assert old.read_bytes() != new.read_bytes()

    assert cvt("info", old, "--json").json["license"] == "MIT"
    assert cvt("info", new, "--json").json["license"] == "MIT"
