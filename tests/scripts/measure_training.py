"""How fast a training step is: ours beside a plain loop around transformers' CvT, interleaved.

    python tests/scripts/measure_training.py [ROUNDS [FOLDER]]

CvT-13 at 224, batch 16 (128 on a GPU), AdamW, tensors ready, both sides in one process with the
same allocator settings. Printed are medians of images per second and ratios to transformers'
float32 rate. With a FOLDER of photographs also how fast they are trained on, beside ready tensors.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, repeat
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CvtConfig, CvtForImageClassification

from cvt_cli.datasets import layouts
from cvt_cli.finetuning import batches as training_data
from cvt_cli.finetuning import trainer
from cvt_cli.finetuning.schedule import Schedule
from cvt_cli.finetuning.trainer import Trainer
from cvt_cli.model.network import fresh_model
from cvt_cli.spec.formats import Precision
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import AUGMENTATIONS, RECIPES
from cvt_cli.spec.variants import VARIANTS

BATCH, SIZE = 128 if torch.cuda.is_available() else 16, 224
TURN = 8  # steps
WARM_UP = 3  # rounds, until the allocator has what both sides need


def ours(precision: Precision, device: torch.device) -> Callable[[], object]:
    trainer = trainer_of(precision, device)
    return lambda: trainer.step([PART]).item()


def trainer_of(precision: Precision, device: torch.device) -> Trainer:
    recipe = replace(RECIPES["default"], augment="none", batch_size=BATCH, layer_decay=1.0)
    return Trainer(
        fresh_model(VARIANTS["13"].config, 0),
        recipe,
        Schedule(1e-4, 1000, 0),
        device=device,
        precision=precision,
        seed=0,
    )


def theirs(device: torch.device) -> Callable[[], object]:
    model = CvtForImageClassification(CvtConfig(num_labels=1000)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    images, labels = PART[0].to(device), PART[1].to(device)

    def step() -> object:
        loss = F.cross_entropy(model(images).logits, labels, label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    return step


def photographs(folder: str, device: torch.device, rounds: int) -> None:
    """Rates on photographs that are decoded and varied meanwhile, beside those on ready tensors."""
    data = layouts.open_dataset(folder, "train", Path())
    data = data.subset(np.resize(np.arange(len(data)), 8 * BATCH * TURN))
    augment = training_data.augmentation(
        AUGMENTATIONS["medium"], Preprocessing.published(SIZE, SIZE)
    )
    trainer = trainer_of("bf16", device)
    batches = training_data.Batches(
        data,
        augment,
        part_images=BATCH,
        parts=1,
        rank=0,
        processes=1,
        seed=0,
        workers=1 if device.type == "cpu" else 8,
        pin=device.type == "cuda",
    )
    ratios, rates = [], []
    for number in range(rounds + 1):
        found = []
        for source in (batches.of_epoch(number), repeat([PART])):
            trainer.step(next(source))  # what comes before the first batch is no steady state
            started = perf_counter()
            for parts in islice(source, TURN):
                loss = trainer.step(parts)
            loss.item()
            found.append(TURN * BATCH / (perf_counter() - started))
        if number:
            rates.append(found)
            ratios.append(found[0] / found[1])
    on_photographs, ready = (statistics.median(column) for column in zip(*rates, strict=True))
    print(
        f"bf16 on {len(set(data.names))} photographs {on_photographs:.2f} images/s, ready "
        f"{ready:.2f}, median of ratios {statistics.median(ratios):.3f}, {rounds} rounds"
    )


PART = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(0, 1000, (BATCH,))
if torch.cuda.is_available():  # as batches come
    PART = PART[0].pin_memory(), PART[1].pin_memory()


def main(rounds: int, folder: str | None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer.keep_memory()
    sides = {
        "transformers fp32": theirs(device),
        "cvt fp32": ours("fp32", device),
        "cvt bf16": ours("bf16", device),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + WARM_UP):
        for name, step in sides.items():
            started = perf_counter()
            step()
            if number >= WARM_UP:
                rates[name].append(BATCH / (perf_counter() - started))
    base = rates["transformers fp32"]
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(found, base, strict=True))
        print(
            f"{name:18} {statistics.median(found):7.2f} images/s "
            f"({min(found):.2f} to {max(found):.2f})  x{ratio:.2f}"
        )
    print(
        f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {rounds} rounds"
    )
    if folder is not None:
        photographs(folder, device, rounds)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9, sys.argv[2] if len(sys.argv) > 2 else None)
