"""The names that checkpoints use for tensors and settings, without reading a tensor.

Two layouts are known. "reference" is the official code's and ours, such as
``stage0.blocks.0.norm1.weight``. "transformers" is the hub's, such as
``cvt.encoder.stages.0.layers.0.layernorm_before.weight``, with a ``config.json`` beside it. One
table translates in both directions.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvt_cli import labels
from cvt_cli.checkpoints import Checkpoint
from cvt_cli.config import VARIANTS, Activation, CvTConfig, StageConfig
from cvt_cli.errors import CheckpointError, ConfigError
from cvt_cli.labels import Labels
from cvt_cli.preprocessing import Preprocessing

Shape = tuple[int, ...]

CONFIG_FILE = "config.json"
PREPROCESSING_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLED_WEIGHTS_FILE = "pytorch_model.bin"
WEIGHTS_FILES = (WEIGHTS_FILE, PICKLED_WEIGHTS_FILE)  # the first that there is counts
CARD_FILE = "README.md"

SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
"""Of the files that hold tensors."""

# What stands between the stage or block and the tensor's own name, reference first.
_PARTS = (
    ("patch_embed.proj.", "embedding.convolution_embeddings.projection."),
    ("patch_embed.norm.", "embedding.convolution_embeddings.normalization."),
    ("norm1.", "layernorm_before."),
    ("norm2.", "layernorm_after."),
    ("attn.proj_q.", "attention.attention.projection_query."),
    ("attn.proj_k.", "attention.attention.projection_key."),
    ("attn.proj_v.", "attention.attention.projection_value."),
    ("attn.proj.", "attention.output.dense."),
    ("mlp.fc1.", "intermediate.dense."),
    ("mlp.fc2.", "output.dense."),
    *(
        (
            f"attn.conv_proj_{short}.{part}.",
            f"attention.attention.convolution_projection_{long}.convolution_projection.{whole}.",
        )
        for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
        for part, whole in (("conv", "convolution"), ("bn", "normalization"))
    ),
)
_TO_TRANSFORMERS = {"norm.": "layernorm.", "head.": "classifier.", **dict(_PARTS)}
_TO_REFERENCE = {theirs: ours for ours, theirs in _TO_TRANSFORMERS.items()}


def to_transformers(name: str) -> str:
    """The transformers name of a reference tensor; an unknown one comes back as it is."""
    place = r"(?:stage(\d+)\.(?:blocks\.(\d+)\.)?)?"
    return _translate(name, place, "cvt.encoder.stages.{}.", "layers.{}.", _TO_TRANSFORMERS)


def to_reference(name: str) -> str:
    """The reference name of a transformers tensor; an unknown one comes back as it is."""
    place = r"(?:cvt\.encoder\.stages\.(\d+)\.(?:layers\.(\d+)\.)?)?"
    return _translate(name, place, "stage{}.", "blocks.{}.", _TO_REFERENCE)


def _translate(name: str, place: str, stage: str, block: str, parts: Mapping[str, str]) -> str:
    """Split a name into its place (stage, block), a part and the tensor's own name."""
    match = re.fullmatch(place + r"(.+\.)?(\w+)", name)
    if match is None:
        return name
    stage_index, block_index, part, tensor = match.groups()
    prefix = "" if stage_index is None else stage.format(stage_index)
    prefix += "" if block_index is None else block.format(block_index)
    return f"{prefix}{parts.get(part, part or '')}{tensor}"


def is_transformers(names: Iterable[str]) -> bool:
    """Whether the tensor names are in the transformers layout."""
    return any(name.startswith("cvt.encoder.") for name in names)


def variant_of_shapes(shapes: Mapping[str, Shape], source: Path) -> tuple[str, CvTConfig]:
    """The known variant whose tensors these are, with the head's number of classes.

    A bare state dict does not say how many heads or which strides it was trained with, so only
    known variants can be recognised.

    Args:
        shapes: shape by reference name.
        source: the file that they are in.

    Raises:
        CheckpointError: they are no known variant's; the message names the file.
    """
    embeddings: list[Shape] = []
    depths: list[int] = []
    while (weight := f"stage{len(embeddings)}.patch_embed.proj.weight") in shapes:
        index = len(embeddings)
        embeddings.append(shapes[weight])
        pattern = re.compile(rf"stage{index}\.blocks\.(\d+)\.")
        blocks = {match[1] for name in shapes if (match := pattern.match(name))}
        depths.append(len(blocks))
    head = shapes.get("head.weight")
    if not embeddings or head is None or len(head) != 2 or {len(e) for e in embeddings} != {4}:
        raise CheckpointError(
            f"`{source}`: no CvT: among its {len(shapes)} tensors are no "
            "`stage0.patch_embed.proj.weight` and `head.weight` "
            "(nor the names that transformers gives them)"
        )
    for variant, config in VARIANTS.items():
        stages = [(stage.width, stage.depth, stage.kernel) for stage in config.stages]
        found = [(e[0], d, e[-1]) for e, d in zip(embeddings, depths, strict=True)]
        if stages == found:
            return variant, config.with_classes(head[0])
    widths = [shape[0] for shape in embeddings]
    known = ", ".join(f"`{variant}`" for variant in VARIANTS)
    raise CheckpointError(
        f"`{source}`: widths {widths} and depths {depths} are no known variant's ({known}), "
        "and a bare state dict does not hold the number of heads",
        hint="put it into a folder as `model.safetensors` beside a `config.json`",
    )


def safetensors_shapes(path: Path) -> dict[str, Shape]:
    """Shapes by name from the header of a safetensors file; no tensor is read.

    Raises:
        CheckpointError: the file is empty, truncated, or no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(
                f"`{path}` is empty, cut short or no safetensors file ({size} bytes)"
            )
        try:
            header = json.loads(file.read(length))
            end = max((t["data_offsets"][1] for n, t in header.items() if n[:2] != "__"), default=0)
            shapes = {n: tuple(t["shape"]) for n, t in header.items() if n[:2] != "__"}
        except (ValueError, TypeError, LookupError, AttributeError):
            raise CheckpointError(
                f"`{path}` is no safetensors file: its header is not readable"
            ) from None
    if size < 8 + length + end:
        raise CheckpointError(
            f"`{path}` is cut short: {size} bytes of {8 + length + end} that its header announces"
        )
    return shapes


@dataclass(frozen=True)
class CheckpointConfig:
    """What a checkpoint is, without its tensors."""

    config: CvTConfig
    labels: Labels
    preprocessing: Preprocessing
    notes: tuple[str, ...]  # what was assumed, one sentence each


def folder_of(path: Path) -> Path | None:
    """The checkpoint folder that a path names, itself or by the weights in it; else None."""
    if path.is_dir():
        return path
    beside = path.with_name(CONFIG_FILE)
    return path.parent if path.name == WEIGHTS_FILE and beside.is_file() else None


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


def read_folder(
    folder: Path,
    known: Checkpoint | None = None,
    size: tuple[int, int] | None = None,
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
            f"{content.get('model_type') or content.get('architecture')!r}; accepted is 'cvt'"
        )
    preprocessing = None
    try:
        config, names = config_from_transformers(content)
        path = folder / PREPROCESSING_FILE
        if path.exists():
            preprocessing = Preprocessing.from_transformers(_read_json(path))
    except ConfigError as error:
        raise ConfigError(f"`{path}`: {error}", error.hint) from None
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
        # A number where a list belongs, text where a number belongs, and the like.
        raise ConfigError(f"`{path}` holds a value of the wrong kind: {error}") from None
    if known is not None and config.num_classes != known.num_classes:
        known = None  # somebody's own, in a folder of that name
    notes = []
    if activation is None and "activation" not in content:
        # transformers knows exact GELU only, but the published weights were trained with QuickGELU.
        activation = "quick_gelu" if known else "gelu"
        if not known:
            notes.append(
                f"`{folder / CONFIG_FILE}` does not say the activation: taken as `gelu`, as "
                "transformers computes it; --activation overrules"
            )
    if preprocessing is None:
        default = (known.size, known.size) if known else (224, 224)
        preprocessing = Preprocessing.published(*(size or default))
        notes.append(
            f"`{folder}` has no `{PREPROCESSING_FILE}`: "
            f"taken as {preprocessing.describe()}; --res overrules the size"
        )
    elif known and (preprocessing.height, preprocessing.width) != (known.size, known.size):
        # microsoft/cvt-13-384-22k says 224; the published numbers were measured at 384.
        size_said = f"{preprocessing.height}x{preprocessing.width}"
        preprocessing = Preprocessing.published(known.size, known.size)
        notes.append(
            f"`{path}` gives {size_said} pixels, but {known.name} takes {known.size}: "
            f"{preprocessing.describe()}; --res overrules"
        )
    if size is not None:
        preprocessing = preprocessing.with_size(*size)
    config = config.with_activation(activation)
    return CheckpointConfig(config, names, preprocessing, tuple(notes))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        present = sorted(p.name for p in path.parent.iterdir())[:8]
        raise CheckpointError(
            f"`{path}` does not exist; the folder holds {', '.join(present) or 'nothing'}",
            hint="a checkpoint folder holds `config.json`, `model.safetensors` "
            "(or `pytorch_model.bin`) and `preprocessor_config.json`",
        ) from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"`{path}` cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"`{path}` holds no JSON object")
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


def config_from_transformers(config: dict[str, Any]) -> tuple[CvTConfig, Labels]:
    """The network and its class names that a ``config.json`` describes.

    Raises:
        ConfigError: a value that no published CvT has.
    """
    if config.get("num_channels", 3) != 3:
        raise ConfigError(f"`num_channels` is {config['num_channels']!r}; only 3 is supported")
    published = VARIANTS["13"].stages  # transformers' defaults are CvT-13's
    defaults: dict[str, list[Any]] = {
        "patch_sizes": [s.kernel for s in published],
        "patch_stride": [s.stride for s in published],
        "patch_padding": [s.padding for s in published],
        "embed_dim": [s.width for s in published],
        "num_heads": [s.heads for s in published],
        "depth": [s.depth for s in published],
        "mlp_ratio": [s.mlp_ratio for s in published],
        "drop_path_rate": [s.drop_path for s in published],
    }
    columns = {name: config.get(name, default) for name, default in defaults.items()}
    number = len(columns["embed_dim"]) if isinstance(columns["embed_dim"], list) else 0
    for name, values in columns.items():
        if not isinstance(values, list) or len(values) != number or not number:
            raise ConfigError(f"`{name}` is {values!r}; it must be a list with one value per stage")
    for name, value in _FIXED.items():
        values = config.get(name, [value] * number)
        if values != [value] * number:
            raise ConfigError(f"`{name}` is {values!r}; only {[value] * number} is supported")
    class_tokens = [False] * (number - 1) + [True]
    if config.get("cls_token", class_tokens) != class_tokens:
        raise ConfigError(f"`cls_token` is {config['cls_token']!r}; only {class_tokens} is")
    stages = tuple(
        StageConfig(width, depth, heads, kernel, stride, padding, mlp_ratio, drop_path)
        for kernel, stride, padding, width, heads, depth, mlp_ratio, drop_path in zip(
            *columns.values(), strict=True
        )
    )
    if "id2label" in config:
        names = labels.from_id2label(config["id2label"])
    else:  # transformers leaves out its own default, two unnamed classes
        names = labels.unnamed(config.get("num_labels", 2))
    # A folder that does not say was saved by transformers, which knows exact GELU only.
    activation: Activation = config.get("activation", "gelu")
    return CvTConfig(stages, len(names), activation), names


def transformers_config(config: CvTConfig, names: Labels, version: str) -> dict[str, Any]:
    """The content of a ``config.json`` that transformers and `read_folder` read."""
    stages = config.stages
    fixed = {name: [value] * len(stages) for name, value in _FIXED.items()}
    return {
        "architectures": ["CvtForImageClassification"],
        "model_type": "cvt",
        "num_channels": 3,
        "patch_sizes": [s.kernel for s in stages],
        "patch_stride": [s.stride for s in stages],
        "patch_padding": [s.padding for s in stages],
        "embed_dim": [s.width for s in stages],
        "num_heads": [s.heads for s in stages],
        "depth": [s.depth for s in stages],
        "mlp_ratio": [s.mlp_ratio for s in stages],
        "attention_drop_rate": [0.0] * len(stages),
        "drop_rate": [0.0] * len(stages),
        "drop_path_rate": [s.drop_path for s in stages],
        "cls_token": [False] * (len(stages) - 1) + [True],
        **fixed,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "id2label": {str(index): name for index, name in enumerate(names.names)},
        "label2id": {name: index for index, name in enumerate(names.names)},
        # Ours; transformers keeps it and computes exact GELU all the same.
        "activation": config.activation,
        "cvt_cli_version": version,
    }
