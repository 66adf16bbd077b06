"""Fixtures: a cache of its own for every test, the larger data sets, the command line."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cvt_cli.cli import app
from tests_shared import Result, test_data


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches a real home."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("CVT_CACHE", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def unpacked(tmp_path_factory: pytest.TempPathFactory, archive: str) -> Path:
    folder = tmp_path_factory.mktemp("data")
    with tarfile.open(test_data(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="session")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of odd, broken and hostile image files."""
    return unpacked(tmp_path_factory, "awkward/awkward.tar.gz") / "awkward"


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of CIFAR-10 as class folders: train/ and test/."""
    return unpacked(tmp_path_factory, "sets/cifar10-png.tar.gz") / "cifar10"


@pytest.fixture(scope="session")
def signdigits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of sign-language digits as class folders: train/ and val/."""
    return unpacked(tmp_path_factory, "sets/signdigits.tar.gz") / "signdigits"


@pytest.fixture
def cvt() -> Callable[..., Result]:
    """Run a command line in this process; an exception that is a bug escapes."""

    def run(*arguments: object) -> Result:
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return Result(result.exit_code, result.stdout, result.stderr)

    return run
