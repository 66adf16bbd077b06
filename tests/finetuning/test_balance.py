"""Rare classes: what their weights are, how often they are drawn, what is said of them."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from cvt_cli.base.errors import UsageError
from cvt_cli.finetuning import balance

LABELS = np.repeat([0, 1, 2], [60, 30, 7])
CLASSES = ("a", "b", "c")


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=LABELS)

    assert balance.factors("balanced", LABELS, CLASSES) == pytest.approx(wanted)
    assert balance.factors(True, LABELS, CLASSES) == pytest.approx(wanted)


def test_a_power_goes_part_of_the_way_and_keeps_the_mean() -> None:
    found = balance.factors("balanced^0.5", LABELS, CLASSES)

    assert found[LABELS].mean() == pytest.approx(1)
    assert found / found[0] == pytest.approx(np.sqrt(60 / np.array([60, 30, 7])))
    assert balance.factors("balanced^0", LABELS, CLASSES).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("w.json", f'{{"a": {"9" * 400}}}', "weight of `a` is `inf`"), ("w.csv", "a,x", "`a` is `x`")],
)
def test_what_is_no_weight_is_named(tmp_path: Path, name, content, said) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(UsageError, match=said):
        balance.parsed(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [("w.json", '{"a": 4, "a": 0.5}', "it has 'a' twice"), ("w.csv", "a,4\na,1\n", "`a` twice")],
)
def test_of_two_weights_of_one_class_none_is_chosen(tmp_path: Path, name, content, said) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(UsageError, match=said):
        balance.parsed(str(tmp_path / name))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.json", '{"c": 4, "a": 0.5}'),
        ("w.csv", "class,weight\nc,4\na,0.5\n"),
        ("w.csv", "c,4\r\na,0.5\r\n"),
    ],
)
def test_weights_come_from_a_file_as_from_the_line(tmp_path: Path, name, content) -> None:
    (tmp_path / name).write_text(content)

    found = balance.parsed(str(tmp_path / name))

    assert found == balance.parsed("c=4,a=0.5") == {"c": 4.0, "a": 0.5}
    assert balance.factors(found, LABELS, CLASSES).tolist() == [0.5, 1, 4]


def test_a_class_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="names `d`, which is no class of the data") as caught:
        balance.factors({"d": 2.0}, LABELS, CLASSES)

    assert "`a`, `b`, `c`" in str(caught.value.hint)


def test_a_balanced_epoch_has_every_class_and_every_image_of_it_equally_often() -> None:
    indices, times = balance.balanced_order(LABELS, np.random.default_rng(0))

    assert len(indices) == len(LABELS) == len(times)
    assert sorted(np.bincount(LABELS[indices])) == [32, 32, 33]
    of_rare = np.bincount(indices, minlength=97)[90:]
    assert set(of_rare) <= {4, 5}
    # How often an image came before is told, so that it is varied anew.
    assert len({(i, t) for i, t in zip(indices.tolist(), times.tolist(), strict=True)}) == 97
    other, _ = balance.balanced_order(LABELS, np.random.default_rng(1))
    assert other.tolist() != indices.tolist()
