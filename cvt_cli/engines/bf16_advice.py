"""What a long job in float32 would save in bfloat16 on a processor that is made for it.

``auto`` stays in float32, whose answers are exact; who may give up some digits is told so once.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cvt_cli.base import machine, torchrun
from cvt_cli.base.package import DATA
from cvt_cli.base.progress import Say
from cvt_cli.base.text import duration
from cvt_cli.checkpoints.folders import CheckpointConfig
from cvt_cli.engines.parts import Part
from cvt_cli.engines.protocol import Engine, logits_of
from cvt_cli.images import decode, finding, transform
from cvt_cli.spec.formats import EngineName

LONG_MACS = 15 * 10**12
"""Work for each thread, in MACs, of a job that is told: some six minutes; to measure takes 1 %."""

WORTH_TELLING = 1.2
"""How many times as fast bfloat16 must be."""

_INSTRUCTIONS = {"amx_bf16", "avx512_bf16", "bf16"}
"""Features of processors that multiply in bfloat16; the last is Arm's."""

_TURNS = 3


@dataclass(frozen=True)
class Measured:
    """The same few images in both precisions."""

    fp32_sec: float  # for an image
    bf16_sec: float
    images: int
    largest_difference: float  # of any probability
    same: int  # images with the same answer: the likeliest class, or all at their thresholds


def made_for_bf16(processor: str) -> bool:
    """Whether a processor, as `machine.processor` names it, has products in bfloat16."""
    return bool(_INSTRUCTIONS & set(processor.split()))


def is_long(images: int, macs: int, threads: int) -> bool:
    """Whether so many images of so many MACs are a long job for so many threads."""
    return images * macs >= LONG_MACS * threads


def sentence(found: Measured, images: int) -> str | None:
    """What to say of a job of so many images; None where bfloat16 saves too little."""
    if found.fp32_sec < WORTH_TELLING * found.bf16_sec:
        return None
    return (
        f"--precision bf16 would take about {duration(images * found.bf16_sec)} here instead of "
        f"{duration(images * found.fp32_sec)}; on {found.images} images probabilities differ by "
        f"up to {found.largest_difference:.3f}, and {found.same} of {found.images} answers are the "
        "same"
    )


def advise(
    running: Engine,
    open_bf16: Callable[[EngineName], Engine],
    said: CheckpointConfig,
    images: int,
    part: Part,
    macs: int,
    say: Say,
) -> None:
    """Measure and say it, where that is worth while.

    Args:
        running: the engine in float32.
        open_bf16: gives the engine of this name in bfloat16; called where the processor has it.
        said: the model's preprocessing and classes.
        images: of the job.
        part: how a runtime computes a batch of it.
        macs: of an image.
        say: told.
    """
    names: tuple[EngineName, ...] = ("torch", "openvino")
    name = next((one for one in names if one == running.name), None)
    if running.precision != "fp32" or running.device != "cpu" or not name or torchrun.rank():
        return
    if not is_long(images, macs, machine.threads()) or not made_for_bf16(machine.processor()):
        return
    # A call of fewer images than it is compiled for takes as long; so do fewer calls at once.
    together = part.images * part.at_once if part.fixed else 1
    told = sentence(measured(running, open_bf16(name), said, together), images)
    if told is not None:
        say(told)


def measured(running: Engine, other: Engine, said: CheckpointConfig, together: int) -> Measured:
    """The package's images in both, in turn and in whole calls; the first turn warms up."""
    pictures = [decode.load(path, exif=False) for path in finding.images_in(DATA / "verification")]
    arrays = [transform.preprocess(picture, said.preprocessing) for picture in pictures]
    count = len(arrays)
    whole = -(-count // together) * together
    arrays = [arrays[place % count] for place in range(whole)]
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(_TURNS + 1):
        logits = []
        for engine, own in zip((running, other), seconds, strict=True):
            started = time.perf_counter()
            logits.append(logits_of(engine, arrays).astype(np.float64))
            if turn:
                own.append((time.perf_counter() - started) / len(arrays))
    if said.labels.several:
        chances = [1 / (1 + np.exp(-one[:count])) for one in logits]
        answers = [one >= np.asarray(said.labels.thresholds) for one in chances]
    else:
        chances = [np.exp(one[:count] - one[:count].max(1, keepdims=True)) for one in logits]
        chances = [one / one.sum(1, keepdims=True) for one in chances]
        answers = [one.argmax(1, keepdims=True) for one in chances]
    return Measured(
        statistics.median(seconds[0]),
        statistics.median(seconds[1]),
        count,
        float(np.abs(chances[0] - chances[1]).max()),
        int((answers[0] == answers[1]).all(1).sum()),
    )
