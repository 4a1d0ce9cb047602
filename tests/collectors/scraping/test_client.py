from __future__ import annotations

import asyncio
import ssl
import tracemalloc
from pathlib import Path
from typing import Any

import httpx
import pytest

from collectors.access import HttpAccess
from collectors.scraping.client import MemoryBudget, Page, ScrapeError, TargetClient
from collectors.scraping.targets import target_of

MAX_BYTES = 200_000
TEXT = b"# TYPE up gauge\nup 1\n"
TLS = ssl.create_default_context()


def _client(url: str, *, budget: MemoryBudget | None = None, **options: Any) -> TargetClient:
    return TargetClient(
        target_of("test", url),
        verify=TLS,
        budget=budget or MemoryBudget(1 << 30),
        max_bytes=MAX_BYTES,
        keep_seconds=60.0,
        **options,
    )


def _ask(url: str, *, times: int = 1, deadline_seconds: float = 20.0, **options: Any) -> Page:
    async def run() -> Page:
        client = _client(url, **options)
        try:
            for _ in range(times):
                page = await client.get(deadline_seconds)
            return page
        finally:
            await client.close()

    return asyncio.run(run())


def test_one_connection_is_kept(site: Any) -> None:
    assert _ask(site.url("/ok"), times=5) == Page(TEXT, open_metrics=False)
    assert (site.requests["/ok"], site.connections) == (5, 1)


def test_what_is_asked_for(site: Any) -> None:
    _ask(site.url("/ok"), headers=lambda: {"Authorization": "Bearer x"}, deadline_seconds=7.5)
    assert site.headers["authorization"] == "Bearer x"
    assert site.headers["accept-encoding"] == "gzip"
    assert "text/plain;version=0.0.4;q=1.0" in site.headers["accept"]
    assert site.headers["x-prometheus-scrape-timeout-seconds"] == "7.5"


def test_the_type_of_the_answer_is_told(site: Any) -> None:
    assert _ask(site.url("/open")).open_metrics is True


def test_a_compressed_answer_of_several_members_is_read_whole(site: Any) -> None:
    assert _ask(site.url("/zipped")).body == TEXT + b"more 2\n"


def test_a_server_that_hangs_up_between_two_scrapes_is_no_failure(site: Any) -> None:
    assert _ask(site.url("/closes"), times=4).body == TEXT
    assert site.requests["/closes"] == 4


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/broken", "answers 503"),
        ("/html", "text/html"),
        ("/brotli", "'br'"),
        ("/cut", "ends in the middle"),
        ("/damaged", "not the gzip"),
        ("/round", "redirects more than 3 times"),
        ("/half", "RemoteProtocolError"),
        ("/nonsense", "RemoteProtocolError"),
        ("/endless", f"more than {MAX_BYTES} bytes"),
    ],
)
def test_what_is_no_answer(site: Any, path: str, words: str) -> None:
    with pytest.raises(ScrapeError, match=words):
        _ask(site.url(path))


@pytest.mark.parametrize("path", ["/hang", "/drip"])
def test_a_deadline_is_one_for_the_whole_exchange(site: Any, path: str) -> None:
    with pytest.raises(ScrapeError, match=r"no complete answer within 0\.3 s"):
        _ask(site.url(path), deadline_seconds=0.3)


def test_after_a_failure_the_next_question_is_a_new_one(site: Any) -> None:
    async def run() -> bytes:
        client = _client(site.url("/drip"))
        with pytest.raises(ScrapeError):
            await client.get(0.2)
        client._url = site.url("/ok")
        try:
            return (await client.get(20.0)).body
        finally:
            await client.close()

    assert asyncio.run(run()) == TEXT


def test_a_redirect_to_another_host_is_not_followed_and_shows_no_secret(site: Any) -> None:
    with pytest.raises(ScrapeError) as error:
        _ask(site.url("/elsewhere"), headers=lambda: {"Authorization": "Bearer x"})
    assert "redirects to http://169.254.169.254/x" in str(error.value)
    assert "secret" not in str(error.value)


def test_a_redirect_on_the_same_host_is_followed(site: Any) -> None:
    assert _ask(site.url("/moved")).body == TEXT


def test_secrets_are_asked_for_at_each_scrape_and_not_shown(site: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    access = HttpAccess(token_file=file)
    for token in ("one", "two"):
        file.write_text(f"{token}\n")
        _ask(site.url("/ok"), headers=access.request_headers)
        assert site.headers["authorization"] == f"Bearer {token}"
    with pytest.raises(ScrapeError) as error:
        _ask(site.url("/broken"), headers=access.request_headers)
    assert "two" not in str(error.value)
    file.unlink()
    with pytest.raises(ScrapeError, match="token cannot be read"):
        _ask(site.url("/ok"), headers=access.request_headers)


def test_nobody_there() -> None:
    with pytest.raises(ScrapeError, match="ConnectError"):
        _ask("http://127.0.0.1:1/metrics")


def test_a_bomb_is_not_inflated(site: Any) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ScrapeError, match=f"more than {MAX_BYTES} bytes"):
            _ask(site.url("/bomb"))
        _, highest = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert highest < 5_000_000


def test_many_floods_at_once_cost_themselves() -> None:
    budget = MemoryBudget(1000)
    for _ in range(4):
        budget.enter()
    for _ in range(3):
        budget.add(300)
    assert budget.admits(300)
    budget.add(300)
    assert not budget.admits(300)
    assert budget.admits(100)
    budget.leave(300)
    assert budget.admits(300)


def test_the_budget_is_given_back_whatever_happened(site: Any) -> None:
    budget = MemoryBudget(50_000)
    for path in ("/ok", "/endless", "/cut", "/drip", "/half"):
        try:
            _ask(site.url(path), budget=budget, deadline_seconds=0.3)
        except ScrapeError:
            continue
    assert (budget._held, budget._readers) == (0, 0)


def test_no_transport_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, site: Any
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert _ask(site.url("/ok")).body == TEXT


def test_an_error_of_the_library_becomes_a_scrape_error() -> None:
    def broken(_: httpx.Request) -> httpx.Response:
        raise httpx.UnsupportedProtocol("no")

    with pytest.raises(ScrapeError, match="UnsupportedProtocol"):
        _ask("http://host/metrics", transport=httpx.MockTransport(broken))
