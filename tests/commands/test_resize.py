"""`--resize` of what answers: images that come to the input's size in another way."""

import json
import shutil
from pathlib import Path

import pytest

from cvt_cli.checkpoints import folders
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.published import CHECKPOINTS
from small_sets import class_folders
from tests_shared import CHELSEA

NANO = CHECKPOINTS["cvt-nano-cifar10"].embedded


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_images_are_resized_as_if_the_checkpoint_said_so(cvt, tmp_path: Path, resize: str) -> None:
    assert NANO is not None
    says_so = tmp_path / "model"
    shutil.copytree(NANO, says_so)
    record = Preprocessing(32, 32, resize)  # type: ignore[arg-type]
    (says_so / folders.PREPROCESSING_FILE).write_text(json.dumps(record.to_transformers()))
    told = ("--model", "cvt-nano-cifar10", "--resize", resize)
    tensors = tmp_path / "m.safetensors"
    assert cvt("export", "cvt-nano-cifar10", "-o", tensors, "--resize", resize).exit_code == 0

    wanted = cvt("predict", CHELSEA, "--model", says_so, "--json").json
    found = cvt("predict", CHELSEA, *told, "--json").json
    of_file = cvt("predict", CHELSEA, "--model", tensors, "--json").json

    plain = cvt("predict", CHELSEA, "--model", "cvt-nano-cifar10", "--json").json
    assert wanted["results"] != plain["results"]
    for one in (found, of_file):
        assert one["preprocessing"]["resize"] == wanted["preprocessing"]["resize"] == resize
        assert one["results"] == wanted["results"]
    data = class_folders(tmp_path / "data", {"cat": 2, "dog": 2})
    for one in ("cat", "dog"):
        shutil.copy(CHELSEA, data / one / "photograph.png")
    of_data = [
        cvt("evaluate", data, *model, "--json").json for model in (told, ("--model", says_so))
    ]
    assert of_data[0]["preprocessing"]["resize"] == resize
    assert of_data[0]["loss"] == of_data[1]["loss"]


def test_answers_that_were_resized_otherwise_are_not_gone_on_with(cvt, tmp_path: Path) -> None:
    told = ("predict", CHELSEA, "--model", "cvt-nano-cifar10", "--resume", tmp_path / "a.jsonl")
    cvt(*told, "--resize", "squash")

    again, other = cvt(*told, "--resize", "squash"), cvt(*told)

    assert again.exit_code == 0, again.stderr
    assert other.exit_code == 2 and "preprocessing" in other.stderr


def test_a_graph_that_resizes_itself_takes_no_other_way(cvt, tmp_path: Path) -> None:
    graph = tmp_path / "m.onnx"
    inside = ("--with-preprocessing", "--resize", "squash")
    exported = cvt("export", "cvt-nano-cifar10", "-o", graph, *inside)
    assert exported.exit_code == 0, exported.stderr

    answered = cvt("predict", CHELSEA, "--model", graph, "--json")
    refused = cvt("predict", CHELSEA, "--model", graph, "--resize", "pad")
    by_torch = cvt(
        "predict", CHELSEA, "--model", "cvt-nano-cifar10", "--resize", "squash", "--json"
    )

    assert answered.json["preprocessing"]["resize"] == "squash"
    ours, theirs = (one.json["results"][0]["predictions"] for one in (by_torch, answered))
    assert [one["label"] for one in ours][:3] == [one["label"] for one in theirs][:3]
    assert ours[0]["score"] == pytest.approx(theirs[0]["score"], abs=1e-3)
    assert refused.exit_code == 2
    assert "--resize pad has no effect" in refused.stderr and "to `squash`" in refused.stderr
