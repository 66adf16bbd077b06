"""`cvt flops` and `cvt count-params` at the command line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cvt_cli.spec.variants import VARIANTS
from tests_shared import CHELSEA, as_transformers_saves, golden_state


def test_flops_prints_the_total_the_paper_and_the_difference(cvt) -> None:
    result = cvt("flops", "--variant", "21", "--res", "384")

    assert result.exit_code == 0
    assert "total   24,849,091,584 MACs (24.849 GMACs) = 49,698,183,168 FLOPs" in result.stdout
    assert "paper   24.900 GMACs, there called FLOPs; ours differs by -0.20 %" in result.stdout
    for operation in ("token embedding", "attention products", "MLP", "head"):
        assert operation in result.stdout


def test_count_params_prints_the_exact_number(cvt) -> None:
    result = cvt("count-params", "--variant", "21")

    assert "total   31,622,696 parameters (31.623 M)" in result.stdout
    assert "paper   31.540 M; ours differs by +0.26 %" in result.stdout


@pytest.mark.parametrize("command", ["flops", "count-params"])
def test_without_arguments_all_variants_are_listed(cvt, command: str) -> None:
    result = cvt(command)

    for variant in VARIANTS:
        assert f"\n  {variant} " in result.stdout


def test_json_has_the_documented_keys_and_rows_that_add_up(cvt) -> None:
    document = cvt("flops", "--variant", "CvT-13", "--res", "200x264", "--json").json

    assert document["variant"] == "13"
    assert (document["height"], document["width"]) == (200, 264)
    assert document["macs"] == 5_131_196_160 == sum(row["macs"] for row in document["rows"])
    assert document["flops"] == 2 * document["macs"]
    assert document["params"] == 19_997_480 == sum(row["params"] for row in document["rows"])
    assert document["paper_params"] == 19_980_000 and document["paper_macs"] is None


def test_json_of_all_variants_is_a_list(cvt) -> None:
    documents = cvt("count-params", "--json").json

    found = {d["variant"]: d["params"] for d in documents}
    assert found == {"13": 19_997_480, "21": 31_622_696, "w24": 277_196_392, "nano": 832_138}


def test_another_number_of_classes_changes_the_head_alone(cvt) -> None:
    document = cvt("count-params", "--variant", "13", "--num-classes", "10", "--json").json

    assert document["params"] == 19_997_480 - 990 * 385


def test_a_checkpoint_stands_for_its_architecture(cvt, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(golden_state(VARIANTS["nano"].config.with_classes(7)), path)

    assert cvt("flops", "--model", "cvt-nano-cifar10", "--json").json["height"] == 32
    assert cvt("flops", "--model", "cvt_21_384", "--json").json["macs"] == 24_849_091_584
    assert cvt("flops", "--model", path, "--json").json["num_classes"] == 7


def test_a_checkpoint_is_read_by_the_same_rules_as_for_predicting(cvt, tmp_path: Path) -> None:
    # A copy of the hub's repository whose preprocessing file says 224.
    folder = tmp_path / "cvt-13-384-22k"
    as_transformers_saves(folder, VARIANTS["13"].config)

    for path in (folder, folder / "model.safetensors"):
        counted = cvt("flops", "--model", path, "--json").json
        predicted = cvt("predict", CHELSEA, "--model", path, "--json").json
        assert counted["num_classes"] == 1000
        assert counted["height"] == predicted["preprocessing"]["height"] == 384


def test_a_file_that_holds_no_cvt_is_named(cvt, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(3)}, path)

    result = cvt("flops", "--model", path)

    assert result.exit_code == 1
    assert f"error: `{path}` is not a CvT: its 1 tensors do not include" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--variant", "15"], 2, "there is no variant `15`; accepted are `13`, `21`, `w24`"),
        (["--variant", "13", "--model", "cvt-13"], 2, "give --variant or --model, not both"),
        (["--res", "384x"], 2, "`384x` is not an input size"),
        (["--res", "1x2x3"], 2, "`1x2x3` is not an input size"),
        (["--model", "nowhere"], 1, "there is no model `nowhere`"),
    ],
    ids=str,
)
def test_a_wrong_option_is_explained(cvt, arguments: list[str], code: int, message: str) -> None:
    result = cvt("flops", *arguments)

    assert result.exit_code == code
    assert f"error: {message}" in result.stderr


def test_a_pickle_needs_its_variant_named(cvt, tmp_path: Path) -> None:
    torch.save(golden_state(VARIANTS["nano"].config), tmp_path / "m.pth")

    result = cvt("flops", "--model", tmp_path / "m.pth")

    assert result.exit_code == 1
    assert "cannot be read without torch" in result.stderr and "--variant" in result.stderr
