"""The device is chosen from what is available. Nothing here runs on CUDA or MPS."""

import pytest
import torch

from cvt_cli.devices import choose_device, choose_precision
from cvt_cli.errors import UsageError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    def have(cuda: int = 0, mps: bool = False, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, **k: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return have


@pytest.mark.parametrize(
    ("cuda", "mps", "wanted"), [(1, False, "cuda"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_cuda_then_mps_then_the_cpu(machine, cuda, mps, wanted: str) -> None:
    machine(cuda=cuda, mps=mps)

    assert choose_device("auto").type == wanted


def test_a_device_that_is_not_there_is_refused_with_those_that_are(machine) -> None:
    machine(mps=True)
    with pytest.raises(
        UsageError, match="`cuda:1` is not available here; accepted are `auto`, `mps`"
    ):
        choose_device("cuda:1")
    machine(cuda=1)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UsageError, match="this machine has 1 CUDA devices"):
        choose_device("cuda:1")


def test_auto_precision_is_bf16_only_on_cards_that_have_it(machine) -> None:
    machine(cuda=1, bf16=True)
    assert choose_precision("auto", torch.device("cuda")) == "bf16"
    machine(cuda=1, bf16=False)
    assert choose_precision("auto", torch.device("cuda")) == "fp32"
    assert choose_precision("fp16", torch.device("cuda")) == "fp16"
    with pytest.raises(UsageError, match="has no bfloat16"):
        choose_precision("bf16", torch.device("cuda"))
    for name in ("cpu", "mps"):
        assert choose_precision("auto", torch.device(name)) == "fp32"
