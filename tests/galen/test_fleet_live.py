"""`galen detect prometheus:...` against a real Prometheus, by real worker processes of Dask."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
distributed = pytest.importorskip("distributed")

START = 1_700_000_010
STEP, TICKS = 15, 240
SERVICES = 8
SIGNALS = ("llm_request_latency_seconds", "llm_queue_depth", "llm_tokens_per_second")
PASSWORD = "a-secret-of-the-fleet"
# Of PASSWORD, by bcrypt at its lowest cost.
HASHED = "$2b$04$abcdefghijklmnopqrstuuYR4JSb05fT30d1lVWcLb.v1FfCoxahm"
READY_SECONDS = 60.0
SAME_CODE = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
"""For processes in other folders: the packages that this test sees."""


def _binary(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if os.environ.get("GALEN_REQUIRE_SERVICES") == "1":
            pytest.fail(f"GALEN_REQUIRE_SERVICES=1 and there is no {name} on the PATH")
        pytest.skip(f"there is no {name} on the PATH")
    return found


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _eventually(check: Callable[[], Any], *processes: subprocess.Popen[Any]) -> Any:
    waiter = threading.Event()
    for _ in range(int(READY_SECONDS / 0.1)):
        if result := check():
            return result
        for process in processes:
            assert process.poll() is None, "a process ended"
        waiter.wait(0.1)
    raise AssertionError(f"not within {READY_SECONDS:g} s")


def _history() -> str:
    """Return a fleet's past; one replica in each second service gets slow near its end."""
    lines = []
    for place, signal in enumerate(SIGNALS):
        lines.append(f"# TYPE {signal} gauge")
        for service in range(SERVICES):
            for part, name in enumerate(("", "/replica/0", "/replica/1")):
                random = np.random.default_rng(100 * service + 10 * part + place)
                values = 60 + random.normal(0, 0.5, TICKS)
                if place == 0 and part == 1 and service % 2 == 0:
                    values[-40:] *= 10
                labels = f'{{entity="service/s{service}{name}",job="galen",instance="a:9101"}}'
                lines += [
                    f"{signal}{labels} {value:.6f} {START + STEP * tick}"
                    for tick, value in enumerate(values)
                ]
        # One service is more than the server gives in one answer, even of one moment.
        for replica in range(200):
            labels = f'{{entity="service/big/replica/{replica}",job="galen",instance="a:9101"}}'
            lines += [f"{signal}{labels} 1 {START + STEP * tick}" for tick in range(20)]
    return "\n".join([*lines, "# EOF", ""])


@contextmanager
def _process(
    command: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    log = folder / f"{Path(command[0]).name}-{len(list(folder.iterdir()))}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdout=output,
            stderr=output,
            env=None if environment is None else {**os.environ, **environment},
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


@contextmanager
def _prometheus(folder: Path, *options: str) -> Iterator[str]:
    """Run a Prometheus with the fleet's past and a password."""
    text = folder / "history.txt"
    text.write_text(_history())
    subprocess.run(
        [_binary("promtool"), "tsdb", "create-blocks-from", "openmetrics", text, folder / "tsdb"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    (folder / "web.yml").write_text(f"basic_auth_users:\n  galen: {HASHED}\n")
    (folder / "prometheus.yml").write_text("global: {}\n")
    port = _free_port()
    command = [
        _binary("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--web.config.file={folder / 'web.yml'}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        "--storage.tsdb.retention.time=50y",
        f"--web.listen-address=127.0.0.1:{port}",
        *options,
    ]
    with _process(command, folder) as process:
        _eventually(lambda: _answers(f"http://127.0.0.1:{port}/-/ready"), process)
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that gives 300 values in an answer."""
    with _prometheus(tmp_path_factory.mktemp("prometheus"), "--query.max-samples=300") as url:
        yield url


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except urllib.error.HTTPError as error:
        return bool(error.code == 401)
    except OSError:
        return False


def _config(folder: Path, url: str) -> Path:
    file = folder / "galen.toml"
    file.write_text(
        "[[collectors.prometheus]]\n"
        f'name = "fleet"\nurl = "{url}"\nusername = "galen"\npassword_file = "password"\n'
        "[analysis.fleet]\nshard_series = 18\nchunk_samples = 2000\n"
        # Half of a second a row: it would hide where the time of this test goes.
        "[analysis.detection.forest]\nenabled = false\n"
    )
    (folder / "password").write_text(PASSWORD)
    return file


def _detect(folder: Path, *options: str) -> tuple[dict[str, Any], str]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "galen",
            "detect",
            "prometheus:fleet",
            "--json",
            "--from",
            str(START + 40 * STEP),
            "--to",
            str(START + TICKS * STEP),
            "--step",
            str(STEP),
            *options,
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=os.environ | SAME_CODE,
    )
    assert (done.returncode, done.stdout[:1]) == (1, "{"), done.stderr
    return json.loads(done.stdout), done.stderr


def test_workers_that_read_the_server_say_what_one_machine_says_though_one_is_killed(
    server: str, tmp_path: Path
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "worker"
    for folder in (here, elsewhere):
        folder.mkdir()
        _config(folder, server)
    alone, _ = _detect(here)
    latency = "llm_request_latency_seconds"
    assert {(one["entity"], one["signal"]) for one in alone["alarms"]} == {
        (f"service/s{service}/replica/0", latency) for service in range(0, SERVICES, 2)
    }
    assert alone["series"] == SERVICES * 9
    # The server refuses one shard; the others are whole.
    (refused,) = alone["failed"]
    assert "too many samples" in refused["error"]

    with ExitStack() as stack:
        address = f"tcp://127.0.0.1:{_free_port()}"
        module = [sys.executable, "-m"]
        scheduler = stack.enter_context(
            _process(
                [*module, "distributed.cli.dask_scheduler", "--host", address, "--no-dashboard"],
                tmp_path,
                SAME_CODE,
            )
        )
        workers = [
            stack.enter_context(
                _process(
                    [
                        *module,
                        "distributed.cli.dask_worker",
                        address,
                        "--no-nanny",
                        "--nthreads",
                        "1",
                        "--no-dashboard",
                    ],
                    elsewhere,
                    SAME_CODE,
                )
            )
            for _ in range(3)
        ]
        client = _eventually(lambda: _client(address), scheduler)
        stack.callback(client.close)
        client.wait_for_workers(3, timeout=READY_SECONDS)
        killed = _kill_one_at_work(client, workers)
        together, told = _detect(here, "--cluster", address)
        assert killed.wait(READY_SECONDS)
        spread = json.dumps(client.get_events(), default=str)
    assert together["lost_workers"] == 1
    assert {one["shard"] for one in together["failed"]} == {refused["shard"]}
    for same in ("digest", "alarms", "entities", "series", "shards", "ticks"):
        assert together[same] == alone[same], same
    logs = "".join(log.read_text("utf-8", "replace") for log in tmp_path.rglob("*.log"))
    assert PASSWORD not in spread + logs + told


def _client(address: str) -> Any:
    try:
        return distributed.Client(address, timeout=2, set_as_default=False)
    except OSError:
        return None


def _kill_one_at_work(client: Any, workers: Sequence[subprocess.Popen[bytes]]) -> threading.Event:
    """Kill the first worker that is seen in the middle of a shard, once."""
    processes = {process.pid: process for process in workers}
    killed = threading.Event()

    def hear(event: tuple[float, Mapping[str, Any]]) -> None:
        pid = int(event[1]["process"].rpartition(":")[2])
        if not killed.is_set() and 0.05 < event[1]["share"] < 0.95:
            processes[pid].kill()
            killed.set()

    client.subscribe_topic("galen-progress", hear)
    return killed


def test_the_command_says_what_is_wrong(server: str, tmp_path: Path) -> None:
    _config(tmp_path, server)

    def error(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "galen", "detect", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=os.environ | SAME_CODE,
        )
        assert done.returncode in {1, 2}
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "no such file" in error("missing.csv", "--train-rows", "20")
    assert "needs --train-rows" in error(str(tmp_path / "galen.toml"))
    assert "neither the name" in error("prometheus:other")
    assert PASSWORD not in (told := error(f"prometheus:http://galen:{PASSWORD}@127.0.0.1:1"))
    assert "password" in told
    assert "no series" in error("prometheus:fleet", "--from", "1000", "--to", "2000")
    assert "no address" in error("prometheus:fleet", "--cluster", "scheduler:8786")
    assert "local cluster" in error(
        "prometheus:fleet", "--cluster", "tcp://127.0.0.1:1", "--workers", "2"
    )
    told = error(
        "prometheus:fleet",
        "--from",
        str(START),
        "--to",
        str(START + 600),
        "--cluster",
        "tcp://127.0.0.1:9",
    )
    assert "no Dask scheduler answers" in told


def test_a_backtest_reads_the_server_and_judges_by_labels(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    onset, end = START + (TICKS - 40) * STEP, START + TICKS * STEP
    faults = [f"{onset},{end},service/s{service}/replica/0" for service in range(0, SERVICES, 2)]
    (tmp_path / "faults.csv").write_text("\n".join(["start,end,entity", *faults, ""]))
    with _prometheus(tmp_path_factory.mktemp("prometheus")) as url:
        _config(tmp_path, url)
        done = subprocess.run(
            [
                sys.executable, "-m", "galen", "backtest", "--source", "prometheus:fleet",
                "--from", str(START), "--to", str(end), "--step", str(STEP), "--no-seasons",
                "--labels", "faults.csv", "--json",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
            env=os.environ | SAME_CODE,
        )  # fmt: skip
    told = json.loads(done.stdout)
    assert (done.returncode, told["whole"], told["ticks"]) == (1, True, TICKS), done.stderr
    galen, at_random, _ = told["qualities"]
    assert (galen["faults"], galen["detected"]) == (len(faults), len(faults))
    assert galen["median_delay_seconds"] <= 2 * STEP
    assert at_random["detected"] < len(faults)
    assert PASSWORD not in done.stdout + done.stderr
