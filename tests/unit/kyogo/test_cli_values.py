import pytest
import typer

from kyogo.cli.values import age, duration_ms, pairs, size


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [("0s", 0), ("500ms", 500), ("1.5s", 1_500), ("5m", 300_000), ("2h", 7_200_000), ("1d", 86_400_000)],
)
def test_a_time_has_a_unit(text: str, milliseconds: int) -> None:
    assert duration_ms(text) == milliseconds


@pytest.mark.parametrize("text", ["", "5", "5 s", "-5s", "s", "1e3s", "5S", "\u0661s"])
def test_anything_else_is_refused_with_examples(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="such as 500ms"):
        duration_ms(text)


def test_pairs_keep_what_stands_behind_the_first_equals_sign() -> None:
    assert pairs(["a=b=c", "d="], "--label") == {"a": "b=c", "d": ""}


@pytest.mark.parametrize("text", ["a", "=b", ""])
def test_what_is_no_pair_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="--label NAME=VALUE"):
        pairs([text], "--label")


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, "-"),
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1 s"),
        (59_940, "59.9 s"),
        (60_000, "1 m"),
        (86_400_000, "1 d"),
    ],
)
def test_ages_are_short(milliseconds: int | None, text: str) -> None:
    assert age(milliseconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1_023, "1023 B"), (1_536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (1 << 40, "1.0 TiB")]
)
def test_sizes_are_short(count: int, text: str) -> None:
    assert size(count) == text
