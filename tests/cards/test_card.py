"""`cvt card`: what was measured meets in one document; results of something else are refused."""

import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.constants import REPOCARD_NAME
from huggingface_hub.repocard_data import model_index_to_eval_results

from cvt_cli.cards import markdown, parts, shown_results
from cvt_cli.finetuning import run_card
from cvt_cli.model import weights
from tests_shared import TESTS

KEPT = TESTS / "kept"
NOT_MEASURED = "Not measured: "


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was evaluated and benchmarked into its card, and the JSON of the evaluation."""
    from unittest import mock

    from typer.testing import CliRunner

    from cvt_cli.cli import app

    folder = tmp_path_factory.mktemp("card")
    images, run = shutil.copytree(KEPT / "images", folder / "images"), folder / "run"
    for line in (
        ["finetune", images, "--model", KEPT / "model", "--epochs", 2, "--val-fraction", 0.3,
         "--batch-size", 8, "--workers", 0, "--output", run],
        ["evaluate", images, "--model", run, "--split", "val", "--engine", "torch",
         "--card", run, "--json", folder / "val.json"],
        ["benchmark", run, "--engine", "torch", "--rounds", 1, "--batch-size", 1,
         "--card", run, "--json", folder / "speed.json"],
    ):  # fmt: skip
        words = [str(word) for word in line]
        with mock.patch("sys.argv", ["cvt", *words]):
            done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def run(measured: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(measured / "images", tmp_path / "images")
    return shutil.copytree(measured / "run", tmp_path / "run")


def test_an_exported_graph_has_no_card_of_its_own(cvt, tmp_path: Path) -> None:
    exported = tmp_path / "nano.onnx"
    cvt("export", "cvt-nano-cifar10", "--output", exported)

    result = cvt("card", exported)

    assert result.exit_code == 2 and result.stdout == ""
    assert f"`{exported}` is an exported graph, and a card is of a checkpoint" in result.stderr
    added = cvt("card", "cvt-nano-cifar10", "--add", f"{exported}.json")
    assert added.exit_code == 0 and "nano.onnx" in added.stdout


def card_of(run: Path) -> str:
    return (run / "best" / REPOCARD_NAME).read_text()


def lines_not_measured(text: str) -> list[str]:
    return [line for line in text.splitlines() if NOT_MEASURED in line]


def test_after_training_evaluation_and_benchmark_two_things_are_not_measured(
    measured: Path,
) -> None:
    text = card_of(measured / "run")

    robustness, energy = lines_not_measured(text)
    assert "unknown inputs" in robustness
    assert "`cvt finetune --energy`" in energy and "`cvt benchmark --energy`" in energy
    assert "[More Information Needed]" not in text
    said = json.loads((measured / "val.json").read_text())
    low, high = (100 * bound for bound in said["top1_interval"])
    assert (
        f"| top-1 | {100 * said['top1']:.2f} % ({said['top1_correct']} of 9; {low:.2f} to "
        f"{high:.2f}) |"
    ) in text
    assert said["fingerprint"] in text and said["weights_sha256"][:16] in text
    assert "the images that the best epoch was chosen by" in text
    rate = json.loads((measured / "speed.json").read_text())["rows"][0]["images_per_sec"]
    assert f"| torch | fp32 | 1 | {rate:.1f} (" in text
    for label in ("blue", "green", "red"):
        assert f"| {label} | 7 |" in text  # images to train on
    assert re.search(r"Started 2\d{3}-.*; ended 2\d{3}-", text)
    assert str(measured) not in text  # no folder of this machine


def test_the_hubs_client_reads_both_forms_of_the_results_back(measured: Path) -> None:
    best = measured / "run" / "best"
    said = json.loads((measured / "val.json").read_text())

    card = ModelCard.load(best / REPOCARD_NAME)
    _, found = model_index_to_eval_results(card.data.to_dict()["model-index"])

    (top1,) = [one for one in found if one.metric_name == "top-1"]
    assert top1.metric_value == said["top1"] and top1.dataset_name == "images"
    assert top1.dataset_args == {"fingerprint": said["fingerprint"]}
    assert card.data.library_name == "transformers" and "cvt-cli" in card.data.tags
    assert set(card.data.metrics) == {"accuracy", "f1"}
    entries = yaml.safe_load((best / ".eval_results" / "cvt.yaml").read_text())
    hub = pytest.importorskip("huggingface_hub")
    if not hasattr(hub, "parse_eval_result_entries"):  # the lowest client that is allowed
        return
    parsed = hub.parse_eval_result_entries(entries)
    assert [one.value for one in parsed] == [one.metric_value for one in found]
    assert hub.eval_result_entries_to_yaml(parsed) == entries
    assert said["fingerprint"] in parsed[0].notes


def test_text_that_was_edited_stays_and_the_rest_is_written_anew(cvt, run: Path) -> None:
    path = run / "best" / REPOCARD_NAME
    text = card_of(run)
    text = text.replace("**Developed by:** not stated", "**Developed by:** Ada")
    text = text.replace("## Uses\n", "## Uses\n\nMine.\n")
    text = text.replace("tags:\n- image-classification\n", "language: en\ntags:\n- signs\n", 1)
    text = text.replace("<!-- cvt: citation", "Between the parts.\n\n<!-- cvt: citation")
    path.write_text(text.replace("pipeline_tag: image-classification", "pipeline_tag: other"))
    (run / "best" / "card.json").write_text(
        (run / "best" / "card.json").read_text().replace('"seed": 0', '"seed": 77')
    )

    result = cvt("card", run)

    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{path}\n"
    now = path.read_text()
    assert "**Developed by:** Ada" in now and "## Uses\n\nMine.\n" in now
    assert "Between the parts.\n\n<!-- cvt: citation" in now
    assert "| seed | 77 |" in now
    header = ModelCard(now).data.to_dict()
    assert header["language"] == "en" and header["pipeline_tag"] == "other"
    assert "edited by hand and kept as it is: tags, pipeline_tag, details, uses;" in (
        result.stderr.replace("pipeline_tag, tags", "tags, pipeline_tag")
    )
    assert result.stderr.rstrip().endswith("written anew: training")

    again = cvt("card", run)
    assert path.read_text() == now and "nothing has changed" in again.stderr


def test_what_is_of_something_else_is_refused_before_it_is_measured(
    cvt, run: Path, tmp_path: Path
) -> None:
    before, images, exported = card_of(run), run.parent / "images", tmp_path / "run.onnx"
    assert cvt("export", run, "--output", exported, "--verify-data", images / "blue").exit_code == 0

    for line, differs in (
        (["evaluate", images, "--model", run, "--split", "val", "--resize", "pad"],
         'preprocessing `resize` "pad", where the model has "crop"'),
        (["evaluate", images, "--model", exported, "--predictions", tmp_path / "p.jsonl"],
         "weights with SHA-256"),
        (["benchmark", run, "--res", 64, "--rounds", 1], "`height` 64, where the model has 32"),
        (["export", "cvt-nano-cifar10", "--output", tmp_path / "n.onnx"], "weights with SHA-256"),
    ):  # fmt: skip
        result = cvt(*line, "--card", run)

        assert result.exit_code == 1 and result.stdout == "", result.stderr
        assert "--card: what would be measured is not a result of" in result.stderr
        assert differs in result.stderr
    assert card_of(run) == before
    assert {path.name for path in tmp_path.glob("?.*")} <= {"p.jsonl"}


def test_edits_of_an_editor_that_ends_lines_as_windows_does_are_kept(cvt, run: Path) -> None:
    path = run / "best" / REPOCARD_NAME
    text = card_of(run).replace("**Developed by:** not stated", "**Developed by:** Ada")
    path.write_bytes(text.replace("\n", "\r\n").encode())

    result = cvt("card", run)

    assert result.exit_code == 0, result.stderr
    assert "edited by hand and kept as it is: details;" in result.stderr
    assert card_of(run) == text


def test_a_card_is_written_by_one_process_at_a_time(cvt, measured: Path, run: Path) -> None:
    import fcntl
    from threading import Thread

    document = json.loads((measured / "val.json").read_text())
    (run / "more.json").write_text(json.dumps({**document, "data": "others"}))
    before, found = card_of(run), []
    with (run / "best" / "config.json").open() as file:  # keeps the descriptor's number taken
        holder = os.open(run / "best", os.O_RDONLY)
        fcntl.flock(holder, fcntl.LOCK_EX)
        thread = Thread(target=lambda: found.append(cvt("card", run, "--add", run / "more.json")))
        thread.start()
        thread.join(1.0)
        assert thread.is_alive() and card_of(run) == before
        os.close(holder)
        thread.join()
        assert file.readable()

    assert found[0].exit_code == 0 and "another process is writing the card of" in found[0].stderr
    assert sorted(p.name for p in (run / "best").iterdir() if "lock" in p.name) == []


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("a: &a [x, x]\n" + "".join(f"{b}: &{b} [{f'*{a}, ' * 9}]\n" for a, b in zip(
            "abcdefgh", "bcdefghi", strict=True)), "stands for more than 100,000 values"),
        ("a: &a [*a]", "stands for more than 100,000 values"),
        ("released: 2026-13-45", "is no YAML"),
    ],
)  # fmt: skip
def test_a_header_that_stands_for_too_much_or_for_no_value_is_refused(
    cvt, run: Path, header: str, said: str
) -> None:
    path = run / "best" / REPOCARD_NAME
    path.write_text(card_of(run).replace("---\n", f"---\n{header}\n", 1))

    refused, checked = cvt("card", run), cvt("card", "--check", path)

    assert refused.exit_code == 1 and said in refused.stderr
    assert checked.exit_code == 1 and said in checked.stdout


def test_keys_of_a_header_may_be_numbers(cvt, run: Path) -> None:
    path = run / "best" / REPOCARD_NAME
    path.write_text(card_of(run).replace("---\n", "---\nlabels: {0: cat, dog: 1}\n", 1))

    assert cvt("card", run).exit_code == 0
    assert ModelCard(card_of(run)).data.to_dict()["labels"] == {0: "cat", "dog": 1}


def test_a_large_card_of_somebody_is_checked_in_seconds(cvt, tmp_path: Path) -> None:
    file = tmp_path / "marks.md"
    file.write_text("<!-- cvt: a 00000000 -->\n" * 40_000 + "# " + " " * 100_000 + "x\n")

    began = time.process_time()
    assert cvt("card", "--check", file).exit_code == 1

    assert time.process_time() - began < 5


def test_a_card_is_not_written_over_a_result_that_it_is_given(
    cvt, measured: Path, run: Path, tmp_path: Path
) -> None:
    file = shutil.copy(measured / "speed.json", tmp_path / "speed.json")

    refused = cvt("card", run, "--add", file, "--output", file, "--overwrite")

    assert refused.exit_code == 2 and "is an input" in refused.stderr


def test_a_part_that_was_removed_with_its_marks_is_written_again(cvt, run: Path) -> None:
    path = run / "best" / REPOCARD_NAME
    whole = path.read_text()
    path.write_text(re.sub(r"<!-- cvt: uses .*?<!-- /cvt -->\n\n", "", whole, flags=re.DOTALL))

    result = cvt("card", run)

    assert path.read_text() == whole and "written anew: uses" in result.stderr


def test_a_card_that_somebody_else_wrote_is_not_replaced(cvt, run: Path) -> None:
    path = run / "best" / REPOCARD_NAME
    path.write_text("# Mine\n")

    for line in (("card", run), ("evaluate", run.parent / "images", "--model", run, "--card", run)):
        refused = cvt(*line)
        assert refused.exit_code == 1 and "has no marks of `cvt card`" in refused.stderr
        assert path.read_text() == "# Mine\n"

    assert cvt("card", run, "--overwrite").exit_code == 0
    assert path.read_text().startswith("---\n")


def test_no_card_is_looked_for_in_a_pipe(cvt, run: Path, tmp_path: Path) -> None:
    (run / "best" / REPOCARD_NAME).unlink()
    os.mkfifo(run / "best" / REPOCARD_NAME)
    read, write = os.pipe()

    refused, written = cvt("card", run), cvt("card", "cvt-nano-cifar10", "-o", f"/dev/fd/{write}")

    os.close(write)
    assert refused.exit_code == 1 and "README.md` is not a regular file" in refused.stderr
    assert written.exit_code == 0, written.stderr
    with os.fdopen(read) as pipe:
        assert pipe.read().startswith("---\n")


def changed(document: dict[str, Any], **values: Any) -> dict[str, Any]:
    found = {**document, **values}
    return {name: value for name, value in found.items() if value is not ...}


@pytest.mark.parametrize(
    ("kind", "values", "said"),
    [
        ("val", {"weights_sha256": "0" * 64}, "it is of weights with SHA-256 000000000000…, where"),
        ("val", {"classes_sha256": "0" * 64}, "other class names, or these in another order"),
        ("val", {"fingerprint": "0" * 64}, "of other images than the result of"),
        ("val", {"n": 8}, "images: 8, where the card has 9"),
        ("val", {"activation": "gelu"}, 'it is of `activation` "gelu", where the model has'),
        ("val", {"preprocessing": {"height": 64}}, "it is of preprocessing `height` 64, where the"),
        ("val", {"top1_interval": "x"}, "is a damaged result, of which a card cannot be made"),
        ("val", {"confusions": [{"label": None}]}, "is a damaged result, of which a card cannot"),
        ("speed", {"rows": [{"engine": []}]}, "is a damaged result, of which a card cannot be"),
        ("val", {"engine": ...}, "is a damaged result of `cvt evaluate`: it has no `engine`"),
        ("val", {"version": "99.0.0"}, "was written by version 99.0.0 of cvt, which is newer"),
        ("speed", {"macs": 5}, "it is of `macs` 5, where the model has 75048"),
        ("speed", {"height": 64}, "it is of `height` 64, where the model has 32"),
        ("speed", {"versions": {"cvt-cli": "99.0.0"}}, "was written by version 99.0.0"),
    ],
)
def test_a_result_of_something_else_is_refused_with_what_differs(
    cvt, measured: Path, run: Path, tmp_path: Path, kind: str, values: dict[str, Any], said: str
) -> None:
    document = json.loads((measured / f"{kind}.json").read_text())
    file = tmp_path / "other.json"
    file.write_text(json.dumps(changed(document, **values)))
    before = card_of(run)

    result = cvt("card", run, "--add", file)

    assert result.exit_code == 1
    assert f"`{file}`" in result.stderr and said in result.stderr
    assert card_of(run) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"n": 3', "cannot be read as JSON"),
        ("[]", "holds no result of a command of cvt"),
        ('{"mine": 1}', "is not the result of a command that a card takes"),
    ],
)
def test_a_file_that_holds_no_result_is_refused(
    cvt, run: Path, tmp_path: Path, content: str, said: str
) -> None:
    (tmp_path / "x.json").write_text(content)

    result = cvt("card", run, "--add", tmp_path / "x.json")

    assert result.exit_code == 1 and said in result.stderr


def test_a_result_takes_the_place_of_the_one_before_of_the_same_data(
    cvt, measured: Path, run: Path
) -> None:
    result = cvt("card", run, "--add", measured / "val.json", "--json")

    assert result.exit_code == 0, result.stderr
    assert "takes the place of what was there of `cvt evaluate`" in result.stderr
    kept = json.loads((run / "best" / "card.json").read_text())["results"]
    assert [one["kind"] for one in kept] == ["benchmark", "evaluation"][::-1]
    assert result.json["kept"] == [] and result.json["eval_results"][0]["value"] >= 0


def test_results_of_the_same_data_in_another_precision_are_told_apart(
    cvt, measured: Path, run: Path, tmp_path: Path
) -> None:
    document = json.loads((measured / "val.json").read_text())
    (tmp_path / "bf16.json").write_text(json.dumps({**document, "precision": "bf16"}))

    result = cvt("card", run, "--add", tmp_path / "bf16.json", "--json")

    assert result.exit_code == 0, result.stderr
    tasks = [one["dataset"]["task_id"] for one in result.json["eval_results"]]
    assert len(set(tasks)) == len(tasks) and "top-1, images (torch, bf16), val" in tasks
    for precision in ("fp32", "bf16"):
        assert result.json["card"].count(f"| top-1, images (torch, {precision}) |") == 1


def test_images_that_were_trained_on_are_known_though_the_checkpoint_has_left_its_run(
    cvt, measured: Path, run: Path, tmp_path: Path
) -> None:
    alone = shutil.copytree(run / "best", tmp_path / "alone")

    result = cvt("evaluate", measured / "images", "--model", alone, "--card", alone, "--json")

    assert result.exit_code == 0, result.stderr
    assert (result.json["n"], result.json["n_trained_on"]) == (30, None)
    card = (alone / REPOCARD_NAME).read_text()
    assert "on images of which 21 were trained on" in card
    assert "**21 of the 30 images were trained on, so these figures are too high.**" in card
    one = next((measured / "images").glob("*/*.png"))
    changed = shutil.copytree(measured / "images", tmp_path / "changed")
    (changed / one.relative_to(measured / "images")).unlink()
    cvt("evaluate", changed, "--model", alone, "--card", alone)
    assert (
        "on data that it is not known to have been trained on"
        in (alone / REPOCARD_NAME).read_text()
    )


def test_the_worst_class_is_told_by_counts_as_its_interval_is() -> None:
    # By weights `a` is found more often, and so is not what its interval is of.
    found = [
        {"label": "a", "n": 4, "correct": 1, "interval": [0.05, 0.7], "recall": 0.99},
        {"label": "b", "n": 4, "correct": 2, "interval": [0.15, 0.85], "recall": 0.5},
    ]

    assert shown_results.worst_class({"classes": found}) == (
        "a: 25.00 % (5.00 to 70.00) of its 4 images are found"
    )


def test_a_finished_run_ended_when_it_did_though_it_is_gone_on_with(
    cvt, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = re.search(r"; ended 2\d{3}-\S+;", card_of(run))
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({**results, "device": "cuda:0", "processes": 8}))
    monkeypatch.setattr(run_card, "now", lambda: "2100-01-01T00:00+00:00")

    result = cvt("finetune", "--resume", run, "--data", run.parent / "images")

    assert result.exit_code == 0, result.stderr
    assert ended is not None and ended[0] in card_of(run) and "2100-" not in card_of(run)
    again = json.loads((run / "results.json").read_text())
    assert (again["device"], again["processes"]) == ("cuda:0", 8)  # not where it was resumed


def test_results_of_weights_that_are_there_no_more_leave_the_card(cvt, run: Path) -> None:
    best = weights.load(run / "best")
    with torch.no_grad():
        best.model.head.bias.add_(1.0)
    card = card_of(run)
    weights.save(run / "best", best.model, best.labels, best.preprocessing, card)

    pushed = cvt("push", run, "somebody/signs")
    assert pushed.exit_code == 1
    assert "the model card is of other weights than those that are there" in pushed.stderr
    assert f"hint: `cvt card {run}` writes it again" in pushed.stderr
    result = cvt("card", run)

    assert result.exit_code == 0, result.stderr
    assert "a result of `cvt evaluate` on" in result.stderr and "is left out" in result.stderr
    assert "on other images than those; `cvt evaluate" in card_of(run)


def test_a_damaged_record_or_one_of_a_newer_version_is_refused(cvt, run: Path) -> None:
    path = run / "best" / "card.json"
    for content, said in (
        ("{", "cannot be read"),
        ('{"version": 2}', "is of version 2; this version of cvt reads version 1"),
        ('{"version": 1, "training": null, "results": [{"kind": "x"}]}', "damaged result"),
        ('{"version": 1, "training": {"seed": 1}, "results": []}', "holds what a card cannot be"),
    ):
        path.write_text(content)
        result = cvt("card", run)
        assert result.exit_code == 1 and said in result.stderr


def test_check_says_what_a_card_lacks(cvt, measured: Path, tmp_path: Path) -> None:
    template = ModelCard.from_template(ModelCard("---\nlicense: mit\n---\n").data)
    (tmp_path / "empty.md").write_text(str(template))

    empty = cvt("card", "--check", tmp_path / "empty.md", "--json")
    ours = cvt("card", "--check", measured / "run" / "best" / REPOCARD_NAME)

    assert empty.exit_code == 1
    assert len([x for x in empty.json["lacks"] if "[More Information Needed]" in x]) >= 35
    assert "the header has no `library_name`" in empty.json["lacks"]
    assert ours.exit_code == 1  # the model that it was trained from has no license
    assert [x for x in ours.stdout.splitlines() if x.startswith("lacks")] == [
        "lacks           the header has no `license`"
    ]
    assert len([x for x in ours.stdout.splitlines() if x.startswith("not measured")]) == 2
    assert "not stated      Developed by" in ours.stdout


def test_a_model_without_a_folder_has_its_card_printed_or_written_where_it_is_told(
    cvt, tmp_path: Path
) -> None:
    printed = cvt("card", "cvt-nano-cifar10")
    file = tmp_path / "card.md"
    written = cvt("card", "cvt-nano-cifar10", "-o", file)

    assert printed.exit_code == written.exit_code == 0
    assert file.read_text() == printed.stdout
    assert ModelCard(printed.stdout).data.model_name == "cvt-nano-cifar10"
    file.write_text("mine")
    assert cvt("card", "cvt-nano-cifar10", "-o", file).exit_code == 1
    assert file.read_text() == "mine"


def test_no_name_can_break_a_card() -> None:
    odd = "a|b <!-- /cvt --> *x* `y` [z](w)\n# h & <b>"

    shown = markdown.table(("class",), [(odd,)])
    text = parts.merged({}, {"one": shown, "two": "2"}, None).text

    assert shown.count("\n") == 2 and shown.splitlines()[-1].count("|") == 2
    assert "<b>" not in shown and "<!--" not in shown
    assert r"| a&#124;b &lt;!-- /cvt --&gt; \*x\* \`y\` \[z\](w) \# h &amp; &lt;b&gt; |" in shown
    assert markdown.code("a|*b*") == r"<code>a&#124;\*b\*</code>"
    assert parts.edited(text) == []
    assert parts.merged({}, {"one": shown, "two": "2"}, text).text == text


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
    assert said.to_dict()["base_model_relation"] == "finetune"
    top1 = next(one for one in said.eval_results if one.metric_name == "top-1")
    assert top1.metric_value == gone_on.json["val_top1"]
    assert (top1.dataset_name, top1.dataset_split) == ("images", "train, a part held out")
