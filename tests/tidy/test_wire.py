"""The wire files: linted, commented, and built so that the broker's shortcuts through them stay true."""

import importlib
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from kyogo.internal.v1 import views_pb2
from kyogo.v1 import admin_pb2, broker_pb2
from tests.tidy.tree import ROOT

BUF = Path(sysconfig.get_path("scripts")) / "buf"

VIEWS: list[tuple[type[Message], type[Message]]] = [
    (views_pb2.PublishView, broker_pb2.PublishRequest),
    (views_pb2.PublishFeatures, broker_pb2.PublishRequest),
    (views_pb2.PublishFeatures.Features, broker_pb2.Message),
    (views_pb2.PublishIdentity, broker_pb2.PublishRequest),
    (views_pb2.PublishIdentity.Identity, broker_pb2.Message),
    (views_pb2.RunHead, broker_pb2.DeliveryRun),
]


def buf_lint(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BUF, "lint"], cwd=root, capture_output=True, text=True, check=False)


def test_the_wire_files_keep_the_lint_rules() -> None:
    done = buf_lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "comment", "rule"),
    [
        ("broker.proto", "    // The publisher's id", "field"),
        ("broker.proto", "  // Subscribes to one or more queues.", "rpc"),
        ("admin.proto", "  // Stops delivery, not publishing;", "rpc"),
        ("admin.proto", "  // In rotation over keys", "enum value"),
        ("broker.proto", "// A refusal or fault, the same", "message"),
    ],
)
def test_a_missing_comment_is_caught(file: str, comment: str, rule: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    source = tmp_path / "protos" / "kyogo" / "v1" / file
    source.write_text(without_comment(source.read_text(encoding="utf-8"), comment.strip()), encoding="utf-8")
    done = buf_lint(tmp_path)
    assert done.returncode != 0
    assert rule in done.stdout.lower()
    assert "comment" in done.stdout


def without_comment(text: str, beginning: str) -> str:
    """Removes the comment block that begins so."""
    lines = text.splitlines(keepends=True)
    start = next(number for number, line in enumerate(lines) if line.strip().startswith(beginning))
    end = next(number for number in range(start, len(lines)) if not lines[number].strip().startswith("//"))
    return "".join(lines[:start] + lines[end:])


def test_the_generated_code_is_that_of_the_wire_files() -> None:
    assert generator().verify(ROOT / "consumer") == []


def test_stale_generated_code_is_caught(tmp_path: Path) -> None:
    generate = generator()
    generate.generate(tmp_path)
    stub, left_over = tmp_path / "kyogo/v1/broker_pb2.pyi", tmp_path / "kyogo/v1/topic_pb2.py"
    stub.write_text("", encoding="utf-8")
    left_over.write_text("", encoding="utf-8")
    assert generate.verify(tmp_path) == ["kyogo/v1/broker_pb2.pyi", "kyogo/v1/topic_pb2.py"]
    generate.generate(tmp_path)
    assert generate.verify(tmp_path) == []


def generator() -> ModuleType:
    return importlib.import_module("protos.generate")


@pytest.mark.parametrize(("view", "original"), VIEWS, ids=lambda message: message.DESCRIPTOR.name)
def test_a_view_reads_the_bytes_of_its_original(view: type[Message], original: type[Message]) -> None:
    by_number = original.DESCRIPTOR.fields_by_number
    for field in view.DESCRIPTOR.fields:
        same = by_number[field.number]
        assert (field.name, wire_type(field.type)) == (same.name, wire_type(same.type))
        assert (field.is_repeated, field.has_presence) == (same.is_repeated, same.has_presence)


def wire_type(declared: int) -> str | int:
    """Messages, bytes and strings look the same on the wire: a length and that many bytes."""
    delimited = (FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING)
    return "delimited" if declared in delimited else declared


def test_a_run_is_its_head_followed_by_the_published_messages() -> None:
    published = broker_pb2.PublishRequest(messages=[broker_pb2.Message(body=b"a"), broker_pb2.Message(body=b"b")])
    head = views_pb2.RunHead(first_fence=7, first_offset=3, attempt=1, published_unix_ms=5)
    joined = broker_pb2.DeliveryRun.FromString(head.SerializeToString() + published.SerializeToString())
    assert joined == broker_pb2.DeliveryRun(
        first_fence=7, first_offset=3, attempt=1, published_unix_ms=5, messages=published.messages
    )


@pytest.mark.parametrize(
    ("feature", "plain"),
    [
        ({"id": "x", "body": b"x" * 300, "headers": {"a": "b"}, "type": "t", "content_type": "c"}, True),
        ({"key": "k"}, False),
        ({"priority": 0}, False),
        ({"delay_ms": 1}, False),
        ({"deliver_at_unix_ms": 1}, False),
        ({"ttl_ms": 0}, False),
    ],
)
def test_plain_messages_are_told_by_size(feature: dict[str, object], *, plain: bool) -> None:
    request = broker_pb2.PublishRequest(
        destination="orders",
        request_id=1,
        messages=[broker_pb2.Message(body=b"1"), broker_pb2.Message(**feature)],  # type: ignore[arg-type]
    )
    features = views_pb2.PublishFeatures.FromString(request.SerializeToString())
    features.DiscardUnknownFields()
    assert (features.ByteSize() == 2 * len(request.messages)) is plain


def test_what_is_in_every_message_has_a_tag_of_one_byte() -> None:
    hot: list[Descriptor] = [
        broker_pb2.Message.DESCRIPTOR,
        broker_pb2.PublishRequest.DESCRIPTOR,
        broker_pb2.DeliveryRun.DESCRIPTOR,
        broker_pb2.Settlement.DESCRIPTOR,
    ]
    assert all(field.number <= 15 for message in hot for field in message.fields)


def test_requests_about_a_queue_name_it_first() -> None:
    service = admin_pb2.DESCRIPTOR.services_by_name["AdminService"]
    whole_broker = {"ListQueues", "Backup"}
    for method in service.methods:
        if method.name not in whole_broker:
            assert method.input_type.fields_by_number[1].name == "queue", method.name
