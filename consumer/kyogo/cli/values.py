"""What people type on a command line, as values."""

import re

import typer

_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNIT_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_KIBI = 1024


def duration_ms(text: str) -> int:
    """Milliseconds of a time with its unit, such as 500ms, 30s, 5m, 2h or 1d.

    Raises:
        typer.BadParameter: it is none.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is no time: write it with a unit, such as 500ms, 30s, 5m, 2h or 1d")
    return round(float(match[1]) * _UNIT_MS[match[2]])


def pairs(texts: list[str], option: str) -> dict[str, str]:
    """The mapping that NAME=VALUE options make.

    Raises:
        typer.BadParameter: one has no `=` or no name.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise typer.BadParameter(f"{text!r} is no pair: write {option} NAME=VALUE")
        found[name] = value
    return found


def age(milliseconds: int | None) -> str:
    """A time as people read it: two digits are enough."""
    if milliseconds is None:
        return "-"
    if milliseconds < _UNIT_MS["s"]:
        return f"{milliseconds} ms"
    for unit, larger in (("s", "m"), ("m", "h"), ("h", "d")):
        if milliseconds < _UNIT_MS[larger]:
            return f"{milliseconds / _UNIT_MS[unit]:.3g} {unit}"
    return f"{milliseconds / _UNIT_MS['d']:.3g} d"


def size(count: int) -> str:
    """Bytes as people read them."""
    number = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < _KIBI:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= _KIBI
    return f"{number:.1f} TiB"
