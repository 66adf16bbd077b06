"""How much energy work takes, by codecarbon's offline tracker (extra ``energy``); it asks nobody.

What can be measured depends on the machine, and the method is part of every result: counters of
the processor (RAPL), of NVIDIA cards (NVML), or an estimate by the processor's rating and load.
It is of the whole machine, other work included.
"""

import configparser
import logging
import socket
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from cvt_cli.base.errors import UsageError
from cvt_cli.base.package import installing

JOULES = 3.6e6
"""In a kWh."""

EVERY_SEC = 15.0
"""Between two looks at the power, where work is long; short work has more."""


@dataclass
class Energy:
    """What some work took; the values are there once it is over."""

    kwh: float | None = None  # None: codecarbon failed
    seconds: float = 0.0
    method: str = ""
    country: str | None = None  # of whose electricity the CO2 is
    co2_kg: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The documented keys of ``energy``."""
        return {
            "kwh": self.kwh,
            "joules": self.kwh and JOULES * self.kwh,
            "seconds": self.seconds,
            "method": self.method,
            "country": self.country,
            "co2_kg": self.co2_kg,
        }


def check(country: str | None) -> None:
    """Refuse what cannot be measured, before there is any work.

    Raises:
        UsageError: codecarbon is not installed, knows no such country, or its own configuration is
            damaged.
    """
    if not available():
        raise UsageError("--energy needs `codecarbon`", hint=installing("energy"))
    told = "--country" if country is not None else "`country_iso_code` in codecarbon's own settings"
    country = country if country is not None else _configured()
    if country is not None and country.upper() not in _countries():
        raise UsageError(
            f"{told} is `{country}`; accepted are the three letters of ISO 3166, such as DEU, "
            "FRA or USA"
        )


def available() -> bool:
    """Whether energy can be measured at all."""
    return find_spec("codecarbon") is not None


def _configured() -> str | None:
    """The country that codecarbon's own settings name; raises UsageError for damaged ones."""
    with _no_socket():
        from codecarbon.core.config import get_hierarchical_config

    try:
        found = get_hierarchical_config().get("country_iso_code")
    except (configparser.Error, ValueError) as error:
        raise UsageError(
            f"codecarbon's own settings cannot be read: {' '.join(str(error).split())}",
            hint="correct or remove `.codecarbon.config`, here and in your home folder",
        ) from None
    return None if found is None else str(found)


def _countries() -> Mapping[str, Any]:
    """What is known of the electricity of countries, by their codes."""
    with _no_socket():
        from codecarbon.input import DataSource

    found: Mapping[str, Any] = DataSource().get_global_energy_mix_data()
    return found


@contextmanager
def _no_socket() -> Iterator[None]:
    """Inside of it nobody opens a socket to see whether there is IPv6, as urllib3 does when it is
    imported."""
    before, socket.has_ipv6 = socket.has_ipv6, False
    try:
        yield
    finally:
        socket.has_ipv6 = before


@contextmanager
def measured(country: str | None = None, every_sec: float = EVERY_SEC) -> Iterator[Energy]:
    """Measure what is done inside; the values are filled when it ends, also by an error.

    Args:
        country: code of it, for the CO2; by default what codecarbon's own configuration says.
        every_sec: between two looks at the power.
    """
    with _no_socket():
        from codecarbon import OfflineEmissionsTracker

    country = country or _configured()
    # Without a country the CO2 is not used; any number in its place asks for none.
    place = {"country_iso_code": country.upper()} if country else {
        "force_carbon_intensity_g_co2e_kwh": 1.0
    }  # fmt: skip
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    with _no_socket(), _unwarned():
        tracker = OfflineEmissionsTracker(
            measure_power_secs=every_sec,
            save_to_file=False,
            save_to_api=False,
            log_level="critical",
            allow_multiple_runs=True,
            tracking_mode="machine",
            **place,
        )
        found = Energy(country=country and country.upper())
        tracker.start()
    began = time.perf_counter()
    try:
        yield found
    finally:
        found.seconds = time.perf_counter() - began
        with _no_socket(), _unwarned():
            tracker.stop()
        # It catches its own errors, and then has no figures.
        data = getattr(tracker, "final_emissions_data", None)
        found.method = "codecarbon gave no figures"
        if data is not None:
            found.kwh = data.energy_consumed
            found.co2_kg = data.emissions if country else None
            found.method = _method(tracker)


@contextmanager
def _unwarned() -> Iterator[None]:
    """Inside of it what codecarbon warns of is for its developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _method(tracker: Any) -> str:
    """How it was measured, in words."""
    parts = []
    for part in tracker._hardware:
        kind = type(part).__name__
        if kind == "CPU":
            mode, rating = getattr(part, "_mode", ""), getattr(part, "_tdp", None)
            parts.append(_of_processor(mode, rating))
        elif kind == "GPU":
            parts.append("NVML")
        elif kind == "RAM":
            parts.append("memory by its size, an estimate")
        else:  # an Apple chip's powermetrics, a Raspberry Pi's own counter
            parts.append(f"{kind}'s own counters")
    return f"{', '.join(dict.fromkeys(parts))}; of the whole machine"


def _of_processor(mode: str, rating: float | None) -> str:
    if mode == "intel_rapl":
        return "RAPL package counters"
    if mode in ("windows_emi", "intel_power_gadget"):
        return "the processor's own counters"
    watts = f"{rating:.0f} W rating" if rating else "a rating"
    return f"{watts} x load, an estimate" if "load" in mode else f"{watts}, an estimate"


def added(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The energy of work that was done in parts; None of none."""
    parts = [one for one in parts if one["kwh"] is not None]
    if not parts:
        return None
    known = [one["co2_kg"] for one in parts]
    kwh = sum(one["kwh"] for one in parts)
    return {
        "kwh": kwh,
        "joules": JOULES * kwh,
        "seconds": sum(one["seconds"] for one in parts),
        "method": "; ".join(dict.fromkeys(one["method"] for one in parts)),
        "country": ", ".join(dict.fromkeys(one["country"] for one in parts if one["country"]))
        or None,
        "co2_kg": None if None in known else sum(known),
    }
