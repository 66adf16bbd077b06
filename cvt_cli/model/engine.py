"""The engines on torch: a network, and one that `cvt export` wrote as a ``.pt2``."""

import functools
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cvt_cli.base import files, machine, text
from cvt_cli.base.errors import CheckpointError
from cvt_cli.checkpoints import export_metadata
from cvt_cli.checkpoints.export_metadata import Record
from cvt_cli.engines.parts import Calls, Part
from cvt_cli.model import devices
from cvt_cli.model.inference import inference_form
from cvt_cli.model.network import CvT
from cvt_cli.spec.config import shown
from cvt_cli.spec.formats import Precision

_most_threads: int | None = None  # of this process, where it may not have as many as it wants


def _after_fork() -> None:
    """Compute in one thread from here on.

    In a process that was forked after torch had computed (`multiprocessing` does that), OpenMP
    waits for threads that are gone: with more than one the first call there never ends.
    """
    global _most_threads
    _most_threads = 1
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class TorchEngine:
    """Runs a `CvT` in its inference form on a torch device (see `protocol.Engine`).

    Args:
        model: in its training form; it stays as it is and where it is.
        device: where to compute.
        precision: of weights and of everything that is computed.
        macs: of a call, for the number of threads on a CPU; by default torch's own choice.
        part: how a batch is computed on a CPU, as `part_of` says; by default in one call.
        images: of the call that has these MACs; one that has fewer computes in fewer threads.
    """

    name = "torch"
    takes_pixels = takes_crops = False
    floats = None

    def __init__(
        self,
        model: CvT,
        device: torch.device,
        precision: Precision,
        macs: int | None = None,
        part: Part | None = None,
        images: int = 1,
    ) -> None:
        self._dtype = devices.dtype(precision)
        self._model = inference_form(model).to(device, self._dtype)
        # The smallest products are faster as PyTorch has them, but in bfloat16.
        small = macs is not None and macs < machine.WORK_OF_A_THREAD and precision == "fp32"
        if device.type == "cpu" and not small:
            self._model.pack()
        self._device = device
        self.device = str(device)
        self._threads = threads_for(macs)
        at_once = min(part.at_once, self._threads) if part else 1
        self._threads_of_a_call = _by_images(self._threads // at_once, macs, images)
        # torch takes any number of images as well as a fixed one.
        self._calls = Calls(part and Part(part.images, fixed=False, at_once=at_once))
        self.hardware = (
            machine.named_threads(self._threads)
            if device.type == "cpu"
            else devices.hardware(device)
        )
        self.precision: Precision = precision
        self.transfer_sec = 0.0

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, to logits (B, classes)."""
        return self._run(self._model, batch)

    def features(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Likewise to what the head reads (B, C)."""
        return self._run(self._model.features, batch)

    def _run(
        self, compute: Callable[[torch.Tensor], torch.Tensor], batch: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        def run(some: NDArray[np.float32]) -> NDArray[np.float32]:
            threads = self._threads_of_a_call(len(some))
            with torch.inference_mode(), computing_in(threads), devices.exactly():
                started = perf_counter()
                images = torch.from_numpy(some).to(self._device)  # from pageable memory: it waits
                if self._device.type != "cpu":
                    self.transfer_sec += perf_counter() - started
                return compute(images.to(self._dtype)).float().cpu().numpy()

        return self._calls(run, batch)


class ExportedEngine:
    """Runs a ``.pt2`` that `graphs` wrote on the CPU (see `protocol.Engine`).

    Args:
        path: of the file.
        record: what it says of itself.
        macs: of a call, for the number of threads; by default torch's own choice.
        images: of the call that has these MACs; one that has fewer computes in fewer threads.

    Raises:
        CheckpointError: the file is damaged, or holds what would be executed on loading.
    """

    name = "torch"
    device = "cpu"
    transfer_sec = 0.0
    takes_crops = False
    floats = None

    def __init__(
        self, path: Path, record: Record, macs: int | None = None, images: int = 1
    ) -> None:
        _refuse_pickles(path)
        try:
            with warnings.catch_warnings(), devices.default_is_cpu():
                # torch's of its own buffers, which it only reads
                warnings.simplefilter("ignore")
                program = torch.export.load(path)
        except Exception as error:  # whatever torch's reader makes of damaged bytes
            if told := files.no_temporary_folder(error):
                raise told from error
            raise CheckpointError(
                f"`{path}` is damaged, or from another version of torch: "
                f"{(str(error).splitlines() or [type(error).__name__])[0]}",
                hint="export it again",
            ) from error
        self._model = program.module()
        self.takes_pixels = record.preprocessing_inside
        self.precision = record.precision
        threads = threads_for(macs)
        self._threads_of_a_call = _by_images(threads, macs, images)
        self.hardware = machine.named_threads(threads)

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Images (B, 3, H, W), normalised, or pixels, to logits (B, classes)."""
        return self._run(batch)[0]

    def features(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Likewise to what the head reads (B, C)."""
        return self._run(batch)[1]

    def _run(self, batch: NDArray[Any]) -> list[NDArray[np.float32]]:
        with (
            torch.inference_mode(),
            computing_in(self._threads_of_a_call(len(batch))),
            devices.exactly(),
            devices.default_is_cpu(),
        ):
            return [x.numpy() for x in self._model(torch.tensor(batch))]


def threads_for(macs: int | None) -> int:
    """No more than torch would take: it knows of what the user set, and of cores of two threads."""
    own = torch.get_num_threads()
    return own if macs is None else min(own, machine.threads_for(macs))


def _by_images(most: int, macs: int | None, images: int) -> Callable[[int], int]:
    """The threads for a call of so many images, where one of ``images`` has ``macs`` and ``most``.

    From Python a call often has one, of a model that was loaded for a batch.
    """

    @functools.cache
    def threads(count: int) -> int:
        return most if macs is None else min(most, machine.threads_for(macs * count // images))

    return threads


@contextmanager
def computing_in(count: int) -> Iterator[None]:
    """Compute in so many threads; the process is the user's, whose number comes back."""
    before, count = torch.get_num_threads(), min(count, _most_threads or count)
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# What `graphs` writes into a .pt2: texts, numbers and raw weights. Else torch may unpickle it.
_HARMLESS = re.compile(
    r"[^/]+/(data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|extra/[^/]+|archive_format|archive_version|byteorder"
    r"|\.data/(version|serialization_id|alignment)|\.format_version|\.storage_alignment)"
)


# What `graphs` writes into the description of a network: operators, and sizes as sums and products.
# torch looks up the ones from `torch` on, and gives the others to Python's `eval`.
_OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!from_file)\w+\.\w+|torch\.sym_\w+|_operator\.(?!call)\w+|math\.\w+"
)
_SIZE = re.compile(r"(?:\w{1,40}|'\w+'|[-+*/%(),=<>&|~ ])*")
_CALLED = re.compile(r"(\w+|\)) *\(")
_SIZE_FUNCTIONS = frozenset(
    "Symbol Integer Float Rational Add Mul Max Min Mod PythonMod FloorDiv CeilDiv CleanDiv Abs "
    "IntTrueDiv FloatTrueDiv TruncToInt RoundToInt FloorToInt CeilToInt ToFloat Eq Ne Lt Le Gt Ge "
    "Equality Unequality LessThan GreaterThan StrictLessThan StrictGreaterThan And Or Not".split()
)


def _refuse_pickles(path: Path) -> None:
    """Raises CheckpointError if loading a ``.pt2`` could execute something."""
    try:
        with zipfile.ZipFile(path) as archive:
            odd = [
                info.filename
                for info in archive.infolist()
                if not _HARMLESS.fullmatch(info.filename)
                and not (info.filename.endswith("/sample_inputs/model.pt") and not info.file_size)
            ]
            described = {
                info.filename: text.parsed_json(export_metadata.unpacked(archive, info))
                for info in archive.infolist()
                if info.filename.endswith(("s_config.json", "/models/model.json"))
            }
        for name, content in described.items():
            odd += _harmful(content, is_network=name.endswith("/models/model.json"))
    except export_metadata.UNREADABLE as error:
        raise CheckpointError(f"`{path}` is damaged: {error}") from None
    if odd:
        raise CheckpointError(
            f"`{path}` holds more than `cvt export` writes, and was not loaded: {odd[0]}",
            hint="torch would run this code; export the checkpoint again",
        )


def _harmful(content: Any, is_network: bool) -> Iterator[str]:
    """What in a description torch would execute, wherever it stands."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        waiting += value.values()
        if value.get("use_pickle"):
            yield "a pickled tensor"
        size, target = value.get("expr_str", ""), value.get("target")
        if not isinstance(size, str) or not _is_harmless_size(size):
            yield f"a size that is not a sum or product, {shown(size)}"
        # Of what is computed; the weights are called so too, in other records.
        if is_network and "inputs" in value and target is not None:
            if not isinstance(target, str) or not _OPERATOR.fullmatch(target):
                yield f"an operator {shown(target)}"


def _is_harmless_size(size: str) -> bool:
    if "__" in size or "**" in size or not _SIZE.fullmatch(size):  # a power may have no end
        return False
    return _SIZE_FUNCTIONS.issuperset(_CALLED.findall(size))
