"""`Classifier.explain`, below its class."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cvt_cli.base import streams
from cvt_cli.base.errors import (
    ImageError,
    UsageError,
    refuse_no_number,
    refuse_other_kind,
)
from cvt_cli.base.progress import silent
from cvt_cli.checkpoints.checkpoint import Checkpoint
from cvt_cli.checkpoints.locate import Access
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.explanation import explainer
from cvt_cli.explanation.explain import Asked, Explanation, explain
from cvt_cli.explanation.explainer import TracedEngine
from cvt_cli.explanation.methods import DEFAULT, METHODS, Name
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
    top_k: int | None,
    score: bool,
    exif: bool,
    background: str | None,
) -> Asked:
    """The arguments as what is asked of every image.

    Raises:
        UsageError: one is of another kind, or has no effect beside the others.
    """
    are_names = isinstance(method, list | tuple) and all(isinstance(one, str) for one in method)
    if not (method is None or isinstance(method, str) or are_names):
        raise UsageError(f"method is {method!r}; it must be a name, or a list of names")
    chosen = (method,) if isinstance(method, str) else tuple(method or (DEFAULT,))
    for name, number, least in (("top_k", top_k, 1), ("stage", stage, 0)):
        if number is not None:
            refuse_no_number(name, number)
            if number < least:
                raise UsageError(f"{name} is {number}; it must be at least {least}")
    refuse_other_kind("score", score, bool)
    if target is not None and not isinstance(target, str):
        refuse_no_number("target", target)
    if against is not None and not isinstance(against, str):
        raise UsageError(f"against is {against!r}; it must be a text such as 'cat,dog'")
    if against is not None and target is not None:
        raise UsageError("against names the classes; give target or against")
    if top_k is not None and (against is not None or target is not None):
        named = "target" if against is None else "against"
        raise UsageError(f"top_k has no effect: {named} names the classes already")
    if stage is not None and not any(METHODS[one].by_stage for one in chosen if one in METHODS):
        raise UsageError("stage has no effect: it is of the methods hirescam and layercam")
    of_class = (("target", target), ("against", against), ("top_k", top_k))
    idle = next((name for name, value in of_class if value is not None), None)
    if idle and not score and all(one in METHODS and not METHODS[one].by_class for one in chosen):
        raise UsageError(f"{idle} has no effect: a map of the method attention is of no class")
    return Asked(
        methods=tuple(dict.fromkeys(chosen)),
        targets=() if target is None else (target,),
        against=against,
        top_k=1 if top_k is None else top_k,
        stage=None if stage is None else int(stage),  # of NumPy's, torch would be told no bool
        score=score,
        exif=exif,
        background=background,
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
