"""The command line as its users meet it: real commands against a real broker, output and exit codes."""

import asyncio
import json
import os
import pty
import sys
from pathlib import Path

import pytest

from tests.support.command import Kyogo
from tests.support.processes import Broker, Processes, until
from tests.support.queues import drained, make_queue, stats_of, stats_when
from tests.support.raw_consumer import attached, publish

QUEUE = "orders"
# --- publish and consume ---


async def test_publish_takes_lines_json_a_body_and_standard_input(kyogo: Kyogo, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a\nb ü\n\nd")
    (tmp_path / "rows.jsonl").write_text('{"n": 1}\n\n[2]\n')
    (tmp_path / "rows.json").write_text('[{"n": 1},\n "x"]')
    commands = [
        (("--lines", "lines"), "", ["a", "b ü", "", "d"]),
        (("--json", "rows.jsonl"), "", ['{"n": 1}', "[2]"]),
        (("--json", "rows.json"), "", ['{"n": 1}', '"x"']),
        (("--body", "one\ntwo"), "", ["one\ntwo"]),
        (("-",), "x\ny\n", ["x", "y"]),
        (("--json", "-"), "3\n", ["3"]),
    ]
    first = 1
    for arguments, stdin, bodies in commands:
        done = await kyogo("publish", QUEUE, *arguments, stdin=stdin)
        last = first + len(bodies) - 1
        where = f"offset {first}" if len(bodies) == 1 else f"offsets {first} to {last}"
        noun = "message" if len(bodies) == 1 else "messages"
        assert (done.code, done.out) == (0, f"{len(bodies)} {noun} published to {QUEUE}, {where}\n"), done.err
        read = await kyogo("consume", QUEUE, "--json", "--count", str(len(bodies)))
        assert [json.loads(line)["body"] for line in read.out.splitlines()] == bodies
        first = last + 1


async def test_what_is_said_of_a_message_travels_with_it(kyogo: Kyogo) -> None:
    await kyogo("publish", QUEUE, "--body", "x", "--type", "order.paid", "--header", "a=b=c", "--header", "d=")
    read = (await kyogo("consume", QUEUE, "--json", "--count", "1")).json
    assert (read["type"], read["headers"], read["queue"]) == ("order.paid", {"a": "b=c", "d": ""}, QUEUE)
    assert (read["offset"], read["attempt"], read["losses"]) == (1, 1, 0)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [('{"id": 1}', "application/json"), ("[1]", "application/json"), ("1", "text/plain"), ("{hello", "text/plain")],
)
async def test_a_typed_body_is_json_if_it_looks_so(kyogo: Kyogo, body: str, content_type: str) -> None:
    await kyogo("publish", QUEUE, "--body", body)
    read = (await kyogo("consume", QUEUE, "--json", "--count", "1")).json
    assert (read["body"], read["content_type"].partition(";")[0]) == (body, content_type)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--lines"),
        (("--body", "x", "--lines", "f"), "one of"),
        (("--lines", "nowhere"), "nowhere"),
        (("--body", "x", "--header", "a"), "NAME=VALUE"),
    ],
)
async def test_a_wrong_publish_is_usage(offline: Kyogo, arguments: tuple[str, ...], says: str) -> None:
    done = await offline("publish", QUEUE, *arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err


async def test_json_that_is_none_names_its_line(kyogo: Kyogo) -> None:
    done = await kyogo("publish", QUEUE, "--json", "-", stdin='{"a": 1}\n{"a": }\n')
    assert done.code == 2
    assert "line 2" in done.err


async def test_consume_acks_what_it_prints_and_ends_when_told(kyogo: Kyogo, broker: Broker) -> None:
    await publish(broker.address, QUEUE, b"a", b"b", b"\xff\x00")
    read = await kyogo("consume", QUEUE, "--count", "2")
    assert (read.code, read.out) == (0, "a\nb\n")
    stats = await stats_of(broker.address, QUEUE)
    assert (stats.finished, stats.ready, stats.in_flight) == ({"acked": 2}, 1, 0)
    read = await kyogo("consume", QUEUE, "--json", "--wait", "200ms")
    assert (read.code, read.json["body_base64"]) == (0, "/wA=")


async def test_consume_with_release_gives_everything_back(kyogo: Kyogo, broker: Broker) -> None:
    await publish(broker.address, QUEUE, b"a", b"b", b"c")
    for _ in range(2):
        read = await kyogo("consume", QUEUE, "--release", "--count", "2")
        assert (read.code, sorted(read.out.split())) == (0, ["a", "b"])
    stats = await stats_when(broker.address, QUEUE, lambda stats: stats.in_flight == 0, "given back")
    assert (stats.ready, stats.finished) == (3, {})
    async with attached(broker.address, QUEUE) as consumer:
        assert (await consumer.delivery()).attempt == 1


async def test_consume_stops_at_a_signal_and_what_it_read_is_acked(
    children: Processes, kyogo: Kyogo, broker: Broker
) -> None:
    await publish(broker.address, QUEUE, b"hello")
    reader = children.python("consume", "-m", "kyogo.cli", "consume", QUEUE, KYOGO_URL=broker.address)
    await reader.wrote("hello")
    assert await reader.stop() == 0
    assert (await drained(broker.address, QUEUE)).finished == {"acked": 1}


# --- queues ---


async def test_a_queue_is_made_shown_changed_and_listed(kyogo: Kyogo) -> None:
    made = await kyogo("queue", "create", QUEUE, "--max-attempts", "3", "--visibility-timeout", "5s", "--json")
    assert (made.code, made.json["settings"]["max_attempts"]) == (0, 3)
    changed = await kyogo("queue", "update", QUEUE, "--retry-max", "1m", "--label", "team=a", "--json")
    settings = changed.json["settings"]
    assert (settings["max_attempts"], settings["visibility_timeout_ms"]) == (3, 5_000)
    assert (settings["retry"]["max_ms"], settings["labels"]) == (60_000, {"team": "a"})
    reset = await kyogo("queue", "update", QUEUE, "--reset", "max_attempts", "--reset", "retry.max_ms", "--json")
    assert (reset.json["settings"]["max_attempts"], reset.json["settings"]["retry"]["max_ms"]) == (5, 300_000)

    shown = await kyogo("queue", "show", QUEUE)
    assert shown.code == 0
    assert ["visibility_timeout_ms", "5,000"] in [line.split() for line in shown.out.splitlines()]
    listed = await kyogo("queue", "list")
    assert [line.split()[:2] for line in listed.out.splitlines() if line.startswith(QUEUE)] == [[QUEUE, "0"]]
    assert [queue["name"] for queue in (await kyogo("queue", "list", "--json")).json] == [QUEUE]
    assert (await kyogo("queue", "list", "x", "--json")).json == []


async def test_pause_stops_delivery_until_unpause(kyogo: Kyogo, broker: Broker) -> None:
    await publish(broker.address, QUEUE, b"x")
    paused = await kyogo("queue", "pause", QUEUE)
    assert (paused.code, paused.out) == (0, f"{QUEUE} is paused: 1 wait\n")
    assert (await kyogo("consume", QUEUE, "--wait", "200ms")).out == ""
    assert "paused" in (await kyogo("queue", "list")).out
    assert (await kyogo("queue", "unpause", QUEUE)).code == 0
    assert (await kyogo("consume", QUEUE, "--count", "1")).out == "x\n"


@pytest.mark.parametrize("verb", ["delete", "purge"])
async def test_what_destroys_asks_first(kyogo: Kyogo, broker: Broker, verb: str) -> None:
    await publish(broker.address, QUEUE, b"x", b"y")
    refused = await kyogo("queue", verb, QUEUE)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert (await stats_of(broker.address, QUEUE)).ready == 2

    for answer, code in ((b"n\n", 2), (b"y\n", 0)):
        assert await on_a_terminal(broker, ("queue", verb, QUEUE), answer) == code
        left = (await kyogo("queue", "list", "--json")).json
        assert [queue["stats"]["ready"] for queue in left] == ([2] if code else [0] if verb == "purge" else [])


async def on_a_terminal(broker: Broker, arguments: tuple[str, ...], answer: bytes) -> int | None:
    """The exit code of a command that asks, and is answered."""
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "kyogo.cli", *arguments),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "KYOGO_URL": broker.address},
    )
    os.close(theirs)
    os.set_blocking(ours, False)
    asked = b""

    def read() -> bool:
        nonlocal asked
        try:
            asked += os.read(ours, 4096)
        except (BlockingIOError, OSError):
            return b"[y/N]" in asked
        return b"[y/N]" in asked

    await until(read, "a question", 20)
    os.write(ours, answer)
    code = await process.wait()
    os.close(ours)
    return code


async def test_yes_is_an_answer(kyogo: Kyogo, broker: Broker) -> None:
    await publish(broker.address, QUEUE, b"x", b"y")
    purged = await kyogo("queue", "purge", QUEUE, "--yes")
    assert (purged.code, purged.out) == (0, f"2 messages of {QUEUE} finished\n")
    deleted = await kyogo("queue", "delete", QUEUE, "--yes", "--json")
    assert (deleted.code, deleted.json) == (0, {"queue": QUEUE, "deleted_messages": 0})


# --- figures ---


async def test_consumers_and_stats(kyogo: Kyogo, broker: Broker) -> None:
    await make_queue(broker.address, QUEUE)
    await publish(broker.address, QUEUE, b"x")
    async with attached(broker.address, QUEUE, consumer_id="worker-7", prefetch=5) as consumer:
        await consumer.delivery()
        [row] = (await kyogo("consumers", "--json")).json
        assert (row["consumer_id"], row["queues"], row["prefetch_messages"], row["in_flight"]) == (
            "worker-7",
            [QUEUE],
            5,
            1,
        )
        assert "worker-7" in (await kyogo("consumers", QUEUE)).out
    stats = (await kyogo("stats", "--json")).json
    assert stats["broker"]["durability"] == "fsync"
    assert [queue["queue"] for queue in stats["queues"]] == [QUEUE]
    assert "durability" not in (await kyogo("stats")).err


async def test_version_works_with_and_without_a_broker(kyogo: Kyogo) -> None:
    with_one = await kyogo("version")
    assert (with_one.code, with_one.out.splitlines()[1].split()[0]) == (0, "broker")
    without = await kyogo("version", "--server", "127.0.0.1:1")
    assert (without.code, without.out.splitlines()[1]) == (0, "no broker answers at kyogo://127.0.0.1:1")


# --- errors ---


async def test_a_refusal_is_one_line_and_exit_code_1(kyogo: Kyogo) -> None:
    await kyogo("queue", "create", QUEUE)
    done = await kyogo("queue", "pause", "order")
    assert (done.code, done.out, done.err.count("\n")) == (1, "", 1)
    assert "QUEUE_NOT_FOUND" in done.err
    assert QUEUE in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ("queue", "list"),
        ("publish", QUEUE, "--body", "x"),
        ("consume", QUEUE),
        ("stats",),
    ],
    ids=lambda arguments: arguments[0],
)
async def test_without_a_broker_it_says_how_to_start_one(offline: Kyogo, arguments: tuple[str, ...]) -> None:
    done = await offline(*arguments)
    assert (done.code, done.out) == (3, "")
    assert "broker serve" in done.err
    assert "127.0.0.1:1" in done.err


@pytest.mark.parametrize("arguments", [("--server", "{}", "stats"), ("stats", "--server", "{}")])
async def test_the_server_may_stand_in_front(offline: Kyogo, broker: Broker, arguments: tuple[str, ...]) -> None:
    assert (await offline(*(argument.format(broker.address) for argument in arguments))).code == 0


@pytest.mark.parametrize("arguments", [("nonsense",), ("queue", "create", QUEUE, "--max-attempts", "x"), ()])
async def test_wrong_usage_is_exit_code_2(offline: Kyogo, arguments: tuple[str, ...]) -> None:
    assert (await offline(*arguments)).code == 2


async def test_the_help_names_the_exit_codes(offline: Kyogo) -> None:
    shown = await offline("--help")
    assert shown.code == 0
    assert "refused by the broker" in " ".join(shown.out.split())
    assert max(map(len, shown.out.splitlines())) <= 80
