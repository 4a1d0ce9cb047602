from __future__ import annotations

import gzip
import http.server
import itertools
import json
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr, ValidationError

from collectors.access import AccessError, HttpAccess
from collectors.pieces import read_in_pieces
from collectors.promapi import PrometheusClient, PrometheusError
from collectors.settings import PrometheusTarget

EMPTY = {"status": "success", "data": {"resultType": "vector", "result": []}}


class Scripted(SimpleNamespace):
    """A server whose one handler a test replaces; requests are kept."""

    url: str
    answer: Callable[[http.server.BaseHTTPRequestHandler], None]
    requests: list[SimpleNamespace]


def _reply(
    handler: http.server.BaseHTTPRequestHandler, body: bytes | dict[str, Any], status: int = 200,
    **headers: str,
) -> None:  # fmt: skip
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(content)))
    handler.end_headers()
    handler.wfile.write(content)


def _serve(context: ssl.SSLContext | None = None) -> tuple[Scripted, http.server.HTTPServer]:
    scripted = Scripted(requests=[], answer=lambda handler: _reply(handler, EMPTY))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            form = dict(urllib.parse.parse_qsl(body))
            scripted.requests.append(
                SimpleNamespace(path=self.path, form=form, headers=dict(self.headers))
            )
            scripted.answer(self)

        def log_message(self, *_: Any) -> None:
            return

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:  # clients of these tests leave early
            return

    server = Server(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme = "http" if context is None else "https"
    scripted.url = f"{scheme}://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return scripted, server


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made, server = _serve()
    yield made
    server.shutdown()
    server.server_close()


def _refused(client: PrometheusClient) -> PrometheusError:
    with pytest.raises(PrometheusError) as caught:
        client.query("up")
    return caught.value


def test_the_query_goes_in_the_body_and_as_asked(scripted: Scripted) -> None:
    PrometheusClient(f"{scripted.url}/prefix/").query("up", lookback_seconds=30)
    (request,) = scripted.requests
    assert request.path == "/prefix/api/v1/query"
    assert request.form["query"] == "up"
    assert request.form["lookback_delta"] == request.form["max_lookback"] == "30000ms"
    assert request.form["nocache"] == "1"


def test_credentials_are_read_anew_for_each_request(scripted: Scripted, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    access = HttpAccess(token_file=file, headers={"X-Scope-OrgID": SecretStr("tenant")})
    client = PrometheusClient(scripted.url, access=access)
    client.query("up")
    file.write_text("second\n")
    client.query("up")
    file.unlink()
    assert "cannot be read" in str(_refused(client))
    assert [request.headers["Authorization"] for request in scripted.requests] == [
        "Bearer first",
        "Bearer second",
    ]
    assert scripted.requests[0].headers["X-Scope-OrgID"] == "tenant"
    basic = HttpAccess(username="galen", password=SecretStr("pass"))
    PrometheusClient(scripted.url, access=basic).query("up")
    assert scripted.requests[-1].headers["Authorization"] == "Basic Z2FsZW46cGFzcw=="


@pytest.mark.parametrize(
    "given",
    [
        {"token": "a", "token_file": "b"},
        {"token_variable": "a", "token_file": "b"},
        {"username": "a"},
        {"password": "a"},
        {"ca_file": "a", "verify_tls": False},
        {"client_key_file": "a"},
    ],
)
def test_access_that_contradicts_itself_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        HttpAccess(**given)


def test_a_token_may_come_from_the_environment(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = PrometheusClient(scripted.url, access=HttpAccess(token_variable="FLEET_TOKEN"))
    assert "FLEET_TOKEN holds no secret" in str(_refused(client))
    monkeypatch.setenv("FLEET_TOKEN", "from-outside")
    client.query("up")
    assert scripted.requests[-1].headers["Authorization"] == "Bearer from-outside"


def test_secrets_stay_out_of_errors(scripted: Scripted) -> None:
    secret = "hunter2"
    place = scripted.url.replace("http://", f"http://me:{secret}@")
    scripted.answer = lambda handler: _reply(handler, b"no", 401)
    error = _refused(PrometheusClient(place))
    assert scripted.requests[0].headers["Authorization"].startswith("Basic ")
    assert "credentials" in error.fix
    for client in (PrometheusClient(place), PrometheusClient(f"http://me:{secret}@127.0.0.1:9")):
        error = _refused(client)
        assert secret not in str(error) + error.fix + client.place
    with pytest.raises(PrometheusError) as caught:
        PrometheusClient(f"http://127.0.0.1:9/?token={secret}")
    assert secret not in str(caught.value)
    with pytest.raises(ValidationError):
        PrometheusTarget(name="a", url=f"http://h/?token={secret}")


def test_a_busy_server_says_when_to_come_back(scripted: Scripted) -> None:
    scripted.answer = lambda handler: _reply(handler, b"slow down", 429, Retry_After="7")
    error = _refused(PrometheusClient(scripted.url))
    assert (error.status, error.retryable, error.retry_after_seconds) == (429, True, 7.0)
    assert len(scripted.requests) == 1


def test_a_redirect_is_not_followed_with_the_credentials(scripted: Scripted) -> None:
    scripted.answer = lambda handler: _reply(
        handler, b"", 302, Location="http://me:secret@elsewhere.test/x?token=secret"
    )
    error = _refused(PrometheusClient(scripted.url, access=HttpAccess(token=SecretStr("t"))))
    assert "redirects to http://elsewhere.test/x" in str(error)
    assert "secret" not in str(error)
    assert len(scripted.requests) == 1


def test_partial_answers_and_warnings_are_told_once(scripted: Scripted) -> None:
    client = PrometheusClient(scripted.url)
    scripted.answer = lambda handler: _reply(handler, EMPTY | {"isPartial": True})
    client.query("up")
    told = ["receive series from sidecar: connection refused", "PromQL info: not a counter"]
    scripted.answer = lambda handler: _reply(handler, EMPTY | {"warnings": told})
    client.query("up")
    client.query("up")
    partial, warning = client.take_warnings()
    assert "partial" in partial
    assert warning == told[0]
    assert client.take_warnings() == []


@pytest.mark.parametrize(
    "body", [b"<html>a proxy's page</html>", b"", b"[]", b'{"data": 5}', b'{"status": "success"']
)
def test_what_is_no_prometheus_is_told(scripted: Scripted, body: bytes) -> None:
    scripted.answer = lambda handler: _reply(handler, body)
    assert "not answer as Prometheus does" in str(_refused(PrometheusClient(scripted.url)))


def test_an_answer_that_drips_ends_at_the_deadline(scripted: Scripted) -> None:
    gone = threading.Event()

    def drip(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not gone.wait(0.02):
            handler.wfile.write(b" ")

    scripted.answer = drip
    ticks = iter(range(10_000))
    client = PrometheusClient(
        scripted.url, deadline_seconds=5.0, monotonic=lambda: float(next(ticks))
    )
    error = _refused(client)
    gone.set()
    assert "within 5 s" in str(error)
    assert error.too_much


def test_an_answer_is_bounded_after_it_is_unpacked(scripted: Scripted) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    scripted.answer = lambda handler: _reply(handler, bomb, Content_Encoding="gzip")
    error = _refused(PrometheusClient(scripted.url, max_bytes=1_000_000, deadline_seconds=30))
    assert "larger than 1000000 bytes" in str(error)
    assert error.too_much


def test_a_query_that_is_too_much_is_told_from_one_that_is_wrong(scripted: Scripted) -> None:
    client = PrometheusClient(scripted.url)
    for said, too_much in (
        ("query processing would load too many samples into memory", True),
        ("exceeded maximum resolution of 11,000 points per timeseries", True),
        ("invalid parameter: parse error", False),
    ):
        scripted.answer = lambda handler, said=said: _reply(  # type: ignore[misc]
            handler, {"status": "error", "error": said}, 422
        )
        error = _refused(client)
        assert (error.about_the_query, error.too_much) == (True, too_much)
        assert ("the server's limit" in error.fix) == too_much


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and certificates of a server and of a client that it has signed."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-keyout")
    openssl(*new, "ca.key", "-x509", "-days", "2", "-subj", "/CN=authority", "-out", "ca.pem")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl(*new, f"{name}.key", "-subj", f"/CN={name}", "-out", f"{name}.csr")
        openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", "names", "-out", f"{name}.pem",
        )  # fmt: skip
    return folder


@pytest.fixture
def guarded(certificates: Path) -> Iterator[Scripted]:
    """A server that shows its certificate and asks for the client's."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.load_verify_locations(certificates / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    made, server = _serve(context)
    yield made
    server.shutdown()
    server.server_close()


def test_tls_is_verified_both_ways(
    guarded: Scripted, certificates: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = {
        "client_certificate_file": certificates / "client.pem",
        "client_key_file": certificates / "client.key",
    }
    trusting = HttpAccess(ca_file=certificates / "ca.pem", **ours)
    PrometheusClient(guarded.url, access=trusting).query("up")
    with httpx.Client(verify=trusting.ssl_context(), trust_env=False) as http:
        assert http.post(guarded.url).status_code == 200
    # Without the authority the server is not believed, without a certificate we are not.
    error = _refused(PrometheusClient(guarded.url, access=HttpAccess(**ours)))
    assert "certificate verify failed" in str(error)
    assert "ca_file" in error.fix
    assert _refused(
        PrometheusClient(guarded.url, access=HttpAccess(ca_file=certificates / "ca.pem"))
    ).retryable
    assert "tls_not_verified" not in capsys.readouterr().out
    PrometheusClient(guarded.url, access=HttpAccess(verify_tls=False, **ours)).query("up")
    assert "tls_not_verified" in capsys.readouterr().out
    with pytest.raises(AccessError, match="certificates cannot be used"):
        HttpAccess(ca_file=certificates / "absent.pem").ssl_context()


def test_a_piece_that_is_too_much_is_halved() -> None:
    asked: list[tuple[float, float]] = []

    def ask(start: float, end: float) -> float:
        asked.append((start, end))
        if end - start > 1000 and start < 4000:
            raise PrometheusError("much", fix="", too_much=True)
        return end - start

    pieces = list(read_in_pieces(ask, 0, 10_000, step_seconds=10))
    assert pieces[0][:2] == (0, 620)
    assert pieces[-1][1] == 10_000
    for (_, end, _), (start, _, _) in itertools.pairwise(pieces):
        assert end == start
    assert all(start % 10 == 0 for start, _, _ in pieces)
    assert max(end - start for start, end, _ in pieces) > 1000  # it grows again after that


def test_no_piece_has_more_points_than_a_server_gives() -> None:
    pieces = list(read_in_pieces(lambda start, end: end - start, 0, 100_000, step_seconds=1))
    assert max(length for _, _, length in pieces) <= 10_000


def test_a_shortest_piece_that_is_too_much_is_an_error() -> None:
    def ask(start: float, end: float) -> None:
        raise PrometheusError("much", fix="", too_much=True)

    with pytest.raises(PrometheusError):
        list(read_in_pieces(ask, 0, 10_000))


def test_clock_skew_is_measured_at_the_middle_of_the_round_trip(scripted: Scripted) -> None:
    now = time.time()
    scripted.answer = lambda handler: _reply(
        handler,
        {"status": "success", "data": {"resultType": "scalar", "result": [now, str(now + 42)]}},
    )
    times = iter([now - 1, now + 1])
    skew = PrometheusClient(scripted.url).clock_skew_seconds(wall=lambda: next(times))
    assert skew == pytest.approx(42)
