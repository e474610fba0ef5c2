"""The data directory of a segment log: whose it is, and which opening of it this is.

`lock` is held by the process that uses the directory and names it. `meta` says what the directory is, in two slots of
which the newer whole one counts; openings write them in turn, in place, so that even a full disk lets a broker start:

    byte 0                                        4096
    | JSON, spaces | crc, 8 hex digits | newline | the same of the opening before or after |
"""

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import google_crc32c

from kyogo_broker.journal.files import Files
from kyogo_broker.model.errors import BrokerStopError, NewerDataError

FORMAT = 1
SLOT_BYTES = 4096
LOCK_BYTES = 256


def remedy(path: Path) -> str:
    """What to do about a damaged data directory: the end of every message about one."""
    return (
        f"Run `broker inspect {path}` to see what is whole; restore the directory from a backup, or copy what is whole "
        f"with `broker salvage {path} NEW_DIRECTORY`"
    )


@dataclass(frozen=True, slots=True)
class Meta:
    """What is known about a data directory."""

    shard: int
    key: int
    """Random, below 2^63: sets this journal's records apart from any other's."""
    epoch: int
    """Openings so far."""
    version: str = ""
    """The newest Kyogo that opened it; empty: nobody said."""
    format: int = FORMAT

    def pack(self) -> bytes:
        """A slot."""
        said: dict[str, int | str] = {
            "kyogo_journal_format": self.format, "shard": self.shard, "key": self.key, "epoch": self.epoch
        }  # fmt: skip
        if self.version:
            said["kyogo"] = self.version
        padded = json.dumps(said).encode().ljust(SLOT_BYTES - 9)
        return padded + b"%08x\n" % google_crc32c.value(padded)

    @classmethod
    def parse(cls, slot: bytes) -> "Meta | None":
        """What a slot says; None if it is not whole."""
        if len(slot) != SLOT_BYTES or slot[-9:] != b"%08x\n" % google_crc32c.value(slot[:-9]):
            return None
        said = json.loads(slot[:-9])
        version = said.get("kyogo", "")
        if said["kyogo_journal_format"] != FORMAT:
            what = f"the data directory has format {said['kyogo_journal_format']}, this Kyogo knows {FORMAT}"
            raise NewerDataError(what, version)
        return cls(said["shard"], said["key"], said["epoch"], version)

    def opened(self, *, epoch: int, version: str) -> "Meta":
        """The same directory, opened by Kyogo `version`. The newest stays named when an older one tries its luck."""
        newest = max(self.version, version, key=_numbers)
        return Meta(self.shard, self.key, epoch, newest)


class Directory:
    """A data directory in use by this process."""

    def __init__(self, files: Files, path: Path) -> None:
        self.path = path
        self._files = files
        self._lock: int | None = None

    def of(self, name: str) -> Path:
        """The path of a file in it."""
        return self.path / name

    def take(self, *, shard: int, key: int) -> Meta:
        """Lock the directory, make it if there is none, and read what it is.

        Raises:
            BrokerStopError: in use, of another shard, by a newer Kyogo, or no data directory at all.
        """
        self._files.make_directory(self.path)
        self._take_lock()
        names = self._files.names(self.path)
        if "meta" in names:
            meta = read_meta(self._files, self.path)
        elif strange := [name for name in names if name not in {"lock", "meta.tmp", "lost+found"}]:
            raise BrokerStopError(
                f"{self.path} holds {strange[0]!r} but no `meta`: it is no data directory of Kyogo, or an incomplete "
                "copy of one; name an empty directory, or restore the whole of it"
            )
        else:
            meta = self._create(Meta(shard, key, epoch=0))
        if meta.shard != shard:
            raise BrokerStopError(f"{self.path} belongs to shard {meta.shard}, not {shard}; name the right directory")
        return meta

    def begin_epoch(self, meta: Meta) -> None:
        """Write down, durably, that this is the opening `meta.epoch`."""
        file = self._files.open(self.of("meta"))
        try:
            self._files.write(file, [meta.pack()], meta.epoch % 2 * SLOT_BYTES)
            self._files.sync_data(file)
        finally:
            self._files.close(file)

    def sync(self) -> None:
        """Make names given and taken durable."""
        self._files.sync_directory(self.path)

    def release(self) -> None:
        """Let another process have it. Idempotent."""
        if self._lock is not None:
            self._files.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        file = self._files.open(self.of("lock"), create=True)
        if not self._files.lock(file):
            holder = lock_holder(self._files, file)
            self._files.close(file)
            raise BrokerStopError(
                f"{self.path} is in use by {holder}; stop that broker first, or name another data directory"
            )
        self._lock = file
        # Who it is is for people only. After a power loss the file may be empty, and on a full disk it then stays so.
        with suppress(OSError):
            self._files.write(file, [f"pid {os.getpid()} on {os.uname().nodename}\n".encode().ljust(LOCK_BYTES)], 0)

    def _create(self, meta: Meta) -> Meta:
        file = self._files.open(self.of("meta.tmp"), create=True)
        try:
            self._files.write(file, [meta.pack(), meta.pack()], 0)
            self._files.sync(file)
        finally:
            self._files.close(file)
        self._files.rename(self.of("meta.tmp"), self.of("meta"))
        self.sync()
        self._files.sync_directory(self.path.parent)
        return meta


def lock_holder(files: Files, file: int) -> str:
    """Who has the lock, as far as its file says."""
    return files.read(file, LOCK_BYTES, 0).decode(errors="replace").strip() or "another process"


def read_meta(files: Files, path: Path) -> Meta:
    """What a directory is, without taking it.

    Raises:
        NewerDataError: a newer Kyogo wrote it.
        BrokerStopError: neither slot is whole.
    """
    file = files.open(path / "meta", write=False)
    try:
        slots = [Meta.parse(files.read(file, SLOT_BYTES, slot * SLOT_BYTES)) for slot in (0, 1)]
    finally:
        files.close(file)
    whole = [slot for slot in slots if slot is not None]
    if not whole:
        raise BrokerStopError(f"the journal is damaged: {path}/meta is not whole. {remedy(path)}")
    return max(whole, key=lambda slot: slot.epoch)


def _numbers(version: str) -> list[int]:
    """The numbers that a version begins with, for comparing."""
    begin = re.match(r"\d+(\.\d+)*", version)
    return [int(number) for number in begin[0].split(".")] if begin else []
