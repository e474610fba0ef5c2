"""Streams between clients and the broker, and the broker's side of them.

A stream keeps its order. What it carries can be late, and is lost with it; either side may not notice for long.
"""

from collections import Counter, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from kyogo_broker.engine import Engine
from kyogo_broker.model.commands import Attach, Command, Detach, Heartbeat, StreamEnded
from kyogo_broker.model.effects import AttachRefused, Effect, EndStream
from tests.simulation.world import Actor, World

Frame = Callable[[int], Sequence[Command]]
"""Makes the commands of a frame, given the port."""

ECHO = "heartbeat"
"""What the edge answers to a heartbeat, without asking the shard."""


class Peer(Protocol):
    """A client's end of streams."""

    actor: Actor

    def receive(self, link: "Link", effects: Sequence[Effect | str]) -> None:
        """A frame has come."""

    def lost(self, link: "Link") -> None:
        """The stream is over."""


class Host(Protocol):
    """Where streams go."""

    engine: Engine | None
    process: Actor
    cover: Counter[str]
    grain: int
    """Microseconds: what comes within so many comes at once."""

    def accept(self, link: "Link") -> None:
        """A stream was opened."""


class Link:
    """One stream, as the network sees it."""

    def __init__(self, world: World, host: Host, peer: Peer) -> None:
        self.world = world
        self.host = host
        self.peer = peer
        self.edge: Edge | None = None
        self.over = False
        """For the client."""
        self.up_cut = self.down_cut = False
        """Nothing comes through any more, and nobody is told."""
        self.latency = world.between(50, 1_500)
        self.grain = host.grain
        self.cover = host.cover
        self.slow_until = 0
        self._up_at = self._down_at = 0
        self._batch: list[Effect | str] = []
        self._batch_at = -1
        world.after(self.latency, host.process, host.accept, self)

    def send(self, frame: Frame, size: int = 0) -> None:
        """Client to broker."""
        if self.up_cut:
            self.cover["frame to the broker lost with its stream"] += 1
        else:
            self._up_at = self._arrival(self._up_at)
            self.world.at(self._up_at, self.host.process, self._up, frame, size)

    def deliver(self, effect: Effect | str) -> None:
        """Broker to client; what is sent at one instant travels together."""
        if self.down_cut:
            self.cover["frame to a client lost with its stream"] += 1
            return
        if self._batch_at != self.world.now:
            self._batch, self._batch_at = [], self.world.now
            self._down_at = self._arrival(self._down_at)
            self.world.at(self._down_at, self.peer.actor, self._down, self._batch)
        self._batch.append(effect)

    def cut(self, *, client: bool, broker: bool) -> None:
        """The network drops the stream; says who is told."""
        self.up_cut = self.down_cut = True
        if client:
            self.world.after(self.latency, self.peer.actor, self.end)
        if broker and self.edge is not None:
            self.world.after(self.latency, self.host.process, self.edge.lose)

    def hang_up(self) -> None:
        """The client ends the stream; the broker hears of it after all that was sent, if anything comes through."""
        self.over = True
        if not self.up_cut:
            self.up_cut = True
            self._up_at = self._arrival(self._up_at)
            self.world.at(self._up_at, self.host.process, self._hung_up)

    def end(self) -> None:
        """The client hears that the stream is over."""
        if not self.over:
            self.over = True
            self.peer.lost(self)

    def refuse(self) -> None:
        """Nobody listens there."""
        self.world.after(self.latency, self.peer.actor, self.end)

    def close(self) -> None:
        """The broker ends the stream; the client hears of it after all that was sent."""
        if not self.down_cut:
            self.down_cut = True
            self._down_at = self._arrival(self._down_at)
            self.world.at(self._down_at, self.peer.actor, self.end)

    def _arrival(self, last: int) -> int:
        world = self.world
        when = world.now + self.latency + int(world.random.random() * self.latency)
        when = max(last, when, self.slow_until)
        return when + -when % self.grain

    def _up(self, frame: Frame, size: int) -> None:
        if self.edge is not None and not self.edge.over:
            self.edge.receive(frame, size)
        else:
            self.cover["frame to the broker lost with its stream"] += 1

    def _down(self, effects: Sequence[Effect | str]) -> None:
        if not self.over:
            self.peer.receive(self, effects)
        else:
            self.cover["frame to a client lost with its stream"] += 1

    def _hung_up(self) -> None:
        if self.edge is not None:
            self.edge.lose()


class Watch(Protocol):
    """Sees what crosses the edge."""

    def released(self, edge: "Edge", effect: Effect) -> None:
        """The engine let go of it."""


class Edge:
    """The broker's end of a stream: what `server/session` and `server/publish` are to the engine."""

    def __init__(self, world: World, engine: Engine, link: Link, watch: Watch) -> None:
        self.world = world
        self.link = link
        self.watch = watch
        self.attach: Attach | None = None
        self.over = False
        self.heard_at = world.now
        self._engine = engine
        self._detached = False
        self._waiting: deque[tuple[Command, int]] = deque()
        self._submitting: Coroutine[Any, Any, None] | None = None
        self.port = engine.open_port(self)

    @property
    def blocked(self) -> bool:
        """Whether the inbox has no room for more of this port."""
        return self._submitting is not None

    def receive(self, frame: Frame, size: int) -> None:
        """A frame has come from the client."""
        if self.over or self._detached:
            return
        self.heard_at = self.world.now
        for command in frame(self.port):
            if type(command) is Heartbeat:
                self.link.deliver(ECHO)
            self._waiting.append((command, size))
            size = 0
        if self._submitting is None:
            self._submit()

    def take(self, effect: Effect) -> None:
        """Accept an effect; the engine's promise is that it is durable."""
        self.watch.released(self, effect)
        self.link.deliver(effect)
        if isinstance(effect, EndStream | AttachRefused):
            self.world.after(0, self.link.host.process, self.finish)

    def finish(self) -> None:
        """All was said; the stream ends."""
        self.link.close()
        self.lose()

    def lose(self) -> None:
        """The stream is over, whatever the cause; the shard is told once."""
        if not self.over:
            self._end()
            if self.attach is not None:
                self._engine.submit_now(StreamEnded(self.port))
            self._engine.close_port(self.port)

    def abandon(self) -> None:
        """The broker stops, nobody is charged: the shard is not told."""
        if not self.over:
            self.link.close()
            self._end()
            self._engine.close_port(self.port)

    def _end(self) -> None:
        self.over = True
        self._waiting.clear()

    def _submit(self) -> None:
        while self._waiting and not self.over:
            command, size = self._waiting.popleft()
            if type(command) is Attach:
                self.attach = command
            elif type(command) is Detach:
                self._detached = True
            self._submitting = self._engine.submit(command, port=self.port, size=size)
            self._step()
            if self._submitting is not None:
                return

    def _step(self, _: object = None) -> None:
        """Drive the coroutine: a task a frame would be most of what a history costs."""
        assert self._submitting is not None
        try:
            future = self._submitting.send(None)
        except StopIteration:
            self._submitting = None
        else:
            future._asyncio_future_blocking = False
            future.add_done_callback(self._room)

    def _room(self, _: object) -> None:
        self._step()
        if self._submitting is None:
            self._submit()
