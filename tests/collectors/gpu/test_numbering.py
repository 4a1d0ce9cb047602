from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from collectors.gpu.numbering import Numbering, Seen


def _read(numbering: Numbering, *devices: tuple[str, str]) -> dict[str, int]:
    reading = [Seen(index, uuid, "", pci) for index, (uuid, pci) in enumerate(devices)]
    found = numbering.take(reading)
    return {seen.uuid: device.number for seen, device in zip(reading, found, strict=True)}


def test_a_number_stays_when_an_earlier_device_goes() -> None:
    numbering = Numbering()
    assert _read(numbering, ("a", "1"), ("b", "2"), ("c", "3")) == {"a": 0, "b": 1, "c": 2}
    assert _read(numbering, ("b", "2"), ("c", "3")) == {"b": 1, "c": 2}
    assert [device.present for device in numbering.devices] == [False, True, True]
    assert _read(numbering, ("a", "1"), ("b", "2"), ("c", "3")) == {"a": 0, "b": 1, "c": 2}


def test_another_device_in_another_slot_gets_a_number_of_its_own() -> None:
    numbering = Numbering()
    _read(numbering, ("a", "1"), ("b", "2"))
    assert _read(numbering, ("new", "9"), ("b", "2")) == {"new": 2, "b": 1}


def test_another_device_in_the_same_slot_takes_its_number() -> None:
    numbering = Numbering()
    _read(numbering, ("a", "1"), ("b", "2"))
    assert _read(numbering, ("new", "1"), ("b", "2")) == {"new": 0, "b": 1}
    assert [device.uuid for device in numbering.devices] == ["new", "b"]


def test_a_device_that_tells_no_uuid_is_the_one_that_is_missing() -> None:
    numbering = Numbering()
    _read(numbering, ("a", "1"), ("b", "2"), ("c", "3"))
    found = numbering.take([Seen(0, "a"), Seen(1), Seen(2, "c")])
    assert [device.uuid for device in found] == ["a", "b", "c"]
    # With the first one gone, the others have moved up.
    found = numbering.take([Seen(0), Seen(1, "c")], listed={"2", "3"})
    assert [device.uuid for device in found] == ["b", "c"]
    assert [device.present for device in numbering.devices] == [False, True, True]


def test_a_device_that_could_not_be_read_at_first_keeps_its_number() -> None:
    numbering = Numbering()
    assert [device.number for device in numbering.take([Seen(0)])] == [0]
    assert _read(numbering, ("a", "1")) == {"a": 0}
    assert len(numbering.devices) == 1


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8), max_size=12))
def test_numbers_of_present_devices_differ_and_never_move(readings: list[list[str]]) -> None:
    numbering, known = Numbering(), {}
    for reading in readings:
        numbers = _read(numbering, *((uuid, uuid) for uuid in reading))
        assert len(set(numbers.values())) == len(numbers)
        assert all(known.setdefault(uuid, number) == number for uuid, number in numbers.items())


def test_it_does_not_grow_without_end() -> None:
    numbering = Numbering()
    for turn in range(1000):
        _read(numbering, (f"GPU-{turn}", str(turn)))
    assert len(numbering.devices) <= 256
