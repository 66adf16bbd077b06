"""Several labels an image at the command line: evaluated, predicted, exported, trained."""

import csv
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from composed import composed
from pyarrow import parquet
from sklearn import metrics as sk

from cvt_cli import Classifier
from cvt_cli.base.package import DATA
from cvt_cli.images import decode, transform
from cvt_cli.model import weights
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.published import CHECKPOINTS
from small_sets import class_folders
from tests_shared import Machine

transformers.logging.set_verbosity_error()

NANO = CHECKPOINTS["cvt-nano-cifar10"].embedded
EXACT = {"rel": 1e-12, "abs": 1e-12}
THRESHOLDS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.95, 0.97, 0.85, 0.75, 0.65)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded network, each of whose logits is taken by itself."""
    assert NANO is not None
    loaded = weights.load(NANO)
    folder = tmp_path_factory.mktemp("model") / "several"
    names = Labels(loaded.labels.names, thresholds=THRESHOLDS)
    weights.save(folder, loaded.model, names, loaded.preprocessing, "")
    return folder


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with none to three others in them, of nine classes; one is no image, some are the
    same, and in another table each has a weight and one of thirty groups."""
    pictures = sorted((DATA / "verification").glob("*.jpg"))
    names = weights.load(NANO).labels.names[:-1]
    root = tmp_path_factory.mktemp("composed") / "set"
    classes = {name: pictures[i : i + 2] for i, name in enumerate(names)}
    made = composed(root, classes, {"test": 70}, side=16, sizes=(0, 1, 2, 3))
    with made.open() as file:
        rows = list(csv.DictReader(file))
    for number in range(6):  # equal scores
        shutil.copy(root / rows[number]["path"], root / rows[60 + number]["path"])
    (root / rows[69]["path"]).write_text("no image")
    generator = np.random.default_rng(0)
    lines = ["path,labels,split,weight,group"]
    for row in rows:
        weight, group = generator.uniform(0.2, 3), generator.integers(30)
        lines.append(f"{row['path']},{row['labels']},test,{float(weight)!r},g{group}")
    (root / "weighted.csv").write_text("\n".join(lines) + "\n")
    return made


def truth_of(table: Path, classes: list[str]) -> np.ndarray:
    with table.open() as file:
        sets = [row["labels"].split("|") for row in csv.DictReader(file)]
    return np.array([[name in some for name in classes] for some in sets])


def assert_is_scikit_learns(
    document: dict[str, Any], truth: np.ndarray, scores: np.ndarray, weight: np.ndarray | None
) -> None:
    """Every number of an evaluation, from all probabilities alone."""
    seen = ~np.isnan(scores[:, 0])
    said = scores >= np.array(THRESHOLDS)
    present = np.flatnonzero(truth.any(axis=0))
    weighted = {"sample_weight": weight}
    wanted = {}
    for mean in ("micro", "macro", "weighted"):
        values = sk.precision_recall_fscore_support(
            truth, said, average=mean, zero_division=0, **weighted,
            labels=None if mean == "micro" else present,
        )  # fmt: skip
        for name, value in zip(("precision", "recall", "f1"), values, strict=False):
            wanted[f"{mean}_{name}"] = value
    # An image without a class that is answered with none is right, unless it cannot be read.
    own = np.ones(len(truth)) if weight is None else weight
    each = [
        sk.f1_score(t, s, zero_division=1) if r else 0
        for t, s, r in zip(truth, said, seen, strict=True)
    ]
    wanted["sample_f1"] = np.average(each, weights=own)
    wanted["exact_match"] = np.average((truth == said).all(axis=1) & seen, weights=own)
    seen_weight = {"sample_weight": None if weight is None else weight[seen]}
    ranks = [
        (
            sk.average_precision_score(truth[seen, c], scores[seen, c], **seen_weight),
            sk.roc_auc_score(truth[seen, c], scores[seen, c], **seen_weight),
        )
        for c in present
    ]
    wanted["map"], wanted["roc_auc"] = np.mean(ranks, axis=0)
    found = {k: v["value"] for k, v in document["measures"].items() if isinstance(v, dict)}
    assert found == pytest.approx(wanted, **EXACT)
    assert document["map"] == found["map"]
    for one in document["measures"].values():
        if isinstance(one, dict):
            assert one["interval"][0] <= one["value"] <= one["interval"][1]

    precision, recall, f1, _ = sk.precision_recall_fscore_support(
        truth, said, zero_division=0, **weighted
    )
    for (c, ranked), row in zip(zip(present, ranks, strict=True), document["classes"], strict=True):
        assert row["threshold"] == THRESHOLDS[c]
        assert row["n"] == truth[:, c].sum() and row["correct"] == (truth & said)[:, c].sum()
        numbers = [row[name] or 0 for name in ("precision", "recall", "f1")]
        assert numbers == pytest.approx([precision[c], recall[c], f1[c]], **EXACT)
        assert (row["average_precision"], row["roc_auc"]) == pytest.approx(ranked, **EXACT)


@pytest.mark.parametrize("weighted", [False, True])
def test_every_measure_of_several_labels_is_scikit_learns(
    cvt, model: Path, table: Path, tmp_path: Path, weighted: bool
) -> None:
    path = table.with_name("weighted.csv") if weighted else table
    more = ["--columns", "group="] if weighted else []

    written = tmp_path / "s.npy"
    result = cvt("evaluate", path, "--model", model, "--json", "--scores", written, *more)

    assert result.exit_code == 1  # one cannot be read
    document, scores = result.json, np.load(written)
    about = json.loads((tmp_path / "s.npy.json").read_text())
    truth = truth_of(path, about["classes"])
    assert [np.flatnonzero(row).tolist() for row in truth] == about["labels"]
    assert document["task"] == "multi_label" and document["thresholds"] == list(THRESHOLDS)
    weight = np.loadtxt(path, delimiter=",", skiprows=1, usecols=3) if weighted else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_is_scikit_learns(document, truth, scores, weight)
    seen = ~np.isnan(scores[:, 0])
    losses = sk.log_loss  # of each entry by itself
    flat = losses(truth[seen].ravel(), scores[seen].ravel().astype(np.float64))
    assert document["loss"] == pytest.approx(flat, rel=1e-5)
    assert document["measures"]["weighted"] is weighted


def test_groups_are_drawn_as_wholes_and_told(cvt, model: Path, table: Path) -> None:
    result = cvt("evaluate", table.with_name("weighted.csv"), "--model", model, "--json")

    measures, groups = result.json["measures"], result.json["groups"]["groups"]
    assert measures["resampled"] == "groups"
    assert sum(one["n"] for one in groups) == 70
    assert sum(one["correct"] for one in groups) == result.json["exact_match_correct"]


def test_a_person_is_shown_all_of_it(cvt, model: Path, table: Path, tmp_path: Path) -> None:
    result = cvt("evaluate", table, "--model", model, "--report", tmp_path / "page")

    for start in ("mAP ", "F1 ", "macro ", "exact ", "loss ", "hardest "):
        assert any(line.startswith(start) for line in result.stdout.splitlines()), start
    page = (tmp_path / "page" / "index.html").read_text()
    assert "no image is said to be of `truck`: an answer of it counts as wrong" in result.stderr
    assert "Mean average precision" in page and "several labels an image" in page
    assert "1 image could not be read and counts as wrong" in page
    before, _, _ = page.partition("Every class, the hardest first")
    assert '<div class="scroll"' in before  # eight columns are wider than a phone


def test_a_page_of_weighted_images_has_the_numbers_of_the_document(
    cvt, model: Path, table: Path, tmp_path: Path
) -> None:
    weighted = table.with_name("weighted.csv")

    document = cvt(
        "evaluate", weighted, "--model", model, "--report", tmp_path / "page", "--json"
    ).json

    page = (tmp_path / "page" / "index.html").read_text()
    assert f"mean of {len(document['classes'])} classes, by the weights of the images" in page
    assert "All are by the weights of the images." in page
    for row in document["classes"]:
        _, _, after = page.partition(f">{row['label']}</th>")
        assert f'<span class="value">{100 * row["recall"]:.1f} %</span>' in after[:200]


def test_a_card_says_which_of_its_numbers_are_by_the_weights(
    cvt, model: Path, table: Path, tmp_path: Path
) -> None:
    own, weighted = shutil.copytree(model, tmp_path / "own"), table.with_name("weighted.csv")
    (own / "README.md").unlink()  # of no card that is gone on with

    document = cvt("evaluate", weighted, "--model", own, "--card", own, "--json").json

    card = (own / "README.md").read_text()
    head = "| class | images | threshold | precision | recall | average precision |"
    assert head in card and "the precision, recall and average precision of each, is by" in card
    assert any(row["recall"] != row["correct"] / row["n"] for row in document["classes"])
    for row in document["classes"]:
        if row["precision"] is not None:
            assert f"| {100 * row['precision']:.2f} % | {100 * row['recall']:.2f} % |" in card


def test_a_loss_of_top1_has_no_meaning_in_int8(cvt, model: Path, table: Path) -> None:
    told = ("--model", model, "--precision", "int8", "--calibration", table.parent)

    result = cvt("evaluate", table, *told, "--max-drop", 1)

    assert result.exit_code == 2
    assert "--max-drop: it is of top-1, and an image may have several of" in result.stderr


def test_int8_is_calibrated_on_the_users_images_where_thresholds_decide(
    cvt, model: Path, table: Path
) -> None:
    told = ("--model", model, "--precision", "int8")

    without = cvt("evaluate", table, *told)
    calibrated = cvt("evaluate", table, *told, "--calibration", DATA / "verification")

    assert without.exit_code == 2 and "needs --calibration: thresholds decide" in without.stderr
    assert "F1      micro" in calibrated.stdout, (
        calibrated.stderr
    )  # one image is none: it ends with 1


def test_what_was_judged_is_gone_on_with_to_the_same_numbers(
    cvt, model: Path, table: Path, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    one = ("--json", "--batch-size", 1)
    first = cvt("evaluate", table, "--model", model, "--resume", whole, *one).json
    lines = whole.read_text().splitlines(keepends=True)

    # As a process leaves it that judged a part: the same is done on a table of this part.
    with table.open() as file:
        rows = list(csv.reader(file))
    some = table.with_name("some.csv")
    with some.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows[:41])
    cvt("evaluate", some, "--model", model, "--resume", part, *one)
    assert part.read_text() == "".join(lines[:40])
    second = cvt("evaluate", table, "--model", model, "--resume", part, *one)

    assert "40 of 70 images already in" in second.stderr
    assert part.read_text() == whole.read_text()
    for key in ("measures", "classes", "loss", "exact_match_correct"):
        assert second.json[key] == first[key], key


def test_other_thresholds_do_not_go_on(cvt, model: Path, table: Path, tmp_path: Path) -> None:
    other, lines = tmp_path / "other", tmp_path / "p.jsonl"
    shutil.copytree(model, other)
    cvt("evaluate", table, "--model", other, "--resume", lines)
    config = json.loads((other / "config.json").read_text())
    config["thresholds"][0] = 0.5
    (other / "config.json").write_text(json.dumps(config))

    result = cvt("evaluate", table, "--model", other, "--resume", lines)

    assert result.exit_code == 2 and "was made with thresholds" in result.stderr


def test_tables_of_predictions_are_compared(cvt, model: Path, table: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        cvt("evaluate", table, "--model", model, "--predictions", tmp_path / f"p.{suffix}")
    whole = cvt("evaluate", table, "--model", model, "--json").json

    found = [
        cvt("compare", tmp_path / "p.jsonl", tmp_path / f"p.{suffix}", "--json").json
        for suffix in ("csv", "parquet")
    ]

    for one in found:
        assert one["accuracy_a"] == one["accuracy_b"] == whole["exact_match"]
        assert one["changed"] == [] and one["n"] == 70
        assert {"micro_f1", "macro_f1", "sample_f1"} <= one["measures"].keys()
        for name, measure in one["measures"].items():
            value = whole["measures"][name]["value"]
            assert measure["a"] == measure["b"] == pytest.approx(value, **EXACT)
            assert measure["interval"] == [0, 0]


def test_two_processes_give_the_numbers_of_one(
    machine: Machine, model: Path, table: Path, tmp_path: Path
) -> None:
    arguments = ("evaluate", table, "--model", model, "--json", "--batch-size", 1)
    arguments = (*arguments, "--engine", "torch", "--scores")
    one = machine.run(*arguments, tmp_path / "one.npy")

    two = machine.torchrun(*arguments, tmp_path / "two.npy")

    for key in ("measures", "classes", "exact_match_correct", "n"):
        assert two.json[key] == one.json[key], key
    assert np.array_equal(
        np.load(tmp_path / "one.npy"), np.load(tmp_path / "two.npy"), equal_nan=True
    )


def test_one_label_and_several_are_told_apart_in_words(
    cvt, model: Path, table: Path, tmp_path: Path
) -> None:
    single = cvt("evaluate", table, "--model", "cvt-nano-cifar10")
    several = cvt("evaluate", class_folders(tmp_path / "f", {"cat": 1, "dog": 1}), "--model", model)
    needless = [
        cvt("evaluate", table, "--model", model, *option)
        for option in (
            ("--top-k", 3),
            ("--confusion", tmp_path / "m.csv"),
            ("--report", tmp_path / "r", "--explain"),
        )
    ]
    missed = cvt("evaluate", table, "--model", model, "--expect", 0.99)

    assert single.exit_code == 1 and "answers an image with one class" in single.stderr
    assert several.exit_code == 1 and "gives an image any number of classes" in several.stderr
    for one in needless:
        assert one.exit_code == 2 and "has no effect where an image has several" in one.stderr
    assert missed.exit_code == 1 and "mAP of `" in missed.stderr


def test_predict_answers_all_classes_from_their_thresholds_on(
    cvt, model: Path, table: Path, tmp_path: Path
) -> None:
    folder = table.parent / "images"
    files = sorted(folder.iterdir())[:5]
    loaded = weights.load(model)
    prepared = [
        transform.preprocess(decode.decode(lambda f=f: f.open("rb"), True), loaded.preprocessing)
        for f in files
    ]
    with torch.inference_mode():
        scores = loaded.model(torch.from_numpy(np.stack(prepared))).double().sigmoid().numpy()

    document = cvt("predict", *files, "--model", model, "--json", "--engine", "torch").json
    rows = cvt("predict", *files, "--model", model, "--csv", "--engine", "torch").stdout
    outputs = [tmp_path / f"a.{kind}" for kind in ("parquet", "html", "jsonl")]
    named = [word for path in outputs for word in ("-o", path)]
    assert cvt("predict", *files, "--model", model, *named, "--engine", "torch").exit_code == 0
    capped = cvt("predict", *files, "--model", model, "--json", "--top-k", 1, "--threshold", 0.1)

    assert document["task"] == "multi_label" and document["thresholds"] == list(THRESHOLDS)
    names = loaded.labels.names
    tables = list(csv.DictReader(rows.splitlines()))
    from_parquet = parquet.read_table(outputs[0]).to_pylist()
    lines = [json.loads(line) for line in outputs[2].read_text().splitlines()]
    for place, own in enumerate(scores):
        wanted = [c for c in np.argsort(-own, kind="stable") if own[c] >= THRESHOLDS[c]]
        found = document["results"][place]["predictions"]
        assert [one["index"] for one in found] == wanted
        assert [one["score"] for one in found] == pytest.approx(own[wanted], abs=1e-6)
        assert tables[place]["labels"] == "|".join(names[c] for c in wanted)
        assert from_parquet[place]["labels"] == tables[place]["labels"]
        assert lines[place]["predictions"] == found
    assert 'data-classes="' in outputs[1].read_text()
    for one in capped.json["results"]:
        assert len(one["predictions"]) <= 1
    assert capped.json["thresholds"] == [0.1] * 10
    answers = Classifier(model, engine="torch")([str(f) for f in files])
    assert [[p.index for p in one] for one in answers] == [
        [p["index"] for p in one["predictions"]] for one in document["results"]
    ]
    in_table = Classifier(model, engine="torch")({"image": [str(f) for f in files]})
    assert list(in_table["labels"]) == [row["labels"] for row in tables]


def test_none_is_said_in_lines_for_a_person(cvt, model: Path, table: Path) -> None:
    files = sorted((table.parent / "images").iterdir())[:5]

    each = cvt("predict", files[0], "--model", model, "--threshold", 1).stdout
    lines = cvt("predict", *files, "--model", model, "--threshold", 1).stdout

    assert each.splitlines()[0].endswith(".png: (none)")
    assert lines.splitlines()[0].startswith("classes with probabilities")
    assert all(line.startswith("(none) ") for line in lines.splitlines()[1:])


def test_transformers_opens_the_folder_with_the_same_sigmoid_scores(
    cvt, model: Path, table: Path, tmp_path: Path
) -> None:
    exact = tmp_path / "exact"
    loaded = weights.load(model, activation="gelu")  # which transformers computes
    weights.save(exact, loaded.model, loaded.labels, loaded.preprocessing, "")
    file = sorted((table.parent / "images").iterdir())[0]

    theirs = transformers.pipeline("image-classification", str(exact))(str(file), top_k=10)
    ours = cvt("predict", file, "--model", exact, "--json", "--threshold", 0, "--engine", "torch")

    assert json.loads((exact / "config.json").read_text())["problem_type"] == (
        "multi_label_classification"
    )
    wanted = {one["label"]: one["score"] for one in theirs}
    found = {one["label"]: one["score"] for one in ours.json["results"][0]["predictions"]}
    assert found == pytest.approx(wanted, abs=1e-4)
    reopened = transformers.CvtForImageClassification.from_pretrained(exact)
    assert reopened.config.thresholds == list(THRESHOLDS)


def test_an_exported_file_answers_the_same(cvt, model: Path, table: Path, tmp_path: Path) -> None:
    graph = tmp_path / "m.onnx"
    assert cvt("export", model, "-o", graph).exit_code == 0

    scores = tmp_path / "ours.npy", tmp_path / "theirs.npy"
    torch_too = ("--json", "--engine", "torch", "--scores", scores[0])
    ours = cvt("evaluate", table, "--model", model, *torch_too).json
    theirs = cvt("evaluate", table, "--model", graph, "--json", "--scores", scores[1]).json

    assert theirs["task"] == "multi_label" and theirs["thresholds"] == list(THRESHOLDS)
    assert theirs["exact_match_correct"] == ours["exact_match_correct"]
    a, b = map(np.load, scores)
    assert np.allclose(a, b, atol=1e-5, equal_nan=True)
