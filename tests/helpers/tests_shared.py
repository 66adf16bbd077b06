"""What the tests share: golden weights and numbers, where the larger data lies."""

import contextlib
import fcntl
import functools
import json
import os
import pty
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from cvt_cli.model.network import CvT, fresh_model
from cvt_cli.spec.config import CvTConfig, StageConfig
from warm_processes import Started, start

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden"
CHELSEA = TESTS / "photos" / "chelsea.png"

sys.path.insert(0, str(GOLDEN))
import formula  # noqa: E402  # the maker of the golden weights and inputs lies beside the numbers


def test_data(name: str) -> Path:
    """A file or folder of the larger test data; without it the test is skipped, in CI failed."""
    root = Path(os.environ.get("CVT_TEST_DATA") or TESTS.parent.parent / "shared")
    path = root / name
    if not path.exists():
        complain = pytest.fail if os.environ.get("CVT_REQUIRE_TEST_DATA") else pytest.skip
        complain(f"no test data at {path}; CVT_TEST_DATA says where it is")
    return path


test_data.__test__ = False  # type: ignore[attr-defined]


def importing_tests_of(folder: Path) -> dict[str, str]:
    """The environment of a process that imports the tests of a folder, as those import helpers."""
    places = [str(folder), str(TESTS / "helpers"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}


def make_special(folder: Path) -> Path:
    """The cases that no archive carries: pipes, link loops, unreadable files."""
    subprocess.run(["sh", test_data("awkward/make_special.sh"), folder], check=True)
    return folder


def torchrun_environment(rank: int, count: int) -> dict[str, str]:
    """What torchrun tells one of its processes on one machine."""
    numbers = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count}
    meeting_point = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    return {name: str(value) for name, value in numbers.items()} | meeting_point


def too_deep(folder: Path) -> Path:
    """A folder below another one that nobody can read, root included: its path is too long."""
    name = "deep" * 60
    descriptor = os.open(folder, os.O_RDONLY)
    path = folder
    while len(str(path)) < 4096:
        os.mkdir(name, dir_fd=descriptor)
        below = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor, path = below, path / name
    os.close(descriptor)
    return path


@dataclass
class Result:
    """What a command printed and how it ended."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        assert self.stdout, f"printed nothing, exit code {self.exit_code}: {self.stderr}"
        return json.loads(self.stdout)

    @property
    def json_lines(self) -> list[Any]:
        return [json.loads(line) for line in self.stdout.splitlines()]


def python(code: str, *arguments: object, **options: Any) -> Result:
    """Run a script to its end in a process of its own; ``options`` are those of `start`."""
    environment = options.pop("environment", dict(os.environ))
    process = start(None, *arguments, code=code, environment=environment, **options)
    stdout, stderr = process.communicate(timeout=900)
    return Result(process.returncode, stdout, stderr)


@dataclass
class Machine:
    """A computer with a home of its own, where the hub is the one of the test."""

    home: Path
    environment: dict[str, str]
    popen: dict[str, Any] = field(default_factory=dict)

    @property
    def hub_cache(self) -> Path:
        return self.home / "hf" / "hub"

    @property
    def own_cache(self) -> Path:
        return self.home / "cvt"

    def torchrun(self, *arguments: object) -> Result:
        """Run a command in two processes of a torchrun."""
        return self.wait(self.start(*arguments, through=("forked_torchrun", "2", "-m")))

    def start(
        self, *arguments: object, through: tuple[str, ...] = (), **environment: str
    ) -> Started:
        """Start a command in a process of its own."""
        module, *first = *through, "cvt_cli"
        everything = {**self.environment, **environment}
        return start(module, *first, *arguments, environment=everything, **self.popen)

    def run(self, *arguments: object, **environment: str) -> Result:
        """Run a command to its end."""
        return self.wait(self.start(*arguments, **environment))

    def on_a_terminal(self, *arguments: object, **environment: str) -> str:
        """What a command shows on a terminal 110 columns wide; it must end well."""
        controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
        everything = {**self.environment, **environment}
        process = start(
            "cvt_cli", *arguments, environment=everything, stdout=terminal, stderr=terminal
        )
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(controller, 4096):
                shown += chunk
        assert process.wait() == 0
        return shown.decode()

    def wait(self, process: Started) -> Result:
        try:  # long enough for W24 on a busy machine; only what hangs takes longer
            stdout, stderr = process.communicate(timeout=900)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return Result(process.returncode, stdout, stderr)


class SilentHub:
    """An address that accepts a connection and never answers; notes how long it was waited for.

    The client's own start does not count, so that a busy machine changes nothing.
    """

    def __enter__(self) -> "SilentHub":
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.waited_sec = 0.0
        self._watch = threading.Thread(target=self._serve)
        self._watch.start()
        return self

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._server.accept()
                accepted = time.monotonic()
                with connection, contextlib.suppress(ConnectionError):
                    while connection.recv(4096):  # what it asks for, then nothing: it gave up
                        pass
                self.waited_sec += time.monotonic() - accepted

    def __exit__(self, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._watch.join()
        self._server.close()


def as_unknown_user(*arguments: object, environment: dict[str, str] | None = None) -> Result:
    """Run a command as a user whom the system does not know and to whom permissions apply."""
    user = ["unshare", "--user", "--map-user=54321"]
    if subprocess.run([*user, "true"], capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    done = subprocess.run(
        [*user, sys.executable, "-m", "cvt_cli", *(str(a) for a in arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def with_a_small_disk(
    place: Path, megabytes: int, *arguments: object, environment: dict[str, str] | None = None
) -> Result:
    """Run a command to which a folder is a disk of its own, on which nothing is yet."""
    apart = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    mount = f'mount -t tmpfs -o size={megabytes}m none "$0"'
    if subprocess.run([*apart, mount, place], capture_output=True).returncode:
        pytest.skip("no disks can be mounted here")
    done = subprocess.run(
        [*apart, f'{mount} && exec "$@"', place, sys.executable, "-m", "cvt_cli",
         *(str(a) for a in arguments)],
        env=environment,
        capture_output=True,
        text=True,
    )  # fmt: skip
    return Result(done.returncode, done.stdout, done.stderr)


def golden(name: str) -> dict[str, Any]:
    """A file of golden numbers."""
    return json.loads((GOLDEN / f"{name}.json").read_text())  # type: ignore[no-any-return]


def golden_config(spec: dict[str, Any], num_classes: int) -> CvTConfig:
    """The config that a golden file's spec (keys of the official YAML files) describes."""
    columns = (
        "DIM_EMBED DEPTH NUM_HEADS PATCH_SIZE PATCH_STRIDE PATCH_PADDING MLP_RATIO DROP_PATH_RATE"
    )
    rows = zip(*(spec[column] for column in columns.split()), strict=True)
    return CvTConfig(tuple(StageConfig(*row) for row in rows), num_classes)


def golden_state(config: CvTConfig) -> dict[str, torch.Tensor]:
    """The golden weights of a network, by reference name."""
    return {name: tensor.clone() for name, tensor in _golden_state(config).items()}


@functools.lru_cache(maxsize=1)
def _golden_state(config: CvTConfig) -> dict[str, torch.Tensor]:
    """Those last asked for; computing them takes as long as running the network."""
    with torch.device("meta"):
        wanted = CvT(config).state_dict()
    return {n: torch.from_numpy(formula.weight(n, t.shape)) for n, t in wanted.items()}


def golden_model(config: CvTConfig) -> CvT:
    """A network with the golden weights, for evaluation."""
    model = CvT(config)
    model.load_state_dict(golden_state(config))
    return model.eval()


def with_all_tokens(model: CvT, images: torch.Tensor) -> torch.Tensor:
    """Logits as the official code computes them, the last block's map included."""
    x, class_token = images, None
    for index in range(len(model.config.stages)):
        x, class_token = model.get_submodule(f"stage{index}")(x)
    return model.head(model.norm(class_token))  # type: ignore[no-any-return]


def as_transformers_saves(folder: Path, config: CvTConfig) -> None:
    """A checkpoint folder of ImageNet's classes at 224 pixels, without what only this tool says."""
    from cvt_cli.model import weights
    from cvt_cli.spec import labels
    from cvt_cli.spec.preprocessing import Preprocessing

    model, size = golden_model(config), Preprocessing(224, 224, "crop")
    weights.save(folder, model, labels.imagenet(), size, "")
    change_config(folder, activation=None, cvt_cli_version=None)


def change_config(folder: Path, file: str = "config.json", **values: Any) -> None:
    """Write other values into a JSON file of a checkpoint folder; None takes one out."""
    content = json.loads((folder / file).read_text()) | values
    content = {name: value for name, value in content.items() if value is not None}
    (folder / file).write_text(json.dumps(content))


def golden_input(batch: int, height: int, width: int) -> torch.Tensor:
    """The golden input."""
    return torch.from_numpy(formula.image(batch, height, width))


TINY = golden_config(golden("golden-tiny-123")["spec"], 10)
"""A CvT small enough to write and read in a blink, and one that transformers can build."""

GOLDEN_CASES = [
    pytest.param(name, position, id=f"{name}-{case['height']}x{case['width']}", marks=marks)
    for name, marks in (
        ("tiny", ()),
        ("tiny-123", ()),
        ("cvt-13", ()),
        ("cvt-w24", pytest.mark.slow),
    )
    for position, case in enumerate(golden(f"golden-{name}")["cases"])
]
"""Names of golden files and positions of the cases in them, for parametrize."""


def small_model(drop_path: float = 0.0) -> CvT:
    """Two stages that take some milliseconds a step, with three classes."""
    stages = (StageConfig(8, 1, 1, 5, 2, 2), StageConfig(16, 2, 2, 3, 2, 1, drop_path=drop_path))
    return fresh_model(CvTConfig(stages, 3), 1)
