"""What is written goes to the file that is named, in the form that its suffix says, and replaces
nothing unless that is said."""

import csv
import errno
import json
import os
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from cvt_cli.base import locks
from cvt_cli.base.errors import CvtError
from cvt_cli.prediction.whole_files import WholeFile
from small_sets import class_folders
from tests_shared import CHELSEA, TESTS

NANO = ("--model", "cvt-nano-cifar10")
PHOTOS = sorted((TESTS / "photos").glob("*.[jp]*g"))


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def paths_in(file: str) -> list[str]:
    path = Path(file)
    if path.suffix == ".csv":
        return [row["path"] for row in csv.DictReader(path.read_text().splitlines())]
    if path.suffix == ".json":
        return [one["path"] for one in json.loads(path.read_text())["results"]]
    if path.suffix == ".jsonl":
        return [json.loads(line)["path"] for line in path.read_text().splitlines()]
    if path.suffix == ".npz":
        return list(np.load(path)["paths"])
    return parquet.read_table(path)["path"].to_pylist()


@pytest.mark.parametrize("file", ["a.csv", "a.json", "a.jsonl", "a.parquet", "a.npz"])
def test_predict_writes_what_the_suffix_says(cvt, file: str) -> None:
    said = cvt("predict", *PHOTOS, *NANO, "-o", file)

    assert said.exit_code == 0, said.stderr
    assert said.stdout == "" and f"written: `{file}`" in said.stderr
    assert paths_in(file) == [str(path) for path in PHOTOS]


def test_predict_writes_several_files_at_once(cvt) -> None:
    said = cvt("predict", CHELSEA, *NANO, "-o", "a.csv", "--output", "a.html", "-o", "a.jsonl")

    assert said.exit_code == 0, said.stderr
    assert paths_in("a.csv") == paths_in("a.jsonl") == [str(CHELSEA)]
    assert "chelsea.png" in Path("a.html").read_text()


@pytest.mark.parametrize("flag", ["--csv", "--json", "--jsonl"])
def test_a_flag_of_predict_prints_and_with_a_file_it_writes(cvt, flag: str) -> None:
    file = f"b.{flag.removeprefix('--')}"

    printed = cvt("predict", flag, CHELSEA, *NANO)
    spaced = cvt("predict", flag, file, CHELSEA, *NANO)
    signed = cvt("predict", CHELSEA, *NANO, f"{flag}=c{file}")

    assert printed.exit_code == spaced.exit_code == signed.exit_code == 0, signed.stderr
    assert str(CHELSEA) in printed.stdout and spaced.stdout == signed.stdout == ""
    assert paths_in(file) == paths_in(f"c{file}") == [str(CHELSEA)]
    if flag != "--jsonl":  # which holds the pictures' hashes in a file
        assert [line.strip() for line in Path(file).read_text().splitlines()] == [
            line.strip() for line in printed.stdout.splitlines()
        ]


def test_json_lines_that_predict_has_begun_are_gone_on_with(cvt) -> None:
    cvt("predict", PHOTOS[0], *NANO, "-o", "a.jsonl")

    said = cvt("predict", *PHOTOS, *NANO, "--resume", "a.jsonl")

    assert said.exit_code == 0, said.stderr
    assert "1 image already in `a.jsonl`" in said.stderr
    assert paths_in("a.jsonl") == [str(path) for path in PHOTOS]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("-o a.txt", "--output `a.txt` does not say what to write; accepted are `.jsonl`"),
        ("-o a.csv -o b.csv", "`a.csv` and `b.csv` would hold the same; give only one"),
        ("-o a.html --html b.html", "`b.html` and `a.html` would hold the same; give only one"),
        ("-o a.npz -o b.csv", "--output `a.npz` writes feature vectors, not classes"),
        ("-o a.npz --csv", "--csv: --output `a.npz` writes feature vectors, not classes"),
        ("--resume a.jsonl -o b.csv", "--output: --resume writes only JSON lines"),
        ("--resume a.jsonl --csv b.csv", "--csv: --resume writes only JSON lines"),
        ("--resume b.csv", "--resume `b.csv`: only JSON lines can be continued"),
        ("--overwrite", "--overwrite: there is no output file"),
    ],
)
def test_outputs_that_do_not_go_together_are_refused(cvt, words: str, why: str) -> None:
    said = cvt("predict", CHELSEA, *NANO, *words.split())

    assert said.exit_code == 2 and why in said.stderr


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that has no room for more bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("file", ["a.safetensors", "a.npz"])
def test_features_that_have_no_room_are_a_sentence(cvt, file: str) -> None:
    with files_of_at_most(1000):
        said = cvt("predict", CHELSEA, *NANO, "--engine", "torch", "-o", file)

    assert said.exit_code == 1
    assert f"error: cannot write `{file}`: " in said.stderr and "hint: " in said.stderr
    assert not list(Path().iterdir())


def test_answers_are_kept_in_all_files_but_that_which_has_no_room(cvt) -> None:
    outputs = ["-o", "a.csv", "-o", "b.parquet", "-o", "c.jsonl"]
    with files_of_at_most(2000):
        said = cvt("predict", CHELSEA, *NANO, "--engine", "torch", *outputs)

    assert said.exit_code == 1 and "error: cannot write `b.parquet`: " in said.stderr
    assert Path("c.jsonl").read_text() and not list(Path().glob("b*"))
    assert "chelsea" in Path("a.csv").read_text()


@pytest.mark.parametrize(
    "option", ["--predictions a.csv", "--predictions a.parquet", "--json a.json"]
)
def test_what_evaluate_has_measured_is_printed_though_a_file_has_no_room(
    cvt, option: str, tmp_path: Path
) -> None:
    for number in range(70):  # rows of more than are held back
        name = "cat" if number % 2 else "dog"
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name / f"{number}.png").symlink_to(PHOTOS[0].resolve())

    with files_of_at_most(1000):
        said = cvt("evaluate", "data", *NANO, "--engine", "torch", *option.split())

    file = option.split()[1]
    assert said.exit_code == 1 and "top-1" in said.stdout
    assert f"error: cannot write `{file}" in said.stderr
    assert not Path("a.csv").exists() and [p for p in Path().iterdir() if p.is_file()] == []


def test_what_compare_has_found_is_printed_though_its_file_has_no_room(cvt, data: Path) -> None:
    assert cvt("evaluate", data, *NANO, "--predictions", "a.jsonl").exit_code == 0

    with files_of_at_most(100):
        said = cvt("compare", "a.jsonl", "a.jsonl", "--json", "a.json")

    assert said.exit_code == 1 and "B minus A" in said.stdout
    assert "error: cannot write `a.json`" in said.stderr and not Path("a.json").exists()


def test_a_file_whose_beginning_cannot_be_written_leaves_what_was_there() -> None:
    class Full(WholeFile):
        def _begin(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Path("a.parquet").write_text("what was there")

    with pytest.raises(CvtError, match=r"cannot write `a\.parquet`: No space left"):
        Full(Path("a.parquet"))

    assert Path("a.parquet").read_text() == "what was there"
    assert len(list(Path().iterdir())) == 1


def test_what_another_process_has_made_meanwhile_is_not_replaced(cvt) -> None:
    os.mkfifo("list")

    def other_process() -> None:
        with open("list", "w") as file:  # once the command, which has seen no a.csv, reads it
            Path("a.csv").write_text("of another process")
            file.write(f"{CHELSEA}\n")

    thread = threading.Thread(target=other_process)
    thread.start()
    said = cvt("predict", "@list", *NANO, "-o", "a.csv")
    thread.join()

    assert said.exit_code == 1
    assert "`a.csv` was made by another process in the meantime, and was not" in said.stderr
    assert f"what was made here is kept as `{Path.cwd()}/a-2.csv`" in said.stderr
    assert Path("a.csv").read_text() == "of another process"
    assert paths_in("a-2.csv") == [str(CHELSEA)]
    assert cvt("predict", CHELSEA, *NANO, "-o", "a.csv", "--overwrite").exit_code == 0


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_lines_that_another_process_was_writing_are_not_replaced(
    cvt, data: Path, command: str
) -> None:
    begun, written = threading.Event(), threading.Event()

    def other_process() -> None:
        with locks.growing(Path("a.jsonl"), "writing", print) as file:
            begun.set()
            written.wait()
            file.write(b"of another process\n")

    def ends() -> None:
        time.sleep(1)  # by then this process waits for the other one
        written.set()

    threads = [threading.Thread(target=work) for work in (other_process, ends)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    words = ("-o", "a.jsonl") if command == "predict" else ("--predictions", "a.jsonl")
    said = cvt(command, data, *NANO, *words)
    for thread in threads:
        thread.join()

    assert said.exit_code == 1 and "another process is" in said.stderr
    assert "`a.jsonl` was made by another process in the meantime, and was not" in said.stderr
    assert Path("a.jsonl").read_text() == "of another process\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folders(tmp_path_factory.mktemp("set"), {"cat": 2, "dog": 2})


WRITING = [
    *(("predict", f"-o {file}") for file in ("a.csv", "a.json", "a.jsonl", "a.html", "a.npz")),
    ("predict", "--parquet a.parquet"), ("predict", "--features a.safetensors"),
    ("predict", "--json a.json"),
    *(("evaluate", f"--predictions {file}") for file in ("a.csv", "a.jsonl", "a.parquet")),
    ("evaluate", "--report a"), ("evaluate", "--json a.json"),
    ("export", "-o a.safetensors"), ("export", "-o a --format safetensors"),
    ("benchmark", "--plot a.png"), ("benchmark", "--json a.json"), ("compare", "--json a.json"),
]  # fmt: skip


LINES: dict[str, tuple[object, ...]] = {
    "predict": ("predict", CHELSEA, *NANO),
    "evaluate": ("evaluate", "DATA", *NANO),
    "explain": ("explain", CHELSEA, *NANO),
    "export": ("export", NANO[1]),
    "benchmark": tuple("benchmark nano --engine torch --batch-size 1 --rounds 1".split()),
    "compare": ("compare", "x.jsonl", "x.jsonl"),
}


@pytest.mark.parametrize(("command", "words"), WRITING, ids=lambda words: words)
def test_a_file_that_exists_is_replaced_with_overwrite_alone(
    cvt, data: Path, command: str, words: str
) -> None:
    lines = '{"path": "a/b.png", "label": "a", "correct": false, "error": "broken"}'
    Path("x.jsonl").write_text(lines)
    line = [word if word != "DATA" else data for word in LINES[command]]
    name = words.split()[1]
    file = Path(name) / "index.html" if "--report" in words else Path(name)
    if "--format" in words:
        file = Path(name) / "model.safetensors"
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")

    refused = cvt(*line, *words.split())

    assert refused.exit_code == 1
    assert "exists and was not replaced" in refused.stderr and "--overwrite" in refused.stderr
    assert refused.stdout == "" and file.read_text() == "mine"
    if command != "benchmark":
        replaced = cvt(*line, *words.split(), "--overwrite")
        assert replaced.exit_code == 0, replaced.stderr
        assert file.read_bytes() != b"mine"


A_FILE = [(command, words) for command, words in WRITING if Path(words).suffix]


@pytest.mark.parametrize(
    ("command", "words"),
    [*A_FILE, ("evaluate", "--scores a.npy"), ("evaluate", "--confusion a.csv"),
     ("export", "-o a.onnx"), ("export", "-o a.xml"), ("export", "-o a.pt2"),
     ("explain", "--html a.html"), ("explain", "--npz a.npz"), ("explain", "-o a.png")],
    ids=lambda words: words,
)  # fmt: skip
def test_a_folder_of_the_name_of_a_file_is_refused_before_the_work(
    cvt, data: Path, command: str, words: str
) -> None:
    Path("x.jsonl").write_text('{"path": "a", "label": "a", "correct": false, "error": "broken"}')
    name = words.split()[1]
    Path(name).mkdir()

    said = cvt(*(word if word != "DATA" else data for word in LINES[command]), *words.split())

    assert said.exit_code in (1, 2) and "Traceback" not in said.stderr
    assert said.stdout == "" and f"`{name}`: Is a directory" in said.stderr


def test_an_empty_file_holds_nothing_to_be_asked_for(cvt) -> None:
    Path("a.csv").touch()

    assert cvt("predict", CHELSEA, *NANO, "-o", "a.csv").exit_code == 0


def test_evaluate_writes_its_json_beside_what_it_prints(cvt, data: Path) -> None:
    said = cvt("evaluate", data, *NANO, "--json", "a.json")

    assert said.exit_code == 0 and said.stdout.startswith("top-1 ")
    assert json.loads(Path("a.json").read_text())["n"] == 4


def test_a_command_that_only_prints_says_how_to_keep_it(cvt) -> None:
    said = cvt("flops", "13", "--json", "my flops.json")

    assert said.exit_code == 2
    assert said.stderr.endswith("hint: cvt flops 13 --json > 'my flops.json'\n")


def test_resume_takes_the_file_in_evaluate_too(cvt, data: Path) -> None:
    begun = cvt("evaluate", data, *NANO, "--resume", "a b.jsonl")
    gone_on = cvt("evaluate", data, *NANO, "--resume", "a b.jsonl")
    as_before = cvt("evaluate", data, *NANO, "--predictions", "a b.jsonl", "--resume")

    assert begun.exit_code == gone_on.exit_code == as_before.exit_code == 0
    for said in (gone_on, as_before):
        assert "4 of 4 images already in `a b.jsonl`" in said.stderr
        assert said.stdout.splitlines()[0] == begun.stdout.splitlines()[0]
    assert "--resume takes the file itself now: `--resume 'a b.jsonl'`, without" in as_before.stderr
    both = cvt("evaluate", data, *NANO, "--predictions", "a b.jsonl", "--resume", "b.jsonl")
    assert both.exit_code == 2 and "give only one of the two" in both.stderr


def test_more_than_a_few_images_have_a_line_each(cvt, data: Path) -> None:
    named = sorted(str(path) for path in data.rglob("*.png"))
    extra = [str(CHELSEA)]

    few = cvt("predict", *named, *NANO)
    many = cvt("predict", *named, *extra, *NANO)
    with_classes = cvt("predict", *named, *extra, *NANO, "--top-k", 2)

    assert few.stdout.count("probability") == 4
    head, *lines = many.stdout.splitlines()
    assert head.split() == ["class", "probability", "image"]
    assert [line.split()[2] for line in lines] == named + extra
    assert {line.index("/") for line in lines} == {lines[0].index("/")}
    assert with_classes.stdout.count("probability") == 5
