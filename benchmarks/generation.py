"""Tokens a second of the service beside a bare decode loop on the same language model.

``python -m benchmarks generation -- --rounds 12``

The bare loop is ONNX Runtime alone: a batch of as many prompts as there are streams, then nothing but
greedy decode steps, with the options of the service's engine. The service runs in a process of its
own and streams over HTTP to as many clients (``"stream": true``, a fixed length by ``ignore_eos``).

- *together*: all streams begin at once and are as long as each other, as the rows of the bare loop;
  the tokens between the first request and the last answer, prompts and ends included.
- *staggered*: each client asks again as soon as its answer has ended, so that the rows of a batch are
  at different places. A left-padded batch pays for its longest row in all of them; the bare loop beside
  it therefore holds its cache at the length of a whole answer, which is what such a batch costs.

Controls: one stream against a bare loop of one row, and the service with an event for every token. In
each round everything is measured once, in turn; ratios are taken within a round. ``CPU`` compares the
CPU time a token of the service's worker with that of the bare loop, which a busy machine does not
change as much as the rate.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime
import psutil
from tokenizers import Tokenizer

from benchmarks.serving import tables
from inference.model import DecoderMetadata, read_metadata
from inference.server import run
from inference.settings import InferenceSettings

MODEL = "demo-lm"
FOLDER = Path(__file__).parents[1] / "inference/demo/repository" / MODEL / "1"
QUESTION = "How do I fix out of memory errors in service {}?"
Ids = npt.NDArray[np.int64]
Array = npt.NDArray[np.float32]
_COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_START_SECONDS = 60.0

BARE, BARE_STAGGERED, BARE_ONE = "bare loop", "bare loop, staggered", "bare loop, one row"
TOGETHER, STAGGERED = "service, together", "service, staggered"
EVERY, ONE = "service, together, an event a token", "service, one stream"
BESIDE = {TOGETHER: BARE, EVERY: BARE, STAGGERED: BARE_STAGGERED, ONE: BARE_ONE}
"""The bare loop that each line is compared with."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one measurement gave; a bare loop has no events."""

    tokens_per_second: float
    engine_cpu_us_per_token: float
    """CPU time of the process that computes."""
    events_per_second: float = 0.0
    first_token_p50_ms: float = 0.0
    first_token_p99_ms: float = 0.0


class BareLoop:
    """Decodes without any server."""

    def __init__(self, streams: int, tokens: int) -> None:
        metadata = read_metadata(FOLDER)
        if not isinstance(metadata, DecoderMetadata):
            raise TypeError(f"{FOLDER} is not a language model")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(FOLDER / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._past = [i for i in self._session.get_inputs() if i.name.startswith("past")]
        self._outputs = [item.name for item in self._session.get_outputs()]
        self._prompt = _prompt_ids(metadata, streams)
        self._streams, self._tokens = streams, tokens

    def together(self, repeats: int) -> Load:
        """Decode all rows side by side from the first token to the last; prompts do not count."""
        seconds = cpu = 0.0
        for _ in range(repeats):
            tokens, past = self._step(self._prompt, self._empty())
            started, busy = time.perf_counter(), time.process_time()
            for _ in range(self._tokens - 1):
                tokens, past = self._step(tokens, past)
            seconds += time.perf_counter() - started
            cpu += time.process_time() - busy
        return self._load(repeats * (self._tokens - 1), seconds, cpu)

    def staggered(self, repeats: int) -> Load:
        """Decode with a cache as long as a prompt with its whole answer."""
        tokens, past = self._step(self._prompt, self._empty())
        for _ in range(self._tokens - 1):
            tokens, past = self._step(tokens, past)
        started, busy = time.perf_counter(), time.process_time()
        for _ in range(repeats * self._tokens):
            self._step(tokens, past)
        seconds, cpu = time.perf_counter() - started, time.process_time() - busy
        return self._load(repeats * self._tokens, seconds, cpu)

    def _step(self, tokens: Ids, past: list[Array]) -> tuple[Ids, list[Array]]:
        known, width = past[0].shape[2], tokens.shape[1]
        feeds = {
            "input_ids": tokens,
            "attention_mask": np.ones((self._streams, known + width), np.int64),
            "position_ids": np.tile(np.arange(known, known + width), (self._streams, 1)),
            **{item.name: array for item, array in zip(self._past, past, strict=True)},
        }
        logits, *present = self._session.run(self._outputs, feeds)
        return logits[:, -1].argmax(-1)[:, np.newaxis], present

    def _empty(self) -> list[Array]:
        shapes = [(self._streams, item.shape[1], 0, item.shape[3]) for item in self._past]
        return [np.zeros(shape, np.float32) for shape in shapes]

    def _load(self, steps: int, seconds: float, cpu: float) -> Load:
        made = steps * self._streams
        return Load(made / seconds, cpu / made * 1e6)


def _prompt_ids(metadata: DecoderMetadata, streams: int) -> Ids:
    """Return as many prompts of one length, so that the bare loop has no padding at all."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    before, after = metadata.prompts["chat"]
    text = f"{before}{QUESTION.format(10)}{after}"
    row = tokenizer.encode(text, add_special_tokens=False).ids
    return np.tile(np.array(row, dtype=np.int64), (streams, 1))


class _Clients:
    """Streams over HTTP/1.1; reads bytes and counts, because the client shares the machine."""

    def __init__(self, port: int, tokens: int) -> None:
        self._port = port
        self._tokens = tokens
        self.made = self.events = 0
        self.first_ms: list[float] = []

    async def load(self, streams: int, requests: int, *, together: bool) -> float:
        """Ask; return the seconds in which at least one stream was open."""
        connections = [
            await asyncio.open_connection("127.0.0.1", self._port) for _ in range(streams)
        ]
        started = time.perf_counter()
        if together:
            for turn in range(requests):
                await asyncio.gather(
                    *(self._ask(*c, turn * streams + n) for n, c in enumerate(connections))
                )
        else:
            await asyncio.gather(
                *(self._ask_again(*c, n, requests) for n, c in enumerate(connections))
            )
        seconds = time.perf_counter() - started
        for _, writer in connections:
            writer.close()
        return seconds

    async def _ask_again(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, requests: int
    ) -> None:
        # The first answers differ in length, so that the others do not end all at once.
        await self._ask(reader, writer, number, 1 + (7 * number) % self._tokens)
        for turn in range(requests):
            await self._ask(reader, writer, number * requests + turn)

    async def _ask(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        number: int,
        tokens: int | None = None,
    ) -> None:
        wanted = tokens or self._tokens
        writer.write(self._request(number, wanted))
        await self._answer(reader, wanted)

    def _request(self, number: int, tokens: int) -> bytes:
        content = {
            "prompt": QUESTION.format(10 + number % 90),
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        body = json.dumps(content).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body

    async def _answer(self, reader: asyncio.StreamReader, tokens: int) -> None:
        started = time.perf_counter()
        answer = b""
        while not answer.endswith(b"0\r\n\r\n"):
            part = await asyncio.wait_for(reader.read(65536), 60.0)
            if not answer:
                self.first_ms.append((time.perf_counter() - started) * 1000.0)
                if not part.startswith(b"HTTP/1.1 200 "):
                    raise RuntimeError(f"the service answers {part[:300]!r}")
            if not part:
                raise RuntimeError("the service closed the connection")
            answer += part
        found = _COMPLETION_TOKENS.search(answer)
        if found is None or int(found[1]) != tokens:
            raise RuntimeError(f"not {tokens} tokens: {answer[-300:]!r}")
        self.made += tokens
        self.events += answer.count(b"data: ")


class Service:
    """The service in a process of its own."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self._port = port
        self._process = process

    def measure(self, streams: int, tokens: int, requests: int, *, together: bool) -> Load:
        """Load the service with a number of streams."""
        clients = _Clients(self._port, tokens)
        busy = self._worker_cpu_seconds()
        seconds = asyncio.run(clients.load(streams, requests, together=together))
        cpu = self._worker_cpu_seconds() - busy
        low, high = np.percentile(clients.first_ms, [50, 99])
        return Load(
            tokens_per_second=clients.made / seconds,
            engine_cpu_us_per_token=cpu / clients.made * 1e6,
            events_per_second=clients.events / seconds,
            first_token_p50_ms=float(low),
            first_token_p99_ms=float(high),
        )

    def _worker_cpu_seconds(self) -> float:
        workers = psutil.Process(self._process.pid).children(recursive=True)
        return sum(sum(worker.cpu_times()[:2]) for worker in workers)


@contextlib.contextmanager
def service(folder: Path, slots: int, interval_seconds: float) -> Iterator[Service]:
    """Run the service as users do."""
    folder.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options = {
        "state_dir": str(folder),
        "port": port,
        "models": [MODEL],
        "slots": slots,
        "max_queue": 4 * slots,
        "max_output_tokens": 256,
        "chat_deadline_seconds": 60.0,
        "stream_interval_seconds": interval_seconds,
    }
    command = [sys.executable, "-m", "benchmarks.generation", "--serve", json.dumps(options)]
    log = (folder / "service.log").open("wb")
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=log, stderr=log)
    try:
        _wait_until_ready(port, process, Path(log.name))
        yield Service(port, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def _wait_until_ready(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(
            f"http://127.0.0.1:{port}/health/ready", timeout=5.0
        ):  # fmt: skip
            return
        time.sleep(0.1)
    raise RuntimeError(f"the service is not ready\n{log.read_text(errors='replace')[-2000:]}")


Results = dict[str, list[Load]]


def measure(rounds: int, streams: int, tokens: int, requests: int) -> Results:
    """Measure round by round; the keys are the lines of the table."""
    many, one = BareLoop(streams, tokens), BareLoop(1, tokens)
    results: Results = {}
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        usual = stack.enter_context(service(folder / "usual", streams, 0.02))
        every = stack.enter_context(service(folder / "every", streams, 0.0))
        lines: dict[str, Callable[[], Load]] = {
            BARE: lambda: many.together(requests),
            TOGETHER: lambda: usual.measure(streams, tokens, requests, together=True),
            EVERY: lambda: every.measure(streams, tokens, requests, together=True),
            BARE_STAGGERED: lambda: many.staggered(requests),
            STAGGERED: lambda: usual.measure(streams, tokens, requests, together=False),
            BARE_ONE: lambda: one.together(requests),
            ONE: lambda: usual.measure(1, tokens, requests, together=True),
        }
        for warm_up in lines.values():
            warm_up()
        for number in range(rounds):
            for name, line in lines.items():
                results.setdefault(name, []).append(line())
            sys.stderr.write(
                f"round {number + 1}: together {_shares(results, TOGETHER)[-1]:.1%}, "
                f"staggered {_shares(results, STAGGERED)[-1]:.1%} of the bare loop\n"
            )
    return results


def _shares(results: Results, name: str, field: str = "tokens_per_second") -> list[float]:
    """Return what a line has of its bare loop, by round."""
    pairs = zip(results[name], results[BESIDE[name]], strict=True)
    return [getattr(load, field) / getattr(bare, field) for load, bare in pairs]


def table(results: Results) -> str:
    """Write the medians."""
    rows = []
    for name, loads in results.items():
        rate = tables.count(tables.middle([load.tokens_per_second for load in loads]))
        row = [name, rate, "", "", "", ""]
        if name in BESIDE:
            low = tables.middle([load.first_token_p50_ms for load in loads])
            high = tables.middle([load.first_token_p99_ms for load in loads])
            row[2:] = [
                f"{tables.middle(_shares(results, name)):.1%}",
                f"{tables.middle(_shares(results, name, 'engine_cpu_us_per_token')):.2f} x",
                tables.count(tables.middle([load.events_per_second for load in loads])),
                f"{tables.milliseconds(low)} / {tables.milliseconds(high)}",
            ]
        rows.append(row)
    head = ["", "tokens/s", "of bare", "CPU", "events/s", "first token p50 / p99 ms"]
    return tables.markdown(head, rows)


def main() -> int:
    """Measure and print; exit status 1 below the wanted share."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=200, help="length of each answer")
    parser.add_argument("--requests", type=int, default=3, help="answers per stream and round")
    parser.add_argument("--share", type=float, default=0.85, help="of the bare loop that is wanted")
    parser.add_argument("--json", type=Path, help="file for the single figures")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        values = json.loads(options.serve)
        values["models"] = tuple(values["models"])
        run(InferenceSettings(**values), "127.0.0.1", values["port"])
        return 0
    where = tables.circumstances()
    results = measure(options.rounds, options.streams, options.tokens, options.requests)
    print(f"{where}; {options.streams} streams, answers of {options.tokens} tokens\n")
    print(table(results))
    if options.json:
        loads = {name: [asdict(load) for load in loads] for name, loads in results.items()}
        content = {"circumstances": where, "rounds": loads}
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    share = tables.middle(_shares(results, TOGETHER)) or 0.0
    return 0 if share >= options.share else 1


if __name__ == "__main__":
    sys.exit(main())
