"""A variant is one record: what is added from outside is known in every place."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from cvt_cli.spec.config import CvTConfig, StageConfig
from cvt_cli.spec.preprocessing import Preprocessing
from cvt_cli.spec.recipes import named_recipe
from cvt_cli.spec.variants import VARIANTS, Variant
from tests_shared import CHELSEA, golden_state

MINI = Variant(
    CvTConfig((StageConfig(8, 1, 1, 5, 2, 2), StageConfig(16, 2, 2)), num_classes=7),
    Preprocessing(48, 64, "squash"),
    weight_decay=0.02,
    paper_params=5_000,
)


@pytest.fixture(autouse=True)
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up variant that no file of the package names."""
    monkeypatch.setitem(VARIANTS, "mini", MINI)


def test_an_added_variant_is_counted_at_its_own_size_and_beside_the_others(cvt) -> None:
    rows = cvt("flops", "--json").json
    named = cvt("count-params", "--variant", "CvT_mini", "--num-classes", 1000, "--json").json

    assert [(r["variant"], r["height"], r["width"]) for r in rows][-2:] == [
        ("nano", 32, 32),
        ("mini", 48, 64),
    ]
    assert (named["height"], named["width"], named["paper_params"]) == (48, 64, 5_000)
    assert "`nano`, `mini`" in cvt("flops", "--variant", "maxi").stderr


def test_the_bare_tensors_of_an_added_variant_are_recognised_and_run(tmp_path: Path, cvt) -> None:
    path = tmp_path / "m.safetensors"
    save_file(golden_state(MINI.config), path)

    counted = cvt("flops", "--model", path, "--json").json
    told = cvt("info", path, "--res", "32", "--json").json
    answered = cvt("predict", CHELSEA, "--model", path, "--res", "48x64", "--json")

    assert (counted["height"], counted["width"]) == (48, 64)
    assert (told["variant"], told["num_classes"]) == ("mini", 7)
    assert told["preprocessing"]["resize"] == "squash"
    assert answered.exit_code == 0, answered.stderr
    assert answered.json["preprocessing"]["width"] == 64


def test_an_added_variant_brings_its_weight_decay() -> None:
    assert named_recipe("imagenet", MINI.config).weight_decay == 0.02
