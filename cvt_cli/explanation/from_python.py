"""`Classifier.explain`, below its class."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvt_cli.base import streams
from cvt_cli.base.errors import ImageError
from cvt_cli.base.progress import silent
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.locate import Access
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.explanation import explainer
from cvt_cli.explanation.explain import Asked, Explanation, explain
from cvt_cli.explanation.explainer import TracedEngine
from cvt_cli.explanation.methods import DEFAULT, Name
from cvt_cli.images.decode import colour
from cvt_cli.prediction.classify import Loadable


def load(
    checkpoint: Checkpoint, made_with: Mapping[str, Any], revision: str | None, offline: bool
) -> tuple[ReadyModel, TracedEngine]:
    """The network of a classifier, from the checkpoint that it answers by.

    Raises:
        CheckpointError: its files have changed since the classifier read them.
    """
    access = Access(streams.say, silent, revision, offline)
    res, resize, activation, device = (
        made_with[name] for name in ("res", "resize", "activation", "device")
    )
    return explainer.load(checkpoint, res, activation, device, access, resize=resize)


def asked(
    method: Name | Sequence[Name] | None,
    target: str | int | None,
    against: str | None,
    stage: int | None,
    top_k: int,
    score: bool,
    exif: bool,
    background: str | None,
) -> Asked:
    """The arguments as what is asked of every image."""
    return Asked(
        methods=(method,) if isinstance(method, str) else tuple(method or (DEFAULT,)),
        targets=() if target is None else (str(target),),
        against=against,
        top_k=top_k,
        stage=stage,
        score=score,
        exif=exif,
        background=None if background is None else colour(background),
    )


def explained(
    model: tuple[ReadyModel, TracedEngine], sources: Iterable[Loadable], wanted: Asked
) -> list[Explanation]:
    """The explanations of all images.

    Raises:
        ImageError: one cannot be read.
        UsageError: there is no such class, stage or method.
    """
    found = list(explain(*model, sources, wanted))
    for one in found:
        if one.error is not None:
            raise ImageError(f"`{one.path}`: {one.error}")
    return found
