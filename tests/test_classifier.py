"""The Python interface on what programs hold, in notebooks, in tables and in forked processes."""

import io
import json
import os
import pickle
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageSequence

import cvt_cli
from cvt_cli import Classifier
from cvt_cli.base import package
from cvt_cli.base.errors import CheckpointError, ImageError, UsageError
from cvt_cli.prediction.answers import Prediction
from cvt_cli.spec.formats import EngineChoice
from tests_shared import CHELSEA, TESTS, python

BOATS = TESTS / "photos" / "nagasaki-boats.jpg"


@pytest.fixture(scope="module")
def classify() -> Classifier:
    return Classifier("cvt-nano-cifar10", top_k=2, engine="torch")


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    with Image.open(CHELSEA) as image:
        return np.asarray(image.convert("RGB"))


def test_bytes_open_files_and_numbers_of_any_type_are_read(classify, pixels) -> None:
    content = CHELSEA.read_bytes()
    alpha = np.full((*pixels.shape[:2], 1), 9, np.uint8)
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    with CHELSEA.open("rb") as file:
        images = [
            CHELSEA, np.str_(CHELSEA), content, bytearray(content), memoryview(content), file,
            io.BytesIO(content), pixels, pixels.astype(int), pixels / 255,
            (pixels / 255).astype(np.float32), np.concatenate([pixels, alpha], axis=2),
            tensor / 255,
        ]  # fmt: skip

        answers = [classify(image) for image in images]

    assert all(answer == answers[0] for answer in answers)
    assert len(classify([content, io.BytesIO(content)])) == 2
    grey = pixels[:, :, 0]
    assert classify(grey) == classify(grey[:, :, None]) == classify(grey / 255)


@pytest.mark.parametrize(
    ("kind", "engine"),
    [("bfloat16", "onnxruntime"), ("float64", "torch"), ("a device", "onnxruntime")],
)
def test_answers_and_the_graph_that_is_kept_are_the_same_whatever_type_and_device_are_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, engine: EngineChoice
) -> None:
    plain = Classifier("cvt-nano-cifar10", engine=engine)(CHELSEA)
    explained = Classifier("cvt-nano-cifar10").explain(CHELSEA, method="relevance", score=True)
    monkeypatch.setenv("CVT_CACHE", str(tmp_path))  # no graph is kept there yet
    types = {"bfloat16": torch.bfloat16, "float64": torch.float64}
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(types.get(kind, before))
        with torch.device("meta" if kind == "a device" else "cpu"):
            within = Classifier("cvt-nano-cifar10", engine=engine)
            found = within(CHELSEA)
            maps = within.explain(CHELSEA, method="relevance", score=True)
    finally:
        torch.set_default_dtype(before)

    assert found == plain
    assert np.array_equal(maps.map, explained.map, equal_nan=True)
    assert maps.explained[0].scores == explained.explained[0].scores
    assert Classifier("cvt-nano-cifar10", engine=engine)(CHELSEA) == plain


def test_what_is_no_image_is_named_with_what_is_accepted(classify, pixels) -> None:
    for image, said in (
        (7, "int is not an image; accepted are arrays"),
        (np.uint8(7), "uint8 of uint8 with shape"),
        (pixels * 1.0, "values of float64 from 0 to "),
        (pixels / 255 - 0.5, "values of float64 from -0.5 to "),
        (np.full((4, 4), np.nan), "values of float64 from nan to nan"),
        (pixels.astype(np.uint16) * 257, "values of uint16 from "),
        (pixels.transpose(2, 0, 1), r"ndarray of uint8 with shape \(3, "),
        (None, "NoneType is not an image"),
        (b"", "not an image"),
        ("", "the path is empty"),
        (io.StringIO("text"), "text"),
    ):
        with pytest.raises(ImageError, match=said):
            classify(image)
    closed = CHELSEA.open("rb")
    closed.close()
    (answer,) = classify.answers(closed)
    assert answer.path == str(CHELSEA) and "closed file" in answer.error


def test_it_shows_what_it_is_and_where_it_is_imported_from(classify) -> None:
    shown = repr(classify)

    assert shown == "<Classifier cvt-nano-cifar10: 10 classes, 32x32; cpu, torch, fp32>"
    assert classify.classes[:2] == ("airplane", "automobile")
    copy = pickle.loads(pickle.dumps(classify))
    assert repr(copy) == "<Classifier cvt-nano-cifar10, to be loaded where it is first used>"
    assert {"Classifier", "CvtError", "Int8"} <= set(dir(cvt_cli))
    with pytest.raises(cvt_cli.CvtError, match="`int4`; accepted are `auto`, .*, `int8`"):
        Classifier("cvt-nano-cifar10", precision="int4").classes  # noqa: B018


def test_what_is_pickled_answers_by_the_same_files_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(TESTS / "kept" / "model", tmp_path / "here" / "mine")
    shutil.copytree(TESTS / "kept" / "run" / "best", tmp_path / "there" / "mine")
    monkeypatch.chdir(tmp_path / "here")
    original = Classifier("mine", engine="torch")
    monkeypatch.chdir(tmp_path / "there")

    copy = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(original))))

    assert copy(CHELSEA) == original(CHELSEA) != Classifier("mine", engine="torch")(CHELSEA)
    assert copy.model.model == "mine" and "<Classifier mine: " in repr(copy)
    assert pickle.loads(pickle.dumps(copy)).classes == original.classes


@pytest.mark.parametrize("changed", ["weights", "classes", "nothing is there"])
def test_what_is_no_longer_what_was_pickled_is_refused(tmp_path: Path, changed: str) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(TESTS / "kept" / "model", folder)
    original = Classifier(folder, engine="torch")
    before, content = original.model.conditions(), pickle.dumps(original)
    if changed == "weights":
        shutil.copy(TESTS / "kept" / "run" / "best" / "model.safetensors", folder)
    elif changed == "classes":
        config = folder / "config.json"
        config.write_text(config.read_text().replace("green", "grass"))
    else:
        shutil.rmtree(folder)

    with pytest.raises(CheckpointError) as raised:
        pickle.loads(content)(CHELSEA)

    if changed == "nothing is there":
        assert f"there is no model `{folder}`" in str(raised.value)
        return
    now = Classifier(folder, engine="torch").model.conditions()
    (key,) = [k for k in ("weights_sha256", "classes_sha256") if before[k] != now[k]]
    assert key.startswith(changed)
    assert f"`{folder}` is not what it was when this Classifier was pickled, with {key}" in str(
        raised.value
    )
    assert all(one[key][:40] in str(raised.value) for one in (before, now))


def test_the_next_step_is_shown_below_the_error() -> None:
    with pytest.raises(CheckpointError) as raised:
        Classifier("cvt-14")

    assert raised.value.__notes__ == [f"hint: {raised.value.hint}"]
    assert pickle.loads(pickle.dumps(raised.value)).__notes__ == raised.value.__notes__


def test_of_no_images_there_are_no_answers_and_no_features(classify) -> None:
    assert classify([]) == []
    assert list(classify.answers([])) == []
    assert classify.features([]).shape == (0, 160)
    assert classify.features([]).dtype == np.float32


def test_a_stream_of_answers_goes_past_whatever_cannot_be_read(classify, tmp_path: Path) -> None:
    given = [CHELSEA, "nowhere.jpg", "nosuch://x/y.jpg", b"text", None, "", "a\0b", CHELSEA]

    answers = list(classify.answers(iter(given)))

    assert [answer.error is None for answer in answers] == [True, *[False] * 6, True]
    assert pickle.loads(pickle.dumps(answers)) == answers  # as Spark collects them
    assert [answer.path for answer in classify.answers(str(CHELSEA))] == [str(CHELSEA)]


def test_an_open_file_that_is_damaged_in_an_archive_ends_no_stream(classify, tmp_path) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.write(CHELSEA, "cat.png")
        archive.write(CHELSEA, "damaged.png")
    changed = bytearray(content.getvalue())
    changed[-CHELSEA.stat().st_size // 2] ^= 1

    with zipfile.ZipFile(io.BytesIO(changed)) as archive:
        sound, damaged = classify.answers(archive.open(name) for name in archive.namelist())

    assert sound.error is None and "Bad CRC-32" in damaged.error
    with os.scandir(os.fsencode(CHELSEA.parent)) as entries:  # which give their paths so
        entry = next(entries)
    assert [answer.path for answer in classify.answers([entry])] == [os.fsdecode(entry)]


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_a_picture_that_pillow_warns_of_ends_no_stream_where_warnings_are_errors(
    classify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)

    large, other = classify.answers([CHELSEA, np.zeros((8, 8, 3), np.uint8)])

    assert "exceeds limit of 100000 pixels" in large.error
    assert other.error is None


def test_batches_of_ray_data_are_given_back_with_columns(classify, pixels) -> None:
    # As `map_batches` makes them by default: a dict of arrays, which cannot be written to.
    same_size = np.stack([pixels, pixels[::-1]])
    same_size.setflags(write=False)
    several_sizes = np.empty(2, dtype=object)
    several_sizes[:] = [pixels, pixels[:50]]
    contents = np.array([CHELSEA.read_bytes(), b"broken"], dtype=object)
    paths = np.array([str(CHELSEA), "nowhere.jpg"])

    for column, values in (
        ("image", same_size), ("image", several_sizes), ("bytes", contents), ("path", paths),
        ("item", paths), ("path", paths.astype(object)),
    ):  # fmt: skip
        batch = {"id": np.arange(2), column: values}
        out = classify(batch)

        assert list(out)[:3] == ["id", column, "error"] and out[column] is values
        assert all(isinstance(value, np.ndarray) and len(value) == 2 for value in out.values())
        assert out["label_1"][0] == "cat" and out["error"][0] is None
        unreadable = column not in ("image",)
        assert (out["error"][1] is not None) == np.isnan(out["score_2"][1]) == unreadable
        assert out["score_1"].dtype == np.float64
        assert out["index_1"].dtype == (object if unreadable else np.int64)
    for none in (paths[:0], np.array([])):  # of an empty list NumPy makes floats
        empty = classify({"path": none})
        assert set(empty) == set(out) - {"id"} and all(len(value) == 0 for value in empty.values())


def test_images_as_hugging_faces_data_sets_have_them_are_read(classify, tmp_path: Path) -> None:
    content = CHELSEA.read_bytes()
    column = [
        {"bytes": content, "path": "c.png"}, {"bytes": None, "path": str(CHELSEA)},
        {"bytes": content, "path": None}, {"bytes": b"broken", "path": "b.png"},
        {"bytes": None, "path": None},
    ]  # fmt: skip
    pd.DataFrame({"image": column}).to_parquet(tmp_path / "t.parquet")

    read = classify(pd.read_parquet(tmp_path / "t.parquet"))
    listed = list(classify.answers(column))

    assert read["label_1"][:3].tolist() == ["cat"] * 3 and read["label_1"][3:].isna().all()
    assert read["error"][3].startswith("not an image")
    assert [one.path for one in listed[:4]] == ["c.png", str(CHELSEA), "image 2", "b.png"]
    assert "NoneType is not an image" in listed[4].error


def test_rows_and_frames_are_given_back_with_columns(classify, pixels) -> None:
    assert classify({"path": str(CHELSEA), "id": 3})["label_1"] == "cat"
    assert classify({"image": pixels})["label_1"] == "cat"
    assert classify({"bytes": b"broken"})["error"].startswith("not an image")

    frame = pd.DataFrame({"path": [str(CHELSEA), "nowhere.jpg"]}, index=[4, 5])
    out = classify(frame)

    assert out.nlargest(1, "score_1")["label_1"].tolist() == ["cat"]
    assert np.isnan(out["score_1"][5]) and out["index_1"].isna()[5] and out["index_1"][4] == 3
    assert dict(out.dtypes)["index_1"] == "Int64"
    assert {"score_1", "index_1"} <= set(out.select_dtypes("number"))
    assert list(out.index) == [4, 5] and out["label_1"][4] == "cat" and out["label_1"].isna()[5]
    assert classify(frame["path"][:1])[0][0].label == "cat"
    with pytest.raises(UsageError, match="this table has several columns called `path`"):
        classify(pd.concat([frame, frame], axis="columns"))
    for table in (out, {"path": str(CHELSEA), "label_1": "dog"}):
        with pytest.raises(UsageError, match="has .*`label_1`.* of its own, which the answers"):
            classify(table)
    with pytest.raises(UsageError, match="needs a column `image` or `bytes`.*this has `name`"):
        classify({"name": "x"})


def test_an_open_file_is_called_by_its_path_or_where_it_has_none_by_its_place(
    classify, tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with (
        tempfile.SpooledTemporaryFile() as upload,  # as web frameworks hand over what is sent
        tempfile.TemporaryFile() as unnamed,
        (tmp_path / "broken.jpg").open("rb") as named,
        open(os.fsencode(tmp_path / "broken.jpg"), "rb") as in_bytes,  # noqa: PTH123
    ):
        for file in (upload, unnamed):
            file.write(CHELSEA.read_bytes())
            file.seek(0)
        answers = list(classify.answers([upload, unnamed, named, in_bytes]))

    path = str(tmp_path / "broken.jpg")
    assert [answer.path for answer in answers] == ["image 0", "image 1", path, path]
    assert [answer.error is None for answer in answers] == [True, True, False, False]


FORKED = """
import multiprocessing, sys
from cvt_cli import Classifier

classify = Classifier("cvt-nano-cifar10", engine=sys.argv[1])
photo = sys.argv[2]
classify(photo)

def work(queue):
    queue.put(classify(photo)[0].label)

fork = multiprocessing.get_context("fork")
with fork.Pool(1) as pool:
    pickled = pool.map_async(classify, [photo] * 2).get(timeout=60)
queue = fork.Queue()
process = fork.Process(target=work, args=(queue,))
process.start()
print(pickled[1][0].label, queue.get(timeout=60))
process.join()
"""


@pytest.mark.parametrize(
    "engine",
    ["torch"] + [pytest.param(e, marks=pytest.mark.slow) for e in ("onnxruntime", "openvino")],
)
def test_it_answers_in_a_process_that_was_forked_after_it_was_used(engine: str) -> None:
    done = python(FORKED, engine, CHELSEA)

    assert done.stdout == "cat cat\n", done.stderr


FORKED_LATER = """
import gc, multiprocessing, sys
from cvt_cli import Classifier
from cvt_cli.base.errors import CvtError

photo, engine = sys.argv[1:]
Classifier("cvt-nano-cifar10", engine="openvino")(photo)
gc.collect()

def work(engine):
    made = []  # one after the other, as each ends
    for _ in range(2):
        try:
            made.append(Classifier("cvt-nano-cifar10", engine=engine)(photo)[0].label)
        except CvtError as error:
            made.append(f"{error} {error.hint}")
    return made

with multiprocessing.get_context("fork").Pool(1) as pool:
    print(pool.map_async(work, [engine]).get(timeout=60))
"""


@pytest.mark.parametrize("engine", ["auto", "torch", "onnxruntime"])
def test_a_process_forked_after_openvino_was_used_and_let_go_answers(engine: str) -> None:
    done = python(FORKED_LATER, CHELSEA, engine)

    assert done.stdout == "[['cat', 'cat']]\n", done.stderr


def test_openvino_in_such_a_process_says_why_it_cannot_run() -> None:
    done = python(FORKED_LATER, CHELSEA, "openvino")

    assert done.stdout.count("OpenVINO was used before this process was forked") == 2, done.stderr
    assert "`spawn` or `forkserver`" in done.stdout


THREADS = """
import sys, threading
from cvt_cli import Classifier

classify = Classifier("cvt-nano-cifar10", engine="openvino")
said = []

def work(photo, label):
    said.append({classify(photo)[0].label for _ in range(20)} == {label})

photos = [(photo, classify(photo)[0].label) for photo in sys.argv[1:]]
threads = [threading.Thread(target=work, args=pair) for pair in photos * 3]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(said)
"""


def test_several_threads_may_ask_at_once() -> None:
    boats = TESTS / "photos" / "nagasaki-boats.jpg"
    done = python(THREADS, CHELSEA, boats)

    assert done.stdout == f"{[True] * 6}\n", done.stderr


def scores(answers: list[list[Prediction]]) -> list[float]:
    """To so many digits as do not depend on how many images are computed together."""
    return [round(predictions[0].score, 4) for predictions in answers]


def test_an_opened_picture_may_be_given_several_times(classify, pixels) -> None:
    large = Image.fromarray(pixels).resize((1200, 800))
    expected = scores([classify(large)] * 4)
    for kind in ("BMP", "PNG"):
        content = io.BytesIO()
        large.save(content, kind, compress_level=1)

        assert scores(classify([Image.open(content)] * 4)) == expected


def test_frames_are_answered_as_they_were_when_they_were_given(classify, pixels) -> None:
    frames = [Image.fromarray(np.roll(pixels, turn, axis=2)) for turn in (0, 1, 2)]
    content, canvas, array = io.BytesIO(), frames[0].copy(), pixels.copy()
    frames[0].save(content, "PNG", save_all=True, append_images=frames[1:])

    def drawn():
        for frame in frames:
            canvas.paste(frame)
            yield canvas

    def filled(kind):
        for frame in frames:
            array[:] = np.asarray(frame)
            yield kind(array)

    expected = scores(classify(frames))
    assert len(set(expected)) == 3
    for given in (
        ImageSequence.Iterator(Image.open(content)),
        drawn(),
        filled(np.asarray),
        filled(lambda array: torch.from_numpy(array).permute(2, 0, 1)),
    ):
        assert scores(classify(given)) == expected


def test_one_odd_image_ends_no_table(classify) -> None:
    images = [torch.zeros(3, 8, 8).bfloat16(), Image.new("RGB", (0, 5)), [[1, 2, 3]], b"", None]
    images += [torch.empty(3, 8, 8, device="meta"), torch.zeros(3, 8, 8).to_sparse()]

    errors = classify({"image": images})["error"]

    assert errors[0] is None  # NumPy has no bfloat16
    assert "no pixels: width 0, height 5" in errors[1]
    assert "list is not an image; accepted are arrays" in errors[2]
    assert all("Tensor cannot be converted to an array" in error for error in errors[5:])
    assert all(errors[1:])
    with pytest.raises(ImageError, match="opened as text"):
        classify(io.StringIO("x"))


def test_an_image_written_as_lists_is_not_answered_row_by_row(classify, pixels) -> None:
    with pytest.raises(ImageError, match="list is not an image"):
        classify(pixels[:4, :4].tolist())


def test_a_table_is_no_list_of_its_columns(classify) -> None:
    table = {"image": [CHELSEA]}
    with pytest.raises(UsageError, match="this is a table"):
        classify.features(table)
    with pytest.raises(UsageError, match="this is a table"):
        list(classify.answers(pd.DataFrame(table)))


def test_what_no_classifier_can_be_made_with_is_refused_when_it_is_made() -> None:
    for wrong, said in (
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_k": "5"}, "top_k is '5'; it must be a whole number"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 1.5}, "batch_size is 1.5; it must be a whole number"),
        ({"exif": "no"}, "exif is 'no'; it must be True or False"),
        ({"offline": "no"}, "offline is 'no'; it must be True or False"),
        ({"revision": 1}, "revision is 1; it must be a text"),
        ({"device": 7}, "device `7` is not available here"),
        ({"background": (255, 255, 255)}, "is not a color"),
        ({"precision": "int4"}, "precision `int4`; accepted are `auto`, `fp32`"),
        ({"engine": "tpu"}, "engine `tpu`; accepted are `auto`, `torch`"),
        ({"background": ""}, "`` is not a color"),
        ({"device": "cpu:3"}, "device `cpu:3` is not available"),
    ):
        with pytest.raises(UsageError) as raised:
            Classifier("cvt-nano-cifar10", **{"engine": "torch", **wrong})
        assert said in str(raised.value)
    with pytest.raises(UsageError, match="the path is empty"):
        Classifier("")


def test_an_explanation_draws_itself_and_is_of_what_the_classifier_says() -> None:
    classify = Classifier("cvt-nano-cifar10")

    why = classify.explain(CHELSEA)
    both = classify.explain([CHELSEA, Image.open(CHELSEA)], method=["relevance"], target="dog")

    first = classify(CHELSEA)[0]
    said = why.explained[0].prediction
    assert said.label == first.label and abs(said.score - first.score) < 1e-5
    assert why.map.shape == (300, 451)
    assert "data:image/png;base64," in why._repr_html_() and "cat (73.6 %)" in why._repr_html_()
    assert [one.explained[0].prediction.label for one in both] == ["dog", "dog"]
    assert np.nanmax(np.abs(both[0].map - both[1].map)) < 1e-6
    assert pickle.loads(pickle.dumps(classify)).explain(CHELSEA).box(why.explained[0].maps[0])
    with pytest.raises(UsageError, match="there is no method `magic`"):
        classify.explain(CHELSEA, method="magic")


def test_a_target_that_is_a_number_is_an_index_and_a_text_a_name(tmp_path: Path) -> None:
    model = shutil.copytree(package.DATA / "cvt-nano-cifar10", tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    names = [str(9 - index) for index in range(10)]
    config["id2label"] = {str(index): name for index, name in enumerate(names)}
    config.pop("label2id", None)
    (model / "config.json").write_text(json.dumps(config))
    classify = Classifier(model)

    said = [
        classify.explain(CHELSEA, method="layercam", target=target).explained[0].prediction.index
        for target in (3, np.int64(3), "3")
    ]

    assert said == [3, 3, names.index("3")]
    assert classify.explain(CHELSEA, method="layercam", stage=np.int64(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_k": -1}, "top_k is -1; it must be at least 1"),
        ({"top_k": 2, "target": "cat"}, "top_k has no effect: target names the classes already"),
        ({"target": "cat", "against": "cat,dog"}, "against names the classes; give target or"),
        ({"target": 10}, "there is no class 10; this model has 10 classes, counted from 0"),
        ({"target": -1}, "there is no class -1"),
        ({"score": "no"}, "score is 'no'; it must be True or False"),
        ({"target": 3.5}, "target is 3.5; it must be a whole number"),
        ({"against": ("cat", "dog")}, "it must be a text such as 'cat,dog'"),
        ({"stage": 1}, "stage has no effect: it is of the methods hirescam and layercam"),
        ({"method": 5}, "method is 5; it must be a name, or a list of names"),
        ({"target": "cat", "method": "attention"}, "target has no effect: a map of the method"),
        ({"against": "cat,dog", "method": ["attention"]}, "against has no effect: a map of the"),
        ({"top_k": 2, "method": "attention"}, "top_k has no effect: a map of the method attention"),
        ({"stage": "1", "method": "layercam"}, "stage is '1'; it must be a whole number"),
    ],
    ids=str,
)
def test_what_cannot_be_explained_is_refused(classify, arguments, message: str) -> None:
    with pytest.raises(UsageError) as raised:
        classify.explain(CHELSEA, **arguments)
    assert message in str(raised.value)


@pytest.mark.parametrize("res", [32, 96])  # in the larger one, weights are in oneDNN's order
def test_it_computes_as_it_says_also_where_the_caller_is_in_an_autocast(res: int) -> None:
    classify = Classifier("cvt-nano-cifar10", engine="torch", res=res)

    plain, why = classify(CHELSEA), classify.explain(CHELSEA, method="layercam").map
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within, why_within = classify(CHELSEA), classify.explain(CHELSEA, method="layercam").map

    assert within == plain
    assert np.array_equal(why, why_within, equal_nan=True)


def test_an_explanation_is_not_of_weights_that_came_after_the_answers(tmp_path: Path) -> None:
    model = shutil.copytree(package.DATA / "cvt-nano-cifar10", tmp_path / "model")
    classify = Classifier(model, engine="torch")
    shutil.copy(model / "model.safetensors", tmp_path / "better")
    (tmp_path / "better").rename(model / "model.safetensors")

    assert classify(CHELSEA)[0].label == "cat"
    with pytest.raises(CheckpointError, match="was changed while it was used"):
        classify.explain(CHELSEA)


def test_an_explanation_sees_the_picture_as_the_answer_did() -> None:
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, :20] = 255
    classify = Classifier("cvt-nano-cifar10", resize="squash", engine="torch")

    found = classify.explain(pixels, method="attention")

    assert found.predictions[0].score == pytest.approx(classify(pixels)[0].score, abs=1e-5)
    assert np.isfinite(found.map).all()  # a crop would not see the ends


def test_it_explains_also_where_the_caller_computes_without_gradients() -> None:
    import torch

    classify = Classifier("cvt-nano-cifar10", engine="torch")
    with torch.inference_mode():
        found = classify.explain(CHELSEA, method=["hirescam", "relevance"])

    again = classify.explain(CHELSEA, method=["hirescam", "relevance"])
    assert np.array_equal(found.map, again.map, equal_nan=True)


def test_predictions_are_a_list_that_a_notebook_shows_as_a_table() -> None:
    found = Classifier("cvt-nano-cifar10", top_k=2)(CHELSEA)

    assert isinstance(found, list) and len(found) == 2
    assert '<td style="text-align: left">cat</td><td>0.7356</td>' in found._repr_html_()
