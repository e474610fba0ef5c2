"""What Kyogo offers to tests of others: the in-memory broker and its fixture."""

import asyncio
import subprocess
import sys
from typing import Any

import pytest

from kyogo import DeadLetter, Message, Publisher, Retry, Worker
from kyogo.admin.settings import QueueSettings
from kyogo.sync import Publisher as BlockingPublisher
from kyogo.testing import InMemoryBroker

pytest_plugins = ["kyogo.testing.pytest_plugin"]


def shop() -> Worker:
    """The application under test: it knows nothing of the test's broker but KYOGO_URL."""
    app = Worker(concurrency=4)

    @app.handle("orders", type="order.paid")
    async def paid(order: dict[str, Any], message: Message) -> None:
        if order["total"] < 0:
            raise DeadLetter("negative total")
        if order["total"] == 0:
            raise ValueError("nothing to pay")
        message.publish("mails", {"to": order["email"]}, headers={"order": str(order["id"])})

    @app.handle("mails")
    def mail(body: dict[str, Any]) -> None:
        assert "@" in body["to"]

    return app


async def test_an_order_sends_a_mail(kyogo_broker: InMemoryBroker) -> None:
    kyogo_broker.publish("orders", {"id": 1, "total": 5, "email": "a@b"}, type="order.paid")
    await kyogo_broker.run_until_idle(shop())
    (mail,) = kyogo_broker.published("mails")
    assert (mail.value, mail.headers, mail.offset, mail.dead_letter) == ({"to": "a@b"}, {"order": "1"}, 1, None)
    assert [m.type for m in kyogo_broker.published("orders")] == ["order.paid"]
    assert kyogo_broker.dead("orders") == []


def test_from_a_blocking_test(kyogo_broker: InMemoryBroker) -> None:
    with BlockingPublisher() as publisher:  # KYOGO_URL
        publisher.publish("orders", {"id": 1, "total": -5}, type="order.paid")
    asyncio.run(kyogo_broker.run_until_idle(shop()))
    (letter,) = kyogo_broker.dead("orders")
    assert letter.value == {"id": 1, "total": -5}
    assert letter.dead_letter is not None
    assert (letter.dead_letter.reason, letter.dead_letter.queue, letter.dead_letter.offset) == (
        "negative total",
        "orders",
        1,
    )


async def test_time_is_skipped_on_request(kyogo_broker: InMemoryBroker) -> None:
    kyogo_broker.publish("orders", {"id": 1, "total": 0}, type="order.paid")
    await kyogo_broker.run_until_idle(shop())
    assert kyogo_broker.dead("orders") == []  # it waits for its backoff
    await kyogo_broker.run_until_idle(shop(), skip_delays=True)
    (letter,) = kyogo_broker.dead("orders")
    assert letter.dead_letter is not None
    assert (letter.dead_letter.reason, letter.dead_letter.attempts) == ("max_attempts", 5)
    assert (letter.dead_letter.error_type, letter.dead_letter.last_error) == ("ValueError", "nothing to pay")


async def test_time_can_be_moved_by_hand_without_losing_consumers(kyogo_broker: InMemoryBroker) -> None:
    app, seen = Worker(), []

    @app.handle("orders")
    async def handle(body: str, message: Message) -> None:
        seen.append(message.attempt)
        if message.attempt == 1:
            raise Retry(after=3_600)

    kyogo_broker.publish("orders", "x")
    await kyogo_broker.run_until_idle(app)
    assert seen == [1]
    kyogo_broker.advance(3_599)
    await kyogo_broker.run_until_idle(app)
    assert seen == [1]
    kyogo_broker.advance(2)
    await kyogo_broker.run_until_idle(app)
    assert seen == [1, 2]


async def test_a_worker_that_is_never_idle_is_told(kyogo_broker: InMemoryBroker) -> None:
    app = Worker()

    @app.handle("orders")
    async def handle(body: str) -> None:
        await asyncio.Event().wait()

    kyogo_broker.publish("orders", "x")
    with pytest.raises(TimeoutError, match="orders: 0 ready, 1 in flight"):
        await kyogo_broker.run_until_idle(app, timeout=0.3)


async def test_queues_can_have_settings(kyogo_broker: InMemoryBroker) -> None:
    kyogo_broker.create_queue("orders", QueueSettings(max_attempts=1))
    kyogo_broker.publish("orders", {"id": 1, "total": 0}, type="order.paid")
    await kyogo_broker.run_until_idle(shop())
    assert len(kyogo_broker.dead("orders")) == 1


async def test_an_unknown_type_does_not_keep_it_from_being_idle(kyogo_broker: InMemoryBroker) -> None:
    kyogo_broker.publish("orders", {}, type="order.new")
    await kyogo_broker.run_until_idle(shop())
    assert len(kyogo_broker.published("orders")) == 1


async def test_each_test_has_its_own(kyogo_broker: InMemoryBroker) -> None:
    assert kyogo_broker.published("orders") == []
    with InMemoryBroker() as other:
        async with Publisher(other.url) as publisher:
            await publisher.publish("orders", b"x")
        assert len(other.published("orders")) == 1
        assert other.url != kyogo_broker.url
    other.close()
    assert kyogo_broker.published("orders") == []


def test_without_the_broker_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['kyogo_broker'] = None; import kyogo.sync, kyogo.testing.pytest_plugin\n"
    code += "from kyogo.testing import InMemoryBroker"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: kyogo.testing needs the broker itself: pip install 'kyogo[broker]'" in done.stderr
