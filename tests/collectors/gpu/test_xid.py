from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.gpu.xid import (
    RecommendedAction,
    Severity,
    XidReport,
    XidSource,
    burst_rules,
    describe_xid,
    driver_verdict,
    parse_kernel_line,
    parse_log_line,
    recommended_action,
    xid_catalogue,
)
from collectors.gpu.xid_ledger import XidLedger


def test_a_report_with_a_process() -> None:
    assert parse_log_line(
        "[103859.498995] NVRM: Xid (PCI:0002:00:00): 13, pid=2519562, name=python3, "
        "Graphics Exception: ChID 000c, Class 0000cbc0"
    ) == XidReport(
        source=XidSource.GPU,
        code=13,
        pci="0002:00:00",
        process_id=2519562,
        process_name="python3",
        message="Graphics Exception: ChID 000c, Class 0000cbc0",
    )


def test_an_unknown_process_is_none() -> None:
    report = parse_log_line(
        "NVRM: Xid (PCI:0000:05:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus."
    )
    assert report is not None
    assert (report.code, report.process_id, report.process_name) == (79, None, "")
    assert report.message == "GPU has fallen off the bus."


def test_a_switch_reports_an_sxid() -> None:
    report = parse_log_line(
        "nvidia-nvswitch0: SXid (PCI:0000:C3:00.0): 24007, Fatal, Link 28 sourcetrack timeout error"
    )
    assert report is not None
    assert (report.source, report.code, report.pci) == (XidSource.NVSWITCH, 24007, "0000:c3:00.0")


@pytest.mark.parametrize(
    "line",
    [
        "",
        "NVRM: Xid (invalid): some error",
        "NVRM: Xid (PCI:0000:66:00): abc, pid=2280636",
        "NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.",
        "usb 1-1: new high-speed USB device number 79",
    ],
)
def test_other_lines_report_nothing(line: str) -> None:
    assert parse_log_line(line) is None


def test_every_collected_log_line(facts: Path) -> None:
    with (facts / "xid_log_lines.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) > 200
    for row in rows:
        report = parse_log_line(row["line"])
        assert str(report.code if report else "") == row["xid"], row["line"]


@given(st.text())
def test_any_text_is_safe(text: str) -> None:
    assert parse_log_line(text) is None
    parse_log_line(f"NVRM: Xid (PCI:0000:05:00): 79{text}")


def test_the_catalogue_agrees_with_the_table_of_facts(facts: Path) -> None:
    with (facts / "xid_catalogue.csv").open(encoding="utf-8", newline="") as file:
        rows = {int(row["xid"]): row for row in csv.DictReader(file)}
    assert set(rows) == set(xid_catalogue())
    for code, known in xid_catalogue().items():
        assert known.severity == rows[code]["severity"]
        assert known.action == rows[code]["recommended_action"]


def test_codes_that_all_sources_call_fatal() -> None:
    for code in (48, 79, 119, 120):
        assert describe_xid(code).severity in {Severity.CRITICAL, Severity.FATAL}
    assert describe_xid(31).action is RecommendedAction.RESTART_APP
    assert describe_xid(99999).action is RecommendedAction.CONTACT_SUPPORT


@pytest.mark.parametrize(
    ("line", "action"),
    [
        (
            "154, GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset Required)",
            "reset_gpu",
        ),
        ("154, GPU recovery action changed from 0x4 (Drain and Reset) to 0x0 (None)", "ignore"),
        (
            "154, GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required",
            "reboot_node",
        ),
        ("154, GPU recovery action changed from 0x0 (None) to 0x9 (Sing)", "contact_support"),
        ("154 (", "reset_gpu"),
        ("31, pid=1", "restart_app"),
    ],
)
def test_the_drivers_own_verdict_beats_the_catalogue(line: str, action: str) -> None:
    report = parse_log_line(f"NVRM: Xid (PCI:0000:01:00): {line}")
    assert report is not None
    assert recommended_action(report) == action


def _matrix(facts: Path) -> dict[int, dict[str, str]]:
    with (facts / "xid_source_matrix.csv").open(encoding="utf-8", newline="") as file:
        return {int(row["xid"]): row for row in csv.DictReader(file)}


def test_the_official_action_is_followed_wherever_there_is_one(facts: Path) -> None:
    official = {
        "RESTART_APP": RecommendedAction.RESTART_APP,
        "RESET_GPU": RecommendedAction.RESET_GPU,
        "RESTART_BM": RecommendedAction.REBOOT_NODE,
        "RESTART_VM": RecommendedAction.REBOOT_NODE,
        "CONTACT_SUPPORT": RecommendedAction.CONTACT_SUPPORT,
    }
    told = {code: official.get(row["nvidia_immediate"]) for code, row in _matrix(facts).items()}
    assert sum(action is not None for action in told.values()) > 120
    wrong = {
        code: describe_xid(code).action
        for code, action in told.items()
        if action is not None and describe_xid(code).action is not action
    }
    assert wrong == {}


def test_what_two_sources_call_fatal_is_serious_here(facts: Path) -> None:
    """63 is a row that was remapped as it should: all that public lists agree on against NVIDIA."""
    for code, row in _matrix(facts).items():
        sources = [row["eks_fatal"] == "1", row["gke_node_condition"] == "1",
                   row["azure_nhc_fail"] == "1", row["dcgm_health_result"] == "FAIL"]  # fmt: skip
        if sum(sources) >= 2 and code != 63:
            assert describe_xid(code).severity in {Severity.CRITICAL, Severity.FATAL}, code


def test_what_every_device_plugin_ignores_is_never_fatal(facts: Path) -> None:
    ignored = [c for c, row in _matrix(facts).items() if row["k8s_device_plugin_ignores"] == "1"]
    assert {13, 31, 43, 45} <= set(ignored)
    assert all(describe_xid(code).severity is not Severity.FATAL for code in ignored)


def test_codes_that_a_sick_gpu_repeats_are_merged_for_hours(facts: Path) -> None:
    sticky = [c for c, row in _matrix(facts).items() if row["nvsentinel_sticky"] == "1"]
    assert sticky
    assert all(burst_rules()[code].burst_seconds >= 3 * 3600 for code in sticky)


def test_every_code_of_a_collected_line_reaches_the_signals(facts: Path) -> None:
    """From the line as the driver wrote it to what stands and what is asked for."""
    with (facts / "xid_log_lines.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    seen = 0
    for row in rows:
        report = parse_kernel_line(row["line"])
        if report is None:
            continue
        ledger = XidLedger("box")
        ledger.from_kernel(report, 1000.0)
        (device,) = ledger.devices(1001.0)
        verdict = driver_verdict(report)
        if verdict is RecommendedAction.IGNORE:
            assert device.standing is None, row["line"]
            continue
        assert device.standing is not None, row["line"]
        assert device.standing.code == report.code
        assert device.advice.action is recommended_action(report) or device.is_switch, row["line"]
        if verdict is not None:
            assert device.advice.source == "driver"
        seen += 1
    assert seen > 200
