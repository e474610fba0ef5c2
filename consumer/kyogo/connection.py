"""Channels to a broker, with the options that GRPC in Python needs.

One attempt, one channel: C-core keeps a backoff for each address that would sit below the SDK's own, so a lost
connection is replaced by a fresh channel with its own subchannels. Streams are never retried by gRPC, since a replayed
`attach` would be another session; calls that may be repeated are, by the service config below.
"""

import json
import logging

import grpc
import grpc.aio

from kyogo.target import Target

_log = logging.getLogger("kyogo.connection")

FRAME_BYTES_MAX = 16 * 1024 * 1024
"""The largest frame received: above any broker's usual limit of 4 MiB, so that the broker's setting decides."""

_KEEPALIVE_MS = 10_000
_KEEPALIVE_TIMEOUT_MS = 5_000
_LOOPBACK = ("127.", "localhost:", "[::1]:")

# UNAVAILABLE is the only status that the contract calls retryable without RetryInfo.
_REPEATABLE = {
    "kyogo.v1.BrokerService": ("GetServerInfo", "Publish", "Settle"),
    "kyogo.v1.AdminService": ("GetQueue", "ListQueues", "GetStats", "ListConsumers", "GetMessage", "BrowseMessages"),
}
_SERVICE_CONFIG = json.dumps(
    {
        "methodConfig": [
            {
                "name": [
                    {"service": service, "method": method}
                    for service, methods in _REPEATABLE.items()
                    for method in methods
                ],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    }
)


def channel_options(*, repeat_calls: bool = True) -> list[tuple[str, str | int]]:
    """What every channel is opened with.

    Keepalive pings find a cut network; whether the broker still thinks is the heartbeats' business.

    Args:
        repeat_calls: see `open_channel`.
    """
    return [
        ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", FRAME_BYTES_MAX),
        ("grpc.max_send_message_length", FRAME_BYTES_MAX),
        ("grpc.enable_retries", int(repeat_calls)),
        ("grpc.service_config", _SERVICE_CONFIG),
    ]


def open_channel(target: Target, *, attempt: int = 0, repeat_calls: bool = True) -> grpc.aio.Channel:
    """A channel to one of the target's addresses. Nothing is sent before the first call.

    Args:
        target: where and as whom.
        attempt: counts the tries; the addresses are taken in turn.
        repeat_calls: whether gRPC repeats calls while the broker is away; not for who reconnects by itself.
    """
    address = target.addresses[attempt % len(target.addresses)]
    options = channel_options(repeat_calls=repeat_calls)
    if target.tls:
        credentials = grpc.ssl_channel_credentials(root_certificates=target.ca)
        return grpc.aio.secure_channel(address, credentials, options=options)
    if target.token is not None and not address.startswith(_LOOPBACK):
        _log.warning("the token goes to %s in the clear: use kyogos:// for TLS", address)
    return grpc.aio.insecure_channel(address, options=options)
