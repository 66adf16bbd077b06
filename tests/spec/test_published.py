"""The names that people use for the same checkpoint."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cvt_cli.base.progress import silent
from cvt_cli.checkpoints.locate import Access, locate
from cvt_cli.model import weights
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.published import CHECKPOINTS, find, nearest
from cvt_cli.spec.variants import VARIANTS
from tests_shared import CHELSEA, TINY, change_config, golden_model, golden_state

NOBODY = Access(say=lambda message: None, progress=silent)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cvt-13", "cvt-13"),
        ("cvt_13", "cvt-13"),
        ("cvt_13_224", "cvt-13"),
        ("microsoft/cvt-13", "cvt-13"),
        ("CvT-13-224x224-IN-1k.pth", "cvt-13"),
        ("CvT-21-384x384-IN-22k", "cvt-21-384-22k"),
        ("CvT-w24-384x384-IN-22k.pth", "cvt-w24-384-22k"),
        ("cvt-13-384", "cvt-13-384"),
        ("CVT-NANO-CIFAR10", "cvt-nano-cifar10"),
        ("cvt-13-256", None),
        ("", None),
    ],
)
def test_aliases_mean_the_same_checkpoint(text: str, name: str | None) -> None:
    found = find(text)

    assert (found.name if found else None) == name


def test_the_seven_published_ones_and_ours_are_known() -> None:
    published = [c for c in CHECKPOINTS.values() if c.repository]

    assert {c.repository for c in published} == {
        "microsoft/cvt-13",
        "microsoft/cvt-21",
        "microsoft/cvt-13-384",
        "microsoft/cvt-21-384",
        "microsoft/cvt-13-384-22k",
        "microsoft/cvt-21-384-22k",
        "microsoft/cvt-w24-384-22k",
    }
    assert {c.size for c in published if "384" in c.name} == {384}
    assert nearest("cvt-21-834")[0] == "cvt-21-384"


def test_a_copy_of_a_published_checkpoint_is_known_by_its_place(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--microsoft--cvt-13-384" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "cvt-21").mkdir()
    (tmp_path / "mine").mkdir()

    assert locate(str(snapshot), NOBODY).known is CHECKPOINTS["cvt-13-384"]
    assert locate(str(tmp_path / "cvt-21"), NOBODY).known is CHECKPOINTS["cvt-21"]
    assert locate(str(tmp_path / "mine"), NOBODY).known is None


# --- one name, one thing, in every command


OWN = Labels(("mine", "theirs", "nobody's"))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A checkpoint of somebody's own, at 64 pixels."""
    folder, size = tmp_path / "mine", Preprocessing(64, 64, "crop")
    weights.save(folder, golden_model(TINY.with_classes(3)), OWN, size, "# mine\n")
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A photograph, twice, in a folder of each class."""
    for name in OWN.names:
        (tmp_path / "photos" / name).mkdir(parents=True)
        for file in ("a.png", "b.png"):
            (tmp_path / "photos" / name / file).symlink_to(CHELSEA)
    return tmp_path / "photos"


def commands(model: str, photos: Path) -> dict[str, tuple[object, ...]]:
    """Commands that take a model, by name; `benchmark` counts as `flops` does."""
    return {
        "info": ("info", model, "--json"),
        "flops": ("flops", "--model", model, "--json"),
        "count-params": ("count-params", "--model", model, "--json"),
        "predict": ("predict", CHELSEA, "--model", model, "--json"),
        "evaluate": ("evaluate", "--data", photos, "--model", model, "--json"),
        "export": ("export", model, "-o", photos.parent / "out.safetensors", "--json"),
    }


def test_a_local_folder_that_is_called_like_a_known_checkpoint_is_meant_in_every_command(
    cvt, mine: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    macs = cvt("flops", "--model", mine, "--json").json["macs"]
    (tmp_path / "cvt-13").symlink_to(mine)

    for name, command in commands("cvt-13", photos).items():
        result = cvt(*command)
        assert result.exit_code == 0, result.stderr
        assert (
            "`cvt-13` is the folder of that name here; the published model is `microsoft/cvt-13`"
        ) in result.stderr, name
        found = result.json
        assert found.get("num_classes", 3) == 3
        assert found.get("macs", macs) == macs
        if name in ("predict", "evaluate"):
            assert found["model"] == "./cvt-13"  # beside which no published numbers stand
        if name in ("predict", "evaluate", "info"):
            assert found["preprocessing"]["height"] == 64


def test_the_checkpoint_of_the_package_is_shadowed_in_the_same_way(
    cvt, mine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine.rename("cvt-nano-cifar10")

    local = cvt("info", "cvt-nano-cifar10", "--json")
    ours = cvt("info", "cvt_nano_cifar10", "--json")

    assert local.json["classes"] == list(OWN.names)
    assert "the published model is `cvt_nano_cifar10`" in local.stderr
    assert ours.json["classes"][0] == "airplane" and ours.stderr == ""


def test_a_folder_that_is_called_like_a_known_checkpoint_is_fed_as_it_says(
    cvt, tmp_path: Path
) -> None:
    folder = tmp_path / "cvt-nano-cifar10"
    made = cvt("export", "cvt-nano-cifar10", "--res", 64, "--format", "safetensors", "-o", folder)
    assert made.exit_code == 0, made.stderr

    described = cvt("info", folder, "--json").json
    predicted = cvt("predict", CHELSEA, "--model", folder, "--json").json
    counted = cvt("flops", "--model", folder, "--json").json
    assert described["preprocessing"] == predicted["preprocessing"]
    assert described["height"] == counted["height"] == 64


def test_a_published_name_on_another_network_says_nothing_of_it(cvt, tmp_path: Path) -> None:
    names = Labels(tuple(f"class {index}" for index in range(1000)))
    folder, size = tmp_path / "cvt-13-384-22k", Preprocessing(224, 224, "crop")
    weights.save(folder, golden_model(TINY.with_classes(1000)), names, size, "")
    change_config(folder, activation=None, cvt_cli_version=None)

    found = cvt("info", folder, "--json").json

    assert (found["activation"], found["height"], found["license"]) == ("gelu", 224, None)


def test_of_a_run_the_best_epoch_is_taken_and_said_in_every_command(
    cvt, mine: Path, photos: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    mine.rename(run / "best")

    for name, command in commands(str(run), photos).items():
        result = cvt(*command)
        assert result.exit_code == 0, result.stderr
        assert f"`{run}` is a training run; its best epoch is used: `{run / 'best'}`" in (
            result.stderr
        ), name
        assert result.json.get("num_classes", 3) == 3
        if name in ("predict", "evaluate"):
            assert result.json["model"] == str(run / "best")
    dry = cvt("finetune", "--data", photos, "--model", run, "--dry-run", "--val-fraction", 0.5)
    assert "its best epoch is used" in dry.stderr


def test_of_a_run_without_a_finished_epoch_the_last_state_is_offered(
    cvt, mine: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    mine.rename(run / "last")

    result = cvt("predict", CHELSEA, "--model", run)

    assert result.exit_code == 1
    assert f"`{run / 'config.json'}` does not exist; the folder holds last" in result.stderr
    assert f"`{run / 'last'}` is a checkpoint too" in result.stderr
    shutil.rmtree(run / "last")
    (run / "plan.json").write_text("{}")
    begun = cvt("predict", CHELSEA, "--model", run)
    assert "hint: no epoch of this run is finished\n" in begun.stderr


@pytest.mark.parametrize("model", ["a" * 5000, "a\0b", "x/\0"])
def test_a_name_that_no_system_takes_is_no_traceback(cvt, model: str) -> None:
    result = cvt("flops", "--model", model)

    assert result.exit_code == 1
    assert "there is no model" in result.stderr


def test_what_is_neither_a_folder_nor_a_file_is_refused(cvt) -> None:
    for command in (("info", "/dev/null"), ("predict", CHELSEA, "--model", "/dev/null")):
        result = cvt(*command)
        assert result.exit_code == 1
        assert "`/dev/null` is neither a folder nor a regular file" in result.stderr


def test_an_exported_file_is_counted_by_what_it_says(cvt, mine: Path, tmp_path: Path) -> None:
    file = tmp_path / "out.safetensors"
    cvt("export", mine, "-o", file)  # TINY is no known variant, which its tensors could tell

    counted = cvt("flops", "--model", file, "--json").json

    assert counted["macs"] == cvt("flops", "--model", mine, "--json").json["macs"]
    assert cvt("info", file, "--json").json["preprocessing"]["height"] == 64


def options_of(cvt, command: str) -> set[str]:
    """What the help of a command lists."""
    return set(re.findall(r"--[a-z][a-z-]*", cvt(command, "--help").stdout))


NOWHERE = "somebody/nowhere"


@pytest.mark.parametrize(
    "arguments",
    [
        ("info", "bare.safetensors"),
        ("predict", CHELSEA, "--model", "bare.safetensors"),
        ("export", "bare.safetensors", "-o", "x.onnx"),
        ("finetune", "--data", "photos", "--model", "bare.safetensors"),
        ("flops", "--model", "bare.pth"),
        ("count-params", "--model", "bare.pth"),
        ("info", "silent"),
        ("predict", CHELSEA, "--model", "silent"),
        ("push", "silent", "somebody/silent"),
        ("info", NOWHERE),
        ("export", NOWHERE, "-o", "x.onnx"),
        ("download", NOWHERE),
        ("flops", "--model", NOWHERE),
        ("predict", CHELSEA, "--model", NOWHERE),
        ("finetune", "--data", "parts", "--variant", "nano"),
        ("evaluate", "--data", "photos", "--model", "cvt-nano-cifar10"),
    ],
    ids=lambda arguments: " ".join(str(a) for a in arguments if a is not CHELSEA),
)
def test_every_option_that_a_message_names_is_one_of_the_command(
    cvt, mine: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(golden_state(VARIANTS["nano"].config), "bare.safetensors")
    torch.save(golden_state(VARIANTS["nano"].config), "bare.pth")
    mine.rename("silent")  # says neither activation nor preprocessing
    change_config(Path("silent"), activation=None)
    if arguments[0] != "push":
        Path("silent/preprocessor_config.json").unlink()
    for part in ("train", "val"):
        shutil.copytree(photos, Path("parts", part), symlinks=True)
    Path("parts/train/mine").rename("parts/train/yours")
    options = options_of(cvt, arguments[0])

    result = cvt(*arguments)

    assert result.stderr
    named = {
        option
        for text in re.sub(r"`cvt [^`]*`", "", result.stderr).splitlines()
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)
    }
    assert named <= options, result.stderr


def test_a_diverged_model_is_not_sent_to_the_precision_that_it_has(cvt, mine: Path) -> None:
    model = golden_model(TINY.with_classes(3))
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    weights.save(mine, model, OWN, Preprocessing(64, 64, "crop"), "")

    exact, coarse = (
        cvt("predict", CHELSEA, "--model", mine, "--precision", precision)
        for precision in ("fp32", "bf16")
    )

    assert "outputs are not finite numbers, in fp32" in exact.stderr
    assert "--precision" not in exact.stderr
    assert "it may work with --precision fp32" in coarse.stderr


def test_a_class_whose_name_is_half_a_character_is_refused(cvt, tmp_path) -> None:
    shutil.copytree(CHECKPOINTS["cvt-nano-cifar10"].embedded, tmp_path / "m")
    change_config(tmp_path / "m", id2label={str(index): f"\ud800{index}" for index in range(10)})

    result = cvt("predict", CHELSEA, "--model", tmp_path / "m", "--parquet", tmp_path / "a.parquet")

    assert result.exit_code == 1
    assert "as the name of class 0, not text" in result.stderr


@pytest.mark.parametrize("words", [["info"], ["export", "-o", "a.safetensors"], ["predict"]])
def test_a_file_of_other_tensors_is_not_taken_for_the_published_one_of_its_name(
    cvt, tmp_path, monkeypatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = load_file(CHECKPOINTS["cvt-nano-cifar10"].embedded / "model.safetensors")
    torch.save(tensors, "CvT-13-224x224-IN-1k.pth")
    shutil.copy(CHELSEA, "photo.png")
    command, *more = words

    model = ["photo.png", "--model"] if command == "predict" else []
    result = cvt(command, *model, "./CvT-13-224x224-IN-1k.pth", *more)

    assert result.exit_code == 1
    assert "has the name of cvt-13, and holds a `nano` with 10 classes" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "CvT-13-224x224-IN-1k.pth", "photo.png",
    ]  # fmt: skip


def test_a_folder_that_does_not_say_its_preprocessing_has_its_variants(cvt, tmp_path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        shutil.copytree(CHECKPOINTS["cvt-nano-cifar10"].embedded, folder)
    (part / "preprocessor_config.json").unlink()

    said = [cvt("info", folder, "--json").json["preprocessing"] for folder in (whole, part)]

    assert said[0] == said[1]
