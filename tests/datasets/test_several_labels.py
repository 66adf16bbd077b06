"""Tables in which an image has several classes: when they are read so, and what is wrong there."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from cvt_cli.base.errors import DataError
from cvt_cli.datasets import several_labels
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.datasets.layouts import open_dataset, open_given
from cvt_cli.datasets.table_sets import Told
from small_sets import class_folders

SETS = ["a|b", "", "a", "b|a", "c", "a|c", "b", ""]


@pytest.fixture
def names(tmp_path: Path) -> list[str]:
    class_folders(tmp_path, {"x": len(SETS)})
    return [f"x/{number:03}.png" for number in range(len(SETS))]


def opened(path: Path, **told: Any) -> tuple[LabelledImages, list[str]]:
    said: list[str] = []
    return open_dataset(str(path), "train", Path(), say=said.append, told=Told(**told)), said


def csv_of(folder: Path, names: list[str], labels: list[str], head: str = "path,labels") -> Path:
    rows = [head, *(f"{name},{label}" for name, label in zip(names, labels, strict=True))]
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    return folder / "t.csv"


WANTED = [[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_texts_lists_and_a_column_a_class_give_the_same_labels(
    tmp_path: Path, names: list[str]
) -> None:
    lists = [label.split("|") if label else [] for label in SETS]
    csv_of(tmp_path, names, SETS)
    (tmp_path / "t.jsonl").write_text(
        "".join(
            json.dumps({"path": n, "tags": some}) + "\n"
            for n, some in zip(names, lists, strict=True)
        )
    )
    parquet.write_table(pyarrow.table({"path": names, "labels": lists}), tmp_path / "t.parquet")
    marks = ["path,patient,c,a,b"]
    marks += [
        f"{n},{i},{c},{a},{b}"
        for i, (n, (a, b, c)) in enumerate(zip(names, WANTED, strict=True), start=5)
    ]
    (tmp_path / "columns.csv").write_text("\n".join(marks) + "\n")

    for table in ("t.csv", "t.jsonl", "t.parquet", "columns.csv"):
        images, said = opened(tmp_path / table)

        assert images.several and images.labels.dtype == np.uint8, table
        assert images.classes == ("a", "b", "c")
        assert images.labels.tolist() == WANTED
        assert any("2 have none, 3 have one, 3 have several" in line for line in said)
        assert "images of each class: `a` 4, `b` 3, `c` 2" in said
    assert "a column of 0 and 1 for each class" in " ".join(said)
    for written in (str, json.dumps, lambda some: json.dumps({"choices": some}) if some else "b"):
        quoted = ['"{}"'.format(written(some).replace('"', '""')) for some in lists]
        wanted = [row if sum(row) or written(["a"])[0] == "[" else [0, 1, 0] for row in WANTED]
        assert opened(csv_of(tmp_path, names, quoted))[0].labels.tolist() == wanted
    for other in ("['a' 'b']", '"[1, 0]"', '"[a, b]"'):  # of one name, perhaps
        images, said = opened(csv_of(tmp_path, names, ["a", "b", other, other, *"abab"]))
        assert not images.several and "though it looks like a list" in said[-1]
    told, _ = opened(tmp_path / "columns.csv", columns="label=a,b")
    assert told.classes == ("a", "b") and told.labels.tolist() == [row[:2] for row in WANTED]


def test_a_bar_is_part_of_a_name_unless_names_recur_or_the_user_says_so(
    tmp_path: Path, names: list[str]
) -> None:
    alone = ["a|b", "c", "a|b", "c", "c", "c", "d|e", "d|e"]
    table = csv_of(tmp_path, names, alone)

    images, said = opened(table)
    told, _ = opened(table, separator="|")
    as_they_are, _ = opened(csv_of(tmp_path, names, [s or "a" for s in SETS]), separator="none")
    semicolons, _ = opened(
        csv_of(tmp_path, names, [s.replace("|", " ; ") for s in SETS]), separator=";"
    )

    assert not images.several and images.classes == ("a|b", "c", "d|e")
    assert any("--separator '|' takes it as several" in line for line in said)
    assert told.several and told.classes == ("a", "b", "c", "d", "e")
    recurring = [label.replace("|", ";") for label in ["a|b", "b|c", "a", "b", "c", "c", "a", "b"]]
    noted, of_others = opened(csv_of(tmp_path, names, recurring))
    assert not noted.several
    assert any("`a;b` in" in line and "--separator ';' takes it as" in line for line in of_others)
    in_words = [label.replace(";", " ") for label in recurring]
    assert any("--separator ' '" in line for line in opened(csv_of(tmp_path, names, in_words))[1])
    dogs = ["big dog", "small dog", "lap dog", "guard dog", "dog house", "cat", "cat", "house"]
    assert "separator" not in "".join(opened(csv_of(tmp_path, names, dogs))[1])
    assert as_they_are.classes == ("a", "a|b", "a|c", "b", "b|a", "c")
    assert semicolons.labels.tolist() == WANTED


def test_a_table_with_one_class_in_each_row_can_be_read_as_one_of_single_labels(
    cvt, tmp_path: Path, names: list[str]
) -> None:
    rows = [f"{n},{i % 2}.0,{(i + 1) % 2}.0,0.0" for i, n in enumerate(names)]
    (tmp_path / "marks.csv").write_text("\n".join(["image,MEL,NV,UNK", *rows]) + "\n")
    lists = [json.dumps({"path": n, "labels": [["NV", "MEL"][i % 2]]}) for i, n in enumerate(names)]
    (tmp_path / "lists.jsonl").write_text("\n".join(lists) + "\n")

    for table in ("marks.csv", "lists.jsonl"):
        as_told, said = opened(tmp_path / table)
        one, also_said = opened(tmp_path / table, separator="none")
        probe = cvt("finetune", tmp_path / table, "--recipe", "linear-probe", "--dry-run")

        assert as_told.several and not one.several
        assert one.classes == ("MEL", "NV") and one.labels.tolist() == [1, 0] * 4
        assert "0 have several; --separator none takes the one of each as its class" in said[1]
        absent = "no image is of `UNK`: left out of the classes"
        assert (absent in said) == (absent in also_said) == (table == "marks.csv")
        assert "if each image of the table has one class: --separator none" in probe.stderr
    (tmp_path / "marks.csv").write_text("\n".join(["image,a,b,c", *rows, "x/1.png,0,0,0"]) + "\n")
    with pytest.raises(DataError, match="not one class of .* for 1 image, line 10"):
        opened(tmp_path / "marks.csv", separator="none")


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_class_is_not_left_out_for_a_cell_that_is_empty_or_a_count(
    cvt, tmp_path: Path, names: list[str], suffix: str
) -> None:
    def table(second: int | None) -> Path:
        columns: dict[str, list[Any]] = {"path": names, "site": list(range(3, len(names) + 3))}
        columns |= {c: [row[n] for row in WANTED] for n, c in enumerate("abc")}
        columns["b"][1] = second
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        path = tmp_path / f"t{suffix}"
        if suffix == ".parquet":
            parquet.write_table(pyarrow.table(columns), path)
        elif suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            lines = [list(columns), *(["" if v is None else v for v in r.values()] for r in rows)]
            path.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
        return path

    where = {".csv": "line 3", ".jsonl": "line 2", ".parquet": "row 2"}[suffix]
    for value in (None, 2):
        result = cvt("finetune", table(value), "--variant", "nano", "--dry-run")

        assert result.exit_code == 1
        assert "`b` may be the column of a class, with 0 and 1; " in result.stderr
        assert f"{where} has " in result.stderr
        assert "name those of these that are classes: --columns label=a,b,c" in result.stderr
    assert opened(table(1))[0].classes == ("a", "b", "c")


def test_findings_are_not_left_out_for_columns_that_are_complete(
    cvt, tmp_path: Path, names
) -> None:
    uncertain = ["1.0", "", "-1.0", "0.0", "", "", "1.0", ""]  # as CheXpert has them
    rows = zip(names, "01010101", "11110000", uncertain, uncertain[::-1], strict=True)
    lines = ["path,sex,frontal,edema,fracture", *map(",".join, rows)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")

    result = cvt("finetune", tmp_path / "t.csv", "--variant", "nano", "--dry-run")

    assert result.exit_code == 1
    assert "`edema` may be the column of a class, with 0 and 1; line 3 has ''" in result.stderr


def test_a_test_part_without_labels_is_neither_advised_nor_measured(
    cvt, tmp_path: Path, names: list[str]
) -> None:
    rows = [f"{name},{label},train" for name, label in zip(names, SETS, strict=True)]
    class_folders(tmp_path, {"y": 3})
    rows += [f"y/{number:03}.png,,test" for number in range(3)]
    (tmp_path / "t.csv").write_text("\n".join(["path,labels,split", *rows]) + "\n")
    model = ["--model", "cvt-nano-cifar10"]

    result = cvt("evaluate", tmp_path / "t.csv", *model, "--split", "test")
    told = [*model, "--epochs", 1, "--val-fraction", 0.4, "-o", tmp_path / "run"]
    trained = cvt("finetune", tmp_path / "t.csv", *told)

    assert result.exit_code == 1
    assert "no image of the part `test` in `t.csv` has a class: its 3 labels" in result.stderr
    assert trained.exit_code == 0, trained.stderr
    assert trained.stderr.splitlines()[-1].endswith("--split val")


def test_what_is_wrong_in_such_a_table_is_said_with_its_line(cvt, tmp_path: Path, names) -> None:
    def error(table: Path, *more: object) -> str:
        result = cvt("finetune", table, "--variant", "nano", "--dry-run", *more)
        assert result.exit_code in (1, 2)
        return result.stderr.splitlines()[0]

    table = csv_of(tmp_path, names, ["a|b", "a||b", *SETS[2:]])
    assert "`a||b` in `labels`" in error(table) and "line 3" in error(table)
    table = csv_of(tmp_path, names, SETS, "path,x|y")
    rows = [f"{n},{i % 2},{i // 4}" for i, n in enumerate(names)]
    table.write_text("\n".join(["path,x|y,z", *rows]) + "\n")
    assert "the class `x|y`" in error(table) and "has `|` in its name" in error(table)
    assert "--separator has no effect: the labels are a column" in error(table, "--separator", ";")
    table.write_text("\n".join(["path,q,z", *rows[:4], f"{names[4]},2,0", *rows[5:]]) + "\n")
    assert "`q` may be the column of a class, with 0 and 1; line 6 has '2'" in error(table)
    assert "line 6 has '2' for the class `q`; accepted are 0 and 1" in error(
        table, "--columns", "label=q,z"
    )
    table.write_text("\n".join(["path,camera,phone,laptop", *(f"{row},1" for row in rows)]) + "\n")
    assert "`camera` of" in error(table) and "could be the group, or a class as" in error(table)
    for told, classes in (("", ("camera", "laptop", "phone")), ("camera", ("laptop", "phone"))):
        assert opened(table, columns=f"group={told}")[0].classes == classes
    table = csv_of(tmp_path, [*names[:7], names[0]], SETS[:7] + ["a"])
    assert "gives 1 image two classes: `x/000.png` is `a|b` in line 2 and `a` in line 9" in error(
        table
    )
    lines = [json.dumps({"path": names[0], "label": ["a", ""]})]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    assert "line 1 has ['a', ''] as its labels, one of them empty" in error(tmp_path / "t.jsonl")


def test_both_sides_of_a_split_have_every_class_that_has_two_images() -> None:
    generator = np.random.default_rng(0)
    for seed in range(30):
        labels = (generator.random((40, 6)) < [0.5, 0.3, 0.2, 0.1, 0.06, 0.9]).astype(np.uint8)
        labels[:2, :] = np.eye(2, 6, dtype=np.uint8)[:, ::-1][:, :6] | labels[:2, :]
        labels[2:4] |= np.array([0, 0, 0, 1, 1, 1], np.uint8)
        sizes = labels.sum(axis=0)
        if (sizes < 2).any():
            continue
        images = LabelledImages(Path(), tuple("abcdef"), tuple(map(str, range(40))), labels)

        training, validation = images.split(0.1, seed)

        assert len(training) + len(validation) == 40
        assert (training.sizes > 0).all() and (validation.sizes > 0).all()
        again = images.split(0.1, seed)[1]
        assert again.names == validation.names


def test_images_are_stratified_by_the_rarest_of_their_classes() -> None:
    labels = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 1], [0, 0, 0], [1, 1, 0]], np.uint8)

    assert several_labels.strata(labels).tolist() == [1, 0, 2, 3, 1]


def test_counting_many_classes_takes_little_memory_beside_the_labels() -> None:
    labels = np.random.default_rng(0).integers(0, 2, (4000, 1500), np.uint8)
    counts = np.arange(4000)

    tracemalloc.start()
    strata = several_labels.strata(labels)
    sizes = several_labels.of_each_class(labels, counts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 6 * labels.size  # eight bytes for each of an image's classes would be more
    assert (strata[2000:] == several_labels.strata(np.concatenate([labels] * 2))[6000:]).all()
    assert (sizes == counts @ labels.astype(np.int64)).all()


def test_whole_groups_are_set_aside_and_folded_with_several_labels(cvt, tmp_path: Path) -> None:
    class_folders(tmp_path, {"x": 40})
    labels = ["a|b", "b", "a", "c|a"]
    rows = [f"x/{i:03}.png,{labels[i % 4]},g{i // 4}" for i in range(40)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,labels,group", *rows]) + "\n")

    images, _ = opened(table)
    training, validation = images.split(0.2, 0)

    assert not training.named_groups & validation.named_groups
    assert (training.sizes > 0).all() and (validation.sizes > 0).all()


def test_no_more_groups_are_set_aside_than_all_classes_need(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each group has all four classes, though none both images of no class and of `d` alone."""
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path, {"x": 100})
    sets = ["a|b|d", "c|d", "a|b", "b|c"]
    rows = [f"x/{i:03}.png,{[*sets, '' if i < 50 else 'd'][i % 5]},g{i // 10}" for i in range(100)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,labels,patient", *rows]) + "\n")
    images, _ = opened(table)
    told = [table, "--variant", "nano", "--epochs", 1, "--dry-run"]

    for seed in range(5):
        training, validation = images.split(0.1, seed)
        again = images.split(0.1, seed)[1]

        assert not training.named_groups & validation.named_groups
        assert (training.sizes > 0).all() and (validation.sizes > 0).all()
        assert len(validation) == 10 and again.names == validation.names
    as_told = cvt("finetune", *told)
    more = cvt("finetune", *told, "--val-fraction", 0.04)
    folds = cvt("finetune", *told, "--val-fraction", 0.04, "--folds", 2)

    assert as_told.exit_code == 0 and "are set aside" not in as_told.stderr
    assert "10 of 100 images are set aside to choose the best epoch by, more than" in more.stderr
    assert "of 50 images are set aside" in folds.stderr


def test_validation_images_have_the_training_images_columns(tmp_path: Path, names) -> None:
    splits = ["train"] * 5 + ["val"] * 3
    rows = [f"{n},{s},{p}" for n, s, p in zip(names, SETS, splits, strict=True)]
    table = tmp_path / "t.csv"
    table.write_text("\n".join(["path,labels,split", *rows]) + "\n")

    training, _ = opened(table)
    validation = open_given(str(table), "val", training)

    assert validation is not None and validation.classes == training.classes == ("a", "b", "c")
    assert validation.labels.tolist() == WANTED[5:]
