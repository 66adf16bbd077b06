"""Weights from and to disk: every layout in, the hub's folder out, always strictly.

Every tensor of a file is accounted for or the load stops and names the difference. Nothing is
unpickled beyond tensors. A model is built without storage (meta device) and then given the file's
tensors, memory-mapped, so that a large one costs neither initialisation nor a copy.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cvt_cli.base import files, locks, stamps, text, zips
from cvt_cli.base.errors import CheckpointError, CvtError
from cvt_cli.base.package import __version__
from cvt_cli.base.progress import Say
from cvt_cli.checkpoints import cache, folders, headers
from cvt_cli.checkpoints.cache import Snapshot
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.checkpoints.names import reference_names, to_transformers
from cvt_cli.model import devices
from cvt_cli.model.network import CvT, init_weights
from cvt_cli.spec import costs
from cvt_cli.spec.config import Activation, CvTConfig, Size
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.published import KnownCheckpoint


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A model with what is needed to use it."""

    model: CvT  # in evaluation mode, float32, on the CPU
    labels: Labels
    preprocessing: Preprocessing
    notes: tuple[str, ...]  # what was assumed, one sentence each

    @property
    def described(self) -> CheckpointConfig:
        """The same without its tensors."""
        return CheckpointConfig(self.model.config, self.labels, self.preprocessing, self.notes)


def load(
    path: Path,
    known: KnownCheckpoint | None = None,
    size: Size | None = None,
    activation: Activation | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint folder, a ``.safetensors`` file or an original ``.pth`` by its path.

    Args:
        path: the folder or file.
        known: the published checkpoint that its name says it is, if it does.
        size: as of `load_checkpoint`.
        activation: as of `load_checkpoint`.

    Raises:
        CheckpointError, ConfigError, UsageError: as `load_checkpoint`.
    """
    return load_checkpoint(Checkpoint.at(path, known), size, activation)


def load_checkpoint(
    checkpoint: Checkpoint,
    size: Size | None = None,
    activation: Activation | None = None,
    stored: Path | None = None,
) -> LoadedCheckpoint:
    """Load a checkpoint folder, a ``.safetensors`` file or an original ``.pth`` state dict.

    Args:
        checkpoint: any but a graph.
        size: input height and width in pixels; by default the checkpoint's own.
        activation: of the MLPs; by default what the checkpoint says, or see the notes.
        stored: the file to read the tensors from, if it is not the checkpoint's own
            (`as_safetensors`).

    Raises:
        CheckpointError: missing, damaged, unsafe, or not a CvT; the message names the file.
        ConfigError: its config holds a value that no published CvT has.
        UsageError: a bare state dict whose input size is not known and not given.
    """
    path, folder = checkpoint.path, checkpoint.folder
    if folder is not None:
        said = checkpoint.described(size, activation)
        path = stored or checkpoint.tensors
        tensors = read_tensors(path)
    elif path.exists():
        said, tensors = _load_state_dict(checkpoint, size, activation)
    else:
        raise CheckpointError(f"`{path}` does not exist")
    checkpoint.refuse_changed()
    model = build(said.config, tensors, path, folder and folder / folders.CONFIG_FILE)
    return LoadedCheckpoint(model, said.labels, said.preprocessing, said.notes)


def as_safetensors(snapshot: Snapshot, say: Say) -> Path:
    """Convert a hub snapshot's pickle, once, and keep the file in the cache.

    Gives the pickle itself where the cache cannot be written.

    Raises:
        CheckpointError: the file is not what the hub announced, or as `read_tensors`.
    """
    pickled = snapshot.weights
    assert pickled is not None
    record = cache.record_of(snapshot.repository, cache.checked_hash(snapshot))
    try:
        with locks.locked(record / "convert.lock", f"converting `{pickled.name}`", say):
            if (found := cache.converted(record)) is not None:
                return found
            if (damaged := cache.conversion(record)).exists():
                say(f"`{damaged}` is damaged; it is made again")
            say(f"converting `{pickled.name}` of {snapshot.repository} to safetensors, once")
            return _convert(pickled, record)
    except CheckpointError:
        raise
    except CvtError as error:
        say(f"{error}; reading the pickle instead, more slowly")
        return pickled


def _convert(pickled: Path, record: Path) -> Path:
    """Write a pickle's tensors, bit by bit and under their names, and a stamp beside them."""
    made = cache.conversion(record)
    for left in {*record.glob("*.safetensors*")} - {made, stamps.beside(made)}:
        with suppress(OSError):
            left.unlink()  # by the version before, which kept no stamps
    with stamps.making(made, {}) as temporary:
        tensors = {str(name): tensor for name, tensor in _read_pickle(pickled).items()}
        for name, tensor in tensors.items():
            if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
                raise CheckpointError(f"`{pickled}`: `{name}` holds no plain numbers")
        write_safetensors(temporary, tensors)  # they may have other strides, or share memory
        # safetensors lets nobody but the owner read.
        files.permit(temporary, pickled.stat().st_mode)
    return made


def _load_state_dict(
    checkpoint: Checkpoint, size: Size | None, activation: Activation | None
) -> tuple[CheckpointConfig, dict[str, Tensor]]:
    path = checkpoint.path
    if checkpoint.kind == "file" and checkpoint.record is not None:
        return checkpoint.described(size, activation), read_tensors(path)
    tensors = _read(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    said = headers.describe_tensors(path, shapes, checkpoint.known, size, activation)
    return said, _by_reference_name(tensors, path)


def build(
    config: CvTConfig, tensors: Mapping[str, Tensor], source: Path, described: Path | None = None
) -> CvT:
    """A model with exactly these tensors, by reference name, without initialising any.

    Args:
        config: of the model.
        tensors: by reference name.
        source: the file that they are from, for the message.
        described: the file that the config is from, likewise, if it is from one.

    Raises:
        CheckpointError: a tensor is missing, unexpected or wrongly shaped; the first few are named.
    """
    found = {
        name: (tuple(t.shape), t.is_floating_point() and t.layout == torch.strided)
        for name, t in tensors.items()
    }
    if problems := headers.tensor_problems(found, costs.tensor_shapes(config)):
        what = f"what `{described}` describes" if described else "the model"
        raise CheckpointError(f"`{source}` does not fit {what}: {headers.differences(problems)}")
    with torch.device("meta"):
        model = CvT(config).float()  # whatever the program that calls has as its default
    wanted = model.state_dict()
    # Stored half precision is widened; float32 stays the memory-mapped tensor of the file.
    state = {name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval()


_LARGE_COLUMN = 4
"""Times the median one's largest weight, from which on a column of the head is too large."""


def balance_head(model: CvT) -> None:
    """Move factors from large columns of the head's weights to the norm before it, in place.

    A feature that hardly varies gets weights of thousands from a solver, beside which all others
    round to 0 in int8, and which float16 cannot hold. The factors are powers of two, so that not a
    bit of the logits changes.
    """
    with torch.no_grad():
        largest = model.head.weight.abs().amax(0)
        ratio = largest / largest.median().clamp_min(torch.finfo(largest.dtype).tiny)
        large = ratio >= _LARGE_COLUMN
        factors = torch.where(large, torch.exp2(ratio.clamp_min(1).log2().floor()), 1.0)
        model.head.weight.div_(factors)
        model.norm.weight.mul_(factors)
        model.norm.bias.mul_(factors)


def replace_head(model: CvT, num_classes: int, seed: int) -> CvT:
    """The same network with a new head, drawn afresh, for another set of classes.

    The weights before the head are shared with ``model``.
    """
    with torch.device("meta"):
        replaced = CvT(model.config.with_classes(num_classes))
    torch.manual_seed(seed)
    head = torch.nn.Linear(model.head.in_features, num_classes)
    init_weights(head)
    tensors = {name: t for name, t in model.state_dict().items() if not name.startswith("head.")}
    tensors |= {f"head.{name}": tensor for name, tensor in head.state_dict().items()}
    replaced.load_state_dict(tensors, strict=True, assign=True)
    return replaced.train(model.training)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by reference name, whichever layout it is in; nothing is executed.

    Raises:
        CheckpointError: empty, cut short, no checkpoint, or a pickle that asks for more than
            tensors.
    """
    return _by_reference_name(_read(path), path)


def _by_reference_name(tensors: Mapping[Any, Tensor], path: Path) -> dict[str, Tensor]:
    ours = reference_names(tensors, path)
    return {ours[name]: tensor for name, tensor in tensors.items()}


def _read(path: Path) -> Mapping[Any, Tensor]:
    """The tensors of a file by the names that it has for them."""
    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"`{path}` is empty (0 bytes)", hint="download or copy it again")
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except OSError as error:
        raise folders.unreadable(path, error) from None


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    headers.safetensors_header(path)  # says precisely what is wrong with a damaged file
    try:
        with devices.default_is_cpu():  # safetensors up to 0.5 puts tensors on the default device
            return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"`{path}` cannot be read: {error}") from None


def _read_pickle(path: Path) -> Mapping[Any, Tensor]:
    with path.open("rb") as file:
        head = file.read(64)
    zipped = head.startswith(b"PK")  # as torch writes since 1.6; before, a bare pickle
    if not zipped and not head.startswith(b"\x80"):
        start = head[:20].decode("ascii", "replace").strip()
        raise CheckpointError(
            f"`{path}` is not a checkpoint: it begins with {start!r}",
            hint="this looks like a web page saved instead of the file; download it again"
            if head.lstrip().startswith(b"<")
            else "accepted are .pth, .bin and .safetensors files and checkpoint folders",
        )
    try:
        with warnings.catch_warnings():  # of other pickle protocols; what cannot be read fails
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # whatever torch's reader makes of damaged bytes
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        asked = next((line for line in lines if "GLOBAL" in line or "Unsupported" in line), None)
        if isinstance(error, pickle.UnpicklingError) and asked:
            raise CheckpointError(
                f"`{path}` holds more than tensors, and was not run: {asked}",
                hint="accepted is a plain state dict: "
                "`torch.save(model.state_dict(), FILE)`, with its author's code",
            ) from None
        if zipped and (names := _other_files(path)):
            raise CheckpointError(
                f"`{path}` is an archive of other files ({text.some(names)}), not a checkpoint",
                hint="if a checkpoint is among them, unpack it and name its folder or file",
            ) from None
        raise CheckpointError(
            f"`{path}` is damaged or cut short: {lines[0]}", hint="download or copy it again"
        ) from None
    return _state_dict(content, path)


def _other_files(path: Path) -> list[str]:
    """The files in a .zip archive that torch did not write; none of one that is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in zips.named(archive).namelist() if not name.endswith("/")]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return []
    torchs = any(name.endswith("/data.pkl") for name in names)
    return [] if torchs else [text.printable(name) for name in names] or ["none"]


def _state_dict(content: Any, path: Path) -> Mapping[Any, Tensor]:
    """The tensors of a bare state dict, or of one under ``state_dict`` or ``model``."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            _refuse_several(content, key, path)
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"`{path}` holds a {type(content).__name__}, not a state dict")
    if odd := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(
            f"`{path}` is not a state dict: `{odd[0]}` is a {type(content[odd[0]]).__name__}, "
            f"not a tensor ({len(odd)} of {len(content)} entries)"
        )
    return content


def _refuse_several(content: Mapping[Any, Any], key: str, path: Path) -> None:
    """Raises CheckpointError where a training state has another network beside, as an average.

    Other tables of tensors, a scheduler's or a metric's, have few entries.
    """
    found = [
        f"`{name}`"
        for name, value in content.items()
        if isinstance(value, Mapping)
        and 2 * len(value) > len(content[key])
        and all(isinstance(entry, Tensor) for entry in value.values())
    ]
    if len(found) > 1:
        raise CheckpointError(
            f"`{path}` holds {len(found)} networks: {', '.join(found)}; accepted is a file with"
            " one",
            hint="save the one that you mean, in Python: "
            f"torch.save(torch.load({str(path)!r})[{key!r}], 'one.pth')",
        )


def save(
    folder: Path,
    model: CvT,
    names: Labels,
    preprocessing: Preprocessing,
    card: str,
    half: bool = False,
) -> None:
    """Write a checkpoint folder in the hub's form, which transformers opens too.

    A folder without weights was not finished. The card comes last and the one before goes first,
    so that none ever stands beside weights that it does not tell of.

    Args:
        folder: made if it does not exist; files of these names in it are replaced.
        model: on any device.
        names: one name per class.
        preprocessing: how to feed it.
        card: the model card, Markdown.
        half: store matrices and kernels in float16; norms, biases and statistics stay float32.
    """
    tensors = {
        to_transformers(name): tensor.detach().cpu() for name, tensor in model.state_dict().items()
    }
    if half:
        tensors = {name: t.half() if t.ndim > 1 else t for name, t in tensors.items()}
    try:
        (folder / folders.CARD_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise files.unwritable(folder / folders.CARD_FILE, error) from error
    write_description(folder, CheckpointConfig(model.config, names, preprocessing, ()), None)
    with files.replacing(folder / folders.WEIGHTS_FILE) as temporary:
        write_safetensors(temporary, tensors)
        # safetensors lets nobody but the owner read; a checkpoint is as readable as its config.
        files.permit(temporary, (folder / folders.CONFIG_FILE).stat().st_mode)
    files.write_text(folder / folders.CARD_FILE, card)


def write_description(folder: Path, described: CheckpointConfig, card: str | None) -> None:
    """Write what a checkpoint folder holds beside the weights.

    Args:
        folder: made if it does not exist; files of these names in it are replaced.
        described: network, class names and preprocessing.
        card: the model card, Markdown; None for none.
    """
    config = folders.transformers_config(described.config, described.labels, __version__)
    files.write_text(folder / folders.CONFIG_FILE, json.dumps(config, indent=2) + "\n")
    files.write_text(
        folder / folders.PREPROCESSING_FILE,
        json.dumps(described.preprocessing.to_transformers(), indent=2) + "\n",
    )
    if card is not None:
        files.write_text(folder / folders.CARD_FILE, card)


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name, as they are.

    Args:
        path: of the file.
        tensors: may be views of one another; each is written whole.
        metadata: kept in the header, by name.

    Raises:
        OSError: it cannot be written.
    """
    # transformers wants to know which library's tensors these are.
    content = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(content, path, metadata={"format": "pt", **(metadata or {})})
        headers.order_metadata(path)
    except SafetensorError as error:  # a full disk, say
        raise OSError(str(error)) from error
