"""The names that people use for the same checkpoint."""

from pathlib import Path

import pytest

from cvt_cli.checkpoints import CHECKPOINTS, find, nearest
from cvt_cli.loader import Access, locate
from cvt_cli.progress import silent

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
