"""Tables of many images: what they answer, and what they take."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from cvt_cli.images.packed import Packing
from small_sets import class_folders


def test_texts_are_compared_where_they_lie() -> None:
    packing = Packing()
    packing.add(["a", "ä", "bb", "a"])
    packing.add(["ba", "bb"])
    packed = packing.packed()

    found = packed.equal(np.array([0, 1, 2, 2, 4]), np.array([3, 1, 4, 5, 2]))

    assert found.tolist() == [True, True, False, True, False]
    alone = packed.take(np.array([5, 1])).alone()
    assert list(alone) == ["bb", "ä"] and bytes(alone.content) == "bbä".encode()


@pytest.mark.slow
def test_cifar10s_test_images_give_the_same_integers_from_every_source(
    cvt, cifar10: Path, tmp_path: Path
) -> None:
    root = cifar10 / "test"
    files = sorted(root.glob("*/*.png"))
    paths = [file.relative_to(root).as_posix() for file in files]
    labels = [file.parent.name for file in files]
    rows = list(zip(paths, labels, strict=True))
    made = [root, *(tmp_path / name for name in ("t.csv", "t.jsonl", "p.parquet", "b.parquet"))]
    _, in_csv, jsonl, of_paths, of_bytes = made
    in_csv.write_text("path,label\n" + "".join(f"{a},{b}\n" for a, b in rows))
    jsonl.write_text("".join(json.dumps({"path": a, "label": b}) + "\n" for a, b in rows))
    parquet.write_table(pyarrow.table({"path": paths, "label": labels}), of_paths)
    images = [file.read_bytes() for file in files]
    parquet.write_table(pyarrow.table({"image": images, "label": labels}), of_bytes)
    integers = ("n", "top1_correct", "top5_correct", "classes", "confusions")

    found = [
        cvt("evaluate", data, "--model", "cvt-nano-cifar10", "--json", *told).json
        for data in made
        for told in [[] if data in (root, of_bytes) else ["--images", root]]
    ]

    first, *others = ({key: one[key] for key in integers} for one in found)
    assert first["n"] == 10_000
    assert all(other == first for other in others)


WATCHED = """
import os, subprocess, sys
started = subprocess.Popen(sys.argv[1:])
_, status, took = os.wait4(started.pid, 0)
print(took.ru_maxrss, took.ru_utime + took.ru_stime, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""In a small process: what one begins as counts as the memory of what it starts, 7 GB in pytest."""


@pytest.mark.slow
@pytest.mark.parametrize("repeated", [False, True])
def test_ten_million_rows_take_two_gigabytes_and_a_minute_at_most(
    tmp_path: Path, repeated: bool
) -> None:
    """A minute of the processor: others may have it too."""
    class_folders(tmp_path / "images", {"cat": 500, "dog": 500})
    for number in range(100 * 100):
        (tmp_path / f"a{number}").symlink_to("images")
    name, each = tmp_path / "t.csv", 10_000 if repeated else 1
    with name.open("w") as table:
        table.write("path,label\n")
        for number in range(10_000_000):
            label = ("cat", "dog")[number % 2]
            folder = number // 1000 if each == 1 else number // 1000 % 10
            table.write(f"a{folder}/{label}/{number // 2 % 500:03}.png,{label}\n")

    line = ["finetune", name, "--model", "cvt-nano-cifar10", "--dry-run", "--json"]
    with (tmp_path / "said").open("w+") as said:
        command = [sys.executable, "-c", WATCHED, sys.executable, "-m", "cvt_cli", *line]
        watched = subprocess.run(command, stdout=said, stderr=subprocess.PIPE, text=True)
        said.seek(0)
        data = json.load(said)["data"]
    assert watched.returncode == 0, watched.stderr
    most_kib, seconds = map(float, watched.stderr.splitlines()[-1].split())

    assert data["train_n"] + data["val_n"] == (10_000 if repeated else 10_000_000)
    assert most_kib * 1024 < 2e9
    assert seconds < 60
