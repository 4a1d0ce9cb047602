"""Gives every GPU a number that stays, though NVML numbers the GPUs that it sees from zero each time.

When a GPU falls off the bus, NVML's next start moves the numbers of those after it. A series of
``host/box/gpu/1`` that silently goes on with another device would be worse than none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

_MOST_DEVICES = 256
_PLACEHOLDER = "index-"


@dataclass(frozen=True, slots=True)
class Seen:
    """A device of one reading, as NVML tells it; a device that is lost tells no more than its index."""

    index: int
    uuid: str = ""
    name: str = ""
    pci: str = ""


@dataclass(slots=True)
class Device:
    """A GPU that has been seen."""

    number: int
    index: int
    uuid: str
    name: str
    pci: str
    present: bool = True

    @property
    def uuid_is_known(self) -> bool:
        """Whether the UUID is the device's own, and not a stand-in for one that told none."""
        return not self.uuid.startswith(_PLACEHOLDER)


class Numbering:
    """Numbers GPUs by their UUID: the first time by NVML's index, and then always the same.

    A device that is new takes the number of one that is gone only in the same slot (PCI address); else
    it takes NVML's index when that is free, or the next number that is.
    """

    def __init__(self) -> None:
        self._devices: dict[str, Device] = {}

    @property
    def devices(self) -> list[Device]:
        """Every GPU that has been seen and not replaced, in the order of their numbers."""
        return sorted(self._devices.values(), key=lambda device: device.number)

    def take(self, reading: Sequence[Seen], listed: Collection[str] = ()) -> list[Device]:
        """Return the devices of a reading, in its order; those that are not in it are not present.

        Args:
            reading: what NVML lists.
            listed: PCI addresses of the devices that the kernel's module has; empty when not known.
        """
        for device in self._devices.values():
            device.present = False
        found: dict[int, Device] = {}
        for seen in reading:
            if seen.uuid in self._devices:
                found[seen.index] = self._mark(self._devices[seen.uuid], seen.index)
        nameless = [seen for seen in reading if seen.index not in found and not seen.uuid]
        for seen, known in zip(nameless, self._missing(nameless, listed), strict=True):
            found[seen.index] = self._mark(known or self._add(seen), seen.index)
        for seen in reading:
            if seen.index not in found:
                found[seen.index] = self._mark(self._add(seen), seen.index)
        return [found[seen.index] for seen in reading]

    def _mark(self, device: Device, index: int) -> Device:
        device.present, device.index = True, index
        return device

    def _missing(self, nameless: Sequence[Seen], listed: Collection[str]) -> list[Device | None]:
        """Return which of the known devices those must be that tell no UUID: the missing ones.

        NVML lists devices in the order of their addresses, so that when as many are missing as are
        nameless, the order tells them apart. When more are missing, the kernel's list says which of
        them are there at all; without one, those that were last at the same index are the best guess.
        """
        missing = [device for device in self.devices if not device.present]
        there = [device for device in missing if device.pci in listed] or missing
        if len(there) == len(nameless):
            return [*sorted(there, key=lambda device: device.pci)]
        by_index = {device.index: device for device in there}
        return [by_index.get(seen.index) for seen in nameless]

    def _add(self, seen: Seen) -> Device:
        number = self._number_for(seen)
        replaced = [old for old, device in self._devices.items() if device.number == number]
        for old in replaced:
            del self._devices[old]
        if len(self._devices) >= _MOST_DEVICES:
            gone = next((old for old, one in self._devices.items() if not one.present), None)
            del self._devices[gone or next(iter(self._devices))]
        uuid = seen.uuid or _placeholder(seen.index)
        device = self._devices[uuid] = Device(number, seen.index, uuid, seen.name, seen.pci)
        return device

    def _number_for(self, seen: Seen) -> int:
        placeholder = self._devices.get(_placeholder(seen.index))
        if placeholder is not None:  # what could not be read before is this one
            return placeholder.number
        for device in self._devices.values():
            if seen.pci and device.pci == seen.pci and not device.present:
                return device.number
        taken = {device.number for device in self._devices.values()}
        if seen.index not in taken:
            return seen.index
        return next(number for number in range(len(taken) + 1) if number not in taken)


def _placeholder(index: int) -> str:
    return f"{_PLACEHOLDER}{index}"
