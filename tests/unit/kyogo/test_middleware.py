"""What runs around handlers."""

import asyncio
from typing import Any

import pytest

from kyogo.errors import ConfigurationError
from kyogo.message import Message
from kyogo.middleware import Chain, Middleware, idempotent
from kyogo.outcomes import ACK, Settlement
from kyogo.v1 import broker_pb2 as pb
from tests.support.sdk_sessions import attached_session, response


def message(**fields: Any) -> Any:
    session = attached_session()
    run = pb.DeliveryRun(first_fence=1, first_offset=7, messages=[pb.Message(**fields)])
    session.receive(response(deliveries=[run]))
    return session.take()


class Recorder(Middleware):
    def __init__(self, name: Any, log: Any) -> None:
        self.name, self.log = name, log

    async def before(self, message: Any) -> None:
        self.log.append(f"before {self.name}")

    async def around(self, message: Any, call_next: Any) -> None:
        self.log.append(f"in {self.name}")
        await call_next()
        self.log.append(f"out {self.name}")

    async def after(self, message: Any, settlement: Any) -> None:
        self.log.append(f"after {self.name} {settlement.outcome.name}")


async def test_the_first_is_the_outermost() -> None:
    log: list[str] = []
    chain = Chain()
    for name in "ab":
        chain.add(Recorder(name, log))

    async def handler() -> None:
        log.append("handler")

    await chain.run(message(), handler)
    await chain.tell(message(), ACK)
    assert log == [
        *("before a", "in a", "before b", "in b", "handler", "out b", "out a"),
        *("after a ACK", "after b ACK"),
    ]


async def test_what_is_not_overridden_costs_nothing() -> None:
    class OnlyAfter(Middleware):
        async def after(self, message: Any, settlement: Any) -> None: ...

    chain = Chain()
    chain.add(OnlyAfter())
    assert not chain.wraps
    assert chain.follows


async def test_before_can_decide() -> None:
    chain = Chain()
    called = []

    def refuse(message: Any) -> None:
        raise ValueError("no")

    chain.add_before(refuse)

    async def handler() -> None:
        called.append(1)

    with pytest.raises(ValueError, match="no"):
        await chain.run(message(), handler)
    assert called == []


async def test_around_sees_the_handlers_exception() -> None:
    chain = Chain()
    seen = []

    async def around(message: Any, call_next: Any) -> None:
        try:
            await call_next()
        except KeyError as error:
            seen.append(error)

    chain.add_around(around)

    async def handler() -> None:
        raise KeyError("k")

    await chain.run(message(), handler)
    assert len(seen) == 1


async def test_an_error_in_after_is_logged_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    chain = Chain()
    told = []

    def failing(message: Message, settlement: Settlement) -> None:
        raise ZeroDivisionError

    chain.add_after(failing)
    chain.add_after(lambda message, settlement: told.append(settlement))
    await chain.tell(message(), ACK)
    assert told == [ACK]
    assert "ZeroDivisionError" in caplog.text
    assert "its ACK stands" in caplog.text


def test_a_plain_around_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="async"):
        Chain().add_around(lambda message, call_next: None)  # type: ignore[arg-type, return-value]  # the point


class Store:
    def __init__(self) -> None:
        self.keys: set[str] = set()

    async def seen(self, key: Any) -> Any:
        await asyncio.sleep(0)
        return key in self.keys

    async def remember(self, key: Any) -> None:
        self.keys.add(key)


async def test_idempotent_skips_what_was_done() -> None:
    store, done = Store(), []
    chain = Chain()
    chain.add_around(idempotent(store))

    def handler(number: Any, *, fails: Any = False) -> Any:
        async def run() -> None:
            if fails:
                raise ValueError("failed")
            done.append(number)

        return run

    with pytest.raises(ValueError, match="failed"):
        await chain.run(message(id="a"), handler(0, fails=True))
    await chain.run(message(id="a"), handler(1))
    await chain.run(message(id="a"), handler(2))
    await chain.run(message(), handler(3))
    await chain.run(message(), handler(4))
    assert done == [1, 3]
    assert store.keys == {"a", "orders/7"}
