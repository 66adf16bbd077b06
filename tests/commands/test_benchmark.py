"""`cvt benchmark` measures what it says; no test asserts a speed."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from cvt_cli.base import files, places
from cvt_cli.base.errors import CvtError
from cvt_cli.engines import runtimes
from cvt_cli.export import benchmark, benchmark_sides, benchmark_worker, job_processes, jobs
from cvt_cli.export.benchmark_sides import Network
from cvt_cli.export.job_peers import Task
from cvt_cli.spec import variants
from small_sets import class_folders
from tests_shared import Machine

KEPT = Path(__file__).parents[1] / "kept"

QUICK = ["--rounds", 2, "--variant", "nano"]


def test_every_side_has_its_row_and_its_conditions(cvt_process) -> None:
    result = cvt_process(
        "benchmark", *QUICK, "--batch-size", "3", "--against", "transformers", "--json"
    )

    document = result.json
    assert result.exit_code == 0
    assert (document["model"], document["height"], document["weights"]) == ("nano", 32, "random")
    assert document["macs"] == 18_700_800 and "thread" in document["hardware"]
    assert {"cvt-cli", "torch", "onnxruntime", "openvino", "transformers"} == set(
        document["versions"]
    )
    rows = document["rows"]
    assert [row["engine"] for row in rows] == ["transformers", "torch", "onnxruntime", "openvino"]
    for row in rows:
        slowest, fastest = row["images_per_sec_range"]
        assert 0 < slowest <= row["images_per_sec"] <= fastest
        assert row["latency_sec"] == pytest.approx(row["batch_size"] / row["images_per_sec"])
        assert row["startup_sec"] > 0 and row["first_call_sec"] > 0
        assert row["share_of_peak"] > 0
        assert 10_000_000 < row["peak_memory_bytes"] < 5_000_000_000
        assert (row["ratio"] == 1.0) == (row["engine"] == "transformers")
    baseline, _, onnx_row, _ = rows  # a runtime's process does without torch
    assert onnx_row["peak_memory_bytes"] < baseline["peak_memory_bytes"] / 2
    assert "random weights" in result.stderr
    assert not list(places.cache_dir().rglob("*.onnx"))


def test_files_of_the_working_folder_are_no_modules_of_its_processes(tmp_path: Path) -> None:
    (tmp_path / "select.py").write_text("raise SystemExit('of the working folder')")
    cvt = Path(sys.executable).with_name("cvt")  # as a user starts it, who is in no module's folder

    done = subprocess.run(
        [cvt, "benchmark", "--variant", "nano", "--engine", "torch", "--rounds", "1"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr


def test_int8_is_a_side_of_the_runtimes_alone() -> None:
    network = benchmark_sides.Network.of("nano", variants.VARIANTS["nano"].config, 32, 32)

    sides = benchmark_sides.sides_of([network], None, ["fp32", "int8"], [1])

    assert [(side.engine, side.precision) for side in sides] == [
        ("torch", "fp32"),
        *(("onnxruntime", "fp32"), ("onnxruntime", "int8")),
        *(("openvino", "fp32"), ("openvino", "int8")),
    ]


@pytest.mark.slow  # half a minute of quantising
def test_int8_is_timed_beside_fp32_in_the_same_rounds(cvt_process) -> None:
    precisions = ["--engine", "openvino", "--precision", "fp32,int8"]

    result = cvt_process("benchmark", *QUICK, *precisions, "--batch-size", "3", "--json")

    assert "int8 is calibrated on 10 images of the package" in result.stderr
    plain, whole = result.json["rows"]
    assert (plain["precision"], whole["precision"]) == ("fp32", "int8")
    assert plain["ratio"] == 1.0 and whole["ratio_range"][0] > 0
    assert whole["share_of_peak"] is None  # there is no such product to compare with


@pytest.mark.slow  # half a minute of exporters
def test_files_that_transformers_exports_are_timed_beside_ours(cvt_process) -> None:
    peers = ["transformers-openvino", "transformers-onnx", "transformers"]

    result = cvt_process(
        *("benchmark", *QUICK, "--batch-size", "3", "--against", ",".join(peers)),
        *("--engine", "openvino", "--json"),
    )

    rows = result.json["rows"]
    assert [row["engine"] for row in rows] == [*peers, "openvino"]
    assert [row["ratio"] == 1.0 for row in rows] == [True, False, False, False]
    assert all(row["peak_memory_bytes"] > 10_000_000 for row in rows)


def test_a_peer_that_is_not_installed_is_named_with_what_installs_it(cvt, monkeypatch) -> None:
    there = runtimes.installed
    monkeypatch.setattr(runtimes, "installed", lambda name: name != "onnxscript" and there(name))

    result = cvt("benchmark", *QUICK, "--against", "transformers,transformers-onnx")

    assert result.exit_code == 2
    assert "`transformers-onnx` needs `onnxscript`, not installed here" in result.stderr
    assert "pip install onnxscript" in result.stderr


@pytest.mark.slow  # ten processes, half of which import torch and transformers
def test_whole_jobs_are_timed_from_files_to_files_beside_other_loops(
    cvt_process, cifar10: Path, tmp_path: Path
) -> None:
    for folder in sorted((cifar10 / "test").iterdir())[:2]:
        (tmp_path / folder.name).mkdir()
        for image in sorted(folder.iterdir())[:8]:
            (tmp_path / folder.name / image.name).symlink_to(image)
    job = ["benchmark", "nano", "--rounds", 1, "--data", tmp_path, "--batch-size", 4, "--json"]

    peers = ["--against", "transformers,timm-loop", "--engine", "openvino"]
    for name in ("predict", "evaluate"):
        document = cvt_process(*job, "--job", name, *peers).json

        assert (document["job"], document["images"]) == (name, 16)
        assert document["decode_images_per_sec"] > 0
        rows = document["rows"]
        assert [row["name"] for row in rows] == ["transformers", "timm-loop", "openvino"]
        assert [row["ratio"] == 1 for row in rows] == [True, False, False]
        assert 0 < rows[2]["share_of_bound"] < 1
        assert all(row["peak_memory_bytes"] > 10_000_000 for row in rows)
    trained = cvt_process(*job, "--job", "finetune", "--against", "timm-loop").json

    assert [row["name"] for row in trained["rows"]] == ["timm-loop", "torch"]
    assert trained["images"] == 16 and trained["decode_images_per_sec"] is None


def test_a_folder_whose_name_begins_as_an_option_does_can_be_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    class_folders(Path("-photos"), {"cat": 1, "dog": 1})

    network = Network.of("nano", variants.VARIANTS["nano"].config, 32, 32)
    for job in ("predict", "evaluate"):
        paths = jobs._images(job, "-photos").paths
        task = Task("decode", job, paths, [0, 1], 2, "m", 32, 32, None, 4, "cpu", "out")
        side = jobs._ours("torch", "fp32", "-photos", network, task, tmp_path)

        assert side.command[side.command.index(job) + 1] == "./-photos"
        assert side.prepare[side.prepare.index("predict") + 1] == "./-photos/cat/000.png"


def test_both_sides_of_a_training_job_hold_the_same_images_out(cvt, tmp_path: Path) -> None:
    data = KEPT / "images"
    pictures = jobs._images("finetune", str(data))
    network = Network.of("nano", variants.VARIANTS["nano"].config, 32, 32)
    task = Task("timm-loop", "finetune", pictures.paths, pictures.labels, 3, str(KEPT / "model"),
                32, 32, None, 8, "cpu", str(tmp_path / "theirs"), held_out=pictures.held_out,
                held_out_labels=pictures.held_out_labels)  # fmt: skip
    ours = jobs._ours("torch", "fp32", str(data), network, task, tmp_path)

    assert cvt(*ours.command[ours.command.index("cvt_cli") + 1 :]).exit_code == 0
    assert ours.made is not None
    split = json.loads((ours.made / "split.json").read_text())
    assert [str(data / name) for name in split["validation"]] == pictures.held_out
    files = set(map(str, data.glob("*/*.png")))
    assert {*pictures.paths, *pictures.held_out} == files
    assert len(pictures.paths) + len(pictures.held_out_labels) == len(files)


def test_a_precision_without_a_fast_product_has_no_peak_and_is_not_waited_for(
    cvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "_LEAST_PEAK", float("inf"))
    monkeypatch.setattr(benchmark, "_PEAK_SIZE", 10**6)  # more than any memory holds

    result = cvt("benchmark", *QUICK, "--batch-size", 1, "--engine", "torch", "--json")

    assert result.exit_code == 0
    assert [row["share_of_peak"] for row in result.json["rows"]] == [None]


def test_turns_that_do_not_agree_give_no_ratio_and_others_as_many_digits_as_they_say() -> None:
    def row(*ratios: float) -> benchmark.Row:
        found = statistics.median(ratios) if benchmark.agree(ratios) else None
        between = (min(ratios), max(ratios))
        return benchmark.Row(None, 1, 1, 1, found, between, 0, 0, None, 0)  # type: ignore[arg-type]

    assert benchmark.ratio_text(row(1.24, 1.25, 1.26)) == "1.25"
    assert benchmark.ratio_text(row(1.05, 1.25, 1.61)) == "1.2"
    assert benchmark.ratio_text(row(0.4, 2.1, 124.9)) == "0.4 to 124.9"


def test_the_table_says_what_was_measured_and_the_picture_shows_it(
    cvt_process, tmp_path: Path
) -> None:
    path = tmp_path / "rates.png"

    lines = cvt_process(
        "benchmark", "nano", "--rounds", 2, "--batch-size", "1,3", "--engine", "onnxruntime",
        "--precision", "fp32,bf16", "--plot", path,
    ).stdout  # fmt: skip

    assert lines.startswith("nano at 32x32, random weights, cpu, ")
    assert "median of 2 rounds" in lines
    assert [line.split()[:3] for line in lines.splitlines()[4:6]] == [
        ["onnxruntime", "fp32", "1"], ["onnxruntime", "fp32", "3"],  # it has no bf16
    ]  # fmt: skip
    with Image.open(path) as picture:
        assert picture.width > 600
    assert list(tmp_path.iterdir()) == [path]


def test_variants_can_be_compared_with_each_other_and_with_models(cvt_process) -> None:
    words = ("--res", 32, "--engine", "onnxruntime", "--batch-size", 1, "--rounds", 1, "--json")

    found = cvt_process("benchmark", "nano", "cvt-nano-cifar10", "13", *words).json

    assert [row["model"] for row in found["rows"]] == ["nano", "cvt-nano-cifar10", "13"]
    assert found["rows"][0]["ratio"] == 1.0 and found["rows"][2]["ratio_range"] is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tensorrt"], "there is no engine `tensorrt`; accepted are `torch`"),
        (["--precision", "int3"], "there is no precision `int3`; accepted are `fp32`"),
        (["--against", "timm"], "--against: there is no `timm`; accepted are `transformers`"),
        (["--job", "predict"], "--job needs --data FOLDER"),
        (["--data", "photos"], "--data needs --job"),
        (["--job", "predict", "--data", "nowhere"], "`nowhere`: a job needs a folder with images"),
        (
            ["--job", "finetune", "--data", ".", "--against", "transformers"],
            "`transformers` does not train; accepted with finetune is `timm-loop`",
        ),
        (["--job", "predict", "--data", ".", "--plot", "a.png"], "--job draws no picture"),
        (["--job", "finetune", "--data", ".", "--engine", "openvino"], "`openvino` does not train"),
        (["--precision", ","], "--precision: there is no name in `,`"),
        (["--batch-size", "0"], "`0` is not a list of batch sizes; accepted are positive integers"),
        (["--batch-size", "one"], "`one` is not a list of batch sizes"),
        (["--plot", "rates.bmp"], "`rates.bmp` has no suffix of a picture; accepted are `.png`"),
        (["--variant", "14"], "`14`"),
        (
            ["--device", "cpu", "--engine", "onnxruntime", "--precision", "fp16"],
            "nothing to measure: `onnxruntime` cannot compute in `fp16` on `cpu`",
        ),
        (["--variant", "13", "--model", "cvt-13"], "give --variant or --model, not both"),
        (["13", "nano", "--model", "cvt-13"], "`13 nano` and --model `cvt-13`: give only one"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(cvt_process, arguments, message: str) -> None:
    result = cvt_process("benchmark", *arguments)

    assert result.exit_code == 2
    assert message in result.stderr


def test_a_batch_that_memory_does_not_hold_is_a_sentence(cvt, capfd) -> None:
    result = cvt(
        "benchmark", "--model", "cvt-nano-cifar10", "--engine", "torch", "--batch-size", 10**11
    )

    assert result.exit_code == 1
    assert "error: not enough memory for torch in fp32 at batch 100000000000" in (result.stderr)
    assert "Traceback" not in capfd.readouterr().err  # of the process that computes


def test_a_job_that_cannot_be_measured_is_an_error_that_says_why(cvt, tmp_path: Path) -> None:
    for place in ("cat/1.png", "dog/2.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(b"no picture")
    (tmp_path / "t.csv").write_text("path,label\nhttp://localhost:9/1.png,cat\n")
    job = ["benchmark", "nano", "--engine", "openvino", "--rounds", 1, "--job"]

    lacking = cvt(*job, "evaluate", "--data", tmp_path, "--precision", "fp16")
    elsewhere = cvt(*job, "evaluate", "--data", tmp_path / "t.csv")

    assert (lacking.exit_code, elsewhere.exit_code) == (2, 2)
    assert "nothing to measure: `openvino` cannot compute in `fp16`" in lacking.stderr
    assert "a job needs files on disk, and `" in elsewhere.stderr


def test_a_picture_that_no_side_can_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"no picture")
    task = Task("decode", "predict", [str(tmp_path / "1.png")], [], 2, "", 32, 32, None, 1, "cpu",
                str(tmp_path / "out"))  # fmt: skip
    command = jobs._peer_command(task, tmp_path / "task.json")

    with pytest.raises(CvtError, match=r"said: `.*1\.png`: not an image.* can all be read$"):
        job_processes.run(command, os.environ)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
def test_a_side_that_is_killed_is_an_error_that_says_so() -> None:
    with pytest.raises(CvtError, match="was ended by signal 9, as happens when memory runs out"):
        job_processes.run(["sh", "-c", "kill -9 $$"], os.environ)


def test_a_side_that_is_killed_while_others_have_their_turn_is_named(tmp_path: Path) -> None:
    network = Network.of("nano", variants.VARIANTS["nano"].config, 32, 32)
    graph = benchmark_worker.random_graph(network, None, tmp_path / "nano.onnx")
    side = benchmark_sides.Side("onnxruntime", "fp32", 1, network)
    with benchmark_worker.Worker(side, graph) as worker:
        worker._process.kill()
        worker._process.join()

        with pytest.raises(
            CvtError, match="onnxruntime in fp32 at batch 1 ended with exit code -9"
        ):
            worker.turn()


def test_a_connection_that_breaks_is_not_taken_for_a_reader_of_stdout_that_has_gone(
    cvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **told: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(benchmark, "benchmark", broken)

    result = cvt("benchmark", *QUICK)

    assert result.exit_code == 1
    assert "error: what this command wrote to was closed by who read it" in result.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("told", "code"), [("SIGTERM", 128 + signal.SIGTERM), ("SIGINT", -signal.SIGINT)]
)
def test_a_job_that_is_stopped_ends_the_side_that_runs(
    tmp_path: Path, told: str, code: int
) -> None:
    program = (
        "import os; from cvt_cli.export import job_processes\n"
        "with job_processes.ended_together():\n"
        "    job_processes.run(['sh', '-c', 'echo $$ > side; exec sleep 60'], os.environ)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path)
    while not (tmp_path / "side").exists() or not (tmp_path / "side").read_text():
        assert process.poll() is None
        time.sleep(0.01)

    process.send_signal(getattr(signal, told))

    assert process.wait(20) == code
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "side").read_text()), 0)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_killed_benchmark_leaves_no_process_that_complains(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    environment = {"TMPDIR": str(tmp_path / "tmp")}
    process = machine.start("benchmark", *QUICK, "--engine", "onnxruntime", **environment)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not any("onnxruntime" in libraries(child) for child in children.read_text().split()):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()

    result = machine.wait(process)  # until its last process has closed stderr

    assert result.exit_code == -signal.SIGKILL
    assert "Traceback" not in result.stderr
    assert files.swept(tmp_path / "tmp"), "what it left is not what the next one removes"
    assert not list((tmp_path / "tmp").glob(f"*{files.SUFFIX}"))


def libraries(process: str) -> str:
    try:
        return Path(f"/proc/{process}/maps").read_text()
    except OSError:
        return ""
