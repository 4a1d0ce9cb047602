from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from collectors.gpu.numbering import Numbering


def _read(numbering: Numbering, *devices: tuple[str, str]) -> dict[str, int]:
    numbering.begin()
    return {
        uuid: numbering.see(index=index, uuid=uuid, name="", pci=pci).number
        for index, (uuid, pci) in enumerate(devices)
    }


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


def test_a_device_that_tells_no_uuid_is_the_one_that_was_last_there() -> None:
    numbering = Numbering()
    _read(numbering, ("a", "1"), ("b", "2"))
    numbering.begin()
    assert numbering.see(index=1, uuid="", name="", pci="").uuid == "b"


def test_a_device_that_could_not_be_read_at_first_keeps_its_number() -> None:
    numbering = Numbering()
    numbering.begin()
    assert numbering.see(index=0, uuid="", name="", pci="").number == 0
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
