"""Blocks that are computed twice in place of keeping what they computed: less memory, more time."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cvt_cli.model.network import Block


def recompute_blocks(model: nn.Module) -> None:
    """Let the blocks of a network compute their forward pass once more in the backward pass."""
    for module in model.modules():
        if isinstance(module, Block):
            module.forward = partial(_recomputed, module, module.forward)  # type: ignore[method-assign]


def _recomputed(block: Block, forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), _statistics_kept(block)

    result: Tensor = checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)
    return result


@contextmanager
def _statistics_kept(block: Block) -> Iterator[None]:
    """Leave BatchNorm's running statistics alone: the first pass has moved them already."""
    own = [
        (module, name, buffer)
        for module in block.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    for module, name, buffer in own:
        setattr(module, name, buffer.clone())
    try:
        yield
    finally:
        for module, name, buffer in own:
            setattr(module, name, buffer)
