"""stdin, stdout and stderr that are closed, full, unread or of another encoding."""

import ast
import csv
import fcntl
import io
import json
import os
import pty
import shlex
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cvt_cli
from cvt_cli.base import streams
from cvt_cli.cli import app
from tests_shared import CHELSEA, Machine, Result
from warm_processes import start

NANO = ("--model", "cvt-nano-cifar10", "--top-k", "1")


def test_what_a_library_prints_to_stdout_is_not_among_results(capfd) -> None:
    with streams.results_alone():
        os.write(1, b"[Gloo] Rank 0 is connected\n")
    print("42")

    assert capfd.readouterr() == ("42\n", "[Gloo] Rank 0 is connected\n")


def shell(redirected: str, *arguments: object) -> Result:
    """Run a command with redirections as a shell makes them."""
    command = shlex.join([sys.executable, "-m", "cvt_cli", *(str(a) for a in arguments)])
    done = subprocess.run(
        ["bash", "-c", f"{command} {redirected}"], capture_output=True, text=True, timeout=240
    )
    return Result(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("command", ["models", "flops", "--version", "--help"])
def test_results_that_cannot_be_written_end_with_a_sentence(command: str) -> None:
    result = shell("> /dev/full", *command.split())

    assert result.exit_code == 1
    assert result.stderr == "error: cannot write the results: No space left on device\n"


def test_help_that_nobody_reads_ends_without_a_word() -> None:
    read, write = os.pipe()
    os.close(read)

    done = subprocess.run([sys.executable, "-m", "cvt_cli", "--help"], stdout=write,
                          stderr=subprocess.PIPE, text=True)  # fmt: skip
    os.close(write)

    assert (done.returncode, done.stderr) == (1, "")


COPY = """
import sys
from cvt_cli.base import streams
with streams.prepared():
    for line in sys.stdin:
        print(line, end="")
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_slow_ends_of_pipes_that_are_set_not_to_wait_lose_nothing(unbuffered: str) -> None:
    """As another program on the same pipe may leave them, and containers have no buffers."""
    lines = [f"{number} {'x' * 1000}\n" for number in range(600)]
    from_us, to_it = os.pipe()
    from_it, to_us = os.pipe()
    for end in (from_us, to_us):
        os.set_blocking(end, False)
    process = subprocess.Popen(
        [sys.executable, "-c", COPY], stdin=from_us, stdout=to_us,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip

    def write() -> None:
        with open(to_it, "w") as file:
            for number, line in enumerate(lines):
                file.write(line)
                if number % 200 == 50:
                    file.flush()
                    time.sleep(0.5)

    writer = threading.Thread(target=write)
    writer.start()
    time.sleep(3)  # it fills the pipe, and waits
    os.close(to_us)
    with open(from_it) as file:
        found = file.readlines()
    writer.join()

    assert process.wait(60) == 0 and found == lines
    assert not os.get_blocking(from_us)  # it is as the other program has it
    os.close(from_us)


@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full", "2>&- <&-"])
def test_messages_that_cannot_be_written_are_dropped(redirected: str) -> None:
    result = shell(redirected, "info", "cvt-13-384", "--offline")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith("cvt-13-384\n  variant")


def test_work_goes_on_with_all_three_closed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    result = shell("<&- >&- 2>&-", "predict", "-", CHELSEA, "nowhere.jpg", *NANO, "--html", page)

    assert result.exit_code == 1  # of the image that is nowhere
    written = page.read_text(encoding="utf-8")
    # No message fell into a file of ours that was opened under the number of stderr.
    assert written.startswith("<!DOCTYPE html>") and written.endswith("</html>\n")


def test_a_terminal_that_is_closed_ends_nothing(tmp_path: Path) -> None:
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 110, 0, 0))
    lines = tmp_path / "lines.jsonl"

    detached = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "from cvt_cli.cli import app; app()"
    )
    process = start(
        None, "predict", "-", *NANO, "--resume", lines, "--batch-size", 1, code=detached,
        environment=dict(os.environ), stdin=subprocess.PIPE, stdout=terminal, stderr=terminal,
        new_session=True,
    )  # fmt: skip
    os.close(terminal)
    assert process.stdin is not None
    process.stdin.write(f"{CHELSEA}\n" * 9)
    process.stdin.flush()
    while b"predicting" not in os.read(controller, 4096):
        pass
    os.close(controller)
    process.stdin.write("nowhere.jpg\n" + f"{CHELSEA}\n" * 9)
    process.stdin.close()

    assert process.wait(timeout=240) == 1
    assert len(lines.read_text().splitlines()) == 19


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_json_is_json_whatever_the_encoding(tmp_path: Path, encoding: str) -> None:
    image = tmp_path / "caf\u00e9 \u732b.jpg"
    shutil.copy(CHELSEA, image)

    for option in ("--json", "--jsonl"):
        result = CliRunner(charset=encoding).invoke(app, ["predict", str(image), *NANO, option])
        document = json.loads(result.stdout_bytes)
        assert document.get("results", [document])[0]["path"] == str(image)


def test_help_is_printed_where_the_encoding_lacks_its_characters() -> None:
    result = CliRunner(charset="ascii").invoke(app, ["--help"], env={"COLUMNS": "60"})

    assert result.exit_code == 0
    assert "Classify images with CvT" in result.stdout


def test_no_name_ends_a_line_or_steers_a_terminal(cvt, tmp_path: Path) -> None:
    name = "x\x1b[31m\u2028\x85\u202e\nphotos/patient7.png"

    lines = cvt("predict", name, CHELSEA, *NANO, "--jsonl").stdout
    table = cvt("predict", name, CHELSEA, *NANO, "--csv").stdout

    assert all(c.isprintable() or c == "\n" for c in lines)
    assert [json.loads(line)["path"] for line in lines.splitlines()] == [name, str(CHELSEA)]
    rows = list(csv.reader(io.StringIO(table, newline="")))
    assert [row[0] for row in rows] == ["path", name, str(CHELSEA)]


def test_a_narrow_terminal_shows_every_column_and_no_raw_control_characters() -> None:
    machine = Machine(Path(), dict(os.environ))

    shown = machine.on_a_terminal("flops", "--variant", "nano", COLUMNS="20")

    assert "token" in shown and "convolution" in shown and "100.0" not in shown
    assert all(column in shown for column in ("stage", "operation", "MACs", "FLOPs", "share"))


def test_only_the_writers_of_streams_and_output_print() -> None:
    package = Path(cvt_cli.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            called = getattr(node, "func", None)
            if isinstance(called, ast.Name) and called.id == "print":
                assert path.name == "output.py", f"{path}:{node.lineno}"
            if isinstance(called, ast.Attribute) and called.attr == "write":
                assert not ast.unparse(called).startswith("sys."), f"{path}:{node.lineno}"
