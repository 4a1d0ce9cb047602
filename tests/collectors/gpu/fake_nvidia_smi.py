"""An ``nvidia-smi`` that knows one thing: to reset a GPU of the fake NVML, unless somebody has it open.

It refuses as NVIDIA's does, in its words. Called as ``fake_nvidia_smi.py -i UUID --gpu-reset``, with the
environment of the fake.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.collectors.gpu.fake_nvml import reset_gpu


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def users_of(device: Path) -> list[int]:
    """Return the processes that have a file open, but for this one and the test that started it."""
    found = []
    mine = {os.getpid(), os.getppid()}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal() or int(process.name) in mine:
            continue
        try:
            opened = any(link.resolve() == device for link in (process / "fd").iterdir())
        except OSError:  # it ended, or is another user's
            continue
        if opened:
            found.append(int(process.name))
    return found


def main(arguments: list[str]) -> int:
    """Reset, or say why not."""
    if len(arguments) != 3 or arguments[0] != "-i" or arguments[2] != "--gpu-reset":
        _say(f"Invalid combination of input arguments: {arguments}")
        return 2
    device = Path(os.environ["GALEN_FAKE_NVML"]).resolve()
    if users_of(device):
        _say(
            "The following GPUs could not be reset:\n"
            f"  GPU {arguments[1]}: In use by another client\n\n"
            "1 device is currently being used by one or more other processes (e.g., Fabric Manager, "
            "CUDA application, graphics application such as an X server, or a monitoring application "
            "such as another instance of nvidia-smi). Please first kill all processes using this device "
            "and all compute applications running in the system."
        )
        return 255
    if not reset_gpu(device, arguments[1]):
        _say("No devices were found")
        return 6
    _say(f"GPU {arguments[1]} was successfully reset.\nAll done.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
