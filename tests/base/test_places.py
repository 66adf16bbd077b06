"""Where files are kept, also where there is no home folder to keep them in."""

import os
from pathlib import Path

import pytest

from tests_shared import CHELSEA, TESTS, Result, as_unknown_user


def without_a_home(*arguments: object) -> Result:
    homes = ("HOME", "CVT_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in homes}
    return as_unknown_user(*arguments, environment=environment)


def test_without_a_home_folder_what_needs_no_cache_goes_on() -> None:
    result = without_a_home("predict", CHELSEA, "--json")

    assert result.exit_code == 0
    assert result.json["results"][0]["predictions"][0]["label"] == "cat"
    assert "there is no home folder to download it into\nusing cvt-nano-" in result.stderr


@pytest.mark.parametrize(
    "command",
    ["download cvt-13", "cache path", "evaluate --data cifar10 --model cvt-nano-cifar10"],
)
def test_without_a_home_folder_what_needs_one_says_which_variable_names_it(command: str) -> None:
    result = without_a_home(*command.split())

    assert (result.exit_code, result.stdout) == (1, "")
    assert "home folder" in result.stderr and "Traceback" not in result.stderr
    assert "hint: set " in result.stderr and "CVT_CACHE" in result.stderr
    assert "HF_HOME" in result.stderr


@pytest.mark.parametrize("closed", ["cvt", "cvt/hashes", "cvt/graphs"])
def test_a_cache_that_may_not_be_entered_costs_no_answer(tmp_path: Path, closed: str) -> None:
    homes = ("CVT_CACHE", "HF_HOME", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in homes}
    folder = tmp_path / closed
    folder.mkdir(parents=True)
    folder.chmod(0)
    environment |= {"CVT_CACHE": str(tmp_path / "cvt"), "HF_HOME": str(tmp_path / "cvt")}

    result = as_unknown_user(
        "predict", CHELSEA, "--model", TESTS / "kept" / "model", "--json", environment=environment
    )
    folder.chmod(0o700)

    assert result.exit_code == 0, result.stderr
    assert result.json["results"][0]["predictions"]


def test_where_the_cache_cannot_be_written_the_hint_names_its_variable(
    cvt, tmp_path, monkeypatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CVT_CACHE", str(tmp_path / "file" / "cache"))

    result = cvt("predict", CHELSEA, "--model", "cvt-nano-cifar10", "--engine", "onnxruntime")

    assert result.exit_code == 1
    assert f"error: cannot write `{tmp_path}/file/cache/" in result.stderr
    assert "hint: set CVT_CACHE to another folder, or move that file away" in result.stderr
