"""The workload of tensor models: one batch at a time, arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from inference.engines.contract import (
    Array,
    Context,
    Engine,
    EngineLoadError,
    EngineStepError,
    Placement,
    TensorSpec,
)
from inference.model import GoldenTensors, ModelFormatError, TensorMetadata, read_metadata
from inference.tensor.datatypes import TensorInfo, datatype_of, to_array, to_buffer
from inference.tensor.golden import difference
from inference.worker.frames import BatchDone, RunBatch, Tensor
from inference.worker.heartbeat import HeartbeatWriter, LoadPhase
from inference.worker.wire import Failed, Message, Ready, Request, WireError
from inference.worker.workload import LoadContext, load_engine


class TensorWorkload:
    """Runs batches behind the worker's shell; see `Workload`."""

    def __init__(
        self,
        metadata: TensorMetadata,
        engine: Engine,
        context: Context,
        heartbeat: HeartbeatWriter,
        clock: Callable[[], float],
    ) -> None:
        self._metadata = metadata
        self._engine = engine
        self._context = context
        self._heartbeat = heartbeat
        self._clock = clock
        signature = engine.signature
        self.inputs = tuple(_info(spec, "input") for spec in signature.inputs)
        self.outputs = tuple(_info(spec, "output") for spec in signature.outputs)
        self._names = [info.name for info in self.outputs]
        fixed = [spec.name for spec in signature.inputs if spec.shape[0] == 1]
        self.max_batch_rows = 1 if fixed else metadata.max_batch_rows or 0
        self.active = 0

    def describe(self) -> Ready:
        """Say what was loaded, with the model's own names, types and shapes."""
        return Ready(
            version=self._metadata.version,
            engine=self._engine.kind,
            device=self._engine.device,
            load_seconds=0.0,
            inputs=[info.to_wire() for info in self.inputs],
            outputs=[info.to_wire() for info in self.outputs],
            max_batch_rows=self.max_batch_rows,
        )

    @property
    def placement(self) -> Placement:
        """Where the model is, asked of the library anew."""
        return self._engine.placement()

    def start(self, request: Request) -> Sequence[Message]:
        """Compute a batch and return its outputs, or why there are none."""
        if not isinstance(request, RunBatch):
            raise WireError(f"a tensor model does not take {type(request).__name__}")
        try:
            return [self._run(request)]
        except EngineStepError as error:
            return [Failed(request.number, error.code, str(error))]
        except ValueError as error:
            return [Failed(request.number, "step_failed", f"the batch cannot be read: {error}")]

    def step(self) -> Sequence[Message]:
        """Nothing: a batch is computed in one go."""
        return ()

    def cancel(self, number: int) -> Sequence[Message]:  # noqa: ARG002 - the contract's signature
        """Nothing: a batch holds requests of several clients, and runs to its end."""
        return ()

    def clear_cache(self) -> None:
        """Nothing is kept."""

    def use_heartbeat(self, heartbeat: HeartbeatWriter) -> None:
        """Report to another record from now on."""
        self._heartbeat = heartbeat

    def close(self) -> None:
        """Give back the engine's memory."""
        self._engine.close()

    def prove(self) -> str:
        """Compute every golden example; return what was wrong, or nothing."""
        for number, golden in enumerate(self._metadata.golden, start=1):
            try:
                outputs, rows = self._compute_golden(golden)
            except EngineStepError as error:
                return f"golden example {number}: {error}"
            wrong = difference(golden.outputs, outputs, golden.tolerance)
            if wrong or _invalid_rows(list(outputs.values()), rows):
                return f"golden example {number}: {wrong or 'the output is not finite'}"
        return ""

    def warm_up(self) -> None:
        """Run what the model declares to be right, and see that rows do not touch each other.

        Raises:
            EngineLoadError: a golden example does not run, or a row's answer depends on its
                neighbours, who may be other people's.
        """
        for golden in self._metadata.golden:
            try:
                single, rows = self._compute_golden(golden)
                if self.max_batch_rows == 0 or 2 * rows <= self.max_batch_rows:
                    self._check_rows(golden, single, rows)
            except EngineStepError as error:
                raise EngineLoadError(f"a golden example does not run: {error}") from error

    def _check_rows(self, golden: GoldenTensors, single: Mapping[str, Array], rows: int) -> None:
        """Compute an example beside another row; its answer must not change."""
        feeds = self._golden_feeds(golden)
        # Reversed rows are legal input and different neighbours.
        doubled = {name: np.concatenate([array, array[::-1]]) for name, array in feeds.items()}
        outputs = self._compute(doubled, 2 * rows)
        own = {name: array[:rows] for name, array in outputs.items()}
        wrong = difference(single, own, max(golden.tolerance, _ROWS_TOLERANCE))
        if wrong and not _invalid_rows(list(single.values()), rows):
            raise EngineLoadError(
                f"the rows of a batch influence each other ({wrong}): axis 0 is not a batch; "
                "say max_batch_rows = 1 in model.toml"
            )

    def _compute_golden(self, golden: GoldenTensors) -> tuple[dict[str, Array], int]:
        feeds = self._golden_feeds(golden)
        rows = len(next(iter(feeds.values())))
        return self._compute(feeds, rows), rows

    def _golden_feeds(self, golden: GoldenTensors) -> dict[str, Array]:
        wanted = {info.name for info in self.inputs}
        if set(golden.inputs) != wanted:
            raise EngineLoadError(
                f"a golden example has the inputs {sorted(golden.inputs)}, "
                f"the model {sorted(wanted)}"
            )
        try:
            return {
                info.name: np.asarray(golden.inputs[info.name], dtype=info.datatype.dtype)
                for info in self.inputs
            }
        except (ValueError, TypeError, OverflowError) as error:
            raise EngineLoadError(f"a golden example cannot be fed: {error}") from error

    def _run(self, batch: RunBatch) -> BatchDone:
        """Compute a batch with the heartbeat around it."""
        feeds = {
            info.name: to_array(tensor.datatype, tensor.shape, tensor.data[0])
            for info, tensor in zip(self.inputs, batch.tensors, strict=True)
        }
        record = self._heartbeat.record
        record.batch_size = batch.rows
        record.running_ids = (batch.number,)
        record.deadline = batch.deadline
        record.step_started_at = started = self._clock()
        self._heartbeat.write()
        try:
            outputs = list(self._compute(feeds, batch.rows).values())
            invalid = _invalid_rows(outputs, batch.rows)
        finally:
            ended = self._clock()
            record.steps += 1
            record.last_step_at = ended
            record.busy_seconds += ended - started
            record.batch_size = 0
            record.running_ids = ()
            record.deadline = 0.0
        record.invalid_outputs += bool(invalid)
        tensors = [
            Tensor(info.datatype, array.shape, (to_buffer(array),))
            for info, array in zip(self.outputs, outputs, strict=True)
        ]
        return BatchDone(batch.number, batch.rows, started, ended, tensors, invalid)

    def _compute(self, feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Run the engine, and see that every output has a row for each row of the batch.

        Raises:
            EngineStepError: the engine failed, or gave something else.
        """
        outputs = {
            name: np.asarray(value) for name, value in self._context.run(feeds, self._names).items()
        }
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != rows:
                raise EngineStepError(
                    f"the output {name} has the shape {list(array.shape)} for {rows} rows"
                )
        return outputs


# Batches of other sizes are added up in another order.
_ROWS_TOLERANCE = 1e-3


def _invalid_rows(outputs: Sequence[Array], rows: int) -> tuple[int, ...]:
    """Return the rows in which an output is not finite."""
    invalid: Any = None
    for array in outputs:
        # One sum finds any NaN or infinity at a fraction of the cost of looking at each value.
        if array.dtype.kind != "f" or np.isfinite(array.sum(dtype=np.float64)):
            continue
        bad = ~np.isfinite(array.reshape(rows, -1)).all(axis=1)
        invalid = bad if invalid is None else invalid | bad
    return () if invalid is None else tuple(int(row) for row in np.flatnonzero(invalid))


def _info(spec: TensorSpec, side: str) -> TensorInfo:
    """Describe an input or output in the protocol's terms."""
    try:
        datatype = datatype_of(spec.dtype)
    except ValueError as error:
        raise EngineLoadError(f"the {side} {spec.name}: {error}") from error
    if not spec.shape:
        raise EngineLoadError(f"the {side} {spec.name} is a scalar; it needs a batch axis")
    if side == "input" and isinstance(spec.shape[0], int) and spec.shape[0] > 1:
        raise EngineLoadError(
            f"axis 0 of the input {spec.name} is fixed at {spec.shape[0]}; export the model with "
            "a dynamic batch axis"
        )
    sizes = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in spec.shape[1:])
    return TensorInfo(spec.name, datatype, (-1, *sizes))


def load_tensors(folder: Path, context: LoadContext) -> TensorWorkload:
    """Load a tensor model from its version folder and run it once.

    Raises:
        EngineError: it cannot be loaded, or is not a model of independent rows.
        ModelFormatError: ``model.toml`` cannot be used.
    """
    metadata = read_metadata(folder)
    if not isinstance(metadata, TensorMetadata):
        raise ModelFormatError(f"{folder} is not a tensor model")
    engine = load_engine(folder, metadata, context)
    variant = metadata.variants.get(context.variant)
    if variant is not None and variant.tolerance is not None:
        tolerant = (replace(golden, tolerance=variant.tolerance) for golden in metadata.golden)
        metadata = replace(metadata, golden=tuple(tolerant))
    context.enter(LoadPhase.COMPILE)
    execution = context.faults.wrap(engine.create_context())
    workload = TensorWorkload(metadata, engine, execution, context.heartbeat, context.clock)
    context.enter(LoadPhase.WARM_UP)
    workload.warm_up()
    return workload
