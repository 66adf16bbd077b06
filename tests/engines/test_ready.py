"""What a result depends on, of the model and the engine that gave it."""

from cvt_cli.engines.ready import deciding


def test_int8_is_not_gone_on_with_where_the_rest_is_computed_otherwise() -> None:
    """As on a processor with AMX and one without."""
    of_int8 = {"engine": "openvino", "precision": "int8", "calibrated_on": "a"}

    with_amx = deciding({**of_int8, "floats": "bf16", "hardware": "2 threads"})
    other_threads = deciding({**of_int8, "floats": "bf16", "hardware": "8 threads"})
    without = deciding({**of_int8, "hardware": "2 threads"})

    assert with_amx == other_threads != without
    assert without == of_int8
