"""A web application in forked processes that publishes an order for each request.

    gunicorn --workers 4 --bind 127.0.0.1:8000 app:application
    python app.py 8000                              # the same in small, without gunicorn
    curl -d '{"id": 1}' http://127.0.0.1:8000/

gRPC does not survive a fork, so nothing may be connected before it. `kyogo.sync.Publisher` takes care of that: made
here, in the parent, it opens its connection in the process that publishes first.
"""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import make_server

from kyogo.errors import KyogoError
from kyogo.sync import Publisher

PROCESSES = 4
publisher = Publisher()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answers 202 when the order is durable, so that a client may forget it."""
    try:
        order = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0)))
        offset = publisher.publish("orders", order, type="order.placed")
    except ValueError as error:
        return _answer(start_response, "400 Bad Request", {"error": str(error)})
    except KyogoError as error:
        return _answer(start_response, "503 Service Unavailable", {"error": str(error)})
    return _answer(start_response, "202 Accepted", {"offset": offset, "pid": os.getpid()})


def _answer(start_response: Callable[..., Any], status: str, body: object) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json")])
    return [json.dumps(body).encode()]


def serve(port: int) -> None:
    """Fork, and answer in every process on one socket until SIGTERM."""
    with make_server("127.0.0.1", port, application) as server:
        print(f"listening on {server.server_port}", flush=True)
        children = []
        for _ in range(PROCESSES):
            if (child := os.fork()) == 0:
                server.serve_forever()
            children.append(child)

        def stop(*_: object) -> None:
            for child in children:
                os.kill(child, signal.SIGTERM)

        signal.signal(signal.SIGTERM, stop)
        for child in children:
            os.waitpid(child, 0)


if __name__ == "__main__":
    serve(int(sys.argv[1]))
