"""A small disk of its own for the broker's data, that can be filled.

Mounted in a mount namespace of the run's own (see `__main__`), so that it is gone with the run's last process.
"""

import os
import shutil
import subprocess
from pathlib import Path

MEGABYTE = 1 << 20
SIZE_BYTES = 512 * MEGABYTE
"""The active segment, two in reserve, checkpoints, and room for what is not freed yet."""
MIN_FREE_BYTES = 48 * MEGABYTE
"""The broker's `min_free` in a run."""
PIECE_BYTES = 8 * MEGABYTE
PIECE_BYTES_MIN = 4096
NAMESPACE = "KYOGO_CHAOS_NAMESPACE"
"""Set where this process has a mount namespace of its own."""


class Disk:
    """The file system at one path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    @staticmethod
    def can_mount() -> bool:
        """Whether this process may mount, and what it mounts is gone with it."""
        return os.environ.get(NAMESPACE) == "own"

    @staticmethod
    def namespace_command() -> list[str] | None:
        """What to start a program with, to give it a mount namespace of its own; None: impossible here."""
        command = ["unshare", "--mount", "--propagation", "private"]
        if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("mount") is None:
            return None
        tried = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
        return command if tried.returncode == 0 else None

    def mount(self) -> None:
        """Make it: in memory, so that its speed is nobody else's business."""
        self.path.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(self.path)]
        subprocess.run(command, check=True, capture_output=True)

    @property
    def free(self) -> int:
        """Bytes."""
        space = os.statvfs(self.path)
        return space.f_bavail * space.f_frsize

    def fill(self, *, leave: int) -> None:
        """Take away all but `leave` bytes; the broker may be taking some at the same time."""
        piece = PIECE_BYTES
        with self._ballast.open("ab") as file:
            while piece >= PIECE_BYTES_MIN and self.free > leave:
                try:
                    size = min(piece, self.free - leave)
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, max(1, size))
                except OSError:
                    piece //= 2

    def clear(self) -> None:
        """Give back what `fill` took."""
        self._ballast.unlink(missing_ok=True)
