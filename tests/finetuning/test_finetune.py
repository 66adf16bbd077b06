"""`cvt_cli.finetune` from Python does what `cvt finetune` does."""

import inspect
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

import cvt_cli
from cvt_cli import Classifier, evaluate, finetune
from cvt_cli.base import machine
from cvt_cli.base.errors import CvtError, DataError, UsageError
from cvt_cli.datasets import datacheck
from cvt_cli.finetuning import preparation, tensor_files, trainer, training_loop
from cvt_cli.finetuning.from_options import workers_of
from cvt_cli.finetuning.job import BRING_BACK
from cvt_cli.finetuning.settings import Options
from cvt_cli.images import web
from cvt_cli.prediction.classify import top_predictions
from cvt_cli.spec.labels import Labels
from small_sets import zipped
from tests_shared import TESTS

IMAGES, MODEL = TESTS / "kept" / "images", TESTS / "kept" / "model"
LAST = Path("last", "model.safetensors")
SHORT = {"val_fraction": 0.3, "epochs": 2, "warmup_epochs": 0.1, "batch_size": 8, "workers": 0}
"""Of training on 21 images of a network that takes some milliseconds a step."""


def test_training_from_python_gives_the_bits_of_the_command(cvt, tmp_path: Path, capfd) -> None:
    run, other = tmp_path / "python", tmp_path / "command"
    words = [
        word for name, value in SHORT.items() for word in (f"--{name.replace('_', '-')}", value)
    ]

    result = finetune(IMAGES, model=MODEL, output=run, **SHORT)
    captured = capfd.readouterr()
    said = cvt("finetune", "--data", IMAGES, "--model", MODEL, *words, "--output", other, "--json")

    assert captured.out == "" and "epoch 2/2: loss" in captured.err
    assert result.best == run / "best" and result.run == run
    as_json = json.loads(json.dumps(result.to_json()))  # tuples are lists there
    assert as_json == json.loads((run / "results.json").read_text())
    assert list(result.to_json()) == list(said.json)
    best, folder = repr(result).splitlines()  # as the command prints it without --json
    assert best.startswith("best: epoch ") and folder == str(run / "best")
    assert (result.val_top1, result.steps) == (said.json["val_top1"], said.json["steps"])
    weights = [folder / "last" / "model.safetensors" for folder in (run, other)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert result.command.startswith(f"finetune(data={str(IMAGES)!r}, val_fraction=0.3, ")
    picture = next(path for path in sorted(IMAGES.rglob("*")) if path.is_file())
    assert Classifier(result.best)(picture)[0].label in {p.name for p in IMAGES.iterdir()}


@pytest.mark.skipif(trainer._glibc() is None, reason="keeps no memory for training")
def test_what_a_program_frees_after_training_goes_back_to_the_system(tmp_path: Path) -> None:
    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    finetune(IMAGES, model=MODEL, output=tmp_path / "run", max_time="0s", **SHORT)
    before = held()
    large = np.ones(32 * 1024**2)
    with_it = held()
    del large

    assert with_it - before > 200 * 1024**2
    assert held() - before < 50 * 1024**2


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    """As a search over `np.arange` and `np.logspace` gives them."""
    told = {**SHORT, "epochs": np.int64(2), "val_fraction": np.float64(0.3), "seed": np.int32(1)}

    of_numpy = finetune(IMAGES, model=MODEL, output=tmp_path / "a", lr=np.float32(0.5), **told)
    plain = finetune(IMAGES, model=MODEL, output=tmp_path / "b", lr=0.5, seed=1, **SHORT)

    runs = [result.best.parent for result in (of_numpy, plain)]
    assert (runs[0] / LAST).read_bytes() == (runs[1] / LAST).read_bytes()


@pytest.mark.parametrize("how", ["python", "command"])
def test_a_card_tells_no_folder_of_this_machine(cvt, tmp_path: Path, how: str) -> None:
    data = shutil.copytree(IMAGES, tmp_path / "ada's" / "secrets" / "pets")
    model = shutil.copytree(MODEL, data.parent / "models" / "mine")
    run = tmp_path / "run"
    if how == "python":
        finetune(data, model=model, output=run, **{**SHORT, "epochs": 1})
    else:
        short = ["--val-fraction", 0.3, "--epochs", 1, "--batch-size", 8, "--workers", 0]
        told = cvt("finetune", f"--data={data}", f"-m{model}", *short, f"-o{run}")
        assert told.exit_code == 0, told.stderr

    for name in ("README.md", "card.json"):
        said = (run / "best" / name).read_text()
        assert "ada's" not in said and str(tmp_path) not in said
    assert "models/mine" in json.loads(said)["training"]["command"]


def test_runs_of_two_threads_have_the_bits_of_one_alone(tmp_path: Path) -> None:
    def train(name: str) -> bytes:
        told = {"model": MODEL, "augment": "medium", "output": tmp_path / name}
        return (finetune(IMAGES, **told, **SHORT).best.parent / LAST).read_bytes()

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(train, ("one", "other")))

    assert found == [train("alone")] * 2


def test_a_run_is_gone_on_with_from_python(tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    first = finetune(IMAGES, model=MODEL, output=run, max_time="0s", **SHORT)
    assert first.steps == 1

    result = finetune(resume=run, max_time="1h", workers=0)

    straight = finetune(IMAGES, model=MODEL, output=whole, **SHORT)
    assert result.steps == straight.steps and result.val_top1 == straight.val_top1
    weights = [folder / "last" / "model.safetensors" for folder in (run, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_validation_image_that_goes_away_during_a_run_is_not_judged_as_wrong(
    tmp_path: Path,
) -> None:
    data, run, whole = (tmp_path / name for name in ("data", "run", "whole"))
    shutil.copytree(IMAGES, data)
    finetune(data, model=MODEL, output=run, max_time="0s", **SHORT)
    picture = data / json.loads((run / "split.json").read_text())["validation"][0]
    begun = training_loop.Loop.train

    def gone(loop: training_loop.Loop) -> Any:
        picture.rename(tmp_path / "gone")
        return begun(loop)

    with mock.patch.object(training_loop.Loop, "train", gone):
        with pytest.raises(DataError, match=f"cannot judge by `.*{picture.name}`") as caught:
            finetune(resume=run, max_time="1h", workers=0)
    assert caught.value.hint == BRING_BACK
    (tmp_path / "gone").rename(picture)
    result = finetune(resume=run, max_time="1h", workers=0)

    straight = finetune(data, model=MODEL, output=whole, **SHORT)
    assert result.val_top1 == straight.val_top1
    assert (run / LAST).read_bytes() == (whole / LAST).read_bytes()


@pytest.mark.parametrize(
    ("kind", "damage"),
    [("folder", "gone"), ("folder", "damaged"), ("table", "gone"), ("archive", "damaged")],
)
def test_a_training_image_that_goes_away_during_a_run_ends_it_and_the_same_one_goes_on(
    tmp_path: Path, kind: str, damage: str
) -> None:
    images, run, whole = (tmp_path / name for name in ("images", "run", "whole"))
    shutil.copytree(IMAGES, images)
    data, changing = images, images / "red" / "0.png"
    if kind == "table":
        data = tmp_path / "t.csv"
        names = [path.relative_to(tmp_path) for path in sorted(images.rglob("*.png"))]
        rows = [f"{path},{path.parent.name}\n" for path in names]
        data.write_text("path,label\n" + "".join(rows))
    elif kind == "archive":
        data = changing = zipped(images, tmp_path / "d.zip")
    sound = changing.read_bytes()
    begun = training_loop.Loop.train

    def gone(loop: training_loop.Loop) -> Any:
        if damage == "gone":
            changing.unlink()
        elif kind == "archive":
            changing.write_bytes(b"x" * (len(sound) // 2) + sound[len(sound) // 2 :])
        else:
            changing.write_bytes(b"<html>")
        return begun(loop)

    told = {**SHORT, "val_fraction": 0.2, "seed": 1}
    with mock.patch.object(training_loop.Loop, "train", gone):
        with pytest.raises(DataError, match=r"cannot (train on|judge by) `.*png`: ") as caught:
            finetune(data, model=MODEL, output=run, **told)
    assert caught.value.hint == BRING_BACK
    changing.write_bytes(sound)
    finetune(resume=run, workers=0)

    finetune(data, model=MODEL, output=whole, **told)
    assert (run / LAST).read_bytes() == (whole / LAST).read_bytes()


@pytest.mark.parametrize("later", ["readable", "gone", "unreadable"])
@pytest.mark.parametrize("parts", [("",), ("train", "val")], ids=["held out", "val"])
def test_what_could_not_be_read_when_a_run_began_stays_left_out(
    tmp_path: Path, capfd, later: str, parts: tuple[str, ...]
) -> None:
    data, run, whole = (tmp_path / name for name in ("data", "run", "whole"))
    for part in parts:
        shutil.copytree(IMAGES, data / part)
    told: dict[str, Any] = dict(SHORT)
    if parts != ("",):  # of which names are alike
        del told["val_fraction"]
        told["allow_overlap"] = True
    bad = [data / part / "red" / "3.png" for part in parts]
    sound = [one.read_bytes() for one in bad]
    for one in bad:
        one.write_bytes(b"<html>")
    straight = finetune(data, model=MODEL, output=whole, **told)
    first = finetune(data, model=MODEL, output=run, max_time="0s", **told)
    capfd.readouterr()
    for one, content in zip(bad, sound, strict=True):
        one.unlink()
        if later != "gone":
            one.write_bytes(content if later == "readable" else b"another page")

    result = finetune(resume=run, max_time="1h", workers=0)

    name = "red/3.png"
    listed = f"{len(parts)} left out, as when the run began: {'; '.join([name] * len(parts))}\n"
    assert listed in capfd.readouterr().err
    assert first.n_unreadable == result.n_unreadable == straight.n_unreadable == len(parts)
    assert result.fingerprint == straight.fingerprint and result.val_top1 == straight.val_top1
    assert (run / LAST).read_bytes() == (whole / LAST).read_bytes()


class _Busy(BaseHTTPRequestHandler):
    """Serves images, each at every second request, and some never."""

    asked, busy = Counter[str](), frozenset[str]()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        is_busy = self.path in self.busy or self.asked[self.path] % 2 == 1
        content = b"" if is_busy else (IMAGES / self.path[1:]).read_bytes()
        self.send_response(503 if is_busy else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def test_images_on_a_busy_server_are_trained_on_and_the_run_goes_on_when_it_is_not_busy(
    tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "PAUSES_SEC", (0.01,) * 4)
    monkeypatch.setattr(_Busy, "busy", frozenset(("/red/3.png",)))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    table, run, whole = (tmp_path / name for name in ("t.csv", "run", "whole"))
    with ThreadingHTTPServer(("127.0.0.1", 0), _Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        names = [path.relative_to(IMAGES).as_posix() for path in sorted(IMAGES.rglob("*.png"))]
        rows = "".join(f"{address}/{name},{name.split('/')[0]}\n" for name in names)
        table.write_text("path,label\n" + rows)
        finetune(table, model=MODEL, output=whole, **SHORT)
        finetune(table, model=MODEL, output=run, max_time="0s", **SHORT)
        monkeypatch.setattr(_Busy, "busy", frozenset())
        result = finetune(resume=run, max_time="1h", workers=0)
        said = capfd.readouterr().err
        monkeypatch.setattr(_Busy, "busy", frozenset(("/red/0.png",)))
        with pytest.raises(DataError) as caught:
            finetune(resume=run, workers=0)
        server.shutdown()

    reason = "the server answered 503: Service Unavailable, tried 5 times"
    assert f"1 left out, cannot be read: {address}/red/3.png: {reason}" in said
    assert f"1 left out, as when the run began: {address}/red/3.png\n" in said
    assert result.n_unreadable == 1
    assert (run / LAST).read_bytes() == (whole / LAST).read_bytes()
    assert str(caught.value).endswith(f"when it began: `{address}/red/0.png`: {reason}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "unreadable",
            "the run cannot go on, since images cannot be read that could be when it began: "
            "`{data}/red/0.png`: not an image, or of a type that Pillow cannot read",
        ),
        ("another", "; `red/0.png` is new or changed; 1 of its images is gone or changed"),
        ("gone", "; 1 of its images is gone or changed"),
        ("new", "; `red/new.png` is new or changed"),
        ("renamed", "; the files are the same, with other names, classes, weights or in another"),
    ],
)
def test_a_run_whose_images_have_changed_says_which_and_what_to_do(
    tmp_path: Path, change: str, message: str
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(IMAGES, data)
    (data / "red" / "3.png").write_bytes(b"<html>")
    finetune(data, model=MODEL, output=run, max_time="0s", **SHORT)
    picture, other = data / "red" / "0.png", data / "red" / "new.png"
    if change == "unreadable":
        picture.write_bytes(b"<html>")
    elif change == "another":
        Image.new("RGB", (32, 32), "white").save(picture)
    elif change == "gone":
        picture.unlink()
    elif change == "new":
        Image.new("RGB", (32, 32), "white").save(other)
    else:
        picture.rename(other)

    with pytest.raises(DataError) as caught:
        finetune(resume=run, workers=0)

    assert message.format(data=data) in str(caught.value)
    assert str(caught.value.hint).startswith("bring the same file")


def test_an_image_that_was_damaged_behind_its_header_from_the_start_is_said_to_be_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datacheck, "DECODED_UP_TO", 10)
    data = shutil.copytree(IMAGES, tmp_path / "data")
    for picture in (data / "red").iterdir():
        picture.write_bytes(picture.read_bytes()[:-50])

    with pytest.raises(DataError, match=r"cannot train on `.*png`: ") as caught:
        finetune(data, model=MODEL, output=tmp_path / "run", **SHORT)

    assert "as it was when the run began" in str(caught.value.hint)
    assert "start another run" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("told", "kind", "message"),
    [
        ({}, UsageError, "no data to train on"),
        ({"resume": "run", "seed": 0}, UsageError, "--seed is fixed by the run"),
        ({"data": IMAGES, "recipe": "linear-probe", "lr": 1}, UsageError, "--lr: a linear probe"),
        ({"data": IMAGES, "data_dir": "x"}, UsageError, "--data-dir is only for known data sets"),
        ({"data": IMAGES, "variant": "huge"}, UsageError, "there is no variant `huge`"),
        ({"data": IMAGES, "max_time": "soon"}, UsageError, "`soon` is not a time"),
        ({"data": IMAGES, "max_time": "9" * 400 + "h"}, UsageError, "`999"),
        ({"data": IMAGES, "device": "cuda:63"}, CvtError, "device `cuda:63` is not available"),
        ({"data": "nowhere"}, DataError, ""),
        ({"data": IMAGES, "output": MODEL}, CvtError, f"`{MODEL}` exists and is not empty"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_explained_as_by_the_command(
    cvt, told, kind: type[CvtError], message: str
) -> None:
    words = [w for name, value in told.items() for w in (f"--{name.replace('_', '-')}", value)]

    with pytest.raises(kind) as caught:
        finetune(**told)

    said = cvt("finetune", *words)
    assert str(caught.value).startswith(message)
    assert f"error: {caught.value}" in said.stderr
    assert said.exit_code == (2 if kind is UsageError else 1) or "cuda" in message


def test_a_path_is_a_folder_also_where_a_known_set_has_its_name() -> None:
    assert Options(Path("cifar10")).data == "./cifar10"
    assert Options(Path("photos")).data == "photos"
    assert Options("cifar10").data == "cifar10"
    assert Options("~").data == Options(Path("~")).data == str(Path.home())


def test_the_function_says_what_it_takes_and_is_there_when_it_is_asked_for() -> None:
    taken = inspect.signature(finetune).parameters
    returned = str(inspect.signature(finetune).return_annotation)
    assert "results.Result" in returned and "fold_results.Result" in returned

    assert next(iter(taken)) == "data" and {"model", "epochs", "resume"} < set(taken)
    assert not {"gpus", "dry_run", "show_recipe"} & set(taken)
    assert "finetune" in cvt_cli.__all__ and "finetune" in dir(cvt_cli)
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        finetune(IMAGES, epoch=1)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_a_program_whose_training_was_interrupted_hears_the_next_ctrl_c_and_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, heard, save = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], [], tensor_files.save_file

    def told_to_stop(*arguments: object, **named: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*arguments, **named)

    before = [signal.signal(one, lambda number, frame: heard.append(number)) for one in asked]
    try:
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            patched.setattr(tensor_files, "save_file", told_to_stop)
            finetune(IMAGES, model=MODEL, output=tmp_path / "run", **SHORT)
        assert heard == []  # training heard it
        for one in asked:
            os.kill(os.getpid(), one)
    finally:
        for one, handler in zip(asked, before, strict=True):
            signal.signal(one, handler)

    assert heard == asked


def test_an_interrupted_training_whose_error_is_kept_leaves_no_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a notebook keeps it: the processes that load images would live as long."""
    train, began = trainer.Trainer.step, set[int]()

    def interrupted(*arguments: object, **named: object) -> Any:
        began.update(child.pid or 0 for child in multiprocessing.active_children())
        os.kill(os.getpid(), signal.SIGINT)
        return train(*arguments, **named)

    monkeypatch.setattr(trainer.Trainer, "step", interrupted)

    with pytest.raises(KeyboardInterrupt) as kept:
        finetune(IMAGES, model=MODEL, output=tmp_path / "run", **{**SHORT, "workers": 1})

    assert kept.value and began
    assert not began & {child.pid for child in multiprocessing.active_children()}


def test_a_program_is_told_that_it_measures_what_was_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune(IMAGES, model=MODEL, output=tmp_path / "run", recipe="linear-probe").run
    capsys.readouterr()

    found = evaluate(IMAGES, run)
    everything = capsys.readouterr().err
    evaluate(IMAGES, run, split="val")

    said = f"{run / 'best'}: {found.n_trained_on} of these {found.metrics.n} images were trained on"
    assert f"{said}; --split val measures on those held out" in everything
    assert "were trained on" not in capsys.readouterr().err


def test_small_numbers_become_0_also_in_a_program_that_has_numpy_raise_for_them(
    tmp_path: Path,
) -> None:
    with np.errstate(all="raise"):
        result = finetune(IMAGES, model=MODEL, output=tmp_path / "run", recipe="linear-probe")
        found = evaluate(IMAGES, result.best)
        certain = np.array([1000, 0], np.float32)
        (answer,) = top_predictions(certain, Labels(("a", "b")), 1)

    assert found.metrics.top1 == 1.0 and answer.score == 1.0


@pytest.mark.skipif(os.name != "posix", reason="needs a limit of open files")
def test_workers_that_may_not_open_enough_files_are_not_waited_for(cvt, tmp_path: Path) -> None:
    import resource

    told = ["--val-fraction", 0.3, "--batch-size", 8, "--workers", 2, "--accumulate", 2]
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:  # the soft limit is raised, up to a hard one that is put in its place
        resource.setrlimit(resource.RLIMIT_NOFILE, (90, before[1]))
        raised = cvt("finetune", IMAGES, "--model", MODEL, *told, "--dry-run")
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 80 + 3 * 7
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    with mock.patch.object(resource, "getrlimit", lambda _: (90, 90)):
        by_pipes = cvt("finetune", IMAGES, "--model", MODEL, *told, "--dry-run")
    with mock.patch.object(resource, "getrlimit", lambda _: (30, 30)):
        refused = cvt("finetune", IMAGES, "--model", MODEL, *told, "--dry-run")

    assert (raised.exit_code, by_pipes.exit_code, refused.exit_code) == (0, 0, 1)
    assert "batches go through pipes" not in raised.stderr
    assert "batches go through pipes, which is slower: `ulimit -n` allows" in by_pipes.stderr
    assert "2 workers take up to 80 open files, more than this process may have" in refused.stderr


def test_processes_that_found_different_images_do_not_train_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    def gather(own: str) -> list[str]:
        found.append(own)
        return [found[0], own]

    def as_far_as_this(*_: object) -> None:
        raise DataError("they agree")

    two = SimpleNamespace(count=lambda: 2, gather=gather)
    monkeypatch.setattr(preparation, "torchrun", two)
    monkeypatch.setattr(preparation, "batches_of", as_far_as_this)
    data = shutil.copytree(IMAGES, tmp_path / "data")
    for _ in range(2):
        with pytest.raises(DataError, match="they agree"):
            finetune(data, model=MODEL, output=tmp_path / "run", **SHORT)
    next(data.rglob("*.png")).unlink()

    with pytest.raises(DataError, match="the processes have not found the same images"):
        finetune(data, model=MODEL, output=tmp_path / "run", **SHORT)


def test_a_gpu_gets_as_many_decoders_as_this_process_has_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: range(3), raising=False)
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(machine, "cpu_quota", lambda: 4.0)

    workers = [workers_of(Options(workers=asked), torch.device("cuda")) for asked in (None, 7)]

    assert workers == [3, 7]


@pytest.mark.parametrize("kind", ["no gradients", "inference mode", "float64", "less exact"])
def test_it_trains_the_same_whatever_the_program_has_set_for_itself(
    tmp_path: Path, kind: str
) -> None:
    plain = finetune(IMAGES, model=MODEL, output=tmp_path / "plain", augment="medium", **SHORT)
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    asked = before[0], "medium" if kind == "less exact" else before[1]
    asked = (torch.float64, asked[1]) if kind == "float64" else asked
    drawn = torch.manual_seed(7).get_state()
    with_gradients = kind not in ("no gradients", "inference mode")
    try:
        torch.set_default_dtype(asked[0])
        torch.set_float32_matmul_precision(asked[1])
        with (
            torch.inference_mode(kind == "inference mode"),
            torch.set_grad_enabled(with_gradients),
            torch.autocast("cpu", torch.bfloat16, enabled=kind == "less exact"),
            torch.device("meta" if kind == "less exact" else "cpu"),
        ):
            result = finetune(
                IMAGES, model=MODEL, output=tmp_path / "within", augment="medium", **SHORT
            )
            assert torch.is_grad_enabled() == with_gradients
            assert torch.equal(torch.get_rng_state(), drawn)
            assert (torch.get_default_dtype(), torch.get_float32_matmul_precision()) == asked
    finally:
        torch.set_default_dtype(before[0])
        torch.set_float32_matmul_precision(before[1])

    one, other = (run.best / "model.safetensors" for run in (plain, result))
    assert one.read_bytes() == other.read_bytes()


UNGUARDED = """
import multiprocessing, sys
multiprocessing.set_start_method("spawn", force=True)
from cvt_cli import finetune
finetune(sys.argv[1], model="cvt-nano-cifar10", epochs=1, output=sys.argv[2], workers=1)
"""


def test_a_script_that_its_own_workers_begin_anew_is_told_of_the_guard(tmp_path: Path) -> None:
    """As it is by default on macOS and Windows, and from Python 3.14 on."""
    script = tmp_path / "train.py"
    script.write_text(UNGUARDED)

    done = subprocess.run(
        [sys.executable, script, TESTS / "kept" / "images", tmp_path / "run"],
        capture_output=True,
        text=True,
    )

    assert done.returncode == 1
    assert "training began again in a process that was started to load its images" in done.stderr
    assert 'in a script that trains without `if __name__ == "__main__":`' in done.stderr


IN_A_POOL = """
import multiprocessing, sys
from cvt_cli import finetune
from cvt_cli.base.errors import UsageError

data, model, run = sys.argv[1:]
short = {"val_fraction": 0.3, "epochs": 1, "batch_size": 8}

def trained(workers):
    asked = {} if workers is None else {"workers": workers}
    try:
        return str(finetune(data, model=model, output=f"{run}-{workers}", **short, **asked).best)
    except UsageError as error:
        return str(error)

if __name__ == "__main__":
    with multiprocessing.Pool(1) as pool:
        print(*pool.map(trained, [None, 1]), sep="\\n")
"""


def test_in_a_process_that_may_start_no_others_it_trains_without_workers(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(IN_A_POOL)

    done = subprocess.run(
        [sys.executable, script, IMAGES, MODEL, tmp_path / "run"], capture_output=True, text=True
    )

    assert done.stdout.splitlines() == [
        str(tmp_path / "run-None" / "best"),
        "--workers 1 starts processes, which a daemonic process of `multiprocessing` may not",
    ], done.stderr
