"""The names and shapes of all rpcs, read from the protos, so that none can be forgotten."""

from typing import NamedTuple

from kyogo.v1 import admin_pb2, broker_pb2

BROKER_SERVICE = "kyogo.v1.BrokerService"
ADMIN_SERVICE = "kyogo.v1.AdminService"


class Rpc(NamedTuple):
    """One rpc."""

    name: str
    client_streams: bool
    server_streams: bool


def rpcs(service: str) -> tuple[Rpc, ...]:
    """Every rpc of a service."""
    file = broker_pb2.DESCRIPTOR if service == BROKER_SERVICE else admin_pb2.DESCRIPTOR
    descriptor = file.services_by_name[service.rpartition(".")[2]]
    return tuple(Rpc(rpc.name, rpc.client_streaming, rpc.server_streaming) for rpc in descriptor.methods)
