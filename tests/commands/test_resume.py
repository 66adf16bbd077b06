"""Files of answers and predictions are gone on with by name, under the same conditions."""

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from cvt_cli.base import locks
from tests_shared import TESTS, Machine, Result, torchrun_environment
from warm_processes import Started

NANO = ["--model", "cvt-nano-cifar10"]
TORCH = ["--model", "model", "--engine", "torch", "--precision", "fp32"]
PREDICT = ["predict", "images", *TORCH, "--resume", "answers.jsonl"]
EVALUATE = ["evaluate", "--data", "images", *TORCH, "--json", "--predictions", "judged.jsonl"]

INTEGERS = ("n", "top1_correct", "top5_correct", "classes", "confusions", "groups")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model of three colours and ten images of each, in the folder that commands run in."""
    for name in ("model", "images"):
        shutil.copytree(TESTS / "kept" / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines_of(path: str | Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def other_weights() -> None:
    path = Path("model", "model.safetensors")
    tensors = load_file(path)
    tensors["classifier.bias"] = tensors["classifier.bias"].flip(0)
    save_file(tensors, path)


def other_class_names() -> None:
    path = Path("model", "config.json")
    path.write_text(path.read_text().replace('"green"', '"grün"'))


def other_heads() -> None:
    path = Path("model", "config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_heads": [1, 1, 1]}))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        pytest.param(other_weights, "was made with weights_sha256", id="weights"),
        pytest.param(other_class_names, "was made with classes_sha256", id="class names"),
        pytest.param(other_heads, "was made with stages_sha256", id="heads"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_another_model_under_the_same_path_does_not_go_on(
    cvt, folder: Path, command: str, change: Callable[[], None], differs: str
) -> None:
    arguments = PREDICT if command == "predict" else [*EVALUATE, "--resume"]
    assert cvt(*arguments).exit_code == 0
    path = Path("answers.jsonl" if command == "predict" else "judged.jsonl")
    before = path.read_bytes()
    change()
    if change is other_class_names and command == "evaluate":
        Path("images", "green").rename("images/grün")

    result = cvt(*arguments)

    assert result.exit_code == 2
    assert differs in result.stderr
    assert path.read_bytes() == before


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_the_same_model_goes_on_whatever_it_is_called(cvt, folder: Path, command: str) -> None:
    arguments = PREDICT if command == "predict" else [*EVALUATE, "--resume"]
    path = Path("answers.jsonl" if command == "predict" else "judged.jsonl")
    assert cvt(*arguments).exit_code == 0
    before = path.read_bytes()
    shutil.copytree("model", "moved")

    for name in ("./model", "model/", folder / "model", "model/model.safetensors", "moved"):
        result = cvt(*(name if one == "model" else one for one in arguments))

        assert result.exit_code == 0, result.stderr
        assert f"`, which is the same model as `{name}`" in result.stderr
        assert f"30 images already in `{path}`" in result.stderr
        assert path.read_bytes() == before


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_another_model_by_another_path_does_not_go_on(cvt, folder: Path, command: str) -> None:
    arguments = PREDICT if command == "predict" else [*EVALUATE, "--resume"]
    shutil.copytree("model", "earlier")
    assert cvt(*("earlier" if one == "model" else one for one in arguments)).exit_code == 0
    other_weights()

    result = cvt(*arguments)

    assert result.exit_code == 2
    assert 'was made with model "earlier", this run has "model"; weights_sha256' in result.stderr


def test_two_evaluations_of_other_options_are_not_mixed(cvt, folder: Path) -> None:
    cvt(*EVALUATE)

    assert "was made with k 5, this run has 2" in cvt(*EVALUATE, "--resume", "--top-k", 2).stderr


# --- by name


def test_an_evaluation_goes_on_by_name_after_an_image_that_sorts_first_was_added(
    cvt, folder: Path
) -> None:
    shutil.move("images/blue/0.png", "later.png")
    cvt(*EVALUATE)
    shutil.move("later.png", "images/blue/0.png")

    resumed = cvt(*EVALUATE, "--resume")
    fresh = cvt(*EVALUATE[:-1], "fresh.jsonl")

    assert resumed.exit_code == 0, resumed.stderr
    assert "29 of 30 images already in `judged.jsonl`" in resumed.stderr
    ours, wanted = resumed.json, fresh.json
    for one in ours["classes"]:  # they need the probabilities of every class
        assert one.pop("roc_auc") is None and one.pop("average_precision") is None
    for one in wanted["classes"]:
        assert one.pop("roc_auc") >= 0 and one.pop("average_precision") >= 0
    for key in INTEGERS:
        assert ours[key] == wanted[key], key
    assert ours["loss"] == pytest.approx(wanted["loss"])
    ours, wanted = lines_of("judged.jsonl"), lines_of("fresh.jsonl")
    assert ours[-1]["path"] == "blue/0.png" == wanted[0]["path"]
    assert sorted(line["path"] for line in ours) == sorted(line["path"] for line in wanted)


def swap_two_images() -> None:
    first, second = Path("images/red/0.png"), Path("images/blue/3.png")
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (swap_two_images, "`blue/3.png` has changed since `judged.jsonl` was made"),
        (
            lambda: Path("images/red/9.png").write_bytes(b""),
            "`red/9.png` could be read when `judged.jsonl` was made, and cannot now: empty file",
        ),
        (lambda: Path("images/red/9.png").unlink(), "this data has no `red/9.png`"),
        (
            lambda: Path("map.json").write_text('{"blue": "red", "green": "green", "red": "blue"}'),
            "`blue/0.png` is of class `blue` in `judged.jsonl`, and of `red` now",
        ),
        (
            lambda: Path("groups.csv").write_text(
                Path("groups.csv").read_text().replace(",a", ",b")
            ),
            "`judged.jsonl` was made with other groups of the same images",
        ),
    ],
    ids=["swapped", "emptied", "removed", "label map", "groups"],
)
def test_an_evaluation_does_not_go_on_where_its_lines_would_be_wrong(
    cvt, folder: Path, change: Callable[[], object], message: str
) -> None:
    names = sorted(path.relative_to("images") for path in Path("images").rglob("*.png"))
    Path("groups.csv").write_text("path,group\n" + "".join(f"{name},a\n" for name in names))
    Path("map.json").write_text('{"blue": "blue", "green": "green", "red": "red"}')
    arguments = [*EVALUATE, "--groups", "groups.csv", "--label-map", "map.json"]
    cvt(*arguments)
    before = Path("judged.jsonl").read_bytes()
    change()

    result = cvt(*arguments, "--resume")

    assert result.exit_code == 2
    assert message in result.stderr
    assert Path("judged.jsonl").read_bytes() == before


@pytest.mark.parametrize("left_out", [[], ["--skip-unreadable"]])
def test_an_image_that_could_not_be_read_when_it_was_judged_is_tried_again(
    cvt, folder: Path, left_out: list[str]
) -> None:
    """As where a server failed for a moment, or a file had not been copied whole."""
    whole = cvt(*EVALUATE[:-1], "whole.jsonl", *left_out).json
    empty, partial = Path("images/red/0.png"), Path("images/green/4.png")
    sound, other = empty.read_bytes(), partial.read_bytes()
    empty.write_bytes(b"")
    partial.write_bytes(other[:-30])
    first = cvt(*EVALUATE, *left_out)
    lines = lines_of("judged.jsonl")

    again = cvt(*EVALUATE, "--resume", *left_out)
    same = lines_of("judged.jsonl")
    empty.write_bytes(sound)
    partial.write_bytes(other)
    resumed = cvt(*EVALUATE, "--resume", *left_out)

    assert ["error" in line for line in lines] == [False] * 28 + [True] * 2
    assert [len({line["path"] for line in found}) for found in (lines, same)] == [30, 30]
    assert first.json["n_failed"] == again.json["n_failed"] == 2 and lines == same
    assert "28 of 30 images already in `judged.jsonl`" in again.stderr
    assert resumed.exit_code == 0, resumed.stderr
    assert "28 of 30 images already in `judged.jsonl`" in resumed.stderr
    assert resumed.json["n_failed"] == 0
    for key in INTEGERS[:3]:
        assert resumed.json[key] == whole[key], key
    by_name = [
        {line["path"]: (line["correct"], line["sha256"]) for line in lines_of(name)}
        for name in ("judged.jsonl", "whole.jsonl")
    ]
    assert by_name[0] == by_name[1] and len(lines_of("judged.jsonl")) == 30


def test_a_refused_evaluation_leaves_the_lines_of_what_could_not_be_read(cvt, folder: Path) -> None:
    Path("images/red/0.png").write_bytes(b"")
    cvt(*EVALUATE)
    before = Path("judged.jsonl").read_bytes()

    assert cvt(*EVALUATE, "--resume", "--top-k", 2).exit_code == 2
    swap_two_images()
    assert cvt(*EVALUATE, "--resume").exit_code == 2

    assert Path("judged.jsonl").read_bytes() == before


def test_of_predictions_with_an_unreadable_image_it_is_known_what_was_trained_on(
    cvt, folder: Path
) -> None:
    Path("images/red/0.png").write_bytes(b"")
    cvt(*EVALUATE)
    state = Path("judged.jsonl.state.json")
    known = json.loads(state.read_text()) | {"n_trained_on": 3}

    state.write_text(json.dumps(known))

    compared = cvt("compare", "judged.jsonl", "judged.jsonl", "--json").json
    assert compared["n_trained_on_a"] == 3


def half_copied(path: str) -> Callable[[], None]:
    """Keeps the first half of a file; what this returns puts all of it there."""
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])
    return lambda: [Path(path).write_bytes(content)] and None


def test_an_image_that_could_not_be_read_is_tried_again_by_predict(cvt, folder: Path) -> None:
    """As where a job meets a file that is being copied, and the next one meets all of it."""
    made_whole = half_copied("images/red/3.png")
    sound = Path("images/blue/3.png").read_bytes()
    Path("images/blue/3.png").write_bytes(b"")
    cvt(*PREDICT)
    before = Path("answers.jsonl").read_bytes()

    same = cvt(*PREDICT)
    after = Path("answers.jsonl").read_bytes()
    made_whole()
    Path("answers.jsonl").chmod(0o640)
    one = cvt(*PREDICT)
    Path("images/blue/3.png").write_bytes(sound)
    Path("images/blue/-.png").write_bytes(sound)
    both = cvt(*PREDICT)

    assert same.exit_code == 1 and after == before
    assert "28 images already in `answers.jsonl`" in same.stderr
    again = (
        "2 images could not be read when `answers.jsonl` was written: those named here are tried"
    )
    assert again in same.stderr and "2 of 30 images could not be read" in same.stderr
    assert one.exit_code == 1 and "1 of 30 images could not be read" in one.stderr
    assert both.exit_code == 0, both.stderr
    lines = lines_of("answers.jsonl")
    assert sorted(str(line["path"]) for line in lines) == sorted(
        str(path) for path in Path("images").rglob("*.png")
    )
    assert not [line for line in lines if "error" in line]
    assert stat.S_IMODE(Path("answers.jsonl").stat().st_mode) == 0o640
    assert sorted(path.name for path in Path().glob("*answers*")) == [
        "answers.jsonl", "answers.jsonl.conditions.json",
    ]  # fmt: skip


def test_an_error_stays_where_an_answered_image_has_changed(cvt, folder: Path) -> None:
    made_whole = half_copied("images/blue/0.png")
    cvt(*PREDICT)
    before = lines_of("answers.jsonl")
    made_whole()
    swap_two_images()

    assert cvt(*PREDICT).exit_code == 2
    assert lines_of("answers.jsonl")[: len(before)] == before


def test_the_error_that_a_killed_predict_had_answered_is_gone_after_the_next_one(
    cvt, folder: Path
) -> None:
    made_whole = half_copied("images/red/3.png")
    cvt(*PREDICT)
    error = next(line for line in lines_of("answers.jsonl") if "error" in line)
    made_whole()
    cvt(*PREDICT)
    killed = [json.dumps(error), *Path("answers.jsonl").read_text().splitlines()]
    Path("answers.jsonl").write_text("".join(f"{line}\n" for line in killed))

    result = cvt(*PREDICT)

    assert result.exit_code == 0 and "30 images already in" in result.stderr
    assert not [line for line in lines_of("answers.jsonl") if "error" in line]
    assert len(lines_of("answers.jsonl")) == 30


def test_an_image_that_is_listed_twice_and_cannot_be_read_has_two_lines(cvt, folder: Path) -> None:
    made_whole = half_copied("images/red/3.png")
    Path("list.txt").write_text("images/red/3.png\n" * 2)
    command = ["predict", "@list.txt", *TORCH, "--resume", "answers.jsonl"]
    cvt(*command)
    before = lines_of("answers.jsonl")
    cvt(*command)
    same = lines_of("answers.jsonl")
    made_whole()

    assert cvt(*command).exit_code == 0
    assert ["error" in line for line in before] == [True, True] and same == before
    assert ["error" in line for line in lines_of("answers.jsonl")] == [False, False]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ""])
def test_an_archive_that_was_half_copied_or_a_folder_that_was_empty_is_no_error_later(
    cvt, folder: Path, suffix: str
) -> None:
    if suffix:
        kind = {".zip": "zip", ".tar": "tar", ".tar.gz": "gztar"}[suffix]
        made_whole = half_copied(shutil.make_archive("all", kind, "images"))
    else:
        Path("all").mkdir()
        made_whole = partial(shutil.copytree, "images", "all", dirs_exist_ok=True)
    command = ["predict", f"all{suffix}", "images/red/0.png", *TORCH, "--resume", "answers.jsonl"]
    first = cvt(*command)
    errors = [line["path"] for line in lines_of("answers.jsonl") if "error" in line]
    cvt(*command)
    still = [line["path"] for line in lines_of("answers.jsonl") if "error" in line]
    made_whole()
    result = cvt(*command)

    assert first.exit_code == 1 and f"all{suffix}" in errors and still == errors
    assert result.exit_code == 0, result.stderr
    lines = lines_of("answers.jsonl")
    assert len(lines) == 31 and not [line for line in lines if "error" in line]


def test_an_evaluation_does_not_go_on_among_other_classes(cvt, folder: Path) -> None:
    shutil.move("images/red", "red")
    cvt(*EVALUATE)
    shutil.move("red", "images/red")

    result = cvt(*EVALUATE, "--resume")

    assert result.exit_code == 2
    assert 'was made with classes_present "2 of 3' in result.stderr


def test_groups_may_gain_a_row_for_an_image_that_was_added(cvt, folder: Path) -> None:
    names = sorted(path.relative_to("images") for path in Path("images").rglob("*.png"))
    Path("groups.csv").write_text("path,group\n" + "".join(f"{name},a\n" for name in names))
    cvt(*EVALUATE, "--groups", "groups.csv")
    shutil.copy("images/red/3.png", "images/blue/-.png")
    Path("groups.csv").write_text(Path("groups.csv").read_text() + "blue/-.png,b\n")

    result = cvt(*EVALUATE, "--groups", "groups.csv", "--resume")

    assert result.exit_code == 0, result.stderr
    assert [group["n"] for group in result.json["groups"]["groups"]] == [30, 1]


@pytest.mark.parametrize("place", ["", "file://{}/"])
def test_predict_does_not_go_on_where_an_answered_image_has_changed(
    cvt, folder: Path, place: str
) -> None:
    images = place.format(Path().absolute()) + "images"
    cvt("predict", f"{images}/red", *TORCH, "--resume", "answers.jsonl")
    swap_two_images()

    result = cvt("predict", images, *TORCH, "--resume", "answers.jsonl")

    assert result.exit_code == 2
    assert f"`{images}/red/0.png` has changed since `answers.jsonl` answered it" in result.stderr


def test_a_file_of_something_else_is_not_emptied_by_resuming(cvt, folder: Path) -> None:
    Path("judged.jsonl").write_text("mine\n")

    result = cvt(*EVALUATE, "--resume")

    assert result.exit_code == 2
    assert "`judged.jsonl` exists, but not `judged.jsonl.state.json`" in result.stderr
    assert Path("judged.jsonl").read_text() == "mine\n"


def test_going_on_takes_the_engine_that_a_file_was_begun_with(cvt, folder: Path) -> None:
    cvt(*PREDICT)
    Path("images/red/-.png").write_bytes(Path("images/red/1.png").read_bytes())
    auto = [word for word in PREDICT if word not in ("--engine", "torch")]

    other = cvt(*auto, "--engine", "onnxruntime")
    same = cvt(*auto)

    assert 'was made with engine "torch", this run has "onnxruntime"' in other.stderr
    assert same.exit_code == 0, same.stderr
    assert len(lines_of("answers.jsonl")) == 31


# --- several processes


def waiting_for(process: Started, words: str) -> str:
    """What a process says on stderr up to a line with these words."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if words in line:
            break
    return said


def test_two_predicts_on_one_file_answer_every_image_once(machine: Machine, tmp_path: Path) -> None:
    images = []
    for number in range(60):
        images.append(tmp_path / f"{number}.png")
        Image.new("RGB", (40, 40), (4 * number, 120, 200)).save(images[-1])
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in images))
    path = tmp_path / "answers.jsonl"
    arguments = [*NANO, "--batch-size", 1, "--workers", 1, "--resume", path]
    machine.popen = {"stdin": subprocess.PIPE}
    first = machine.start("predict", "-", *arguments)
    assert first.stdin is not None
    first.stdin.write("".join(f"{path}\n" for path in images[:30]))
    first.stdin.flush()
    while not path.exists() or not path.stat().st_size:
        assert first.poll() is None
        time.sleep(0.05)
    second = machine.start("predict", f"@{tmp_path}/list.txt", *arguments)

    said = waiting_for(second, "another process is answering into")
    first.stdin.write("".join(f"{path}\n" for path in images[30:45]))
    first.communicate(timeout=120)
    result = machine.wait(second)

    assert f"another process is answering into `{path}`; waiting for it" in said
    assert (first.returncode, result.exit_code) == (0, 0)
    assert "45 images already in" in result.stderr
    assert [line["path"] for line in lines_of(path)] == [str(path) for path in images]


def test_an_evaluation_waits_for_who_writes_its_predictions(machine: Machine, folder: Path) -> None:
    with locks.growing(Path("judged.jsonl"), "writing", lambda text: None) as file:
        file.write(b"of the other process\n")
        process = machine.start(*EVALUATE, "--overwrite")
        said = waiting_for(process, "another process is")
        meanwhile = Path("judged.jsonl").read_bytes()
    result = machine.wait(process)

    assert "another process is writing predictions to `judged.jsonl`; waiting for it" in said
    assert meanwhile == b"of the other process\n"
    assert result.exit_code == 0 and len(lines_of("judged.jsonl")) == 30


def test_two_processes_go_on_by_name_after_an_image_was_added(
    machine: Machine, folder: Path
) -> None:
    machine.torchrun(*PREDICT, "--device", "cpu")
    shutil.copy("images/red/3.png", "images/blue/-.png")

    result = machine.torchrun(*PREDICT, "--device", "cpu")

    assert result.exit_code == 0, result.stderr
    found = [lines_of(f"answers.{rank}-of-2.jsonl") for rank in (0, 1)]
    paths = [str(line["path"]) for lines in found for line in lines]
    assert sorted(paths) == sorted(str(path) for path in Path("images").rglob("*.png"))


@pytest.mark.parametrize(
    "command", [PREDICT, ["evaluate", "--data", "images", *TORCH, "--resume", "answers.jsonl"]]
)
def test_another_number_of_processes_does_not_do_again_what_was_done(
    cvt, machine: Machine, folder: Path, command: list[str]
) -> None:
    shared = machine.torchrun(*command, "--device", "cpu")
    assert shared.exit_code == 0, shared.stderr

    alone = cvt(*command)

    assert alone.exit_code == 2 and not Path("answers.jsonl").exists()
    assert "`answers.0-of-2.jsonl` is of 2 processes, and this run has 1: what" in alone.stderr
    assert "hint: go on as it was begun, with `torchrun --nproc-per-node 2`" in alone.stderr
    for rank in (0, 1):
        Path(f"answers.{rank}-of-2.jsonl").unlink()
    assert cvt(*command).exit_code == 0
    assert "is of 1 process, and this run has 2" in machine.torchrun(*command).stderr


def test_processes_say_which_files_of_predictions_they_write(
    cvt, machine: Machine, folder: Path
) -> None:
    shared = machine.torchrun(*EVALUATE, "--device", "cpu")

    files = [f"judged.{rank}-of-2.jsonl" for rank in (0, 1)]
    said = f"predictions of `model`: `{files[0]}` and a file like it of each other process"
    assert shared.exit_code == 0 and shared.stderr.count(said) == 1
    Path("both.jsonl").write_text("".join(Path(name).read_text() for name in files))
    alone = cvt(*EVALUATE)
    assert "predictions of" not in alone.stderr
    compared = cvt("compare", "judged.jsonl", "both.jsonl", "--json").json
    assert (compared["n"], compared["accuracy_b"]) == (shared.json["n"], shared.json["top1"])


@pytest.mark.parametrize("once", ["-", "@/dev/stdin", "@pipe"])
def test_what_can_be_read_once_is_not_shared_by_processes(
    cvt, folder: Path, monkeypatch: pytest.MonkeyPatch, once: str
) -> None:
    os.mkfifo("pipe")
    if once == "@/dev/stdin" and os.path.isfile("/dev/stdin"):
        pytest.skip("stdin is a file here, which each process can read")
    for name, value in torchrun_environment(rank=1, count=2).items():
        monkeypatch.setenv(name, value)

    result = cvt("predict", "images", once, *TORCH, "--jsonl")

    assert result.exit_code == 2
    assert f"`{once}` can be read only once, but 2 processes" in result.stderr
    assert "hint: write the list to a file, and give @list.txt" in result.stderr


# --- ends


def test_what_a_killed_predict_left_is_swept_by_the_next_one(
    cvt, machine: Machine, folder: Path
) -> None:
    machine.popen = {"stdin": subprocess.PIPE}
    process = machine.start(
        "predict", "-", *TORCH, "--features", "out/f.safetensors"
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write("images/red/0.png\n" * 40)
    process.stdin.flush()
    while not Path("out").exists() or len(list(Path("out").iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = len(list(Path("out").iterdir()))

    # Not in this process, which sweeps a folder once.
    result: Result = machine.run("predict", "images/red", *TORCH, "--features", "out/f.safetensors")

    assert left >= 2
    assert result.exit_code == 0, result.stderr
    assert [path.name for path in Path("out").iterdir()] == ["f.safetensors"]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(Path("out/f.safetensors").stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param({"bytes": 0, "done": 0, "lines": 0}, "it is damaged", id="nothing done"),
        pytest.param({"conditions": {}, "sha256": None, "counted": []}, "indices", id="a list"),
        pytest.param({"conditions": {}, "sha256": None}, "shape", id="of other classes"),
    ],
)
def test_a_damaged_state_is_not_gone_on_from_and_nothing_is_cut_off(
    change: dict[str, object], reason: str, folder: Path, cvt: Callable[..., Result]
) -> None:
    cvt(*EVALUATE)
    before = Path("judged.jsonl").read_bytes()
    path = Path("judged.jsonl.state.json")
    state = json.loads(path.read_text())
    if reason == "shape":
        state["counted"]["class_n"] = [30]
    path.write_text(json.dumps(state | change))

    result = cvt(*EVALUATE, "--resume")

    assert result.exit_code == 2
    assert "`judged.jsonl.state.json` does not fit `judged.jsonl`" in result.stderr
    assert reason in result.stderr
    assert Path("judged.jsonl").read_bytes() == before
