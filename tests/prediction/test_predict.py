"""What inputs name, answered below the command: values in, answers, counts and files out."""

from pathlib import Path
from typing import Any

import pytest

from cvt_cli import loading
from cvt_cli.base.errors import CvtError, UsageError
from cvt_cli.base.progress import silent
from cvt_cli.checkpoints.locate import Access
from cvt_cli.engines.ready import ReadyModel
from cvt_cli.prediction.predict import Asked, predict
from tests_shared import CHELSEA


def load(made: dict[str, Any] | None, total: int | None) -> ReadyModel:
    access = Access(print, silent)
    return loading.load_classifier("cvt-nano-cifar10", None, None, "cpu", "fp32", access)


def test_answers_come_one_by_one_and_the_second_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    asked = Asked(top_k=99, resume=tmp_path / "answers.jsonl")
    said: list[str] = []
    inputs = [str(CHELSEA), str(tmp_path / "broken.png")]

    with predict(inputs[:1], asked, load, said.append) as first:
        cat = next(iter(first))
    with predict(inputs, asked, load, said.append) as second:
        (broken,) = second

    assert (cat.path, cat.predictions[0].label) == (str(CHELSEA), "cat")
    assert first.top_k == len(cat.predictions) == 10  # as many classes as the model has
    assert (first.total, first.done, first.answered, first.failed) == (1, 0, 1, 0)
    assert broken.error == "not an image, or of a type that Pillow cannot read"
    assert (second.total, second.done, second.answered, second.failed) == (2, 1, 1, 1)
    assert said == [f"1 image already in `{tmp_path / 'answers.jsonl'}`"]
    assert second.conditions["model"] == "cvt-nano-cifar10"
    with predict(inputs, asked, load, said.append) as third:
        assert list(third) == [broken]
    assert (third.done, third.answered, third.failed) == (1, 1, 1)
    assert said[1].startswith("1 image already")
    assert said[2].startswith("1 image could not be read when")


def test_files_are_there_when_the_context_ends_and_not_where_it_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.html"

    with pytest.raises(RuntimeError), predict([str(CHELSEA)], Asked(html=page), load, print) as one:
        list(one)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with predict([str(CHELSEA)], Asked(html=page), load, print) as one:
        list(one)
        assert not page.exists()

    assert CHELSEA.name in page.read_text()


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (Asked(background="mauvish"), UsageError, "`mauvish` is not a color"),
        (Asked(features=Path("f.csv")), UsageError, "features cannot be written as `f.csv`"),
        (Asked(html=Path("p"), resume=Path("p")), UsageError, "is named for two outputs"),
        (Asked(), CvtError, "no images in"),
    ],
    ids=["colour", "suffix", "twice", "none"],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    tmp_path: Path, asked: Asked, error: type[CvtError], message: str
) -> None:
    def never(made: object, total: int | None) -> ReadyModel:
        raise AssertionError("loaded")

    with pytest.raises(error, match=message), predict([str(tmp_path)], asked, never, print):
        pass
