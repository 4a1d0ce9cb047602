"""Whether the driver's kernel module and the library on disk are of one version.

An upgrade replaces the library under a running module. What has the old library loaded goes on; every
process that starts from then on fails. That is worth knowing before the next restart.
"""

from __future__ import annotations

import re
from pathlib import Path

MODULE_VERSION = Path("/sys/module/nvidia/version")
_LOADED_FILES = Path("/proc/self/maps")
_MAPPED = re.compile(r" (/\S*)/libnvidia-ml\.so\.\S*(?: \(deleted\))?$", re.MULTILINE)
_NAME = "libnvidia-ml.so.1"
_VERSIONED = re.compile(r"libnvidia-ml\.so\.(\d+\.\d+(?:\.\d+)?)")


def module_version(path: Path = MODULE_VERSION) -> str:
    """Return the version of the loaded kernel module, or an empty string where it is not told."""
    try:
        return path.read_text("ascii", errors="replace").strip()[:40]
    except OSError:
        return ""


def library_version_on_disk(loaded_files: Path = _LOADED_FILES) -> str:
    """Return the version of the NVML library that the next process would load.

    It is looked for in the folder that this process has loaded it from; an empty string where the file
    has no version in its name.
    """
    try:
        mapped = _MAPPED.search(loaded_files.read_text("utf-8", errors="replace"))
        if mapped is None:
            return ""
        found = _VERSIONED.fullmatch((Path(mapped[1]) / _NAME).resolve().name)
    except OSError:
        return ""
    return "" if found is None else found[1]
