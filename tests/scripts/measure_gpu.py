"""How fast the engine is on a CUDA device, beside transformers' CvT.

    python tests/scripts/measure_gpu.py LOGS            CvT-13 at 224, CvT-21 at 384
    python tests/scripts/measure_gpu.py LOGS PHOTOS     evaluate CvT-13 on photographs in folders

Random weights. The engine is called as predict calls it: images as bytes on the host, two calls in
flight, results on the host. transformers has its images on the device, in eager float32 and in
bfloat16 compiled with CUDA graphs. Networks are compiled side by side in processes of their own,
then all are measured in turn.
"""

import fcntl
import itertools
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from transformers import CvtConfig, CvtForImageClassification

from cvt_cli.checkpoints import folders
from cvt_cli.checkpoints.names import to_transformers
from cvt_cli.engines.protocol import with_begun
from cvt_cli.model import weights
from cvt_cli.model.cuda import CudaEngine
from cvt_cli.model.network import CvT, fresh_model
from cvt_cli.spec import labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.variants import VARIANTS

CASES = (("13", 224, 64), ("21", 384, 32), ("13", 224, 8))
ROUNDS = 5
TURN_SEC = 0.15

Run = Callable[[int], None]
"""Compute so often, to the end."""


def ours(model: CvT, size: int, batch: int, precision: Any, compiled: bool) -> Run:
    preprocessing = Preprocessing.published(size, size)
    engine = CudaEngine(model, torch.device("cuda"), precision, preprocessing, compiled)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    images = list(pixels)

    def run(count: int) -> None:
        for _, finish in with_begun(range(count), lambda _: engine.begin(images), apart=True):
            finish()

    return run


def theirs(model: CvT, size: int, batch: int, compiled: bool) -> Run:
    names = labels.unnamed(model.config.num_classes)
    network: Any = CvtForImageClassification(
        CvtConfig(**folders.transformers_config(model.config, names, ""))
    )
    network.load_state_dict({to_transformers(name): t for name, t in model.state_dict().items()})
    dtype = torch.bfloat16 if compiled else torch.float32
    network = network.eval().to("cuda", dtype)
    if compiled:
        network = torch.compile(network, dynamic=False, mode="reduce-overhead")
    images = torch.randn(batch, 3, size, size, device="cuda", dtype=dtype)

    def run(count: int) -> None:
        with torch.inference_mode():
            for _ in range(count):
                network(images).logits  # noqa: B018
        torch.cuda.synchronize()

    return run


def measure(name: str, size: int, batch: int) -> None:
    """Rates of one case; processes take turns."""
    model = fresh_model(VARIANTS[name].config, 0).eval()
    makers: dict[str, Callable[[], Run]] = {
        "transformers fp32, eager": lambda: theirs(model, size, batch, False),
        "transformers bf16, compiled": lambda: theirs(model, size, batch, True),
        "cvt fp32": lambda: ours(model, size, batch, "fp32", False),
        "cvt bf16": lambda: ours(model, size, batch, "bf16", False),
        "cvt bf16, compiled": lambda: ours(model, size, batch, "bf16", True),
    }
    sides: dict[str, Run] = {}
    for side, make in makers.items():
        try:
            started = perf_counter()
            run = make()
            run(4)
            sides[side] = run
            print(f"{name} {size} {batch} {side}: ready after {perf_counter() - started:.1f} s")
        except Exception as error:
            print(f"failed: {name} at {size}, batch {batch}, {side}: {error!r:.300}")
    rates: dict[str, list[float]] = {side: [] for side in sides}
    with open("/tmp/gpu_turns", "w") as turns:
        for _, (side, run) in itertools.product(range(ROUNDS), sides.items()):
            fcntl.flock(turns, fcntl.LOCK_EX)
            run(2)
            started = perf_counter()
            run(4)
            count = max(4, round(4 * TURN_SEC / (perf_counter() - started)))
            started = perf_counter()
            run(count)
            rates[side].append(batch * count / (perf_counter() - started))
            fcntl.flock(turns, fcntl.LOCK_UN)
    (base, *_) = rates.values()
    for side, found in rates.items():
        print(
            f"rate: {name} at {size}, batch {batch}, {side:28} {statistics.median(found):8.0f} "
            f"images/s ({min(found):.0f} to {max(found):.0f})  "
            f"x{statistics.median(a / b for a, b in zip(found, base, strict=True)):.2f}"
        )


def job(logs: Path, photos: str) -> None:
    """How fast photographs are evaluated, and the share of that time in which the device waits."""
    folder = logs / "cvt-13"
    logs.mkdir(exist_ok=True)
    model = fresh_model(VARIANTS["13"].config, 0)
    weights.save(folder, model, labels.imagenet(), Preprocessing(224, 224, "crop"), "")
    line = [sys.executable, "-m", "cvt_cli", "evaluate", photos, "--model", str(folder), "--json"]
    done = subprocess.run([*line, "--device", "cuda"], capture_output=True, text=True)
    if done.returncode:
        print(f"failed: {done.stderr}")
        return
    found = json.loads(done.stdout)
    rate, of_model = found["images_per_sec"], found["model_images_per_sec"]
    print(
        f"job: evaluate {found['n']} photographs, {rate:.0f} images/s; decoding in one thread "
        f"{found['decode_images_per_sec']:.0f}, the model {of_model:.0f} (with what its first "
        f"calls take); the device idle {100 * (1 - rate / of_model):.0f} % of the time"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if len(sys.argv) == 5:
        measure(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif len(sys.argv) == 3:
        job(Path(sys.argv[1]), sys.argv[2])
    else:
        parts = [
            subprocess.Popen([sys.executable, __file__, sys.argv[1], *map(str, case)])
            for case in CASES
        ]
        for part in parts:
            part.wait()
