"""ONNX Runtime and OpenVINO compute what torch computes, from the cache and without torch."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest

from cvt_cli.base import machine
from cvt_cli.base.package import installing
from cvt_cli.engines import runtimes
from cvt_cli.engines.parts import Part, part_of
from tests_shared import CHELSEA, TESTS, Machine, Result, python

RUNTIMES = ["onnxruntime", "openvino"]
NANO = ["--model", "cvt-nano-cifar10"]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the graph of cvt-nano-cifar10."""
    folder = tmp_path_factory.mktemp("prepared")
    result = Machine(folder, {**os.environ, "CVT_CACHE": str(folder)}).run(
        "predict", CHELSEA, *NANO, "--engine", "onnxruntime"
    )
    assert result.exit_code == 0, result.stderr
    assert "preparing the graph of cvt-nano-cifar10 at 32x32, once" in result.stderr
    return folder


@pytest.mark.parametrize("name", ["tiny-123", pytest.param("cvt-13", marks=pytest.mark.slow)])
def test_logits_equal_the_official_implementation_on_every_runtime(name: str) -> None:
    """At two sizes and three batch sizes, in calls of two or three images, side by side too."""
    done = in_a_process(f"""
from cvt_cli.engines.parts import Part
file = golden("golden-{name}")
for case in file["cases"][:2]:
    height, width = case["height"], case["width"]
    model = golden_model(golden_config(file["spec"], case["num_classes"]))
    write_graph.write_onnx(model, path, height, width, {{}})
    images = golden_input(2, height, width).numpy()
    for runtime in ("onnxruntime", "openvino"):
        parts = None, Part(2, True), Part(3, False), Part(2, True, at_once=2)
        engines = [runtimes.open_graph(runtime, path, "fp32", part=part) for part in parts]
        assert [engine.precision for engine in engines] == ["fp32"] * 4
        for batch in (1, 2, 7):
            some = np.ascontiguousarray(images[[0, 1] * 3 + [0]][:batch])
            logits, *by_parts = (engine(some) for engine in engines)
            features, *others = (engine.features(some) for engine in engines)
            assert logits.shape == (batch, case["num_classes"])
            for found, vectors in zip(by_parts, others, strict=True):
                assert found.shape == logits.shape and np.abs(found - logits).max() < 1e-5
                assert np.abs(vectors - features).max() < 1e-5
            difference = np.abs(logits[0] - np.array(case["logits"])).max()
            assert difference < 1e-4, (runtime, batch, difference)
            print(runtime, batch)
""")

    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) == 12


def in_a_process(script: str, **environment: str | None) -> Result:
    """Run a script with what the tests share, and a path for a graph (see `cvt_process`)."""
    start = f"""
import shutil, sys, tempfile
from pathlib import Path
sys.path.insert(0, {str(TESTS / "helpers")!r})
import numpy as np
from cvt_cli.export import write_graph; from cvt_cli.engines import runtimes
from tests_shared import TINY, golden, golden_config, golden_input, golden_model
folder = tempfile.TemporaryDirectory()
path = Path(folder.name, "graphs", "model.onnx")
path.parent.mkdir()
"""
    wanted = {**os.environ, **environment}
    there = {name: value for name, value in wanted.items() if value is not None}
    return python(start + script, environment=there)


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
    assert ours.json["hardware"] == theirs.json["hardware"] == "1 thread"  # a small call
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
        "heavy = {'torch', 'torchvision', 'huggingface_hub', 'safetensors', 'onnx', 'ssl'}\n"
        "heavy |= {'pydantic', 'rich'}\n"
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


def test_precisions_in_any_order_from_one_cache_answer_as_each_alone() -> None:
    """And with what was damaged in between. Where a precision is refused, it is in every order."""
    done = in_a_process("""
write_graph.write_onnx(golden_model(TINY), path, 64, 64, {}, made_under={})
images = golden_input(2, 64, 64).numpy()
def answer(where, runtime, precision):
    try:
        engine = runtimes.open_graph(runtime, where / "model.onnx", precision, say=print)
    except runtimes.UsageError as error:
        return str(error), np.zeros(1)
    return engine.precision, engine(images)
def a_copy(name):
    return Path(shutil.copytree(path.parent, path.parent.with_name(path.parent.name + name)))
sides = [("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "fp32")]
alone = {side: answer(a_copy(f"-{number}"), *side) for number, side in enumerate(sides)}
assert alone[sides[0]][0] == "fp32" and alone[sides[1]][0] != "fp32"
for number, order in enumerate([[0, 1, 0, 2], [1, 0, 1, 2], [2, 1, 0, 1]]):
    shared = a_copy(f"-together-{number}")
    for side in (sides[place] for place in order):
        ran, logits = answer(shared, *side)
        assert ran == alone[side][0]
        assert np.abs(logits - alone[side][1]).max() < 1e-5, (order, side)
for blob in shared.glob("openvino/*.blob"):
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 0xFF
    blob.write_bytes(content)
assert np.abs(answer(shared, *sides[0])[1] - alone[sides[0]][1]).max() < 1e-5
""")

    assert done.exit_code == 0, done.stderr
    assert done.stdout.count(".blob` is damaged; it is made again") == 1


REPORTS = """
import socket, sys
from cvt_cli import Classifier

names, ask = [], socket.getaddrinfo
socket.getaddrinfo = lambda *told, **more: names.append(told[0]) or ask(*told, **more)
for engine in ("onnxruntime", "openvino"):
    Classifier("cvt-nano-cifar10", engine=engine)(sys.argv[1])
import nncf
print(names, sys.modules["openvino_telemetry"])
"""


def test_no_runtime_reports_to_its_maker(tmp_path: Path) -> None:
    """Each does from its import on, and keeps a number of the user in their home."""
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "home"), "CVT_CACHE": str(tmp_path / "c")}
    environment.pop("ORT_DISABLE_TELEMETRY", None)

    done = subprocess.run(
        [sys.executable, "-c", REPORTS, CHELSEA], env=environment, capture_output=True, text=True
    )

    assert done.stdout.endswith("[] None\n"), done.stderr  # old versions of NNCF greet before
    assert not list((tmp_path / "home").rglob("*onnxruntime*"))
    assert not (tmp_path / "home" / "intel").exists()


def test_signals_are_heard_after_graphs_are_closed_in_the_order_they_were_opened() -> None:
    """OpenVINO's plugin gives its thread a stack for them, and takes it away with a graph."""
    done = in_a_process("""
import signal
write_graph.write_onnx(golden_model(TINY), path, 64, 64, {}, made_under={})
graphs = [runtimes.open_graph("openvino", path, "fp32") for _ in range(2)]
while graphs:
    del graphs[0]
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
""")

    assert (done.exit_code, done.stdout) == (0, "heard\n"), done.stderr


def test_a_compiled_graph_is_kept_for_each_precision_version_processor_and_batch() -> None:
    done = in_a_process("""
import openvino
from cvt_cli.base import machine; from cvt_cli.base import stamps
from cvt_cli.engines.parts import Part
write_graph.write_onnx(golden_model(TINY), path, 64, 64, {}, made_under={})
runtimes.computes_in = lambda runtime, precision: True
def kept():
    for precision in ("fp32", "bf16", "fp32"):
        runtimes.open_graph("openvino", path, precision)
    return {blob: blob.stat().st_mtime_ns for blob in path.parent.rglob("*.blob")}
first = kept()
assert len(first) == 2 and kept() == first
assert {stamps.read(blob)["conditions"]["precision"] for blob in first} == {"f32", "bf16"}
machine.processor = lambda: "another processor"
assert len(kept()) == 4
openvino.get_version = lambda: "another version"
assert len(kept()) == 6
runtimes.open_graph("openvino", path, "fp32", part=Part(4, True))
after = set(path.parent.rglob("*.blob"))
runtimes.open_graph("openvino", path, "fp32", part=Part(2, True))
assert len(after) == 7 and len(kept()) == 8
""")

    assert done.exit_code == 0, done.stderr


def test_a_damaged_graph_of_the_cache_is_made_again_and_said(
    cvt_process, prepared: Path, tmp_path: Path, monkeypatch
) -> None:
    cache = shutil.copytree(prepared, tmp_path / "cache")
    monkeypatch.setenv("CVT_CACHE", str(cache))
    arguments = ["predict", CHELSEA, *NANO, "--json"]
    right = cvt_process(*arguments)
    (graph,) = cache.rglob("model.onnx")
    content = bytearray(graph.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 4000, 4):
        content[place + 3] ^= 0x40  # of numbers, so that it can still be run
    graph.write_bytes(content)

    again = cvt_process(*arguments)

    assert f"`{graph}` is damaged; it is made again" in again.stderr
    assert again.json == right.json and again.json["engine"] == "onnxruntime"
    assert "damaged" not in cvt_process(*arguments).stderr


def test_a_graph_that_is_made_again_is_not_written_through_a_link(
    cvt_process, prepared: Path, tmp_path: Path, monkeypatch
) -> None:
    cache = shutil.copytree(prepared, tmp_path / "cache")
    monkeypatch.setenv("CVT_CACHE", str(cache))
    (graph,) = cache.rglob("model.onnx")
    mine = tmp_path / "mine.txt"
    mine.write_text("keep")
    graph.unlink()
    graph.symlink_to(mine)

    result = cvt_process("predict", CHELSEA, *NANO, "--json")

    assert result.exit_code == 0 and result.json["engine"] == "onnxruntime"
    assert mine.read_text() == "keep"
    assert graph.is_file() and not graph.is_symlink()


def test_verify_reads_prepared_graphs_too(cvt, prepared: Path, tmp_path: Path, monkeypatch) -> None:
    cache = shutil.copytree(prepared, tmp_path / "cache")
    monkeypatch.setenv("CVT_CACHE", str(cache))
    (graph,) = cache.rglob("model.onnx")
    whole = cvt("cache", "verify", "--json")
    stat = graph.stat()
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    os.utime(graph, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # nothing but reading it tells

    damaged = cvt("cache", "verify")

    assert whole.exit_code == 0
    mine = [check for check in whole.json if check["path"] == str(graph)]
    assert mine == [{"name": "cvt-nano-cifar10", "path": str(graph), "right": True}]
    assert damaged.exit_code == 1 and f"`{graph}` is damaged" in damaged.stderr
    assert "is made again when it is needed" in damaged.stderr
    assert not graph.exists()


def test_a_graph_of_another_version_of_torch_is_not_taken(cvt, prepared: Path, monkeypatch) -> None:
    """As in a home that two machines share."""
    monkeypatch.setenv("CVT_CACHE", str(prepared))
    monkeypatch.setattr(machine, "version_of", lambda package: f"another {package}")

    result = cvt("predict", CHELSEA, *NANO, "--json", "-v")

    assert result.json["engine"] == "torch"
    assert "no graph is prepared" in result.stderr


@pytest.mark.parametrize(
    ("threads", "together", "images", "macs", "part"),
    [
        (1, 16, 10**4, 4_566_000_000, Part(4, True)),  # CvT-13 at 224
        (1, 10, 10**4, 4_566_000_000, Part(5, True)),
        (1, 64, 10**4, 194_220_000_000, Part(1, True)),  # W24 at 384
        (1, 4, 10**4, 12_450_000_000, Part(2, True)),  # one is 7 % slower
        (1, 13, 10**4, 4_566_000_000, Part(2, True)),
        (1, 64, 10**4, 12_000_000, Part(64, True)),
        (1, 16, 127, 4_566_000_000, Part(4, False)),  # the compilation would take what it saves
        (1, 1000, 127, 4_566_000_000, Part(4, False)),  # and all in one call would take 2 GB
        (1, 1, 1, 4_566_000_000, Part(4, False)),
        (2, 0, 0, 4_566_000_000, Part(9, False)),  # the share of a process among many
        (2, 32, 10**4, 4_566_000_000, Part(4, True, 2)),
        (2, 7, 10**4, 4_566_000_000, Part(4, True, 2)),
        (2, 9, 10**4, 4_566_000_000, Part(5, True, 2)),
        (2, 32, 255, 4_566_000_000, Part(9, False)),  # the last batches would leave a thread idle
        (2, 1, 10**4, 4_566_000_000, Part(1, True)),  # both threads on each image
        (2, 8, 10**4, 24_900_000_000, Part(1, True, 2)),  # CvT-21 at 384
        (2, 64, 10**4, 194_220_000_000, Part(1, True)),  # two would take twice the memory
        (2, 32, 10**4, 6_000_000, Part(32, True)),  # the work of one thread
        (48, 32, 10**4, 4_566_000_000, Part(2, True, 16)),  # three threads each
    ],
)
def test_in_long_jobs_a_call_has_the_images_that_each_thread_needs_for_its_speed(
    monkeypatch, threads: int, together: int, images: int, macs: int, part: Part
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "threads", lambda: threads)

    assert part_of(together, images, macs) == part


def test_calls_side_by_side_have_the_threads_between_them_and_answer_in_order() -> None:
    done = in_a_process("""
import os, threading, torch
os.environ["OMP_NUM_THREADS"] = "4"
torch.set_num_threads(4)
from cvt_cli.engines.parts import Part
from cvt_cli.model import engine
from cvt_cli.model.engine import TorchEngine
engine._most_threads = None  # nothing was computed before the fork
model = golden_model(TINY)
write_graph.write_onnx(model, path, 64, 64, {})
images = golden_input(7, 64, 64).numpy()
part = Part(2, True, at_once=2)
engines = [TorchEngine(model, torch.device("cpu"), "fp32", 10**10, part)]
engines += [runtimes.open_graph(r, path, "fp32", part=part) for r in ("onnxruntime", "openvino")]
wanted = TorchEngine(model, torch.device("cpu"), "fp32")(images)
for engine in engines:
    assert engine.hardware == "4 threads" and np.abs(engine(images) - wanted).max() < 1e-5
assert engines[2]._compiled.get_property("NUM_STREAMS") == 2
assert engines[1]._session.get_session_options().intra_op_num_threads == 3
barrier, seen = threading.Barrier(2, timeout=60), set()
def met(*_):
    seen.add((threading.current_thread().name, torch.get_num_threads()))
    barrier.wait()
engines[0]._model.register_forward_pre_hook(met)
engines[0](images)
assert len(seen) == 2 and {count for _, count in seen} == {2}, seen
assert torch.get_num_threads() == 4
torch.set_num_threads(1)  # as torch counts cores that have two threads each
alone = TorchEngine(model, torch.device("cpu"), "fp32", 10**10, part)
barrier = threading.Barrier(1)
alone._model.register_forward_pre_hook(met)
seen.clear()
alone(images)
assert alone.hardware == "1 thread" and seen == {("MainThread", 1)}, seen
""")  # noqa: E501

    assert done.exit_code == 0, done.stderr


def test_a_graph_that_is_written_otherwise_has_another_number() -> None:
    """`WRITER` is part of what prepared graphs are kept under: whoever changes what is written
    counts it up, and puts the new hash here."""
    done = in_a_process("""
import hashlib, onnx; from cvt_cli.export import prepared_graphs
write_graph.write_onnx(golden_model(TINY), path, 64, 64, {})
graph = onnx.load(path).graph
nodes = [(n.op_type, *n.input, *n.output, *map(str, n.attribute)) for n in graph.node]
shapes = [(i.name, *i.dims) for i in graph.initializer]
print(prepared_graphs.WRITER, hashlib.sha256(repr([nodes, shapes]).encode()).hexdigest()[:16])
""")

    assert done.stdout.split() == ["3", "1ada9cf434c059b2"], done.stderr


def test_every_engine_takes_the_threads_that_pay_or_those_that_are_asked_for() -> None:
    script = """
import os, torch
from cvt_cli.base import machine
from cvt_cli.model.engine import TorchEngine
machine.threads = lambda: 2
model = golden_model(TINY)
write_graph.write_onnx(model, path, 64, 64, {})
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
for macs in (18_700_800, 10**10):
    engines = [TorchEngine(model, torch.device("cpu"), "fp32", macs)]
    engines += [runtimes.open_graph(r, path, "fp32", macs=macs) for r in ("onnxruntime", "openvino")]
    print(*[engine.hardware for engine in engines], sep=", ")
    engines[0](golden_input(2, 64, 64).numpy())
    print(torch.get_num_threads(), engines[2]._compiled.get_property("INFERENCE_NUM_THREADS"))
"""  # noqa: E501

    by_work = in_a_process(script, OMP_NUM_THREADS=None)
    asked = in_a_process(script, OMP_NUM_THREADS="1")

    assert by_work.stdout.splitlines() == [
        "1 thread, 1 thread, 1 thread", "2 1", "2 threads, 2 threads, 2 threads", "2 2"
    ], by_work.stderr  # fmt: skip
    assert asked.stdout.splitlines() == ["1 thread, 1 thread, 1 thread", "1 1"] * 2, asked.stderr


def test_a_call_of_few_images_takes_one_thread_also_of_a_model_that_was_loaded_for_many() -> None:
    script = """
import torch
from cvt_cli import Classifier
from cvt_cli.base import machine
machine.threads = lambda: 2
torch.set_num_threads(2)
engine = Classifier("cvt-nano-cifar10", engine="torch", batch_size=16).model.engine
network, threads = engine._model, []
def noting(images):
    threads.append(torch.get_num_threads())
    return network(images)
engine._model = noting
for count in (1, 16, 3):
    engine(golden_input(count, 32, 32).numpy())
print(engine.hardware, threads, torch.get_num_threads())
"""

    done = in_a_process(script, OMP_NUM_THREADS=None)

    assert done.stdout == "2 threads [1, 2, 1] 2\n", done.stderr


LONG_WORK = f"""
from cvt_cli import loading
from cvt_cli.cli import app
loading.WORTH_PREPARING_MACS = 1000  # for each thread, of which there may be hundreds
app(["predict", {str(CHELSEA)!r}, *{NANO!r}, "--json", "-v"], prog_name="cvt")
"""


def test_for_long_work_a_graph_is_prepared_unasked(own_cache: Path) -> None:
    done = in_a_process(LONG_WORK)

    assert done.exit_code == 0, done.stderr
    assert "preparing the graph of cvt-nano-cifar10 at 32x32, once" in done.stderr
    assert "engine onnxruntime: for 1 image it pays to prepare a graph" in done.stderr
    assert json.loads(done.stdout)["engine"] == "onnxruntime"


def test_where_an_unasked_graph_cannot_be_kept_torch_answers(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CVT_CACHE", f"{tmp_path}/file/cvt")

    done = in_a_process(LONG_WORK)

    assert done.exit_code == 0, done.stderr
    assert "engine torch: onnxruntime could not be used: cannot write" in done.stderr
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
    assert installing("openvino") in asked.stderr
    assert by_itself.json["engine"] == "torch"


def test_a_damaged_graph_is_named() -> None:
    done = in_a_process("""
write_graph.write_onnx(golden_model(TINY), path, 64, 64, {})
path.write_bytes(path.read_bytes()[:-1000])
for runtime in ("onnxruntime", "openvino"):
    try:
        runtimes.open_graph(runtime, path, "fp32")
    except runtimes.CheckpointError as error:
        assert str(path) in str(error)
        print(error)
""")

    assert done.stdout.count("is damaged, or not a graph that can be run") == 2, done.stderr


def _removed_before_opening(monkeypatch: pytest.MonkeyPatch, cvt, times: int) -> None:
    """Let `cvt cache remove` come between a graph's preparation and its opening."""
    real, left = runtimes.open_graph, [times]

    def open_graph(*arguments: object, **settings: object) -> object:
        if left[0]:
            left[0] -= 1
            assert cvt("cache", "remove", "cvt-nano-cifar10").exit_code == 0
        return real(*arguments, **settings)

    monkeypatch.setattr(runtimes, "open_graph", open_graph)


@pytest.mark.parametrize(
    ("engine", "precision", "made"),
    [
        ("onnxruntime", "fp32", "preparing the graph of"),
        ("openvino", "fp32", "preparing the graph of"),
        ("onnxruntime", "int8", "quantising"),
    ],
)
def test_a_graph_that_is_removed_before_it_is_open_is_prepared_again(
    cvt,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: str,
    precision: str,
    made: str,
) -> None:
    monkeypatch.setenv("CVT_CACHE", str(shutil.copytree(prepared, tmp_path / "cache")))
    asked = ("predict", CHELSEA, *NANO, "--engine", engine, "--precision", precision, "--json")
    undisturbed = cvt(*asked)
    _removed_before_opening(monkeypatch, cvt, 1)

    result = cvt(*asked)

    assert result.exit_code == 0, result.stderr
    assert f"{made} cvt-nano-cifar10" in result.stderr
    assert result.json["engine"] == engine
    assert result.json["results"] == undisturbed.json["results"]


def test_a_graph_that_is_removed_again_and_again_is_not_called_damaged(
    cvt, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CVT_CACHE", str(shutil.copytree(prepared, tmp_path / "cache")))
    _removed_before_opening(monkeypatch, cvt, 100)

    result = cvt("predict", CHELSEA, *NANO, "--engine", "onnxruntime")

    assert result.exit_code == 1
    assert "was removed before it was open" in result.stderr
    assert "damaged" not in result.stderr


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
    machine.popen = {"largest_file": 1_000_000}

    result = machine.run("predict", CHELSEA, *NANO, "--engine", "onnxruntime")

    assert result.exit_code == 1
    assert "model.onnx`: File too large" in result.stderr
    graphs = (machine.own_cache / "graphs").rglob("*")
    assert not [path for path in graphs if path.is_file() and path.suffix != ".lock"]


def test_a_graph_that_cannot_be_kept_is_explained(machine: Machine) -> None:
    (machine.home / "file").write_text("")

    result = machine.run(
        "predict", CHELSEA, *NANO, "--engine", "onnxruntime", CVT_CACHE=f"{machine.home}/file/cvt"
    )

    assert result.exit_code == 1
    assert f"cannot write `{machine.home}/file/cvt/graphs" in result.stderr
