"""CIFAR's own files: read as torchvision lays them out, and nothing else of them run."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from cvt_cli.base.errors import DataError
from cvt_cli.datasets.layouts import open_dataset

MODEL = ("--model", "cvt-nano-cifar10", "--engine", "torch")


def write_cifar10(root: Path, protocol: int = 2) -> Path:
    """Files as torchvision finds them after a download, with few images."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [f"class{label}" for label in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol))
    for file in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        data = np.arange(4 * 3072, dtype=np.uint32).astype(np.uint8).reshape(4, 3072)
        batch = {"data": data, "labels": [3, 1, 4, 1]}
        (folder / file).write_bytes(pickle.dumps(batch, protocol))
    return folder


def write_cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    names = [f"class{label}" for label in range(100)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, 2))
    for file, count in (("train", 6), ("test", 2)):
        data = np.zeros((count, 3072), dtype=np.uint8)
        batch = {"data": data, "fine_labels": [99] * count}
        (folder / file).write_bytes(pickle.dumps(batch, 2))


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar10_is_read_as_torchvision_lays_it_out(tmp_path: Path, protocol: int) -> None:
    write_cifar10(tmp_path, protocol)

    train = open_dataset("cifar10", "train", tmp_path)
    test = open_dataset(str(tmp_path), "test", tmp_path)

    assert len(train) == 20 and len(test) == 4
    assert test.classes[3] == "class3" and test.labels.tolist() == [3, 1, 4, 1]
    # The first pixel is (0, 1024, 2048) modulo 256: planes, not interleaved.
    array = np.asarray(test.load(0, exif=False))
    assert array.shape == (32, 32, 3)
    assert array[0, 1].tolist() == [1, 1, 1] and array[1, 0].tolist() == [32, 32, 32]


def test_cifar100_is_read_as_torchvision_lays_it_out(tmp_path: Path) -> None:
    write_cifar100(tmp_path)

    assert len(open_dataset("cifar100", "train", tmp_path)) == 6
    assert open_dataset("cifar100", "test", tmp_path).labels.tolist() == [99, 99]


def test_a_pickle_that_asks_for_more_than_arrays_is_not_run(tmp_path: Path, monkeypatch) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (Path("executed"),))

    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps({"data": Evil()}))
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match="nothing in it was run: asks for"):
        open_dataset("cifar10", "test", tmp_path)

    assert not (tmp_path / "executed").exists()


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
        ([1, 2, 3], [1] * 10, "not text"),
        (None, names, "Unable to allocate"),
    ):
        pixels = np.zeros((3, 3072), np.uint8)
        content = pickle.dumps({"labels": labels, "data": pixels}) if labels else bomb
        (folder / "test_batch").write_bytes(content)
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))

        result = cvt("evaluate", "--data", tmp_path, *MODEL)

        assert result.exit_code == 1 and said in result.stderr, (labels, result)


def test_a_second_run_on_them_says_what_the_first_was_trained_on(cvt, tmp_path: Path) -> None:
    data = write_cifar10(tmp_path)
    for number in range(1, 6):
        file = data / f"data_batch_{number}"
        batch = pickle.loads(file.read_bytes())
        batch["data"] = np.random.default_rng(number).integers(0, 256, (4, 3072), np.uint8)
        batch["labels"] = [2 * number - 2, 2 * number - 1] * 2
        file.write_bytes(pickle.dumps(batch))
    run, probe = tmp_path / "run", ("finetune", data, "--recipe", "linear-probe")

    half = ("--val-fraction", 0.5, "--seed")
    first = cvt(*probe, "--model", "cvt-nano-cifar10", *half, 0, "-o", run)
    second = cvt(*probe, "--model", run, *half, 1, "--dry-run")

    assert first.exit_code == 0 and "warning" not in first.stderr, first.stderr
    assert "images held out, such as `data_batch_" in second.stderr
    assert f"`{run / 'best'}` was trained on" in second.stderr
