"""Publishes three orders and says where they are stored: `python examples/publish.py`."""

import asyncio

from kyogo import Publisher


async def main() -> None:
    """One message, then several; answered means durable."""
    async with Publisher() as publisher:
        first = await publisher.publish("orders", {"id": 1, "total": 9.5}, type="order.paid")
        more = await publisher.publish_many("orders", [{"id": number, "total": 20} for number in (2, 3)])
    print(first, more)


if __name__ == "__main__":
    asyncio.run(main())
