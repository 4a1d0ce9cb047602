"""A fleet to scrape: one server process that plays many exporters with changing values.

``python -m benchmarks.fleet.targets --count 1000 --file targets.json`` prints its port and serves until
it is ended. Half of the targets are vLLM servers and half dcgm-exporters, made from real scrapes: lines
are repeated with other engines and GPUs until there are as many samples as asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import uvloop

from collectors.exposition import parse_exposition

EXPOSITIONS = Path(
    os.environ.get("GALEN_EXPOSITIONS", Path(__file__).parents[3] / "shared" / "expositions")
)
_SOURCES = {
    "vllm": ("vllm_v1_qwen2.5-0.5b_kops.txt", re.compile(r'engine="0"'), 'engine="{number}"'),
    "dcgm": (
        "dcgm_exporter_L4_kops.txt",
        re.compile(r'gpu="0",UUID="[^"]*"'),
        'gpu="{number}",UUID="GPU-@node@-{number}"',
    ),
}
_NODE = "@node@"
_HOSTNAME = re.compile(r'Hostname="[^"]*"')
_COUNTS = ("_total", "_count", "_sum", "_bucket", "_created")


class Page:
    """One exporter's text with a place for every value.

    Args:
        kind: ``vllm`` or ``dcgm``.
        samples: how many lines with a value.
    """

    def __init__(self, kind: str, samples: int) -> None:
        name, found, repeated = _SOURCES[kind]
        lines = (EXPOSITIONS / name).read_text("utf-8").splitlines()
        comments = [line for line in lines if line.startswith("#")]
        series = [line for line in lines if line and not line.startswith("#")]
        repeatable = [line for line in series if found.search(line)]
        number = 0
        while len(series) < samples:
            number += 1
            again = [found.sub(repeated.format(number=number), line) for line in repeatable]
            series += again[: samples - len(series)]
        parsed = [line.rpartition(" ") for line in series[:samples]]
        self._template = _grouped(comments, [name for name, _, _ in parsed])
        start = np.array([float(value) for _, _, value in parsed])
        counts = np.array([name.partition("{")[0].endswith(_COUNTS) for name, _, _ in parsed])
        # Zeros would never change, and no exporter of a busy fleet is all zeros.
        self._start = np.where(
            start != 0, start, np.where(counts, 50.0, np.arange(len(start)) % 97)
        )
        self._counts = counts
        parse_exposition(self.render(0, 1.0))  # what the fleet serves must be readable

    def render(self, target: int, seconds: float) -> str:
        """Return the text of one target at one moment: counters have grown, gauges have moved."""
        wave = 1 + 0.1 * np.sin(seconds / 60 + target)
        values = np.where(self._counts, self._start * (1 + seconds / 3600), self._start * wave)
        return (self._template % tuple(values.tolist())).replace(_NODE, f"node{target}")


def _grouped(comments: list[str], names: list[str]) -> str:
    """Put every series below the comments of its family, as exporters do."""
    families: dict[str, list[str]] = {}
    for line in comments:
        families.setdefault(line.split()[2], []).append(line.replace("%", "%%"))
    for name in names:
        bare = name.partition("{")[0]
        stems = [bare, *(bare.removesuffix(end) for end in _COUNTS)]
        family = next((stem for stem in stems if stem in families), bare)
        safe = _HOSTNAME.sub(f'Hostname="{_NODE}"', name).replace("%", "%%")
        families.setdefault(family, []).append(f"{safe} %.9g")
    return "\n".join(line for lines in families.values() for line in lines) + "\n"


class Server(asyncio.Protocol):
    """Just enough HTTP for scrapes: ``GET /t/<number>/metrics`` on kept connections."""

    pages: tuple[Page, ...] = ()
    started = 0.0

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer every whole request."""
        self._waiting += data
        while b"\r\n\r\n" in self._waiting and self._transport is not None:
            head, _, self._waiting = self._waiting.partition(b"\r\n\r\n")
            target = int(head.split(b"/", 3)[2])
            page = self.pages[target % len(self.pages)]
            body = page.render(target, time.monotonic() - self.started).encode()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )


def listed(port: int, count: int) -> list[dict[str, object]]:
    """Return the targets as Prometheus' file_sd and Galen read them."""
    return [
        {
            "targets": [f"127.0.0.1:{port}"],
            "labels": {
                "__metrics_path__": f"/t/{target}/metrics",
                "instance": f"node{target}:{9400 if target % 2 else 8000}",
            },
        }
        for target in range(count)
    ]


async def _serve(count: int, samples: int, file: Path) -> None:
    Server.pages = (Page("vllm", samples), Page("dcgm", samples))
    Server.started = time.monotonic()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", 0, backlog=4096)
    port = server.sockets[0].getsockname()[1]
    file.write_text(json.dumps(listed(port, count)), "utf-8")  # noqa: ASYNC240 - before anybody waits
    print(port, flush=True)
    await server.serve_forever()


def main() -> int:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--file", type=Path, required=True, help="where to list the targets")
    options = parser.parse_args()
    uvloop.run(_serve(options.count, options.samples, options.file))
    return 0


if __name__ == "__main__":
    sys.exit(main())
