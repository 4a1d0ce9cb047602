from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from collectors.signals import CatalogueError, Kind, catalogue, parse_catalogue, unit_of

ROW = (
    '[x]\nunit = "count"\nlayer = "gpu"\nkind = "gauge"\nbad_direction = "up"\ndescription = "d"\n'
)


def test_every_signal_is_complete() -> None:
    for signal in catalogue().values():
        assert signal.description, signal.name
        assert signal.unit, signal.name
        assert signal.deadband > 0, signal.name
        if signal.low is not None and signal.high is not None:
            assert signal.low < signal.high, signal.name
        if signal.low is not None or signal.high is not None:
            assert signal.limit_source, signal.name
        if signal.kind is Kind.RATIO:
            assert (signal.low, signal.high) == (0, 1), signal.name


@pytest.mark.parametrize(
    ("ending", "unit"),
    [
        ("_seconds", "seconds"),
        ("_bytes", "bytes"),
        ("_celsius", "celsius"),
        ("_watts", "watts"),
        ("_ratio", "ratio"),
        ("_percent", "percent"),
        ("_ok", "bool"),
    ],
)
def test_names_carry_their_units(ending: str, unit: str) -> None:
    for name, signal in catalogue().items():
        if name.endswith(ending):
            assert signal.unit.startswith(unit), name


def test_dcgm_names_are_real_fields(facts: Path) -> None:
    with (facts / "dcgm_fields.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    known = {row[column] for row in rows for column in ("name", "legacy_name")}
    named = {
        piece
        for signal in catalogue().values()
        for name in signal.names.get("dcgm", ())
        for piece in re.findall(r"DCGM_\w+", name)
    }
    # These are not in the table of facts; all but the fan are in a real scrape.
    assert named - known == {
        "DCGM_FI_DEV_FAN_SPEED",
        "DCGM_FI_DEV_ENC_UTIL",
        "DCGM_FI_DEV_DEC_UTIL",
        "DCGM_FI_DEV_FB_RESERVED",
        "DCGM_FI_DEV_VGPU_LICENSE_STATUS",
    }


@pytest.mark.parametrize(
    "text",
    [
        ROW,
        ROW + "deadband = 1\nmystery = 1\n",
        ROW.replace('"gpu"', '"moon"') + "deadband = 1\n",
    ],
)
def test_a_fault_names_the_signal(text: str) -> None:
    with pytest.raises(CatalogueError, match=r"signals\.toml \[x\]"):
        parse_catalogue(text)


def test_units_of_known_and_unknown() -> None:
    assert unit_of("gpu_power_usage_watts") == "watts"
    assert unit_of("nothing") == ""
