"""`cvt predict` at the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from cvt_cli.images import decode, transform
from cvt_cli.model import weights
from cvt_cli.spec.labels import Labels, imagenet
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.variants import VARIANTS
from tests_shared import CHELSEA, TINY, golden_model, golden_state

CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck".split()


@pytest.fixture
def imagenet_folder(tmp_path: Path) -> Path:
    """A small model with ImageNet's classes and golden weights."""
    model = golden_model(TINY.with_classes(1000))
    weights.save(tmp_path / "small", model, imagenet(), Preprocessing(64, 64, "crop"), "")
    return tmp_path / "small"


def test_verbose_names_the_model_and_its_classes(cvt) -> None:
    result = cvt("predict", CHELSEA, "-v")

    assert result.exit_code == 0
    assert "class" in result.stdout and "probability" in result.stdout
    assert "cvt-nano-cifar10 (10 classes: airplane, automobile," in result.stderr
    assert "cpu" in result.stderr and "fp32" in result.stderr


def test_json_holds_the_conditions_and_sorted_probabilities(cvt) -> None:
    result = cvt("predict", CHELSEA, "--json", "--top-k", 10)

    document = result.json
    assert document["model"] == "cvt-nano-cifar10"
    assert document["device"] == "cpu" and "thread" in document["hardware"]
    assert document["engine"] == "torch" and document["precision"] == "fp32"
    assert document["preprocessing"]["height"] == 32
    predictions = document["results"][0]["predictions"]
    scores = [p["score"] for p in predictions]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)
    assert sorted(p["label"] for p in predictions) == CIFAR10
    assert all(CIFAR10[p["index"]] == p["label"] and p["wnid"] is None for p in predictions)


def test_imagenet_models_give_wnids(cvt, imagenet_folder: Path) -> None:
    result = cvt("predict", CHELSEA, "--model", imagenet_folder, "--json")

    for prediction in result.json["results"][0]["predictions"]:
        assert prediction["wnid"] == imagenet().wnids[prediction["index"]]
    assert "WNID" in cvt("predict", CHELSEA, "--model", imagenet_folder).stdout


def test_probabilities_are_those_of_the_model_on_the_preprocessed_image(
    cvt, imagenet_folder: Path
) -> None:
    array = transform.preprocess(decode.load(CHELSEA, exif=True), Preprocessing(64, 64, "crop"))
    with torch.inference_mode():
        logits = golden_model(TINY.with_classes(1000))(torch.from_numpy(array)[None])[0]
    wanted = logits.double().softmax(0).topk(5)

    found = cvt("predict", CHELSEA, "--model", imagenet_folder, "--json").json

    predictions = found["results"][0]["predictions"]
    assert [p["index"] for p in predictions] == wanted.indices.tolist()
    assert [p["score"] for p in predictions] == pytest.approx(wanted.values.tolist(), abs=1e-6)


def test_one_bad_image_is_reported_and_the_others_are_answered(cvt, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")

    result = cvt("predict", CHELSEA, bad, tmp_path / "none.png", CHELSEA, "--jsonl")

    assert result.exit_code == 1
    kinds = ["predictions" if "predictions" in line else "error" for line in result.json_lines]
    assert kinds == ["predictions", "error", "error", "predictions"]
    assert f"error: `{bad}`: not an image" in result.stderr
    assert "none.png`: no such file or directory" in result.stderr
    assert "2 of 4 images could not be read" in result.stderr


def test_answers_do_not_depend_on_the_batch_size(cvt, awkward: Path, tmp_path: Path) -> None:
    for name in ("cmyk.jpg", "exif-6.jpg", "rgba.png", "truncated.jpg", "animated.gif"):
        shutil.copy(awkward / name, tmp_path)

    def indices(batch_size: int) -> list[object]:
        lines = cvt("predict", tmp_path, "--jsonl", "--batch-size", batch_size).json_lines
        return [(x["path"], [p["index"] for p in x.get("predictions", ())]) for x in lines]

    assert indices(1) == indices(2) == indices(64)


def test_exif_orientation_is_applied_unless_told_otherwise(cvt, awkward: Path) -> None:
    turned = awkward / "landscape-exif6.jpg"

    def score(*arguments: object) -> float:
        document = cvt("predict", turned, "--json", *arguments).json
        return document["results"][0]["predictions"][0]["score"]

    assert score("--exif") == score() != score("--no-exif")


def test_a_name_that_breaks_lines_does_not_break_the_output(cvt, tmp_path: Path) -> None:
    path = tmp_path / "a\nb\tc.png"
    shutil.copy(CHELSEA, path)

    assert "a\\nb\\tc.png" in cvt("predict", path).stdout
    assert cvt("predict", *[path] * 5).stdout.count("\n") == 6  # of more than a few, a line each
    assert cvt("predict", path, "--jsonl").json_lines[0]["path"] == str(path)


def test_another_resolution_is_used_and_printed_by_verbose_alone(cvt) -> None:
    command = ("predict", CHELSEA, "--model", "cvt-nano-cifar10", "--res", "48x64", "--json")
    result, verbose = cvt(*command), cvt(*command, "-v")

    for said in (result, verbose):
        assert said.json["preprocessing"]["height"] == 48
        assert said.json["preprocessing"]["width"] == 64
    assert "centre crop 48x64" in verbose.stderr
    assert result.stderr == ""


def test_original_weights_answer_with_imagenet_classes(cvt, tmp_path: Path) -> None:
    path = tmp_path / "CvT-13-224x224-IN-1k.pth"
    torch.save(golden_state(VARIANTS["13"].config), path)

    document = cvt("predict", CHELSEA, "--model", path, "--json").json

    assert document["preprocessing"]["crop_pct"] == 0.875
    assert document["results"][0]["predictions"][0]["wnid"].startswith("n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "cvt-15"], 1, "there is no model `cvt-15`: neither a file or folder"),
        (["--model", "cvt_13_224"], 1, "`microsoft/cvt-13` is not in the cache"),
        (["--res", "huge"], 2, "`huge` is not an input size; accepted are pixels"),
        (["--res", "16"], 2, "input size 16x16 is too small"),
        (["--device", "tpu"], 2, "device `tpu` is not available here; accepted are `auto`"),
        (["--device", "cuda"], 2, "device `cuda` is not available here"),
        (["--precision", "fp16"], 2, "a CPU does not compute in `fp16`"),
        (["--json", "--jsonl"], 2, "give only one of --json and --jsonl"),
    ],
    ids=str,
)
def test_a_wrong_option_is_answered_with_what_is_accepted(
    cvt, arguments: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = cvt("predict", CHELSEA, *arguments)

    assert result.exit_code == code
    assert f"error: {message}" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["gone.jpg"], "`gone.jpg`: no such file or directory"),
        (["@gone.txt", "a.jpg"], "`@gone.txt`, `a.jpg`: no such file or directory"),
        (["gone.jpg", "*.png"], "`gone.jpg`: no such file or directory; no images in `*.png`"),
    ],
)
def test_images_that_are_not_there_are_said_before_the_model_is_looked_for(
    cvt, tmp_path: Path, monkeypatch, given: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)

    result = cvt("predict", *given, "--model", "cvt-13", "--offline")

    assert result.exit_code == 1
    assert f"error: {said}\n" in result.stderr
    assert "cvt-13" not in result.stderr  # neither downloaded nor missed


def test_a_folder_without_images_says_so(cvt, tmp_path: Path) -> None:
    result = cvt("predict", tmp_path)

    assert result.exit_code == 1
    assert f"no images in `{tmp_path}`" in result.stderr
    assert "hint: folders and archives are searched for" in result.stderr


def test_an_unknown_model_is_answered_with_the_nearest_names(cvt) -> None:
    near = cvt("predict", CHELSEA, "--model", "cvt-13-348")
    far = cvt("predict", CHELSEA, "--model", "resnet50")

    assert "hint: did you mean `cvt-13-384`" in near.stderr
    assert near.stderr.count("cvt-w24-384-22k") == 0
    assert "hint: known names are cvt-13, cvt-21, " in far.stderr
    assert "did you mean" not in far.stderr


def test_a_model_with_other_classes_names_them(cvt, tmp_path: Path) -> None:
    names = Labels(("left", "right"))
    weights.save(
        tmp_path, golden_model(TINY.with_classes(2)), names, Preprocessing(64, 64, "crop"), ""
    )

    result = cvt("predict", CHELSEA, "--model", tmp_path, "--json", "-v")

    assert {p["label"] for p in result.json["results"][0]["predictions"]} == {"left", "right"}
    assert "(2 classes: left, right; quick_gelu)" in result.stderr


def test_a_model_that_does_not_answer_with_numbers_is_refused(cvt, tmp_path: Path) -> None:
    model = golden_model(TINY.with_classes(2))
    torch.nn.init.constant_(model.head.bias, float("nan"))
    weights.save(tmp_path, model, Labels(("a", "b")), Preprocessing(64, 64, "crop"), "")

    result = cvt("predict", CHELSEA, "--model", tmp_path, "--json")

    assert result.exit_code == 1 and result.stdout == ""
    assert "error: the model's outputs are not finite numbers, in fp32" in result.stderr


def test_the_installed_command_answers_in_a_process_of_its_own(tmp_path: Path) -> None:
    photo = tmp_path / "-n.png"
    Image.open(CHELSEA).save(photo)
    command = [sys.executable, "-m", "cvt_cli", "predict", "--json", "--", "-n.png"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["path"] == "-n.png"
    assert "Traceback" not in done.stderr
