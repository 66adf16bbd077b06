"""The shell completes what is known, through the program that a user has installed."""

import os
from pathlib import Path

import pytest

from cvt_cli.explanation.methods import METHODS
from tests_shared import Machine


def completed(line: str, folder: Path) -> list[str]:
    """What bash is told, with the cursor at the end of the line."""
    environment = {
        **os.environ,
        "_CVT_COMPLETE": "complete_bash",
        "COMP_WORDS": line.replace(" ", "\n"),
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    return Machine(folder, environment).run().stdout.split()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("cats-1", "cats-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "plan.json").write_text("{}")
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "cifar-mine").mkdir()
    (tmp_path / "nano.onnx").write_text("x")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("cvt predict x.jpg --model cvt-13", {"cvt-13", "cvt-13-384", "cvt-13-384-22k"}),
        ("cvt predict x.jpg -m runs/c", {"runs/cats-1", "runs/cats-2"}),
        ("cvt predict x.jpg --model na", {"nano.onnx"}),
        ("cvt evaluate cifar", {"cifar10", "cifar100", "cifar-mine/"}),
        ("cvt finetune --data cifar1", {"cifar10", "cifar100"}),
        ("cvt evaluate -d cifar1", {"cifar10", "cifar100"}),
        ("cvt finetune x --variant w", {"w24"}),
        ("cvt finetune --resume ", {"runs/cats-1", "runs/cats-2"}),
        ("cvt flops w", {"w24"}),
        ("cvt benchmark w", {"w24"}),
        ("cvt export cvt-n", {"cvt-nano-cifar10"}),
        ("cvt info cvt-w", {"cvt-w24-384-22k"}),
        ("cvt predict x.jpg --engine o", {"onnxruntime", "openvino"}),
        ("cvt benchmark --engine torch,op", {"torch,openvino"}),
        ("cvt explain x.jpg --method ", set(METHODS)),
        ("cvt predict x.jpg --device cu", {"cuda", "cuda:0", "cuda:1"}),
        ("cvt fine", {"finetune"}),
    ],
)
def test_what_is_known_is_completed(folder: Path, line: str, wanted: set[str]) -> None:
    found = completed(line, folder)

    assert set(found) - {"runs/cats-1/", "runs/cats-2/"} == wanted
