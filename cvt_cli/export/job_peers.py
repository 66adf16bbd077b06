"""What `jobs` runs beside our commands, each in a process of its own: others' loops, and the bound.

    python -m cvt_cli.export.job_peers FILE.json

The file holds a `Task`. Every one reads pictures from files and writes its answers to a file.
"""

import csv
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cvt_cli.base import machine

if TYPE_CHECKING:
    from torch import Tensor

    Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """What such a process does."""

    what: str  # "decode", or a peer of `jobs`
    job: str  # "predict", "evaluate", "finetune"
    paths: list[str]  # of the pictures
    labels: list[int]  # their classes; none for "predict"
    classes: int
    model: str  # folder of a checkpoint, as `transformers` opens it
    height: int
    width: int
    crop: int | None  # what the shorter side is resized to before the crop; None squashes
    batch_size: int
    device: str
    output: str
    exported: str | None = None  # the file that `transformers-openvino`, `-onnx` run
    precision: str = "fp32"
    macs: int = 0  # of one image
    held_out: list[str] = field(default_factory=list)  # that "finetune" validates on
    held_out_labels: list[int] = field(default_factory=list)


def main(task: Task) -> None:
    """Do a task."""
    if task.what == "decode":
        _decode(task)
    elif task.what == "transformers":
        _pipeline(task)
    elif task.job == "finetune":
        _train(task)
    else:
        _loop(task)


def _decode(task: Task) -> None:
    """All that our commands do before the engine, in as many threads; how long it took."""
    from cvt_cli.base.ahead import ahead
    from cvt_cli.base.errors import ImageError
    from cvt_cli.images import decode, transform
    from cvt_cli.spec.preprocessing import Preprocessing

    how = Preprocessing.published(task.height, task.width)

    def prepare(path: str) -> int:
        try:
            return transform.preprocess(decode.load(Path(path), exif=False), how).nbytes
        except ImageError as error:
            sys.exit(f"error: `{path}`: {error}; a job needs images that can all be read")

    started = time.perf_counter()
    ready = ahead(prepare, task.paths, machine.threads(), 2 * task.batch_size)
    for _ in ready:
        pass
    Path(task.output).write_text(str(time.perf_counter() - started))


def _pipeline(task: Task) -> None:
    """The image classification of `transformers`, in batches, decoded in other processes."""
    from transformers import pipeline

    classify = pipeline("image-classification", model=task.model, device=task.device)
    answers = classify(
        task.paths, batch_size=task.batch_size, num_workers=machine.threads(), top_k=5
    )
    names = [found[0]["label"] for found in answers]
    if task.job == "evaluate":
        index: Any = classify.model.config.label2id
        right = sum(index[name] == label for name, label in zip(names, task.labels, strict=True))
        Path(task.output).write_text(json.dumps({"top1": right / len(names)}))
        return
    with open(task.output, "w", newline="") as file:
        rows = csv.writer(file)
        for path, found in zip(task.paths, answers, strict=True):
            rows.writerow([path, *(value for one in found for value in one.values())])


def _transform(task: Task, training: bool) -> Any:
    from torchvision.transforms import v2

    bicubic = v2.InterpolationMode.BICUBIC
    size = (task.height, task.width)
    if training:  # the reference's, of its fine-tuning
        larger = (task.height + 32, task.width + 32)
        steps = [v2.Resize(larger, bicubic), v2.RandomCrop(size), v2.RandomHorizontalFlip()]
    elif task.crop:
        steps = [v2.Resize(task.crop, bicubic), v2.CenterCrop(size)]
    else:
        steps = [v2.Resize(size, bicubic)]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return v2.Compose([*steps, v2.PILToTensor(), _to_float(), v2.Normalize(mean, std)])


def _to_float() -> Any:
    import torch
    from torchvision.transforms import v2

    return v2.ToDtype(torch.float32, scale=True)


class _Pictures:
    """A data set as torch's loaders take it."""

    def __init__(self, task: Task, training: bool) -> None:
        self.task, self.transform = task, _transform(task, training)

    def __len__(self) -> int:
        return len(self.task.paths)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        with Image.open(self.task.paths[index]) as image:
            ready = self.transform(image.convert("RGB"))
        return ready, self.task.labels[index] if self.task.labels else 0


def _batches(task: Task, training: bool = False) -> Iterator[Any]:
    """By torch's loader, with a process for each processor."""
    from torch.utils.data import DataLoader

    pictures: Any = _Pictures(task, training)
    loader = DataLoader(
        pictures, task.batch_size, shuffle=training, num_workers=machine.threads(),
        pin_memory=task.device.startswith("cuda"),
    )  # fmt: skip
    for images, labels in loader:
        yield images.to(task.device, non_blocking=True), labels.to(task.device, non_blocking=True)


def _network(task: Task) -> "Network":
    """What computes logits: the eager network, or the file that `transformers` exported."""
    import torch

    if task.exported is not None:
        from cvt_cli.export import benchmark_peers

        run = benchmark_peers.runner(
            "transformers-openvino"
            if task.what == "transformers-openvino"
            else "transformers-onnx",
            Path(task.exported),
            task.precision,
            task.macs * task.batch_size,
        )
        return lambda images: torch.from_numpy(run(images.numpy()))
    from transformers import CvtForImageClassification

    model: Any = CvtForImageClassification.from_pretrained(task.model)
    model = model.eval().to(task.device)
    return lambda images: model(images).logits


def _loop(task: Task) -> None:
    """A loop over torch's loader as timm's `validate.py` and `inference.py` have it."""
    import torch

    network, right, seen, loss = _network(task), 0, 0, 0.0
    rows: list[Any] = []
    with torch.inference_mode():
        for images, labels in _batches(task):
            logits = network(images)
            if task.job == "evaluate":
                loss += torch.nn.functional.cross_entropy(logits, labels).item() * len(labels)
                right += int((logits.argmax(1) == labels).sum())
                seen += len(labels)
            else:
                found = logits.softmax(1).topk(min(5, logits.shape[1]))
                rows += torch.cat([found.indices.float(), found.values], 1).tolist()
    with open(task.output, "w", newline="") as file:
        if task.job == "evaluate":
            json.dump({"top1": right / seen, "loss": loss / seen}, file)
        else:
            csv.writer(file).writerows([p, *r] for p, r in zip(task.paths, rows, strict=True))


def _train(task: Task) -> None:
    """One epoch of a plain loop: AdamW, float32; validated and written at its end."""
    import torch
    from transformers import CvtForImageClassification

    model: Any = CvtForImageClassification.from_pretrained(
        task.model, num_labels=task.classes, ignore_mismatched_sizes=True
    )
    model = model.train().to(task.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
    for images, labels in _batches(task, training=True):
        loss = torch.nn.functional.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    held_out, right = replace(task, paths=task.held_out, labels=task.held_out_labels), 0
    with torch.inference_mode():
        for images, labels in _batches(held_out):
            right += int((model(images).logits.argmax(1) == labels).sum())
    model.save_pretrained(task.output)
    Path(task.output, "top1.json").write_text(json.dumps(right / len(task.held_out)))


if __name__ == "__main__":
    machine.wait_briefly()
    main(Task(**json.loads(Path(sys.argv[1]).read_text())))
    sys.stdout.flush()
    os._exit(0)  # loaders' processes need not be waited for
