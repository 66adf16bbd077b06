"""Where and how precisely to compute: CUDA, MPS or CPU; float32, bfloat16 or float16."""

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch

from cvt_cli.base import machine, torchrun
from cvt_cli.base.errors import UsageError
from cvt_cli.base.text import counted
from cvt_cli.spec.formats import Precision

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(requested: str = "auto") -> torch.device:
    """The device asked for; for "auto" CUDA where there is one, else MPS, else the CPU.

    Of several CUDA devices each process of a torchrun takes its own.

    Raises:
        UsageError: no such device, or it is not available here.
    """
    requested = str(requested)  # from Python, where others take a number
    available = ["cpu"]
    if torch.backends.mps.is_available():
        available.insert(0, "mps")
    if torch.cuda.is_available():
        available.insert(0, "cuda")
    if requested == "auto":
        requested = available[0]
    if requested == "cuda" and torchrun.local_count() > 1:
        requested = f"cuda:{torchrun.local_rank() % torch.cuda.device_count()}"
    name, _, index = requested.partition(":")
    accepted = ", ".join(f"`{device}`" for device in ("auto", *available))
    if name not in available or (index and not (index.isdecimal() and name == "cuda")):
        raise UsageError(f"device `{requested}` is not available here; accepted are {accepted}")
    if name == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise UsageError(
            f"device `{requested}` does not exist; "
            f"this machine has {counted(torch.cuda.device_count(), 'CUDA device')}, counted from 0"
        )
    return torch.device(requested)


def require_one_each(device: torch.device) -> None:
    """Raises UsageError where processes that train together share a CUDA device: NCCL refuses."""
    if device.type != "cuda":
        return
    processes, found = torchrun.local_count(), torch.cuda.device_count()
    if processes > found:
        raise UsageError(
            f"{processes} processes share {counted(found, 'CUDA device')}; each needs its own",
            hint=f"start {found} with torchrun --nproc-per-node, or cvt finetune --gpus {found}",
        )


def choose_precision(
    requested: str, device: torch.device, others: tuple[str, ...] = ()
) -> Precision:
    """The precision asked for; for "auto" bf16 on CUDA cards that have it, else fp32.

    Args:
        requested: by its name.
        device: to compute on.
        others: what else is accepted, for the message.

    Raises:
        UsageError: the device does not compute in it.
    """
    has_bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if requested not in ("auto", *_DTYPES):
        known = ", ".join(f"`{one}`" for one in ("auto", *_DTYPES, *others))
        raise UsageError(f"there is no precision `{requested}`; accepted are {known}")
    if requested == "auto":
        return "bf16" if device.type == "cuda" and has_bf16 else "fp32"
    if requested == "bf16" and not has_bf16:
        raise UsageError(f"device `{device}` has no bfloat16; accepted are `fp32` and `fp16`")
    if requested == "fp16" and device.type == "cpu":
        raise UsageError("a CPU does not compute in `fp16` here; accepted are `fp32` and `bf16`")
    return requested  # type: ignore[return-value]


def dtype(precision: Precision) -> torch.dtype:
    """The torch type of a precision."""
    return _DTYPES[precision]


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Compute in this precision where it is safe, in float32 elsewhere."""
    return torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32")


def default_is_cpu() -> AbstractContextManager[Any]:
    """Inside of it tensors that name no device are made on the CPU, whatever the program that calls
    has set (`torch.set_default_device`)."""
    cpu = torch.device("cpu")
    return nullcontext() if torch.get_default_device() == cpu else cpu


@contextmanager
def exactly() -> Iterator[None]:
    """Compute in the precision that tensors have.

    By default CUDA's convolutions round float32 to TF32's 10 bits; and who calls may be in an
    autocast, or let products be rounded, also on a CPU (`torch.set_float32_matmul_precision`).
    What was set comes back, where several threads compute with the last of them.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):  # of this thread
                stack.enter_context(torch.autocast(kind, enabled=False))
        _rounding.forbid()
        stack.callback(_rounding.allow)
        yield


class _Rounding:
    """What PyTorch may round of float32, which is one setting for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._forbidden = 0  # by so many that compute now
        self._back = ExitStack()  # puts back what was set
        if hasattr(os, "register_at_fork"):  # a thread that is gone there may hold it
            os.register_at_fork(after_in_child=self._made_anew)

    def _made_anew(self) -> None:
        self._lock = threading.Lock()

    def forbid(self) -> None:
        """Until it is allowed as often again."""
        with self._lock:
            if not self._forbidden:
                with ExitStack() as back:
                    _forbid_rounding(back)
                    self._back = back.pop_all()
            self._forbidden += 1

    def allow(self) -> None:
        with self._lock:
            self._forbidden -= 1
            if not self._forbidden:
                self._back.close()


_rounding = _Rounding()


def _forbid_rounding(back: ExitStack) -> None:
    convolutions: Any = torch.backends.cudnn
    on_cpu: Any = torch.backends.mkldnn
    try:
        products, rounded = torch.get_float32_matmul_precision(), convolutions.allow_tf32
        newer = [on_cpu.conv]
    except RuntimeError:  # set by PyTorch's newer names, where the older are not to be asked
        newer = [convolutions.conv, torch.backends.cuda.matmul, on_cpu.conv, on_cpu.matmul]
    else:
        back.callback(setattr, convolutions, "allow_tf32", rounded)
        convolutions.allow_tf32 = False
        if products != "highest":
            back.callback(torch.set_float32_matmul_precision, products)
            torch.set_float32_matmul_precision("highest")
    for one in newer:
        back.callback(setattr, one, "fp32_precision", one.fp32_precision)
        one.fp32_precision = "ieee"


def hardware(device: torch.device) -> str:
    """What computes there, as a person names it: "2 threads", "NVIDIA H100"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return machine.named_threads(torch.get_num_threads())
    return "Apple GPU"


def peak_memory(device: torch.device) -> int:
    """Most memory in bytes that was held so far: on CUDA of the device, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return machine.peak_memory()
