"""XID codes: what the NVIDIA driver reports about its GPUs in the kernel log, and what they ask for."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
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
_RECOVERY = re.compile(r"changed from .*? to 0x[0-9a-fA-F]+ \((?P<words>[^()]*)")


def recommended_action(report: XidReport) -> RecommendedAction:
    """Return what a report asks for: the driver's own verdict where it gives one, else the catalogue's.

    A verdict in words that are not known is a case for support.
    """
    if report.source is XidSource.GPU and report.code == RECOVERY_ACTION_CHANGED:
        match = _RECOVERY.search(report.message)
        if match is not None:
            words = match["words"].strip().lower()
            return _RECOVERY_WORDS.get(words, RecommendedAction.CONTACT_SUPPORT)
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
