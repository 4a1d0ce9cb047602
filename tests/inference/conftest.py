"""A tiny random decoder with a real attention cache, and a live service around it."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnx
import pytest
import uvicorn
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from inference.app import InferenceApp, create_app
from inference.engines.decoding import DecoderContext, derive_interface
from inference.engines.onnx import OnnxRuntime
from inference.model import read_metadata
from inference.server import server_config
from inference.settings import InferenceSettings
from inference.worker.cache import PrefixCache
from inference.worker.decoder import Decoder, DecoderLimits
from inference.worker.heartbeat import HeartbeatWriter
from inference.worker.prompts import PromptEncoder
from inference.worker.wire import Finished, Generate

LAYERS, HEADS, HEAD_DIM, CONTEXT = 2, 2, 8, 96
WIDTH = HEADS * HEAD_DIM
SPECIAL = ("<|pad|>", "<|end|>", "<|sentiment|>", "<|chat|>", "<|answer|>")
TOKEN = "test-token"


def _tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: number for number, piece in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


class _Graph:
    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        out = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def constant(self, array: Any, dtype: Any = np.int64) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array, dtype=dtype), name))
        return name

    def weight(self, *shape: int, scale: float = 0.5) -> str:
        return self.constant(self.rng.normal(0, scale, shape), np.float32)


def _bias(g: _Graph) -> str:
    """Attention bias [B, 1, T, S]: causal, and the mask."""
    total = g.op("Gather", g.op("Shape", "attention_mask"), g.constant(1))
    past = g.op("Gather", g.op("Shape", "past_key_values.0.key"), g.constant(2))
    keys = g.op("Range", g.constant(0), total, g.constant(1))
    queries = g.op("Range", past, total, g.constant(1))
    causal = g.op("LessOrEqual", keys, g.op("Unsqueeze", queries, g.constant([1])))
    mask = g.op("Unsqueeze", "attention_mask", g.constant([1, 2]))
    visible = g.op("And", g.op("Cast", mask, to=TensorProto.BOOL), causal)
    no, hidden = g.constant(0.0, np.float32), g.constant(-1e4, np.float32)
    return g.op("Where", visible, no, hidden)


def _layer(g: _Graph, i: int, x: str, bias: str) -> str:
    split = g.constant([0, 0, HEADS, HEAD_DIM])
    joined = g.constant([0, 0, WIDTH])

    def heads(weight: str) -> str:
        rows = g.op("Reshape", g.op("MatMul", x, weight), split)
        return g.op("Transpose", rows, perm=[0, 2, 1, 3])

    query, key, value = (heads(g.weight(WIDTH, WIDTH)) for _ in range(3))
    past = f"past_key_values.{i}"
    keys = g.op("Concat", f"{past}.key", key, axis=2, out=f"present.{i}.key")
    values = g.op("Concat", f"{past}.value", value, axis=2, out=f"present.{i}.value")
    scores = g.op("MatMul", query, g.op("Transpose", keys, perm=[0, 1, 3, 2]))
    weights = g.op("Softmax", g.op("Add", scores, bias), axis=-1)
    mixed = g.op("Transpose", g.op("MatMul", weights, values), perm=[0, 2, 1, 3])
    return g.op("Add", x, g.op("Tanh", g.op("Reshape", mixed, joined)))


def _model(vocabulary: int, seed: int) -> onnx.ModelProto:
    g = _Graph(seed)
    embedding = g.weight(vocabulary, WIDTH, scale=1.0)
    positions = g.weight(CONTEXT, WIDTH)
    x = g.op(
        "Add", g.op("Gather", embedding, "input_ids"), g.op("Gather", positions, "position_ids")
    )
    bias = _bias(g)
    for i in range(LAYERS):
        x = _layer(g, i, x, bias)
    # The end becomes certain with the position, so that every answer ends by itself.
    ramp = np.zeros(vocabulary)
    ramp[1] = 1.0
    column = g.op("Unsqueeze", g.op("Cast", "position_ids", to=TensorProto.FLOAT), g.constant([2]))
    late = g.op("Sub", column, g.constant(30.0, np.float32))
    logits = g.op("MatMul", x, g.op("Transpose", embedding, perm=[1, 0]))
    g.op("Add", logits, g.op("Mul", late, g.constant(ramp, np.float32)), out="logits")
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["B", length])
        for name, length in (("input_ids", "T"), ("attention_mask", "S"), ("position_ids", "T"))
    ]
    names = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]

    def cache(prefix: str, length: str) -> list[onnx.ValueInfoProto]:
        shape = ["B", HEADS, length, HEAD_DIM]
        return [
            helper.make_tensor_value_info(f"{prefix}.{name}", TensorProto.FLOAT, shape)
            for name in names
        ]

    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "T", vocabulary])]
    graph = helper.make_graph(
        g.nodes,
        "tiny",
        [*ids, *cache("past_key_values", "P")],
        [*outputs, *cache("present", "S")],
        g.constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_version(root: Path, model: str, version: int, seed: int) -> Path:
    """Write a version of a tiny model with golden prompts that it answers right."""
    folder = root / model / str(version)
    folder.mkdir(parents=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    onnx.save(_model(tokenizer.get_vocab_size(), seed), str(folder / "model.onnx"))
    lines = [
        f'name = "{model}"',
        f"version = {version}",
        f"max_context_tokens = {CONTEXT}",
        f"layers = {LAYERS}",
        f"heads = {HEADS}",
        f"head_dim = {HEAD_DIM}",
        'end_token = "<|end|>"',
        'pad_token = "<|pad|>"',
        "",
        "[prompts]",
        'sentiment = "<|sentiment|>{text}<|answer|>"',
        'chat = "<|chat|>{text}<|answer|>"',
        "",
    ]
    path = folder / "model.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    decoder = make_decoder(folder)
    for number, (task, text) in enumerate((("sentiment", "so bad"), ("chat", "hi you")), start=1):
        answer = generate(decoder, number, text, task=task)
        lines += [
            "[[golden]]",
            f'task = "{task}"',
            f'text = "{text}"',
            f"expected = {json.dumps(answer.text)}",
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return folder


def make_decoder(
    folder: Path,
    cache_bytes: int = 0,
    clock: Callable[[], float] = time.monotonic,
    **limits: Any,
) -> Decoder:
    """Return a decoder on a version folder."""
    metadata = read_metadata(folder)
    engine = OnnxRuntime().load(folder)
    interface = derive_interface(engine.signature, str(folder))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return Decoder(
        DecoderContext(engine.create_context(), interface),
        tokenizer,
        metadata,
        encoder=PromptEncoder(tokenizer, metadata),
        shape=interface.shape,
        cache=PrefixCache(cache_bytes),
        heartbeat=HeartbeatWriter.private(),
        clock=clock,
        limits=DecoderLimits(**{"stream_interval_seconds": 0.0, **limits}),
    )


def request(number: int, text: str, **changes: Any) -> Generate:
    """Return a greedy request."""
    values = {
        "task": "chat",
        "max_tokens": 64,
        "temperature": 0.0,
        "top_p": 1.0,
        "seed": 0,
        "stop": [],
        "stream": False,
        "deadline": float("inf"),
        "canary": False,
    }
    return Generate(number=number, text=text, **{**values, **changes})


def generate(decoder: Decoder, number: int, text: str, **changes: Any) -> Finished:
    """Decode one request to its end."""
    events = decoder.start(request(number, text, **changes))
    while decoder.active:
        events += decoder.step()
    assert isinstance(events[-1], Finished), events
    return events[-1]


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of two models; nobody writes to it."""
    root = tmp_path_factory.mktemp("repository")
    write_version(root, "tiny", 1, seed=1)
    write_version(root, "tiny-small", 1, seed=2)
    return root


@pytest.fixture
def own_repository(tmp_path: Path) -> Path:
    """A repository that the test may change."""
    root = tmp_path / "models"
    write_version(root, "tiny", 1, seed=1)
    write_version(root, "tiny-small", 1, seed=2)
    return root


class Live:
    """A running service on a free port."""

    def __init__(self, app: InferenceApp, sockets: Any) -> None:
        self.app = app
        self.sockets = sockets
        port = sockets[0].getsockname()[1]
        self.service = app.service
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=30.0)
        self.admin = httpx.Client(
            base_url=self.url, timeout=30.0, headers={"authorization": f"Bearer {TOKEN}"}
        )

    def complete(self, prompt: str = "hello", **fields: Any) -> httpx.Response:
        """Ask for a completion."""
        headers = fields.pop("headers", None)
        return self.client.post(
            "/v1/completions", json={"prompt": prompt, **fields}, headers=headers
        )

    def fault(self, name: str, **parameters: Any) -> None:
        """Inject a fault."""
        answer = self.admin.post("/admin/faults", json={"fault": name, "parameters": parameters})
        assert answer.status_code == 201, answer.text

    def metric(self, name: str, **labels: str) -> float | None:
        """Read the sum of the series that match, None where there is none."""
        values = []
        for line in self.client.get("/metrics").text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(
                f'{key}="{text}"' in series for key, text in labels.items()
            ):
                values.append(float(value))
        return sum(values) if values else None


def eventually(condition: Callable[[], Any], what: str, limit_seconds: float = 30.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + limit_seconds
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.02)


@contextmanager
def run_service(
    repository: Path, state_dir: Path, *, wait_ready: bool = True, **settings: Any
) -> Iterator[Live]:
    """Run the real application with real workers in this process."""
    values = {
        "models": ("tiny", "tiny-small"),
        "allow_faults": True,
        "admin_token": TOKEN,
        "chat_deadline_seconds": 10.0,
        "sentiment_deadline_seconds": 10.0,
        "canary_interval_seconds": 0.2,
        "supervisor_interval_seconds": 0.05,
        "max_output_tokens": 64,
        "automatic_degradation": False,
    }
    app = create_app(
        InferenceSettings(repository=repository, state_dir=state_dir, **{**values, **settings})
    )
    config = server_config(app, "127.0.0.1", 0)
    config.timeout_graceful_shutdown = 2
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, name="uvicorn")
    thread.start()
    try:
        eventually(lambda: server.started, "the server listens")
        live = Live(app, server.servers[0].sockets)
        with live.client, live.admin:
            if wait_ready:
                eventually(lambda: live.client.get("/health/ready").status_code == 200, "ready")
            yield live
    finally:
        server.should_exit = True
        thread.join(20)


@dataclass(frozen=True)
class Served:
    """A service in a process of its own."""

    process: subprocess.Popen[bytes]
    port: int

    def ready(self, client: httpx.Client) -> bool:
        """Say whether it wants traffic."""
        try:
            return client.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def serve(repository: Path, state_dir: Path, **settings: Any) -> Iterator[Served]:
    """Run the service under its own server in its own process, as in production."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    values = {
        "repository": str(repository),
        "state_dir": str(state_dir),
        "models": ["tiny", "tiny-small"],
        "allow_faults": True,
        "admin_token": TOKEN,
        "chat_deadline_seconds": 20.0,
        **settings,
    }
    program = f"""
import json
from inference.server import run
from inference.settings import InferenceSettings
run(InferenceSettings.model_validate_json({json.dumps(values)!r}), "127.0.0.1", {port})
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    served = Served(process, port)
    try:
        with process, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30.0) as client:
            eventually(lambda: served.ready(client), "ready")
            yield served
            process.terminate()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def live(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A service shared by tests that leave it as they found it."""
    with run_service(repository, tmp_path_factory.mktemp("state")) as running:
        yield running


class Toolbox:
    """The functions above, for tests: conftest modules cannot be imported."""

    make_decoder = staticmethod(make_decoder)
    request = staticmethod(request)
    generate = staticmethod(generate)
    eventually = staticmethod(eventually)
    write_version = staticmethod(write_version)
    run_service = staticmethod(run_service)
    serve = staticmethod(serve)
    token = TOKEN


@pytest.fixture(scope="session")
def tools() -> type[Toolbox]:
    """Helpers of this folder."""
    return Toolbox


@pytest.fixture(scope="session")
def folder(repository: Path) -> Path:
    """Version 1 of the model `tiny`."""
    return repository / "tiny" / "1"
