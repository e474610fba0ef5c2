"""One of the demo's workers: writes each row to the ledger before it returns, which acks it."""

import os
import time

from examples.demo.ledger import Ledger, Trip
from kyogo import Message, Worker

NAME = os.environ["WORKER"]
WORK_SECONDS = 0.002
"""What a row's real work would take."""

app = Worker(concurrency=4)
ledger = Ledger(os.environ["LEDGER"])


@app.handle("taxi")
def count(row: dict[str, str], message: Message) -> None:
    """A plain function: it runs in a thread, so it may block."""
    time.sleep(WORK_SECONDS)
    ledger.write(message.offset, Trip.of(row), NAME)


if __name__ == "__main__":
    app.run()
