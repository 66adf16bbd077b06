"""What is an argument in one command is one in all, and may follow an option as well."""

from pathlib import Path

import pytest

from cvt_cli.cli import app
from small_sets import class_folders

NANO = "cvt-nano-cifar10"


@pytest.mark.parametrize(
    ("argument", "option"),
    [
        ("flops 13", "flops --variant 13"),
        ("flops CvT-W24", "flops --variant w24"),
        ("flops cvt-13-384", "flops --model cvt-13-384"),
        ("flops cvt-13", "flops -m cvt-13"),
        ("count-params 13", "count-params --variant 13"),
        (f"count-params {NANO}", f"count-params --model {NANO}"),
        ("-V", "--version"),
    ],
)
def test_an_argument_says_what_the_option_says(cvt, argument: str, option: str) -> None:
    wanted = cvt(*option.split())

    found = cvt(*argument.split())

    assert wanted.exit_code == 0
    assert found == wanted


@pytest.mark.parametrize(
    "line",
    ["flops 13 --variant 13", "flops 13 -m cvt-13", "evaluate x --data y", "finetune x -d y",
     "export x --model y", "benchmark 13 --variant 13", "benchmark 13 --model x",
     "benchmark x y --model z"],
)  # fmt: skip
def test_an_argument_and_its_option_together_are_refused(cvt, line: str) -> None:
    said = cvt(*line.split())

    assert said.exit_code == 2
    assert "give only one of the two" in said.stderr or "not both" in said.stderr


@pytest.mark.parametrize(
    ("line", "missing", "example"),
    [
        ("evaluate", "no data to evaluate on", "cvt evaluate cifar10"),
        ("evaluate --data-dir a", "no data to evaluate on: --data-dir", "cvt evaluate a\n"),
        ("finetune --data-dir a", "no data to train on: --data-dir", "cvt finetune a\n"),
        ("finetune", "no data to train on", "cvt finetune cifar10"),
        ("export", "no model to export", "cvt export cvt-nano-cifar10"),
    ],
)
def test_what_is_missing_is_said_with_an_example(cvt, line, missing, example) -> None:
    said = cvt(*line.split())

    assert said.exit_code == 2
    assert f"error: {missing}" in said.stderr and example in said.stderr


def test_data_is_evaluated_and_trained_on_as_an_argument(cvt, tmp_path: Path) -> None:
    data = class_folders(tmp_path / "data", {"cat": 6, "dog": 6})

    found = cvt("evaluate", data, "-m", NANO, "-b", 4, "--json")
    same = cvt("evaluate", "-d", data, "-m", NANO, "-k", 2, "--json")
    plan = cvt("finetune", data, "-m", NANO, "-b", 4, "--dry-run", "--json")

    assert found.exit_code == 0 and found.json["n"] == 12
    assert same.exit_code == 0 and same.json["top1"] == found.json["top1"]
    assert "top2" in same.json and "top5" in found.json
    assert found.json["data"] == str(data)
    assert plan.exit_code == 0, plan.stderr
    assert plan.json["settings"]["data"] == str(data) and plan.json["settings"]["batch_size"] == 4


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (NANO, f"{NANO}.safetensors"),
        ("runs/my.run", "my.run.safetensors"),
        ("runs/my.run/best", "my.run.safetensors"),
        ("weights/mine.safetensors", "mine.safetensors"),
    ],
)
def test_an_export_without_a_name_has_that_of_the_model(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(line)
    if line != NANO:
        path.parent.mkdir(parents=True)
        place = path / "best" if path.suffix == ".run" else path
        cvt("export", NANO, "--format", "safetensors", "-o", place)

    said = cvt("export", "--model", line, "--format", "safetensors")

    assert said.exit_code == 0, said.stderr
    assert said.stdout.startswith(f"{name}: ") and Path(name).is_file()
    again = cvt("export", line, "--format", "safetensors")
    assert again.exit_code == 1 and f"`{name}` exists" in again.stderr


@pytest.mark.parametrize("line", ["info .", "predict x.jpg -o a.csv", "flops"])
def test_a_current_folder_that_was_deleted_is_a_sentence(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()

    said = cvt(*line.split())

    assert said.exit_code == 1
    assert said.stderr.startswith("error: the current folder cannot be used: No such file")


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        (["flops", "--json"], ["flops"]),
        (["predict"], ["predict"]),
        (["cache", "path"], None),
        (["train"], None),
        (["--help"], None),
        ([], None),
    ],
)
def test_a_command_that_is_started_makes_no_other_commands_options(
    words: list[str], commands: list[str] | None
) -> None:
    made = app.for_words(words)

    every = [command.name for command in app.registered_commands]
    assert [command.name for command in made.registered_commands] == (commands or every)
    assert bool(made.registered_groups) == (commands is None)


@pytest.mark.parametrize(
    "line",
    ["predict x.png --threshold nan", "evaluate d --expect nan",
     "evaluate d --expect 0.9 --tolerance nan", "finetune d --val-fraction nan",
     "predict x.png --precision int8 --max-drop nan"],
)  # fmt: skip
def test_nan_is_in_no_range(cvt, line: str) -> None:
    """It passes the comparisons of Typer 0.28, so that any accuracy would be the expected one."""
    result = cvt(*line.split())

    assert result.exit_code == 2
    assert "nan" in result.stderr and "Invalid value" in result.stderr
