"""Unary calls on one port: each gets its own answer."""

import asyncio

import pytest

from kyogo_broker.model.commands import PauseQueue
from kyogo_broker.model.effects import AdminDone
from kyogo_broker.model.errors import ErrorCode, Refusal, RefusedError
from kyogo_broker.server.calls import Calls
from kyogo_broker.server.stream import StreamClosedError
from tests.support.edge import FakeEngine, settle_down


def ask(calls: Calls) -> asyncio.Task[AdminDone]:
    command = lambda port, tag: PauseQueue(port, tag, "q", paused=True)  # noqa: E731
    return asyncio.create_task(calls.ask(AdminDone, command))


async def test_answers_find_their_callers_in_any_order() -> None:
    engine = FakeEngine()
    calls = Calls(engine)
    first, second = ask(calls), ask(calls)
    await settle_down()
    tags = [command.tag for command in engine.submitted if isinstance(command, PauseQueue)]
    assert len(set(tags)) == 2
    engine.release(1, AdminDone(1, tags[1], count=2), AdminDone(1, tags[0], count=1))
    assert [(await first).count, (await second).count] == [1, 2]


async def test_a_refusal_is_raised() -> None:
    engine = FakeEngine()
    calling = ask(Calls(engine))
    await settle_down()
    engine.release(1, AdminDone(1, 1, Refusal(ErrorCode.QUEUE_NOT_FOUND, "no")))
    with pytest.raises(RefusedError, match="no"):
        await calling


async def test_an_answer_to_a_caller_that_gave_up_is_dropped() -> None:
    engine = FakeEngine()
    calls = Calls(engine)
    calling = ask(calls)
    await settle_down()
    calling.cancel()
    await settle_down()
    engine.release(1, AdminDone(1, 1))
    assert calls._waiting == {}


async def test_closing_tells_who_waits() -> None:
    engine = FakeEngine()
    calls = Calls(engine)
    calling = ask(calls)
    await settle_down()
    calls.close(Refusal(ErrorCode.BROKER_DRAINING, "stopping"))
    with pytest.raises(StreamClosedError, match="stopping"):
        await calling
    assert engine.closed == [1]
