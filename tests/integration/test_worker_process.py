"""`app.run()`: a process with signals, an exit code and logs."""

import asyncio
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from tests.support.fake_broker import FakeBroker, eventually, fake_broker

SECONDS = 20


@pytest.fixture
async def broker() -> AsyncIterator[Any]:
    async with fake_broker() as running:
        yield running


PROGRAM = """
import asyncio, sys, threading, time
from kyogo import Worker, WorkerSettings
app = Worker(settings=WorkerSettings(url=sys.argv[1], concurrency=2, grace={grace}))

@app.handle("orders")
async def handle(body: str) -> None:
    print("began", body, flush=True)
    if body == "long":
        await asyncio.Event().wait()
    if body == "short":
        while app.stats().prefetch:  # until the drain has begun
            await asyncio.sleep(0.01)

@app.handle("threads")
def stuck(body: str) -> None:
    print("began", body, flush=True)
    time.sleep(60)

app.run()
print("left", flush=True)
"""


async def start(broker: FakeBroker, *, grace: float = 10.0) -> asyncio.subprocess.Process:
    program = textwrap.dedent(PROGRAM.format(grace=grace))
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, broker.url), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )


async def end_of(process: asyncio.subprocess.Process) -> tuple[int | None, str, str]:
    async with asyncio.timeout(SECONDS):
        out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_and_ends_with_0(broker: FakeBroker, number: Any) -> None:
    process = await start(broker)
    session = await broker.session()
    session.deliver(b"short")
    await eventually(lambda: session.started == [1])
    process.send_signal(number)
    code, out, err = await end_of(process)
    assert (code, out) == (0, "began short\nleft\n")
    assert session.outcomes == {1: "ACK"}
    assert session.detached
    assert "draining" in err  # logs go to standard error when the program has set up none


async def test_a_second_signal_stops_at_once(broker: FakeBroker) -> None:
    process = await start(broker)
    session = await broker.session()
    session.deliver(b"long")
    await eventually(lambda: session.started == [1])
    process.send_signal(signal.SIGTERM)
    await eventually(lambda: session.prefetch == 0)
    process.send_signal(signal.SIGTERM)
    code, out, _ = await end_of(process)
    assert (code, out) == (128 + signal.SIGTERM, "began long\n")
    assert session.outcomes == {}
    assert not session.detached
    await session.ended.wait()


async def test_past_the_grace_it_leaves_even_with_a_stuck_thread(broker: FakeBroker) -> None:
    process = await start(broker, grace=0.1)
    session = await broker.session()
    session.deliver(b"stuck", subscription=1)
    session.deliver(b"long")
    await eventually(lambda: sorted(session.started) == [1, 2])
    process.send_signal(signal.SIGTERM)
    code, out, err = await end_of(process)
    assert (code, out.splitlines()[-1]) == (0, "left")
    assert session.outcomes == {2: "RELEASE"}  # the stuck one goes back with the detach
    assert session.detached
    assert "did not stop" in err


async def test_a_drain_by_the_broker_ends_the_process_with_0(broker: FakeBroker) -> None:
    process = await start(broker)
    session = await broker.session()
    session.send(drain={"reason": "scaled in", "deadline_ms": 1_000})
    assert (await end_of(process))[:2] == (0, "left\n")


async def test_a_worker_that_is_not_let_in_fails_and_says_why(broker: FakeBroker) -> None:
    def on_attach(session: Any) -> bool:
        session.end(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", "show a token: KYOGO_TOKEN")
        return False

    broker.on_attach = on_attach
    process = await start(broker)
    code, out, err = await end_of(process)
    assert (code, out) == (1, "")
    assert "UNAUTHENTICATED: show a token: KYOGO_TOKEN" in err.splitlines()[-1]
