"""The graph of a checkpoint that an engine runs: kept in the cache, made once.

Imports torch only inside the function that makes one.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cvt_cli.base import locks, machine, places, stamps
from cvt_cli.base.conditions import Conditions
from cvt_cli.base.errors import CvtError
from cvt_cli.base.package import __version__
from cvt_cli.checkpoints import cache
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.checkpoints.locate import Access

if TYPE_CHECKING:
    from cvt_cli.model.weights import LoadedCheckpoint

T = TypeVar("T")

_TRIES = 3
"""Of opening a graph that other processes remove (`cvt cache remove`) before it is open."""

_MAKERS = ("torch", "onnx")
"""Packages that make a graph; another version of them may write another one."""


WRITER = 3
"""Counts what `onnx_graph` writes for the same network, and `quantise` makes of it: one more with
every change of it, and where graphs that were kept may be wrong."""


def graph_of(checkpoint: Checkpoint, said: CheckpointConfig) -> tuple[Path, Conditions]:
    """Where the graph of a checkpoint at this size is kept, and what it depends on.

    Reads the weights for their hash, unless that is known.
    """
    announced = cache.weights_hash(checkpoint.snapshot) if checkpoint.snapshot else None
    weights_hash = announced or checkpoint.weights_sha256
    preprocessing = said.preprocessing
    made_under = Conditions(
        {
            "weights": weights_hash,
            "config": repr(said.config),
            "size": [preprocessing.height, preprocessing.width],
            "outputs": ["logits", "features"],
            "cvt-cli": __version__,
            "writer": WRITER,
            **{name: machine.version_of(name) for name in _MAKERS},
        }
    )
    return places.graph_path(weights_hash, made_under), made_under


def prepare(
    graph: Path,
    made_under: Conditions,
    checkpoint: Checkpoint,
    loaded: "LoadedCheckpoint",
    access: Access,
) -> None:
    """Write a checkpoint's graph to the cache, once for all processes."""
    from cvt_cli.export import write_graph

    preprocessing = loaded.preprocessing
    metadata = checkpoint.record_of_export(loaded.described).to_strings()
    what = f"preparing the graph of {checkpoint.name}"
    with locks.locked(graph.with_name("prepare.lock"), what, access.say):
        if stamps.is_right(graph):
            return
        if os.path.isfile(graph):
            access.say(f"`{graph}` is damaged; it is made again")
        access.say(f"{what} at {preprocessing.height}x{preprocessing.width}, once")
        write_graph.write_onnx(
            loaded.model,
            graph,
            preprocessing.height,
            preprocessing.width,
            metadata,
            made_under={**made_under.values, "model": checkpoint.name},
        )


def opened(prepared: Callable[[], Path], open_it: Callable[[Path], T]) -> T:
    """Open a graph; one that another process has removed meanwhile is prepared again.

    Args:
        prepared: gives its place, and makes it if it is not there.
        open_it: opens it.

    Raises:
        CvtError: it cannot be made or opened.
    """
    for tries_left in reversed(range(_TRIES)):
        graph = prepared()
        try:
            return open_it(graph)
        except CvtError:
            if not tries_left or os.path.exists(graph):
                raise
    raise AssertionError("the last try returns or raises")
