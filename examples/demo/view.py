"""What the audience sees: a live table on a terminal, plain lines anywhere else."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

EVENTS_SHOWN = 8
BAR_WIDTH = 24
REFRESHES_PER_SECOND = 8


@dataclass(frozen=True, slots=True)
class Player:
    """One process of the cast, as shown."""

    name: str
    pid: int
    alive: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """One moment."""

    seconds: float
    total: int
    published: int
    broker: Player
    workers: tuple[Player, ...]
    written: Mapping[str, int] = field(default_factory=dict)

    @property
    def done(self) -> int:
        """Rows in the ledger."""
        return sum(self.written.values())


class View(Protocol):
    """Shows moments as they pass and events as they happen."""

    def show(self, scene: Scene) -> None:
        """The moment to show now."""

    def tell(self, text: str) -> None:
        """Something happened."""

    def close(self) -> None:
        """Leave the last moment standing."""


def make_view(console: Console) -> View:
    """The view that fits where the output goes."""
    return LiveView(console) if console.is_terminal else PlainView(console)


class LiveView:
    """A table that is drawn over, events below."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=REFRESHES_PER_SECOND, transient=False)
        self._live.start()
        self._scene: Scene | None = None
        self._events: list[str] = []

    def show(self, scene: Scene) -> None:
        """The moment to show now."""
        self._scene = scene
        table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left", show_header=False)
        table.add_row("[bold]published[/]", "", "", _bar(scene.published, scene.total, "cyan"))
        table.add_row("[bold]written[/]", "", "", _bar(scene.done, scene.total, "green"))
        table.add_row(*_row(scene.broker), scene.broker.note)
        for worker in scene.workers:
            count = scene.written.get(worker.name, 0)
            table.add_row(*_row(worker), _bar(count, scene.total // len(scene.workers) * 2, "blue"))
        self._live.update(Group(table, *self._events[-EVENTS_SHOWN:]))

    def tell(self, text: str) -> None:
        """Something happened."""
        seconds = self._scene.seconds if self._scene is not None else 0.0
        self._events.append(f"[dim]{seconds:5.1f} s[/]  {text}")
        if self._scene is not None:
            self.show(self._scene)

    def close(self) -> None:
        """Leave the last moment standing."""
        self._live.stop()


class PlainView:
    """A line a second, and one for each event."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._seconds = 0.0
        self._next = 0.0

    def show(self, scene: Scene) -> None:
        """The moment to show now, if the last one was a second ago."""
        self._seconds = scene.seconds
        if scene.seconds >= self._next:
            self._next = scene.seconds + 1.0
            shares = "  ".join(f"{worker.name} {scene.written.get(worker.name, 0):,}" for worker in scene.workers)
            self._print(f"published {scene.published:,}  written {scene.done:,}  ({shares})")

    def tell(self, text: str) -> None:
        """Something happened."""
        self._print(text)

    def close(self) -> None:
        """Nothing to do."""

    def _print(self, text: str) -> None:
        self._console.print(f"{self._seconds:5.1f} s  {text}", highlight=False, soft_wrap=True)


def _row(player: Player) -> tuple[str, str, str]:
    state = "[green]runs[/]" if player.alive else "[red]killed[/]"
    return player.name, f"[dim]pid {player.pid}[/]", state


def _bar(count: int, full: int, colour: str) -> str:
    filled = min(BAR_WIDTH, round(BAR_WIDTH * count / max(1, full)))
    return f"[{colour}]{'█' * filled}[/][dim]{'░' * (BAR_WIDTH - filled)}[/] {count:7,}"
