"""`cvt benchmark` measures what it says; no test asserts a speed."""

import pytest

from cvt_cli import cache

QUICK = ["--rounds", 2, "--batch-size", "1,3", "--variant", "nano"]


def test_every_side_has_its_row_and_its_conditions(cvt_process) -> None:
    result = cvt_process("benchmark", *QUICK, "--against", "transformers", "--json")

    document = result.json
    assert result.exit_code == 0
    assert (document["model"], document["height"], document["weights"]) == ("nano", 32, "random")
    assert document["macs"] == 18_700_800 and document["hardware"].endswith("threads")
    assert {"cvt-cli", "torch", "onnxruntime", "openvino", "transformers"} == set(
        document["versions"]
    )
    rows = document["rows"]
    assert [(row["engine"], row["batch_size"]) for row in rows] == [
        (engine, batch)
        for batch in (1, 3)
        for engine in ("transformers", "torch", "onnxruntime", "openvino")
    ]
    for row in rows:
        slowest, fastest = row["images_per_sec_range"]
        assert 0 < slowest <= row["images_per_sec"] <= fastest
        assert row["latency_sec"] == pytest.approx(row["batch_size"] / row["images_per_sec"])
        assert row["startup_sec"] > 0 and row["first_call_sec"] > 0
        assert row["share_of_peak"] > 0
        assert row["peak_memory_bytes"] is None
        assert (row["ratio"] == 1.0) == (row["engine"] == "transformers")
    assert "random weights" in result.stderr


def test_peak_memory_is_that_of_a_process_of_its_own(cvt_process) -> None:
    result = cvt_process(
        "benchmark", "--variant", "nano", "--rounds", 1, "--batch-size", "1", "--memory",
        "--engine", "torch,onnxruntime", "--json",
    )  # fmt: skip

    torch_row, onnx_row = result.json["rows"]
    assert torch_row["ratio"] is None
    assert 10_000_000 < onnx_row["peak_memory_bytes"] < 5_000_000_000
    assert torch_row["peak_memory_bytes"] != onnx_row["peak_memory_bytes"]


def test_the_table_says_what_was_measured_and_how(cvt_process) -> None:
    lines = cvt_process("benchmark", *QUICK, "--engine", "torch", "--precision", "fp32,bf16").stdout

    assert lines.startswith("nano at 32x32, random weights, cpu, ")
    assert "median of 2 rounds" in lines
    assert [line.split()[:3] for line in lines.splitlines()[4:8]] == [
        ["torch", "fp32", "1"], ["torch", "bf16", "1"],
        ["torch", "fp32", "3"], ["torch", "bf16", "3"],
    ]  # fmt: skip


def test_nothing_of_a_benchmark_stays_in_the_cache(cvt_process) -> None:
    cvt_process("benchmark", *QUICK, "--engine", "onnxruntime")

    assert not list(cache.cache_dir().rglob("*.onnx"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "tensorrt"], "there is no engine `tensorrt`; accepted are `torch`"),
        (["--precision", "int3"], "there is no precision `int3`; accepted are `fp32`"),
        (["--batch-size", "0"], "`0` are no batch sizes; accepted are positive integers"),
        (["--batch-size", "one"], "`one` are no batch sizes"),
        (["--variant", "14"], "`14`"),
        (["--variant", "13", "--model", "cvt-13"], "give --variant or --model, not both"),
    ],
)
def test_what_cannot_be_measured_is_a_usage_error(cvt_process, arguments, message: str) -> None:
    result = cvt_process("benchmark", *arguments)

    assert result.exit_code == 2
    assert message in result.stderr
