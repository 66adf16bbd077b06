"""What a page shows of paths, addresses and the command line."""

import sys
from pathlib import Path

import pytest

from cvt_cli.prediction import shareable


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of work, which has a picture in it and one beside it."""
    for name in ("work/pets/cat.jpg", "other/dog.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("pets/cat.jpg", "pets/cat.jpg"),
        ("{home}/work/pets/cat.jpg", "pets/cat.jpg"),
        ("file://{home}/work/pets/cat.jpg", "pets/cat.jpg"),
        ("../other/dog.jpg", "../other/dog.jpg"),
        ("{home}/other/dog.jpg", "…/other/dog.jpg"),
        ("/srv/pictures/2025/may/dog.jpg", "…/may/dog.jpg"),
        ("../../../../../../../../../../srv/pictures/dog.jpg", "…/pictures/dog.jpg"),
        ("cvt-13", "cvt-13"),
        ("microsoft/cvt-13", "microsoft/cvt-13"),
        ("https://host/a.jpg", "https://host/a.jpg"),
        ("https://ada:secret@host:80/a.jpg?token=1", "https://host:80/a.jpg?…"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg"),
        ("-", "-"),
    ],
)
def test_a_path_is_shown_without_the_folders_of_the_machine(
    home: Path, text: str, wanted: str
) -> None:
    assert shareable.shown(text.format(home=home)) == wanted


def test_in_the_root_of_the_machine_paths_are_not_shown_whole_either(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir("/")

    assert shareable.shown("/home/ada/pets/cat.jpg") == "…/pets/cat.jpg"
    assert shareable.shown("home/ada/pets/cat.jpg") == "…/pets/cat.jpg"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{home}/work/pets", "pets"),
        ("pets", "pets"),
        (".", "work"),
        ("/data/pets/val", "pets/val"),
        ("runs/first/best", "runs/first/best"),  # there is no such folder
        ("microsoft/cvt-13", "microsoft/cvt-13"),
    ],
)
def test_a_title_names_the_folder_and_no_path(home: Path, text: str, wanted: str) -> None:
    assert shareable.title(text.format(home=home)) == wanted


@pytest.mark.parametrize(
    ("target", "folder", "wanted"),
    [
        ("pets/cat.jpg", ".", "pets/cat.jpg"),
        ("{home}/work/pets/cat.jpg", "pages", "../pets/cat.jpg"),
        ("../other/dog.jpg", ".", "../other/dog.jpg"),
        ("pets/none.jpg", ".", None),
        ("pets", ".", None),
        ("{home}/work/pets/cat.jpg", "/srv/pages", None),  # it would begin at the root
        ("https://host/a.jpg", ".", "https://host/a.jpg"),
        ("https://host/a.jpg?token=1", ".", None),
        ("s3://bucket/a.jpg", ".", None),
        ("javascript://a", ".", None),
    ],
)
def test_a_link_leads_from_the_page_to_the_picture(
    home: Path, target: str, folder: str, wanted: str | None
) -> None:
    assert shareable.link(target.format(home=home), Path(folder)) == wanted


def test_the_command_is_shown_as_it_can_be_typed_without_private_folders(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = [
        *("predict", "pets/my cat.jpg", "/srv/my pets", "@/srv/lists/all.txt"),
        *(f"--html={home}/out/page.html", "https://ada:secret@host/a.jpg", "-k", "3"),
        *("-k3", "-m/srv/models/mine", "-m", "cvt-13"),
    ]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/cvt", *line])

    assert shareable.command() == (
        "cvt predict 'pets/my cat.jpg' '…/srv/my pets' @…/lists/all.txt "
        "--html=…/out/page.html https://host/a.jpg -k 3 "
        "-k3 -m…/models/mine -m cvt-13"
    )


def test_another_program_has_no_command_to_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/home/ada/script.py", "secret"])

    assert shareable.command() is None


def test_files_are_called_by_as_much_of_their_path_as_tells_them_apart() -> None:
    paths = [
        "/a/b/model.onnx",
        "/a/c/model.onnx",
        "other.xml",
        "model.onnx",
        "runs/first/best",
        "best",
        ".",
    ]

    assert shareable.distinct(paths) == {
        "/a/b/model.onnx": "b/model.onnx",
        "/a/c/model.onnx": "c/model.onnx",
        "other.xml": "other.xml",
        "model.onnx": "model.onnx",
        "runs/first/best": "first/best",
        "best": "best",
        ".": ".",
    }
