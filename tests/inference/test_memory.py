"""What a request took is given back, however it ended."""

import asyncio
import gc
import json
import random
from collections import Counter

import psutil
import pytest

from inference.requests import Ticket

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

WARM_UP, MEASURED = 2_000, 10_000
# A leak of 3 KB a request would show; allocators and caches that settle do not.
LIMIT_BYTES = 32 * 2**20
_CONNECTIONS = 32


def _mixed(draw, number):
    """Return the bytes of one request, and whether its client leaves at once."""
    kind = draw.choice(("ok", "ok", "stream", "cancelled", "cancelled_stream", "expired",
                        "invalid", "oversized", "unknown_model", "oip", "wrong_path"))  # fmt: skip
    path, headers = "/v1/completions", ""
    body = {"prompt": f"text {draw.randrange(10**9)}", "max_tokens": draw.choice((1, 4, 16))}
    if kind in {"stream", "cancelled_stream"}:
        body["stream"] = True
    elif kind == "expired":
        headers = f"x-request-timeout-ms: {draw.choice((1, 2, 5))}\r\n"
    elif kind == "oversized":
        body["prompt"] = "x" * 9000 if number % 2 else "x" * 300_000
    elif kind == "unknown_model":
        body["model"] = f"nobody-{number}"
    elif kind == "oip":
        path = "/v2/models/tiny/infer"
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [f"hi {number}"]}
        body = {"inputs": [tensor]}
    elif kind == "wrong_path":
        path = f"/v1/nothing/{number}"
    data = b"{broken" if kind == "invalid" else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data, kind.startswith("cancelled")


async def _one(port, request, leaves):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        if leaves:
            await asyncio.sleep(0.002)
            return "left"
        answer = await asyncio.wait_for(reader.read(), 60)
        return int(answer.split(maxsplit=2)[1])
    except ConnectionError:
        return "closed"  # a body that is too large is not read to its end
    finally:
        writer.close()


async def _send(port, draw, count):
    room = asyncio.Semaphore(_CONNECTIONS)
    ends = Counter()

    async def limited(number):
        async with room:
            ends[await _one(port, *_mixed(draw, number))] += 1

    await asyncio.gather(*(limited(number) for number in range(count)))
    return ends


def _bytes(live):
    """Return resident memory of this process, which is the front, and of the workers."""
    gc.collect()
    pids = [None, *(host.supervisor.status.worker.pid for host in live.service.hosts.values())]
    return [psutil.Process(pid).memory_info().rss for pid in pids]


def _tickets():
    gc.collect()
    return sum(isinstance(item, Ticket) for item in gc.get_objects())


def test_ten_thousand_mixed_requests_leave_nothing_behind(tools, repository, tmp_path):
    draw = random.Random(7)
    # The prefix cache fills to its limit in the warm-up.
    settings = {"prefix_cache_bytes": 256 * 1024, "canary_interval_seconds": 600.0, "slots": 4}
    with tools.run_service(repository, tmp_path, **settings) as live:
        port = int(live.url.rpartition(":")[2])
        asyncio.run(_send(port, draw, WARM_UP))
        before = _bytes(live)
        ends = asyncio.run(_send(port, draw, MEASURED))
        dispatchers = [host.dispatcher for host in live.service.hosts.values()]
        tools.eventually(lambda: all(d.running == 0 for d in dispatchers), "no slot is held")
        tools.eventually(lambda: all(d.queue.depth == 0 for d in dispatchers), "nobody waits")
        tools.eventually(lambda: _tickets() == 0, "no ticket, and so no timer, is left")
        after = _bytes(live)
        assert live.metric("engine_restarts_total") == 0
    assert sum(ends.values()) == MEASURED
    assert ends[200] > MEASURED / 4
    assert ends["left"] > 0
    assert ends[400] + ends[404] + ends[413] + ends["closed"] > 0
    assert ends[504] > 0
    assert 500 not in ends
    grown = [now - then for now, then in zip(after, before, strict=True)]
    assert max(grown) < LIMIT_BYTES, f"front and workers grew by {grown} bytes"
