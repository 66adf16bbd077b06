"""The names that checkpoints use for tensors and settings, without reading a tensor.

Two layouts are known. "reference" is the official code's and ours, such as
``stage0.blocks.0.norm1.weight``. "transformers" is the hub's, such as
``cvt.encoder.stages.0.layers.0.layernorm_before.weight``, with a ``config.json`` beside it. One
table translates in both directions.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cvt_cli.base import text
from cvt_cli.base.errors import CheckpointError, ConfigError, UsageError
from cvt_cli.base.limits import LARGEST_CONFIG_BYTES, LARGEST_HEADER_BYTES, MOST_STAGES
from cvt_cli.spec import labels
from cvt_cli.spec.config import (
    DEFAULT_SIZES,
    VARIANTS,
    Activation,
    CvTConfig,
    StageConfig,
    shown,
    variant_of,
)
from cvt_cli.spec.labels import Labels
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.published import Checkpoint

Shape = tuple[int, ...]

CONFIG_FILE = "config.json"
PREPROCESSING_FILE = "preprocessor_config.json"
WEIGHTS_FILE = "model.safetensors"
PICKLED_WEIGHTS_FILE = "pytorch_model.bin"
WEIGHTS_FILES = (WEIGHTS_FILE, PICKLED_WEIGHTS_FILE)  # the first that there is counts
CARD_FILE = "README.md"

BEST, LAST = "best", "last"
"""The checkpoint folders of a training run."""

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


def reference_names(names: Iterable[object], source: Path) -> dict[Any, str]:
    """The reference name of each tensor of a file, whichever layout it is in.

    Args:
        names: as the file has them; the prefix of a network that was trained on several devices
            is left out.
        source: the file, for the message.

    Raises:
        CheckpointError: two of them mean the same tensor; both are named.
    """
    found = {name: str(name).removeprefix("module.") for name in names}
    if is_transformers(found.values()):
        found = {name: to_reference(stripped) for name, stripped in found.items()}
    first: dict[str, object] = {}
    for name, ours in found.items():
        if first.setdefault(ours, name) is not name:
            raise CheckpointError(
                f"`{source}` has one tensor under two names, `{first[ours]}` and `{name}`, and "
                "does not say which of them counts",
                hint="save it again with one of them",
            )
    return found


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
            try:
                return variant, config.with_classes(head[0])
            except ConfigError as error:
                raise CheckpointError(f"`{source}`: {error}") from None
    widths = [shape[0] for shape in embeddings]
    known = ", ".join(f"`{variant}`" for variant in VARIANTS)
    raise CheckpointError(
        f"`{source}`: widths {widths} and depths {depths} are no known variant's ({known}), "
        "and a bare state dict does not hold the number of heads",
        hint="put it into a folder as `model.safetensors` beside a `config.json`",
    )


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself before its tensors."""

    shapes: dict[str, Shape]
    dtypes: dict[str, str]  # such as "F32"
    metadata: dict[str, Any]  # texts by name, of well-formed files


def safetensors_header(path: Path) -> Header:
    """The header of a safetensors file; no tensor is read.

    Raises:
        CheckpointError: the file is unreadable, empty, truncated, or no safetensors file.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise CheckpointError(
                    f"`{path}` is empty, cut short or no safetensors file ({size} bytes)"
                )
            if length > LARGEST_HEADER_BYTES:
                raise CheckpointError(
                    f"`{path}` is no safetensors file: its header would have {length:,} bytes, and "
                    f"may have {LARGEST_HEADER_BYTES:,}"
                )
            content = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from None
    shapes, dtypes, metadata, end = {}, {}, {}, 0
    try:
        for name, entry in text.parsed_json(content, unique=True).items():
            if name == "__metadata__":
                metadata = dict(entry)
                continue
            start, end_of_it = entry["data_offsets"]
            shape = tuple(entry["shape"])
            if not all(_is_size(number) for number in (start, end_of_it, *shape)):
                raise ValueError(f"{shown(name)} has {shown(entry)}")
            shapes[name], dtypes[name] = shape, str(entry["dtype"])
            end = max(end, end_of_it)
    except (ValueError, TypeError, LookupError, AttributeError):
        raise CheckpointError(
            f"`{path}` is no safetensors file: its header is not readable"
        ) from None
    if size < 8 + length + end:
        raise CheckpointError(
            f"`{path}` is cut short: {size} bytes of {8 + length + end} that its header announces"
        )
    return Header(shapes, dtypes, metadata)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def tensor_problems(
    found: Mapping[str, tuple[Shape, bool]], wanted: Mapping[str, Shape]
) -> list[str]:
    """What differs between the tensors that a file has and a network needs, a phrase each.

    Args:
        found: shape by name, and whether it holds plain floating-point numbers.
        wanted: shape by name; all hold such numbers but BatchNorm's counts of its batches.
    """
    both = [name for name in wanted if name in found]
    return [
        *(f"missing `{name}`" for name in wanted if name not in found),
        *(f"unexpected `{name}`" for name in found if name not in wanted),
        *(
            f"`{name}` has shape {list(found[name][0])}, not {list(wanted[name])}"
            for name in both
            if found[name][0] != wanted[name]
        ),
        *(
            f"`{name}` holds no plain floating-point numbers"
            for name in both
            if not found[name][1] and not name.endswith("num_batches_tracked")
        ),
    ]


def differences(problems: list[str]) -> str:
    """The first few of `tensor_problems`, as the end of a sentence."""
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"{len(problems)} of its tensors differ: " + "; ".join(problems[:5]) + more


def safetensors_shapes(path: Path) -> dict[str, Shape]:
    """Shapes by name as the file has them; raises as `safetensors_header`."""
    return safetensors_header(path).shapes


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


def folder_of(path: Path) -> Path | None:
    """The checkpoint folder that a path names, itself or by the weights in it; else None."""
    if path.is_dir():
        return path
    beside = path.with_name(CONFIG_FILE)
    # Of two files with its tensors, the folder's are those of the first.
    is_its = path.name in WEIGHTS_FILES and path == find_weights(path.parent)
    return path.parent if is_its and beside.is_file() else None


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


def licence_in(folder: Path) -> str | None:
    """What the header of a folder's model card says of the licence."""
    _, dashes, rest = (card_in(folder) or "").partition("---")
    found = dashes and re.search(
        r"^license: *[\"']?([^\n\"']+)", rest.partition("---")[0], re.MULTILINE
    )
    return found[1].strip() if found else None


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
            f"{shown(content.get('model_type') or content.get('architecture'))}; accepted is 'cvt'"
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
    if known is not None and not _may_be(known, config, content):
        known = None
    notes = []
    if activation is None and "activation" not in content:
        # transformers knows exact GELU only, but the published weights were trained with QuickGELU.
        activation = "quick_gelu" if known else "gelu"
        if not known:
            notes.append(_assumed_gelu(f"`{folder / CONFIG_FILE}` does not say the activation"))
    if preprocessing is None:
        variant = variant_of(config) or ""
        default = known.size if known else DEFAULT_SIZES.get(variant, 224)
        preprocessing = Preprocessing.of_variant(variant, *(size or (default, default)))
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
        preprocessing = preprocessing.with_size(*size)
    config = config.with_activation(activation)
    try:
        return CheckpointConfig(config, names, preprocessing, tuple(notes))
    except ConfigError as error:
        raise ConfigError(f"`{path}`: {error}") from None


def _may_be(known: Checkpoint, config: CvTConfig, content: Mapping[str, Any]) -> bool:
    """Whether a folder of a known checkpoint's name may hold a copy of it.

    It does not if its network is another, or if this tool wrote it: then it says everything.
    """
    return (
        "cvt_cli_version" not in content
        and variant_of(config) == known.variant
        and config.num_classes == known.num_classes
    )


def _assumed_gelu(why: str) -> str:
    return f"{why}: taken as `gelu`, as transformers computes it; --activation overrules"


def describe_tensors(
    path: Path,
    shapes: Mapping[Any, Shape],
    known: Checkpoint | None = None,
    size: tuple[int, int] | None = None,
    activation: Activation | None = None,
) -> CheckpointConfig:
    """What a file of tensors alone is: all that their names and shapes tell, the rest noted.

    Args:
        path: of the file.
        shapes: by name as the file has them.
        known: the published checkpoint that the file's name says it is, if it does.
        size: input height and width in pixels; by default the known checkpoint's.
        activation: of the MLPs; by default by who saved it.

    Raises:
        UsageError: the input size is not known and not given.
        CheckpointError: the tensors are no known variant's.
    """
    ours = reference_names(shapes, path)
    variant, config = variant_of_shapes({ours[name]: s for name, s in shapes.items()}, path)
    if size is None and known is not None:
        size = (known.size, known.size)
    if size is None:
        raise UsageError(
            f"`{path.name}` does not say its input size and is no known file name",
            hint="give it with --res, for example --res 224",
        )
    notes = []
    names = labels.imagenet()
    if config.num_classes != len(names):
        names = labels.unnamed(config.num_classes)
        notes.append(f"`{path.name}` does not name its {len(names)} classes: shown by number")
    elif known is None:
        notes.append(f"`{path.name}` does not name its 1000 classes: taken as ImageNet's")
    if activation is None and known is None and is_transformers(map(str, shapes)):
        activation = "gelu"
        notes.append(_assumed_gelu(f"`{path.name}` has the names that transformers gives tensors"))
    preprocessing = Preprocessing.of_variant(variant, *size)
    return CheckpointConfig(config.with_activation(activation), names, preprocessing, tuple(notes))


def _read_json(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise CheckpointError(f"`{path}` is no regular file")
    try:
        content = text.read_json(path, most=LARGEST_CONFIG_BYTES, unique=True)
    except FileNotFoundError:
        last = path.with_name(LAST)
        raise CheckpointError(
            f"`{path}` does not exist; the folder holds {_content_of(path.parent)}",
            hint=f"of this run no epoch is finished; `{last}` is a checkpoint too"
            if (last / CONFIG_FILE).is_file()
            else "a checkpoint folder holds `config.json`, `model.safetensors` "
            "(or `pytorch_model.bin`) and `preprocessor_config.json`",
        ) from None
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError as error:
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
    """The network and the class names of a ``config.json``.

    Raises:
        ConfigError: it holds a value that no published CvT has.
    """
    if config.get("num_channels", 3) != 3:
        raise ConfigError(f"`num_channels` is {shown(config['num_channels'])}; only 3 is supported")
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
            raise ConfigError(
                f"`{name}` is {shown(values)}; it must be a list with one value per stage"
            )
    if number > MOST_STAGES:
        raise ConfigError(f"`embed_dim` has {number:,} stages; {MOST_STAGES} is the most")
    for name, value in _FIXED.items():
        values = config.get(name, [value] * number)
        if values != [value] * number:
            raise ConfigError(f"`{name}` is {shown(values)}; only {[value] * number} is supported")
    class_tokens = [False] * (number - 1) + [True]
    if config.get("cls_token", class_tokens) != class_tokens:
        raise ConfigError(f"`cls_token` is {shown(config['cls_token'])}; only {class_tokens} is")
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
