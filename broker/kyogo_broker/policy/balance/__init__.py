"""How a queue chooses consumers: a policy a file, one registry line each."""

from collections.abc import Callable, Mapping

from kyogo_broker.model.settings import BalancePolicy
from kyogo_broker.policy.balance.base import Allocation, Balance, Candidate
from kyogo_broker.policy.balance.least_in_flight import LeastInFlight
from kyogo_broker.policy.balance.round_robin import RoundRobin

POLICIES: Mapping[BalancePolicy, Callable[[], Balance]] = {
    BalancePolicy.ROUND_ROBIN: RoundRobin,
    BalancePolicy.LEAST_IN_FLIGHT: LeastInFlight,
}

__all__ = ["POLICIES", "Allocation", "Balance", "Candidate"]
