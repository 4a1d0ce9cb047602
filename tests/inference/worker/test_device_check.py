"""A library that moves a model without a word is found out by the next canary."""

import mmap
import socket
from types import SimpleNamespace

import pytest

from inference.engines.contract import DeviceLostError, Placement
from inference.worker.heartbeat import SIZE_BYTES
from inference.worker.process import Worker
from inference.worker.wire import DeviceChanged, FrameDecoder

CUDA = Placement("cuda", "cuda", "cuda", "cuda")
CPU = Placement("cpu", "cpu", "cpu", "cuda", "onnxruntime computes on cpu")


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def worker(ends):
    made = Worker(ends[0], mmap.mmap(-1, SIZE_BYTES))
    made._placement = CUDA
    return made


def _serve(worker, placement):
    class Workload:
        @property
        def placement(self):
            if isinstance(placement, Exception):
                raise placement
            return placement

    worker._served = SimpleNamespace(workload=Workload())


def _received(end):
    end.setblocking(False)
    frames = FrameDecoder()
    try:
        count = end.recv_into(frames.get_buffer())
    except BlockingIOError:
        return []
    return list(frames.received(count))


def test_a_model_that_stays_is_not_spoken_of(worker, ends):
    _serve(worker, CUDA)
    assert worker._check_device() == ""
    assert _received(ends[1]) == []


def test_a_model_that_fell_back_is_told_once_and_so_is_its_return(worker, ends):
    _serve(worker, CPU)
    assert worker._check_device() == worker._check_device() == ""
    assert _received(ends[1]) == [DeviceChanged("cpu", "onnxruntime computes on cpu")]
    _serve(worker, CUDA)
    worker._check_device()
    assert _received(ends[1]) == [DeviceChanged("cuda", "")]


def test_a_lost_device_is_a_reason_to_end_and_blames_no_request(worker, ends):
    worker._heartbeat.record.running_ids = (7,)
    _serve(worker, DeviceLostError("cudaMemGetInfo failed: cudaErrorNoDevice (100)"))
    assert "cudaErrorNoDevice" in worker._check_device()
    assert worker._heartbeat.record.running_ids == ()
    assert _received(ends[1]) == []
