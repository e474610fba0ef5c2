"""What the workers got done: one SQLite file, one row for each offset, written before a handler returns.

What a worker wrote before it died, and had not acked, is handled once more by another: at least once. The
offset as the key makes that harmless, and `writes` says how often it happened.
"""

import csv
import sqlite3
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

SCHEMA = """
CREATE TABLE IF NOT EXISTS trips (
    offset INTEGER PRIMARY KEY,
    day    TEXT NOT NULL,
    value  INTEGER NOT NULL,
    worker TEXT NOT NULL,
    writes INTEGER NOT NULL DEFAULT 1
)
"""
WRITE = """
INSERT INTO trips (offset, day, value, worker) VALUES (?, ?, ?, ?)
ON CONFLICT (offset) DO UPDATE SET writes = writes + 1
"""
LOCK_WAIT_SECONDS = 20.0


class Trip(NamedTuple):
    """One row of the CSV: half an hour of taxi passengers."""

    day: str
    value: int

    @classmethod
    def of(cls, row: Mapping[str, str]) -> "Trip":
        """What matters of a row."""
        return cls(day=row["timestamp"][:10], value=int(row["value"]))


class Ledger:
    """The file, from one process; a connection for each thread that writes."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._local = threading.local()
        with self._connection() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(SCHEMA)

    def write(self, offset: int, trip: Trip, worker: str) -> None:
        """One row, committed when this returns."""
        with self._connection() as connection:
            connection.execute(WRITE, (offset, trip.day, trip.value, worker))

    def written_by(self) -> Counter[str]:
        """Rows by the worker that wrote them first."""
        return Counter(dict(self._connection().execute("SELECT worker, count(*) FROM trips GROUP BY worker")))

    def repeated(self) -> int:
        """Messages that were handled more than once."""
        return int(self._connection().execute("SELECT count(*) FROM trips WHERE writes > 1").fetchone()[0])

    def sums_by_day(self) -> dict[str, int]:
        """The answer: passengers of each day."""
        return dict(self._connection().execute("SELECT day, sum(value) FROM trips GROUP BY day"))

    def close(self) -> None:
        """Close this thread's connection."""
        self._connection().close()

    def _connection(self) -> sqlite3.Connection:
        if not hasattr(self._local, "connection"):
            connection = sqlite3.connect(self._path, timeout=LOCK_WAIT_SECONDS)
            # Enough against kill -9 of the writer; the demo cuts no power.
            connection.execute("PRAGMA synchronous = OFF")
            self._local.connection = connection
        found: sqlite3.Connection = self._local.connection
        return found


def read(path: Path) -> list[dict[str, str]]:
    """The rows of the CSV, as they are published."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def expected_sums(rows: list[dict[str, str]]) -> dict[str, int]:
    """The same answer, straight from the CSV."""
    sums: Counter[str] = Counter()
    for row in rows:
        trip = Trip.of(row)
        sums[trip.day] += trip.value
    return dict(sums)
