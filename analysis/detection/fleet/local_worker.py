"""What a worker process of a local cluster does at its start; Dask calls :func:`dask_setup` there."""

from __future__ import annotations

import logging
import signal
import sys

import structlog


def dask_setup(_worker: object) -> None:
    """Leave Ctrl-C to the command, and standard output to its data.

    A terminal sends Ctrl-C to all processes of the command; whoever started the workers ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
