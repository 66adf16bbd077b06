"""The images that a run began with, for who goes on with it: are they still the same?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cvt_cli.base.errors import DataError
from cvt_cli.datasets import held_out
from cvt_cli.datasets.labelled import LabelledImages
from cvt_cli.finetuning.job import BRING_BACK, Images


@dataclass(frozen=True)
class Began:
    """What a run that goes on found of its images when it began.

    What could not be read then is left out to the end, whatever it is now: a server that failed for
    a moment gives it later, and who was told of a damaged file may repair it or take it away.
    """

    left_out: tuple[tuple[str, ...], ...]  # names, of each part
    unreadable: tuple[str, ...]  # the same with the reasons
    fingerprint: str  # of all images, these included

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> "Began | None":
        """From what a run keeps of its data; None for one of the version before."""
        if "left_out" not in kept:
            return None
        left_out = tuple(map(tuple, kept["left_out"]))
        return cls(left_out, tuple(kept["unreadable"]), kept["fingerprint"])

    def used(self, part: int, images: LabelledImages) -> LabelledImages:
        """Those of a part's images that were not left out."""
        left_out = set(self.left_out[part]) if part < len(self.left_out) else set()
        if not left_out:
            return images
        kept = [index for index, name in enumerate(images.names) if name not in left_out]
        return images.subset(np.array(kept, np.int64))

    def describe(self) -> str:
        """What is left out, in a sentence; empty where nothing is."""
        names = [name for part in self.left_out for name in part]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        shown = "; ".join(names[:5])
        return f"{len(names)} left out, as when the run began: {shown}{more}" if names else ""

    def refuse(self, images: LabelledImages, unreadable: Sequence[tuple[int, str]]) -> None:
        """Raises DataError for images of the run that cannot be read any more."""
        if not unreadable:
            return
        shown = "; ".join(f"`{images.place(i)}`: {reason}" for i, reason in unreadable[:5])
        more = f" and {len(unreadable) - 5} more" if len(unreadable) > 5 else ""
        raise DataError(
            "the run cannot go on, since images cannot be read that could be when it began: "
            f"{shown}{more}",
            hint=BRING_BACK,
        )


def are_of(plan: Mapping[str, Any], images: Images) -> bool:
    """Whether these are the images of a plan, in any of its versions."""
    kept = plan["data"]
    if "used_fingerprint" in kept:
        return bool(images.used_fingerprint == kept["used_fingerprint"])
    found = images.fingerprint if "version" in plan else images.size_fingerprint
    return bool(found == kept["fingerprint"])


def others(run: Path, images: Images) -> str:
    """Which of the images found now are none of a run's, and how many of its are not there, as
    ends a sentence; empty where the run does not say it."""
    parts = [images.training, images.validation]
    parts += [] if images.held_out is None else [images.held_out]
    origin = held_out.origin_of_run(run)
    if origin is None or origin.trained is None or any(part.contents is None for part in parts):
        return ""
    chosen_by = [int(content, 16) for _, content in origin.contents if content]
    known = np.union1d(origin.trained, np.array(chosen_by, np.uint64))
    names = [name for part in parts for name in part.names]
    found = np.concatenate([part.contents for part in parts if part.contents is not None])
    # What a fold holds out is kept by name alone.
    is_known = np.isin(found, known) | np.array([name in origin.fold for name in names])
    new = [f"`{name}`" for name, one in zip(names, is_known, strict=True) if not one]
    gone = sorted((origin.validation | origin.fold) - set(names))
    missing = len(np.setdiff1d(known, found)) + len(origin.fold - set(names))
    said = []
    if new:
        more = f" and {len(new) - 5} more" if len(new) > 5 else ""
        said.append(f"{', '.join(new[:5])}{more} {'is' if len(new) == 1 else 'are'} new or changed")
    if missing:
        such_as = f", such as `{gone[0]}`" if gone else ""
        are = "is" if missing == 1 else "are"
        said.append(f"{missing} of its images {are} gone or changed{such_as}")
    if not said and not origin.fold:
        said = ["the files are the same, with other names, classes, weights or in another order"]
    return "".join(f"; {one}" for one in said)
