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
