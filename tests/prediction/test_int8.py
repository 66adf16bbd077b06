"""`--precision int8`: quantised once, kept under all that decides it, held to what may be lost."""

import ctypes
import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cvt_cli import Int8, evaluate
from cvt_cli.base import machine
from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.checkpoints import locate
from cvt_cli.engines import runtimes
from cvt_cli.export import int8_graphs, quantise
from cvt_cli.export.verification import Pictures
from cvt_cli.spec import published
from tests_shared import CHELSEA

pytest.importorskip("nncf")
onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

IN_INT8 = ["--model", "cvt-nano-cifar10", "--precision", "int8"]


@pytest.fixture(scope="module")
def calibration(cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each class, in folders of their classes."""
    folder = tmp_path_factory.mktemp("calibration")
    for of_class in sorted((cifar10 / "test").iterdir()):
        (folder / of_class.name).mkdir()
        for image in sorted(of_class.iterdir())[:2]:
            (folder / of_class.name / image.name).symlink_to(image)
    return folder


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("link", "no such file or directory"),
        ("pipe", "not a regular file"),
        ("empty", "empty file (0 bytes)"),
    ],
)
def test_a_calibration_image_that_cannot_be_read_is_named_and_not_waited_for(
    cvt, tmp_path: Path, kind: str, said: str
) -> None:
    odd = tmp_path / "odd.png"
    if kind == "link":
        odd.symlink_to("nowhere")
    elif kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.touch()

    result = cvt("predict", CHELSEA, *IN_INT8, "--calibration", tmp_path)

    assert result.exit_code == 1
    assert f"error: `{odd}`: {said}\n" in result.stderr


def test_a_checkpoint_is_quantised_once_for_its_images_and_answers_as_in_fp32(
    cvt_process, own_cache: Path, calibration: Path
) -> None:
    arguments = ["predict", CHELSEA, *IN_INT8, "--json", "--calibration"]

    first = cvt_process(*arguments, calibration)
    (compiled,) = own_cache.rglob("openvino/*.blob")
    before = compiled.stat().st_mtime_ns
    again = cvt_process(*arguments, calibration)
    in_floats = cvt_process("predict", CHELSEA, *IN_INT8[:2], "--json").json
    (graph,) = own_cache.rglob("*.xml")
    other = cvt_process(*arguments, calibration / "cat")

    assert "quantising cvt-nano-cifar10, calibrated on 20 images of" in first.stderr
    assert "quantising" not in again.stderr and again.json == first.json
    assert compiled.stat().st_mtime_ns == before  # it is compiled once, too
    assert (first.json["precision"], first.json["engine"]) == ("int8", "openvino")
    mine, theirs = (d["results"][0]["predictions"] for d in (first.json, in_floats))
    assert mine[0]["label"] == theirs[0]["label"]
    assert mine[0]["score"] == pytest.approx(theirs[0]["score"], abs=0.15)
    assert mine[0]["score"] != theirs[0]["score"]
    assert other.json["calibrated_on"] != first.json["calibrated_on"]
    assert len(list(own_cache.rglob("*.xml"))) == 2 and graph.is_file()
    operations = runtimes.openvino_core().read_model(graph).get_ordered_ops()
    weights = [o.data for o in operations if o.get_output_element_type(0) == openvino.Type.i8]
    # With 7 bits two products fit into the 16 bits that a processor without VNNI adds them in.
    assert len(weights) > 20 and all(-64 <= w.min() and w.max() <= 64 for w in weights)


@pytest.mark.parametrize(
    ("features", "precision", "takes_pixels", "in_bf16"),
    [
        ("x86_64 amx_bf16 amx_int8 avx512_bf16", "int8", False, True),
        ("x86_64 amx_bf16 amx_int8 avx512_bf16", "int8", True, False),  # grey levels need fp32
        ("x86_64 amx_bf16 amx_int8 avx512_bf16", "fp32", False, False),
        ("x86_64 avx512_bf16", "int8", False, False),  # no faster there
        ("x86_64 avx512_bf16", "bf16", False, True),
    ],
)
def test_what_int8_leaves_in_floats_is_computed_in_bf16_where_there_is_amx(
    features: str, precision: str, takes_pixels: bool, in_bf16: bool, monkeypatch
) -> None:
    monkeypatch.setattr(machine, "processor", lambda: features)
    monkeypatch.setattr(runtimes, "computes_in", lambda runtime, precision: True)

    found = runtimes.floats_in(precision, takes_pixels)

    assert found == ("bf16" if in_bf16 else "fp32")


def test_results_say_what_the_floats_of_int8_are_computed_in_and_hardly_depend_on_it(
    cvt, own_cache: Path, calibration: Path, monkeypatch
) -> None:
    """Here, and as on a processor without AMX; without it both are the same."""
    arguments = ["predict", calibration, *IN_INT8, "--json", "--calibration", calibration]
    here = runtimes.floats_in("int8")

    mine = cvt(*arguments, "-v")
    processor = machine.processor().replace("amx_bf16", "")
    monkeypatch.setattr(machine, "processor", lambda: processor)
    in_fp32 = cvt(*arguments)

    assert (mine.exit_code, in_fp32.exit_code) == (0, 0), mine.stderr + in_fp32.stderr
    said = in_fp32.json["hardware"] + (", floats in bf16" if here == "bf16" else "")
    assert mine.json["hardware"] == said
    assert mine.json.get("floats") == (here if here == "bf16" else None)
    assert "floats" not in in_fp32.json
    assert f"cpu, {said}, openvino, int8" in mine.stderr
    assert mine.json["precision"] == in_fp32.json["precision"] == "int8"
    graphs = 2 if here == "bf16" else 1  # what may be lost was judged in it
    assert len(list(own_cache.rglob("*.xml"))) == graphs
    stamps_of = [json.loads(path.read_text()) for path in own_cache.rglob("*.blob.stamp.json")]
    hints = sorted(stamp["conditions"]["precision"] for stamp in stamps_of)
    assert hints == (["bf16", "f32"] if here == "bf16" else ["f32"])
    answers = [[r["predictions"] for r in run.json["results"]] for run in (mine, in_fp32)]
    same = [a[0]["label"] == b[0]["label"] for a, b in zip(*answers, strict=True)]
    apart = [abs(a[0]["score"] - b[0]["score"]) for a, b in zip(*answers, strict=True)]
    assert sum(same) >= 19 and np.median(apart) < 0.01


def test_an_evaluation_in_int8_has_its_report_its_card_and_every_measure(
    cvt, calibration: Path, tmp_path: Path
) -> None:
    model, page = tmp_path / "model", tmp_path / "report" / "index.html"
    shutil.copytree(published.CHECKPOINTS["cvt-nano-cifar10"].embedded, model)
    int8 = Int8(calibration)

    done = cvt(
        "evaluate", calibration, "--model", model, "--precision", "int8", "--calibration",
        calibration, "--engine", "onnxruntime", "--json", tmp_path / "e.json", "--report",
        page.parent, "--card", model,
    )  # fmt: skip
    found = evaluate(calibration, model, precision=int8, engine="onnxruntime")

    assert done.exit_code == 0, done.stderr
    document = json.loads((tmp_path / "e.json").read_text())
    assert document["calibration"]["bins"] and len(document["calibrated_on"]) == 64
    assert "int8" in page.read_text() and "int8" in (model / "README.md").read_text()
    assert not found.metrics.to_json().keys() & found.conditions.keys()  # none takes the other's


def test_onnx_runtime_computes_in_int8_from_its_own_graph(
    cvt, own_cache: Path, calibration: Path
) -> None:
    arguments = ["predict", CHELSEA, *IN_INT8, "--engine", "onnxruntime", "--json"]
    arguments += ["--calibration", calibration]

    first, again = cvt(*arguments), cvt(*arguments)

    assert first.exit_code == 0, first.stderr
    assert (first.json["precision"], first.json["engine"]) == ("int8", "onnxruntime")
    assert "quantising" in first.stderr and "quantising" not in again.stderr
    assert again.json == first.json
    assert first.json["results"][0]["predictions"][0]["label"] == "cat"
    (graph,) = own_cache.rglob("*.onnx")
    whole = [onnx.numpy_helper.to_array(i) for i in onnx.load(graph).graph.initializer]
    weights = [w for w in whole if w.dtype == "int8" and w.ndim == 2]
    assert len(weights) > 20 and all(-64 <= w.min() and w.max() <= 64 for w in weights)


@pytest.mark.slow  # a minute
def test_no_more_than_is_allowed_is_lost_on_the_test_images(
    cvt_process, cifar10: Path, calibration: Path
) -> None:
    result = cvt_process(
        *("evaluate", cifar10, *IN_INT8, "--json"),
        *("--calibration", calibration, "--max-drop", "0.3"),
    )

    assert "at most 0.3 points of top-1 on them may be lost" in result.stderr
    assert result.json["n"] == 10_000 and result.json["top1_correct"] >= 8868 - 30


class SignalStack(ctypes.Structure):
    _fields_ = (
        ("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)
    )  # fmt: skip

    @classmethod
    def now(cls) -> tuple[int | None, int]:
        """Where this thread's signals are heard; a place that is no more ends the process."""
        found = cls()
        assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found)) == 0
        return found.place, found.size


def test_a_layer_that_breaks_in_int8_stays_in_fp32_and_the_others_do_not() -> None:
    """One channel of what the second layer takes is 10,000 times as large as the others, which
    are rounded to nothing beside it."""
    operators = openvino.opset13
    generator = np.random.default_rng(0)
    first = generator.standard_normal((16, 3, 1, 1), np.float32)
    second = generator.standard_normal((8, 16, 1, 1), np.float32)
    first[0], second[:, 0] = 1e4, 0
    shades = generator.uniform(0.2, 1, (16, 1, 3, 1, 1)).astype(np.float32)
    images = [np.tile(shade, (1, 1, 4, 4)) for shade in shades]

    def network() -> Any:
        x = given = operators.parameter([-1, 3, 4, 4], np.float32, name="images")
        for name, weight in (("sound", first), ("broken", second)):
            layout = [1, 1], [0, 0], [0, 0], [1, 1]
            convolved = operators.convolution(x, operators.constant(weight), *layout, name=name)
            x = operators.relu(convolved)
        logits = operators.reduce_mean(convolved, operators.constant([2, 3]), False)
        logits.output(0).set_names({"logits"})
        return openvino.Model([logits], [given])

    def answers(model: Any) -> list[int]:
        plain = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = runtimes.openvino_core().compile_model(model, "CPU", plain)
        return [int(compiled(image)["logits"].argmax()) for image in images]

    stack = SignalStack.now()
    whole = quantise.quantise_openvino(network(), images)
    held = quantise.quantise_openvino(network(), images, quantise.Right(images, None, 0.1))
    assert SignalStack.now() == stack  # though NNCF opened and closed several of OpenVINO's cores

    in_floats = np.array(answers(network()))
    assert len(set(in_floats)) > 1
    assert (answers(whole) == in_floats).mean() < 0.7
    assert (answers(held) == in_floats).mean() >= 0.9
    inputs = [
        [value.get_source_output().get_node().get_type_name() for value in node.inputs()]
        for node in held.get_ordered_ops()
        if node.get_type_name() == "Convolution"
    ]
    assert inputs == [["FakeQuantize", "Multiply"], ["Relu", "Constant"]]


def test_a_model_that_is_good_enough_in_float32_alone_is_made_anew_to_lose_nothing_there(
    monkeypatch,
) -> None:
    """As if floats were in bfloat16, which NNCF does not judge: what it gives first is wrong."""
    generator, asked = np.random.default_rng(0), []
    weight = generator.standard_normal((8, 3, 1, 1), np.float32)
    images = [generator.uniform(-1, 1, (1, 3, 4, 4)).astype(np.float32) for _ in range(8)]

    def network(sign: int) -> Any:
        operators = openvino.opset13
        given = operators.parameter([-1, 3, 4, 4], np.float32, name="images")
        layout = [1, 1], [0, 0], [0, 0], [1, 1]
        convolved = operators.convolution(given, operators.constant(sign * weight), *layout)
        logits = operators.reduce_mean(convolved, operators.constant([2, 3]), False)
        logits.output(0).set_names({"logits"})
        return openvino.Model([logits], [given])

    def quantised(*_: object, max_drop: float, **__: object) -> Any:
        asked.append(max_drop)
        return network(1 if max_drop == 0 else -1)

    monkeypatch.setattr(runtimes, "floats_in", lambda precision: "bf16")
    monkeypatch.setattr("nncf.quantize_with_accuracy_control", quantised)
    right = quantise.Right(images, None, 0.3)

    made = quantise.quantise_openvino(network(1), images, right)

    assert asked == [0.3, 0.0] and made is not None
    monkeypatch.setattr(runtimes, "floats_in", lambda precision: "fp32")
    with pytest.raises(CvtError, match="in int8 it is right on"):
        quantise.quantise_openvino(network(1), images, right)
    assert asked[2:] == [0.3]


def test_calibration_images_have_labels_where_all_folders_are_classes(calibration: Path) -> None:
    labels = locate.embedded(published.CHECKPOINTS["cvt-nano-cifar10"]).described().labels
    pictures = Pictures.of(calibration)

    found = int8_graphs.labels_of(pictures, labels)

    assert found == [labels.names.index(path.parent.name) for path in pictures.paths]
    assert int8_graphs.labels_of(Pictures((*pictures.paths, CHELSEA)), labels) is None


def test_a_file_in_int8_is_gone_on_with_only_where_as_much_may_be_lost_of_the_same_classes(
    calibration: Path,
) -> None:
    labels = locate.embedded(published.CHECKPOINTS["cvt-nano-cifar10"]).described().labels
    others = dataclasses.replace(labels, names=labels.names[::-1])
    pictures = Pictures.of(calibration)

    made = [(None, labels), (None, others), (1.0, labels), (2.0, labels), (1.0, others)]
    found = [int8_graphs.fingerprint(pictures, *one) for one in made]

    assert found[0] == found[1] and len(set(found)) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "int8", "--engine", "torch"], "--engine torch does not compute"),
        (
            ["--precision", "int8", "--engine", "onnxruntime", "--max-drop", "1"],
            "--max-drop has no effect with --engine onnxruntime",
        ),
        (["--precision", "int8", "--device", "cuda"], "--device cuda does not compute"),
        (["--max-drop", "1"], "--max-drop"),
        (["--precision", "bf16", "--calibration", "."], "--calibration"),
    ],
)
def test_what_does_not_go_with_int8_is_a_usage_error(cvt, arguments, message: str) -> None:
    result = cvt("predict", CHELSEA, "--model", "cvt-nano-cifar10", *arguments)

    assert result.exit_code == 2
    assert message in result.stderr


def test_an_exported_file_is_not_quantised_by_other_images(cvt, tmp_path: Path) -> None:
    file = tmp_path / "nano.onnx"
    assert cvt("export", "cvt-nano-cifar10", "-o", file).exit_code == 0
    in_int8 = ["predict", CHELSEA, "--model", file, "--precision", "int8"]

    result = cvt(*in_int8, "--calibration", tmp_path, "--max-drop", "1")

    assert result.exit_code == 2
    assert f"--calibration and --max-drop: no effect on `{file}`" in result.stderr


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"max_drop": "1"}, "max_drop is '1'; it must be a number"),
        ({"max_drop": -1}, "max_drop is -1; accepted are numbers from 0 on"),
        ({"calibration": 3}, "calibration is 3; accepted is a folder of images"),
        ({"calibration": ""}, "the path is empty"),
    ],
)
def test_from_python_odd_values_are_a_usage_error(told: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Int8(**told)


def test_from_python_a_folder_may_be_a_text() -> None:
    assert Int8("photos") == Int8(Path("photos"))
