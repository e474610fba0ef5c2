"""Who this broker is, as it tells its clients."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Fixed from start to stop."""

    node: str
    """Name of this broker; unique in a cluster."""
    version: str
    capabilities: tuple[str, ...]
    """What is built, sorted; clients ignore names they do not know."""
    durability: str
    """What an answered publish survives: `MEMORY`, `FSYNC` or `REPLICATED`."""
    started_unix_ms: int
