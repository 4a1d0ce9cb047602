from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collectors.gpu.xid import (
    RecommendedAction,
    Severity,
    burst_rules,
    override_xid,
    parse_kernel_line,
    pci_address,
    xid_catalogue,
)
from collectors.gpu.xid_ledger import DeviceXids, WatchedGpu, XidLedger

GPU = "host/box/gpu/0"
NOW = 1_000_000.0


def _ledger(**options: object) -> XidLedger:
    return XidLedger("box", **options)  # type: ignore[arg-type]


def _learn(ledger: XidLedger, now: float = NOW, recovery: float | None = None) -> None:
    ledger.device(WatchedGpu(GPU, "0000:18:00", "GPU-a", True, recovery), now)


def _kernel(ledger: XidLedger, text: str, now: float = NOW, pci: str = "PCI:0000:18:00") -> None:
    report = parse_kernel_line(f"NVRM: Xid ({pci}): {text}")
    assert report is not None
    ledger.from_kernel(report, now)


def _only(ledger: XidLedger, now: float = NOW) -> DeviceXids:
    (device,) = ledger.devices(now)
    return device


def _verdict(number: int, words: str) -> str:
    return f"154, GPU recovery action changed from 0x9 (X) to 0x{number:x} ({words})"


def test_both_sources_report_one_event() -> None:
    ledger = _ledger()
    _learn(ledger)
    _kernel(ledger, "31, pid=7, name=python3, MMU Fault", NOW)
    ledger.from_nvml("GPU-a", "0000:18:00", 31, NOW + 1)
    device = _only(ledger, NOW + 2)
    event = device.standing
    assert event is not None
    assert (device.name, device.total, event.code, event.reports) == (GPU, 1, 31, 2)
    assert event.seen_by == {"kernel", "nvml"}
    assert (event.process_id, event.process_name, event.message) == (7, "python3", "MMU Fault")
    assert len(ledger.take_fresh()) == 1
    assert ledger.take_fresh() == []


def test_nvml_first_and_the_kernel_with_an_older_time() -> None:
    ledger = _ledger()
    ledger.from_nvml("GPU-a", "0000:18:00", 94, NOW)
    _kernel(ledger, "94, pid=1, name=a, Contained", NOW - 3)
    assert _only(ledger).total == 1


@pytest.mark.parametrize(
    "pci", ["PCI:0000:18:00", "PCI:0000:18:00.0", "0000:18:00", "PCI:00000000:18:00.0"]
)
def test_addresses_in_any_form_are_one_device(pci: str) -> None:
    ledger = _ledger()
    _learn(ledger)
    _kernel(ledger, "79", pci=pci)
    assert _only(ledger).name == GPU


def test_the_same_code_later_and_on_another_gpu_is_another_event() -> None:
    ledger = _ledger()
    _kernel(ledger, "94", NOW)
    _kernel(ledger, "94", NOW + 11)
    _kernel(ledger, "94", NOW, pci="PCI:0000:19:00")
    assert sorted(device.total for device in ledger.devices(NOW + 12)) == [1, 2]


def test_a_code_stands_for_a_while_and_the_worst_is_shown() -> None:
    ledger = _ledger(hold_seconds=30)
    _learn(ledger)
    assert _only(ledger).standing is None
    _kernel(ledger, "79", NOW)
    _kernel(ledger, "45", NOW + 1)  # cleanup that follows must not hide it
    standing = _only(ledger, NOW + 2).standing
    assert standing is not None
    assert standing.code == 79
    late = _only(ledger, NOW + 30.5).standing
    assert late is not None
    assert late.code == 45
    assert _only(ledger, NOW + 40).standing is None


def test_history_does_not_stand_but_counts() -> None:
    ledger = _ledger()
    _learn(ledger)
    _kernel(ledger, "79", NOW - 5000)
    device = _only(ledger)
    assert (device.standing, device.total, device.advice.source) == (None, 1, "none")


def test_the_catalogue_advises_until_the_advice_is_old() -> None:
    ledger = _ledger(advice_seconds=600)
    _learn(ledger)
    _kernel(ledger, "31", NOW)
    _kernel(ledger, "48", NOW + 1)
    advice = _only(ledger, NOW + 60).advice
    assert (advice.action, advice.source, advice.code) == ("reset_gpu", "catalogue", 48)
    assert _only(ledger, NOW + 700).advice.source == "none"


def test_the_drivers_verdict_in_the_log_beats_the_catalogue() -> None:
    ledger = _ledger()
    _kernel(ledger, "48", NOW)
    _kernel(ledger, _verdict(2, "Node Reboot Required"), NOW + 1)
    advice = _only(ledger, NOW + 2).advice
    assert (advice.action, advice.source) == ("reboot_node", "driver")
    # It stands until the driver takes it back, however long that takes; what was before is void then.
    assert _only(ledger, NOW + 100_000).advice.action == "reboot_node"
    _kernel(ledger, _verdict(0, "None"), NOW + 100_001)
    assert ledger.devices(NOW + 100_002)[0].advice.source == "none"


def test_what_was_before_the_driver_took_its_request_back_is_void() -> None:
    ledger = _ledger()
    _learn(ledger)
    _kernel(ledger, "48", NOW)
    _kernel(ledger, _verdict(1, "GPU Reset Required"), NOW + 1)
    _kernel(ledger, _verdict(0, "None"), NOW + 5)
    assert _only(ledger, NOW + 6).advice.source == "none"
    _kernel(ledger, "31", NOW + 20)
    assert _only(ledger, NOW + 21).advice.code == 31


def test_the_drivers_field_beats_its_line_in_the_log() -> None:
    ledger = _ledger()
    _kernel(ledger, _verdict(2, "Node Reboot Required"), NOW)
    _learn(ledger, NOW + 1, recovery=1.0)
    assert _only(ledger, NOW + 2).advice.action == "reset_gpu"
    _learn(ledger, NOW + 3, recovery=0.0)
    assert _only(ledger, NOW + 4).advice.source == "none"
    # What NVML said long ago says nothing of a GPU that it has lost since.
    assert _only(ledger, NOW + 60).advice.action == "reboot_node"


def test_a_driver_that_asks_for_nothing_leaves_the_application_to_the_catalogue() -> None:
    ledger = _ledger()
    _learn(ledger, recovery=0.0)
    _kernel(ledger, "31", NOW)
    assert _only(ledger).advice.action == "restart_app"


def test_a_verdict_that_was_cut_off_falls_back_to_the_catalogue() -> None:
    ledger = _ledger()
    _kernel(ledger, "154, GPU recovery action", NOW)
    advice = _only(ledger).advice
    assert (advice.action, advice.source, advice.code) == ("reset_gpu", "catalogue", 154)


@pytest.mark.parametrize(
    ("number", "action"),
    [
        (1, "reset_gpu"),
        (2, "reboot_node"),
        (4, "reset_gpu"),
        (7, "reboot_node"),
        (42, "contact_support"),
    ],
)
def test_every_recovery_action_is_understood(number: int, action: str) -> None:
    ledger = _ledger()
    _learn(ledger, recovery=float(number))
    assert _only(ledger).advice.action == action


def test_two_bursts_of_a_page_fault_in_a_day_are_no_application_any_more() -> None:
    ledger = _ledger()
    for second in range(0, 170, 80):
        _kernel(ledger, "31", NOW + second)
    device = _only(ledger, NOW + 170)
    assert device.total == 1
    assert (device.advice.action, device.advice.source) == ("restart_app", "catalogue")
    _kernel(ledger, "31", NOW + 3600)
    device = _only(ledger, NOW + 3601)
    assert device.total == 2
    assert (device.advice.action, device.advice.source) == ("contact_support", "burst")
    assert device.standing is not None
    assert device.standing.severity is Severity.CRITICAL


def test_bursts_far_apart_and_on_two_gpus_escalate_nothing() -> None:
    ledger = _ledger()
    _kernel(ledger, "31", NOW)
    _kernel(ledger, "31", NOW + 90_000)
    _kernel(ledger, "31", NOW + 90_000, pci="PCI:0000:19:00")
    assert {device.advice.action for device in ledger.devices(NOW + 90_001)} == {"restart_app"}


def test_a_thousand_cleanups_are_one_event_that_asks_for_nothing() -> None:
    ledger = _ledger()
    for number in range(1000):
        _kernel(ledger, f"45, pid={number}", NOW + number / 10)
    device = _only(ledger, NOW + 101)
    assert (device.total, device.advice.source) == (1, "none")
    assert len(ledger.take_fresh()) == 1


def test_a_fleets_override_beats_catalogue_and_bursts() -> None:
    mine = override_xid(31, action=RecommendedAction.RESET_GPU, note="our driver")
    assert mine.severity is xid_catalogue()[31].severity
    ledger = _ledger(overrides={31: mine})
    for time in (NOW, NOW + 3600):
        _kernel(ledger, "31", time)
    advice = _only(ledger, NOW + 3601).advice
    assert (advice.action, advice.source, advice.note) == ("reset_gpu", "catalogue", "our driver")


def test_a_code_that_nobody_knows_can_be_given_a_meaning() -> None:
    ledger = _ledger(overrides={4242: override_xid(4242, severity=Severity.FATAL)})
    _kernel(ledger, "4242")
    standing = _only(ledger).standing
    assert standing is not None
    assert standing.severity is Severity.FATAL


def test_a_switch_is_a_device_of_its_own() -> None:
    ledger = _ledger()
    for words in ("24007, Fatal, Link 28", "10003, Non-fatal, Link 1"):
        report = parse_kernel_line(f"nvidia-nvswitch0: SXid (PCI:0000:c3:00.0): {words}")
        assert report is not None
        ledger.from_kernel(report, NOW)
    device = _only(ledger)
    assert (device.name, device.is_switch) == ("host/box/nvswitch/0000_c3_00", True)
    assert device.standing is not None
    assert (device.standing.code, device.standing.severity) == (24007, Severity.CRITICAL)


def test_a_line_without_a_code_is_the_code_that_it_stands_for() -> None:
    for line in (
        "NVRM: GPU 0000:18:00.0: GPU has fallen off the bus.",
        "NVRM: The NVIDIA GPU 0000:18:00.0 fallen off the bus and is not responding to commands.",
        "NVRM: GPU 18:00.0: GPU has fallen off the bus.",
    ):
        report = parse_kernel_line(line)
        assert report is not None
        assert (report.code, pci_address(report.pci)) == (79, "0000:18:00")
        ledger = _ledger()
        ledger.from_kernel(report, NOW)
        _kernel(ledger, "79, GPU has fallen off the bus.", NOW)
        assert _only(ledger).total == 1


@pytest.mark.parametrize("text", ["", "x", "1:2:3:4", "zz:00:00", "-1:00:00"])
def test_what_is_no_address(text: str) -> None:
    assert pci_address(text) == ""


def test_a_gpu_that_nvml_does_not_know_has_its_address_for_a_name() -> None:
    ledger = _ledger()
    _kernel(ledger, "79", NOW)
    assert _only(ledger).name == "host/box/gpu/0000_18_00"
    _learn(ledger, NOW + 1)
    assert _only(ledger, NOW + 2).name == GPU
    ledger = _ledger()
    _kernel(ledger, "79", NOW - 50_000)
    assert ledger.devices(NOW) == []  # long ago, and of a GPU that may not be there any more


def test_made_up_addresses_and_codes_do_not_fill_the_memory() -> None:
    ledger = _ledger()
    _learn(ledger)
    for number in range(3000):
        _kernel(ledger, str(number % 999), NOW, pci=f"PCI:{number:04x}:01:00")
        _kernel(ledger, str(1 + number), NOW)
    assert len(ledger._devices) <= 128
    assert all(len(device.events) <= 64 for device in ledger._devices.values())
    assert all(len(device.bursts) <= 64 for device in ledger._devices.values())
    assert any(device.name == GPU for device in ledger.devices(NOW))
    assert len(ledger.take_fresh()) <= 256


@given(
    st.lists(
        st.tuples(st.sampled_from([13, 31, 45, 48, 79, 94]), st.floats(0, 200), st.booleans()),
        max_size=60,
    )
)
def test_reports_in_any_order_never_count_more_events_than_reports(
    reports: list[tuple[int, float, bool]],
) -> None:
    ledger = _ledger()
    for code, after, from_nvml in reports:
        if from_nvml:
            ledger.from_nvml("GPU-a", "0000:18:00", code, NOW + after)
        else:
            _kernel(ledger, str(code), NOW + after)
    for device in ledger.devices(NOW + 200):
        assert len({code for code, _, _ in reports}) <= device.total <= len(reports)


def test_the_burst_rules_are_of_codes_that_are_known() -> None:
    for code, rule in burst_rules().items():
        assert code in xid_catalogue()
        assert rule.count == 0 or rule.count > 1
        assert rule.within_seconds > rule.burst_seconds
        assert rule.note


def test_a_gpu_that_moves_to_another_slot_is_one_entity() -> None:
    ledger = _ledger()
    _learn(ledger)
    _kernel(ledger, "79", NOW)
    ledger.device(WatchedGpu(GPU, "0000:99:00", "GPU-a", True, None), NOW + 1)
    names = [device.name for device in ledger.devices(NOW + 2)]
    assert sorted(names) == [GPU, "host/box/gpu/0000_18_00"]


def test_a_gpu_that_repeats_itself_is_reset_before_support_is_called() -> None:
    ledger = _ledger()
    _learn(ledger)
    for minute in range(30):
        _kernel(ledger, "119", NOW + 70 * minute)
    device = _only(ledger, NOW + 70 * 29 + 1)
    assert (device.total, device.advice.action, device.advice.source) == (
        1,
        "reset_gpu",
        "catalogue",
    )


def test_resets_that_do_not_cure_end_with_support() -> None:
    ledger = _ledger()
    _learn(ledger)
    for hour in range(5):
        _kernel(ledger, "119", NOW + 3600 * hour)
        assert _only(ledger, NOW + 3600 * hour + 1).advice.source == (
            "burst" if hour == 4 else "catalogue"
        )
        ledger.was_reset("GPU-a", NOW + 3600 * hour + 60)
        assert _only(ledger, NOW + 3600 * hour + 61).advice.source == "none"
    assert _only(ledger, NOW + 4 * 3600 + 61).total == 5


def test_a_device_that_leaves_the_bus_again_and_again_is_no_matter_of_reboots() -> None:
    ledger = _ledger()
    for day in range(3):
        _kernel(ledger, "79", NOW + 86400 * day)
        advice = ledger.devices(NOW + 86400 * day + 1)[0].advice
        assert advice.action == ("contact_support" if day == 2 else "reboot_node")


def test_a_driver_that_takes_its_request_back_leaves_no_code_standing() -> None:
    ledger = _ledger()
    _learn(ledger)
    _kernel(ledger, _verdict(1, "GPU Reset Required"), NOW)
    assert _only(ledger, NOW + 1).standing is not None
    _kernel(ledger, _verdict(0, "None"), NOW + 100)
    device = _only(ledger, NOW + 101)
    assert (device.standing, device.advice.source) == (None, "none")
