"""What each of two processes computes of a training step, under torchrun."""

import sys

import torch
from safetensors.torch import save_file
from test_distributed import halves, trainer_of

from cvt_cli import torchrun


def main(path: str) -> None:
    found = {}
    with torchrun.joined():
        for mode in ("inference", "training"):
            trainer = trainer_of(mode)
            loss = trainer.backward([halves()[torchrun.rank()]])
            losses = torchrun.gather(loss.item())
            found[f"{mode}.loss"] = torch.tensor(losses, dtype=torch.float64)
            for name, parameter in trainer.model.named_parameters():
                found[f"{mode}.{name}"] = parameter.grad
    if torchrun.rank() == 0:
        save_file(found, path)


if __name__ == "__main__":
    main(sys.argv[1])
