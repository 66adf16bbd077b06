"""`cvt evaluate` at the command line: one result, however it is run."""

import base64
import csv
import io
import json
import os
import pickle
import random
import re
import shutil
import signal
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from torchvision import transforms

from cvt_cli.base import package
from cvt_cli.evaluation import mistakes
from cvt_cli.model import weights
from cvt_cli.spec.labels import Labels, imagenet
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.variants import VARIANTS
from small_sets import class_folders
from tests_shared import CHELSEA, TESTS, TINY, Machine, Result, golden_model, test_data
from warm_processes import start

NANO = ["--model", "cvt-nano-cifar10"]
INTEGERS = ("n", "top1_correct", "top5_correct", "classes", "confusions")


@pytest.fixture(scope="session")
def cut(cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """250 of CIFAR-10's test images, as class folders; 16 of the last class."""
    root = tmp_path_factory.mktemp("cut") / "cut"
    for folder in sorted((cifar10 / "test").iterdir()):
        count = 16 if folder.name == "truck" else 26
        (root / folder.name).mkdir(parents=True)
        for image in sorted(folder.iterdir())[:count]:
            shutil.copy(image, root / folder.name)
    return root


@pytest.fixture(scope="session")
def wanted(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the plainest run counts."""
    machine = Machine(Path(), {"CVT_CACHE": str(tmp_path_factory.mktemp("c"))})
    return integers(machine.run("evaluate", "--data", cut, *NANO, "--json"))


def integers(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.stderr
    return {key: result.json[key] for key in INTEGERS}


def test_the_result_is_a_sum_over_all_images(wanted) -> None:
    assert wanted["n"] == 250
    assert sum(c["n"] for c in wanted["classes"]) == 250
    assert sum(c["correct"] for c in wanted["classes"]) == wanted["top1_correct"]
    assert 195 < wanted["top1_correct"] < 225 < wanted["top5_correct"] <= 250


@pytest.mark.parametrize(
    "arguments", [["--batch-size", 1], ["--batch-size", 7, "--workers", 5], ["--batch-size", 256]]
)
def test_batches_and_threads_change_nothing(cvt, cut: Path, wanted, arguments) -> None:
    assert integers(cvt("evaluate", "--data", cut, *NANO, "--json", *arguments)) == wanted


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_an_archive_gives_what_the_folder_gives(cvt, cut, wanted, tmp_path, kind: str) -> None:
    path = tmp_path / f"cut.{kind}"
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            archive.add(cut, arcname="cut")
    else:
        with zipfile.ZipFile(path, "w") as zipped:
            for file in sorted(cut.rglob("*.*"), reverse=True):
                zipped.write(file, file.relative_to(cut.parent))

    assert integers(cvt("evaluate", "--data", path, *NANO, "--json")) == wanted


def test_two_processes_give_one_result_printed_once(machine: Machine, cut: Path, wanted) -> None:
    (cut.parent / "odd").mkdir()
    shutil.copytree(cut / "cat", cut.parent / "odd" / "cat")  # 26 images, and one
    shutil.copy(next((cut / "dog").iterdir()), cut.parent / "odd" / "cat" / "odd.png")

    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
    two = machine.wait(
        machine.start("evaluate", "--data", cut, *NANO, "--json", through=torchrun)  # the real one
    )
    odd = machine.torchrun("evaluate", "--data", cut.parent / "odd", *NANO, "--json")
    alone = machine.run("evaluate", "--data", cut.parent / "odd", *NANO, "--json")

    assert integers(two) == wanted
    assert odd.json["n"] == 27
    assert integers(odd) == integers(alone)
    assert odd.json["loss"] == pytest.approx(alone.json["loss"])


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_and_resumed_it_ends_with_the_same_result(
    machine: Machine, cut: Path, cifar10: Path, tmp_path: Path, kills: int
) -> None:
    path = tmp_path / "predictions.jsonl"
    data, batch_size = (cut, 5) if kills == 3 else (cifar10, 50)  # 250 or all 10,000 images
    arguments = ["evaluate", "--data", data, *NANO, "--json", "--batch-size", batch_size]
    arguments += ["--predictions", path, "--resume"]
    whole = [*arguments[:-2], tmp_path / "whole.jsonl"]
    script = (
        "import sys; from cvt_cli.evaluation import resume; resume.SAVE_EVERY_SEC = 0.02\n"
        "from cvt_cli.cli import app; app(sys.argv[1:], prog_name='cvt')"
    )
    generator = random.Random(0)
    for _ in range(kills):
        begun = path.stat().st_size if path.exists() else 0
        with open(os.devnull, "w") as nowhere:
            process = start(None, *arguments, code=script, environment=machine.environment,
                            stdout=nowhere.fileno(), stderr=nowhere.fileno())  # fmt: skip
        deadline = time.monotonic() + 20
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.stat().st_size > begun:
                break
            time.sleep(0.001)
        time.sleep(generator.random() * 0.05)
        process.kill()
        process.wait()

    resumed, at_once = machine.run(*arguments), machine.run(*whole)

    ours, wanted = integers(resumed), integers(at_once)
    for one in ours["classes"]:  # they need the probabilities of every class
        assert one.pop("roc_auc") is None and one.pop("average_precision") is None
    for one in wanted["classes"]:
        assert one.pop("roc_auc") > 0.5 and one.pop("average_precision") > 0.5
    assert ours == wanted
    assert resumed.json["loss"] == at_once.json["loss"]
    assert resumed.json["calibration"] == at_once.json["calibration"]
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_resumed_run_has_the_same_conditions(cvt, cut: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--data", cut / "..", "--predictions", tmp_path / "p.jsonl"]
    cvt("evaluate", "--data", cut, *NANO, *arguments[3:])

    other = cvt("evaluate", "--data", cut, *NANO, "--exif", *arguments[3:], "--resume")

    assert other.exit_code == 2
    assert "was made with exif false, this run has true" in other.stderr


def test_predictions_say_the_same_in_every_format(cvt, cut: Path, wanted, tmp_path: Path) -> None:
    paths = [tmp_path / f"p{suffix}" for suffix in (".jsonl", ".csv", ".parquet")]
    for path in paths:
        assert integers(cvt("evaluate", "--data", cut, *NANO, "--json", "--predictions", path))

    lines = [json.loads(line) for line in paths[0].read_text().splitlines()]
    with paths[1].open() as file:
        rows = list(csv.DictReader(file))
    table = parquet.read_table(paths[2]).to_pylist()
    assert len(lines) == len(rows) == len(table) == 250
    assert sum(line["correct"] for line in lines) == wanted["top1_correct"]
    for line, row, other in zip(lines, rows, table, strict=True):
        assert line["path"] == row["path"] == other["path"]
        assert line["label"] == row["label"] == other["label"] == line["path"].split("/")[0]
        assert str(line["correct"]) == row["correct"] == str(other["correct"])
        assert len(line["predictions"]) == 5
        best = line["predictions"][0]
        assert best["label"] == row["label_1"] == other["label_1"]
        assert best["score"] == float(row["score_1"]) == other["score_1"]


def test_two_models_read_each_image_once(cvt, cut: Path, wanted, tmp_path: Path) -> None:
    other = tmp_path / "other"
    cifar = Labels(tuple(sorted(folder.name for folder in cut.iterdir())))
    weights.save(other, golden_model(TINY), cifar, Preprocessing(64, 64, "crop"), "")

    result = cvt(
        "evaluate", "--data", cut, *NANO, "--model", other, "--json",
        "--predictions", tmp_path / "p.csv",
    )  # fmt: skip

    first, second = result.json
    assert {key: first[key] for key in INTEGERS} == wanted
    alone = cvt("evaluate", "--data", cut, "--model", other, "--json").json
    assert {key: second[key] for key in INTEGERS} == {key: alone[key] for key in INTEGERS}
    assert len(list(tmp_path.glob("p.*.csv"))) == 2


def test_a_name_that_breaks_lines_is_quoted_in_a_table(cvt, cut: Path, tmp_path: Path) -> None:
    names = {f"cat/{name}" for name in ("a\rb.png", 'a"b.png', "a\ncat,b.png", "a,b.png")}
    (tmp_path / "data" / "cat").mkdir(parents=True)
    for name in names:
        shutil.copy(next((cut / "cat").iterdir()), tmp_path / "data" / name)

    result = cvt(
        "evaluate", "--data", tmp_path / "data", *NANO, "--predictions", tmp_path / "p.csv"
    )

    assert result.exit_code == 0, result.stderr
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    assert {row["path"] for row in rows} == names
    assert all(row["label"] == "cat" for row in rows)
    assert cvt("compare", tmp_path / "p.csv", tmp_path / "p.csv", "--json").json["n"] == 4


def test_two_evaluations_are_compared(cvt, cut: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "fp32.jsonl", tmp_path / "small.parquet"]
    cvt("evaluate", "--data", cut, *NANO, "--predictions", paths[0])
    cvt("evaluate", "--data", cut, *NANO, "--res", 48, "--predictions", paths[1])
    right = [sum(table["correct"] for table in rows) for rows in (
        [json.loads(line) for line in paths[0].read_text().splitlines()],
        parquet.read_table(paths[1]).to_pylist(),
    )]  # fmt: skip

    document = cvt("compare", *paths, "--json").json

    assert document["n"] == 250
    assert (document["accuracy_a"], document["accuracy_b"]) == (right[0] / 250, right[1] / 250)
    low, high = document["difference_points_interval"]
    assert low <= document["difference_points"] <= high
    assert len(document["changed"]) >= document["only_a_right"] + document["only_b_right"] > 0


def test_unreadable_images_are_wrong_or_left_out_and_listed(cvt, cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut / "cat", tmp_path / "cat")
    (tmp_path / "cat" / "bad.png").write_text("no image")
    arguments = ["evaluate", "--data", tmp_path, *NANO, "--json"]

    counted, left_out = cvt(*arguments), cvt(*arguments, "--skip-unreadable")

    assert (counted.exit_code, counted.json["n"], counted.json["n_failed"]) == (1, 27, 1)
    assert "bad.png`: not an image" in counted.stderr
    assert (left_out.exit_code, left_out.json["n"], left_out.json["n_skipped"]) == (0, 26, 1)
    assert "left out: 1 image that could not be read" in left_out.stderr


@pytest.mark.parametrize(("expected", "code"), [(0.88, 0), (0.95, 1)])
def test_what_is_expected_makes_the_exit_code(cvt, cut: Path, expected: float, code: int) -> None:
    result = cvt("evaluate", "--data", cut, *NANO, "--expect", expected, "--tolerance", 0.03)

    assert result.exit_code == code
    assert ("expected is 0.9500 within 0.03" in result.stderr) == bool(code)


def test_groups_have_their_accuracy_and_the_gap_is_named(cvt, cut: Path, tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    animals = {"bird", "cat", "deer", "dog", "frog", "horse"}
    with path.open("w") as file:
        file.write("path,group\n")
        for image in sorted(cut.rglob("*.png")):
            group = "animal" if image.parent.name in animals else "machine"
            file.write(f"{image.relative_to(cut)},{group}\n")

    document = cvt("evaluate", "--data", cut, *NANO, "--json", "--groups", path).json

    animal, machine = document["groups"]["groups"]
    assert (animal["group"], animal["n"], machine["n"]) == ("animal", 156, 94)
    assert animal["correct"] + machine["correct"] == document["top1_correct"]
    gap = document["groups"]["largest_gap"]
    assert gap["gap"] == pytest.approx(abs(animal["accuracy"] - machine["accuracy"]))


def test_a_subset_of_the_classes_has_two_numbers(cvt, cut: Path, tmp_path: Path) -> None:
    for name in ("cat", "ship"):
        shutil.copytree(cut / name, tmp_path / name)

    result = cvt("evaluate", "--data", tmp_path, *NANO, "--json")
    table = cvt("evaluate", "--data", tmp_path, *NANO).stdout

    subset = result.json["present_classes"]
    assert subset["n"] == 2
    assert result.json["top1"] < subset["top1"] < 1
    assert "among the 2 classes present" in table


def test_folders_of_other_names_need_a_map(cvt, cut: Path, tmp_path: Path) -> None:
    shutil.copytree(cut / "cat", tmp_path / "data" / "Katze")
    shutil.copytree(cut / "ship", tmp_path / "data" / "Schiff")
    (tmp_path / "map.json").write_text(json.dumps({"Katze": "cat", "Schiff": 8}))
    arguments = ["evaluate", "--data", tmp_path / "data", *NANO, "--json"]

    refused, mapped = cvt(*arguments), cvt(*arguments, "--label-map", tmp_path / "map.json")

    assert refused.exit_code == 1 and "--label-map" in refused.stderr
    assert mapped.json["top1_correct"] > 30


def test_the_report_is_one_page(cvt, cut: Path, tmp_path: Path) -> None:
    result = cvt("evaluate", "--data", cut, *NANO, "--report", tmp_path / "report")

    page = (tmp_path / "report" / "index.html").read_text()
    assert f"written: `{tmp_path}/report/index.html`" in result.stderr
    assert page.count("data:image/jpeg;base64,") == 24
    assert f"<h1>cvt-nano-cifar10 on {cut.name}</h1>" in page
    links = [unquote(link) for link in re.findall(r'class="picture" href="([^"]+)"', page)]
    assert len(links) == 24
    assert all((tmp_path / "report" / link).resolve().is_relative_to(cut) for link in links)


def test_the_report_explains_the_mistakes(cvt, cifar10: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "data" / "dog"  # two cats that are labelled as dogs
    wrong.mkdir(parents=True)
    (tmp_path / "data" / "cat").mkdir()
    for number, image in enumerate(sorted((cifar10 / "test" / "cat").iterdir())[:3]):
        shutil.copy(image, (tmp_path / "data" / "cat" if number == 2 else wrong) / image.name)
    arguments = ["evaluate", tmp_path / "data", *NANO, "--json", "--explain"]

    alone = cvt(*arguments)
    result = cvt(*arguments, "--report", tmp_path / "report")

    assert alone.exit_code == 2 and "--explain: it needs --report" in alone.stderr
    mistakes = result.json["n"] - result.json["top1_correct"]
    assert 1 <= mistakes <= 3
    page = (tmp_path / "report" / "index.html").read_text()
    pairs = re.findall(
        r'class="picture pair".*?<img[^>]*jpeg;base64,([^"]+)"><img[^>]*jpeg;base64,([^"]+)"', page
    )
    assert len(pairs) == mistakes
    assert "for the labelled class to for the predicted one" in page
    for photo, overlay in (map(base64.b64decode, pair) for pair in pairs):
        assert Image.open(io.BytesIO(photo)).size == (32, 32)
        drawn = Image.open(io.BytesIO(overlay))
        assert drawn.size == (320, 320)
        blue_to_yellow = np.asarray(drawn, np.float32)[..., :2].mean(2) - np.asarray(drawn)[..., 2]
        assert np.ptp(blue_to_yellow) > 40  # a map lies on it


def test_a_mistake_that_cannot_be_read_again_costs_its_picture_and_not_the_report(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dog", "cat"):
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(TESTS / "photos" / "nagasaki-boats.jpg", tmp_path / "data" / name)

    def after_one_has_gone(*told: object) -> dict[str, bytes]:
        (tmp_path / "data" / "dog" / "nagasaki-boats.jpg").unlink()
        return explain(*told)

    explain = mistakes.explain
    monkeypatch.setattr(mistakes, "explain", after_one_has_gone)
    report = tmp_path / "report"
    result = cvt("evaluate", tmp_path / "data", *NANO, "--json", "--explain", "--report", report)

    assert result.exit_code == 0 and result.json["top1_correct"] == 0
    page = (report / "index.html").read_text()
    assert page.count("could not be read again") == 1
    assert page.count("data:image/jpeg;base64,") == 2  # of the other, and the map of it
    assert "dog/nagasaki-boats.jpg" in page.replace("<wbr>", "")


# An interrupt may lie between a file's opening and its `with`: Python closes it, and warns.
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_ctrl_c_while_the_mistakes_are_explained_loses_no_result(
    cvt, cifar10: Path, tmp_path: Path, python_takes_ctrl_c: None
) -> None:
    (tmp_path / "data" / "cat").mkdir(parents=True)
    wrong = tmp_path / "data" / "dog"
    shutil.copytree(cifar10 / "test" / "frog", wrong)
    for image in sorted(wrong.iterdir())[30:]:
        image.unlink()
    shutil.copy(next((cifar10 / "test" / "cat").iterdir()), tmp_path / "data" / "cat")

    def press() -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "s.npy").exists() and time.monotonic() < deadline:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    pressing = threading.Thread(target=press)
    pressing.start()
    written = ["--scores", tmp_path / "s.npy", "--report", tmp_path / "report"]
    result = cvt("evaluate", tmp_path / "data", *NANO, "--json", "--explain", *written)
    pressing.join()

    assert result.exit_code == 130
    assert result.json["n"] == 31
    assert not (tmp_path / "report" / "index.html").exists()


def test_an_exported_graph_cannot_explain_its_mistakes(cvt, tmp_path: Path) -> None:
    (tmp_path / "nano.onnx").write_bytes(b"")
    model = ["--model", tmp_path / "nano.onnx", "--report", tmp_path / "report"]

    result = cvt("evaluate", tmp_path, *model, "--explain")

    assert result.exit_code == 2
    assert "--explain: " in result.stderr and "is an exported graph" in result.stderr
    assert "hint: give the checkpoint that it was exported from" in result.stderr
    assert not (tmp_path / "report").exists()


def test_where_no_image_can_be_read_the_report_says_so(cvt, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "1.png").write_text("no image")
    data = ["--data", tmp_path / "data", *NANO, "--report", tmp_path / "report"]

    result = cvt("evaluate", *data)

    assert result.exit_code == 1
    page = (tmp_path / "report" / "index.html").read_text()
    assert "2 images could not be read and count as wrong." in page
    assert "0.00 %" in page and "Are the probabilities" not in page


def test_the_report_tells_no_folder_of_this_machine(cvt, cut: Path, tmp_path: Path) -> None:
    arguments = ["--data", cut, *NANO, "--report", tmp_path / "report"]

    cvt("evaluate", *arguments)

    page = (tmp_path / "report" / "index.html").read_text()
    assert str(cut.parent) not in page and str(tmp_path.parent) not in page
    assert f"--data …/{cut.parent.name}/{cut.name} --model cvt-nano-cifar10" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--predictions", "p.txt"], "predictions cannot be written as `p.txt`"),
        (["--resume"], "--resume needs exactly one model, and --predictions FILE.jsonl"),
        (["--predictions", "p.csv", "--resume"], "--resume needs exactly one model"),
        (["--resume", "p.csv"], "--predictions FILE.jsonl, not `p.csv`"),
        (["--model", "cvt_nano_cifar10", "--predictions", "p.csv"], "are the same, or would have"),
        (["--real", "real.json"], "--real needs ImageNet's classes, which `cvt-nano-cifar10`"),
    ],
)
def test_options_that_do_not_go_together_are_refused(cvt, cut: Path, arguments, message) -> None:
    result = cvt("evaluate", "--data", cut, *NANO, *arguments)

    assert result.exit_code == 2
    assert message in result.stderr


def test_real_labels_count_beside_by_file_name(cvt, tmp_path: Path) -> None:
    model = golden_model(TINY.with_classes(1000))
    weights.save(tmp_path / "model", model, imagenet(), Preprocessing(64, 64, "crop"), "")
    folder = tmp_path / "data" / "n01440764"
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        shutil.copy(CHELSEA, folder / f"ILSVRC2012_val_{number:08}.JPEG")
    (folder / "ILSVRC2012_val_00000004.JPEG").write_text("no image")  # counts as wrong
    arguments = ["evaluate", "--data", tmp_path / "data", "--model", tmp_path / "model", "--json"]
    answers = cvt("predict", CHELSEA, "--model", tmp_path / "model", "--json").json["results"][0]
    best = answers["predictions"][0]["index"]
    (tmp_path / "real.json").write_text(json.dumps([[best, 3], [], [(best + 1) % 1000], [7]]))

    document = cvt(*arguments, "--real", tmp_path / "real.json").json

    assert document["real"] == {
        "n": 3, "correct": 1, "accuracy": 1 / 3, "interval": document["real"]["interval"]
    }  # fmt: skip


def independent_top5(model: torch.nn.Module, image: Path, size: int) -> list[int]:
    """Pillow, torchvision and the reference's two transforms (one for 224, one for 384)."""
    resize = (
        [transforms.Resize(256, transforms.InterpolationMode.BICUBIC), transforms.CenterCrop(224)]
        if size == 224
        else [transforms.Resize((384, 384), transforms.InterpolationMode.BICUBIC)]
    )
    transform = transforms.Compose(
        [
            *resize,
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    with Image.open(image) as opened, torch.inference_mode():
        logits = model(transform(opened.convert("RGB"))[None])[0]
    return logits.topk(5).indices.tolist()


@pytest.mark.parametrize(
    ("variant", "size", "every"),
    [
        ("13", 224, 8),
        pytest.param("13", 384, 1, marks=pytest.mark.slow),
        pytest.param("21", 384, 1, marks=pytest.mark.slow),
    ],
)
def test_every_photographs_top5_equals_an_independent_scripts(
    cvt, tmp_path: Path, variant: str, size: int, every: int
) -> None:
    photos = sorted(p for p in test_data("photos/val").rglob("*") if p.is_file())[::every]
    for photo in photos:
        (tmp_path / "val" / photo.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, tmp_path / "val" / photo.parent.name)
    model = golden_model(VARIANTS[variant].config)
    weights.save(tmp_path / "model", model, imagenet(), Preprocessing.published(size, size), "")

    result = cvt(
        "evaluate", "--data", tmp_path, "--model", tmp_path / "model", "--json",
        "--predictions", tmp_path / "p.jsonl", "--batch-size", 8,
    )  # fmt: skip

    assert result.json["n"] == len(photos)
    for line in (tmp_path / "p.jsonl").read_text().splitlines():
        found = json.loads(line)
        ours = [p["index"] for p in found["predictions"]]
        assert ours == independent_top5(model, tmp_path / "val" / found["path"], size), found


def as_torchvision_stores_it(cifar10: Path, root: Path) -> Path:
    """CIFAR-10's test images in the form in which they are published."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = sorted(path.name for path in (cifar10 / "test").iterdir())
    paths = sorted((cifar10 / "test").rglob("*.png"), key=lambda path: path.name)
    pixels = [np.asarray(Image.open(path)).transpose(2, 0, 1).reshape(-1) for path in paths]
    batch = {"data": np.stack(pixels), "labels": [names.index(p.parent.name) for p in paths]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch, 2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, 2))
    return root


@pytest.mark.slow
def test_all_test_images_give_the_cards_integers_however_they_are_run(
    machine: Machine, cifar10: Path, tmp_path: Path
) -> None:
    with tarfile.open(tmp_path / "cifar10.tar", "w") as archive:
        archive.add(cifar10 / "test", arcname="test")
    runs = [
        [cifar10],
        [as_torchvision_stores_it(cifar10, tmp_path / "binary")],
        [tmp_path / "cifar10.tar"],
        [cifar10, "--batch-size", 1],
        [cifar10, "--batch-size", 7],
        [cifar10, "--batch-size", 256],
        [cifar10, "--engine", "onnxruntime"],
        [cifar10, "--engine", "openvino"],
    ]

    found = [machine.run("evaluate", "--data", *run, *NANO, "--json") for run in runs]
    found.append(machine.torchrun("evaluate", "--data", cifar10, *NANO, "--json"))

    for result in found:
        assert result.exit_code == 0, result.stderr
        assert (result.json["top1_correct"], result.json["top5_correct"]) == (8868, 9957)


def test_a_number_of_mistakes_cannot_be_taken_for_a_class(cvt, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    shutil.copy(TESTS / "photos" / "nagasaki-boats.jpg", tmp_path / "cat")

    result = cvt("evaluate", tmp_path, *NANO)

    assert "wrong   most often cat as ship (1)\n" in result.stdout


def test_a_result_is_not_of_weights_that_came_while_the_model_was_loaded(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(package.DATA / "cvt-nano-cifar10", tmp_path / "model")
    data = class_folders(tmp_path / "data", {"cat": 2, "dog": 2})
    loaded = weights.load_checkpoint

    def replaced(*arguments: Any) -> Any:  # as a better epoch does it
        found = loaded(*arguments)
        shutil.copy(model / "model.safetensors", tmp_path / "better")
        (tmp_path / "better").rename(model / "model.safetensors")
        return found

    monkeypatch.setattr(weights, "load_checkpoint", replaced)
    result = cvt("evaluate", data, "--model", model, "--engine", "torch", "--json")

    assert result.exit_code == 1 and result.stdout == ""
    assert f"`{model}` was changed while it was used" in result.stderr


@pytest.mark.parametrize("asked", [[], ["--json"], ["--expect", 0.0]])
def test_no_accuracy_is_stated_where_every_image_is_left_out(
    cvt, tmp_path: Path, asked: list[Any]
) -> None:
    data = class_folders(tmp_path / "data", {"cat": 2, "dog": 1})
    for image in data.rglob("*.png"):
        image.write_bytes(b"no picture")

    result = cvt("evaluate", data, *NANO, "--skip-unreadable", *asked)

    assert result.exit_code == 1 and result.stdout == ""
    assert "nothing was measured: none of 3 images could be read, such as" in result.stderr
