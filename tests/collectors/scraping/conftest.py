"""Targets of every kind, behind one real HTTP server."""

from __future__ import annotations

import asyncio
import gzip
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

TEXT = "# TYPE up gauge\nup 1\n"


def _bomb(megabytes: int) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(megabytes)) + packer.flush()


BOMB = _bomb(300)


class Site:
    """Answers by path; counts requests and connections."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.connections = 0
        self.headers: dict[str, str] = {}
        self.port = 0
        self.released = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        tasks = asyncio.all_tasks(self._loop) - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while line := await reader.readline():
                path = line.split()[1].decode()
                self.headers = {}
                while (header := await reader.readline()).strip():
                    name, _, value = header.decode().partition(":")
                    self.headers[name.lower()] = value.strip()
                self.requests[path] += 1
                if not await getattr(self, f"_{path.strip('/').partition('/')[0]}")(writer):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _whole(self, writer: asyncio.StreamWriter, body: bytes, head: str = "") -> bool:
        start = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{head}"
        writer.write(start.encode() + b"\r\n" + body)
        await writer.drain()
        return True

    async def _ok(self, writer: asyncio.StreamWriter) -> bool:
        return await self._whole(
            writer, TEXT.encode(), "Content-Type: text/plain; version=0.0.4\r\n"
        )

    async def _open(self, writer: asyncio.StreamWriter) -> bool:
        head = "Content-Type: application/openmetrics-text; version=1.0.0\r\n"
        return await self._whole(writer, b"up 1\n# EOF\n", head)

    async def _gpu(self, writer: asyncio.StreamWriter) -> bool:
        return await self._whole(writer, b'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1"} 40\n')

    async def _zipped(self, writer: asyncio.StreamWriter) -> bool:
        body = gzip.compress(TEXT.encode()) + gzip.compress(b"more 2\n")
        return await self._whole(writer, body, "Content-Encoding: gzip\r\n")

    async def _cut(self, writer: asyncio.StreamWriter) -> bool:
        body = gzip.compress(TEXT.encode() * 100)[:-9]
        return await self._whole(writer, body, "Content-Encoding: gzip\r\n")

    async def _damaged(self, writer: asyncio.StreamWriter) -> bool:
        return await self._whole(writer, b"no gzip at all", "Content-Encoding: gzip\r\n")

    async def _bomb(self, writer: asyncio.StreamWriter) -> bool:
        return await self._whole(writer, BOMB, "Content-Encoding: gzip\r\n")

    async def _brotli(self, writer: asyncio.StreamWriter) -> bool:
        return await self._whole(writer, b"?", "Content-Encoding: br\r\n")

    async def _html(self, writer: asyncio.StreamWriter) -> bool:
        return await self._whole(writer, b"<html>", "Content-Type: text/html\r\n")

    async def _broken(self, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return True

    async def _elsewhere(self, writer: asyncio.StreamWriter) -> bool:
        return await self._redirect(writer, "http://me:secret@169.254.169.254/x?token=secret")

    async def _redirect(self, writer: asyncio.StreamWriter, place: str) -> bool:
        head = f"HTTP/1.1 307 Temporary Redirect\r\nLocation: {place}\r\nContent-Length: 0\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        return True

    async def _moved(self, writer: asyncio.StreamWriter) -> bool:
        return await self._redirect(writer, "/ok")

    async def _round(self, writer: asyncio.StreamWriter) -> bool:
        return await self._redirect(writer, "/round")

    async def _nonsense(self, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"SSH-2.0-OpenSSH_9.9\r\n")
        await writer.drain()
        return False

    async def _half(self, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nup 1\n")
        await writer.drain()
        return False

    async def _closes(self, writer: asyncio.StreamWriter) -> bool:
        await self._ok(writer)  # and then, without a word, hangs up
        return False

    async def _hang(self, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(3600)
        return False

    async def _drip(self, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"#")
            await writer.drain()
            await asyncio.sleep(0.02)

    async def _endless(self, writer: asyncio.StreamWriter) -> bool:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            writer.write(b"up 1\n" * 2000)
            await writer.drain()


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture(scope="session")
def until() -> Callable[[Callable[[], Any]], Any]:
    """Return a function that repeats a check until it holds, for a generous time."""

    def wait(check: Callable[[], Any]) -> Any:
        pause = threading.Event()
        for _ in range(1500):
            if result := check():
                return result
            pause.wait(0.02)
        raise AssertionError(f"not within 30 s: {check}")

    return wait
