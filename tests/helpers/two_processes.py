"""What each of two processes computes of training steps, under torchrun."""

import sys

import torch
from safetensors.torch import save_file
from test_distributed import CASES, trainer_of

from cvt_cli.base import torchrun


def main(path: str) -> None:
    found = {}
    with torchrun.joined("a test"):
        for mode, case in CASES.items():
            trainer = trainer_of(case.batchnorm, case.weights)
            parts = case.shares()
            loss = trainer.backward([parts[torchrun.rank()]], sum(len(t) for _, t in parts))
            losses = torchrun.gather(loss.item())
            found[f"{mode}.loss"] = torch.tensor(losses, dtype=torch.float64)
            for name, parameter in trainer.model.named_parameters():
                found[f"{mode}.{name}"] = parameter.grad
    if torchrun.rank() == 0:
        save_file(found, path)


if __name__ == "__main__":
    main(sys.argv[1])
