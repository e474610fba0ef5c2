"""The wire: generated code is imported in this folder and nowhere else in the broker.

Bytes become commands, effects become bytes; the rooms around it know only the model.
"""

from kyogo_broker.server.wire.admin import BrokerFigures, decode_empty
from kyogo_broker.server.wire.answers import (
    MAX_ERROR_BYTES,
    attached,
    details,
    heartbeat,
    publish_response,
    refused_publish,
    server_info,
)
from kyogo_broker.server.wire.consume import ConsumerFrame, Session, decode_consume
from kyogo_broker.server.wire.frames import RUN_HEAD_BYTES, frames, items_of
from kyogo_broker.server.wire.publish import decode_publish, request_id_of
from kyogo_broker.server.wire.services import ADMIN_SERVICE, BROKER_SERVICE, Rpc, rpcs
from kyogo_broker.server.wire.text import UndecodableError, cut, shown

__all__ = [
    "ADMIN_SERVICE",
    "BROKER_SERVICE",
    "MAX_ERROR_BYTES",
    "RUN_HEAD_BYTES",
    "BrokerFigures",
    "ConsumerFrame",
    "Rpc",
    "Session",
    "UndecodableError",
    "attached",
    "cut",
    "decode_consume",
    "decode_empty",
    "decode_publish",
    "details",
    "frames",
    "heartbeat",
    "items_of",
    "publish_response",
    "refused_publish",
    "request_id_of",
    "rpcs",
    "server_info",
    "shown",
]
