"""The measures of `cvt evaluate`, on a real run, against scikit-learn from its scores."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet
from sklearn import metrics as sk

from cvt_cli.base.text import threshold
from cvt_cli.evaluation import outcomes, score_files
from cvt_cli.evaluation.measure_outcomes import Cell
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.published import CHECKPOINTS
from tests_shared import TESTS, Machine

NANO = ["--model", "cvt-nano-cifar10"]
NANO_FOLDER = CHECKPOINTS["cvt-nano-cifar10"].embedded
KEPT = TESTS / "kept"
EXACT = {"rel": 1e-12, "abs": 1e-12}


@pytest.fixture(scope="session")
def few(cifar10: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of CIFAR-10's test images of seven of its classes, unequally many; one is no image."""
    root = tmp_path_factory.mktemp("few") / "few"
    names = ("airplane", "bird", "cat", "deer", "dog", "frog", "truck")
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for image in sorted((cifar10 / "test" / name).iterdir())[: 12 + 9 * place]:
            shutil.copy(image, root / name)
    (root / "cat" / "bad.png").write_text("no image")
    return root


@pytest.fixture(scope="session")
def weights_table(few: Path) -> Path:
    """The same images in a table, with a weight and one of thirty groups for each."""
    generator = np.random.default_rng(0)
    path = few.parent / "few.csv"
    with path.open("w") as file:
        file.write("path,label,weight,group\n")
        for image in sorted(few.rglob("*.png")):
            weight, group = generator.uniform(0.2, 3), generator.integers(30)
            name = image.relative_to(few.parent)
            file.write(f"{name},{image.parent.name},{weight!r},g{group}\n".replace("np.", ""))
    return path


class Run:
    """What an evaluation says, and the scores that it wrote."""

    def __init__(self, document: dict[str, Any], scores: Path) -> None:
        self.document = document
        self.scores = np.load(scores)
        about = json.loads(scores.with_name(scores.name + ".json").read_text())
        self.paths, self.classes = about["paths"], about["classes"]
        self.actual = np.array(about["labels"])
        self.readable = ~np.isnan(self.scores[:, 0])
        self.answered = np.where(self.readable, np.argmax(self.scores, axis=1), -1)
        self.present = np.unique(self.actual)


def assert_is_scikit_learns(run: Run, weights: np.ndarray | None) -> None:
    """Every number of a run, from its scores alone."""
    found = {
        name: one["value"]
        for name, one in run.document["measures"].items()
        if isinstance(one, dict)
    }
    truth, seen = (run.actual, run.answered), run.readable
    weight = {"sample_weight": weights}
    wanted = {
        "accuracy": sk.accuracy_score(*truth, **weight),
        "balanced_accuracy": sk.recall_score(*truth, labels=run.present, average="macro", **weight),
        "matthews": sk.matthews_corrcoef(*truth, **weight),
        "kappa": sk.cohen_kappa_score(*truth, **weight),
    }
    for mean in ("macro", "weighted"):
        values = sk.precision_recall_fscore_support(
            *truth, labels=run.present, average=mean, zero_division=0, **weight
        )
        names = [f"{mean}_{name}" for name in ("precision", "recall", "f1")]
        wanted |= dict(zip(names, values[:3], strict=True))
    table = sk.multilabel_confusion_matrix(*truth, labels=run.present, **weight)
    specificity = table[:, 0, 0] / table[:, 0].sum(axis=1)
    support = table[:, 1].sum(axis=1)
    wanted["macro_specificity"] = specificity.mean()
    wanted["weighted_specificity"] = (specificity * support).sum() / support.sum()
    seen_weights = {"sample_weight": None if weights is None else weights[seen]}
    ranks = {
        label: (
            sk.roc_auc_score(run.actual[seen] == label, run.scores[seen, label], **seen_weights),
            sk.average_precision_score(
                run.actual[seen] == label, run.scores[seen, label], **seen_weights
            ),
        )
        for label in run.present
    }
    wanted["roc_auc"], wanted["average_precision"] = np.mean(list(ranks.values()), axis=0)
    assert found == pytest.approx(wanted, **EXACT)

    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        *truth, labels=run.present, zero_division=0, **weight
    )
    for place, (label, row) in enumerate(zip(run.present, run.document["classes"], strict=True)):
        assert row["label"] == run.classes[label]
        numbers = [row[n] for n in ("precision", "recall", "f1", "specificity")]
        assert numbers == pytest.approx(
            [precision[place], recall[place], f1[place], specificity[place]], **EXACT
        )
        assert [row["roc_auc"], row["average_precision"]] == pytest.approx(ranks[label], **EXACT)
    for one in run.document["measures"].values():
        if isinstance(one, dict):
            assert one["interval"][0] <= one["value"] <= one["interval"][1]


def test_every_measure_of_a_run_is_scikit_learns(cvt, few: Path, tmp_path: Path) -> None:
    scores, matrix = tmp_path / "s.npy", tmp_path / "m.csv"

    document = cvt("evaluate", few, *NANO, "--json", "--scores", scores, "--confusion", matrix).json

    run = Run(document, scores)
    assert len(run.scores) == document["n"] == 274 and not run.readable.all()
    assert_is_scikit_learns(run, None)
    assert document["measures"]["resampled"] == "images"
    assert document["measures"]["weighted"] is False
    assert document["top1"] == document["measures"]["accuracy"]["value"]
    # The whole matrix, in the document and as CSV.
    wanted = sk.confusion_matrix(run.actual, run.answered, labels=range(10))
    told = document["confusion_matrix"]
    dense = np.zeros((10, 10), int)
    for label, answered, n in told["cells"]:
        if answered is not None:
            dense[told["indices"][label], told["indices"][answered]] = n
    assert (dense == wanted).all()
    assert [cell for cell in told["cells"] if cell[1] is None] == [
        [told["classes"].index("cat"), None, 1]
    ]
    with matrix.open() as file:
        rows = {row.pop("labelled \\ predicted"): row for row in csv.DictReader(file)}
    assert list(rows) == [run.classes[label] for label in run.present]
    assert int(rows["cat"]["unreadable"]) == 1
    for label in run.present:
        for other in run.present:
            value = int(rows[run.classes[label]][run.classes[other]])
            assert value == wanted[label, other]


def test_weights_and_groups_of_a_table_are_in_the_measures(
    cvt, weights_table: Path, tmp_path: Path
) -> None:
    scores = tmp_path / "s.npy"

    document = cvt("evaluate", weights_table, *NANO, "--json", "--scores", scores).json

    run = Run(document, scores)
    with weights_table.open() as file:
        weights = {row["path"]: float(row["weight"]) for row in csv.DictReader(file)}
    assert_is_scikit_learns(run, np.array([weights[path] for path in run.paths]))
    assert document["measures"]["weighted"] is True
    assert document["measures"]["resampled"] == "groups"
    page = tmp_path / "report" / "index.html"
    said = cvt("evaluate", weights_table, *NANO, "--report", page.parent).stdout
    assert "; by the weights of the images\n" in said
    assert "by the weights of the images" in page.read_text()
    assert "All three are by the weights of the images." in page.read_text()
    own = shutil.copytree(NANO_FOLDER, tmp_path / "own")
    cvt("evaluate", weights_table, "--model", own, "--card", own)
    assert "the precision and F1 of each, is by the weights" in (own / "README.md").read_text()
    for row in document["classes"]:
        assert f'<span class="value">{100 * row["recall"]:.1f} %</span>' in page.read_text()
        numbers = [
            f'<td class="number">{100 * row[name]:.1f} %</td>' for name in ("precision", "f1")
        ]
        assert "".join(numbers) in page.read_text()
    gap = document["groups"]["largest_gap"]
    assert gap["interval"][0] < gap["gap"] < gap["interval"][1]


def test_compare_counts_the_weights_of_a_table_as_evaluate_does(
    cvt, weights_table: Path, tmp_path: Path
) -> None:
    files = [tmp_path / f"said{suffix}" for suffix in (".jsonl", ".csv", ".parquet")]
    for file in files:
        result = cvt("evaluate", weights_table, *NANO, "--predictions", file, "--json")
    measures = result.json["measures"]

    for one, other in zip(files, files[1:], strict=False):
        found = cvt("compare", one, other, "--json").json
        assert found["weighted"] is True
        for name in ("balanced_accuracy", "macro_f1", "matthews"):
            assert found["measures"][name]["a"] == pytest.approx(measures[name]["value"])
            assert found["measures"][name]["b"] == pytest.approx(measures[name]["value"])
    assert "by the weights of the images:" in cvt("compare", *files[:2]).stdout


def test_an_evaluation_is_not_gone_on_with_under_other_weights_of_the_images(
    cvt, weights_table: Path, tmp_path: Path
) -> None:
    table = shutil.copy(weights_table, tmp_path / "table.csv")
    given = ("evaluate", table, "--images", weights_table.parent, *NANO)
    lines = tmp_path / "said.jsonl"
    cvt(*given, "--resume", lines)
    rows = table.read_text().splitlines()
    path, label, weight, group = rows[2].split(",")
    rows[2] = f"{path},{label},{2 * float(weight)!r},{group}"
    table.write_text("\n".join(rows))

    again = cvt(*given, "--resume", lines)

    assert again.exit_code == 2
    assert f"`{path}` has the weight {float(weight):g} in `{lines}`, and now" in again.stderr


def test_scores_are_the_same_in_parquet(cvt, few: Path, tmp_path: Path) -> None:
    for name in ("s.npy", "s.parquet"):
        assert cvt("evaluate", few, *NANO, "--scores", tmp_path / name).exit_code == 1

    table = parquet.read_table(tmp_path / "s.parquet")
    scores = np.load(tmp_path / "s.npy")
    rows = table.to_pylist()
    about = json.loads((tmp_path / "s.npy.json").read_text())
    told = json.loads(table.schema.metadata[b"cvt"])
    assert [row["path"] for row in rows] == about["paths"]
    assert [row["index"] for row in rows] == about["labels"]
    assert told["classes"] == about["classes"] and told["model"] == "cvt-nano-cifar10"
    for row, values in zip(rows, scores, strict=True):
        assert row["label"] == about["classes"][row["index"]]
        if row["scores"] is None:
            assert row["path"] == "cat/bad.png" and np.isnan(values).all()
        else:
            assert np.array_equal(np.array(row["scores"], np.float32), values)


def test_two_processes_measure_what_one_does(machine: Machine, few: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", few, *NANO, "--json", "--scores"]

    two = machine.torchrun(*arguments, tmp_path / "two.npy")
    one = machine.run(*arguments, tmp_path / "one.npy")

    assert (two.exit_code, one.exit_code) == (1, 1), two.stderr  # an image cannot be read
    assert np.allclose(
        np.load(tmp_path / "two.npy"), np.load(tmp_path / "one.npy"), atol=1e-5, equal_nan=True
    )
    assert two.json["confusion_matrix"] == one.json["confusion_matrix"]
    for name in ("kappa", "macro_f1", "matthews"):
        assert two.json["measures"][name] == one.json["measures"][name]
    area = [result.json["measures"]["roc_auc"]["value"] for result in (two, one)]
    assert area[0] == pytest.approx(area[1], abs=1e-4)


def test_what_a_resumed_file_has_is_measured_but_for_the_ranks(
    cvt, few: Path, tmp_path: Path
) -> None:
    lines = tmp_path / "p.jsonl"
    whole = cvt("evaluate", few, *NANO, "--json", "--resume", lines).json

    again = cvt("evaluate", few, *NANO, "--json", "--resume", lines).json

    assert whole["measures"]["roc_auc"]["value"] > 0.9
    assert again["measures"]["roc_auc"] == {"value": None, "interval": None}
    assert "--scores" in again["measures"]["not_ranked"]
    for name in ("kappa", "macro_f1", "weighted_specificity"):
        assert again["measures"][name] == whole["measures"][name]
    assert again["risk_coverage"] == whole["risk_coverage"]
    assert again["confusion_matrix"] == whole["confusion_matrix"]


def test_a_class_called_unreadable_is_told_from_what_could_not_be_read(tmp_path: Path) -> None:
    cells = (Cell(0, 1, 2), Cell(0, None, 1), Cell(1, 1, 3))
    found = SimpleNamespace(cells=cells)

    score_files.write_confusion(tmp_path / "m.csv", found, Labels(("sound", "unreadable")))

    with (tmp_path / "m.csv").open(newline="") as file:
        head, sound, _ = csv.reader(file)
    assert head[1:] == ["sound", "unreadable", "(unreadable)"] and sound[1:] == ["0", "2", "1"]


def test_energy_of_a_part_or_of_several_models_is_not_taken_for_that_of_one(cvt, few: Path) -> None:
    left = cvt("evaluate", few, *NANO, "--resume", "p.jsonl", "--energy")
    several = cvt("evaluate", few, *NANO, "--model", KEPT / "model", "--energy")

    assert (left.exit_code, several.exit_code) == (2, 2)
    assert "--energy: with --resume it would be of the images that are left" in left.stderr
    assert "--energy: of several models it would be that of all together" in several.stderr


def test_more_probabilities_than_fit_are_kept_where_they_are_asked_for(
    cvt, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = cvt("evaluate", few, *NANO, "--json").json
    monkeypatch.setattr(outcomes, "MOST_SCORES", 1000)

    without = cvt("evaluate", few, *NANO, "--json").json
    asked = cvt("evaluate", few, *NANO, "--json", "--scores", tmp_path / "s.npy").json

    assert without["measures"]["roc_auc"]["value"] is None
    assert "--scores" in without["measures"]["not_ranked"]
    assert asked["measures"] == whole["measures"]
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scores", "s.txt"], "accepted are `.npy` and `.parquet`"),
        (["--scores", "s.npy", "--resume", "p.jsonl"], "leave --resume out"),
        (["--confusion", "m.tsv"], "accepted is .csv"),
    ],
)
def test_files_that_cannot_be_are_refused(cvt, few: Path, arguments, message: str) -> None:
    result = cvt("evaluate", few, *NANO, *arguments)

    assert result.exit_code == 2 and message in result.stderr


def test_lines_and_report_say_how_classes_fare_and_what_can_be_answered_alone(
    cvt, few: Path, tmp_path: Path
) -> None:
    said = cvt("evaluate", few, *NANO, "--report", tmp_path / "r", "--json", tmp_path / "d.json")

    assert "classes balanced accuracy" in said.stdout and "; AUC 0.9" in said.stdout
    found = json.loads((tmp_path / "d.json").read_text())
    five = found["risk_coverage"]["at_risk"][2]
    share = f"{100 * five['coverage']:.1f} % of images"
    line = f"{threshold(five['threshold'])} or more: {share}, at most 5 % wrong"
    assert line in said.stdout
    page = (tmp_path / "r" / "index.html").read_text()
    for name in ("roc_auc", "matthews", "kappa"):
        assert f"{found['measures'][name]['value']:.4f}" in page
        low, high = found["measures"][name]["interval"]
        assert f"95 % interval {low:.4f} to {high:.4f}" in page
    row = found["risk_coverage"]["at_risk"][2]
    assert row["at_most"] == 0.05 and row["risk"] <= 0.05
    assert f"{row['wrong']} of {row['n']}" in page and threshold(row["threshold"]) in page
    assert "<polyline" in page and "How many answers need no check?" in page


def test_from_a_threshold_on_as_many_are_answered_as_is_said(
    cvt, few: Path, tmp_path: Path
) -> None:
    found = cvt("evaluate", few, *NANO, "--predictions", tmp_path / "p.jsonl", "--json").json

    lines = map(json.loads, (tmp_path / "p.jsonl").read_text().splitlines())
    scores = [line["predictions"][0]["score"] for line in lines if "error" not in line]
    points = found["risk_coverage"]["points"]
    assert len(points) > 20
    for point in points:
        assert sum(score >= point["threshold"] for score in scores) == point["n"]


def test_predict_accepts_from_a_printed_threshold_on_no_image_that_was_not_counted(
    cvt, few: Path, tmp_path: Path
) -> None:
    judged = cvt("evaluate", few, *NANO, "--json", tmp_path / "d.json", "--report", tmp_path / "r")

    [line] = [line for line in judged.stdout.splitlines() if line.startswith("sure")]
    page = (tmp_path / "r" / "index.html").read_text()
    counted = json.loads((tmp_path / "d.json").read_text())["risk_coverage"]["at_risk"]
    printed = re.findall(r"(0\.\d+) or more", line)
    assert len(printed) == 2
    for shown, one in zip(printed, (counted[0], counted[2]), strict=True):
        answered = cvt("predict", few, *NANO, "--no-exif", "--threshold", shown, "--jsonl")
        accepted = sum(one.get("answer", "unknown") != "unknown" for one in answered.json_lines)
        assert one["n"] - 2 <= accepted <= one["n"]
        assert f">{shown}<" in page


def test_what_was_measured_is_printed_though_the_report_cannot_be_written(
    machine: Machine, few: Path, tmp_path: Path
) -> None:
    machine.popen = {"largest_file": 20_000}

    said = machine.run("evaluate", few, *NANO, "--report", tmp_path / "r", "--json")

    assert said.exit_code == 1 and "error: cannot write `" in said.stderr
    assert said.json["n"] == len(list(few.rglob("*.png")))
    assert not (tmp_path / "r" / "index.html").exists()


def test_a_file_that_cannot_be_written_does_not_cost_the_others(
    machine: Machine, few: Path, tmp_path: Path
) -> None:
    machine.popen = {"largest_file": 600}
    scores, confusion = tmp_path / "s.npy", tmp_path / "c.csv"
    page = tmp_path / "r" / "index.html"

    said = machine.run(
        "evaluate", few, *NANO, "--scores", scores, "--report", page.parent,
        "--confusion", confusion, "--json",
    )  # fmt: skip

    assert said.exit_code == 1 and f"error: cannot write `{scores}`" in said.stderr
    assert f"error: cannot write `{page}" in said.stderr
    assert confusion.read_text().startswith("labelled") and said.json["n"]
    assert not scores.exists() and not page.exists()


def test_a_page_shows_no_absolute_path_of_a_table(cvt, few: Path, tmp_path: Path) -> None:
    table = tmp_path / "absolute.csv"
    rows = [f"{image},{image.parent.name}" for image in sorted(few.glob("*/*.png"))]
    table.write_text("\n".join(["path,label", *rows]) + "\n")

    cvt("evaluate", table, *NANO, "--report", tmp_path / "report")

    page = (tmp_path / "report" / "index.html").read_text()
    text = re.sub(r'(href|src)="[^"]*"', "", page)  # links lead to the images, from the page
    assert "…/" in text and str(few) not in text
