"""What follows ``--model``: a name, a folder or a file, to something ready to run.

Imports torch only inside the functions that need it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cvt_cli import checkpoints, layouts
from cvt_cli.checkpoints import Checkpoint
from cvt_cli.config import DEFAULT_SIZES, VARIANTS, Activation, CvTConfig, parse_size, parse_variant
from cvt_cli.costs import Costs, costs
from cvt_cli.errors import CheckpointError, UsageError
from cvt_cli.labels import Labels
from cvt_cli.preprocessing import Preprocessing

if TYPE_CHECKING:
    from cvt_cli.engine import Engine
    from cvt_cli.model import CvT
    from cvt_cli.weights import LoadedCheckpoint

DEFAULT_MODEL = "cvt-nano-cifar10"


@dataclass(frozen=True)
class Location:
    """Where a checkpoint lies, and which known one it is, if any."""

    name: str  # as results and messages name it
    path: Path
    known: Checkpoint | None


@dataclass(frozen=True)
class Classifier:
    """An engine with what its logits mean and how to feed it."""

    model: str
    engine: "Engine"
    labels: Labels
    preprocessing: Preprocessing
    notes: tuple[str, ...]


def locate(text: str) -> Location:
    """Find what the user calls a model.

    Raises:
        CheckpointError: it is not on this machine.
    """
    known = checkpoints.find(text)
    if known and known.embedded:
        return Location(known.name, known.embedded, known)
    path = Path(text).expanduser()
    if text and path.exists():
        return Location(text, path, known or _known_by_path(path.resolve()))
    if known:
        raise CheckpointError(
            f"the published checkpoint `{known.name}` is not on this machine, and this version "
            "does not fetch it",
            hint=f"download https://huggingface.co/{known.repository} (or the authors' "
            f"`{known.original}`) and name its folder or file: --model PATH",
        )
    names = checkpoints.nearest(text) or list(checkpoints.CHECKPOINTS)
    raise CheckpointError(
        f"there is no model `{text}`: neither a file or folder, nor a known name",
        hint="did you mean " + " or ".join(f"`{name}`" for name in names) + "?",
    )


def _known_by_path(path: Path) -> Checkpoint | None:
    """The published checkpoint that a path says it holds: by name, or in the hub client's cache."""
    cached = [part.split("--") for part in path.parts if part.startswith("models--microsoft--")]
    names = [
        (layouts.folder_of(path) or path).name,
        *(parts[2] for parts in cached if len(parts) == 3),
    ]
    return next((found for name in names if (found := checkpoints.find(name))), None)


def load_checkpoint(
    text: str, res: str | None, activation: Activation | None
) -> "tuple[Location, LoadedCheckpoint]":
    """Find and load a model for torch; ``res`` as after ``--res``.

    Raises:
        UsageError: no such size.
        CheckpointError, ConfigError: as in `locate` and `weights.load`.
    """
    from cvt_cli import weights

    size = parse_size(res) if res else None
    location = locate(text)
    return location, weights.load(location.path, location.known, size, activation)


def load_classifier(
    text: str,
    res: str | None,
    activation: Activation | None,
    device: str,
    precision: str,
) -> Classifier:
    """Find, load and place a model; each argument as after the option of that name.

    Raises:
        UsageError: no such size, device or precision.
        CheckpointError, ConfigError: as in `locate` and `weights.load`.
    """
    from cvt_cli import devices
    from cvt_cli.torch_engine import TorchEngine

    location, loaded = load_checkpoint(text, res, activation)
    place = devices.choose_device(device)
    engine = TorchEngine(loaded.model, place, devices.choose_precision(precision, place))
    return Classifier(location.name, engine, loaded.labels, loaded.preprocessing, loaded.notes)


@dataclass(frozen=True)
class Start:
    """What a training run starts from."""

    name: str
    model: "CvT"
    preprocessing: Preprocessing
    notes: tuple[str, ...]


def start_of_training(
    classes: tuple[str, ...],
    *,
    model: str | None,
    variant: str | None,
    res: str | None,
    activation: Activation | None,
    seed: int,
) -> Start:
    """A checkpoint with a head for these classes, or a fresh variant.

    A checkpoint's head is kept where its classes are these, in this order, else replaced.

    Raises:
        UsageError: there is no such variant.
        CheckpointError: as `locate` and `weights.load`.
    """
    from cvt_cli import training, weights

    if model is not None:
        location, loaded = load_checkpoint(model, res, activation)
        network, notes = loaded.model, loaded.notes
        if loaded.labels.names != classes and loaded.labels.wnids != classes:
            network = weights.replace_head(network, len(classes), seed)
            notes += (
                f"head replaced: {len(loaded.labels)} classes of `{location.name}`, "
                f"{len(classes)} other ones in the data",
            )
        return Start(Path(location.name).stem, network, loaded.preprocessing, notes)
    key = parse_variant(variant or "")
    config = VARIANTS[key].with_classes(len(classes)).with_activation(activation)
    size = parse_size(res) if res else (DEFAULT_SIZES[key],) * 2
    preprocessing = Preprocessing.of_variant(key, *size)
    return Start(key, training.fresh_model(config, seed), preprocessing, ())


def read_architecture(text: str) -> tuple[str, CvTConfig, tuple[int, int]]:
    """Name, config and input size of a model, from its name, JSON files or header alone.

    Raises:
        CheckpointError: not found, or a pickle, which does not say without torch.
        ConfigError: its config holds a value that no published CvT has.
    """
    known = checkpoints.find(text)
    if known and not known.embedded:
        return known.name, VARIANTS[known.variant], (known.size, known.size)
    location = locate(text)
    path = location.path
    if (folder := layouts.folder_of(path)) is not None:
        said = layouts.read_folder(folder, location.known)
        return location.name, said.config, (said.preprocessing.height, said.preprocessing.width)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"`{path}` cannot be read without torch, which this command does not load",
            hint="give the architecture in place of the file: --variant 13, 21, w24 or nano",
        )
    shapes = {layouts.to_reference(n): s for n, s in layouts.safetensors_shapes(path).items()}
    variant, config = layouts.variant_of_shapes(shapes, path)
    return location.name, config, (DEFAULT_SIZES[variant],) * 2


def costs_of(
    variant: str | None, model: str | None, res: str | None, num_classes: int | None
) -> list[Costs]:
    """What ``flops`` and ``count-params`` are asked for; without a model, all variants.

    Raises:
        UsageError: both a variant and a model, or a value that cannot be.
        CheckpointError, ConfigError: as `read_architecture`.
    """
    if variant and model:
        raise UsageError("give --variant or --model, not both")
    size = parse_size(res) if res else None
    asked: list[tuple[str, CvTConfig, list[tuple[int, int]]]]
    if model:
        name, config, own_size = read_architecture(model)
        asked = [(name, config, [own_size])]
    elif variant:
        key = parse_variant(variant)
        asked = [(key, VARIANTS[key], [(DEFAULT_SIZES[key],) * 2])]
    else:
        asked = [
            (key, config, [(32, 32)] if key == "nano" else [(224, 224), (384, 384)])
            for key, config in VARIANTS.items()
        ]
    return [
        costs(name, config.with_classes(num_classes or config.num_classes), height, width)
        for name, config, own in asked
        for height, width in ([size] if size else own)
    ]
