"""What `cvt predict` writes, that nothing of it is lost, and the Python interface."""

import csv
import io
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open

from cvt_cli import Classifier
from cvt_cli.base.errors import ImageError
from cvt_cli.base.package import DATA
from cvt_cli.images import decode, transform
from cvt_cli.model import weights
from cvt_cli.model.inference import inference_form
from cvt_cli.spec.published import CHECKPOINTS
from tests_shared import CHELSEA, TESTS, Machine, python, torchrun_environment

BOATS = TESTS / "photos" / "nagasaki-boats.jpg"
NANO = ["--model", "cvt-nano-cifar10"]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "<b>broken & bad.jpg"
    path.write_text("no image")
    return path


def test_csv_has_a_row_for_every_image_with_the_same_columns(cvt, broken: Path) -> None:
    result = cvt("predict", broken, BOATS, CHELSEA, *NANO, "--csv", "--top-k", 2)

    bad, boats, chelsea = csv.DictReader(io.StringIO(result.stdout))
    assert list(boats) == [
        "path", "error", "label_1", "score_1", "index_1", "wnid_1",
        "label_2", "score_2", "index_2", "wnid_2",
    ]  # fmt: skip
    assert bad["error"].startswith("not an image") and bad["label_1"] == ""
    assert (boats["label_1"], boats["index_1"], boats["error"]) == ("ship", "8", "")
    assert 0.83 < float(boats["score_1"]) < 0.85
    assert chelsea["path"] == str(CHELSEA)


def test_below_the_threshold_the_answer_is_unknown(cvt) -> None:
    arguments = ["predict", BOATS, CHELSEA, *NANO, "--threshold", 0.8]

    boats, chelsea = cvt(*arguments, "--jsonl").json_lines
    rows = list(csv.DictReader(io.StringIO(cvt(*arguments, "--csv").stdout)))
    table = cvt(*arguments).stdout

    assert (boats["answer"], chelsea["answer"]) == ("ship", "unknown")
    assert chelsea["predictions"][0]["label"] == "cat"  # what it would have been
    assert [row["answer"] for row in rows] == ["ship", "unknown"]
    assert f"{CHELSEA}: unknown" in table


def test_a_class_called_unknown_is_told_from_no_answer(cvt, tmp_path: Path) -> None:
    model = shutil.copytree(CHECKPOINTS["cvt-nano-cifar10"].embedded, tmp_path / "m")
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace('"ship"', '"unknown"'))
    arguments = ["predict", BOATS, CHELSEA, "--model", tmp_path / "m", "--threshold", 0.8]

    boats, chelsea = cvt(*arguments, "--jsonl").json_lines
    cvt(*arguments, "--html", tmp_path / "p.html")

    assert boats["predictions"][0]["label"] == boats["answer"] == "unknown"  # a ship by its picture
    assert chelsea["answer"] == "(unknown)"
    page = (tmp_path / "p.html").read_text()
    assert page.count('data-class="unknown"') == page.count('data-class="(unknown)"') > 0
    assert page.count('<div class="best">(unknown)</div>') == 1


def test_parquet_holds_the_same_with_its_conditions(cvt, broken: Path, tmp_path: Path) -> None:
    path = tmp_path / "answers.parquet"

    result = cvt("predict", broken, BOATS, *NANO, "--parquet", path)

    assert result.exit_code == 1 and result.stdout == ""
    table = parquet.read_table(path)
    bad, boats = table.to_pylist()
    assert bad["error"].startswith("not an image") and bad["label_1"] is None
    assert (boats["label_1"], boats["index_1"]) == ("ship", 8)
    assert json.loads(table.schema.metadata[b"cvt"])["model"] == "cvt-nano-cifar10"
    assert f"written: `{path}`" in result.stderr


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_features_are_what_the_head_reads(cvt, broken: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"features{suffix}"
    loaded = weights.load(DATA / "cvt-nano-cifar10")
    array = transform.preprocess(decode.load(BOATS, True), loaded.preprocessing)
    with torch.inference_mode():
        wanted = inference_form(loaded.model).features(torch.from_numpy(array)[None])[0]

    result = cvt("predict", broken, BOATS, *NANO, "--features", path)

    assert result.exit_code == 1 and result.stdout == ""
    if suffix == ".npz":
        with np.load(path) as file:
            found, paths = file["features"], file["paths"].tolist()
    else:
        with safe_open(path, "np") as file:
            found, metadata = file.get_tensor("features"), file.metadata()
        paths = json.loads(metadata["paths"])
    assert paths == [str(BOATS)]
    assert found.shape == (1, 160)
    np.testing.assert_allclose(found[0], wanted, atol=1e-4)
    assert sorted(p.suffix for p in tmp_path.iterdir()) == sorted([suffix, ".jpg"])


def test_one_long_name_makes_features_no_larger(cvt, tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(100)] + ["x" * 60_000 + ".png"]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for name in names:
            archive.write(tmp_path / "a.png", name)

    cvt("predict", tmp_path / "a.zip", *NANO, "--features", tmp_path / "f.npz")

    assert (tmp_path / "f.npz").stat().st_size < 1_000_000
    with np.load(tmp_path / "f.npz") as file:
        assert file["paths"].tolist() == [f"{tmp_path / 'a.zip'}/{name}" for name in names]


def test_every_engine_gives_the_same_features(cvt_process, tmp_path: Path) -> None:
    found = []
    for engine in ("torch", "onnxruntime", "openvino"):
        path = tmp_path / f"{engine}.npz"
        result = cvt_process("predict", BOATS, *NANO, "--engine", engine, "--features", path)
        assert result.exit_code == 0, result.stderr
        with np.load(path) as file:
            found.append(file["features"])

    np.testing.assert_allclose(found[1], found[0], atol=1e-4)
    np.testing.assert_allclose(found[2], found[0], atol=1e-4)


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text.replace("<wbr>", ""))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else_and_shows_every_image(
    cvt, broken: Path, tmp_path: Path
) -> None:
    path = tmp_path / "page.html"

    result = cvt("predict", broken, BOATS, CHELSEA, *NANO, "--html", path, "--threshold", 0.8)

    assert result.exit_code == 1
    page = _Page(path.read_text())
    pictures = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(pictures) == 2 and all(p.startswith("data:image/jpeg;base64,/9j/") for p in pictures)
    assert not [a for _, a in page.tags if str(a.get("src")).startswith("http")]
    assert sum(tag == "figure" for tag, _ in page.tags) == 3
    assert "b" not in {tag for tag, _ in page.tags}  # of the file's name
    for words in (broken.name, "not an image", "ship", "84.0 %", "unknown", "cvt-nano-cifar10"):
        assert words in page.text
    # With a threshold of the user's there is no other bound.
    assert [a for tag, a in page.tags if "unsure" in (a.get("class"), a.get("data-kind"))] == []


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of three pictures in the folder of work, the second of which nano is unsure of."""
    folder = tmp_path / "pets of ada"
    folder.mkdir()
    shutil.copy(BOATS, folder / "a boat.jpg")
    Image.radial_gradient("L").convert("RGB").resize((64, 40)).save(folder / "b.png")
    shutil.copy(CHELSEA, folder / "c.png")
    monkeypatch.chdir(tmp_path)
    return folder


def test_the_page_begins_with_a_summary_and_the_least_sure_answer(cvt, pets: Path) -> None:
    answers = cvt("predict", pets.name, *NANO, "--jsonl").json_lines
    wanted = sorted(answers, key=lambda answer: answer["predictions"][0]["score"])
    assert wanted[0]["predictions"][0]["score"] < 0.5 < wanted[1]["predictions"][0]["score"]

    cvt("predict", pets.name, *NANO, "--html", "page.html")

    page = _Page(Path("page.html").read_text())
    assert "3 images classified by cvt-nano-cifar10" in page.text
    assert [a["alt"] for tag, a in page.tags if tag == "img"] == [
        f"{answer['path']}: {best['label']}, {100 * best['score']:.0f} %"
        for answer in wanted
        for best in answer["predictions"][:1]
    ]
    cards = [a for tag, a in page.tags if tag == "figure"]
    assert [a.get("class") for a in cards] == ["unsure", None, None]
    chips = [a for tag, a in page.tags if a.get("class") == "chip"]
    assert {a["data-class"] for a in chips if "data-class" in a} == {
        answer["predictions"][0]["label"] for answer in answers
    }
    assert [a["data-kind"] for a in chips if "data-kind" in a] == ["unsure"]
    # A class may be called 6, and "6 3" would not say which is the number of images.
    label = wanted[0]["predictions"][0]["label"]
    said = " ".join(page.text.split())
    assert f"{label}: 1 image" in said or f"{label}: 2 images" in said
    assert "unsure: 1 image" in said


def test_each_picture_on_the_page_leads_to_its_file(cvt, pets: Path) -> None:
    cvt("predict", pets, *NANO, "--html", "pages/page.html")

    page = _Page(Path("pages/page.html").read_text())
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert sorted(links) == [
        "../pets%20of%20ada/a%20boat.jpg",
        "../pets%20of%20ada/b.png",
        "../pets%20of%20ada/c.png",
    ]
    assert all(
        (Path("pages") / unquote(link)).samefile(pets.parent / unquote(link[3:])) for link in links
    )


def test_the_page_tells_no_folder_above_the_folder_of_work(cvt, pets: Path) -> None:
    page = pets.parent / "page.html"
    (pets / "broken.jpg").write_text("no image")
    cvt("predict", pets, *NANO, "--html", page)

    text = page.read_text()
    assert str(pets.parent) not in text and pets.parent.name not in text
    assert (
        "<code>cvt predict &#39;pets of ada&#39; --model cvt-nano-cifar10 --html page.html</code>"
        in text
    )


def test_the_page_shows_small_pictures_in_squares_and_long_ones_whole(cvt, pets: Path) -> None:
    Image.new("RGB", (900, 100)).save(pets / "d.png")

    cvt("predict", pets.name, *NANO, "--html", "page.html")

    page = _Page(Path("page.html").read_text())
    classes = {
        str(a["alt"]).partition(":")[0]: a.get("class") for tag, a in page.tags if tag == "img"
    }
    assert {Path(name).name: kind for name, kind in classes.items()} == {
        "a boat.jpg": None, "b.png": "small", "c.png": None, "d.png": "long",
    }  # fmt: skip


def test_a_file_that_cannot_be_written_is_named(cvt, machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    result = cvt("predict", BOATS, *NANO, "--html", tmp_path / "file" / "page.html")

    assert result.exit_code == 1
    assert f"cannot write `{tmp_path}/file/page.html`" in result.stderr


@pytest.mark.parametrize("option", ["--html", "--parquet", "--features", "--resume"])
def test_a_full_disk_leaves_no_half_of_a_file(machine: Machine, tmp_path: Path, option) -> None:
    name = tmp_path / {"--features": "out.npz"}.get(option, "out.file")
    shutil.copy(BOATS, tmp_path / "a.jpg")
    machine.popen = {"largest_file": 2000}

    result = machine.run("predict", *[tmp_path / "a.jpg"] * 40, *NANO, option, name)

    assert result.exit_code == 1
    assert f"cannot write `{name}`: " in result.stderr and "ile too large" in result.stderr
    if option == "--resume":  # all its lines but the last one are whole
        lines = name.read_bytes().split(b"\n")[:-1]
        assert lines and all(json.loads(line)["predictions"] for line in lines)
    else:
        assert not [p for p in tmp_path.rglob("*") if p.name.startswith((".out", "out"))]


def test_a_full_disk_under_stdout_is_explained(machine: Machine) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "cvt_cli", "predict", str(BOATS), *NANO, "--jsonl"]
        done = subprocess.run(
            command, env=machine.environment, stdout=full, stderr=subprocess.PIPE, text=True
        )

    assert done.returncode == 1
    assert "error: cannot write the results: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("output", ["--jsonl", "--csv", "-v"])
def test_a_reader_that_goes_away_ends_it_in_silence(machine: Machine, output: str) -> None:
    process = machine.start("predict", *[BOATS] * 200, *NANO, output, "--batch-size", 1)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()

    assert process.wait() == 1
    assert not [word for word in ("error", "Traceback", "Exception", "pipe") if word in said]
    process.stderr.close()


# --- resuming


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Sixty small pictures of one colour each, of which one is broken."""
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(60):
        Image.new("RGB", (40, 40), (4 * number, 120, 200)).save(folder / f"{number}.png")
    (folder / "17.png").write_text("broken")
    return folder


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_every_image_is_answered_exactly_once(
    machine: Machine, many: Path, tmp_path: Path, kills: int
) -> None:
    path = tmp_path / "answers.jsonl"
    arguments = ["predict", many, *NANO, "--batch-size", 1, "--resume", path]
    generator = random.Random(0)
    for _ in range(kills):
        begun = len(path.read_bytes()) if path.exists() else 0
        process = machine.start(*arguments)
        while process.poll() is None and (not path.exists() or path.stat().st_size <= begun):
            time.sleep(0.002)
        time.sleep(generator.random() * 0.02)
        process.kill()
        process.communicate()

    whole = path.read_bytes().endswith(b"\n")
    before = sum("error" not in line for line in lines_of(path)) if whole else None  # tried again
    result = machine.run(*arguments)

    assert result.exit_code == 1 and result.stdout == ""
    found = lines_of(path)
    assert [line["path"] for line in found] == [str(many / f"{n}.png") for n in range(60)]
    assert [line["path"] for line in found if "error" in line] == [str(many / "17.png")]
    assert "1 of 60 images could not be read" in result.stderr
    if before:
        assert f"{before} images already in `{path}`" in result.stderr


def test_an_unfinished_line_is_cut_off_and_what_is_named_twice_is_answered_twice(
    cvt, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    arguments = ["predict", BOATS, CHELSEA, BOATS, *NANO, "--resume", path]
    cvt(*arguments)
    whole = path.read_bytes()
    first, second, _ = whole.splitlines(keepends=True)
    path.write_bytes(first + second + b'{"path": "/some')

    result = cvt(*arguments)

    assert "2 images already in" in result.stderr
    assert [line["path"] for line in lines_of(path)] == [str(BOATS), str(CHELSEA), str(BOATS)]


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_an_image_behind_an_address_is_not_asked_whether_it_has_changed_and_that_is_said(
    cvt, tmp_path: Path
) -> None:
    path, served = tmp_path / "answers.jsonl", tmp_path / "served"
    served.mkdir()
    shutil.copy(BOATS, served / "a.jpg")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=served)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.jpg"
        first = cvt("predict", address, CHELSEA, *NANO, "--resume", path)
        answers = path.read_bytes()
        shutil.copy(CHELSEA, served / "a.jpg")
        second = cvt("predict", address, CHELSEA, *NANO, "--resume", path)
        server.shutdown()

    said = "1 of them behind addresses: not asked whether what is there has changed"
    assert first.exit_code == second.exit_code == 0
    assert said not in first.stderr
    assert f"2 images already in `{path}`" in second.stderr and said in second.stderr
    assert path.read_bytes() == answers
    files = cvt("predict", CHELSEA, *NANO, "--resume", tmp_path / "files.jsonl")
    files_again = cvt("predict", CHELSEA, *NANO, "--resume", tmp_path / "files.jsonl")
    assert files.exit_code == files_again.exit_code == 0
    assert "behind addresses" not in files_again.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--top-k", 3], "was made with top_k 5, this run has 3"),
        (["--res", 48], "was made with preprocessing"),
        (["--no-exif"], "was made with exif true, this run has false"),
    ],
)
def test_results_of_different_options_are_not_mixed(cvt, tmp_path, change, message: str) -> None:
    path = tmp_path / "answers.jsonl"
    arguments = ["predict", BOATS, *NANO, "--resume", path]
    cvt(*arguments)
    before = path.read_bytes()

    result = cvt(*arguments, *change)

    assert result.exit_code == 2
    assert message in result.stderr
    assert path.read_bytes() == before


def test_a_file_that_is_something_else_is_left_alone(cvt, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("mine\n")
    path = tmp_path / "answers.jsonl"
    cvt("predict", BOATS, *NANO, "--resume", path)
    path.write_text("garbage\n" + path.read_text())

    results = [cvt("predict", BOATS, *NANO, "--resume", p) for p in (other, path)]

    assert [result.exit_code for result in results] == [2, 1]
    assert "exists, but not `" in results[0].stderr and other.read_text() == "mine\n"
    assert "is damaged: byte 0 begins a line that is not a result" in results[1].stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "--csv"], "give only one of --json and --csv"),
        (
            ["--features", "a.npz", "--json"],
            "--json: --features `a.npz` writes feature vectors, not classes",
        ),
        (["--features", "a.txt"], "features cannot be written as `a.txt`; accepted are `.npz`"),
        (["--resume", "a.jsonl", "--html", "a.html"], "--resume writes only JSON lines"),
    ],
)
def test_outputs_that_exclude_each_other_are_a_usage_error(cvt, arguments, message: str) -> None:
    result = cvt("predict", BOATS, *NANO, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr


# --- several processes


def test_two_processes_share_the_images_without_duplicates(
    machine: Machine, many: Path, tmp_path: Path
) -> None:
    result = machine.torchrun("predict", many, *NANO, "-v", "--resume", tmp_path / "answers.jsonl")

    assert result.exit_code == 1  # the broken one
    found = [lines_of(tmp_path / f"answers.{rank}-of-2.jsonl") for rank in (0, 1)]
    assert min(len(lines) for lines in found) > 20  # they go by their names
    paths = [line["path"] for lines in found for line in lines]
    assert sorted(paths) == sorted(str(path) for path in many.iterdir())
    assert result.stderr.count("cvt-nano-cifar10 (10 classes") == 1


def test_a_process_whose_share_has_no_image_answers_none(machine: Machine, tmp_path: Path) -> None:
    result = machine.torchrun("predict", BOATS, *NANO, "--jsonl", tmp_path / "answers.jsonl")

    assert result.exit_code == 0, result.stderr
    assert sum(len(lines_of(path)) for path in tmp_path.glob("answers.*.jsonl")) == 1


def test_what_several_processes_would_mix_is_refused(cvt, monkeypatch) -> None:
    for name, value in torchrun_environment(rank=0, count=2).items():
        monkeypatch.setenv(name, value)

    result = cvt("predict", BOATS, *NANO, "--json")

    assert result.exit_code == 2
    assert "the outputs of several processes would be mixed; accepted are --jsonl" in result.stderr


# --- from Python


@pytest.fixture(scope="module")
def classify() -> Classifier:
    return Classifier("cvt-nano-cifar10")


def test_the_python_interface_answers_as_the_command(cvt) -> None:
    # The threads, and so the last bits, are chosen by how many images are computed together.
    classify = Classifier("cvt-nano-cifar10", batch_size=1)
    document = cvt("predict", BOATS, *NANO, "--json").json["results"][0]

    assert [vars(p) for p in classify(BOATS)] == document["predictions"]


def test_paths_pictures_arrays_and_tensors_are_the_same_image(classify: Classifier) -> None:
    with Image.open(BOATS) as image:
        image = image.convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)

    answers = [classify(x) for x in (str(BOATS), BOATS, image, array, tensor)]
    several = [classify(x) for x in ([BOATS, image], array[None], tensor[None], iter([BOATS]))]

    assert all(answer == answers[0] for answer in answers)
    assert [len(answer) for answer in several] == [2, 1, 1, 1]
    assert all(answer[0][0].label == "ship" for answer in several)
    assert classify.features(image).shape == (160,)
    assert classify.features([image, BOATS]).shape == (2, 160)


def test_what_cannot_be_read_is_raised_or_answered(classify: Classifier, broken: Path) -> None:
    with pytest.raises(ImageError, match="not an image"):
        classify([BOATS, broken])
    with pytest.raises(ImageError, match="float64 with shape"):
        classify(np.zeros((4, 4, 2)))

    answers = list(classify.answers([BOATS, broken, CHELSEA]))

    assert [answer.error is None for answer in answers] == [True, False, True]


def test_it_can_be_sent_to_another_process(tmp_path: Path) -> None:
    script = (
        "import pickle, sys\n"
        "classify = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert 'torch' not in sys.modules\n"
        "print(*(classify(path)[0].label for path in sys.argv[2:]))\n"
    )
    make = (
        "import pickle, sys; from cvt_cli import Classifier\n"
        "pickle.dump(Classifier('cvt-nano-cifar10', top_k=1), open(sys.argv[1], 'wb'))"
    )
    path = tmp_path / "classify.pickle"

    made = python(make, path)
    assert made.exit_code == 0, made.stderr
    done = subprocess.run(
        [sys.executable, "-c", script, path, BOATS, CHELSEA], capture_output=True, text=True
    )

    assert done.stdout == "ship cat\n", done.stderr
    assert os.path.getsize(path) < 1000
