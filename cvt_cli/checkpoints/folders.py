"""A checkpoint's folder in the hub's form: ``config.json`` and what lies beside it.

The settings are written and read here. What the tensors are called is in `names`, what their
shapes tell is in `headers`.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cvt_cli.base import text
from cvt_cli.base.errors import CheckpointError, ConfigError
from cvt_cli.base.limits import LARGEST_CONFIG_BYTES, MOST_STAGES
from cvt_cli.spec import labels
from cvt_cli.spec.config import (
    Activation,
    CvTConfig,
    Size,
    StageConfig,
    shown,
)
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing, Resize
from cvt_cli.spec.published import KnownCheckpoint
from cvt_cli.spec.variants import VARIANTS, preprocessing_of, variant_of

CONFIG_FILE = "config.json"
PREPROCESSING_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLED_WEIGHTS_FILE = "pytorch_model.bin"
WEIGHTS_FILES = (WEIGHTS_FILE, PICKLED_WEIGHTS_FILE)  # the first that there is counts
CARD_FILE = "README.md"

BEST, LAST = "best", "last"
"""The checkpoint folders of a training run."""

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
"""The suffixes of files that hold tensors."""


def unreadable(path: Path, error: OSError) -> CheckpointError:
    """What to tell the user of a checkpoint's file that the system does not let us read."""
    return CheckpointError(f"`{path}` cannot be read: {error.strerror or error}")


@dataclass(frozen=True)
class CheckpointConfig:
    """What a checkpoint is, without its tensors."""

    config: CvTConfig
    labels: Labels
    preprocessing: Preprocessing
    notes: tuple[str, ...] = field(default=())  # what was assumed, one sentence each

    def __post_init__(self) -> None:
        self.config.check_size(self.preprocessing.height, self.preprocessing.width)

    def resizing(self, resize: Resize | None) -> "CheckpointConfig":
        """The same, with images that come to its size in another way, if there is one."""
        return replace(self, preprocessing=self.preprocessing.resizing(resize))


def folder_of(path: Path) -> Path | None:
    """The checkpoint folder that a path names, itself or by the weights in it; else None."""
    if path.is_dir():
        return path
    beside = path.with_name(CONFIG_FILE)
    # Of two files with its tensors, the folder's are those of the first.
    is_its = path.name in WEIGHTS_FILES and path == find_weights(path.parent)
    return path.parent if is_its and beside.is_file() else None


def called(path: Path) -> str:
    """What a checkpoint's folder or file is called; that of a run by the run."""
    path = Path(os.path.abspath(path))  # a link is called as it is itself
    if path.is_file():
        return path.stem
    return path.parent.name if path.name in (BEST, LAST) else path.name  # may be v1.2


def best_of(folder: Path) -> Path | None:
    """The checkpoint that a training run chose; None for any other folder."""
    best = folder / BEST
    is_run = not (folder / CONFIG_FILE).exists() and (best / CONFIG_FILE).is_file()
    return best if is_run else None


def _content_of(folder: Path) -> str:
    """The first names in a folder, as the end of a sentence."""
    try:
        present = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from None
    return ", ".join(present[:8]) or "nothing"


def weights_in(folder: Path) -> Path:
    """The file with a folder's tensors.

    Raises:
        CheckpointError: there is none; the message names the folder.
    """
    found = find_weights(folder)
    if found is None:
        raise CheckpointError(
            f"`{folder}` has a `{CONFIG_FILE}` but neither `{WEIGHTS_FILE}` nor "
            f"`{PICKLED_WEIGHTS_FILE}`"
        )
    return found


def find_weights(folder: Path) -> Path | None:
    """The file with a folder's tensors, if it is there: safetensors rather than a pickle."""
    paths = (folder / name for name in WEIGHTS_FILES)
    return next((path for path in paths if path.is_file()), None)


def card_in(folder: Path) -> str | None:
    """The model card of a folder; None where there is none that can be read."""
    card = folder / CARD_FILE
    try:
        return text.read_text(card, most=LARGEST_CONFIG_BYTES) if card.is_file() else None
    except (OSError, ValueError):
        return None


def license_in(folder: Path) -> str | None:
    """What the header of a folder's model card says of the license."""
    _, dashes, rest = (card_in(folder) or "").partition("---")
    found = dashes and re.search(
        r"^license: *[\"']?([^\n\"']+)", rest.partition("---")[0], re.MULTILINE
    )
    return found[1].strip() if found else None


def read_folder(
    folder: Path,
    known: KnownCheckpoint | None = None,
    size: Size | None = None,
    activation: Activation | None = None,
) -> CheckpointConfig:
    """Read ``config.json`` and ``preprocessor_config.json`` of a folder in the hub's form.

    Args:
        folder: holds these files; no weights are needed.
        known: the known checkpoint that the folder's name says it is, if it does.
        size: input height and width in pixels; by default the checkpoint's own.
        activation: of the MLPs; by default what the checkpoint says, or see the notes.

    Raises:
        CheckpointError: no ``config.json``, not a CvT's, or not JSON.
        ConfigError: a value that no published CvT has.
    """
    path = folder / CONFIG_FILE
    content = _read_json(path)
    if content.get("model_type") != "cvt":
        raise CheckpointError(
            f"`{path}` describes a model of type "
            f"{shown(content.get('model_type') or content.get('architecture'))}; accepted is 'cvt'"
        )
    preprocessing, notes = None, []
    try:
        config, names = config_from_transformers(content)
        path = folder / PREPROCESSING_FILE
        if path.exists():
            said = _read_json(path)
            preprocessing = Preprocessing.from_transformers(said)
            unsaid = [name for name in ("image_mean", "image_std") if name not in said]
            if unsaid:
                notes.append(
                    f"`{path}` has no `{'` and no `'.join(unsaid)}`: ImageNet's are assumed, where "
                    "transformers takes 0.5"
                )
    except ConfigError as error:
        raise ConfigError(f"`{path}`: {error}", error.hint) from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # A number where a list belongs, text where a number belongs, and the like.
        raise ConfigError(f"`{path}` holds a value of the wrong kind: {error}") from None
    if known is not None and not _may_be(known, config, content):
        known = None
    if activation is None and "activation" not in content:
        # transformers knows exact GELU only, but the published weights were trained with QuickGELU.
        activation = "quick_gelu" if known else "gelu"
        if not known:
            notes.append(assumed_gelu(f"`{folder / CONFIG_FILE}` does not say the activation"))
    elif activation is None and config.activation != "gelu" and "transformers_version" in content:
        notes.append(
            f"`{folder / CONFIG_FILE}` says `{config.activation}`, but was saved by transformers, "
            "which computes `gelu` all the same: if it was trained on there, --activation gelu"
        )
    if preprocessing is None:
        known_size = Size.square(known.size) if known else None
        preprocessing = preprocessing_of(config, size or known_size)
        notes.append(
            f"`{folder}` has no `{PREPROCESSING_FILE}`: "
            f"taken as {preprocessing.describe()}; --res overrules the size"
        )
    elif known and preprocessing.height == preprocessing.width == known.misstated:
        size_said = f"{preprocessing.height}x{preprocessing.width}"
        preprocessing = Preprocessing.published(known.size, known.size)
        notes.append(
            f"`{path}` gives {size_said} pixels, but {known.name} takes {known.size}: "
            f"{preprocessing.describe()}; --res overrules"
        )
    if size is not None:
        preprocessing = preprocessing.with_size(size)
    config = config.with_activation(activation)
    try:
        return CheckpointConfig(config, names, preprocessing, tuple(notes))
    except ConfigError as error:
        raise ConfigError(f"`{path}`: {error}") from None


def _may_be(known: KnownCheckpoint, config: CvTConfig, content: Mapping[str, Any]) -> bool:
    """Whether a folder of a known checkpoint's name may hold a copy of it.

    It does not if its network is another, or if this tool wrote it: then it says everything.
    """
    return (
        "cvt_cli_version" not in content
        and variant_of(config) == known.variant
        and config.num_classes == known.num_classes
    )


def assumed_gelu(why: str) -> str:
    return f"{why}: `gelu` is assumed, as in transformers; --activation overrides it"


def _read_json(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"`{path}` is not a regular file")
    try:
        content = text.read_json(path, most=LARGEST_CONFIG_BYTES, unique=True)
    except FileNotFoundError:
        last = path.with_name(LAST)
        no_best = "no epoch of this run is finished"
        if path.with_name("results.json").is_file():
            no_best = f"its `{BEST}` is not there; copy the whole folder"
        raise CheckpointError(
            f"`{path}` does not exist; the folder holds {_content_of(path.parent)}",
            hint=f"{no_best}; `{last}` is a checkpoint too"
            if (last / CONFIG_FILE).is_file()
            else no_best
            if path.with_name("plan.json").is_file()
            else f"it is a cross-validation, whose models are those of its folds, such as `{fold}`"
            if best_of(fold := path.with_name("fold-1"))
            else "a checkpoint folder holds `config.json`, `model.safetensors` "
            "(or `pytorch_model.bin`) and `preprocessor_config.json`",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
        raise CheckpointError(f"`{path}` cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` does not hold a JSON object")
    return content


# What every published CvT has; a config that asks for something else is refused by name.
_FIXED: dict[str, Any] = {
    "qkv_bias": True,
    "qkv_projection_method": "dw_bn",
    "kernel_qkv": 3,
    "padding_kv": 1,
    "stride_kv": 2,
    "padding_q": 1,
    "stride_q": 1,
    "pos_embed": False,
}


# transformers' name of what each stage has a value of, and ours.
_COLUMNS = {
    "patch_sizes": "kernel",
    "patch_stride": "stride",
    "patch_padding": "padding",
    "embed_dim": "width",
    "num_heads": "heads",
    "depth": "depth",
    "mlp_ratio": "mlp_ratio",
    "drop_path_rate": "drop_path",
}


def _columns(stages: tuple[StageConfig, ...]) -> dict[str, list[Any]]:
    """Lists with one value per stage, as a ``config.json`` has them."""
    return {theirs: [getattr(s, ours) for s in stages] for theirs, ours in _COLUMNS.items()}


def config_from_transformers(config: dict[str, Any]) -> tuple[CvTConfig, Labels]:
    """The network and the class names of a ``config.json``.

    Raises:
        ConfigError: it holds a value that no published CvT has.
    """
    if config.get("num_channels", 3) != 3:
        raise ConfigError(f"`num_channels` is {shown(config['num_channels'])}; only 3 is supported")
    published = VARIANTS["13"].config.stages  # transformers' defaults are CvT-13's
    columns = {name: config.get(name, default) for name, default in _columns(published).items()}
    number = len(columns["embed_dim"]) if isinstance(columns["embed_dim"], list) else 0
    for name, values in columns.items():
        if not isinstance(values, list) or len(values) != number or not number:
            raise ConfigError(
                f"`{name}` is {shown(values)}; it must be a list with one value per stage"
            )
    if number > MOST_STAGES:
        raise ConfigError(f"`embed_dim` has {number:,} stages; at most {MOST_STAGES} are accepted")
    for name, value in _FIXED.items():
        values = config.get(name, [value] * number)
        if values != [value] * number:
            raise ConfigError(f"`{name}` is {shown(values)}; only {[value] * number} is supported")
    class_tokens = [False] * (number - 1) + [True]
    if config.get("cls_token", class_tokens) != class_tokens:
        raise ConfigError(
            f"`cls_token` is {shown(config['cls_token'])}; only {class_tokens} is supported"
        )
    rows = zip(*columns.values(), strict=True)
    stages = tuple(StageConfig(**dict(zip(_COLUMNS.values(), row, strict=True))) for row in rows)
    if "id2label" in config:
        names = labels.from_id2label(config["id2label"])
    else:  # transformers leaves out its own default, two unnamed classes
        names = labels.unnamed(config.get("num_labels", 2))
    names = replace(names, thresholds=labels.thresholds_of(config, len(names)))
    # A folder that does not say was saved by transformers, which knows exact GELU only.
    activation: Activation = config.get("activation", "gelu")
    return CvTConfig(stages, len(names), activation), names


def _task(names: Labels) -> dict[str, Any]:
    """What says that an image may have several classes, and from which probability on."""
    if names.thresholds is None:
        return {}
    return {"problem_type": labels.SEVERAL, labels.THRESHOLDS: list(names.thresholds)}


def transformers_config(config: CvTConfig, names: Labels, version: str) -> dict[str, Any]:
    """The content of a ``config.json`` that transformers and `read_folder` read."""
    stages = config.stages
    fixed = {name: [value] * len(stages) for name, value in _FIXED.items()}
    columns = _columns(stages)
    drop_path = columns.pop("drop_path_rate")  # transformers writes it further down
    return {
        "architectures": ["CvtForImageClassification"],
        "model_type": "cvt",
        "num_channels": 3,
        **columns,
        "attention_drop_rate": [0.0] * len(stages),
        "drop_rate": [0.0] * len(stages),
        "drop_path_rate": drop_path,
        "cls_token": [False] * (len(stages) - 1) + [True],
        **fixed,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "id2label": {str(index): name for index, name in enumerate(names.names)},
        "label2id": {name: index for index, name in enumerate(names.names)},
        **_task(names),
        # Ours; transformers keeps it and computes exact GELU all the same.
        "activation": config.activation,
        "cvt_cli_version": version,
    }
