from __future__ import annotations

import csv
import re
from pathlib import Path

import pynvml
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


def test_dcgm_field_ids_are_those_of_their_names(facts: Path) -> None:
    with (facts / "dcgm_fields.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    ids = {row[column]: int(row["field_id"]) for row in rows for column in ("name", "legacy_name")}
    for signal in catalogue().values():
        named = {
            piece
            for name in signal.names.get("dcgm", ())
            for piece in re.findall(r"DCGM_\w+", name)
        }
        known = {ids[name] for name in named if name in ids}
        assert known <= set(signal.dcgm_fields), signal.name
        assert bool(named) == bool(signal.dcgm_fields) or named == {
            "DCGM_FI_DEV_VGPU_LICENSE_STATUS"
        }


def test_a_field_that_was_renamed_is_read_by_both_names(facts: Path) -> None:
    with (facts / "dcgm_fields.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    text = " ".join(
        name for signal in catalogue().values() for name in signal.names.get("dcgm", ())
    )
    words = set(re.findall(r"DCGM_\w+", text))
    half = {row["name"] for row in rows if (row["name"] in words) != (row["legacy_name"] in words)}
    assert not half
    assert not {row["name"] for row in rows if row["name"] not in words}


def test_every_seed_signal_is_here(facts: Path) -> None:
    with (facts / "signals_seed.csv").open(encoding="utf-8", newline="") as file:
        assert {row["signal"] for row in csv.DictReader(file)} <= set(catalogue())


def test_nvml_calls_exist() -> None:
    calls = {call for signal in catalogue().values() for call in signal.nvml}
    assert len(calls) > 20
    assert {call for call in calls if not hasattr(pynvml, call)} == set()


FINE = ROW + "deadband = 1\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (ROW, r"\[x\] deadband: missing"),
        (FINE + "mystery = 1\n", r"\[x\] mystery: unknown"),
        (FINE.replace('"gpu"', '"moon"'), r"\[x\] layer: 'moon' is none of gpu, host"),
        (FINE.replace('"gauge"', '"level"'), r"\[x\] kind: 'level'"),
        (FINE.replace('"up"', "1"), r"\[x\] bad_direction: 1"),
        (FINE.replace('"d"', '" "'), r"\[x\] description"),
        (FINE.replace("deadband = 1", 'deadband = "1"'), r"\[x\] deadband: '1' is not a number"),
        (FINE.replace("deadband = 1", "deadband = 0"), r"\[x\] deadband: must be positive"),
        (FINE + "low = 0\n", r"\[x\] limit_source: missing"),
        (FINE + 'low = 2\nhigh = 1\nlimit_source = "s"\n', r"\[x\] low: .*below high"),
        (FINE + 'high = inf\nlimit_source = "s"\n', r"\[x\] low: must be finite"),
        (FINE.replace('"gauge"', '"ratio"'), r"\[x\] kind: a ratio has"),
        (FINE + "quantile = 95\n", r"\[x\] quantile"),
        (FINE + "sticky = 1\n", r"\[x\] sticky"),
        (FINE + 'dcgm_fields = ["1"]\n', r"\[x\] dcgm_fields: must be a list of int"),
        (FINE + 'names.dcgm = "a"\n', r"\[x\] names.dcgm: must be a list"),
        (FINE + 'names.dcgm = ["a b"]\n', r"\[x\] names.dcgm: 'a b'"),
        (FINE + "names.dcgm = [1]\n", r"\[x\] names.dcgm"),
        (FINE + 'names.dcgm = ["a", "a"]\n', r"\[x\] names.dcgm: 'a' is taken by \[x\]"),
        (FINE + 'names.vllm = ["a"]\n' + FINE.replace("[x]", "[y]") + 'names.vllm = [" a "]\n',
         r"\[y\] names.vllm: ' a ' is taken by \[x\]"),
        (FINE.replace("[x]", "[X]"), r"\[X\] name"),
        ("x = 1\n", r"\[x\] name"),
        ("[x", "signals.toml: "),
    ],
)  # fmt: skip
def test_a_fault_names_the_signal_and_the_field(text: str, place: str) -> None:
    with pytest.raises(CatalogueError, match=place):
        parse_catalogue(text)


def test_one_name_may_serve_two_quantiles_and_two_conditions() -> None:
    histogram = FINE.replace('"gauge"', '"histogram"') + 'names.vllm = ["h"]\n'
    other = histogram.replace("[x]", "[y]") + "quantile = 0.5\n"
    conditional = FINE.replace("[x]", "[z]") + """names.vllm = ['h{a="1"}', "h * 2"]\n"""
    assert len(parse_catalogue(histogram + other + conditional)) == 3


def test_units_of_known_and_unknown() -> None:
    assert unit_of("gpu_power_usage_watts") == "watts"
    assert unit_of("nothing") == ""
