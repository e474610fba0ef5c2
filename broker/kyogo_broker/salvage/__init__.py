"""Copies what is whole of a damaged data directory to a new one."""

from kyogo_broker.salvage.report import shown
from kyogo_broker.salvage.salvage import Progress, Salvage

__all__ = ["Progress", "Salvage", "shown"]
