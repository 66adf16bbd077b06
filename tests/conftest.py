"""Fixtures: a cache of its own for every test, the larger data sets, the command line."""

import functools
import os
import signal
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from filelock import FileLock
from typer.main import get_command
from typer.testing import CliRunner

from cvt_cli.cli import app
from fake_hub import Hub
from tests_shared import Machine, Result, test_data


def pytest_configure(config: pytest.Config) -> None:
    """No real home and no network, before the hub's client is imported, which reads these once."""
    home = tempfile.TemporaryDirectory()
    config.add_cleanup(home.cleanup)
    os.environ.update(HF_HOME=home.name, HF_HUB_OFFLINE="1")
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_ENDPOINT"):
        os.environ.pop(name, None)
    if config.getoption("numprocesses"):
        # For the processes that share the tests, and for theirs: more threads than cores wait for
        # each other by spinning, many times as long as one thread takes.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # where a test takes two all the same
    if hasattr(config, "workerinput") or not config.getoption("numprocesses"):
        # Under nohup and in the background these are ignored, and what a test starts would inherit
        # that. It does not inherit a handler, and one that does nothing ignores as well.
        for which in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            if signal.getsignal(which) is signal.SIG_IGN:
                signal.signal(which, lambda number, frame: None)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """With one thread PyTorch computes the 1 x 1 convolutions of small batches without oneDNN."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches a real home."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CVT_CACHE", str(folder))
    return folder


def unpacked(
    tmp_path_factory: pytest.TempPathFactory,
    archive: str,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Path:
    """A folder with the members of an archive whose names are wanted.

    Unpacking takes seconds; the processes that share the tests share what one of them unpacked.
    """
    of_all = tmp_path_factory.getbasetemp()
    of_all = of_all.parent if "PYTEST_XDIST_WORKER" in os.environ else of_all
    folder = of_all / Path(archive).name.split(".")[0]

    def pick(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
        return tarfile.data_filter(member, folder) if wanted(member.name) else None

    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            with tarfile.open(test_data(archive)) as tar:
                tar.extractall(partial, filter=pick)
            partial.rename(folder)
    return folder


@pytest.fixture(scope="session")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of odd, broken and hostile image files."""
    return unpacked(tmp_path_factory, "awkward/awkward.tar.gz") / "awkward"


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CIFAR-10 as class folders: all of test/, and of train/ one image in a hundred."""

    def wanted(name: str) -> bool:
        return "/train/" not in name or name.endswith("00.png")

    return unpacked(tmp_path_factory, "sets/cifar10-png.tar.gz", wanted) / "cifar10"


@pytest.fixture(scope="session")
def signdigits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of sign-language digits as class folders: train/ and val/."""
    return unpacked(tmp_path_factory, "sets/signdigits.tar.gz") / "signdigits"


_command = functools.cache(get_command)
"""Every command and its options: what a process builds once takes longer than most of the tests."""


@pytest.fixture
def cvt() -> Callable[..., Result]:
    """Run a command line in this process; an exception that is a bug escapes."""

    def run(*arguments: object) -> Result:
        line = [str(a) for a in arguments]
        with (
            mock.patch.object(sys, "argv", ["cvt", *line]),  # a run's plan keeps it
            mock.patch("typer.testing._get_command", _command),
        ):
            result = CliRunner().invoke(app, line, catch_exceptions=False, prog_name="cvt")
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def python_takes_ctrl_c() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, and is afterwards what it was."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub on 127.0.0.1 without repositories."""
    with Hub() as hub:
        yield hub


@pytest.fixture
def machine(hub: Hub, tmp_path: Path) -> Machine:
    """A new computer that can reach the hub."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("HF_")}
    places = {"HF_HOME": str(tmp_path / "hf"), "CVT_CACHE": str(tmp_path / "cvt")}
    return Machine(tmp_path, {**environment, **places, "HF_ENDPOINT": hub.url})


@pytest.fixture
def cvt_process() -> Callable[..., Result]:
    """Run a command line in a process of its own, as a user does.

    OpenVINO, ONNX Runtime and transformers in one process, and training on torch after them, has
    ended in a segmentation fault; no command does both.
    """

    def run(*arguments: object) -> Result:
        return Machine(Path(), dict(os.environ)).run(*arguments)

    return run
