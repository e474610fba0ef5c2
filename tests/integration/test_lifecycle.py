"""Real processes: how a broker starts, what it says, how it stops, and how it fails."""

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import httpx
import pytest
import pytest_asyncio

from kyogo.v1 import broker_pb2 as pb
from kyogo.v1 import broker_pb2_grpc
from tests.support.edge import Consumer, failure_of
from tests.support.processes import Process, Processes, processes


@pytest_asyncio.fixture
async def children(tmp_path: Path) -> AsyncIterator[Processes]:
    async with processes(tmp_path) as started:
        yield started


def serve(children: Processes, name: str, *options: str, **environment: str) -> Process:
    free = ("--listen", "127.0.0.1:0", "--http", "127.0.0.1:0")
    return children.python(name, "-m", "kyogo_broker", "serve", *free, *options, **environment)


async def failed(process: Process, code: int) -> str:
    """What a process says that is expected to end with `code`: few lines, and never a traceback."""
    assert await process.exited(20) == code, process.log()
    said = process.log().strip()
    assert "Traceback" not in said
    assert said
    return said


async def scripted(children: Processes, script: Path, directory: Path) -> tuple[str, Process]:
    """A broker that was tampered with by a script, and its address."""
    ready = directory / "ready.json"
    options = ("--listen", "127.0.0.1:0", "--http", "off", "--data", str(directory / "d"))
    process = children.python(script.stem, str(script), *options, "--ready-file", str(ready))
    await process.wrote("broker_started")
    return json.loads(ready.read_text())["listen"], process


async def get(http: str, path: str, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=f"http://{http}") as client:
        return await client.get(path, headers=headers)


async def test_a_broker_starts_serves_and_stops(children: Processes, tmp_path: Path) -> None:
    broker = await children.broker()
    ready = json.loads((tmp_path / "broker.ready.json").read_text())
    assert ready["pid"] == broker.pid
    async with grpc.aio.insecure_channel(broker.address) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        info = await stub.GetServerInfo(pb.GetServerInfoRequest())
        assert info.durability == pb.DURABILITY_FSYNC
        await stub.Publish(pb.PublishRequest(destination="orders", messages=[pb.Message(body=b"a")] * 3))
    assert await broker.stop() == 0
    assert not (tmp_path / "broker.ready.json").exists()
    await broker.start()
    started = [json.loads(line) for line in broker.log().splitlines() if "broker_started" in line]
    assert [line["history"].partition(" in ")[0] for line in started] == ["new", "recovered 3 messages"]
    assert started[0]["data"] == str(tmp_path / "broker.data")


async def test_the_http_port_answers_probes_and_scrapes(children: Processes) -> None:
    broker = await children.broker()
    async with grpc.aio.insecure_channel(broker.address) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        await stub.Publish(pb.PublishRequest(destination="orders", messages=[pb.Message(body=b"a")]))
    assert (await get(broker.http, "/healthz")).text == "ok\n"
    ready = await get(broker.http, "/readyz")
    assert (ready.status_code, ready.text) == (200, "ready\n")
    metrics = await get(broker.http, "/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    assert 'kyogo_queue_messages{queue="orders",state="ready"} 1.0' in metrics.text
    assert "kyogo_commit_seconds_bucket" in metrics.text
    missing = await get(broker.http, "/nothing")
    assert missing.status_code == 404
    assert "/metrics" in missing.text
    assert "server" not in missing.headers


async def test_a_stop_waits_for_what_is_in_flight(children: Processes) -> None:
    broker = await children.broker()
    async with grpc.aio.insecure_channel(broker.address) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        await stub.Publish(pb.PublishRequest(destination="orders", messages=[pb.Message(body=b"a")] * 2))
        consumer = Consumer(stub.Consume())
        await consumer.attach("orders", capabilities=["started", "drain"], prefetch=pb.Prefetch(messages=1))
        [(fence, _)] = await consumer.delivered(1)
        broker.send(signal.SIGTERM)
        told = await consumer.until(lambda frame: frame.HasField("drain"))
        assert told.drain.deadline_ms == 10_000
        failure = await failure_of(
            stub.Publish(pb.PublishRequest(destination="orders", messages=[pb.Message(body=b"late")]))
        )
        assert (failure.code, failure.reason) == (grpc.StatusCode.UNAVAILABLE, "BROKER_DRAINING")
        assert failure.retry_after_ms is not None
        ready = await get(broker.http, "/readyz")
        assert (ready.status_code, ready.text) == (503, "stopping\n")
        assert broker.running
        [result] = await consumer.settle(fence)
        assert result.status == pb.SETTLE_STATUS_OK
        ended = await failure_of(consumer.call)
        assert (ended.code, ended.reason) == (grpc.StatusCode.UNAVAILABLE, "BROKER_DRAINING")
        assert ended.retry_after_ms is not None
    assert await broker.exited() == 0


async def test_a_stop_answers_the_last_settlement_though_the_disk_is_slow(children: Processes, tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, threading\n"
        "from concurrent.futures import Future\n"
        "from kyogo_broker.journal import segments\n"
        "from kyogo_broker.__main__ import main\n"
        "append = segments.SegmentJournal.append\n"
        "def slow(self, sequence, parts, **options):\n"
        "    done = append(self, sequence, parts, **options)\n"
        "    later = Future()\n"
        "    threading.Timer(0.3, lambda: later.set_result(done.result())).start()\n"
        "    return later\n"
        "segments.SegmentJournal.append = slow\n"
        "main(sys.argv[1:])\n"
    )
    address, process = await scripted(children, script, tmp_path)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        await stub.Publish(pb.PublishRequest(destination="orders", messages=[pb.Message(body=b"a")]))
        consumer = Consumer(stub.Consume())
        await consumer.attach("orders", capabilities=["drain"])
        [(fence, _)] = await consumer.delivered(1)
        process.send(signal.SIGTERM)
        await consumer.until(lambda frame: frame.HasField("drain"))
        [result] = await consumer.settle(fence)
        assert result.status == pb.SETTLE_STATUS_OK
        consumer.call.cancel()
    assert await process.exited() == 0


async def test_the_grace_ends_a_stop_and_charges_nobody(children: Processes) -> None:
    broker = await children.broker("--grace-seconds", "0.2")
    async with grpc.aio.insecure_channel(broker.address) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        await stub.Publish(pb.PublishRequest(destination="orders", messages=[pb.Message(body=b"a")]))
        consumer = Consumer(stub.Consume())
        await consumer.attach("orders")
        await consumer.delivered(1)
        broker.send(signal.SIGTERM)
        assert (await failure_of(consumer.call)).reason == "BROKER_DRAINING"
        assert await broker.exited(5) == 0
    await broker.start()
    async with grpc.aio.insecure_channel(broker.address) as channel:
        consumer = Consumer(broker_pb2_grpc.BrokerServiceStub(channel).Consume())
        await consumer.attach("orders")
        [run] = (await consumer.until(lambda frame: frame.deliveries)).deliveries
        assert run.redelivery_reason == pb.REDELIVERY_REASON_BROKER_RESTART
        assert (run.attempt, run.losses) == (1, 0)
        consumer.call.cancel()


async def test_a_second_signal_ends_the_wait(children: Processes) -> None:
    broker = await children.broker("--grace-seconds", "60")
    async with grpc.aio.insecure_channel(broker.address) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        await stub.Publish(pb.PublishRequest(destination="orders", messages=[pb.Message(body=b"a")]))
        consumer = Consumer(stub.Consume())
        await consumer.attach("orders")
        await consumer.delivered(1)
        broker.send(signal.SIGTERM)
        await broker.wrote("broker_stopping")
        broker.send(signal.SIGINT)
        assert await broker.exited(5) == 0
        consumer.call.cancel()


async def test_a_data_directory_in_use_is_one_line(children: Processes, tmp_path: Path) -> None:
    await children.broker()
    second = serve(children, "second", "--data", str(tmp_path / "broker.data"))
    said = await failed(second, 1)
    assert "in use" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("setting", ["listen", "http"])
async def test_an_occupied_port_is_one_line(children: Processes, tmp_path: Path, setting: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = serve(children, "late", f"--{setting}", address, "--data", str(tmp_path / "d"))
        said = await failed(process, 1)
    assert f"--{setting}" in said
    assert address in said
    assert len(said.splitlines()) == 1


async def test_two_brokers_never_share_a_port(children: Processes, tmp_path: Path) -> None:
    first = await children.broker()
    second = serve(children, "second", "--listen", first.address, "--data", str(tmp_path / "d2"))
    assert first.address in await failed(second, 1)


async def test_a_directory_that_cannot_be_written_is_one_line(children: Processes, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    process = serve(children, "late", "--data", str(file / "below"))
    said = await failed(process, 1)
    assert str(file) in said


async def test_a_damaged_journal_is_one_line(children: Processes, tmp_path: Path) -> None:
    broker = await children.broker()
    await broker.stop()
    (tmp_path / "broker.data" / "meta").write_bytes(b"\0" * 4_096)
    process = serve(children, "late", "--data", str(tmp_path / "broker.data"))
    said = await failed(process, 1)
    assert "inspect" in said or "restore" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--listen", "7440"), "HOST:PORT"),
        (("--listen", "0.0.0.0:0"), "--insecure"),
        (("--log-level", "loud"), "log_level"),
        (("--config", "nowhere.toml"), "no such file"),
        (("--no-such-option",), "No such option"),
    ],
)
async def test_wrong_settings_end_with_2(children: Processes, options: tuple[str, ...], words: str) -> None:
    process = children.python("wrong", "-m", "kyogo_broker", *options)
    assert words in await failed(process, 2)


async def test_a_failed_append_stops_the_broker_loudly(children: Processes, tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(
        "import sys\n"
        "from concurrent.futures import Future\n"
        "from kyogo_broker.journal import segments\n"
        "from kyogo_broker.__main__ import main\n"
        "append, count = segments.SegmentJournal.append, 0\n"
        "def failing(self, sequence, parts, **options):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count < 3:\n"
        "        return append(self, sequence, parts, **options)\n"
        "    future = Future()\n"
        "    future.set_exception(OSError(5, 'Input/output error'))\n"
        "    return future\n"
        "segments.SegmentJournal.append = failing\n"
        "main(sys.argv[1:])\n"
    )
    address, process = await scripted(children, script, tmp_path)
    async with grpc.aio.insecure_channel(address) as channel:
        stub = broker_pb2_grpc.BrokerServiceStub(channel)
        request = pb.PublishRequest(destination="orders", messages=[pb.Message(body=b"a")])
        await stub.Publish(request)
        failure = await failure_of(stub.Publish(request))
        assert failure.code == grpc.StatusCode.UNAVAILABLE, "not answered: whoever asked sends it again"
    said = await failed(process, 3)
    assert "Input/output error" in said


async def test_an_ephemeral_broker_leaves_nothing(children: Processes, tmp_path: Path) -> None:
    broker = await children.broker("--ephemeral")
    async with grpc.aio.insecure_channel(broker.address) as channel:
        info = await broker_pb2_grpc.BrokerServiceStub(channel).GetServerInfo(pb.GetServerInfoRequest())
    assert info.durability == pb.DURABILITY_MEMORY
    assert await broker.stop() == 0
    assert not (tmp_path / "broker.data").exists()


async def test_inspect_shows_what_is_there(children: Processes, tmp_path: Path) -> None:
    broker = await children.broker()
    await broker.stop()
    process = children.python("inspect", "-m", "kyogo_broker", "inspect", str(tmp_path / "broker.data"))
    assert await process.exited() == 0
    assert "directory" in process.log()
    damaged = children.python("damaged", "-m", "kyogo_broker", "inspect", str(tmp_path / "nothing"))
    assert await damaged.exited() == 4


async def test_the_version_is_shown(children: Processes) -> None:
    process = children.python("version", "-m", "kyogo_broker", "version")
    assert await process.exited() == 0
    assert process.log().startswith("kyogo 0.")


async def test_missing_extras_are_named(children: Processes, tmp_path: Path) -> None:
    (tmp_path / "structlog.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'structlog'\", name='structlog')"
    )
    process = children.python("bare", "-m", "kyogo_broker", "--listen", "127.0.0.1:0", PYTHONPATH=str(tmp_path))
    said = await failed(process, 1)
    assert "pip install 'kyogo[broker]'" in said
    assert "structlog" in said


async def test_a_terminal_gets_a_banner(tmp_path: Path) -> None:
    controller, terminal = os.openpty()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kyogo_broker", "--listen", "127.0.0.1:0", "--http", "off", "--data", str(tmp_path / "d"),
        stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    said = b""
    loop = asyncio.get_running_loop()
    while b"Next:" not in said:
        said += await asyncio.wait_for(loop.run_in_executor(None, os.read, controller, 4_096), 20)
    process.terminate()
    assert await process.wait() == 0
    os.close(controller)
    text = said.decode()
    assert "Kyogo 0." in text
    assert str(tmp_path / "d") in text
    assert "(new)" in text
    assert "kyogo --help" in text
