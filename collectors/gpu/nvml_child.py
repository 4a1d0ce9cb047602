"""The child process that talks to NVML: one line in, one line of JSON out, until its input ends.

It is a process of its own because a sick driver can hold a call for ever, and only a process can be
killed out of it. An error of NVML as a whole ends it, since NVML recovers from a driver reload only in
a new process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any, TextIO

from collectors.gpu.nvml_reader import NvmlReader


def serve(requests: Iterable[str], answers: TextIO, load: Callable[[], Any]) -> int:
    """Answer each request with ``{"devices": [...]}``, or with ``{"error": ...}`` and end.

    Args:
        requests: one line a request; what it says does not matter.
        answers: where the lines of JSON go.
        load: imports ``pynvml`` or something of its shape.

    Returns:
        The exit status: 0 when the requests ended, 1 after an error.
    """
    reader: NvmlReader | None = None
    for _ in requests:
        try:
            if reader is None:
                nvml = load()
                nvml.nvmlInit()
                reader = NvmlReader(nvml)
            answer: dict[str, Any] = {"devices": reader.read()}
        except Exception as error:  # noqa: BLE001  # the parent logs whatever went wrong here
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "error" in answer:
            return 1
    return 0


def _pynvml() -> Any:
    import pynvml  # noqa: PLC0415  # loading it belongs to what may fail and is reported

    return pynvml


if __name__ == "__main__":
    sys.exit(serve(sys.stdin, sys.stdout, _pynvml))
