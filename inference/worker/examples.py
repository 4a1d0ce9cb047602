"""Golden prompts: asks a model and writes its answer into ``model.toml``, for a person to judge.

``python -m inference.worker.examples FOLDER "What is the capital of France?"``

Without one a model is never ready: there is nothing by which the canary could tell right from wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from inference.engines.contract import EngineError
from inference.model import CHAT_TASK, METADATA_FILE, ModelFormatError
from inference.worker.faults import FaultInjector
from inference.worker.generation import load_generation
from inference.worker.heartbeat import HeartbeatWriter
from inference.worker.wire import Finished, Start
from inference.worker.workload import LoadContext


def add_golden(
    folder: Path, task: str, text: str, *, max_tokens: int | None = None, engine: str = "onnx"
) -> str:
    """Append a golden prompt to ``folder/model.toml``; return the answer that it expects.

    Args:
        folder: Version folder of a language model.
        task: Task of the question.
        text: The question.
        max_tokens: Cut the answer here; None for a model that ends its answers.
        engine: Library that runs the model.

    Raises:
        EngineError: the model cannot be loaded, or does not answer.
        ModelFormatError: ``model.toml`` cannot be used.
    """
    start = Start(folder=str(folder), engine=engine, threads=1, cache_bytes=0, faults=[])
    clock = time.monotonic
    context = LoadContext(start, FaultInjector(clock), HeartbeatWriter.private(), clock)
    answer = load_generation(folder, context).answer(1, task, text, max_tokens)
    if not isinstance(answer, Finished):
        raise EngineError(f"{folder} does not answer: {answer}")
    if max_tokens is None and answer.finish_reason == "length":
        max_tokens = answer.completion_tokens
    lines = ["", "[[golden]]", f"task = {_quoted(task)}", f"text = {_quoted(text)}"]
    lines.append(f"expected = {_quoted(answer.text)}")
    if max_tokens is not None:
        lines.append(f"max_tokens = {max_tokens}")
    with (folder / METADATA_FILE).open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return answer.text


def _quoted(text: str) -> str:
    """Write a TOML string; JSON's escapes are TOML's, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def main() -> int:
    """Ask and write."""
    parser = argparse.ArgumentParser(description="Add a golden prompt to a model.toml.")
    parser.add_argument("folder", type=Path, help="version folder of a language model")
    parser.add_argument("text", help="the question")
    parser.add_argument("--task", default=CHAT_TASK)
    parser.add_argument("--max-tokens", type=int, help="cut the answer here")
    options = parser.parse_args()
    try:
        answer = add_golden(
            options.folder, options.task, options.text, max_tokens=options.max_tokens
        )
    except (EngineError, ModelFormatError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{answer}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
