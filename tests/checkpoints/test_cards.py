"""What the hub reads in the header of a model card."""

from pathlib import Path

from huggingface_hub import ModelCard

from cvt_cli.checkpoints.cards import Score, model_card
from tests_shared import TESTS

KEPT = TESTS / "kept"


def test_the_hub_reads_license_base_data_and_results_in_the_header() -> None:
    scores = [Score("top-1", 0.875, "cifar10", "val"), Score("top-5", 1.0, "cifar10", "val")]

    card = ModelCard(
        model_card(
            "a: run", "What it is.", {"seed": "0"}, {"top-1": "87.5 %"}, "None.",
            license="Apache-2.0", base_model="microsoft/cvt-13", data="cifar10", scores=scores,
        )
    )  # fmt: skip

    assert (card.data.model_name, card.data.license) == ("a: run", "apache-2.0")
    assert card.data.base_model == "microsoft/cvt-13"
    assert card.data.datasets == ["uoft-cs/cifar10"]
    found = [(r.metric_name, r.metric_type, r.metric_value) for r in card.data.eval_results]
    assert found == [("top-1", "accuracy", 0.875), ("top-5", "accuracy", 1.0)]
    assert card.data.eval_results[0].dataset_split == "val"
    assert card.text.startswith("\n# a: run\n\nWhat it is.\n")


def test_what_is_not_known_is_not_in_the_header() -> None:
    card = ModelCard(model_card("run", "What it is.", {}, {}, "None.", data="my_folder"))

    assert card.data.to_dict() == {
        "library_name": "cvt-cli",
        "model_name": "run",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "cvt"],
    }


def test_the_card_of_a_run_from_a_hub_says_what_it_comes_from(machine, hub, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in (KEPT / "model").iterdir()}
    hub.add("someone/tiny", {**files, "README.md": b"---\nlicense: CC0-1.0\n---\n# Tiny\n"})
    run = tmp_path / "run"

    result = machine.run(
        "finetune", "--data", KEPT / "images", "--model", "someone/tiny", "--val-fraction", 0.3,
        "--epochs", 3, "--warmup-epochs", 0.1, "--batch-size", 8, "--workers", 0, "--max-time",
        "0s", "-o", run,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    gone_on = machine.run("finetune", "--resume", run, "--max-time", "1h", "--json")

    assert gone_on.exit_code == 0, gone_on.stderr
    said = ModelCard.load(run / "best" / "README.md").data
    assert (said.base_model, said.license) == ("someone/tiny", "cc0-1.0")
    top1 = next(one for one in said.eval_results if one.metric_name == "top-1")
    assert top1.metric_value == gone_on.json["val_top1"]
    assert (top1.dataset_name, top1.dataset_split) == ("images", "train, a part held out")
