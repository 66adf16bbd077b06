"""Files of tensors, with texts about them, that know whether they are whole."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from cvt_cli.base import files

_CHECKSUM = "crc32"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """Write tensors, and texts about them, with a checksum of both.

    Raises:
        CvtError: the file cannot be written.
    """
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {**about, _CHECKSUM: _checksum(content, about)}
    with files.replacing(path) as temporary:
        mode = temporary.stat().st_mode  # as the umask says; save_file takes 0600
        try:
            save_file(content, temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, say
            raise OSError(str(error)) from error
        files.permit(temporary, mode)


def read_about(path: Path) -> dict[str, str]:
    """The texts alone, unchecked.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    path.open("rb").close()  # safetensors says that there is none where nobody may read it
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_tensors` wrote; a file of the version before has no checksum and is taken.

    Raises:
        OSError, ValueError: the file is missing or damaged.
    """
    about = read_about(path)
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    checksum = about.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(tensors, about):
        raise ValueError("its content has changed since it was written")
    return tensors, about


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """A SHA-256 of tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(content.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _checksum(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> str:
    total = zlib.crc32(json.dumps(dict(about), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), total)
        total = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, total)
    return f"{total:08x}"
