"""Layouts of data sets, in folders and archives, and how their classes become the model's."""

import http.server
import io
import json
import pickle
import shutil
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cvt_cli.base import limits
from cvt_cli.base.errors import DataError, ImageError
from cvt_cli.datasets.labelled import LabelledImages, match_classes, open_dataset
from cvt_cli.spec.labels import Labels, imagenet
from tests_shared import test_data

WNIDS = imagenet().wnids or ()

# Of the devkit: its own number, WNID and how many children; the order is not that of the WNIDs, and
# the numbers go on above the leaves.
SYNSETS = [
    (1, "n02119789", 0),  # kit fox, 278 of the sorted WNIDs
    (2, "n02100735", 0),  # English setter, 212
    (3, "n01440764", 0),  # tench, 0
    (1001, "n01443537", 2),
]
DEVKIT_LABELS = [3, 1, 2]
"""Of ILSVRC2012_val_00000001 and so on: tench, kit fox, English setter."""


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


def meta_mat(path: Path) -> None:
    """The devkit's table, with the fields that torchvision's parse_devkit reads."""
    savemat = pytest.importorskip("scipy.io").savemat
    columns = "ILSVRC2012_ID WNID words gloss num_children children wordnet_height num_train_images"
    rows = [
        (number, wnid, "words", "gloss", children, np.array([7.0]), 0, 1300)
        for number, wnid, children in SYNSETS
    ]
    table = np.array(rows, dtype=[(name, object) for name in columns.split()])
    savemat(path, {"synsets": table[:, None]})


def devkit(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(f"{number}\n" for number in DEVKIT_LABELS)
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)
    meta_mat(folder / "meta.mat")
    return folder


def class_folders(root: Path) -> Path:
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


# --- ImageNet's flat folder


def test_names_with_indices_count_the_sorted_wnids_from_0(tmp_path: Path) -> None:
    flat_validation(tmp_path)
    lines = ["00000002.JPEG 0", "00000001.JPEG 278", "00000003.JPEG 999"]
    (tmp_path / "val.txt").write_text("\n".join(f"ILSVRC2012_val_{line}" for line in lines))

    data = open_dataset(str(tmp_path), "test", tmp_path)

    assert (data.classes, data.layout) == (WNIDS, "val.txt")
    assert data.labels.tolist() == [0, 278, 999]
    assert greys(data) == [2, 1, 3]
    assert data.names[0] == "ILSVRC2012_val_00000002.JPEG"


def test_val_txt_may_lie_beside_the_folder_and_name_it(tmp_path: Path) -> None:
    flat_validation(tmp_path / "val")
    lines = [f"val/ILSVRC2012_val_{number:08}.JPEG {number}\n" for number in (1, 2, 3)]
    (tmp_path / "val.txt").write_text("".join(lines))

    data = open_dataset(str(tmp_path), "test", tmp_path)

    assert data.labels.tolist() == greys(data) == [1, 2, 3]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    flat_validation(tmp_path / "flat" / "val")
    lines = [f"ILSVRC2012_val_{number:08}.JPEG {number}\r\n" for number in (1, 2, 3)]
    (tmp_path / "flat" / "val.txt").write_bytes("".join(lines).encode(encoding))
    table = tiny_imagenet(tmp_path / "tiny") / "val" / "val_annotations.txt"
    table.write_bytes(table.read_text().encode(encoding))
    names = tmp_path / "map.json"
    names.write_bytes(json.dumps({"a": "y", "b": "x"}).encode(encoding))

    flat = open_dataset(str(tmp_path / "flat"), "test", tmp_path)
    tiny = open_dataset(str(tmp_path / "tiny"), "test", tmp_path)

    assert (flat.labels.tolist(), greys(flat)) == ([1, 2, 3], [1, 2, 3])
    assert (tiny.labels.tolist(), greys(tiny)) == ([2, 0, 1, 0], [0, 1, 2, 3])
    assert match_classes(("a", "b"), Labels(("x", "y")), names)[0].tolist() == [1, 0]


@pytest.mark.parametrize(
    "place", ["", "val", "ILSVRC2012_devkit_t12/data", "val/ILSVRC2012_devkit_t12/data"]
)
def test_the_devkits_numbers_are_translated_by_its_own_table(tmp_path: Path, place: str) -> None:
    flat_validation(tmp_path / "val")
    devkit(tmp_path / place)

    data = open_dataset(str(tmp_path / "val"), "test", tmp_path)

    assert (data.classes, data.layout) == (WNIDS, "the devkit's ground truth")
    assert [WNIDS[label] for label in data.labels] == ["n01440764", "n02119789", "n02100735"]
    assert data.labels.tolist() == [0, 278, 212]
    assert greys(data) == [1, 2, 3]


@pytest.mark.parametrize("name", ["ILSVRC2012_validation_ground_truth.txt", "val.txt"])
def test_bare_numbers_without_the_devkits_table_are_refused(tmp_path: Path, name: str) -> None:
    flat_validation(tmp_path)
    (tmp_path / name).write_text("490\n361\n171\n")

    with pytest.raises(DataError, match="devkit's own order, which only the devkit's `meta.mat`"):
        open_dataset(str(tmp_path), "test", tmp_path)


def test_the_devkit_without_scipy_names_the_extra(tmp_path: Path, monkeypatch) -> None:
    flat_validation(tmp_path)
    devkit(tmp_path)
    monkeypatch.setitem(sys.modules, "scipy.io", None)

    with pytest.raises(DataError, match="needs SciPy") as caught:
        open_dataset(str(tmp_path), "test", tmp_path)

    assert caught.value.hint == "pip install 'cvt-cli[devkit]'"


def test_a_number_above_the_leaves_is_refused(tmp_path: Path) -> None:
    flat_validation(tmp_path)
    devkit(tmp_path)
    (tmp_path / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n1001\n2\n")

    with pytest.raises(DataError, match="line 2 of .* is `1001`, which .* gives no class"):
        open_dataset(str(tmp_path), "test", tmp_path)


def test_a_named_image_that_is_missing_stays_an_item_and_cannot_be_read(tmp_path: Path) -> None:
    flat_validation(tmp_path)
    devkit(tmp_path)
    (tmp_path / "ILSVRC2012_val_00000002.JPEG").unlink()

    data = open_dataset(str(tmp_path), "test", tmp_path)

    assert data.labels.tolist() == [0, 278, 212]
    with pytest.raises(ImageError, match="no such file"):
        data.load(1, exif=False)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("1.png 0\n2.png 1\n", "1 images in .* have no label in .*val.txt`, first `3.png`"),
        ("1.png 0\n2.png 1\n3.png 1000\n", "line 3 of .* is `3.png 1000`; expected are lines"),
        ("1.png 0\n2.png\n3.png 4\n", "line 2 of .* is `2.png`; expected are lines"),
        ("1.png 0\n2.png 1\n3.png 2\n1.png 3\n", "names `1.png` more than once"),
    ],
    ids=["unlabelled", "from 1", "no index", "twice"],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, table: str, message: str) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    (tmp_path / "val.txt").write_text(table)

    with pytest.raises(DataError, match=message):
        open_dataset(str(tmp_path), "test", tmp_path)


def test_images_with_nothing_that_tells_their_classes_are_refused(tmp_path: Path) -> None:
    flat_validation(tmp_path)

    with pytest.raises(DataError, match="3 images lie directly in .* nothing that tells"):
        open_dataset(str(tmp_path), "test", tmp_path)


def test_class_folders_stay_so_with_a_table_around_them(tmp_path: Path) -> None:
    class_folders(tmp_path)
    for place in (tmp_path, tmp_path / "val"):
        (place / "val.txt").write_text("0/1.png 5\n")

    data = open_dataset(str(tmp_path), "test", tmp_path)

    assert (len(data), data.layout) == (33, "class folders")


def test_imagenet_is_read_from_its_tars_as_they_are_published(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    root.mkdir()
    tarred(flat_validation(tmp_path / "flat"), root / "ILSVRC2012_img_val.tar")
    devkit(tmp_path / "kit" / "data")
    archive = root / "ILSVRC2012_devkit_t12.tar.gz"
    tarred(tmp_path / "kit", archive, "ILSVRC2012_devkit_t12", "w:gz")
    before = sorted(root.iterdir())

    whole = open_dataset(str(root), "test", tmp_path)
    named = open_dataset(str(root / "ILSVRC2012_img_val.tar"), "test", tmp_path)

    assert whole.layout == "the devkit's ground truth in a tar archive"
    assert whole.labels.tolist() == [0, 278, 212]
    assert greys(whole) == [1, 2, 3]
    assert whole.names[0] == "ILSVRC2012_val_00000001.JPEG"
    assert same(whole, named)
    assert sorted(root.iterdir()) == before


def test_imagenet_as_torchvision_unpacks_it_is_class_folders(tmp_path: Path) -> None:
    root = tmp_path / "imagenet"
    root.mkdir()
    (root / "meta.bin").write_bytes(b"")
    shutil.copytree(test_data("photos/val"), root / "val")

    data = open_dataset(str(root), "test", tmp_path)

    assert len(data) == len(data.classes) == 122
    index, how = match_classes(data.classes, imagenet())
    assert how == "WordNet identifiers"
    assert [WNIDS[i] for i in index[data.labels]] == [n.partition("/")[0] for n in data.names]


# --- Tiny ImageNet


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


def test_tiny_imagenets_annotations_tell_the_classes(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)

    val = open_dataset(str(tmp_path), "test", tmp_path)
    train = open_dataset(str(tmp_path), "train", tmp_path)

    assert val.classes == train.classes == tuple(sorted(val.classes))
    assert val.labels.tolist() == [2, 0, 1, 0]
    assert greys(val) == [0, 1, 2, 3]
    assert val.layout == "Tiny ImageNet's annotations"


def test_a_picture_that_tiny_imagenets_annotations_lack_is_named(tmp_path: Path) -> None:
    root = tiny_imagenet(tmp_path)
    (root / "val" / "images" / "val_77.JPEG").write_bytes(picture(77))

    with pytest.raises(DataError, match="first `images/val_77.JPEG`"):
        open_dataset(str(root), "test", tmp_path)


# --- archives


@pytest.mark.parametrize("top", [".", "some/set"])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_of_class_folders_equals_the_folder(tmp_path: Path, kind: str, top: str) -> None:
    root = class_folders(tmp_path / "set")
    archive = (zipped if kind == "zip" else tarred)(root, tmp_path / f"a.{kind}", top)

    for split in ("train", "test"):
        folder = open_dataset(str(root), split, tmp_path)
        data = open_dataset(str(archive), split, tmp_path)
        assert same(data, folder)
        assert (folder.layout, data.layout) == (
            "class folders",
            f"class folders in a {kind} archive",
        )

    assert folder.classes[:3] == ("0", "1", "10")
    assert folder.names[:3] == ("0/1.png", "0/2.png", "0/10.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([archive.name, "set"])


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("layout", ["val.txt", "Tiny ImageNet's annotations"])
def test_other_layouts_are_read_from_archives_too(tmp_path: Path, kind: str, layout: str) -> None:
    root = tmp_path / "set"
    if layout == "val.txt":
        flat_validation(root)
        lines = [f"ILSVRC2012_val_{number:08}.JPEG {number}\n" for number in (1, 2, 3)]
        (root / "val.txt").write_text("".join(lines))
    else:
        tiny_imagenet(root)
    archive = (zipped if kind == "zip" else tarred)(root, tmp_path / f"a.{kind}", "top")

    data = open_dataset(str(archive), "test", tmp_path)

    assert data.layout == f"{layout} in a {kind} archive"
    assert same(data, open_dataset(str(root), "test", tmp_path))


def test_the_sample_of_tiny_imagenet_is_read_from_its_archive(tmp_path: Path) -> None:
    packed = test_data("sets/tinyimagenet20.tar.gz")
    plain = tmp_path / "tinyimagenet20.tar"
    with tarfile.open(packed) as source, tarfile.open(plain, "w") as target:
        for member in source:
            if "/val/" in member.name or member.isdir():
                target.addfile(member, source.extractfile(member) if member.isreg() else None)

    data = open_dataset(str(plain), "test", tmp_path)

    assert (len(data), len(data.classes)) == (1000, 20)
    assert data.root == plain / "tinyimagenet20" / "val"
    assert data.load(999, exif=False).size == (64, 64)
    with pytest.raises(DataError, match="cannot be read in place: it is compressed") as caught:
        open_dataset(str(packed), "test", tmp_path)
    assert f"gunzip -k {packed}" in str(caught.value.hint)
    assert f"tar -xf {packed}" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_many_threads_and_another_process_read_the_right_members(tmp_path: Path, kind) -> None:
    root = class_folders(tmp_path / "set")
    archive = (zipped if kind == "zip" else tarred)(root, tmp_path / f"a.{kind}")
    data = open_dataset(str(archive), "test", tmp_path)
    expected = [20 * int(data.classes[i]) + n for i in range(11) for n in (1, 2, 10)]

    with ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda i: data.load(i, False).getpixel((0, 0))[0], [*range(33)] * 20)

    assert list(read) == expected * 20
    sent = pickle.loads(pickle.dumps(data))  # as to a worker process
    assert greys(sent.subset(np.array([32, 0]))) == [expected[32], expected[0]]


def test_an_archive_gives_nothing_but_its_regular_files(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "secret.png").write_bytes(picture(99))
    archive = tmp_path / "a.tar"
    with tarfile.open(archive, "w") as tar:

        def add(name: str, content: bytes = b"", **fields: object) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            for key, value in fields.items():
                setattr(member, key, value)
            tar.addfile(member, io.BytesIO(content))

        add("../../a/1.png", picture(1))
        add("/a/2.png", b"")
        add("a/3.png", type=tarfile.SYMTYPE, linkname=str(tmp_path / "secret.png"))
        add("a/4.png", type=tarfile.FIFOTYPE)
        add("a/5.png", picture(5) + bytes(2000))
        add("a/.hidden.png", picture(6))
        add("__MACOSX/a/1.png", picture(7))
    monkeypatch.setattr(limits, "LARGEST_FILE", 1000)

    data = open_dataset(str(archive), "test", tmp_path)

    assert data.names == ("a/1.png", "a/2.png", "a/3.png", "a/4.png", "a/5.png")
    assert data.load(0, exif=False).getpixel((0, 0)) == (1, 1, 1)
    for index, reason in [(1, "empty"), (2, "a link"), (3, "or device"), (4, "too large")]:
        with pytest.raises(ImageError, match=reason):
            data.load(index, exif=False)


def test_a_damaged_archive_is_refused_and_a_damaged_member_is_an_image_error(tmp_path) -> None:
    root = class_folders(tmp_path / "set") / "val"
    whole = zipped(root, tmp_path / "whole.zip").read_bytes()
    tar = tarred(root, tmp_path / "whole.tar").read_bytes()
    # The checksum of a member in the middle, where tarfile ends its listing and says nothing.
    header = tar.index(b"./1/1.png") + 148
    damaged = {
        "cut.zip": whole[: len(whole) // 2],
        "empty.zip": b"",
        "cut.tar": tar[: len(tar) // 2 + 100],
        "middle.tar": tar[:header] + b"xxxxxx" + tar[header + 6 :],
        "text.tar": b"no archive at all\n" * 100,
    }
    for name, content in damaged.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}` is damaged"):
            open_dataset(str(tmp_path / name), "test", tmp_path)

    start = whole.index(b"10/10.png") + 20  # in the first member's bytes
    (tmp_path / "member.zip").write_bytes(whole[:start] + bytes(30) + whole[start + 30 :])
    data = open_dataset(str(tmp_path / "member.zip"), "test", tmp_path)
    failures = 0
    for index in range(len(data)):
        try:
            data.load(index, exif=False)
        except ImageError as error:
            failures += 1
            assert "damaged in the archive" in str(error)
    assert failures == 1


# --- sets that are known by name


def test_pets_are_read_as_torchvision_lays_them_out(tmp_path: Path) -> None:
    root = tmp_path / "oxford-iiit-pet"
    (root / "annotations").mkdir(parents=True)
    (root / "images").mkdir()
    for file, number in (("trainval", 1), ("test", 2)):
        lines = [f"american_bulldog_{number} 2 2 1\n", f"Abyssinian_{number} 1 1 1\n"]
        (root / "annotations" / f"{file}.txt").write_text("".join(lines))
        for label, breed in enumerate(("Abyssinian", "american_bulldog")):
            (root / "images" / f"{breed}_{number}.jpg").write_bytes(picture(10 * number + label))

    train = open_dataset("oxford-iiit-pet", "train", tmp_path)
    test = open_dataset("oxford-iiit-pet", "test", tmp_path)

    assert train.classes == test.classes == ("Abyssinian", "American Bulldog")
    assert (test.labels.tolist(), greys(test), greys(train)) == ([1, 0], [21, 20], [11, 10])


def test_flowers_are_read_as_torchvision_lays_them_out(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    root = tmp_path / "flowers-102"
    (root / "jpg").mkdir(parents=True)
    for number in range(1, 6):
        (root / "jpg" / f"image_{number:05}.jpg").write_bytes(picture(number))
    savemat(root / "imagelabels.mat", {"labels": np.array([[77, 102, 1, 5, 5]], np.uint8)})
    parts = {"trnid": [[4]], "valid": [[2]], "tstid": [[5, 1, 3]]}
    savemat(root / "setid.mat", {name: np.array(ids, np.uint16) for name, ids in parts.items()})

    train = open_dataset("flowers102", "train", tmp_path)
    test = open_dataset("flowers102", "test", tmp_path)

    assert len(test.classes) == 102
    assert (test.labels.tolist(), greys(test)) == ([4, 76, 0], [5, 1, 3])
    assert (train.labels.tolist(), greys(train)) == ([4, 101], [4, 2])
    (root / "setid.mat").unlink()
    with pytest.raises(DataError, match="not the whole of `flowers102`"):
        open_dataset("flowers102", "test", tmp_path)


def test_imagenette_is_class_folders_of_wnids(tmp_path: Path) -> None:
    for part, number in (("train", 1), ("val", 2)):
        (tmp_path / "imagenette2" / part / "n03888257").mkdir(parents=True)
        file = tmp_path / "imagenette2" / part / "n03888257" / f"{number}.JPEG"
        file.write_bytes(picture(number))

    data = open_dataset("imagenette", "test", tmp_path)

    assert (data.classes, greys(data)) == (("n03888257",), [2])
    assert match_classes(data.classes, imagenet())[0].tolist() == [701]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Where torchvision thinks that CIFAR-10 is: another file; gives what was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "9")
            self.end_headers()
            self.wfile.write(b"not CIFAR")

        def log_message(self, *arguments: object) -> None:
            pass

    import torchvision

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        address = f"http://127.0.0.1:{server.server_port}/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", address)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield asked
        server.shutdown()
        thread.join()


def test_a_set_with_another_hash_is_refused_and_leaves_nothing(tmp_path, server, capfd) -> None:
    said: list[str] = []

    with pytest.raises(DataError, match="what came is not the published file") as caught:
        open_dataset("cifar10", "test", tmp_path / "data", offline=False, say=said.append)

    assert said == [
        f"fetching cifar10, about 170 MB, from www.cs.toronto.edu into `{tmp_path / 'data'}`"
    ]
    assert server and "by hand" in str(caught.value.hint)
    assert [path.name for path in (tmp_path / "data").iterdir()] in ([], [".cifar10.lock"])
    assert capfd.readouterr().out == ""


def test_a_server_that_is_not_there_is_explained(tmp_path: Path, monkeypatch) -> None:
    import torchvision

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:1/c.tar.gz")

    with pytest.raises(DataError, match="`cifar10` cannot be fetched from .*refused"):
        open_dataset("cifar10", "test", tmp_path, offline=False)


def test_offline_nothing_is_fetched(tmp_path: Path, server: list[str]) -> None:
    with pytest.raises(DataError, match="`cifar10` is not in") as caught:
        open_dataset("cifar10", "test", tmp_path, offline=True)

    assert not server
    assert "torchvision.datasets.CIFAR10(" in str(caught.value.hint)


def test_a_set_that_is_fetched_lands_in_its_place(tmp_path: Path, monkeypatch, capsys) -> None:
    import torchvision

    def fetch(root: str, download: bool) -> None:
        (Path(root) / "imagenette2" / "val" / "n03888257").mkdir(parents=True)
        file = Path(root) / "imagenette2" / "val" / "n03888257" / "1.JPEG"
        file.write_bytes(picture(1))
        print("torchvision talks")

    monkeypatch.setattr(torchvision.datasets, "Imagenette", fetch)

    data = open_dataset("imagenette", "test", tmp_path, offline=False)

    assert data.root == tmp_path / "imagenette2" / "val"
    assert greys(data) == [1]
    assert capsys.readouterr() == ("", "torchvision talks\n")  # stdout is for results


# --- the data's classes as the model's


def test_a_models_own_class_names_win_over_numbers_and_order(tmp_path: Path) -> None:
    folders = open_dataset(str(class_folders(tmp_path)), "test", tmp_path)
    own = Labels(tuple(folders.classes))  # as `cvt finetune` keeps them: 0, 1, 10, 2, …
    other = Labels(tuple(str(number) for number in range(11)))

    index, how = match_classes(folders.classes, own)
    by_name, _ = match_classes(folders.classes, other)

    assert how == "the model's class names"
    assert [own.names[i] for i in index] == list(folders.classes)
    assert index.tolist() == list(range(11))  # not the folders' numbers
    assert by_name.tolist() == [0, 1, 10, *range(2, 10)]  # not their positions


def test_numbers_and_wnids_mean_nothing_to_a_model_of_other_classes() -> None:
    for classes in (("0", "1"), ("n01440764", "n01443537")):
        with pytest.raises(DataError, match="2 of 2 classes") as caught:
            match_classes(classes, Labels(("cat", "dog")))
        assert "--label-map FILE" in str(caught.value.hint)


def test_numbered_folders_are_numbers_for_imagenet_however_they_sort() -> None:
    index, how = match_classes(("0", "1", "10", "100", "2"), imagenet())

    assert (index.tolist(), how) == ([0, 1, 10, 100, 2], "class numbers")


@pytest.mark.parametrize(
    "name", ["imagenette_wnids", "imagewoof_wnids", "imagenet_a_synsets", "imagenet_r_synsets"]
)
def test_a_subset_of_imagenet_is_matched_by_wnid_and_not_by_position(name: str) -> None:
    lines = test_data(f"labels/{name}.txt").read_text().splitlines()
    wnids = tuple(sorted(line.split()[0] for line in lines))

    index, how = match_classes(wnids, imagenet())

    assert how == "WordNet identifiers"
    assert tuple(WNIDS[i] for i in index) == wnids


def test_a_label_map_takes_names_wnids_and_indices_and_entries_for_other_data(
    tmp_path: Path,
) -> None:
    path = tmp_path / "map.json"
    table = {"fish": "tench", "bird": 15, "cat": "n02123045", "0": 999, "not here": "no class"}
    path.write_text(json.dumps(table))

    index, how = match_classes(("0", "bird", "cat", "fish"), imagenet(), path)

    assert index.tolist() == [999, 15, 281, 0]
    assert how == f"the label map `{path}`"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": "x"}', "lacks classes of the data: b$"),
        ('{"a": "x", "b": "z"}', '"z" of `b` in .* is no class of the model; accepted'),
        ('{"a": "x", "b": 4}', "4 of `b` in .* is no class of the model"),
        ('{"a": "x", "b": true}', "true of `b` in .* is no class of the model"),
        ('{"a": "x", "b": "n01440764"}', '"n01440764" of `b`'),
        ('{"a": "x", "b": "twin"}', "`twin` of `b` in .* names more than one class"),
        ('["x", "y"]', "is not a JSON object"),
        ("{", "is not JSON"),
        (None, "cannot read the label map .*: No such file"),
    ],
)
def test_a_label_map_that_does_not_fit_is_refused(tmp_path: Path, text, message: str) -> None:
    path = tmp_path / "map.json"
    if text is not None:
        path.write_text(text)

    with pytest.raises(DataError, match=message):
        match_classes(("a", "b"), Labels(("x", "y", "twin", "twin")), path)


MODEL = ("--model", "cvt-nano-cifar10", "--engine", "torch")


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """A folder of one class, one of whose images lies behind a link to a folder."""
    for name in ("set/cat/1.png", "elsewhere/2.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(1))
    (tmp_path / "set" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    return tmp_path / "set"


def test_a_link_to_a_folder_that_is_not_followed_is_said(cvt, cats: Path) -> None:
    said = f"passed over: links to folders (1, such as `{cats}/cat/more`)"

    assert said in cvt("evaluate", "--data", cats, *MODEL).stderr
    assert said in cvt("predict", cats, *MODEL).stderr


def test_what_a_table_says_twice_and_differently_is_refused(cvt, cats: Path) -> None:
    table = cats.parent / "table"
    for option, content, said in (
        ("--label-map", '{"cat": 3, "cat": 5}', "it has 'cat' twice"),
        ("--groups", "path,group\ncat/1.png,a\ncat/1.png,b\n", "two groups for `cat/1.png`"),
        ("--groups", "path,group\ncat/1.png,\n", "names no group for `cat/1.png`"),
    ):
        table.write_text(content)

        result = cvt("evaluate", "--data", cats, option, table, *MODEL)

        assert result.exit_code == 1 and said in result.stderr, result


def test_cifar_files_whose_labels_do_not_fit_are_refused(cvt, tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    names = [f"c{number}" for number in range(10)]
    bomb = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(\x8a\x08"
    bomb += (10**15).to_bytes(8, "little") + b"tC\x01btR."
    for labels, classes, said in (
        ([1, 2], names, "2 labels of 3 images"),
        ([1, 2, 3, 4], names, "4 labels of 3 images"),
        ([1, 2, -1], names, "labels that are not from 0 to 9"),
        ([1, 2, 10], names, "labels that are not from 0 to 9"),
        ([1, 2, 3], [1] * 10, "no texts"),
        (None, names, "Unable to allocate"),
    ):
        pixels = np.zeros((3, 3072), np.uint8)
        content = pickle.dumps({"labels": labels, "data": pixels}) if labels else bomb
        (folder / "test_batch").write_bytes(content)
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))

        result = cvt("evaluate", "--data", tmp_path, *MODEL)

        assert result.exit_code == 1 and said in result.stderr, (labels, result)


def test_a_devkit_that_unpacks_without_end_is_not_unpacked(cvt, tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_val_00000001.JPEG").write_bytes(picture(1))
    with tarfile.open(tmp_path / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("data/ILSVRC2012_validation_ground_truth.txt")
        member.size = 17 * 1024**2
        archive.addfile(member, io.BytesIO(b"\n" * member.size))

    result = cvt("evaluate", "--data", tmp_path, *MODEL)

    assert result.exit_code == 1 and "has more than 16,777,216 bytes" in result.stderr
