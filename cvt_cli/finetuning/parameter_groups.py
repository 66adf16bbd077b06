"""Which parameters are trained, and how strongly: weight decay, rates by depth, frozen parts."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from cvt_cli.base.errors import UsageError
from cvt_cli.model.network import CvT, Stage


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Parameters by weight decay and learning rate; those that are frozen are left out.

    Biases, norms and the class token are not decayed. ``rate_scale`` is 1 for the head and the
    final norm and ``layer_decay`` times that of the block above for each block below.
    """
    depths = _depths(model) if layer_decay != 1.0 else {}
    deepest = max(depths.values(), default=0)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = parameter.ndim <= 1 or name.endswith("cls_token")
            above = deepest + 1 - depths[name] if name in depths else 0
            key = (0.0 if spared else weight_decay, layer_decay**above)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "rate_scale": scale}
        for (decay, scale), parameters in sorted(groups.items(), key=lambda item: item[0][::-1])[
            ::-1
        ]
    ]


def _depths(model: nn.Module) -> dict[str, int]:
    """How many blocks come before each parameter of a stage; a token embedding counts as one."""
    found: dict[str, int] = {}
    depth = 0
    for stage_name, stage in model.named_children():
        if not isinstance(stage, Stage):
            continue
        for name, _ in stage.named_parameters():
            parts = name.split(".")
            inside = 1 + int(parts[1]) if parts[0] == "blocks" else 0
            found[f"{stage_name}.{name}"] = depth + inside
        depth += 1 + len(stage.blocks)
    return found


def freeze(model: CvT, parts: Sequence[str]) -> list[nn.Module]:
    """Take parts out of training: "backbone", which is all but the head, or stages.

    Returns:
        The frozen modules, whose BatchNorm statistics are to stay as well.

    Raises:
        UsageError: there is no such part.
    """
    stages = [name for name, child in model.named_children() if isinstance(child, Stage)]
    names: list[str] = []
    for part in parts:
        if part not in ("backbone", *stages):
            raise UsageError(
                f"there is no part `{part}` to freeze; accepted are `backbone` and "
                + ", ".join(f"`{name}`" for name in stages)
            )
        names += [*stages, "norm"] if part == "backbone" else [part]
    frozen = [model.get_submodule(name) for name in dict.fromkeys(names)]
    for module in frozen:
        module.requires_grad_(False)
    return frozen
