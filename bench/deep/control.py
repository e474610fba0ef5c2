"""What a deep benchmark asks of the control plane."""

import grpc

from bench.load import OPTIONS
from kyogo.v1 import admin_pb2
from kyogo.v1.admin_pb2_grpc import AdminServiceStub

VISIBILITY_MS = 6 * 3_600_000
"""Nothing expires while it is measured."""
ANSWER_S = 60.0


def create_queue(target: str, queue: str) -> None:
    """Make a queue in which deliveries may take hours."""
    settings = admin_pb2.QueueSettings(visibility_timeout_ms=VISIBILITY_MS)
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        AdminServiceStub(channel).CreateQueue(
            admin_pb2.CreateQueueRequest(queue=queue, settings=settings), timeout=ANSWER_S
        )


def purge_queue(target: str, queue: str) -> int:
    """Empty a queue; how many messages that were."""
    with grpc.insecure_channel(target, options=OPTIONS) as channel:
        request = admin_pb2.PurgeQueueRequest(queue=queue, confirm=queue)
        return AdminServiceStub(channel).PurgeQueue(request, timeout=ANSWER_S).purged_messages
