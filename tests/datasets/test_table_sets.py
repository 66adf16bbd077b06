"""Tables of labelled images at the command line: what is understood, and what is wrong there."""

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file

from cvt_cli import evaluate
from cvt_cli.base.errors import DataError
from cvt_cli.datasets.table_sets import Told, open_part, parts_of_table
from cvt_cli.evaluation.metrics import Metrics
from cvt_cli.images import table_files
from small_sets import class_folders, picture

NANO = ["--model", "cvt-nano-cifar10"]
ROWS = [
    (f"{name}/{number:03}.png", name)
    for name, count in (("cat", 6), ("dog", 5), ("ship", 4))
    for number in range(count)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three of CIFAR-10's classes as folders, whose images `ROWS` lists in order."""
    return class_folders(tmp_path / "images", {"cat": 6, "dog": 5, "ship": 4})


def written(path: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])
    return path


def tables(folder: Path) -> list[Path]:
    """The same images in every kind of table."""
    made = [written(folder / "t.csv", ROWS, ("file", "species"))]
    made.append(folder / "t.tsv")
    made[-1].write_text("".join(f"{a}\t{b}\n" for a, b in [("Path", "Class name"), *ROWS]))
    made.append(folder / "t.jsonl")
    made[-1].write_text("".join(json.dumps({"path": a, "label": b}) + "\n" for a, b in ROWS))
    paths, labels = (list(column) for column in zip(*ROWS, strict=True))
    made.append(folder / "t.parquet")
    parquet.write_table(pyarrow.table({"path": paths, "label": labels}), made[-1])
    pictures = [{"bytes": (folder / path).read_bytes(), "path": path} for path in paths]
    made.append(folder / "bytes.parquet")
    # As the library `datasets` writes them: classes as numbers, whose names are beside the schema.
    names = ["ship", "dog", "cat"]
    codes = [names.index(label) for label in labels]
    schema = pyarrow.table({"image": pictures, "label": codes}).schema
    about = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    schema = schema.with_metadata({"huggingface": json.dumps(about)})
    parquet.write_table(
        pyarrow.table({"image": pictures, "label": codes}, schema=schema),
        made[-1],
        row_group_size=4,
    )
    return made


def test_every_kind_of_table_gives_the_numbers_of_the_folders(cvt, folder: Path) -> None:
    integers = ("n", "top1_correct", "top5_correct", "classes", "confusions", "loss")
    as_folders = cvt("evaluate", folder, *NANO, "--json").json

    for table in tables(folder):
        result = cvt("evaluate", table, *NANO, "--json")

        assert {key: result.json[key] for key in integers} == {
            key: as_folders[key] for key in integers
        }, table
        assert f"`{table}`: 15 images in 3 classes; columns: " in result.stderr
        assert "images of each class: `cat` 6, `dog` 5, `ship` 4" in result.stderr


def test_a_run_on_any_kind_of_table_has_the_weights_of_one_on_the_folders(
    cvt, folder: Path, tmp_path: Path
) -> None:
    in_csv, _, *others = tables(folder)  # of lines, of paths in Parquet, of bytes there
    short = ["--variant", "nano", "--epochs", 1, "--batch-size", 6, "--warmup-epochs", 0]
    runs = []
    for number, data in enumerate((folder, in_csv, *others)):
        runs.append(tmp_path / f"run{number}")
        result = cvt("finetune", data, *short, "-o", runs[-1], "--workers", 0)
        assert result.exit_code == 0, result.stderr

    first, *others = (load_file(run / "last" / "model.safetensors") for run in runs)
    plans = [json.loads((run / "plan.json").read_text())["data"] for run in runs]
    assert len({plan["fingerprint"] for plan in plans}) == 1
    for other in others:
        assert first.keys() == other.keys()
        assert all(first[name].equal(other[name]) for name in first)


def test_a_run_on_a_table_goes_on_where_its_pictures_have_moved(
    cvt, folder: Path, tmp_path: Path
) -> None:
    table = written(tmp_path / "t.csv", ROWS, ("name of it", "label"))
    run, told = tmp_path / "run", ["--columns", "path=name of it", "--images"]
    short = ["--variant", "nano", "--epochs", 1, "--batch-size", 6, "--warmup-epochs", 0]
    assert cvt("finetune", table, *told, folder, *short, "-o", run).exit_code == 0
    moved = folder.rename(tmp_path / "moved")

    lost = cvt("finetune", "--resume", run)
    found = cvt("finetune", "--resume", run, "--images", moved)

    assert lost.exit_code == 1 and "--images FOLDER" in lost.stderr
    assert found.exit_code == 0, found.stderr
    assert f"--columns 'path=name of it' --images {moved}" in found.stderr  # the next command


def test_what_holds_names_of_parts_is_the_split_whatever_it_is_called(cvt, folder: Path) -> None:
    rows = [(*row, "test" if number % 4 == 0 else "train") for number, row in enumerate(ROWS)]
    table = written(folder / "t.csv", rows, ("filepaths", "labels", "data set"))

    command = ["finetune", table, "--variant", "nano", "--dry-run"]
    split, whole = cvt(*command, "--allow-overlap"), cvt(*command, "--columns", "split=")

    assert split.exit_code == whole.exit_code == 0, split.stderr
    assert f"`data set` of `{table}` holds names of parts, and is taken as the spl" in split.stderr
    counts = [
        sum(map(int, re.findall(r"(\d+) (?:training|validation) images", one.stderr)))
        for one in (split, whole)
    ]
    assert counts == [11, 15]


@pytest.mark.parametrize(
    ("heads", "values", "said"),
    [
        (["fold a", "fold b"], ["train,test", "test,train"], "could be the split, and none is"),
        (["dataset"], ["train", "valid", "holdout"], "line 4 has 'holdout'): it is not taken as"),
        (["dataset"], ["train", "test", ""], "line 4 has ''): it is not taken as the split"),
        (["dataset"], ["train", "bus", "car"], ""),
    ],
)
def test_what_may_be_the_split_and_is_not_taken_is_said(
    folder: Path, heads: list[str], values: list[str], said: str
) -> None:
    rows = [(*row, *values[n % len(values)].split(",")) for n, row in enumerate(ROWS)]
    table, notes = written(folder / "t.csv", rows, ("path", "label", *heads)), []

    data = open_part(table, ["train"], Told(), notes.append)

    assert data is not None and len(data) == 15
    assert (said in notes[-1]) and (said != "" or "split" not in notes[-1])


@pytest.mark.parametrize(
    ("head", "yes", "no", "parts"),
    [
        (["is_valid"], "True", "False", ["train", "val"]),
        (["is_train"], "0", "1", ["train", "test"]),
        (["isTest", "spotted"], "1,1", "0,0", ["train", "test"]),
        (["is_valid"], "False", "True", []),  # so much to judge: it may mean another thing
        (["is_test", "is_val"], "1,0", "0,0", []),
        (["train"], "0", "1", []),  # a class, perhaps
    ],
)
def test_a_column_of_0_and_1_may_say_what_is_trained_on(
    folder: Path, head: list[str], yes: str, no: str, parts: list[str]
) -> None:
    rows = [(*row, *(yes if n % 4 == 0 else no).split(",")) for n, row in enumerate(ROWS)]
    table = written(folder / "t.csv", rows, ("path", "label", *head))
    said: list[str] = []

    data = open_part(table, ["train"], Told(), said.append)

    assert data is not None and len(data) == (11 if parts else 15)
    assert parts_of_table(table, Told()) == parts
    assert (f"`{head[0]}` " in "".join(said)) == (head != ["train"])
    if head == ["is_valid"]:
        assert parts_of_table(table, Told("split=is_valid")) == ["train", "val"]


def test_the_split_column_says_what_is_trained_on_and_what_is_measured(
    cvt, folder: Path, tmp_path: Path
) -> None:
    parts = ["Train"] * 3 + ["valid", "valid", "test"]
    rows = [(path, label, parts[int(path[-6:-4]) % 6]) for path, label in ROWS]
    table = written(folder / "t.csv", rows, ("path", "label", "split"))

    planned = cvt("finetune", table, "--variant", "nano", "--dry-run", "--json")
    evaluated = cvt("evaluate", table, *NANO, "--json")
    tested = cvt("evaluate", table, *NANO, "--json", "--split", "test")
    written(
        folder / "t.csv", [row for row in rows if row[2] == "Train"], ("path", "label", "split")
    )
    without = cvt("evaluate", table, *NANO)
    untested = cvt("evaluate", table, *NANO, "--split", "test")
    written(folder / "t.csv", [*rows, ("cat/000.png", "cat", "trian")], ("path", "label", "split"))
    unknown = cvt("evaluate", table, *NANO)

    assert planned.json["data"]["train_n"] == 9 and planned.json["data"]["val_n"] == 5
    assert not planned.json["data"]["val_set_aside"]
    assert "parts: train 9, val 5, test 1" in planned.stderr
    assert evaluated.json["n"] == 5
    assert f"not used: the rows of `test` in `{table}`; --split test takes" in evaluated.stderr
    assert (tested.json["n"], tested.json["split"]) == (1, "test")
    assert without.exit_code == untested.exit_code == 1
    assert f"--split test: `{table}` has `train` but no part `test`" in untested.stderr
    assert "has rows of `train` but neither `val` nor `test` to evaluate" in without.stderr
    assert "--columns split=" in without.stderr
    assert unknown.exit_code == 1
    assert "`trian` in `split`" in unknown.stderr and "1 image, line 17; accepted" in unknown.stderr


@pytest.mark.parametrize(
    ("header", "told", "said"),
    [
        (
            ("path", "label", "class"),
            [],
            "`label` and `class` of `t.csv` could both be the label\n\nhint: say which: --columns "
            "label=label",
        ),
        (("path", "filename", "label"), [], "`path` and `filename` of `t.csv` could both be the"),
        (
            ("path", "label", "z"),
            ["--columns", "label=Labels"],
            "--columns label=Labels: `t.csv` has no column `Labels`; it has `path`, `label`, `z`",
        ),
        (
            ("path", "label", "z"),
            ["--columns", "label=LABEL"],
            "hint: `label` is near it",
        ),
        (("path", "a", "b"), [], "no column of `t.csv` is known as the label by its name; it has"),
        (("cat/1.png", "cat", "x"), [], "hint: its first line must name its columns"),
        (("path", "label", "label"), [], "`t.csv` has two columns that are called `label`"),
        (("path", "label", "weight"), [], "line 2 has the weight '0'; accepted are numbers above"),
    ],
)
def test_columns_that_cannot_be_told_are_refused_with_those_that_there_are(
    cvt, folder: Path, monkeypatch: pytest.MonkeyPatch, header, told: list[str], said: str
) -> None:
    monkeypatch.chdir(folder)
    written(Path("t.csv"), [(path, label, "0") for path, label in ROWS], header)

    result = cvt("evaluate", "t.csv", *NANO, *told)

    assert result.exit_code == 1
    assert said in result.stderr


def test_parts_that_no_column_can_have_are_a_usage_error(cvt, folder: Path) -> None:
    table = written(folder / "t.csv", ROWS, ("path", "label"))

    for told, said in (
        ("colour=x", "the parts are path, label, split, group, weight"),
        ("path", "the parts are path, label, split, group, weight"),
        ("path=a,path=b", "names two columns as the path"),
    ):
        result = cvt("evaluate", table, *NANO, "--columns", told)

        assert result.exit_code == 2 and said in result.stderr


def test_columns_are_guessed_by_their_names_or_named(cvt, folder: Path) -> None:
    rows = [(path, label, "a", "b") for path, label in ROWS]
    table = written(folder / "t.csv", rows, ("Image_Path", "Label", "species", "group"))

    guessed = cvt("evaluate", table, *NANO, "--columns", "label=Label,group=")
    named = cvt("evaluate", table, *NANO, "--columns", "label=Label,group=species")

    assert "columns: path `Image_Path`, label `Label`; guessed by name: path" in guessed.stderr
    assert "group " not in guessed.stdout
    assert "group `species`; guessed by name: path; 1 group" in named.stderr
    assert "group   a:" in named.stdout


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfpath,label\r\n" + b"".join(f"{a},{b}\r\n".encode() for a, b in ROWS),
        b"path;label\n\n" + b"".join(f'"{a}";{b}\n\n'.encode() for a, b in ROWS),
        "path,label\n".encode("utf-16")
        + "".join(f"{a},{b}\n" for a, b in ROWS).encode("utf-16-le"),
        b"path,label\r" + b"".join(f"./{a},{b}\r".encode() for a, b in ROWS),
        b"path,label\n" + b"".join(f"{a},{b}\n".replace("/", "\\").encode() for a, b in ROWS),
    ],
    ids=["mark and Windows' line ends", "semicolons, empty lines", "UTF-16", "old Mac", "Windows"],
)
def test_tables_of_other_programs_are_read(cvt, folder: Path, content: bytes) -> None:
    (folder / "t.csv").write_bytes(content)

    result = cvt("evaluate", folder / "t.csv", *NANO, "--json")

    assert result.exit_code == 0, result.stderr
    assert result.json["n"] == 15 and not result.json["n_failed"]


def test_a_path_that_is_missing_is_reported_with_its_line(cvt, folder: Path) -> None:
    rows = [*ROWS[:3], ("cat/gone.png", "cat"), ("dog/odd.png", "dog"), *ROWS[8:]]
    (folder / "dog" / "odd.png").write_bytes(b"no picture")
    table = written(folder / "t.csv", rows, ("path", "label"))

    evaluated = cvt("evaluate", table, *NANO, "--json")
    planned = cvt("finetune", table, "--variant", "nano", "--dry-run")
    predicted = cvt("predict", f"@{table}", *NANO)

    said = f"no such file, line 5 of `{table}`"
    assert evaluated.exit_code == 1
    assert evaluated.json["n"] == 12 and evaluated.json["n_failed"] == 2
    for result in (evaluated, predicted):
        assert f"`{folder / 'cat/gone.png'}`: {said}" in result.stderr
        assert f"`{folder / 'dog/odd.png'}`: not an image" in result.stderr
    assert f"2 left out, cannot be read: cat/gone.png: {said}; dog/odd.png: not" in planned.stderr


def test_a_folder_that_has_none_of_the_paths_is_an_error_that_names_one(
    cvt, folder: Path, tmp_path: Path
) -> None:
    table = written(tmp_path / "t.csv", ROWS, ("path", "label"))

    result = cvt("evaluate", table, *NANO)
    told = cvt("evaluate", table, *NANO, "--images", folder, "--json")

    assert result.exit_code == 1
    assert f"such as `{tmp_path / 'cat/000.png'}`, line 2" in result.stderr
    assert "hint: say with --images FOLDER which folder the paths start from" in result.stderr
    assert told.json["n"] == 15


@pytest.mark.parametrize("named", ["cat_0", "cat_0.png", "cat/cat_0"])
def test_paths_that_lack_a_suffix_or_a_folder_are_those_of_the_images_of_these_names(
    tmp_path: Path, named: str
) -> None:
    images = [f"{name}/{name}_{number}.png" for name in ("cat", "dog") for number in range(3)]
    for image in images:
        (tmp_path / image).parent.mkdir(exist_ok=True)
        (tmp_path / image).write_bytes(picture(1))
    rows = [(named.replace("cat", image[:3]).replace("0", image[8]), "x") for image in images]
    table = written(tmp_path / "t.csv", rows, ("path", "label"))
    said: list[str] = []

    data = open_part(table, ["train"], Told(), said.append)
    (tmp_path / "cat" / "old").mkdir()
    for twice in ("cat/cat_2.webp", "cat/old/cat_2.png"):
        (tmp_path / twice).write_bytes(picture(1))
    written(table, rows[::-1], ("path", "label"))

    assert data is not None and list(data.names) == images
    assert said[-1] == (
        f"paths are completed by the images in `{tmp_path}`: `{named}` is `{images[0]}` there"
    )
    with pytest.raises(DataError, match=r"is not there in .*, and may be `cat/.*` or `cat/"):
        open_part(table, ["train"], Told(), said.append)


@pytest.mark.parametrize(
    ("images", "said", "hint"),
    [
        ("i.zip", "`i.zip` is a file, and no folder", "unpack it, and name the folder"),
        ("http://host/i", "`http://host/i` is an address, and no folder", "fetch the images"),
        ("gone", "`gone` is not there", "give --images FOLDER"),
    ],
)
def test_images_that_are_in_no_folder_are_refused_as_what_they_are(
    cvt, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images, said, hint
) -> None:
    monkeypatch.chdir(tmp_path)
    table = written(tmp_path / "t.csv", ROWS, ("path", "label"))
    (tmp_path / "i.zip").write_bytes(b"PK")

    for command in ("evaluate", "finetune"):
        result = cvt(command, table, *NANO, "--images", images)

        assert result.exit_code == 1
        assert f"error: --images: {said}\n" in result.stderr and f"hint: {hint}" in result.stderr


def test_rows_against_each_other_are_refused_and_repeated_ones_left_out(cvt, folder: Path) -> None:
    table = written(folder / "t.csv", [*ROWS, *ROWS[:2]], ("path", "label"))
    repeated = cvt("evaluate", table, *NANO, "--json")
    written(table, [*ROWS, ("./cat/001.png", "dog")], ("path", "label"))

    against = cvt("evaluate", table, *NANO)

    assert repeated.json["n"] == 15
    assert f"2 rows of `{table}` repeat others and are left out: lines 17, 18" in repeated.stderr
    assert against.exit_code == 1
    assert "`cat/001.png` is `cat` in line 3 and `dog` in line 17" in against.stderr


@pytest.mark.parametrize(
    ("rows", "header", "said"),
    [
        ([*ROWS, ("cat//./001.png", "dog")], ("path", "label"), "`cat` in line 3 and `dog` in"),
        ([(p, c, p) for p, c in [*ROWS, ("./././cat/001.png", "cat")]], ("path", "label", "group"),
         "two groups: `cat/001.png` is `cat/001.png` in line 3 and `./././cat/001.png` in line 17"),
        ([(p, c, 1) for p, c in ROWS] + [("cat/001.png", "cat", 2)], ("path", "label", "weight"),
         "two weights: `cat/001.png` is `1` in line 3 and `2` in line 17"),
    ],
)  # fmt: skip
def test_rows_that_give_one_image_two_labels_groups_or_weights_are_refused_however_it_is_written(
    cvt, folder: Path, rows: list[tuple[Any, ...]], header: tuple[str, ...], said: str
) -> None:
    result = cvt("evaluate", written(folder / "t.csv", rows, header), *NANO)

    assert result.exit_code == 1 and said in result.stderr


@pytest.mark.parametrize("label", ["cat", "dog"])
@pytest.mark.parametrize(
    "written_as",
    ["{folder}/cat/001.png", "dog/../cat/001.png", "file://{folder}/cat/001.png"],
)
def test_one_file_is_one_image_from_whichever_folder_its_path_begins(
    cvt, folder: Path, written_as: str, label: str
) -> None:
    rows = [*ROWS, (written_as.format(folder=folder), label)]

    result = cvt("evaluate", written(folder / "t.csv", rows, ("path", "label")), *NANO, "--json")

    if label == "cat":
        assert result.json["n"] == 15 and "1 row of" in result.stderr
    else:
        assert "`cat/001.png` is `cat` in line 3 and `dog` in line 17" in result.stderr


def test_paths_up_through_a_link_are_told_apart_by_where_they_lead(cvt, folder: Path) -> None:
    (folder / "linked").symlink_to(class_folders(folder.parent / "other" / "x", {"cat": 1}))
    class_folders(folder.parent / "other", {"cat": 2})
    rows = [*ROWS, ("linked/../cat/001.png", "cat")]

    result = cvt("evaluate", written(folder / "t.csv", rows, ("path", "label")), *NANO, "--json")

    assert result.json["n"] == 16


def test_a_row_is_a_repeated_one_also_where_one_of_another_part_is_between(
    cvt, folder: Path
) -> None:
    parts = [("cat/001.png", "cat", part) for part in ("test", "train", "test", "train")]
    rows = [(path, label, "test") for path, label in ROWS if path != "cat/001.png"]
    table = written(folder / "t.csv", [*parts, *rows], ("path", "label", "split"))

    result = cvt("evaluate", table, *NANO, "--json")

    assert result.json["n"] == 15
    assert "2 rows of" in result.stderr and "left out: lines 4, 5" in result.stderr


def test_a_label_that_is_near_another_one_is_named_and_not_merged(cvt, folder: Path) -> None:
    rows = [*ROWS[:-1], (ROWS[-1][0], "Ship ")]
    table = written(folder / "t.csv", rows, ("path", "label"))

    planned = cvt("finetune", table, "--variant", "nano", "--dry-run")
    evaluated = cvt("evaluate", table, *NANO)

    assert "`ship` (3) and `Ship ` (1) in `label`" in planned.stderr
    assert planned.exit_code == 1
    assert f"too few images in `{table}`: class `Ship ` with 1" in planned.stderr
    assert evaluated.exit_code == 1
    assert "`Ship ` differs from the model's `ship` only in blanks, the" in evaluated.stderr


def test_labels_that_are_missing_or_not_in_utf8_are_refused_with_their_lines(
    cvt, folder: Path
) -> None:
    table = written(folder / "t.csv", [*ROWS[:4], ("cat/005.png", " ")], ("path", "label"))
    missing = cvt("evaluate", table, *NANO)
    table.write_bytes("path,label\ncat/000.png,Bär\n".encode("latin-1"))

    latin = cvt("evaluate", table, *NANO)

    assert missing.exit_code == latin.exit_code == 1
    assert f"no label in `label` of `{table}` for 1 image, line 6" in missing.stderr
    assert "`B\\udce4r` in `label`" in latin.stderr and "is not in UTF-8: line 2" in latin.stderr
    assert "iconv" in latin.stderr


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", "path,label\ncat/000.png,cat,x\n", "line 2 has 3 values, the first line names 2"),
        ("t.csv", 'path,label\n"cat"x,cat\n', "line 2: ',' expected after '\"'"),
        ("t.csv", "path,label\n", "has no row below the names of its columns"),
        ("t.csv", "", "is empty: its first line must name its columns"),
        ("t.csv", "path,label,weight\ncat/000.png,cat,1e308\n", "line 2 has the weight '1e308'"),
        ("t.jsonl", '{"path": "cat/000.png", "label": "cat"}\n{"pa', "line 2 is no JSON"),
        (
            "t.jsonl",
            '{"path": "cat/000.png", "label": "cat", "label": "dog"}\n',
            "line 1: it has 'label' twice",
        ),
        ("t.jsonl", '["cat/000.png", "cat"]\n', "line 1 is no JSON object such as"),
        ("t.jsonl", '{"path": 1, "label": "cat"}\n', "line 1 has 1 as its path"),
        ("t.jsonl", '{"path": "cat/000.png", "label": {}}\n', "line 1 has {} as its label"),
        *(
            (
                "t.jsonl",
                f'{{"path": "cat/000.png", "label": "cat", "weight": {weight}}}\n',
                f"line 1 has the weight {said}",
            )
            for weight, said in (("true", "True; accepted are"), ("1" + 400 * "0", "inf"))
        ),
        ("t.parquet", "PAR1", "cannot be read as Parquet"),
        ("gone.csv", None, "No such file"),
    ],
)
def test_a_table_that_is_damaged_is_an_error_that_says_where(
    cvt, folder: Path, name: str, content: str | None, said: str
) -> None:
    if content is not None:
        (folder / name).write_text(content)

    result = cvt("evaluate", folder / name, *NANO)

    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and said in result.stderr


@pytest.mark.parametrize(
    ("late", "told", "said"),
    [
        ("split", [], "the column `split`, which could be the split, first comes near line 32769"),
        ("Patient ID", [], "`Patient ID`, which could be the group, first comes near line 32769"),
        ("split", ["--columns", "split="], None),
        ("remark", [], None),
    ],
)
def test_a_column_that_first_comes_far_down_is_not_passed_over(
    cvt, folder: Path, late: str, told: list[str], said: str | None
) -> None:
    rows = [{"path": "cat/000.png", "label": "cat"}] * table_files.ROWS
    last = {"path": "dog/000.png", "label": "dog", late: "test"}
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, last]))

    result = cvt("evaluate", folder / "t.jsonl", *NANO, *told)

    if said is None:
        assert result.exit_code == 0, result.stderr
    else:
        assert result.exit_code == 1 and said in result.stderr


def labels_of(document: dict[str, Any]) -> list[list[str]]:
    return [[p["label"] for p in one["predictions"]] for one in document["results"]]


def test_predict_reads_the_paths_of_a_table_that_start_from_its_folder(
    cvt, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = []
    for table in tables(folder):
        result = cvt("predict", f"@{table}", *NANO, "--json")
        assert result.exit_code == 0, result.stderr
        answers.append(labels_of(result.json))
    monkeypatch.chdir(folder)
    (folder / "list.csv").write_text("cat/000.png\ncat/001.png\n")  # a plain list, as before

    plain = cvt("predict", "@list.csv", *NANO, "--json")

    assert all(answer == answers[0] and len(answer) == 15 for answer in answers)
    assert labels_of(plain.json) == answers[0][:2]


def test_a_column_of_true_and_false_in_parquet_is_none_of_weights(cvt, tmp_path: Path) -> None:
    images = {"image": [picture(1), picture(2)], "label": ["cat", "dog"], "weight": [True, True]}
    parquet.write_table(pyarrow.table(images), tmp_path / "t.parquet")

    result = cvt("evaluate", tmp_path / "t.parquet", *NANO)

    assert result.exit_code == 1
    assert "row 1 has the weight True; accepted are numbers above 0" in result.stderr


def test_pictures_in_parquet_that_are_none_are_reported_by_their_rows(cvt, tmp_path: Path) -> None:
    pictures = [picture(1), b"no picture", None, picture(4)]
    table = pyarrow.table({"image": pictures, "label": ["cat", "dog", "dog", "cat"]})
    parquet.write_table(table, tmp_path / "t.parquet")

    result = cvt("evaluate", tmp_path / "t.parquet", *NANO, "--json")

    assert result.exit_code == 1
    assert result.json["n"] == 4 and result.json["n_failed"] == 2
    assert "row 2`: not an image" in result.stderr and "row 3`: empty (0 bytes)" in result.stderr


@pytest.mark.parametrize(
    ("binary", "slash"), [(True, "/"), (False, "/"), (True, "\\")], ids=["some", "all", "Windows"]
)
def test_a_picture_that_parquet_names_without_its_bytes_is_read_from_its_path(
    cvt, folder: Path, tmp_path: Path, binary: bool, slash: str
) -> None:
    """As `datasets` writes what it does not embed; where all are so, with pandas' type of them."""
    paths = [path.replace("/", slash) for path, _ in ROWS]
    pictures: list[dict[str, Any]] = [{"bytes": None, "path": path} for path in paths]
    if binary:
        pictures[3]["bytes"] = (folder / ROWS[3][0]).read_bytes()
        pictures[3]["path"] = "of no file.png"
    # Beside it a column of paths, which names the pictures and leads nowhere.
    urls = [f"nowhere/{number}" for number in range(len(ROWS))]
    columns = {"image": pictures, "label": [label for _, label in ROWS], "url": urls}
    parquet.write_table(pyarrow.table(columns), folder / "t.parquet")
    parquet.write_table(pyarrow.table(columns), tmp_path / "elsewhere.parquet")
    short = ["--variant", "nano", "--epochs", 1, "--batch-size", 6, "--workers", 0]

    right = labels_of(cvt("predict", folder, *NANO, "--json").json)
    predicted = cvt("predict", f"@{folder / 't.parquet'}", *NANO, "--json")
    counted = cvt("evaluate", folder / "t.parquet", *NANO, "--json")
    of_others = ["--images", folder, "-o", tmp_path / "run"]
    trained = cvt("finetune", tmp_path / "elsewhere.parquet", *short, *of_others)
    lost = cvt("evaluate", tmp_path / "elsewhere.parquet", *NANO)

    assert labels_of(predicted.json) == right
    assert (counted.json["n"], counted.json["n_failed"]) == (15, 0), counted.stderr
    assert (
        counted.json["top1_correct"]
        == cvt("evaluate", folder, *NANO, "--json").json["top1_correct"]
    )
    assert trained.exit_code == 0 and "unreadable" not in trained.stderr, trained.stderr
    assert lost.exit_code == 1
    told = "no such file, row 1 of" if binary else "none of the first 15 images of the table is"
    assert told in lost.stderr


def test_what_a_parquet_file_may_hold_in_place_of_pictures_and_classes_is_refused(
    cvt, tmp_path: Path
) -> None:
    pictures, labels = [picture(1), picture(2)], ["cat", "dog"]
    twice = {"info": {"features": {"label": {"names": ["cat", "cat"]}}}}
    numbers = pyarrow.table({"path": ["1.png", "2.png"], "label": [0, 1]})
    tables = {
        "nested": pyarrow.table({"image": [{"bytes": {"bytes": b}} for b in pictures],
                                 "label": labels}),
        "same": pyarrow.Table.from_arrays([labels, labels, labels], ["path", "label", "label"]),
        "bytes": pyarrow.table({"path": ["1.png", "2.png"], "label": [b"cat", b"dog"]}),
        "twice": numbers.replace_schema_metadata({"huggingface": json.dumps(twice)}),
    }  # fmt: skip
    said = {}
    for name, table in tables.items():
        parquet.write_table(table, tmp_path / f"{name}.parquet")
        result = cvt("evaluate", tmp_path / f"{name}.parquet", *NANO)
        assert result.exit_code == 1
        said[name] = result.stderr

    assert "row 1 has {'bytes': {'bytes': b'" in said["nested"] and len(said["nested"]) < 300
    assert "has two columns that are called `label`" in said["same"]
    assert "calls two classes of its column `label` `cat`" in said["twice"]
    assert "the label `label` of" in said["bytes"] and "is a column of bytes" in said["bytes"]


def test_pictures_of_a_process_that_was_killed_are_removed_by_the_next_one(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    table = pyarrow.table({"image": [picture(n) for n in (1, 4)], "label": ["cat", "dog"]})
    parquet.write_table(table, tmp_path / "t.parquet")
    code = (
        "import os, sys; from pathlib import Path; from cvt_cli.images.parquet import Parquet\n"
        "kept = Parquet(Path(sys.argv[1])).pictures('image'); os.kill(os.getpid(), 9)"
    )
    own = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    subprocess.run([sys.executable, "-c", code, tmp_path / "t.parquet"], env=own, check=False)
    [left] = (tmp_path / "tmp").iterdir()
    private = left.stat().st_mode & 0o077 == 0

    result = cvt("evaluate", tmp_path / "t.parquet", *NANO, "--json")

    assert private and result.json["n"] == 2 and not left.exists()


def test_a_pattern_that_tells_groups_goes_before_a_column_of_that_name(
    cvt, folder: Path, tmp_path: Path
) -> None:
    rows = [(path, name, f"p{number % 3}") for number, (path, name) in enumerate(ROWS)]
    table = written(folder / "t.csv", rows, ("path", "label", "patient"))
    pattern = ["--group-by", r"/(\d+)\.png"]

    told = cvt("evaluate", table, *NANO, *pattern, "--json")

    assert told.exit_code == 0, told.stderr
    names = {group["group"] for group in told.json["groups"]["groups"]}
    assert names == {f"{number:03}" for number in range(6)}
    run = cvt(
        "finetune", table, *NANO, *pattern, "--recipe", "linear-probe",
        "--val-fraction", 0.4, "-o", tmp_path / "r",
    )  # fmt: skip
    assert run.exit_code == 0, run.stderr
    held_out = json.loads((tmp_path / "r" / "split.json").read_text())["validation"]
    held = {Path(name).stem for name in held_out}
    assert json.loads((tmp_path / "r" / "plan.json").read_text())["data"]["groups"] == pattern[1]
    assert held and held_out == [path for path, _ in ROWS if Path(path).stem in held]
    groups = written(tmp_path / "g.csv", [(row[0], row[2]) for row in rows], ("path", "group"))
    for more in (pattern, ["--groups", groups]):
        refused = cvt("evaluate", table, *NANO, *more, "--columns", "group=patient")
        assert refused.exit_code == 2 and "both define groups" in refused.stderr


def test_a_folder_of_images_is_refused_of_a_table_that_holds_them(cvt, folder: Path) -> None:
    held = next(path for path in tables(folder) if path.name == "bytes.parquet")

    refused = cvt("evaluate", held, *NANO, "--images", folder)

    assert refused.exit_code == 2
    assert f"--images: `{held}` holds the pictures themselves, and no paths" in refused.stderr


def test_a_table_is_found_from_another_working_folder_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(folder / "t.csv", ROWS, ("path", "label"))
    monkeypatch.chdir(folder.parent)
    first = evaluate("images/t.csv", "cvt-nano-cifar10").metrics

    monkeypatch.chdir(folder)
    again = evaluate("t.csv", "cvt-nano-cifar10").metrics

    assert isinstance(first, Metrics) and isinstance(again, Metrics)
    assert first.failures == again.failures == () and again.top1 == first.top1


@pytest.mark.parametrize("written_as", ["Sequence", "List", "list"])
def test_names_of_several_classes_an_image_are_those_that_datasets_keeps(
    folder: Path, written_as: str
) -> None:
    names = ["ship", "dog", "cat"]
    kept: Any = {"names": names, "_type": "ClassLabel"}
    kept = [kept] if written_as == "list" else {"feature": kept, "_type": written_as}
    paths, labels = (list(column) for column in zip(*ROWS, strict=True))
    rows = pyarrow.table({"path": paths, "labels": [[names.index(label)] for label in labels]})
    about = {"info": {"features": {"labels": kept}}}
    schema = rows.schema.with_metadata({"huggingface": json.dumps(about)})
    parquet.write_table(rows.cast(schema), folder / "t.parquet")

    found = open_part(folder / "t.parquet", ["train"], Told(), print)

    assert found is not None and found.several and found.classes == ("cat", "dog", "ship")


def test_rows_of_a_tsv_are_not_lost_in_a_value_that_begins_with_a_quotation_mark(
    folder: Path,
) -> None:
    places = ["", '"two\nlines"', '"a ""b"" c"', '5" pipe', *[""] * 11]
    lines = [f"{path}\t{label}\t{place}" for (path, label), place in zip(ROWS, places, strict=True)]
    table = folder / "t.tsv"

    for first, last, line in (("", "", 0), ('"Big Hill', 'Tree"', 10), ('"old" mill', "", 10)):
        rows = [*lines[:8], lines[8] + first, *lines[9:12], lines[12] + last, *lines[13:]]
        table.write_text("path\tlabel\tplace\n" + "\n".join(rows) + "\n")
        if not line:
            data = open_part(table, ["train"], Told(), print)
            assert data is not None and len(data) == 15
            continue
        with pytest.raises(DataError, match=f"line {line + 1}: ") as caught:
            open_part(table, ["train"], Told(), print)
        assert "a value that begins with a quotation mark ends with one" in str(caught.value.hint)


def test_a_quotation_mark_that_is_not_closed_is_told(cvt, folder: Path) -> None:
    (folder / "t.csv").write_text('path,label\n"cat/001.png,cat\ndog/001.png,dog\n')

    refused = cvt("evaluate", folder / "t.csv", *NANO)

    assert refused.exit_code == 1
    assert "hint: a quotation mark is not closed, in this line or one before it" in refused.stderr


def test_a_table_that_can_be_read_only_once_is_refused(cvt, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")

    result = cvt("evaluate", tmp_path / "t.csv", *NANO)

    assert result.exit_code == 2 and "is no regular file" in result.stderr


def test_an_option_of_tables_is_refused_for_folders(cvt, folder: Path) -> None:
    for command in ("evaluate", "finetune"):
        result = cvt(command, folder, "--columns", "path=x")

        assert result.exit_code == 2
        assert f"--columns: it is of a table of images, and `{folder}` is none" in result.stderr


def test_images_in_a_folder_beside_a_table_bring_its_name(cvt, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_text("file_name,label\n1.png,cat\n")

    result = cvt("evaluate", tmp_path, *NANO)

    assert result.exit_code == 1
    assert f"hint: if a table has their classes, name it: {tmp_path}/metadata.csv" in result.stderr


def test_the_weight_of_an_image_counts_in_training(cvt, folder: Path, tmp_path: Path) -> None:
    short = ["--variant", "nano", "--epochs", 1, "--batch-size", 6, "--warmup-epochs", 0]
    trained = {}
    for name, weights in (("none", None), ("equal", (3, 3)), ("some", (1, 5))):
        header = ("path", "label", *([] if weights is None else ["weight"]))
        rows = [row if weights is None else (*row, weights[i % 2]) for i, row in enumerate(ROWS)]
        table, run = written(folder / f"{name}.csv", rows, header), tmp_path / name
        result = cvt("finetune", table, *short, "-o", run, "--workers", 0)
        assert result.exit_code == 0, result.stderr
        trained[name] = load_file(run / "last" / "model.safetensors")["classifier.weight"]

    assert trained["equal"].allclose(trained["none"], atol=1e-5)
    assert not trained["some"].allclose(trained["none"], atol=1e-5)


def test_a_run_says_by_which_columns_images_were_weighed_and_held_out(
    cvt, folder: Path, tmp_path: Path
) -> None:
    """They are guessed by their names, so that no option tells of them afterwards."""
    rows = [(*row, f"p{number % 5}", 1 + number % 3) for number, row in enumerate(ROWS)]
    weighed = written(folder / "t.csv", rows, ("path", "label", "patient", "weight"))
    probe, columns = ["--recipe", "linear-probe"], ["--columns", "group=,weight="]

    planned = cvt("finetune", weighed, *NANO, *probe, "--dry-run")
    runs = [
        cvt("finetune", weighed, *NANO, *probe, *told, "-o", tmp_path / name)
        for name, told in (("with", []), ("without", columns))
    ]

    assert [run.exit_code for run in runs] == [0, 0], runs[0].stderr
    plans, cards = (
        [(tmp_path / name / file).read_text() for name in ("with", "without")]
        for file in ("plan.json", "best/README.md")
    )
    data, bare = (json.loads(plan)["data"] for plan in plans)
    assert (data["groups"], data["val_groups"], data["image_weights"]) == ("patient", 2, "weight")
    assert [bare[key] for key in ("groups", "val_groups", "image_weights")] == [None] * 3
    for said in (planned.stderr, runs[0].stderr):
        assert "6 validation images (held out, 2 whole groups of `patient`) in" in said
        assert "an image's loss counts by its weight in `weight`" in said
    assert "6 images, set aside from the training images, 2 whole groups of `patient`" in cards[0]
    assert "| image weights | of the column weight |" in cards[0]
    assert "whole group" not in cards[1] and "image weights" not in cards[1]


@pytest.mark.parametrize("several", [False, True])
def test_uneven_weights_are_not_taken_for_a_loss_that_diverges(
    cvt, folder: Path, tmp_path: Path, several: bool
) -> None:
    """One image may weigh more than all others, and all classes less than their absence."""
    short = ["--variant", "nano", "--epochs", 1, "--batch-size", 2, "--warmup-epochs", 0,
             "--workers", 0, "--allow-overlap"]  # fmt: skip
    parts = ["val" if i % 5 == 0 else "train" for i in range(len(ROWS))]
    training = [i for i, part in enumerate(parts) if part == "train"]
    heavy = training[np.random.default_rng([0, 0, 0]).permutation(len(training))[0]]  # comes first
    weights = [1000 if i == heavy and not several else 1 for i in range(len(ROWS))]
    labels = ["cat|dog" if several and i in (1, 7) else label for i, (_, label) in enumerate(ROWS)]
    if several:
        short += ["--class-weights", "cat=0.1,dog=0.1,ship=0.1"]
    paths = [path for path, _ in ROWS]
    rows = list(zip(paths, labels, parts, weights, strict=True))
    table = written(folder / "uneven.csv", rows, ("path", "label", "split", "weight"))

    result = cvt("finetune", table, *short, "-o", tmp_path / "run")

    assert result.exit_code == 0, result.stderr


def test_a_table_of_tens_of_thousands_of_columns_is_read_at_once(cvt, folder: Path) -> None:
    others = [f"measure {number}" for number in range(30_000)]
    row = (*ROWS[0], *["x"] * len(others))
    table = written(folder / "wide.csv", [row], ("file", "species", *others))

    started = time.process_time()
    result = cvt("evaluate", table, "--model", "cvt-nano-cifar10", "--images", folder)

    assert result.exit_code == 0, result.stderr
    assert time.process_time() - started < 8  # it took 13 s to look for two columns of one name


def test_a_path_that_no_file_can_have_is_told_with_its_line(cvt, folder: Path) -> None:
    """Half of a character beyond 16 bits, as JavaScript cuts names."""
    rows = [("\ud83d.png", "cat"), *ROWS]
    table = folder / "t.jsonl"
    table.write_text("".join(json.dumps({"path": a, "label": b}) + "\n" for a, b in rows))

    result = cvt("evaluate", table, "--model", "cvt-nano-cifar10")

    assert result.exit_code == 1
    assert r"line 1 has '\ud83d.png' as its path" in result.stderr
