"""XID codes: what the NVIDIA driver reports about its GPUs in the kernel log, and what they ask for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import NamedTuple


class Severity(StrEnum):
    """How bad a code is, from the mildest."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"
    FATAL = "fatal"


class RecommendedAction(StrEnum):
    """The mildest action that is known to help."""

    IGNORE = "ignore"
    CHECK_APP = "check_app"
    RESTART_APP = "restart_app"
    RESET_GPU = "reset_gpu"
    REBOOT_NODE = "reboot_node"
    CONTACT_SUPPORT = "contact_support"


@dataclass(frozen=True, slots=True)
class Xid:
    """One code of the catalogue."""

    code: int
    name: str
    severity: Severity
    action: RecommendedAction
    note: str = ""
    """What else is worth knowing, for a person."""


@dataclass(frozen=True, slots=True)
class BurstRule:
    """What a code means when it comes again on the same GPU; see ``xid_bursts.toml``."""

    codes: tuple[int, ...]
    burst_seconds: float
    count: int
    within_seconds: float
    severity: Severity
    action: RecommendedAction
    note: str


class XidSource(StrEnum):
    """Who reported a code."""

    GPU = "xid"
    NVSWITCH = "sxid"


class XidReport(NamedTuple):
    """A code that the kernel log reports about one device."""

    source: XidSource
    code: int
    pci: str
    """The PCI address as logged, without the prefix ``PCI:``; lower case."""
    process_id: int | None
    process_name: str
    message: str
    """The rest of the line. It comes from a driver and a process name: never render it as markup."""


_HEAD = re.compile(
    r"(?:NVRM: (?P<gpu>Xid)|nvidia-nvswitch\d+: (?P<switch>SXid)) "
    r"\((?:PCI:)?(?P<pci>[0-9a-fA-F]{1,8}:[0-9a-fA-F]{1,2}:[0-9a-fA-F]{1,2}(?:\.[0-9a-fA-F])?)\): "
    r"(?P<code>\d{1,6})(?!\w)(?P<rest>.*)",
    re.DOTALL,
)
# `pid='<unknown>'` and `name=<unknown>` are what the driver writes when it does not know.
_PROCESS = re.compile(r"^, ?pid=(?P<pid>[^,\s]+)(?:, name=(?P<name>[^,]*))?")


def parse_log_line(line: str) -> XidReport | None:
    """Read an XID or SXID report from a line of the kernel log.

    Returns:
        The report, or None when the line reports no code. Lines that only say that a GPU fell off the
        bus carry no code; the driver logs XID 79 beside them.
    """
    match = _HEAD.search(line[:4096])
    if match is None:
        return None
    rest = match["rest"]
    process = _PROCESS.match(rest)
    process_id, process_name = None, ""
    if process is not None:
        rest = rest[process.end() :]
        process_id = int(process["pid"]) if process["pid"].isdecimal() else None
        name = process["name"] or ""
        process_name = "" if name == "<unknown>" else name
    return XidReport(
        source=XidSource.GPU if match["gpu"] else XidSource.NVSWITCH,
        code=int(match["code"]),
        pci=match["pci"].lower(),
        process_id=process_id,
        process_name=process_name,
        message=rest.lstrip(", ").strip(),
    )


# What the driver says of a device that is off the bus, in lines without a code.
_FALLEN = re.compile(
    r"NVRM: (?:The NVIDIA )?GPU (?P<pci>(?:[0-9a-fA-F]{1,8}:)?[0-9a-fA-F]{1,2}:[0-9a-fA-F]{1,2}"
    r"(?:\.[0-9a-fA-F])?):? (?:GPU )?(?:has )?fallen off the bus"
)
FALLEN_OFF_THE_BUS = 79
"""The code that these lines stand for."""


def parse_kernel_line(line: str) -> XidReport | None:
    """Read a report with a code, or one that a GPU fell off the bus, which is taken for code 79.

    Returns:
        The report, or None for any other line.
    """
    report = parse_log_line(line)
    if report is not None:
        return report
    match = _FALLEN.search(line[:4096])
    if match is None:
        return None
    pci = match["pci"].lower()
    return XidReport(XidSource.GPU, FALLEN_OFF_THE_BUS, pci, None, "", "fallen off the bus")


def pci_address(text: str) -> str:
    """Bring a PCI address into one form, ``0000:18:00``: domain, bus and device in hexadecimal.

    The driver writes it with and without function and domain, NVML with a domain of eight digits.

    Returns:
        An empty string for what is no address.
    """
    parts = text.split(".", maxsplit=1)[0].split(":")
    try:
        numbers = [int(part, 16) for part in parts]
    except ValueError:
        return ""
    if len(numbers) == 2:
        numbers.insert(0, 0)
    if len(numbers) != 3 or min(numbers) < 0:
        return ""
    return "{:04x}:{:02x}:{:02x}".format(*numbers)


RECOVERY_ACTION_CHANGED = 154
"""The code by which drivers since R565 tell their own verdict on a GPU; it beats the catalogue."""

# The driver's words for it (nvml.h, nvmlDeviceGpuRecoveryAction_t).
_RECOVERY_WORDS: Mapping[str, RecommendedAction] = MappingProxyType(
    {
        "none": RecommendedAction.IGNORE,
        "gpu reset required": RecommendedAction.RESET_GPU,
        "drain and reset": RecommendedAction.RESET_GPU,
        "node reboot required": RecommendedAction.REBOOT_NODE,
        "drain p2p": RecommendedAction.CONTACT_SUPPORT,
    }
)
_RECOVERY_NUMBERS: Mapping[int, RecommendedAction] = MappingProxyType(
    {
        0: RecommendedAction.IGNORE,
        1: RecommendedAction.RESET_GPU,
        2: RecommendedAction.REBOOT_NODE,
        3: RecommendedAction.CONTACT_SUPPORT,  # drain P2P
        4: RecommendedAction.RESET_GPU,  # drain and reset
        5: RecommendedAction.CONTACT_SUPPORT,  # recover the IMEX domain
        6: RecommendedAction.RESET_GPU,  # reset through the bus
        7: RecommendedAction.REBOOT_NODE,
    }
)
RESET_ACTION = 1.0
"""The recovery action "GPU reset" as NVML's field tells it."""
_RECOVERY = re.compile(r"changed from .*? to 0x[0-9a-fA-F]+ \((?P<words>[^()]*)")


def recovery_action(number: int) -> RecommendedAction:
    """Return what NVML's field for the recovery action asks for (DCGM's field 1523).

    A number that is not known is a case for support.
    """
    return _RECOVERY_NUMBERS.get(number, RecommendedAction.CONTACT_SUPPORT)


def driver_verdict(report: XidReport) -> RecommendedAction | None:
    """Return the driver's own verdict where a report gives one, in words, else None.

    A verdict in words that are not known is a case for support.
    """
    if report.source is not XidSource.GPU or report.code != RECOVERY_ACTION_CHANGED:
        return None
    match = _RECOVERY.search(report.message)
    if match is None:
        return None
    return _RECOVERY_WORDS.get(match["words"].strip().lower(), RecommendedAction.CONTACT_SUPPORT)


def recommended_action(report: XidReport) -> RecommendedAction:
    """Return what a report asks for: the driver's own verdict if it gives one, else the catalogue's."""
    verdict = driver_verdict(report)
    if verdict is not None:
        return verdict
    if report.source is XidSource.NVSWITCH:  # the catalogue is of GPU codes
        return RecommendedAction.CONTACT_SUPPORT
    return describe_xid(report.code).action


@cache
def xid_catalogue() -> Mapping[int, Xid]:
    """Return the bundled catalogue by code, read once."""
    text = resources.files("collectors.gpu").joinpath("xid.toml").read_text("utf-8")
    return MappingProxyType(
        {
            int(code): Xid(
                code=int(code),
                name=row["name"],
                severity=Severity(row["severity"]),
                action=RecommendedAction(row["action"]),
                note=row.get("note", ""),
            )
            for code, row in tomllib.loads(text).items()
        }
    )


def describe_xid(code: int) -> Xid:
    """Return what is known of a code; one that is not in the catalogue is a warning for support."""
    known = xid_catalogue().get(code)
    if known is not None:
        return known
    return Xid(code, f"XID {code}", Severity.WARNING, RecommendedAction.CONTACT_SUPPORT)


@cache
def burst_rules() -> Mapping[int, BurstRule]:
    """Return the bundled burst rules by code, read once.

    Raises:
        ValueError: when a code has two rules, or a rule is not complete.
    """
    text = resources.files("collectors.gpu").joinpath("xid_bursts.toml").read_text("utf-8")
    rules: dict[int, BurstRule] = {}
    for row in tomllib.loads(text)["rule"]:
        fields = row | {
            "codes": tuple(row["codes"]),
            "severity": Severity(row["severity"]),
            "action": RecommendedAction(row["action"]),
        }
        rule = BurstRule(**fields)
        for code in rule.codes:
            if code in rules:
                raise ValueError(f"xid_bursts.toml: code {code} has two rules")
            rules[code] = rule
    return MappingProxyType(rules)


def override_xid(
    code: int,
    *,
    severity: Severity | None = None,
    action: RecommendedAction | None = None,
    note: str | None = None,
) -> Xid:
    """Return what a code means with some of it replaced; None keeps what the catalogue says."""
    known = describe_xid(code)
    return replace(
        known,
        severity=severity or known.severity,
        action=action or known.action,
        note=known.note if note is None else note,
    )
