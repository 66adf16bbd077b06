"""How long the light commands and one prediction take, against what they cannot do without.

    python tests/scripts/measure_startup.py [ROUNDS]

Both sides are whole processes, run in turn; medians in seconds, their ratio and difference.
Nothing is asserted: machines differ.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from cvt_cli.cli import app

CHELSEA = Path(__file__).parents[1] / "photos" / "chelsea.png"

EMPTY_APP = "\n".join(
    [
        "import typer",
        "app = typer.Typer(no_args_is_help=True)",
        *(
            f"@app.command()\ndef command{number}() -> None:\n    '''Do nothing.'''"
            for number in range(len(app.registered_commands))
        ),
        "app({}, prog_name='empty')",
    ]
)
CVT = [sys.executable, "-m", "cvt_cli"]
PREDICT = [*CVT, "predict", str(CHELSEA), "--model", "cvt-nano-cifar10"]

PAIRS = {
    "cvt --help / an empty Typer app's": (
        [*CVT, "--help"],
        [sys.executable, "-c", EMPTY_APP.format(["--help"])],
    ),
    "cvt flops / a command of an empty Typer app": (
        [*CVT, "flops"],
        [sys.executable, "-c", EMPTY_APP.format(["command0"])],
    ),
    "cvt predict photo / import torch": (
        [*PREDICT, "--engine", "torch"],
        [sys.executable, "-c", "import torch"],
    ),
    "cvt predict photo, prepared / import onnxruntime": (
        [*PREDICT, "--engine", "onnxruntime"],  # prepared by the first call, which does not count
        [sys.executable, "-c", "import onnxruntime"],
    ),
}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main(rounds: int) -> None:
    for name, pair in PAIRS.items():
        for command in pair:  # warm the disk cache
            seconds(command)
        times = [[seconds(command) for command in pair] for _ in range(rounds)]
        ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{name:45} {ours:6.3f} s / {theirs:6.3f} s = {ours / theirs:4.2f}, "
            f"{ours - theirs:+.3f} s (medians of {rounds})"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
