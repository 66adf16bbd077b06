"""Files are put in their places whole, by one writer at a time; what a killed maker left goes."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import filelock
import pytest

from cvt_cli.base import files, locks
from cvt_cli.base.errors import CvtError
from small_sets import class_folders
from tests_shared import CHELSEA
from warm_processes import Started, start

WRITES_AND_WAITS = """
import sys, time
from pathlib import Path
from cvt_cli.base import files
with files.{what}(Path(sys.argv[1])) as temporary:
    (temporary / "half" if temporary.is_dir() else temporary).write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def writer(what: str, path: Path) -> Started:
    """A process that is in the middle of writing a file."""
    code = WRITES_AND_WAITS.format(what=what)
    process = start(None, path, code=code, environment=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def kill(process: Started) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("what", ["replacing", "workplace"])
def test_what_a_killed_writer_left_is_swept_and_what_a_living_one_writes_stays(
    what: str, tmp_path: Path
) -> None:
    killed, living = writer(what, tmp_path / "model"), writer(what, tmp_path / "model")
    foreign = tmp_path / ".model.12.tmp"
    foreign.write_text("of another tool")
    kill(killed)
    before = len(list(tmp_path.iterdir()))

    removed = files.swept(tmp_path)

    left = len(list(tmp_path.iterdir()))
    kill(living)
    assert (before, len(removed), left) == (3, 1, 2)
    assert foreign.exists()


def test_a_temporary_file_of_another_machine_is_left_alone_for_a_day(tmp_path: Path) -> None:
    other = tmp_path / f".model.ffffff.01234567{files.SUFFIX}"
    other.write_text("half")

    young = files.swept(tmp_path)
    os.utime(other, (0, 0))

    assert (young, files.swept(tmp_path)) == ([], [other])


def test_a_link_stays_a_link_and_its_target_gets_the_content(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "page.html"
    link.symlink_to("there/page.html")

    files.write_text(link, "content")

    assert link.is_symlink()
    assert (tmp_path / "there" / "page.html").read_text() == "content"


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()

    files.write_text(pipe, "content")

    reader.join(10)
    assert found == ["content"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_pipe_that_has_no_path_is_written_to_as_dev_stdout_in_a_pipeline() -> None:
    read, write = os.pipe()

    files.write_text(Path(f"/dev/fd/{write}"), "content")

    os.close(write)
    with os.fdopen(read) as pipe:
        assert pipe.read() == "content"


def test_a_file_has_the_permissions_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "content")
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_name_as_long_as_a_name_may_be_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)

    files.write_text(path, "content")

    assert path.read_text() == "content"


def test_an_error_leaves_what_was_there_and_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("before")

    with pytest.raises(CvtError, match="cannot write .*No space left"), files.replacing(path):
        raise OSError(28, "No space left on device")

    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "before"


class _Short:
    """A file that takes three bytes at a time, as a pipe or a full disk may."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, part: memoryview) -> int:
        self.content += bytes(part[:3])
        return len(part[:3])


def test_a_short_write_is_gone_on_with() -> None:
    file = _Short()

    files.write_all(file, b"0123456789")  # type: ignore[arg-type]

    assert file.content == b"0123456789"


def test_a_pipe_that_grows_waits_for_its_reader_and_notices_its_end(tmp_path: Path) -> None:
    pipe = tmp_path / "lines.jsonl"
    os.mkfifo(pipe)
    found: list[bytes] = []

    def read_once() -> None:
        with pipe.open("rb", buffering=0) as file:
            found.append(file.read(5))

    reader = threading.Timer(0.2, read_once)
    reader.start()
    with locks.growing(pipe, "answering", print) as file:
        files.write_all(file, b"first")
        reader.join()
        with pytest.raises(BrokenPipeError):
            files.write_all(file, b"second")

    assert found == [b"first"]


def test_the_second_process_waits_for_a_file_that_grows_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    script = (
        "import sys; from pathlib import Path; from cvt_cli.base import locks\n"
        "with locks.growing(Path(sys.argv[1]), 'answering', print) as file:\n"
        "    file.seek(0); sys.stdout.write(file.read().decode()); file.write(b'second')\n"
    )
    with locks.growing(path, "answering", lambda text: None) as file:
        other = subprocess.Popen(
            [sys.executable, "-uc", script, path], stdout=subprocess.PIPE, text=True
        )
        assert other.stdout is not None
        said = other.stdout.readline()
        files.write_all(file, b"first ")

    read, _ = other.communicate(timeout=30)

    assert said == "another process is answering; waiting for it\n"
    assert read == "first "
    assert path.read_text() == "first second"


def test_a_file_system_without_locks_counts_as_if_they_could_be_had(
    cvt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lustre is mounted by default; what filelock before its version 4 makes of that."""

    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)

    result = cvt("predict", CHELSEA, "--model", "cvt-nano-cifar10", "--engine", "onnxruntime")

    assert result.exit_code == 0, result.stderr
    assert "preparing the graph" in result.stderr


@pytest.mark.parametrize(
    "line",
    [
        "export cvt-nano-cifar10 -o nano.safetensors",
        "export cvt-nano-cifar10 --format safetensors -o nano",
        f"predict {CHELSEA} --model cvt-nano-cifar10 -o features.safetensors",
        "finetune DATA --model cvt-nano-cifar10 --recipe linear-probe --output run",
    ],
)
def test_a_share_whose_permissions_another_user_has_set_is_written_to(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    data = class_folders(tmp_path / "data", {"cat": 4, "dog": 4})
    monkeypatch.chdir(tmp_path)

    def refuse(path: object, *_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    monkeypatch.setattr(os, "chmod", refuse)

    result = cvt(*line.replace("DATA", str(data)).split())

    assert result.exit_code == 0, result.stderr
