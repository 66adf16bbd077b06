"""The tensors of a checkpoint, as they are stored, under the names of another layout."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from cvt_cli.base import files
from cvt_cli.base.errors import CheckpointError, UsageError
from cvt_cli.checkpoints import folders
from cvt_cli.checkpoints.export_metadata import Record
from cvt_cli.checkpoints.names import to_transformers
from cvt_cli.model import weights
from cvt_cli.model.weights import LoadedCheckpoint
from cvt_cli.spec.formats import FORMATS

Layout = Literal["transformers", "reference"]


@dataclass(frozen=True)
class Converted:
    """A checkpoint in another layout, read again and compared bit by bit."""

    path: Path  # a file, or a folder in the hub's form
    layout: Layout
    tensors: int
    bytes: int
    record: Record

    def to_json(self) -> dict[str, Any]:
        """The documented keys."""
        return {
            "file": str(self.path),
            "format": "safetensors",
            "layout": self.layout,
            "bytes": self.bytes,
            "tensors": self.tensors,
            "equal_bit_by_bit": True,
            "model": self.record.model,
            "source": self.record.source,
            "revision": self.record.revision,
            "weights_sha256": self.record.weights_sha256,
            "license": self.record.license,
        }


def convert(
    stored: Path,
    loaded: LoadedCheckpoint,
    card: str | None,
    record: Record,
    layout: Layout,
    target: Path,
    workplace: Path,
) -> Converted:
    """Write the tensors of a checkpoint as they are stored, under the names of a layout.

    Args:
        stored: the file with the tensors.
        loaded: the model that they make, which shows that they are a whole checkpoint.
        card: the model card for a folder, if there is one.
        record: kept in the header of a file.
        layout: of the names.
        target: a ``.safetensors`` file, else a folder in the hub's form.
        workplace: a folder on the same file system.

    Raises:
        UsageError: a folder in another layout than transformers', or the file that is read.
        CvtError: it cannot be written.
        CheckpointError: what was written is not what was read.
    """
    as_folder = target.suffix != FORMATS["safetensors"].suffix
    if as_folder and layout != "transformers":
        raise UsageError(
            f"a folder has the hub's layout, with the tensor names of transformers, not `{layout}`",
            hint="name a file: --output model.safetensors",
        )
    written = target / folders.WEIGHTS_FILE if as_folder else target
    files.refuse_overwriting([written], [str(stored)])
    tensors = weights.read_tensors(stored)
    renamed = tensors
    if layout == "transformers":
        renamed = {to_transformers(name): tensor for name, tensor in tensors.items()}
    made = workplace / folders.WEIGHTS_FILE
    try:
        weights.write_safetensors(made, renamed, {} if as_folder else record.to_strings())
        files.permit(made, 0o666 & ~_umask())  # safetensors lets nobody but the owner read
    except OSError as error:
        raise files.unwritable(target, error) from error
    again = weights.read_tensors(made)
    if not _equal(tensors, again):
        raise CheckpointError(f"`{target}` does not hold the same tensors as `{stored}`")
    if as_folder:
        files.refuse_replaced(target)
        try:  # so that none of another checkpoint stands beside what is written, also if killed
            for name in (folders.CARD_FILE, folders.WEIGHTS_FILE):
                (target / name).unlink(missing_ok=True)
        except OSError as error:
            raise files.unwritable(target / name, error) from error
        weights.write_description(target, loaded.described, card)
    size = made.stat().st_size
    try:
        files.rename(made, written)
    except OSError as error:
        raise files.unwritable(written, error) from error
    return Converted(target, layout, len(tensors), size, record)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _equal(some: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors are the same, bit by bit, not a number included."""
    if some.keys() != others.keys():
        return False
    return all(
        tensor.dtype == others[name].dtype
        and tensor.shape == others[name].shape
        and _bits(tensor).equal(_bits(others[name]))
        for name, tensor in some.items()
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
