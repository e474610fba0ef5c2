"""What a session has to say, kept as facts until the stream can take a frame.

Never a queue of frames: fences that began and fences that ended, joined into ranges when the frame is made. So a
slow stream makes frames fuller, not more of them. Every frame stays below what a broker takes.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from kyogo import wire
from kyogo.delivery import RUNNING, Delivery
from kyogo.outcomes import ACK, Settlement

FENCES_PER_FRAME: Final = 4_096
"""Each of what began, was acked, and ended otherwise. All apart they are 12,288 ranges of some 200 KiB; a broker
takes 16,384 in a frame."""
SETTLEMENTS_PER_FRAME: Final = 1_024
"""A broker takes 4,096."""
FRAME_BYTES: Final = 1024 * 1024
"""A frame is filled with reasons and publishes up to this; a larger settlement goes without others of its kind."""
FRAME_BYTES_SPARE: Final = 256 * 1024
"""What stands in a frame beside its largest settlement."""


class Pending:
    """Facts about deliveries that the broker has not been told."""

    def __init__(self) -> None:
        self._started: list[Delivery] = []
        self._acks: list[int] = []
        self._others: dict[Settlement, list[int]] = {}
        self._units: deque[Delivery] = deque()
        self._extends: dict[int, list[int]] = {}

    def __bool__(self) -> bool:
        return bool(self._started or self._acks or self._others or self._units or self._extends)

    def started(self, delivery: Delivery) -> None:
        """Its handler began; told only if it still runs when the frame is made."""
        self._started.append(delivery)

    def settled(self, delivery: Delivery, settlement: Settlement) -> None:
        """It ended."""
        if settlement is not ACK:
            self._others.setdefault(settlement, []).append(delivery.fence)
        elif delivery.publishes:
            self._units.append(delivery)
        else:
            self._acks.append(delivery.fence)

    def extended(self, delivery: Delivery, extension_ms: int) -> None:
        """Its handler asks for more time."""
        self._extends.setdefault(extension_ms, []).append(delivery.fence)

    def fill(self, frame: wire.ConsumeRequest) -> None:
        """Put into a frame what fits."""
        if self._started:
            self._fill_started(frame)
        if self._acks:
            fences, self._acks = self._acks[:FENCES_PER_FRAME], self._acks[FENCES_PER_FRAME:]
            frame.settlements.append(_settlement(ACK, fences))
        if self._others or self._units:
            self._fill_settlements(frame)
        if self._extends:
            extension_ms, fences = self._extends.popitem()
            frame.extend.extension_ms = extension_ms
            frame.extend.ranges.extend(wire.fence_ranges(fences))

    def _fill_started(self, frame: wire.ConsumeRequest) -> None:
        now, self._started = self._started[:FENCES_PER_FRAME], self._started[FENCES_PER_FRAME:]
        fences = [delivery.fence for delivery in now if delivery.state == RUNNING]
        if fences:
            frame.started.extend(wire.fence_ranges(fences))

    def _fill_settlements(self, frame: wire.ConsumeRequest) -> None:
        room = _Room(FENCES_PER_FRAME, SETTLEMENTS_PER_FRAME, FRAME_BYTES)
        while self._others and room:
            settlement, fences = self._others.popitem()
            if len(fences) > room.fences:
                self._others[settlement] = fences[room.fences :]
                del fences[room.fences :]
            room.take(frame, _settlement(settlement, fences), len(fences))
        while self._units and room:
            delivery = self._units[0]
            unit = _settlement(ACK, [delivery.fence])
            unit.publish.extend(_requests(delivery.publishes or ()))
            if room.is_used and unit.ByteSize() > room.bytes:
                break
            self._units.popleft()
            room.take(frame, unit, 1)


@dataclass(slots=True)
class _Room:
    """What still goes into a frame."""

    fences: int
    settlements: int
    bytes: int
    is_used: bool = False

    def __bool__(self) -> bool:
        return self.fences > 0 and self.settlements > 0 and self.bytes > 0

    def take(self, frame: wire.ConsumeRequest, settlement: wire.Settlement, fences: int) -> None:
        frame.settlements.append(settlement)
        self.fences -= fences
        self.settlements -= 1
        self.bytes -= settlement.ByteSize()
        self.is_used = True


def _settlement(settlement: Settlement, fences: list[int]) -> wire.Settlement:
    return wire.Settlement(
        outcome=wire.OUTCOMES[settlement.outcome],
        ranges=wire.fence_ranges(fences),
        delay_ms=settlement.delay_ms,
        reason=settlement.reason,
        error_type=settlement.error_type,
    )


def _requests(publishes: Iterable[tuple[str, bytes]]) -> list[wire.PublishRequest]:
    """Publishes as requests, one for each destination, in the order of its publishes."""
    grouped: dict[str, list[bytes]] = {}
    for destination, message in publishes:
        grouped.setdefault(destination, []).append(message)
    return [
        wire.PublishRequest.FromString(wire.publish_request(destination, number, "", messages))
        for number, (destination, messages) in enumerate(grouped.items(), start=1)
    ]
