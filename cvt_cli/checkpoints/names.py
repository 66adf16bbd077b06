"""The names that checkpoints give tensors, and how one scheme is translated into the other.

"reference" is the official code's scheme and ours, such as ``stage0.blocks.0.norm1.weight``.
"transformers" is the hub's, such as
``cvt.encoder.stages.0.layers.0.layernorm_before.weight``. One table translates in both directions.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cvt_cli.base.errors import CheckpointError

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
                f"`{source}` has the same tensor under two names, `{first[ours]}` and `{name}`, "
                "and does not say which one is meant",
                hint="save it again with one of the two",
            )
    return found
