"""The child process that talks to NVML: one line in, one line of JSON out, until its input ends.

It is a process of its own because a sick driver can hold a call for ever, and only a process can be
killed out of it. An error of NVML as a whole ends it, since NVML recovers from a driver reload only in
a new process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from collectors.gpu.nvml_calls import NO_GPU, Note, ProgressNote, code_of
from collectors.gpu.nvml_reader import SLOW_SECONDS, NvmlReader
from collectors.gpu.versions import MODULE_VERSION

# nvml.h, NVML_INIT_FLAG_NO_GPUS: a machine whose last GPU is gone has a driver that says so.
_INIT_WITHOUT_GPUS = 1
GPUS_OF_THE_DRIVER = Path("/proc/driver/nvidia/gpus")
"""The kernel module lists its devices here; NVML itself lists those of the moment of its start."""


class Session:
    """NVML from its start to its end, started anew when the driver's list of devices changes.

    Args:
        nvml: the module ``pynvml``.
        note: where to write which call is under way.
        devices_folder: where the kernel module lists its devices.
        slow_seconds: how long slow fields are kept.
        module_version_file: where the kernel tells the version of the driver's module.
    """

    def __init__(
        self,
        nvml: Any,
        note: Note | None = None,
        *,
        devices_folder: Path = GPUS_OF_THE_DRIVER,
        slow_seconds: float = SLOW_SECONDS,
        module_version_file: Path = MODULE_VERSION,
    ) -> None:
        self._nvml = nvml
        self._note = note
        self._folder = devices_folder
        self._slow_seconds = slow_seconds
        self._module_version_file = module_version_file
        self._devices: frozenset[str] = frozenset()
        self._reader = self._start()

    def read(self, skip: Iterable[int]) -> dict[str, Any]:
        """Read every device that is there now, but for those to skip."""
        if self._listed() != self._devices:
            self._say("nvmlShutdown")
            self._nvml.nvmlShutdown()
            self._reader = self._start()
        return self._reader.read(frozenset(skip)) | {"listed": sorted(self._devices)}

    def _start(self) -> NvmlReader:
        self._devices = self._listed()
        self._say("nvmlInitWithFlags")
        self._nvml.nvmlInitWithFlags(_INIT_WITHOUT_GPUS)
        return NvmlReader(
            self._nvml,
            self._note,
            slow_seconds=self._slow_seconds,
            module_version_file=self._module_version_file,
        )

    def _listed(self) -> frozenset[str]:
        try:
            return frozenset(path.name for path in self._folder.iterdir())
        except OSError:  # not there in some containers: then devices are those of the start
            return frozenset()

    def _say(self, function: str) -> None:
        if self._note is not None:
            self._note.write(NO_GPU, function)


def serve(requests: Iterable[str], answers: TextIO, start: Callable[[], Session]) -> int:
    """Answer each request with a reading, or with ``{"error": ..., "code": ...}`` and end.

    Args:
        requests: lines of JSON: ``{"skip": [indices of devices not to touch]}``.
        answers: where the lines of JSON go.
        start: loads and initialises NVML.

    Returns:
        The exit status: 0 when the requests ended, 1 after an error.
    """
    session: Session | None = None
    for request in requests:
        try:
            session = session or start()
            answer = session.read(json.loads(request)["skip"])
        except Exception as error:  # noqa: BLE001  # the parent logs whatever went wrong here
            answer = {"error": f"{type(error).__name__}: {error}", "code": code_of(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "error" in answer:
            return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    """Serve standard input until it ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--progress", type=int, help="file descriptor of the progress note")
    parser.add_argument("--slow-seconds", type=float, default=SLOW_SECONDS)
    parser.add_argument("--devices-folder", type=Path, default=GPUS_OF_THE_DRIVER)
    parser.add_argument("--module-version-file", type=Path, default=MODULE_VERSION)
    options = parser.parse_args(arguments)
    note = None if options.progress is None else ProgressNote(options.progress)

    def start() -> Session:
        import pynvml  # noqa: PLC0415  # loading it belongs to what may fail and is reported

        return Session(
            pynvml,
            note,
            devices_folder=options.devices_folder,
            slow_seconds=options.slow_seconds,
            module_version_file=options.module_version_file,
        )

    # Whatever else writes to standard output, such as the driver's library, must not be an answer.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return serve(sys.stdin, answers, start)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
