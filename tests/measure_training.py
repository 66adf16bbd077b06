"""How fast a training step is: ours beside a plain loop around transformers' CvT, interleaved.

    python tests/measure_training.py [ROUNDS]

CvT-13 at 224, batch 16, AdamW, tensors ready, both sides in one process with the same allocator
settings. Printed are medians of images per second and ratios to transformers' float32 rate.
"""

import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter

import torch
import torch.nn.functional as F
from transformers import CvtConfig, CvtForImageClassification

from cvt_cli import training
from cvt_cli.config import VARIANTS
from cvt_cli.recipes import RECIPES
from cvt_cli.training import Schedule, Trainer

BATCH, SIZE = 16, 224


def ours(precision: str, device: torch.device) -> Callable[[], object]:
    recipe = replace(RECIPES["default"], augment="none", batch_size=BATCH, layer_decay=1.0)
    trainer = Trainer(
        training.fresh_model(VARIANTS["13"], 0),
        recipe,
        Schedule(1e-4, 1000, 0),
        device=device,
        precision=precision,
        seed=0,
    )
    return lambda: trainer.step([PART]).item()


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


PART = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(0, 1000, (BATCH,))


def main(rounds: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training.keep_memory()
    sides = {
        "transformers fp32": theirs(device),
        "cvt fp32": ours("fp32", device),
        "cvt bf16": ours("bf16", device),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, step in sides.items():
            started = perf_counter()
            step()
            if number:  # the first warms up
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


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
