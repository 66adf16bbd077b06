"""The README and the pages of docs/: what is typed there and printed, a folder for it."""

import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests_shared import TESTS

ROOT = TESTS.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NANO = ROOT / "cvt_cli" / "data" / "cvt-nano-cifar10"
KEPT = TESTS / "kept"


@dataclass(frozen=True)
class Line:
    """A command line of a page."""

    page: Path
    words: tuple[str, ...]  # without `cvt`
    launcher: tuple[str, ...] = ()  # torchrun and what it is told
    shown: str = ""  # what it printed, as the page has it
    place: tuple[int, int] = (0, 0)  # of `shown` in the page's text

    def __str__(self) -> str:
        return shlex.join([*self.launcher, "cvt", *self.words])


def blocks(page: Path, *languages: str) -> list[tuple[str, int]]:
    """The code blocks of a page, with their places in its text."""
    found = re.finditer(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [(block[2], block.start(2)) for block in found if block[1] in languages]


def without_blocks(page: Path) -> str:
    """The text of a page between its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def lines(page: Path) -> Iterator[Line]:
    """Every command line of a page's blocks, in order."""
    for text, start in blocks(page, "bash", "console"):
        if not text.startswith("$ "):
            for typed in text.replace("\\\n", " ").splitlines():
                yield from _commands(page, typed)
            continue
        for match in re.finditer(r"^\$ (.*(?:\\\n.*)*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE):
            place = (start + match.start(2), start + match.end(2))
            yield from _commands(page, match[1].replace("\\\n", " "), match[2], place)


def _commands(
    page: Path, typed: str, shown: str = "", place: tuple[int, int] = (0, 0)
) -> Iterator[Line]:
    """The lines of `cvt` in one line of a shell: alone, after `&&`, or below torchrun."""
    words = shlex.split(typed, comments=True)
    while "&&" in words:
        words = words[words.index("&&") + 1 :]
    words = words[: words.index(">")] if ">" in words else words
    if words[:1] == ["cvt"]:
        yield Line(page, tuple(words[1:]), (), shown, place)
    elif "cvt_cli" in words and words[0] == "torchrun":
        at = words.index("cvt_cli")
        yield Line(page, tuple(words[at + 1 :]), tuple(words[: at + 1]), shown, place)


PARSED_ONLY = {
    r"^cvt (download|push) ": "it talks to the hub",
    r"user/my-cvt": "it talks to the hub",
    r"^cvt cache remove ": "it needs a model of the hub's",
    r"(?<!nano-)cifar10( |$)": "a data set of 170 MB",
    r"--gpus ": "GPUs",
    r"--against (transformers|timm-loop)": "minutes, and a machine for itself",
    r"^cvt compare a.jsonl b.jsonl --changed 3": "what was said of 10,000 images",
    r"^torchrun ": "tests/finetuning/test_distributed.py and others start two processes",
    r"^cvt finetune composed/": "8 minutes; tests/finetuning/test_several_labels.py trains on such",
    r"^cvt explain @list\.txt": "200 images of CIFAR-10, half an hour",
}
"""Lines that no test runs, with the reason; that they can be parsed is tested."""

SLOW = {
    r"^cvt export ": "half a minute",
    r"^cvt benchmark ": "half a minute",
    r"--precision int8": "half a minute",
    r"^cvt finetune (?!--resume|--show-recipe)(?!.*--dry-run)": "minutes",
    r"\.onnx|\.xml|\.pt2": "what an export has written",
}
"""Lines that are run with `pytest -m slow`, in processes of their own."""


def kind(line: Line) -> str:
    """How a line is tested: "parsed", "slow" or "run"."""
    for table, name in ((PARSED_ONLY, "parsed"), (SLOW, "slow")):
        if any(re.search(pattern, str(line)) for pattern in table):
            return name
    return "run"


LIGHT = ("models", "info", "flops", "count-params", "cache")
"""Commands that know published models which are not here."""


@dataclass(frozen=True)
class Sandbox:
    """Two folders that hold what the pages' lines name.

    The published models are not to be had in a test: in their places lie folders of their names
    with the small model, which is what `--model` takes first; in the second folder they are not.
    """

    folder: Path
    light: Path

    def of(self, line: Line) -> Path:
        """Where a line is typed."""
        return self.light if line.words[0] in LIGHT else self.folder


def sandbox(place: Path) -> Sandbox:
    """Make the folders below an empty one."""
    for name in ("all", "light"):
        _fill(place / name)
    for name in ("cvt-13", "cvt-21-384-22k"):
        shutil.copytree(NANO, place / "all" / name)
    return Sandbox(place / "all", place / "light")


def _fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "tests").symlink_to(TESTS)
    (folder / "docs").mkdir()
    shutil.copy(TESTS / "photos" / "nagasaki-boats.jpg", folder / "photo.jpg")
    shutil.copytree(TESTS / "photos", folder / "photos")
    for name in ("my_folder", "images"):  # the second is where the run says that its images are
        shutil.copytree(KEPT / "images", folder / name)
    classes = [
        path.relative_to(folder / "my_folder") for path in (folder / "my_folder").rglob("*.png")
    ]
    rows = [f"{path},{path.parent.name},{path.stem}\n" for path in sorted(classes)]
    for place in (folder, folder / "my_folder"):
        (place / "labels.csv").write_text("file,species,patient\n" + "".join(rows))
    for name in ("my_run", "other_run"):
        shutil.copytree(KEPT / "run", folder / name)
        (folder / name / "best" / "README.md").unlink()  # of a version without marks


def alike(shown: str, printed: str) -> bool:
    """Whether two outputs are the same but for rounding, which differs between processors."""
    return _words(shown) == _words(printed) and all(
        abs(float(a) - float(b)) <= 0.002
        for a, b in zip(_fractions(shown), _fractions(printed), strict=True)
    )


FRACTION = r"\d+\.\d+"


def _fractions(text: str) -> list[str]:
    return re.findall(FRACTION, text)


def _words(text: str) -> list[str]:
    return re.sub("─+", "─", re.sub(FRACTION, "#", text)).split()
