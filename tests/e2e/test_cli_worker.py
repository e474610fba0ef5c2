"""`kyogo worker`: a module's worker in one process or several, which share, die and stop."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.command import Kyogo
from tests.support.processes import Broker, Processes
from tests.support.queues import make_queue, stats_of, stats_when
from tests.support.raw_consumer import publish

QUEUE = "orders"
WORKER = """
import json, os, sys
from kyogo import Message, Worker

app = Worker(concurrency=2)

@app.handle("orders")
async def order(body: dict, message: Message) -> None:
    print(json.dumps({"pid": os.getpid(), "body": body}), flush=True)
    if "die" in body and not os.path.exists(body["die"]):
        open(body["die"], "w").close()
        os._exit(9)
"""


@pytest.fixture
def module(tmp_path: Path) -> Path:
    """A module with a worker, in the directory that commands run in."""
    (tmp_path / "jobs.py").write_text(WORKER)
    return tmp_path


def path(module: Path) -> str:
    """Where children find the module, and whatever this process finds."""
    return os.pathsep.join([str(module), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.mark.parametrize(
    ("target", "says"),
    [("nowhere:app", "nowhere"), ("jobs:nothing", "nothing of that name"), ("jobs:json", "kyogo.Worker")],
)
@pytest.mark.parametrize("processes", ["1", "2"])
async def test_a_worker_that_cannot_be_loaded_is_usage(
    offline: Kyogo, module: Path, target: str, says: str, processes: str
) -> None:
    done = await offline("worker", target, "--processes", processes)
    assert done.code == 2
    assert says in done.err


async def test_several_processes_share_die_and_stop(children: Processes, broker: Broker, module: Path) -> None:
    await make_queue(broker.address, QUEUE)
    command = (sys.executable, "-m", "kyogo.cli", "worker", "jobs:app", "--processes", "3")
    supervisor = children.run("supervisor", *command, KYOGO_URL=broker.address, PYTHONPATH=path(module))
    await stats_when(broker.address, QUEUE, lambda stats: stats.consumers == 3, "three consumers")

    # One that dies is replaced; what it ran is not lost, it goes to another one.
    die_once = json.dumps({"die": str(module / "died")}).encode()
    await publish(broker.address, QUEUE, die_once, content_type="application/json")
    await supervisor.wrote("ended with exit code 9; another one starts")
    stats = await stats_when(
        broker.address, QUEUE, lambda stats: stats.consumers == 3 and not stats.in_flight, "three consumers again"
    )
    assert (stats.finished, stats.redelivered) == ({"acked": 1}, {"stream_loss": 1})
    assert await supervisor.stop() == 0
    assert (await stats_of(broker.address, QUEUE)).consumers == 0


async def test_a_killed_supervisor_takes_its_workers_with_it(children: Processes, broker: Broker, module: Path) -> None:
    await make_queue(broker.address, QUEUE)
    command = (sys.executable, "-m", "kyogo.cli", "worker", "jobs:app", "--processes", "2")
    supervisor = children.run("supervisor", *command, KYOGO_URL=broker.address, PYTHONPATH=path(module))
    await stats_when(broker.address, QUEUE, lambda stats: stats.consumers == 2, "two consumers")
    supervisor.send(signal.SIGKILL)
    await stats_when(broker.address, QUEUE, lambda stats: stats.consumers == 0, "no consumers")
