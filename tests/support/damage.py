"""Ways in which a data directory goes bad, by chance: each changes files of a faulty disk behind everybody's back."""

from collections.abc import Callable
from pathlib import Path
from random import Random

from tests.support.faulty_disk import FaultyDisk

SECTOR_BYTES = 512


def segments(disk: FaultyDisk, path: Path) -> list[Path]:
    """The segments, in order."""
    return [path / name for name in disk.names(path) if name.endswith(".segment")]


def filled(disk: FaultyDisk, path: Path, random: Random) -> Path:
    """One of the segments that hold anything; those that hold records, if there are any."""
    files = segments(disk, path)
    return random.choice([file for file in files if disk.names_now[file].data[64:].strip(b"\0")] or files)


def flip_bits(disk: FaultyDisk, path: Path, random: Random) -> None:
    """Some bits in one segment, its header included."""
    file = filled(disk, path, random)
    size = max(1, len(disk.names_now[file].data.rstrip(b"\0")))
    for _ in range(random.choice((1, 1, 2, 5))):
        disk.flip(file, random.randrange(size), random.randrange(8))


def bad_sector(disk: FaultyDisk, path: Path, random: Random) -> None:
    """A sector of noise or of zeros."""
    file = filled(disk, path, random)
    data = disk.names_now[file].data
    begin = random.randrange(max(1, len(data.rstrip(b"\0")))) // SECTOR_BYTES * SECTOR_BYTES
    size = min(SECTOR_BYTES, len(data) - begin)
    data[begin : begin + size] = random.choice((bytes(size), random.randbytes(size)))


def truncate(disk: FaultyDisk, path: Path, random: Random) -> None:
    """A segment loses its end."""
    data = disk.names_now[filled(disk, path, random)].data
    del data[random.randrange(max(1, len(data.rstrip(b"\0")))) :]


def lose_segment(disk: FaultyDisk, path: Path, random: Random) -> None:
    """A segment is gone."""
    del disk.names_now[filled(disk, path, random)]


def rot_header(disk: FaultyDisk, path: Path, random: Random) -> None:
    """A segment does not say any more what it is."""
    file = filled(disk, path, random)
    if random.random() < 0.5:
        disk.flip(file, random.randrange(min(64, len(disk.names_now[file].data))), random.randrange(8))
    else:
        disk.names_now[file].data[:64] = random.randbytes(64)


def rot_checkpoint(disk: FaultyDisk, path: Path, random: Random) -> None:
    """A checkpoint, or both."""
    files = [path / name for name in disk.names(path) if name.startswith("checkpoint-")]
    for file in random.sample(files, random.randint(0, len(files))):
        disk.flip(file, random.randrange(len(disk.names_now[file].data.rstrip(b"\0"))), random.randrange(8))


def lose_checkpoints(disk: FaultyDisk, path: Path, random: Random) -> None:
    """There is none any more."""
    for name in disk.names(path):
        if name.startswith("checkpoint"):
            del disk.names_now[path / name]


def garbage_tail(disk: FaultyDisk, path: Path, random: Random) -> None:
    """Noise behind the last record."""
    data = disk.names_now[segments(disk, path)[-1]].data
    begin = max(64, len(data.rstrip(b"\0")))
    size = min(random.randint(1, 600), len(data) - begin)
    data[begin : begin + size] = random.randbytes(size)


def rot_meta(disk: FaultyDisk, path: Path, random: Random) -> None:
    """Both slots of meta, or all of it."""
    if random.random() < 0.5:
        del disk.names_now[path / "meta"]
    else:
        disk.flip(path / "meta", 30)
        disk.flip(path / "meta", 4096 + 30)


KINDS: tuple[Callable[[FaultyDisk, Path, Random], None], ...] = (
    flip_bits, bad_sector, truncate, lose_segment, rot_header, rot_checkpoint, lose_checkpoints, garbage_tail, rot_meta,
)  # fmt: skip
