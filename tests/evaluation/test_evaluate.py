"""`cvt_cli.evaluate` from Python: the numbers, the checks and the messages of the command."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

import cvt_cli
from cvt_cli import Classifier, evaluate, loading
from cvt_cli.base import torchrun
from cvt_cli.base.errors import DataError, UsageError
from tests_shared import TESTS, torchrun_environment

IMAGES, MODEL = TESTS / "kept" / "images", TESTS / "kept" / "model"
TIMES = {"images_per_sec", "decode_images_per_sec", "model_images_per_sec", "transfer_sec"}


def untimed(document: dict[str, object]) -> dict[str, object]:
    return {key: value for key, value in document.items() if key not in TIMES}


def test_it_gives_what_the_command_prints(cvt, capsys) -> None:
    printed = cvt("evaluate", "--data", IMAGES, "--model", MODEL, "--json", "--top-k", 2)

    result = evaluate(IMAGES, MODEL, top_k=2)

    assert list(result.to_json()) == list(printed.json)
    assert untimed(json.loads(json.dumps(result.to_json()))) == untimed(printed.json)
    assert result.metrics.n == 30
    assert result.metrics.top1 == printed.json["top1_correct"] / 30
    assert result.model == str(MODEL)
    assert capsys.readouterr() == ("", printed.stderr)


def test_a_result_is_shown_as_the_lines_that_the_command_prints(cvt, tmp_path: Path) -> None:
    shutil.copytree(IMAGES, tmp_path / "data")
    (tmp_path / "data" / "red" / "bad.png").write_text("no image")
    printed = cvt("evaluate", tmp_path / "data", "--model", MODEL)

    result = evaluate(tmp_path / "data", MODEL)

    lines = printed.stdout.splitlines()[:-1]  # but the speed, which differs
    wrong = "counted as wrong: 1 of 31 images, which could not be read"
    assert wrong in printed.stderr and len(lines) >= 6
    assert repr(result).splitlines()[:-1] == [f"{MODEL} on {tmp_path / 'data'}", wrong, *lines]
    assert repr(result.metrics).splitlines()[:-1] == [wrong, *lines]
    assert len(repr(result.metrics.measures)) < 2500 and len(repr(result.metrics.calibration)) < 300


def test_several_models_give_a_list_in_their_order(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "other")
    predictions = tmp_path / "p.jsonl"

    first, second = evaluate(IMAGES, [MODEL, tmp_path / "other"], predictions=predictions)

    assert [first.model, second.model] == [str(MODEL), str(tmp_path / "other")]
    assert first.metrics.top1_correct == second.metrics.top1_correct
    assert len(list(tmp_path.glob("p.*.jsonl"))) == 2


def test_all_processes_of_a_torchrun_choose_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*_: object, images: int, together: int, **__: object) -> None:
        asked.append((images, together))
        raise DataError("as far as this")

    monkeypatch.setattr(loading, "load_classifier", load)
    monkeypatch.setattr(torchrun, "joined", nullcontext)  # there is no second one
    for rank in range(2):  # 13 images and 17
        for name, value in torchrun_environment(rank=rank, count=2).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(DataError, match="as far as this"):
            evaluate(IMAGES, MODEL)

    assert asked == [(15, 15), (15, 15)]


def test_answers_of_processes_with_other_weights_are_not_added_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gather(own: list[dict[str, object]]) -> list[object]:
        return [own, [{**one, "weights_sha256": "0" * 64} for one in own]]

    monkeypatch.setattr(torchrun, "gather", gather)

    with pytest.raises(UsageError, match='process 1 answered with weights_sha256 "000'):
        evaluate(IMAGES, MODEL)


def test_an_unreadable_image_is_wrong_and_named(tmp_path: Path) -> None:
    shutil.copytree(IMAGES, tmp_path / "data")
    (tmp_path / "data" / "red" / "bad.png").write_text("no image")

    counted = evaluate(tmp_path / "data", MODEL).metrics
    left_out = evaluate(tmp_path / "data", MODEL, skip_unreadable=True).metrics

    assert (counted.n, left_out.n) == (31, 30)
    assert counted.top1_correct == left_out.top1_correct
    assert [one.name for one in counted.failures] == ["red/bad.png"]
    assert "not an image" in left_out.failures[0].reason


def test_where_no_image_can_be_read_nothing_is_said_of_loss_and_speed(cvt, tmp_path: Path) -> None:
    for name in ("red", "blue"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "bad.png").write_text("no image")

    result = cvt("evaluate", tmp_path, "--model", MODEL)

    assert result.exit_code == 1 and "top-1   0.00 %  (0 of 2" in result.stdout
    assert "loss" not in result.stdout and "speed" not in result.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictions": "p.txt"}, "predictions cannot be written as `p.txt`"),
        ({"resume": True}, "--resume needs exactly one model, and --predictions FILE.jsonl"),
        ({"data_dir": "sets"}, "--data-dir is only for known data sets"),
        ({"split": "val"}, "it is not known of which run"),
        ({"split": "train"}, "split is `train`; accepted are `val` and `test`"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"top_k": 1}, "top_k is 1; it must be at least 2"),
        ({"columns": {"path": "file"}}, "columns is {'path': 'file'}; it must be a text"),
        ({"separator": 7}, "separator is 7; it must be a text"),
        ({"exif": "no"}, "exif is 'no'; it must be True or False"),
        ({"skip_unreadable": "no"}, "skip_unreadable is 'no'; it must be True or False"),
        ({"offline": "no"}, "offline is 'no'; it must be True or False"),
        ({"revision": 1}, "revision is 1; it must be a text"),
        ({"workers": 1.5}, "workers is 1.5; it must be a whole number"),
        ({"engine": "tensorrt"}, "engine `tensorrt`; accepted are"),
    ],
)
def test_the_checks_are_those_of_the_command(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(IMAGES, MODEL, **options)


def test_a_model_is_named_and_not_given_itself() -> None:
    with pytest.raises(UsageError, match="model is of type Classifier; it must be a name, a path"):
        evaluate(IMAGES, Classifier(MODEL))


def test_a_path_is_a_folder_also_where_a_known_set_has_its_name(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(IMAGES, "cifar10")

    assert evaluate(Path("cifar10"), MODEL).root == Path("cifar10")
    with pytest.raises(DataError):
        evaluate("cifar10", MODEL, offline=True)


def test_data_that_is_not_there_is_said() -> None:
    with pytest.raises(DataError, match="`nowhere` does not exist"):
        evaluate("nowhere", MODEL)


def test_it_is_part_of_the_package_and_imported_when_it_is_asked_for() -> None:
    assert "evaluate" in dir(cvt_cli) and "evaluate" in cvt_cli.__all__
