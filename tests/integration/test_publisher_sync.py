"""The blocking publisher: threads, forks, the end of the process. The broker runs in a thread of its own."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from kyogo import ClosedError, EncodeError, NewMessage, OffsetRun, QueueNotFoundError, UnavailableError
from kyogo.sync import Publisher
from kyogo.v1 import broker_pb2 as pb
from tests.support.fake_broker import FakeBroker

SECONDS = 20


@pytest.fixture
def broker() -> Iterator[Any]:
    """In a loop of its own, so that blocking callers do not block it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    running = FakeBroker()
    asyncio.run_coroutine_threadsafe(running.start(), loop).result(SECONDS)
    yield running
    asyncio.run_coroutine_threadsafe(running.stop(), loop).result(SECONDS)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(SECONDS)
    loop.close()


def test_one_message_after_the_other(broker: FakeBroker) -> None:
    with Publisher(broker.url) as publisher:
        assert [publisher.publish("orders", {"n": n}, type="t") for n in range(3)] == [1, 2, 3]
    assert broker.bodies("orders") == [b'{"n":0}', b'{"n":1}', b'{"n":2}']
    assert broker.stored["orders"][0].type == "t"


def test_threads_share_one_stream(broker: FakeBroker) -> None:
    with Publisher(broker.url) as publisher:
        start = threading.Barrier(10)

        def publish(name: int) -> None:
            start.wait(SECONDS)
            for n in range(20):
                publisher.publish("orders", f"{name}.{n}")

        threads = [threading.Thread(target=publish, args=(name,)) for name in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
    stored = [body.decode() for body in broker.bodies("orders")]
    assert len(stored) == len(set(stored)) == 200
    for name in range(10):  # each thread's own are in order
        mine = [body for body in stored if body.startswith(f"{name}.")]
        assert mine == [f"{name}.{n}" for n in range(20)]
    assert broker.publish_streams == 1


def test_publish_many(broker: FakeBroker) -> None:
    with Publisher(broker.url) as publisher:
        assert publisher.publish_many("orders", (f"{n}" for n in range(5_000))) == [OffsetRun(1, 5_000)]
        assert publisher.publish_many("orders", [NewMessage(b"x", id="i")]) == [OffsetRun(5_001, 1)]
        assert publisher.publish_many("orders", []) == []
    assert broker.bodies("orders")[:5_000] == [b"%d" % n for n in range(5_000)]


def test_errors_come_out_where_they_belong(broker: FakeBroker) -> None:
    refusal = pb.Error(code=pb.ERROR_CODE_QUEUE_NOT_FOUND, message="no")
    broker.on_publish = lambda request: pb.PublishResponse(request_id=request.request_id, error=refusal)
    with Publisher(broker.url) as publisher:
        with pytest.raises(QueueNotFoundError):
            publisher.publish("orders", b"x")
        with pytest.raises(QueueNotFoundError):
            publisher.publish_many("orders", [b"x"])
        with pytest.raises(EncodeError):
            publisher.publish("orders", object())
        broker.on_publish = broker.store
        assert publisher.publish("orders", b"x") == 1


def test_nobody_there() -> None:
    with Publisher("127.0.0.1:1", timeout=0.3) as publisher, pytest.raises(UnavailableError):
        publisher.publish("orders", b"x")


def test_disconnect_and_close(broker: FakeBroker) -> None:
    publisher = Publisher(broker.url)
    assert publisher.disconnect()
    assert publisher.publish("orders", b"x") == 1
    assert publisher.disconnect()
    assert not [t for t in threading.enumerate() if t.name == "kyogo-publisher"]
    assert publisher.publish("orders", b"x") == 2
    publisher.close()
    publisher.close()
    assert broker.publish_streams == 2
    with pytest.raises(ClosedError):
        publisher.publish("orders", b"x")


def test_what_is_unconfirmed_keeps_it_connected(broker: FakeBroker) -> None:
    broker.on_publish = lambda request: None
    publisher = Publisher(broker.url, timeout=1.0)
    thread = threading.Thread(target=_publish_in_vain, args=(publisher,))
    thread.start()
    while not broker.requests:
        thread.join(0.01)
    assert not publisher.disconnect(timeout=0.05)
    thread.join(SECONDS)
    publisher.close()


def _publish_in_vain(publisher: Publisher) -> None:
    with contextlib.suppress(TimeoutError):
        publisher.publish("orders", b"x")


# --- forks, in processes of their own: this one has a broker's threads in it ---


def run(broker: FakeBroker, code: str, *, before: str = "") -> list[str]:
    """Runs a program; what it printed. It hangs for ever if a fork goes wrong, hence the limit."""
    program = "import os, sys, threading\nfrom kyogo.sync import Publisher\npublisher = Publisher()\n"
    program += textwrap.dedent(before) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "KYOGO_URL": broker.url},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


PREFORK = """
    children = []
    for name in range(4):
        child = os.fork()
        if child == 0:
            for n in range(10):
                publisher.publish("orders", f"{name}.{n}")
            sys.exit(0)
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        assert status == 0, status
"""


def test_a_preforking_server_that_has_not_published(broker: FakeBroker) -> None:
    run(broker, PREFORK)
    assert sorted(broker.bodies("orders")) == sorted(b"%d.%d" % (c, n) for c in range(4) for n in range(10))
    assert len({request.producer_id for request in broker.requests}) == 4
    assert broker.publish_streams == 4


def test_a_preforking_server_that_has_published_before(broker: FakeBroker) -> None:
    run(
        broker,
        PREFORK + '\n    publisher.publish("orders", b"parent, later")\n',
        before='publisher.publish("orders", b"parent")\n',
    )
    stored = broker.bodies("orders")
    assert len(stored) == len(set(stored)) == 42
    assert len({request.producer_id for request in broker.requests}) == 6  # one for each time it was opened


def test_a_fork_beside_threads_that_publish(broker: FakeBroker) -> None:
    run(
        broker,
        """
        stop = threading.Event()
        def work():
            while not stop.is_set():
                publisher.publish("orders", b"thread")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for _ in range(5):
            child = os.fork()
            if child == 0:
                publisher.publish("orders", b"child")
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        stop.set()
        for thread in threads: thread.join()
        """,
    )
    assert broker.bodies("orders").count(b"child") == 5


def test_a_child_of_a_parent_with_unconfirmed_messages_is_refused(broker: FakeBroker) -> None:
    broker.on_publish = lambda request: None
    printed = run(
        broker,
        """
        import kyogo.sync, time
        kyogo.sync._FORK_TIMEOUT = 0.1
        publisher.timeout = 3.0
        def work():
            try: publisher.publish("orders", b"x")
            except TimeoutError: pass
        thread = threading.Thread(target=work)
        thread.start()
        while publisher._thread is None or not publisher._thread.publisher._outbox.messages: time.sleep(0.01)
        child = os.fork()
        if child == 0:
            try: publisher.publish("orders", b"child")
            except kyogo.sync.ForkedError as error: print(error.code, flush=True)
            os._exit(0)
        print(os.waitpid(child, 0)[1])
        thread.join()
        """,
    )
    # A busy machine shows it: gRPC's own threads may crash the child within the fork. It never hangs or publishes.
    assert printed in (["FORKED", "0"], [str(signal.SIGSEGV.value)])
    assert b"child" not in broker.bodies("orders")


def test_nothing_is_opened_by_making_one() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import threading\nfrom kyogo.sync import Publisher\nPublisher()\nprint(threading.active_count())",
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=True,
    )
    assert done.stdout == "1\n"
