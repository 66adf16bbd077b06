"""Small labelled sets on disk, whose pictures tell by their grey which they are."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

from PIL import Image

from cvt_cli.datasets.labelled import LabelledImages
from tests_shared import test_data


def class_folders(root: Path, counts: dict[str, int]) -> Path:
    """Small images, each of one grey that tells which it is."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (32, 32), (number,) * 3).save(root / name / f"{number:03}.png")
    return root


def picture(number: int) -> bytes:
    """A small image whose grey tells which it is."""
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number,) * 3).save(file, "PNG")
    return file.getvalue()


def greys(data: LabelledImages) -> list[int]:
    return [data.load(index, exif=False).getpixel((0, 0))[0] for index in range(len(data))]


def flat_validation(folder: Path) -> Path:
    """Three images in one folder, named as ImageNet's; listed by the system in any order."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in (3, 1, 2):
        (folder / f"ILSVRC2012_val_{number:08}.JPEG").write_bytes(picture(number))
    return folder


def eleven_classes(root: Path) -> Path:
    """Of eleven classes, so that 10 sorts before 2; train and val."""
    for part in ("train", "val"):
        for label in range(11):
            (root / part / str(label)).mkdir(parents=True)
            for number in (1, 2, 10):
                content = picture(20 * label + number)
                (root / part / str(label) / f"{number}.png").write_bytes(content)
    return root


def zipped(folder: Path, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, Path(top, file.relative_to(folder)))
    return path


class Unflagged(zipfile.ZipInfo):
    """A member of a .zip whose name is written as it is, without the flag that says it is UTF-8."""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:
        return os.fsencode(self.filename), self.flag_bits


def zipped_by_a_mac(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            name = f"{file.relative_to(folder)}{'/' if file.is_dir() else ''}"
            archive.writestr(Unflagged(name), b"" if file.is_dir() else file.read_bytes())
    return path


def tarred(folder: Path, path: Path, top: str = ".", mode: str = "w") -> Path:
    with tarfile.open(path, mode, format=tarfile.GNU_FORMAT) as archive:  # as GNU tar writes
        archive.add(folder, top)
    return path


def same(data: LabelledImages, other: LabelledImages) -> bool:
    return (
        (data.classes, data.names) == (other.classes, other.names)
        and data.labels.tolist() == other.labels.tolist()
        and greys(data) == greys(other)
    )


def tiny_imagenet(root: Path) -> Path:
    wnids = test_data("labels/tiny_imagenet_200_wnids.txt").read_text().split()[:3]
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for number, wnid in enumerate([wnids[2], wnids[0], wnids[1], wnids[0]]):
        (root / "val" / "images" / f"val_{number}.JPEG").write_bytes(picture(number))
        lines.append(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n")
        (root / "train" / wnid / "images").mkdir(parents=True, exist_ok=True)
        (root / "train" / wnid / "images" / f"{wnid}_0.JPEG").write_bytes(picture(9))
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return root
