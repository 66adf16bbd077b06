"""Work is shared out only among processes that torchrun has started."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from cvt_cli.base import torchrun
from cvt_cli.base.errors import CvtError, UsageError
from tests_shared import CHELSEA, Result, torchrun_environment
from warm_processes import start

WHOLE = torchrun_environment(rank=1, count=2)


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)


def set_all(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_all_that_torchrun_sets_makes_one_of_several_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_all(monkeypatch, WHOLE)

    assert (torchrun.rank(), torchrun.count()) == (1, 2)
    assert (torchrun.local_rank(), torchrun.local_count()) == (1, 2)


@pytest.mark.parametrize(
    "environment",
    [{}, {"WORLD_SIZE": ""}, {"RANK": "0", "WORLD_SIZE": "1"}, {"LOCAL_RANK": "0"}],
    ids=str,
)
def test_one_process_is_one_whoever_says_so(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    set_all(monkeypatch, environment)

    assert (torchrun.rank(), torchrun.count(), torchrun.local_count()) == (0, 1, 1)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"RANK": "1"}, "has RANK=1 without WORLD_SIZE and LOCAL_RANK and LOCAL_WORLD_SIZE and"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "has RANK=0, WORLD_SIZE=2 without LOCAL_RANK"),
        ({"RANK": "abc"}, "has RANK=abc without"),
        ({"RANK": "1", "WORLD_SIZE": ""}, "has RANK=1 without WORLD_SIZE"),
        ({"LOCAL_WORLD_SIZE": "0"}, "has LOCAL_WORLD_SIZE=0 without"),
        (WHOLE | {"MASTER_PORT": "99999"}, "MASTER_PORT is `99999`; it must be a number from 1"),
        (WHOLE | {"MASTER_PORT": "x"}, "MASTER_PORT is `x`; it must be a number from 1 to 65535"),
        (WHOLE | {"RANK": "2"}, "RANK=2, WORLD_SIZE=2.* which contradict each other"),
        (WHOLE | {"LOCAL_RANK": "-1"}, "LOCAL_RANK=-1.* which contradict each other"),
        (WHOLE | {"WORLD_SIZE": "two"}, "WORLD_SIZE=two.* which contradict each other"),
        ({k: v for k, v in WHOLE.items() if k != "MASTER_PORT"}, "without MASTER_PORT"),
    ],
    ids=str,
)
def test_a_part_of_it_is_refused_before_any_image_is_left_out(
    environment: dict[str, str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    cvt: Callable[..., Result],
) -> None:
    set_all(monkeypatch, environment)

    with pytest.raises(UsageError, match=reason):
        torchrun.count()
    result = cvt("predict", CHELSEA, "--model", "cvt-nano-cifar10")

    assert result.exit_code == 2
    assert result.stdout == ""
    assert "torchrun -m cvt_cli" in result.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("export", "cvt-nano-cifar10", "-o", "nano.onnx"),
        ("benchmark", "--variant", "nano"),
        ("push", "run", "somebody/cvt"),
    ],
    ids=lambda command: command[0],
)
def test_what_one_process_does_is_not_done_twice(
    command: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    cvt: Callable[..., Result],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    set_all(monkeypatch, WHOLE)

    result = cvt(*command)

    assert result.exit_code == 2
    assert "runs in one process, not in the 2 of torchrun" in result.stderr
    assert not list(tmp_path.iterdir())


def test_each_name_belongs_to_one_process_and_keeps_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"photos/{number}.jpg" for number in range(1000)] + [os.fsdecode(b"caf\xe9.jpg")]
    set_all(monkeypatch, WHOLE)
    ours = {name for name in names if torchrun.is_mine(name)}
    monkeypatch.setenv("RANK", "0")
    theirs = {name for name in names if torchrun.is_mine(name)}

    assert ours | theirs == set(names)
    assert not ours & theirs
    assert 400 < len(ours) < 600


def test_who_is_left_by_another_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    lost = "[gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:5797."
    set_all(monkeypatch, WHOLE)

    with pytest.raises(CvtError, match="^process 1 has nobody to go on with: another of the 2 has"):
        with torchrun.others_watched():
            raise RuntimeError(lost)
    with pytest.raises(RuntimeError, match="shape"), torchrun.others_watched():
        raise RuntimeError("shape mismatch")


def test_a_script_that_calls_something_in_one_process_alone_does_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held_by_torchrun = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = {"MASTER_PORT": str(held_by_torchrun.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip
    set_all(monkeypatch, {**torchrun_environment(rank=0, count=2), **port})
    monkeypatch.setattr(torchrun, "_store", None)
    monkeypatch.setattr(torchrun.atexit, "register", lambda *call: None)

    other = start(
        None, code="from cvt_cli import evaluate", environment={**os.environ, **WHOLE, **port}
    )
    with pytest.raises(CvtError, match="process 1 of the 2 has ended and did not come to evaluate"):
        with torchrun.joined("evaluate"):
            pass

    other.communicate()
    assert other.returncode == 0
