"""What a file of tensors is, told by its header, names and shapes, without reading a tensor."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from cvt_cli.base import text
from cvt_cli.base.errors import CheckpointError, ConfigError, UsageError
from cvt_cli.base.limits import LARGEST_HEADER_BYTES
from cvt_cli.checkpoints.folders import CheckpointConfig, assumed_gelu, unreadable
from cvt_cli.checkpoints.names import is_transformers, reference_names
from cvt_cli.spec import labels
from cvt_cli.spec.config import Activation, CvTConfig, Size, shown
from cvt_cli.spec.published import KnownCheckpoint
from cvt_cli.spec.variants import VARIANTS

Shape = tuple[int, ...]


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
                    f"`{path}` is empty, cut short or not a safetensors file ({size} bytes)"
                )
            if length > LARGEST_HEADER_BYTES:
                raise CheckpointError(
                    f"`{path}` is not a safetensors file: its header would have {length:,} bytes; "
                    f"at most {LARGEST_HEADER_BYTES:,} are accepted"
                )
            content = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from None
    shapes, dtypes, metadata, spans = {}, {}, {}, [(0, 0)]
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
            spans.append((start, end_of_it))
    except (ValueError, TypeError, LookupError, AttributeError):
        raise CheckpointError(
            f"`{path}` is not a safetensors file: its header cannot be read"
        ) from None
    end = 8 + length + max(end for _, end in spans)
    if size < end:
        raise CheckpointError(
            f"`{path}` is cut short: {size} of the {end} bytes that its header announces"
        )
    # As the format wants it and its library asks for: so nothing stands there that no tensor holds.
    spans.sort()
    if size > end or any(before[1] != start for before, (start, _) in pairwise(spans)):
        raise CheckpointError(
            f"`{path}` is not a valid safetensors file: its tensors do not fill it without gaps",
            hint="download or copy it again",
        )
    return Header(shapes, dtypes, metadata)


def order_metadata(path: Path) -> None:
    """Sort the texts in the header of a safetensors file by name, in place.

    Its library writes them in any order: so the same tensors and texts are the same file.

    Raises:
        OSError: it cannot be written.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        content = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(content) <= length:  # as it does, being the same but for the order
            file.seek(8)
            file.write(content.ljust(length))


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63


def safetensors_shapes(path: Path) -> dict[str, Shape]:
    """Shapes by name as the file has them; raises as `safetensors_header`."""
    return safetensors_header(path).shapes


def variant_of_shapes(shapes: Mapping[Any, Shape], source: Path) -> tuple[str, CvTConfig]:
    """The known variant whose tensors these are, with the head's number of classes.

    A bare state dict does not say how many heads or which strides it was trained with, so only
    known variants can be recognised.

    Args:
        shapes: by name as the file has them.
        source: the file that they are in.

    Raises:
        CheckpointError: they are no known variant's; the message names the file.
    """
    ours = reference_names(shapes, source)
    shapes = {ours[name]: shape for name, shape in shapes.items()}
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
            f"`{source}` is not a CvT: its {len(shapes)} tensors do not include "
            "`stage0.patch_embed.proj.weight` and `head.weight` "
            "(or the names that transformers gives them)"
        )
    for name, variant in VARIANTS.items():
        stages = [(stage.width, stage.depth, stage.kernel) for stage in variant.config.stages]
        found = [(e[0], d, e[-1]) for e, d in zip(embeddings, depths, strict=True)]
        if stages == found:
            try:
                return name, variant.config.with_classes(head[0])
            except ConfigError as error:
                raise CheckpointError(f"`{source}`: {error}") from None
    widths = [shape[0] for shape in embeddings]
    known = ", ".join(f"`{name}`" for name in VARIANTS)
    raise CheckpointError(
        f"`{source}`: widths {widths} and depths {depths} belong to no known variant ({known}), "
        "and bare weights do not say the number of heads",
        hint="put it into a folder as `model.safetensors`, beside a `config.json`",
    )


def describe_tensors(
    path: Path,
    shapes: Mapping[Any, Shape],
    known: KnownCheckpoint | None = None,
    size: Size | None = None,
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
        CheckpointError: the tensors are no known variant's, or not those of the known checkpoint.
    """
    variant, config = variant_of_shapes(shapes, path)
    if known is not None and (variant, config.num_classes) != (known.variant, known.num_classes):
        raise CheckpointError(
            f"`{path}` has the name of {known.name}, and holds a `{variant}` with "
            f"{text.counted(config.num_classes, 'class')}",
            hint="give the file another name, and its input size with --res",
        )
    if size is None and known is not None:
        size = Size.square(known.size)
    if size is None:
        raise UsageError(
            f"`{path.name}` is not a known file name, so its input size is unknown",
            hint="give the size, for example --res 224",
        )
    notes = []
    names = labels.imagenet()
    if config.num_classes != len(names):
        names = labels.unnamed(config.num_classes)
        notes.append(
            f"`{path.name}` has no class names: its {len(names)} classes are shown by number"
        )
    elif known is None:
        notes.append(f"`{path.name}` has no class names: its 1000 classes are taken as ImageNet's")
    if activation is None and known is None and is_transformers(map(str, shapes)):
        activation = "gelu"
        notes.append(assumed_gelu(f"`{path.name}` has the tensor names of transformers"))
    preprocessing = VARIANTS[variant].preprocessing.with_size(size)
    return CheckpointConfig(config.with_activation(activation), names, preprocessing, tuple(notes))


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
