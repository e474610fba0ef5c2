"""The control plane for programs.

async with kyogo.admin.Client() as admin:
    await admin.create_queue("orders", QueueSettings(max_attempts=3))
"""

from kyogo.admin.client import Client
from kyogo.admin.figures import BrokerStats, Consumer, Queue, QueueStats, ServerInfo, Stats
from kyogo.admin.settings import (
    BalancePolicy,
    QueueMode,
    QueueSettings,
    RetryBackoff,
    RetryJitter,
    RetryPolicy,
)

__all__ = [
    "BalancePolicy",
    "BrokerStats",
    "Client",
    "Consumer",
    "Queue",
    "QueueMode",
    "QueueSettings",
    "QueueStats",
    "RetryBackoff",
    "RetryJitter",
    "RetryPolicy",
    "ServerInfo",
    "Stats",
]
