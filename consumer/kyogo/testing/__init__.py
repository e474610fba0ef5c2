"""Tests of programs that use Kyogo: a real broker in memory, in this process.

    def test_a_paid_order_sends_a_mail(kyogo_broker):
        kyogo_broker.publish("orders", {"id": 1, "email": "a@b"}, type="order.paid")
        asyncio.run(kyogo_broker.run_until_idle(app))
        assert [m.value for m in kyogo_broker.published("mails")] == [{"to": "a@b"}]

Needs the broker: `pip install 'kyogo[broker]'`. The fixture comes from `kyogo.testing.pytest_plugin`. Nothing of the
broker is imported before it is used, so that the plugin can stand by where only the client is installed.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kyogo.testing.broker import InMemoryBroker
    from kyogo.testing.record import PublishedMessage

__all__ = ["InMemoryBroker", "PublishedMessage"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from kyogo.testing import broker  # noqa: PLC0415 - see above

    return getattr(broker, name)
