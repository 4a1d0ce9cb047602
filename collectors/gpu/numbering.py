"""Gives every GPU a number that stays, though NVML numbers the GPUs that it sees from zero each time.

When a GPU falls off the bus, NVML's next start moves the numbers of those after it. A series of
``host/box/gpu/1`` that silently goes on with another device would be worse than none.
"""

from __future__ import annotations

from dataclasses import dataclass

_MOST_DEVICES = 256


@dataclass(slots=True)
class Device:
    """A GPU that has been seen."""

    number: int
    index: int
    uuid: str
    name: str
    pci: str
    present: bool = True


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

    def begin(self) -> None:
        """Start a reading: nothing is present until it is seen."""
        for device in self._devices.values():
            device.present = False

    def see(self, *, index: int, uuid: str, name: str, pci: str) -> Device:
        """Return the device of a reading.

        Without a UUID, which a lost device does not tell, it is the one that was last at this index.
        """
        device = self._devices.get(uuid) if uuid else self._last_at(index)
        if device is None:
            device = self._add(index, uuid or _nameless(index), name, pci)
        device.present, device.index = True, index
        return device

    def at(self, index: int) -> Device | None:
        """Return the device that NVML last had at an index."""
        return self._last_at(index)

    def _last_at(self, index: int) -> Device | None:
        found = [device for device in self._devices.values() if device.index == index]
        return max(found, key=lambda device: device.present, default=None)

    def _add(self, index: int, uuid: str, name: str, pci: str) -> Device:
        number = self._number_for(index, pci)
        replaced = [old for old, device in self._devices.items() if device.number == number]
        for old in replaced:
            del self._devices[old]
        if len(self._devices) >= _MOST_DEVICES:
            gone = next((old for old, one in self._devices.items() if not one.present), None)
            del self._devices[gone or next(iter(self._devices))]
        device = self._devices[uuid] = Device(number, index, uuid, name, pci)
        return device

    def _number_for(self, index: int, pci: str) -> int:
        nameless = self._devices.get(_nameless(index))
        if nameless is not None:  # what could not be read before is this one
            return nameless.number
        for device in self._devices.values():
            if pci and device.pci == pci and not device.present:
                return device.number
        taken = {device.number for device in self._devices.values()}
        if index not in taken:
            return index
        return next(number for number in range(len(taken) + 1) if number not in taken)


def _nameless(index: int) -> str:
    return f"index-{index}"
