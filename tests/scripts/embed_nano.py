"""Make the checkpoint that is part of the package from a training run, with its card.

    python tests/scripts/embed_nano.py RUN CIFAR10 "two cores of …"

RUN is what `cvt finetune` left; its best epoch is stored in half precision. CIFAR10 is the folder
with train/ and test/: what the stored weights score on the 10,000 test images is written into the
card. The last argument says in words what the run was computed on.
"""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import torch

from cvt_cli.checkpoints import cards
from cvt_cli.datasets import classes, layouts
from cvt_cli.evaluation import run_models
from cvt_cli.model import weights
from cvt_cli.model.engine import TorchEngine
from cvt_cli.spec.published import CHECKPOINTS

NAME = "cvt-nano-cifar10"


def main(run: Path, cifar10: Path, hardware: str) -> None:
    target = CHECKPOINTS[NAME].embedded
    assert target is not None
    best = weights.load(run / "best")
    weights.save(target, best.model, best.labels, best.preprocessing, "", half=True)

    stored = weights.load(target)
    engine = TorchEngine(stored.model, torch.device("cpu"), "fp32")
    test = layouts.open_dataset(str(cifar10), "test", Path())
    class_index, _ = classes.match_classes(test.classes, stored.labels)
    judged = run_models.subject(engine, stored.preprocessing, stored.labels, class_index, test)
    run_models.judge([judged], test, batch_size=64)
    result = judged.result
    assert not result.failures

    with (run / "metrics.csv").open() as file:
        seconds = np.sum([float(row["seconds"]) for row in csv.DictReader(file)])
    aside = len(json.loads((run / "split.json").read_text())["validation"])
    run_card = (run / "best" / "README.md").read_text()
    facts = dict(
        re.findall(r"^\| (command|epoch|seed|recipe|precision) \| (.+) \|$", run_card, re.M)
    )
    validation = dict(re.findall(r"^\| (top-1 on the validation .+?) \| (.+) \|$", run_card, re.M))
    card = cards.model_card(
        NAME,
        "A small CvT (832,138 parameters, 18.7 MMACs at 32x32) trained from scratch on CIFAR-10's "
        "training images, part of the package `cvt-cli`, so that its commands have something true "
        "to say on a machine without a network.",
        facts={
            **facts,
            "time": f"{seconds / 60:.0f} minutes for the whole run",
            "hardware": hardware,
            "stored as": "safetensors; matrices and kernels in float16, all else in float32",
            "data": "CIFAR-10 (Krizhevsky 2009), its 50,000 training images, "
            f"{aside:,} of them held out",
        },
        results={
            "top-1 on the 10,000 test images": cards.percent(result.correct_top1, result.n),
            "top-5 on the 10,000 test images": cards.percent(result.correct_topk, result.n),
            **validation,
        },
        limits="It knows ten classes (airplane, automobile, bird, cat, deer, dog, frog, horse, "
        "ship, truck) and answers with one of them whatever the picture shows. It sees 32x32 "
        "pixels: of a photograph, the centre square. The test images had no part in training "
        "or in choosing the epoch. For demonstrations, tests and as a "
        "start for fine-tuning on small images; not for decisions about people or property.",
    )
    weights.save(target, stored.model, stored.labels, stored.preprocessing, card, half=True)
    print(f"{target}: top-1 {result.correct_top1}, top-5 {result.correct_topk} of {result.n}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
