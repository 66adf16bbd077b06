"""Sets that are known by name: found, fetched, and read as torchvision lays them out."""

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cvt_cli.base.errors import DataError
from cvt_cli.datasets.classes import match_classes
from cvt_cli.datasets.layouts import open_dataset
from cvt_cli.spec.labels import imagenet
from small_sets import (
    class_folders,
    greys,
    picture,
)


def test_a_known_name_wins_over_a_folder_unless_written_as_a_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    class_folders(tmp_path / "cifar10", {"mine": 2})
    class_folders(tmp_path / "kept" / "cifar10" / "test", {"cat": 1})

    said: list[str] = []
    known = open_dataset("cifar10", "test", tmp_path / "kept", say=said.append)
    assert known.classes == ("cat",)
    assert "not used: the folder `cifar10` here" in said[0] and "write ./cifar10" in said[0]
    assert open_dataset("./cifar10", "test", tmp_path / "kept").classes == ("mine",)


def test_a_known_set_that_is_not_there_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="looked for the folders `cifar10` and `cifar-10-batches"):
        open_dataset("cifar10", "test", tmp_path)
    with pytest.raises(DataError, match="does not exist; accepted are a folder"):
        open_dataset(str(tmp_path / "none"), "test", tmp_path)


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
    with pytest.raises(DataError, match="does not hold all of `flowers102`"):
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

    with pytest.raises(DataError, match="the download is not the published file") as caught:
        open_dataset("cifar10", "test", tmp_path / "data", offline=False, say=said.append)

    assert said == [
        f"downloading cifar10, about 170 MB, from www.cs.toronto.edu into `{tmp_path / 'data'}`"
    ]
    assert server and "yourself" in str(caught.value.hint)
    assert [path.name for path in (tmp_path / "data").iterdir()] in ([], [".cifar10.lock"])
    assert capfd.readouterr().out == ""


def test_a_server_that_is_not_there_is_explained(tmp_path: Path, monkeypatch) -> None:
    import torchvision

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:1/c.tar.gz")

    with pytest.raises(DataError, match="`cifar10` cannot be downloaded from .*refused"):
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
