"""The ten-line worker: `python examples/worker.py`, then `kyogo publish orders --json -`."""

from kyogo import Message, Worker

app = Worker(concurrency=16)  # KYOGO_URL says where the broker is


@app.handle("orders")
async def order(body: dict[str, object], message: Message) -> None:
    """Returning acks it."""
    print(f"order {body['id']}: offset {message.offset}, attempt {message.attempt}", flush=True)


if __name__ == "__main__":
    app.run()  # SIGTERM finishes what runs, and leaves
