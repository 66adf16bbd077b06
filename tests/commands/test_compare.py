"""`cvt compare`: two predictions files of the same images."""

import csv
import json
import random
import re
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import typer
from PIL import Image
from pyarrow import parquet
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar
from typer.testing import CliRunner

from cvt_cli.base.errors import DataError, UsageError
from cvt_cli.base.package import installing
from cvt_cli.cli import _App
from cvt_cli.commands.compare import compare
from cvt_cli.evaluation import comparison
from cvt_cli.evaluation.comparison import Line
from cvt_cli.prediction import answer_tables
from tests_shared import Machine, Result


def run(*arguments: object) -> Result:
    """Run ``cvt compare`` in this process; an exception that is a bug escapes."""
    app = typer.Typer(cls=_App, pretty_exceptions_enable=False)
    app.command()(compare)
    app.callback()(lambda: None)
    words = ["compare", *(str(a) for a in arguments)]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    return Result(result.exit_code, result.stdout, result.stderr)


def line(path: str, label: str, predicted: str | None, wnid: str | None = None) -> Line:
    return Line(path, label, label == predicted, predicted, wnid)


def write(path: Path, lines: Sequence[Line]) -> Path:
    """Write a predictions file as ``cvt evaluate`` does; the second class is made up."""
    error = "not an image"
    if path.suffix == ".jsonl":
        documents = []
        for found in lines:
            document = {"path": found.path, "label": found.label, "correct": found.correct}
            best = {"index": 3, "wnid": found.wnid, "label": found.predicted, "score": 0.75}
            second = {"index": 0, "wnid": None, "label": "second", "score": 0.25}
            said = {"predictions": [best, second]} if found.predicted else {"error": error}
            documents.append(json.dumps(document | said) + "\n")
        path.write_text("".join(documents))
        return path
    rows = [
        {
            **{"path": found.path, "label": found.label, "correct": found.correct},
            **{"error": None if found.predicted else error, "label_1": found.predicted},
            **{"score_1": 0.75, "index_1": 3, "wnid_1": found.wnid, "label_2": "second"},
        }
        for found in lines
    ]
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


A = [
    line("cat/1.jpg", "cat", "cat"),
    line("cat/2.jpg", "cat", "dog"),
    line("dog/1.jpg", "dog", "dog"),
    line("dog/2.jpg", "dog", "cat"),
    line("dog/3, large.jpg", "dog", None),
    line("only in A.jpg", "dog", "dog"),
]
B = [
    line("dog/3, large.jpg", "dog", "dog"),
    line("dog/2.jpg", "dog", "fox"),
    line("dog/1.jpg", "dog", "dog"),
    line("cat/1.jpg", "cat", "dog"),
    line("cat/2.jpg", "cat", "cat"),
]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write(tmp_path / "a.jsonl", A), write(tmp_path / "b.csv", B)


# --- the statistics


@pytest.mark.parametrize(
    ("only_a", "only_b"),
    [(0, 0), (1, 0), (0, 5), (10, 10), (3, 17), (17, 3), (90, 120), (600, 711), (2000, 9000)],
)
def test_the_p_value_is_that_of_statsmodels(only_a: int, only_b: int) -> None:
    wanted = mcnemar([[40, only_a], [only_b, 7]], exact=True).pvalue

    assert comparison.mcnemar(only_a, only_b) == pytest.approx(wanted, rel=1e-9, abs=1e-300)


@pytest.mark.parametrize(
    ("only_a", "only_b", "n"), [(0, 0, 5), (38, 69, 300), (170, 260, 10_000), (5, 0, 50_000)]
)
def test_the_interval_contains_the_difference_and_is_the_same_every_time(
    only_a: int, only_b: int, n: int
) -> None:
    low, high = comparison.bootstrap_interval(only_a, only_b, n)

    assert low <= 100 * (only_b - only_a) / n <= high
    assert (low, high) == comparison.bootstrap_interval(only_a, only_b, n)


def test_the_interval_is_that_of_resampling_images() -> None:
    differences = [-1] * 38 + [1] * 69 + [0] * 193
    generator = random.Random(1)
    drawn = sorted(sum(generator.choices(differences, k=300)) / 3 for _ in range(4000))

    low, high = comparison.bootstrap_interval(38, 69, 300)

    assert (low, high) == pytest.approx((drawn[100], drawn[3900]), abs=0.7)


# --- pairing


def test_images_are_paired_by_path_and_counted() -> None:
    found = comparison.compare(A, B)

    assert (found.both_right, found.only_a, found.only_b, found.both_wrong) == (1, 1, 2, 1)
    assert (found.n, found.correct_a, found.correct_b) == (5, 2, 3)
    assert found.difference == pytest.approx(20)
    assert (found.only_in_a, found.only_in_b) == (1, 0)


def test_measures_of_both_are_those_of_scikit_learn_with_paired_intervals() -> None:
    generator = np.random.default_rng(0)
    right = generator.choice(["a", "b", "c"], 400, p=[0.8, 0.15, 0.05])
    a, b = (
        np.where(generator.random(400) < share, right, generator.choice(["a", "b", "x"], 400))
        for share in (0.4, 0.8)
    )

    found = comparison.compare(
        *([line(f"{n}", str(x), str(y)) for n, (x, y) in enumerate(zip(right, of, strict=True))]
          for of in (a, b))
    ).measures  # fmt: skip

    for side, answers in (("a", a), ("b", b)):
        of, classes = (right, answers), {"labels": ["a", "b", "c"], "average": "macro"}
        wanted = {
            "balanced_accuracy": sk.recall_score(*of, **classes, zero_division=0),
            "macro_f1": sk.f1_score(*of, **classes, zero_division=0),
            "matthews": sk.matthews_corrcoef(*of),
            "kappa": sk.cohen_kappa_score(*of),
        }
        values = {name: getattr(found[name], side) for name in wanted}
        assert values == pytest.approx(wanted, rel=1e-12)
    for name, one in found.items():
        assert one.interval is not None and one.difference is not None, name
        assert one.interval[0] < one.difference < one.interval[1]
        if name in ("macro_f1", "kappa"):
            assert one.interval[0] > 0
    # Pairing matters: both are right of the same images, so the difference is as sure as can be.
    same = comparison.compare([line("x", "a", "a"), line("y", "b", "a")], A_AND_B).measures
    assert same["macro_f1"].interval == (0, 0) and same["macro_f1"].a == pytest.approx(1 / 3)


A_AND_B = [line("x", "a", "a"), line("y", "b", "a")]


def test_measures_are_left_out_where_two_classes_have_one_name() -> None:
    crane = Line("1", "crane", False, "crane", "n03126707")

    assert comparison.compare([crane], [crane]).measures == {}


def test_images_of_one_path_are_paired_in_their_order() -> None:
    a = [line("x", "cat", "cat"), line("x", "cat", "dog"), line("x", "cat", "dog")]
    b = [line("x", "cat", "cat"), line("x", "cat", "dog")]

    found = comparison.compare(a, b)

    assert (found.both_right, found.both_wrong, found.changed) == (1, 1, ())
    assert (found.only_in_a, found.only_in_b) == (1, 0)


def test_an_image_whose_likeliest_class_changed_is_listed_in_the_order_of_a() -> None:
    changed = comparison.compare(A, B).changed

    assert [(one.path, one.predicted, other.predicted) for one, other in changed] == [
        ("cat/1.jpg", "cat", "dog"),
        ("cat/2.jpg", "dog", "cat"),
        ("dog/2.jpg", "cat", "fox"),
        ("dog/3, large.jpg", None, "dog"),
    ]


def test_a_class_is_known_by_its_wordnet_identifier_where_both_have_one() -> None:
    bird, machine = "n02012849", "n03126707"
    a = [line("1", "crane", "crane", bird), line("2", "x", "crane", bird), line("3", "x", "crane")]
    b = [
        line("1", "crane", "crane bird", bird),
        line("2", "x", "crane", machine),
        line("3", "x", "crane", machine),
    ]

    assert [one.path for one, _ in comparison.compare(a, b).changed] == ["2"]


def test_without_a_common_image_there_is_nothing_to_compare() -> None:
    with pytest.raises(DataError, match="no image in common; one begins with `x`, .* `y`"):
        comparison.compare([line("x", "cat", "cat")], [line("y", "cat", "cat")])


def test_two_true_classes_of_one_image_are_an_error() -> None:
    with pytest.raises(DataError, match="true class of `x`: `cat` and `dog`"):
        comparison.compare([line("x", "cat", "cat")], [line("x", "dog", "cat")])


# --- files


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet", ".CSV"])
def test_every_kind_of_file_says_the_same(tmp_path: Path, suffix: str) -> None:
    lines = [*A, line("n.jpg", "crane", "crane", "n02012849")]
    written = write(tmp_path / f"a{suffix.lower()}", lines)

    assert comparison.read(written.rename(tmp_path / f"b{suffix}")) == lines


def test_an_odd_file_name_is_the_same_image_in_every_kind_of_file(tmp_path: Path) -> None:
    as_it_is = write(tmp_path / "a.jsonl", [line("caf\udce9.jpg", "cat", "cat")])
    escaped = write(tmp_path / "b.csv", [line(r"caf\udce9.jpg", "cat", "cat")])

    assert comparison.compare(comparison.read(as_it_is), comparison.read(escaped)).n == 1


GOOD_JSON = '{"path": "x", "label": "cat", "correct": false, "error": "bad"}\n'
HEAD = "path,label,correct,error,label_1,wnid_1\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "holds no predictions"),
        ("a.jsonl", GOOD_JSON + "{", "a.jsonl`, line 2 is not a prediction"),
        ("a.jsonl", GOOD_JSON + "\n", "a.jsonl`, line 2 is not a prediction"),
        ("a.jsonl", "7", "line 1 is not a prediction"),
        ("a.jsonl", GOOD_JSON.replace("}", f', "weight": {"9" * 400}}}'), "`weight` is inf, no"),
        ("a.jsonl", '{"path": "x", "predictions": []}', "line 1 is not a prediction"),
        ("a.jsonl", GOOD_JSON.replace("false", "0"), "line 1 lacks path, label or correct"),
        ("a.jsonl", GOOD_JSON.replace('"x"', "7"), "line 1: `path` is 7, not text"),
        ("a.jsonl", GOOD_JSON.replace("false", "true"), "line 1 has neither"),
        ("a.csv", "", "holds no predictions"),
        ("a.csv", "path,error,label_1\nx,,cat\n", "line 2 lacks path, label or correct"),
        ("a.csv", HEAD + "x,cat,yes,,cat,\n", "line 2 lacks path, label or correct"),
        (
            "a.csv",
            HEAD + "x,cat,True,,cat,\nx,cat",
            "line 3 has another number of values than columns",
        ),
        (
            "a.csv",
            HEAD + "x,cat,True,,cat,,,\n",
            "line 2 has another number of values than columns",
        ),
        ("a.csv", HEAD + "x,cat,True,,,\n", "line 2 has neither a prediction nor an error"),
        ("a.csv", HEAD + 'x,"cat', "line 2: unexpected end of data"),
        ("a.csv", HEAD + "caf\udce9", "is not text in UTF-8"),
        ("a.parquet", "PAR", "a.parquet`"),
    ],
)
def test_a_line_that_is_no_prediction_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8", "surrogateescape"))

    with pytest.raises(DataError) as raised:
        comparison.read(path)

    assert message in str(raised.value) and str(path) in str(raised.value)
    assert raised.value.hint == "`cvt evaluate --predictions FILE` writes what is compared here"


def test_what_is_said_twice_of_an_image_is_not_chosen_from(tmp_path: Path) -> None:
    in_json, in_csv = tmp_path / "a.jsonl", tmp_path / "a.csv"
    in_json.write_text(GOOD_JSON.replace("{", '{"label": "dog", '))
    in_csv.write_text(HEAD.replace("path", "correct,path") + "True,x,cat,False,,dog,\n")

    with pytest.raises(DataError, match="line 1 is not a prediction"):
        comparison.read(in_json)
    with pytest.raises(DataError, match="has two columns that are called `correct`"):
        comparison.read(in_csv)


def test_a_parquet_table_of_cvt_predict_has_no_true_classes(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"path": ["x"], "error": [None], "label_1": ["cat"]}), path)

    with pytest.raises(DataError, match="row 1 lacks path, label or correct"):
        comparison.read(path)


def test_a_small_table_does_not_take_the_memory_of_the_rows_that_it_claims(
    cvt, tmp_path: Path
) -> None:
    def claimed(name: str, rows: int, path: str, **more: pyarrow.Array) -> Path:
        def same(text: str) -> pyarrow.DictionaryArray:
            places = pyarrow.array(np.zeros(rows, np.int32))
            return pyarrow.DictionaryArray.from_arrays(places, pyarrow.array([text]))

        columns = {"path": same(path), "label": same("cat"), "label_1": same("cat"), **more}
        columns["correct"] = pyarrow.array(np.ones(rows, bool))
        parquet.write_table(pyarrow.table(columns), tmp_path / name, compression="zstd")
        return tmp_path / name

    many = claimed("many.parquet", 1_000_000, "a.png")
    numbers = pyarrow.array(np.random.default_rng(0).random(2000))
    long = claimed("long.parquet", 2000, "a" * 1_000_000, score_1=numbers)
    assert max(path.stat().st_size for path in (many, long)) < 50_000

    result = cvt("compare", many, many)
    tracemalloc.start()
    lines = comparison.read(long)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert result.exit_code == 1 and "claims 1,000,000 rows in" in result.stderr
    assert len(lines) == 2000 and peak < 100_000_000


def test_without_pyarrow_parquet_is_refused(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer_tables, "find_spec", lambda _: None)

    with pytest.raises(UsageError, match="pyarrow, which is not installed") as raised:
        comparison.read(files[0].with_suffix(".parquet"))

    assert raised.value.hint == installing("parquet")


# --- the command


def test_the_command_prints_the_difference_and_what_changed(files: tuple[Path, Path]) -> None:
    result = run(*files)

    assert result.exit_code == 0
    low, high = comparison.bootstrap_interval(1, 2, 5)
    assert result.stdout.splitlines()[:8] == [
        f"A            40.00 %  (2 of 5 right; {files[0]})",
        f"B            60.00 %  (3 of 5 right; {files[1]})",
        f"B minus A    +20.00 points  (95 % interval {low:+.2f} to {high:+.2f}; "
        "paired bootstrap, 10,000 resamples)",
        "p-value      1  (McNemar's exact test, two-sided)",
        "both right   1",
        "only A       1",
        "only B       2",
        "both wrong   1",
    ]
    assert "Images whose predicted class changed (4)" in result.stdout
    rows = [row.split() for row in result.stdout.splitlines()]
    assert ["cat/1.jpg", "cat", "cat", "dog", "A"] in rows
    assert ["dog/3,", "large.jpg", "dog", "unreadable", "dog", "B"] in rows
    assert result.stderr.splitlines() == [
        f"left out: 1 image only in `{files[0]}`",
        f"counted as wrong: 1 of 5 images, unreadable in `{files[0]}`",
    ]


def test_at_most_as_many_changed_images_are_shown_as_asked_for(files: tuple[Path, Path]) -> None:
    one, none = run(*files, "--changed", 1), run(*files, "--changed", 0)

    assert "changed (the first 1 of 4)" in one.stdout
    assert "cat/1.jpg" in one.stdout and "cat/2.jpg" not in one.stdout
    assert none.stdout.endswith("\nthe predicted class of 4 images changed\n")


def test_a_model_compared_with_itself_does_not_differ(files: tuple[Path, Path]) -> None:
    result = run(files[0], files[0])

    assert "+0.00 points  (95 % interval +0.00 to +0.00;" in result.stdout
    assert "p-value      1 " in result.stdout
    assert result.stdout.endswith("\nno image's predicted class changed\n")


def test_other_pictures_under_the_same_names_are_said(cvt, tmp_path: Path) -> None:
    for number, colour in enumerate(("navy", "red", "red")):
        folder = tmp_path / str(number) / "ship"
        folder.mkdir(parents=True)
        Image.new("RGB", (32, 32), colour).save(folder / "1.png")
        nano = ("--model", "cvt-nano-cifar10")
        data = folder.parent
        cvt("evaluate", "--data", data, *nano, "--predictions", tmp_path / f"{number}.jsonl")

    other = run(tmp_path / "0.jsonl", tmp_path / "1.jsonl", "--json")
    same = run(tmp_path / "1.jsonl", tmp_path / "2.jsonl", "--json")

    assert "1 of 1 image: different pictures under the same path" in other.stderr
    assert (other.exit_code, same.exit_code, same.stderr) == (0, 0, "")
    assert (other.json["different_pictures"], same.json["different_pictures"]) == (1, 0)


def test_what_could_not_be_read_is_said_to_count_as_wrong(tmp_path: Path) -> None:
    bad = line("dog/bad.jpg", "dog", None)
    one = write(tmp_path / "one.jsonl", [line("cat/1.jpg", "cat", "cat"), bad])
    other = write(tmp_path / "other.csv", [line("cat/1.jpg", "cat", "cat"), bad])

    result = run(one, other, "--json")

    assert (result.json["unreadable_a"], result.json["unreadable_b"]) == (1, 1)
    assert result.json["accuracy_a"] == 0.5
    for path in (one, other):
        assert f"counted as wrong: 1 of 2 images, unreadable in `{path}`" in result.stderr


def test_json_has_everything(files: tuple[Path, Path]) -> None:
    document = run(*files, "--json").json

    assert (document["a"], document["b"]) == (str(files[0]), str(files[1]))
    assert (document["n"], document["only_in_a"], document["only_in_b"]) == (5, 1, 0)
    assert (document["accuracy_a"], document["accuracy_b"]) == (0.4, 0.6)
    assert document["difference_points"] == pytest.approx(20)
    assert document["difference_points_interval"] == list(comparison.bootstrap_interval(1, 2, 5))
    assert document["p_value"] == 1
    counts = ("both_right", "only_a_right", "only_b_right", "both_wrong")
    assert [document[key] for key in counts] == [1, 1, 2, 1]
    assert len(document["changed"]) == 4
    assert document["changed"][-1] == {
        "path": "dog/3, large.jpg",
        "label": "dog",
        "a": None,
        "b": {"label": "dog", "wnid": None, "correct": True},
    }


def test_a_class_called_none_is_not_taken_for_images_of_no_class(tmp_path: Path) -> None:
    truth = [["cat"], ["none"], [], ["cat", "none"]] * 5
    answers = {"a": truth, "b": [[] if own == ["none"] else own for own in truth]}
    for name, answered in answers.items():
        lines = [
            {
                **{"path": f"{number}.png", "labels": own, "correct": own == said},
                "predictions": [
                    {"index": 0, "wnid": None, "label": one, "score": 0.9} for one in said
                ],
            }
            for number, (own, said) in enumerate(zip(truth, answered, strict=True))
        ]
        text = "".join(json.dumps(document) + "\n" for document in lines)
        (tmp_path / f"{name}.jsonl").write_text(text)

    shown = run(tmp_path / "a.jsonl", tmp_path / "b.jsonl").stdout
    found = run(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--json").json

    classes, both = ("cat", "none"), (truth, answers["b"])
    marks = [[[name in one for name in classes] for one in sets] for sets in both]
    expected = sk.f1_score(*marks, average="macro")
    assert found["measures"]["macro_f1"]["b"] == pytest.approx(expected, rel=1e-12)
    changed = [(one["a"]["label"], one["b"]["label"]) for one in found["changed"]]
    assert changed == [("none", "")] * 5
    assert ["1.png", "none", "none", "(none)", "A"] in [row.split() for row in shown.splitlines()]


@pytest.mark.parametrize(
    ("name", "exit_code", "message"),
    [
        ("missing.csv", 1, "No such file or directory"),
        (
            "notes.txt",
            2,
            "has no suffix of a predictions file; accepted are `.jsonl`, `.csv`, `.parquet`",
        ),
        ("folder.parquet", 1, "error: cannot read"),
        ("folder.jsonl", 1, "Is a directory"),
    ],
)
def test_what_cannot_be_compared_is_said_without_a_traceback(
    files: tuple[Path, Path], tmp_path: Path, name: str, exit_code: int, message: str
) -> None:
    if name.startswith("folder"):
        (tmp_path / name).mkdir()

    result = run(files[0], tmp_path / name)

    assert result.exit_code == exit_code and result.stdout == ""
    assert message in result.stderr and name in result.stderr


def test_a_terminal_shows_the_right_answers_green_and_the_wrong_ones_red(
    machine: Machine, tmp_path: Path
) -> None:
    a = write(tmp_path / "a.jsonl", [line("1.png", "cat", "cat"), line("2.png", "cat", "fox")])
    b = write(tmp_path / "b.jsonl", [line("1.png", "cat", "dog"), line("2.png", "cat", "cat")])

    coloured = machine.on_a_terminal("compare", a, b, TERM="xterm")
    plain = machine.on_a_terminal("compare", a, b, TERM="xterm", NO_COLOR="1")

    def colours(word: str) -> list[str]:
        return re.findall(rf"\x1b\[(3[12])m{word} *\x1b\[0m", coloured)

    assert colours("fox") == colours("dog") == ["31"]
    assert colours("cat") == ["32", "32"]  # the true class has no colour
    assert not re.search(r"\x1b\[3\d", plain) and "fox" in plain
