"""``python -m inference.worker``: started by the supervisor with three inherited descriptors."""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import sys
import threading

from inference.worker.heartbeat import SIZE_BYTES
from inference.worker.process import EXIT_ORPHANED, Worker


def main() -> int:
    """Run a worker on the descriptors of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connection", type=int, required=True, help="Unix stream socket")
    parser.add_argument("--lifeline", type=int, required=True, help="ends when the front dies")
    parser.add_argument("--heartbeat", type=int, required=True, help="file of the heartbeat")
    parser.add_argument("--nice", type=int, default=0, help="added to the niceness")
    options = parser.parse_args()
    os.nice(options.nice)
    lifeline = socket.socket(fileno=options.lifeline)
    threading.Thread(target=_exit_with_front, args=(lifeline,), daemon=True).start()
    worker = Worker(
        socket.socket(fileno=options.connection), mmap.mmap(options.heartbeat, SIZE_BYTES)
    )
    worker.install_signals()
    return worker.run()


def _exit_with_front(lifeline: socket.socket) -> None:
    """End this process when the front is gone, even if the step loop hangs."""
    lifeline.recv(1)
    os._exit(EXIT_ORPHANED)


if __name__ == "__main__":
    sys.exit(main())
