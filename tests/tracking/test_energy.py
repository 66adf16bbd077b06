"""`--energy`: the real codecarbon, without a socket, with the method named."""

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from tests_shared import TESTS

codecarbon = pytest.importorskip("codecarbon", reason="pip install '.[test-tracking]'")

from cvt_cli.tracking import energy  # noqa: E402  # it is of no use without

KEPT = TESTS / "kept"


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The families of the sockets to other machines that are opened."""
    opened: list[Any] = []

    class Noted(socket.socket):
        def __init__(self, family: int = -1, *others: Any, **more: Any) -> None:
            if family != socket.AF_UNIX:
                opened.append(family)
            super().__init__(family, *others, **more)

    monkeypatch.setattr(socket, "socket", Noted)
    return opened


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))


def test_no_socket_is_opened_and_the_method_is_named(sockets: list[Any]) -> None:
    energy.check("DEU")
    with energy.measured("deu", every_sec=0.5) as used:
        busy(2)

    assert sockets == []
    assert used.kwh > 0 and used.country == "DEU" and used.co2_kg and used.co2_kg > 0
    told = ("RAPL package counters", "rating x load, an estimate", "own counters")
    assert any(method in used.method for method in told), used.method


def test_without_a_country_there_is_no_co2() -> None:
    with energy.measured(every_sec=0.5) as used:
        busy(0.5)

    assert used.to_json()["co2_kg"] is None and used.to_json()["joules"] > 0


@pytest.mark.filterwarnings("ignore")
def test_our_joules_are_those_of_codecarbons_own_tracker() -> None:
    from codecarbon import OfflineEmissionsTracker

    own = OfflineEmissionsTracker(
        country_iso_code="DEU", measure_power_secs=0.5, save_to_file=False, log_level="critical",
        allow_multiple_runs=True,
    )  # fmt: skip
    own.start()
    with energy.measured("DEU", every_sec=0.5) as used:
        busy(3)
    own.stop()

    # Theirs began a little earlier and ended a little later.
    apart = own.final_emissions_data.duration - used.seconds
    theirs = own.final_emissions_data.energy_consumed
    assert used.kwh == pytest.approx(theirs, rel=0.05 + apart / used.seconds)


def test_a_run_and_its_card_say_what_the_training_took(cvt, tmp_path: Path, sockets) -> None:
    run = tmp_path / "run"
    result = cvt(
        "finetune", KEPT / "images", "--model", KEPT / "model", "--epochs", 2, "--val-fraction",
        0.3, "--batch-size", 8, "--workers", 0, "-o", run, "--energy", "--country", "DEU",
    )  # fmt: skip

    assert result.exit_code == 0, result.stderr
    found = json.loads((run / "results.json").read_text())["energy"]
    assert found["kwh"] > 0 and found["country"] == "DEU" and found["co2_kg"] > 0
    card = (run / "best" / "README.md").read_text()
    assert "**Energy of the training:** " in card and found["method"] in card
    assert "of CO2 with the electricity of DEU" in card
    assert sockets == []


def test_a_run_that_goes_on_is_measured_on_and_what_is_not_measured_is_said(
    cvt, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    begun = cvt(
        "finetune", KEPT / "images", "--model", KEPT / "model", "--epochs", 60, "--val-fraction",
        0.3, "--batch-size", 8, "--workers", 0, "-o", run, "--energy", "--country", "DEU",
        "--max-time", "3s",
    )  # fmt: skip
    assert begun.exit_code == 0, begun.stderr
    (first,) = json.loads((run / "energy.json").read_text())

    whole = shutil.copytree(run, tmp_path / "whole")
    assert cvt("finetune", "--resume", whole, "--max-time", "1s").exit_code == 0

    parts = json.loads((whole / "energy.json").read_text())
    found = json.loads((whole / "results.json").read_text())["energy"]
    assert [one["country"] for one in parts] == ["DEU", "DEU"] and parts[0] == first
    assert found["kwh"] == pytest.approx(sum(one["kwh"] for one in parts))
    assert "measured during" not in (whole / "best" / "README.md").read_text()

    killed = {**first, "kwh": None, "joules": None, "seconds": 0.0, "co2_kg": None}
    (run / "energy.json").write_text(json.dumps([killed]))
    assert cvt("finetune", "--resume", run, "--max-time", "1s").exit_code == 0

    card = (run / "best" / "README.md").read_text()
    assert card.count("; measured during 0:") == 2  # the energy, and the CO2


def test_settings_of_codecarbon_that_are_damaged_or_name_no_country_are_refused(
    cvt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for settings, said in (
        ("nonsense", "codecarbon's own settings cannot be read: File contains no section headers"),
        (
            "[codecarbon]\ncountry_iso_code=QQQ",
            "`country_iso_code` in codecarbon's own settings is",
        ),
    ):
        Path(".codecarbon.config").write_text(settings)
        result = cvt("evaluate", KEPT / "images", "--model", KEPT / "model", "--energy")
        assert result.exit_code == 2 and said in result.stderr


def test_evaluate_and_benchmark_say_it_and_their_cards_too(cvt, tmp_path: Path) -> None:
    shutil.copytree(KEPT / "run", tmp_path / "run")
    evaluated = cvt(
        "evaluate", KEPT / "images", "--model", tmp_path / "run", "--energy", "--json",
        "--engine", "torch",
    )  # fmt: skip
    timed = cvt(
        "benchmark", tmp_path / "run", "--engine", "torch", "--rounds", 1, "--batch-size", 1,
        "--energy", "--json", "--card", tmp_path / "run", "--overwrite",
    )  # fmt: skip

    assert evaluated.exit_code == timed.exit_code == 0, timed.stderr
    assert evaluated.json["energy"]["joules"] > 0
    (row,) = timed.json["rows"]
    assert row["joules_per_image"] > 0
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert f"{row['joules_per_image']:.3g} J" in card
    assert "Energy: " in card and timed.json["energy"]["method"] in card


def test_a_country_that_is_none_is_refused(cvt) -> None:
    result = cvt("evaluate", "x", "--energy", "--country", "germany")

    assert result.exit_code == 2
    assert "accepted are the three letters of ISO 3166" in result.stderr
    assert cvt("evaluate", "x", "--country", "DEU").exit_code == 2
