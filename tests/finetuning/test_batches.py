"""Which images a step has, varied and mixed; by processes that end when they are told to."""

import gc
import multiprocessing
import os
import pickle
import resource
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cvt_cli.base.errors import CvtError, DataError, ImageError
from cvt_cli.datasets import labelled, layouts
from cvt_cli.finetuning import batches as training_data
from cvt_cli.finetuning.trainer import Part
from cvt_cli.spec.config import Size
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import AUGMENTATIONS, RECIPES, Augment


@pytest.mark.parametrize("kind", AUGMENTATIONS)
@pytest.mark.parametrize(
    "record", [Preprocessing(32, 32, "crop", 1.0), Preprocessing(128, 160, "crop")], ids=str
)
def test_every_augmentation_gives_arrays_of_the_input_size(kind, record: Preprocessing) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    torch.manual_seed(0)
    transform = training_data.augmentation(AUGMENTATIONS[kind], record)

    first, second = transform(Image.fromarray(pixels)), transform(Image.fromarray(pixels))

    assert first.shape == (3, record.height, record.width) and first.dtype == torch.float32
    assert torch.equal(first, second) == (kind == "none")


@pytest.mark.parametrize(
    ("kind", "size", "geometry"),
    [("crop-flip", 32, "padded-crop"), ("medium", 96, "padded-crop"),
     ("medium", 128, "resized-crop"), ("crop-flip", 224, "crop-flip"),
     ("imagenet", 32, "resized-crop"), ("none", 32, "none")],
)  # fmt: skip
def test_what_is_recorded_of_an_augmentation_is_what_is_done(
    kind: Augment, size: int, geometry: str
) -> None:
    """Of a gradient: a resized crop stretches its steps, any other keeps them as they are."""
    recipe = replace(RECIPES["default"], augment=kind)
    record = Preprocessing(size, size, "squash")
    columns = np.tile(np.linspace(0, 255, size, dtype=np.uint8)[None, :, None], (size, 1, 3))
    transform = training_data.augmentation(
        replace(AUGMENTATIONS[kind], randaugment=None, colour_jitter=0.0, erasing=0.0), record
    )
    torch.manual_seed(0)

    spans = []
    for _ in range(20):
        row = transform(Image.fromarray(columns))[0, size // 2].numpy()
        spans.append(float(row.max() - row.min()) * record.std[0])
    recorded = recipe.to_json(Size.square(size))["augmentation"]

    assert recorded["geometry"] == geometry
    if geometry == "padded-crop":
        assert recorded["smallest_area"] == 1.0 and min(spans) > 0.87
    elif geometry == "resized-crop":
        assert min(spans) < 0.8
    else:
        assert min(spans) > 0.8


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_augmentation_travels_to_worker_processes(kind) -> None:
    for size in (32, 224):
        record = Preprocessing.published(size, size)
        here = training_data.augmentation(AUGMENTATIONS[kind], record)
        there = pickle.loads(pickle.dumps(here))
        found = []
        for transform in (here, there):
            torch.manual_seed(3)
            found.append(transform(Image.new("RGB", (300, 260), (200, 100, 50))))
        assert torch.equal(*found)


def test_augmented_images_are_not_resized_a_second_time() -> None:
    # Each column holds its own number, and 160 is the size that 128 is cropped from.
    columns = np.tile(np.arange(160, dtype=np.uint8)[None, :, None], (160, 1, 3))
    record = Preprocessing(128, 128, "crop")
    torch.manual_seed(0)

    transform = training_data.augmentation(AUGMENTATIONS["crop-flip"], record)
    array = transform(Image.fromarray(columns))

    greys = (array[0] * record.std[0] + record.mean[0]) * 255
    steps = greys.diff(dim=1).round().unique().tolist()
    assert steps in ([1.0], [-1.0])


def test_mixing_gives_soft_targets_that_sum_to_one() -> None:
    mix = training_data.mixing(AUGMENTATIONS["imagenet"], 10)

    batch, targets = mix(torch.rand(4, 3, 32, 32), torch.arange(4))

    assert batch.shape == (4, 3, 32, 32)
    assert targets.shape == (4, 10) and targets.sum(1).tolist() == pytest.approx([1] * 4)
    assert training_data.mixing(AUGMENTATIONS["crop-flip"], 10) is None


def batches(
    data: labelled.LabelledImages, rank: int, processes: int, parts: int, workers: int
) -> training_data.Batches:
    """Of 32 images a step, strongly varied."""
    record = Preprocessing(32, 32, "crop", 1.0)
    return training_data.Batches(
        data,
        training_data.augmentation(AUGMENTATIONS["imagenet"], record),
        part_images=32 // processes // parts,
        parts=parts,
        rank=rank,
        processes=processes,
        seed=3,
        workers=workers,
        pin=False,
    )


def test_images_of_a_step_depend_on_the_seed_and_the_epoch_alone(signdigits: Path) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())

    torch.manual_seed(7)
    whole = next(batches(data, 0, 1, 1, 0).of_epoch(2, 5))[0]
    assert torch.initial_seed() == 7  # the model's randomness is not touched
    halves = [next(batches(data, rank, 2, 2, 1).of_epoch(2, 5)) for rank in (0, 1)]

    for position in (0, 1):
        parts = torch.cat([part[position] for half in halves for part in half])
        assert torch.equal(parts, whole[position])
    other = next(batches(data, 0, 1, 1, 0).of_epoch(3, 5))[0]
    assert not torch.equal(other[1], whole[1])


@pytest.mark.parametrize(
    ("count", "most", "sizes"),
    [
        (239, 64, [59, 60, 60, 60]),
        (128, 64, [64, 64]),
        (7, 2, [2, 2, 3]),  # one image alone would have no statistics for BatchNorm
        (3, 8, [3]),
    ],
    ids=str,
)
def test_every_image_is_seen_once_an_epoch_in_steps_of_nearly_one_size(
    count: int, most: int, sizes: list[int]
) -> None:
    data = labelled.LabelledImages(
        Path("none"), ("a",), tuple(map(str, range(count))), np.zeros(count, np.int64)
    )
    seen: list[list[int]] = []
    for processes, parts in ((1, 1), (1, 2)) if count < 8 else ((1, 1), (1, 2), (2, 2), (4, 1)):
        of_ranks = [
            training_data.Batches(
                data,
                str,
                part_images=max(1, most // processes // parts),
                parts=parts,
                rank=rank,
                processes=processes,
                seed=1,
                workers=0,
                pin=False,
            )  # fmt: skip
            for rank in range(processes)
        ]
        shares = [[[i for _, i in part] for part in ranks._places] for ranks in of_ranks]
        steps = of_ranks[0].steps
        whole = [
            [i for rank in shares for part in rank[step * parts :][:parts] for i in part]
            for step in range(steps)
        ]
        counts = [of_ranks[0].images(step + 1) - of_ranks[0].images(step) for step in range(steps)]
        assert sorted(i for step in whole for i in step) == list(range(count))
        assert [len(step) for step in whole] == counts
        if (processes, parts) == (1, 1):
            assert sorted(counts) == sizes
            seen = whole
        assert whole == seen or most // processes // parts < 2  # the same images in each step


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_goes_on_from_a_first_step_that_was_asked_for_before(
    signdigits: Path, workers: int
) -> None:
    whole = layouts.open_dataset(str(signdigits), "train", Path())
    data = whole.subset(np.arange(0, len(whole), 10))  # of every class
    source, other = (batches(data, 0, 1, 2, workers) for _ in "ab")

    first = source.first()
    epochs = [list(source.of_epoch(number)) for number in (0, 0, 1)]
    again = source.first()
    elsewhere = next(source.of_epoch(0, 2))

    assert source.steps > 4  # more than a worker decodes ahead
    assert equal(first, epochs[0][0]) and equal(again, first)
    for number, epoch in zip((0, 0, 1), epochs, strict=True):
        expected = list(other.of_epoch(number))
        assert len(epoch) == len(expected) == source.steps
        assert all(map(equal, epoch, expected))
    assert equal(elsewhere, epochs[0][2])


def equal(step: list[Part], other: list[Part]) -> bool:
    pairs = zip(step, other, strict=True)
    return all(torch.equal(a, b) for p, q in pairs for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("asked", ["first", "of_epoch"])
def test_workers_end_as_soon_as_nobody_needs_their_batches(signdigits: Path, asked: str) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    before = set(multiprocessing.active_children())
    source = batches(data, 0, 1, 1, workers=1)
    epoch = source.of_epoch(0) if asked == "of_epoch" else iter([source.first()])
    next(epoch)
    (worker,) = set(multiprocessing.active_children()) - before

    gc.disable()
    try:
        del source, epoch
        assert not worker.is_alive()
    finally:
        gc.enable()


def one_worker(source: training_data.Batches) -> tuple[Iterator[list[Part]], BaseProcess]:
    """The batches of an epoch under way, and the worker that decodes them."""
    before = set(multiprocessing.active_children())
    epoch = source.of_epoch(0)
    next(epoch)
    (worker,) = set(multiprocessing.active_children()) - before
    return epoch, worker


def test_a_worker_without_room_for_its_batch_says_so(signdigits: Path) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    epoch, worker = one_worker(batches(data, 0, 1, 1, workers=1))
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (1000, 1000))  # of shared memory too

    with pytest.raises(DataError, match="a worker cannot hand over a batch of 393.* kB") as caught:
        for _ in epoch:
            pass

    assert "--workers 0" in caught.value.hint


@pytest.mark.parametrize("workers", [0, 1])
def test_after_an_image_that_cannot_be_read_no_other_of_its_batch_is_waited_for(
    signdigits: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Of a server that has failed for long, each would be."""
    data = layouts.open_dataset(str(signdigits), "train", Path())
    asked = multiprocessing.Value("i", 0)

    def fails(*_: object, **named: object) -> None:
        with asked.get_lock():
            asked.value += 1
        raise ImageError("gone")

    monkeypatch.setattr(labelled.LabelledImages, "load", fails)
    source = batches(data, 0, 1, 1, workers=workers)

    with pytest.raises(DataError, match="cannot train on `.*`: gone"):
        next(source.of_epoch(0))

    assert asked.value <= 3  # a worker has the batch after it ready


def test_a_lost_worker_ends_the_run_with_a_sentence(signdigits: Path) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    epoch, worker = one_worker(batches(data, 0, 1, 1, workers=1))

    with pytest.raises(CvtError, match="a data-loading process has ended") as caught:
        with training_data.workers_watched("go on"):
            os.kill(worker.pid, signal.SIGKILL)  # of which torch's handler may hear at once
            for _ in epoch:
                pass

    assert caught.value.hint == "go on"


def test_a_worker_ends_when_its_parent_says_so_and_nobody_else(
    signdigits: Path, two_threads: None
) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    epoch, worker = one_worker(batches(data, 0, 1, 1, workers=1))

    for which in ("TERM", "HUP", "INT"):
        subprocess.run(["kill", f"-{which}", str(worker.pid)], check=True)  # another process does
    next(epoch)
    assert worker.is_alive()

    worker.terminate()
    worker.join(5)
    assert not worker.is_alive()


def test_batches_are_the_same_through_pipes(signdigits: Path) -> None:
    data = layouts.open_dataset(str(signdigits), "train", Path())
    record = Preprocessing(32, 32, "crop", 1.0)
    found = []
    for shared in (True, False):
        source = training_data.Batches(
            data, training_data.augmentation(AUGMENTATIONS["imagenet"], record), part_images=16,
            parts=2, rank=0, processes=1, seed=3, workers=1, pin=False, shared=shared,
        )  # fmt: skip
        found.append([tensor for part in next(source.of_epoch(1)) for tensor in part])

    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
