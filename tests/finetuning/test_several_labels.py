"""Training on images that may have several labels."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from composed import composed
from safetensors.torch import load_file
from sklearn import metrics as sk

from cvt_cli.base.package import DATA
from cvt_cli.evaluation.thresholds import best_threshold
from cvt_cli.finetuning import balance, several_labels

SHORT = ("--variant", "nano", "--epochs", 2, "--batch-size", 8, "--warmup-epochs", 0)
SHORT = (*SHORT, "--workers", 0, "--res", 32, "--augment", "none")


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few pictures of four classes, to train on and to choose by."""
    pictures = sorted((DATA / "verification").glob("*.jpg"))
    root = tmp_path_factory.mktemp("composed") / "set"
    classes = {name: pictures[2 * i : 2 * i + 2] for i, name in enumerate("abcd")}
    return composed(root, classes, {"train": 24, "val": 12}, side=16, sizes=(0, 1, 2, 3))


def test_the_loss_is_that_of_every_class_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, 3, generator=generator, dtype=torch.float64)
    targets = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    positive, own = torch.tensor([1.0, 4, 0.5]), torch.tensor([1.0, 2, 0.5, 1, 1])
    smoothed = targets * 0.9 + 0.05
    p = logits.sigmoid()
    each = -(positive * smoothed * p.log() + (1 - smoothed) * (1 - p).log())

    plain = several_labels.loss(logits, targets, 0.0, None, None)
    full = several_labels.loss(logits, targets, 0.1, positive.double(), own)

    assert plain.item() == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, targets).item(), rel=1e-12
    )
    assert full.item() == pytest.approx((each.mean(dim=1) * own).mean().item(), rel=1e-9)


def test_positive_weights_make_both_sides_of_a_class_weigh_the_same() -> None:
    sizes = np.array([10, 50, 100])

    found = balance.positive_factors("balanced", sizes, 100, "abc")
    half = balance.positive_factors("balanced^0.5", sizes, 100, "abc")
    told = balance.positive_factors({"b": 3.0}, sizes, 100, "abc")

    assert found.tolist() == [9, 1, 0.01]
    assert half.tolist() == pytest.approx([3, 1, 0.1])
    assert told.tolist() == [1, 3, 1]


@pytest.mark.parametrize("weighted", [False, True])
def test_a_threshold_has_the_best_f1_or_the_precision_that_is_wished_for(weighted: bool) -> None:
    generator = np.random.default_rng(1)
    for _ in range(12):
        scores = generator.integers(0, 12, 30) / 12  # with ties
        positive = generator.random(30) < 0.2 + 0.5 * scores
        positive[0] = True
        weights = generator.uniform(0.5, 2, 30) if weighted else None
        of = {"sample_weight": weights, "zero_division": 0}
        every = np.unique(scores)
        f1 = [sk.f1_score(positive, scores >= t, **of) for t in every]
        precision = [sk.precision_score(positive, scores >= t, **of) for t in every]
        recall = [sk.recall_score(positive, scores >= t, **of) for t in every]

        best = scores >= best_threshold(scores, positive, weights, None)
        exact = scores >= best_threshold(scores, positive, weights, 0.6)

        assert sk.f1_score(positive, best, **of) == pytest.approx(max(f1))
        reached = [r for r, p in zip(recall, precision, strict=True) if p >= 0.6]
        if max(reached, default=0) > 0:
            assert sk.precision_score(positive, exact, **of) >= 0.6
            assert sk.recall_score(positive, exact, **of) == pytest.approx(max(reached))
        else:
            assert not exact.any() and max(precision) < 0.6
    assert best_threshold(scores, np.zeros(30, bool), None, None) is None


def test_a_run_keeps_thresholds_that_are_read_back(cvt, table: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    result = cvt("finetune", table, *SHORT, "-o", run, "--json", "--class-weights", "balanced")

    assert result.exit_code == 0, result.stderr
    assert "several labels an image, separated by `|` (guessed" in result.stderr
    assert "a threshold for each class is chosen on the validation images, for f1" in result.stderr
    document, config = result.json, json.loads((run / "best" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert list(document["thresholds"].values()) == config["thresholds"]
    assert document["select"] == "map" and "val_top1" not in document
    judged = cvt("evaluate", table, "--model", run, "--json").json
    assert judged["thresholds"] == config["thresholds"]
    assert judged["map"] == pytest.approx(document["val_map"], abs=1e-6)
    assert judged["measures"]["micro_f1"]["value"] == pytest.approx(document["val_micro_f1"])
    assert judged["exact_match"] == pytest.approx(document["val_exact_match"])
    head = (run / "metrics.csv").read_text().splitlines()[0]
    assert head.startswith("epoch,learning_rate,training_loss,val_loss,val_map,val_micro_f1")
    assert "mAP on the validation images" in (run / "best" / "README.md").read_text()


def test_classes_that_reach_the_precision_nowhere_are_named_and_not_answered(
    cvt, table: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"

    result = cvt(
        "finetune", table, *SHORT, "-o", run, "--json", "--threshold-for", "precision=0.95"
    )

    unreached = result.json["thresholds_unreached"]
    assert 0 < len(unreached) < 10
    said = (
        f"no threshold reaches precision=0.95 on the validation images for {len(unreached)} class"
    )
    assert said in result.stderr and unreached[0] in result.stderr
    assert "precision=0.95 (reached by none for " in (run / "best" / "README.md").read_text()
    judged = cvt("evaluate", table, "--model", run, "--split", "val", "--json").json
    for row in judged["classes"]:
        if row["label"] in unreached:
            assert row["answered"] == 0
        else:
            assert row["precision"] is None or row["precision"] >= 0.95


def test_a_run_that_is_gone_on_with_ends_with_the_same_weights(
    cvt, table: Path, tmp_path: Path
) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    told = (*SHORT, "--augment", "medium", "--threshold-for", "precision=0.6", "--seed", 3)
    cvt("finetune", table, *told, "-o", whole)

    cut = cvt("finetune", table, *told, "-o", part, "--max-time", "0s")
    went_on = cvt("finetune", "--resume", part, "--max-time", "1h")

    assert cut.exit_code == went_on.exit_code == 0, cut.stderr + went_on.stderr
    a, b = (load_file(run / "last" / "model.safetensors") for run in (whole, part))
    assert all(a[name].equal(b[name]) for name in a)
    of_best = [(run / "best" / "config.json").read_text() for run in (whole, part)]
    assert of_best[0] == of_best[1]
    results = [json.loads((run / "results.json").read_text()) for run in (whole, part)]
    assert results[0]["thresholds"] == results[1]["thresholds"]


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (("--sampler", "balanced"), "classes cannot come equally often"),
        (("--select", "top1"), "--select top1 has no meaning for images that have several labels"),
        (("--recipe", "linear-probe"), "it is solved for one class an image"),
        (("--threshold-for", "recall=1"), "--threshold-for is `recall=1`; accepted are `f1`"),
    ],
)
def test_what_has_no_meaning_with_several_labels_is_refused(
    cvt, table: Path, told: tuple[str, ...], why: str
) -> None:
    result = cvt("finetune", table, "--model", "cvt-nano-cifar10", "--dry-run", *told)

    assert result.exit_code == 2, result.stderr
    assert why in result.stderr


@pytest.mark.parametrize(
    ("told", "why"),
    [
        (("--threshold-for", "f1"), "--threshold-for: it has no effect: every image has one label"),
        (("--select", "map"), "--select map is for images that have several"),
    ],
)
def test_what_is_of_several_labels_alone_is_refused_of_one(
    cvt, table: Path, told: tuple[str, ...], why: str
) -> None:
    single = table.with_name("single.csv")
    paths = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    rows = [f"{path},{number % 2}" for number, path in enumerate(paths)]
    single.write_text("\n".join(["path,label", *rows]) + "\n")

    result = cvt("finetune", single, "--model", "cvt-nano-cifar10", "--dry-run", *told)

    assert result.exit_code == 2, result.stderr
    assert why in result.stderr


@pytest.mark.parametrize(
    ("rows", "told", "why"),
    [
        (("a,train", "b,train", "a,val"), ("--select", "auc"), "--select auc: there is none"),
        (("a|b,train", "b,train", "a,val"), ("--select", "auc"), "--select auc: there is none"),
        (("a|b,train", "b,train", ",val"), (), "--select map: there is none"),
    ],
)
def test_what_the_validation_images_have_no_number_for_selects_no_epoch(
    cvt, table: Path, rows: tuple[str, ...], told: tuple[str, ...], why: str
) -> None:
    odd = table.with_name("odd.csv")
    paths = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    rest = (f"{path},{rows[number % len(rows)]}" for number, path in enumerate(paths))
    odd.write_text("\n".join(["path,label,split", *rest]) + "\n")
    separator = ("--separator", "|") if "|" in rows[0] else ()

    result = cvt(
        "finetune", odd, "--model", "cvt-nano-cifar10", "--dry-run", "--allow-overlap",
        *separator, *told,
    )  # fmt: skip

    assert result.exit_code == 1, result.stderr
    assert why in result.stderr


def test_a_measure_that_the_validation_images_do_not_have_is_told_as_none(
    cvt, table: Path, tmp_path: Path
) -> None:
    paths = [line.split(",")[0] for line in table.read_text().splitlines()[1:]]
    rows = ("a|b,train", "b,train", ",val")
    rest = (f"{path},{rows[number % len(rows)]}" for number, path in enumerate(paths))
    odd = table.with_name("none.csv")
    odd.write_text("\n".join(["path,label,split", *rest]) + "\n")
    told = ("--separator", "|", "--select", "loss", "--epochs", 1, "--allow-overlap")

    result = cvt("finetune", odd, *SHORT, *told, "-o", tmp_path / "run")

    assert result.exit_code == 0, result.stderr
    assert "epoch 1/1: loss" in result.stderr and "mAP none" in result.stderr
    assert "best: epoch 1, mAP none" in result.stdout


def test_folds_hold_images_of_several_labels_out(cvt, table: Path, tmp_path: Path) -> None:
    lines = ("--columns", "split=", "--folds", 2)

    result = cvt("finetune", table, *SHORT, *lines, "-o", tmp_path / "f", "--json", "--epochs", 1)

    assert result.exit_code == 0, result.stderr
    assert "exact_match" in result.json and "top1" not in result.json
    found = [json.loads(x) for x in (tmp_path / "f" / "out_of_fold.jsonl").read_text().splitlines()]
    assert len(found) == 36
    assert sum(one["correct"] for one in found) == result.json["correct"]


def test_a_softmax_head_is_replaced_though_its_classes_are_the_same(
    cvt, table: Path, tmp_path: Path
) -> None:
    once = cvt("finetune", table, *SHORT, "--epochs", 1, "-o", tmp_path / "run")
    assert once.exit_code == 0, once.stderr
    again = ("--batch-size", 8, "--dry-run", "--workers", 0)

    kept = cvt("finetune", table, "--model", tmp_path / "run", *again)
    config = tmp_path / "run" / "best" / "config.json"
    content = json.loads(config.read_text())
    del content["problem_type"]
    config.write_text(json.dumps(content))
    replaced = cvt("finetune", table, "--model", tmp_path / "run", *again)

    assert "head replaced" not in kept.stderr
    assert "head replaced: 4 classes" in replaced.stderr


@pytest.mark.slow
def test_composed_pictures_are_told_better_than_by_any_one_label(
    cvt_process, cifar10: Path, tmp_path: Path
) -> None:
    """Two or three of CIFAR-10's pictures in one: trained, evaluated, exported, predicted, and
    opened in transformers."""
    classes = {
        part: {folder.name: sorted(folder.iterdir()) for folder in (cifar10 / part).iterdir()}
        for part in ("train", "test")
    }
    told = {"sizes": (2, 3)}
    data = composed(tmp_path / "data", classes["train"], {"train": 3000, "val": 300}, **told)
    unseen = composed(tmp_path / "unseen", classes["test"], {"test": 500}, seed=1, **told)
    run, graph, scores = tmp_path / "run", tmp_path / "m.onnx", tmp_path / "s.npy"
    start = ("--model", "cvt-nano-cifar10", "--activation", "gelu", "--res", 64)
    steps = ("--epochs", 3, "--lr", 2e-3, "--augment", "crop-flip", "--workers", 0)

    trained = cvt_process("finetune", data, *start, *steps, "-o", run)
    judged = cvt_process("evaluate", unseen, "--model", run, "--json", "--scores", scores)
    exported = cvt_process("export", run, "-o", graph)
    of_graph = cvt_process("evaluate", unseen, "--model", graph, "--json")
    files = sorted((unseen.parent / "images").iterdir())[:20]
    answers = cvt_process("predict", *files, "--model", graph, "--json", "--threshold", 0)

    for one in (trained, judged, exported, of_graph, answers):
        assert one.exit_code == 0, one.stderr
    about = json.loads(scores.with_name("s.npy.json").read_text())
    truth = np.zeros((500, 10), int)
    for image, some in enumerate(about["labels"]):
        truth[image, some] = 1
    one_right = np.zeros_like(truth)  # of each picture the class that is likeliest among the right
    one_right[np.arange(500), np.where(truth, np.load(scores), -1).argmax(axis=1)] = 1
    measures = judged.json["measures"]
    for mean in ("micro", "macro"):
        oracle = sk.f1_score(truth, one_right, average=mean)
        assert measures[f"{mean}_f1"]["interval"][0] > oracle + 0.1
    assert of_graph.json["exact_match_correct"] == judged.json["exact_match_correct"]
    open_it = (
        "import json, sys, transformers as t\n"
        "pipe = t.pipeline('image-classification', sys.argv[1])\n"
        "print(json.dumps(pipe(sys.argv[2:], top_k=10)))"
    )
    said = subprocess.run(
        [sys.executable, "-c", open_it, run / "best", *files], capture_output=True, text=True
    )
    assert said.returncode == 0, said.stderr
    for theirs, ours in zip(json.loads(said.stdout), answers.json["results"], strict=True):
        wanted = {one["label"]: one["score"] for one in theirs}
        found = {one["label"]: one["score"] for one in ours["predictions"]}
        assert found == pytest.approx(wanted, abs=1e-4)
