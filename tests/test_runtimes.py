"""ONNX Runtime and OpenVINO compute what torch computes, from the cache and without torch."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from cvt_cli import runtimes
from tests_shared import CHELSEA, TESTS, Machine

RUNTIMES = ["onnxruntime", "openvino"]
NANO = ["--model", "cvt-nano-cifar10"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the graph of cvt-nano-cifar10."""
    folder = tmp_path_factory.mktemp("prepared")
    result = Machine(folder, {"CVT_CACHE": str(folder), "HF_HUB_OFFLINE": "1"}).run(
        "predict", CHELSEA, *NANO, "--engine", "onnxruntime"
    )
    assert result.exit_code == 0, result.stderr
    assert "preparing the graph of cvt-nano-cifar10 at 32x32, once" in result.stderr
    return folder


@pytest.mark.parametrize("name", ["tiny-123", pytest.param("cvt-13", marks=pytest.mark.slow)])
def test_logits_equal_the_official_implementation_on_every_runtime(name: str) -> None:
    """At two sizes and three batch sizes."""
    done = in_a_process(f"""
file = golden("golden-{name}")
for case in file["cases"][:2]:
    height, width = case["height"], case["width"]
    model = golden_model(golden_config(file["spec"], case["num_classes"]))
    graphs.write_onnx(model, path, height, width, {{}})
    images = golden_input(2, height, width).numpy()
    for runtime in ("onnxruntime", "openvino"):
        engine = runtimes.open_graph(runtime, path, "fp32")
        assert engine.precision == "fp32"
        for batch in (1, 2, 7):
            logits = engine(np.ascontiguousarray(images[[0, 1] * 3 + [0]][:batch]))
            assert logits.shape == (batch, case["num_classes"])
            difference = np.abs(logits[0] - np.array(case["logits"])).max()
            assert difference < 1e-4, (runtime, batch, difference)
            print(runtime, batch)
""")

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 12


def in_a_process(script: str) -> "subprocess.CompletedProcess[str]":
    """Run a script with what the tests share, and a path for a graph (see `cvt_process`)."""
    start = f"""
import sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(TESTS)!r})
import numpy as np
from cvt_cli import graphs, runtimes
from tests_shared import TINY, golden, golden_config, golden_input, golden_model
folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "model.onnx")
"""
    return subprocess.run([sys.executable, "-c", start + script], capture_output=True, text=True)


def test_the_file_is_valid_and_says_what_it_is(prepared: Path) -> None:
    (path,) = prepared.rglob("model.onnx")
    model = onnx.load(path)

    onnx.checker.check_model(model, full_check=True)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["model"] == "cvt-nano-cifar10"
    assert metadata["activation"] == "quick_gelu"
    assert json.loads(metadata["preprocessing"])["height"] == 32
    assert json.loads(metadata["classes"])[8] == "ship"


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_answers_are_those_of_torch(
    cvt_process, prepared: Path, monkeypatch, runtime: str
) -> None:
    monkeypatch.setenv("CVT_CACHE", str(prepared))
    arguments = ["predict", CHELSEA, *NANO, "--json", "--engine"]

    ours, theirs = cvt_process(*arguments, runtime), cvt_process(*arguments, "torch")

    assert ours.json["engine"] == runtime and theirs.json["engine"] == "torch"
    assert ours.json["precision"] == "fp32"
    assert "preparing" not in ours.stderr
    mine, others = (r.json["results"][0]["predictions"] for r in (ours, theirs))
    for own, other in zip(mine, others, strict=True):
        assert own["label"] == other["label"]
        assert own["score"] == pytest.approx(other["score"], abs=1e-5)


def test_every_engine_counts_the_same(
    cvt_process, prepared: Path, monkeypatch, cifar10: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("CVT_CACHE", str(prepared))
    for folder in (cifar10 / "test").iterdir():
        (tmp_path / folder.name).mkdir()
        for image in sorted(folder.iterdir())[:50]:
            (tmp_path / folder.name / image.name).symlink_to(image)

    found = [
        cvt_process("evaluate", "--data", tmp_path, *NANO, "--engine", engine, "--json").json
        for engine in ("torch", *RUNTIMES)
    ]

    assert [document["n"] for document in found] == [500] * 3
    assert len({(d["top1_correct"], d["top5_correct"]) for d in found}) == 1
    assert [document["engine"] for document in found] == ["torch", *RUNTIMES]


def test_a_prepared_graph_is_taken_by_itself_and_needs_no_torch(prepared: Path) -> None:
    script = (
        "import sys\nfrom cvt_cli.cli import app\n"
        f"try: app(['predict', {str(CHELSEA)!r}, *{NANO!r}, '--json'], prog_name='cvt')\n"
        "except SystemExit as e: assert not e.code\n"
        "assert 'onnxruntime' in sys.modules\n"
        "heavy = {'torch', 'torchvision', 'huggingface_hub', 'safetensors', 'onnx'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], env={"CVT_CACHE": str(prepared)}, capture_output=True
    )

    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["engine"] == "onnxruntime"


@pytest.mark.parametrize(
    ("arguments", "engine", "why"),
    [
        ([CHELSEA], "onnxruntime", "its graph is prepared, and for 1 image it starts soonest"),
        (
            [CHELSEA] * 60,
            "openvino",
            "its graph is prepared, and for 60 images it is the fastest by the image",
        ),
        (
            [CHELSEA, "--res", "48"],
            "torch",
            "no graph is prepared, and for 1 image it does",
        ),
        ([CHELSEA, "--engine", "torch"], "torch", "asked for with --engine"),
    ],
)
def test_the_fastest_engine_is_taken_and_verbose_says_why(
    cvt_process, prepared: Path, monkeypatch, arguments, engine: str, why: str
) -> None:
    monkeypatch.setenv("CVT_CACHE", str(prepared))

    result = cvt_process("predict", *arguments, *NANO, "--json", "-v")

    assert result.json["engine"] == engine
    assert f"engine {engine}: {why}" in result.stderr


def test_in_bf16_the_choice_is_among_those_that_compute_in_it(
    cvt_process, prepared: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CVT_CACHE", str(prepared))

    result = cvt_process("predict", CHELSEA, *NANO, "--json", "--precision", "bf16")

    able = runtimes.computes_in("openvino", "bf16")
    assert result.json["engine"] == ("openvino" if able else "torch")
    assert result.json["precision"] == "bf16"


LONG_WORK = f"""
from cvt_cli import loader
from cvt_cli.cli import app
loader.WORTH_PREPARING_MACS = 1000  # for each thread, of which there may be hundreds
app(["predict", {str(CHELSEA)!r}, *{NANO!r}, "--json", "-v"], prog_name="cvt")
"""


def test_for_long_work_a_graph_is_prepared_unasked(own_cache: Path) -> None:
    done = in_a_process(LONG_WORK)

    assert done.returncode == 0, done.stderr
    assert "preparing the graph of cvt-nano-cifar10 at 32x32, once" in done.stderr
    assert "engine onnxruntime: for 1 image it pays to prepare a graph" in done.stderr
    assert json.loads(done.stdout)["engine"] == "onnxruntime"


def test_where_an_unasked_graph_cannot_be_kept_torch_answers(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CVT_CACHE", f"{tmp_path}/file/cvt")

    done = in_a_process(LONG_WORK)

    assert done.returncode == 0, done.stderr
    assert "engine torch: onnxruntime was not to be had: cannot write" in done.stderr
    assert json.loads(done.stdout)["engine"] == "torch"


def test_openvino_runs_in_the_precision_that_is_asked_for(
    cvt_process, prepared: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CVT_CACHE", str(prepared))
    arguments = ["predict", CHELSEA, *NANO, "--json", "--engine", "openvino", "--precision", "bf16"]

    result = cvt_process(*arguments)

    if runtimes.computes_in("openvino", "bf16"):
        assert result.exit_code == 0, result.stderr
        assert result.json["precision"] == "bf16"
    else:
        assert result.exit_code == 2
        assert "does not compute in `bf16` on this processor" in result.stderr


def test_another_size_is_another_graph(cvt_process) -> None:
    arguments = ["predict", CHELSEA, *NANO, "--engine", "onnxruntime", "--json"]

    result = cvt_process(*arguments, "--res", "48x64")

    assert "preparing the graph of cvt-nano-cifar10 at 48x64, once" in result.stderr
    assert result.json["preprocessing"]["width"] == 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "onnxruntime", "--precision", "bf16"], "does not compute in `bf16`"),
        (["--engine", "openvino", "--device", "cuda"], "runs on the CPU, not on `cuda`"),
        (["--engine", "tensorrt"], "'onnxruntime'"),
    ],
)
def test_what_an_engine_cannot_do_is_a_usage_error(
    cvt_process, prepared: Path, monkeypatch, arguments, message: str
) -> None:
    monkeypatch.setenv("CVT_CACHE", str(prepared))

    result = cvt_process("predict", CHELSEA, *NANO, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr


def test_a_runtime_that_is_not_installed_is_named_with_its_extra(
    cvt, prepared: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CVT_CACHE", str(prepared))
    monkeypatch.setattr(runtimes, "installed", lambda runtime: False)

    asked = cvt("predict", CHELSEA, *NANO, "--engine", "openvino")
    by_itself = cvt("predict", CHELSEA, *NANO, "--json")

    assert asked.exit_code == 2
    assert "engine `openvino` is not installed" in asked.stderr
    assert "pip install 'cvt-cli[openvino]'" in asked.stderr
    assert by_itself.json["engine"] == "torch"


def test_a_damaged_graph_is_named() -> None:
    done = in_a_process("""
graphs.write_onnx(golden_model(TINY), path, 64, 64, {})
path.write_bytes(path.read_bytes()[:-1000])
for runtime in ("onnxruntime", "openvino"):
    try:
        runtimes.open_graph(runtime, path, "fp32")
    except runtimes.CheckpointError as error:
        assert str(path) in str(error)
        print(error)
""")

    assert done.stdout.count("is damaged, or no graph that can be run") == 2, done.stderr


def test_killed_or_twice_at_once_the_preparation_leaves_a_whole_graph_or_none(
    machine: Machine,
) -> None:
    arguments = ["predict", CHELSEA, *NANO, "--engine", "onnxruntime"]
    process = machine.start(*arguments)
    time.sleep(6)  # it takes some ten seconds
    process.kill()
    process.communicate()
    for path in machine.own_cache.rglob("model.onnx"):
        onnx.checker.check_model(path)

    results = [machine.wait(p) for p in [machine.start(*arguments) for _ in range(2)]]

    assert [result.exit_code for result in results] == [0, 0], results
    assert sum("preparing the graph" in r.stderr and "once" in r.stderr for r in results) <= 1
    (path,) = machine.own_cache.rglob("model.onnx")
    onnx.checker.check_model(path)


def test_a_full_disk_leaves_no_graph_and_is_explained(machine: Machine) -> None:
    machine.popen = {
        "preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    }

    result = machine.run("predict", CHELSEA, *NANO, "--engine", "onnxruntime")

    assert result.exit_code == 1
    assert "model.onnx`: File too large" in result.stderr
    assert not [p for p in machine.own_cache.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_graph_that_cannot_be_kept_is_explained(machine: Machine) -> None:
    (machine.home / "file").write_text("")

    result = machine.run(
        "predict", CHELSEA, *NANO, "--engine", "onnxruntime", CVT_CACHE=f"{machine.home}/file/cvt"
    )

    assert result.exit_code == 1
    assert f"cannot write `{machine.home}/file/cvt/graphs" in result.stderr
