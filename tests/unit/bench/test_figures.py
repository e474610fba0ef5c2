import pytest

from bench.figures import Figure, Goal, markdown_table, median, number, percentile


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (0.999, 100), (1.0, 100), (0.01, 1), (0.001, 1)]
)
def test_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_percentile_of_one_value_is_that_value() -> None:
    assert percentile([7.0], 0.5) == 7.0


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], 0), ([1.0], 1.1)])
def test_percentile_refuses_what_has_no_answer(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(values, share)


@pytest.mark.parametrize(("values", "expected"), [([3, 1, 2], 2), ([4, 1, 2, 3], 2.5)])
def test_median(values: list[float], expected: float) -> None:
    assert median(values) == expected


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0"), (0.12345, "0.123"), (1.5, "1.50"), (63.21, "63.2"), (126_432.0, "126,000")],
)
def test_number_has_three_significant_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("goal", "broker", "verdict"),
    [
        (Goal(5), 5, "met"),
        (Goal(5), 5.1, "missed"),
        (Goal(5, at_least=True), 4.9, "missed"),
        (Goal(0.5, at_least=True, of_ratio=True), 50, "met"),
        (Goal(0.5, at_least=True, of_ratio=True), 49, "missed"),
        (Goal(5), None, ""),
        (None, 5, ""),
    ],
)
def test_verdict(goal: Goal | None, broker: float | None, verdict: str) -> None:
    figure = Figure("both", "both at once", "messages/s", probe=100, broker=broker, goal=goal)
    assert figure.verdict(quick=False) == verdict


def test_a_goal_for_the_full_size_is_not_judged_in_a_quick_run() -> None:
    figure = Figure("backlog", "RSS over idle", "MB", broker=1, goal=Goal(40, full_only=True))
    assert (figure.verdict(quick=True), figure.verdict(quick=False)) == ("", "met")


def test_the_ratio_of_the_rounds_goes_before_the_ratio_of_the_medians() -> None:
    figure = Figure("both", "both at once", "messages/s", probe=100, broker=80, ratio=0.4)
    assert figure.ratio_or_quotient() == 0.4


def test_the_table_of_the_results() -> None:
    figures = [
        Figure("disk", "write + fdatasync of 4 KiB, p50", "us", machine=56.2),
        Figure(
            "both",
            "both at once, 1 KiB",
            "messages/s",
            probe=120_000,
            broker=66_000,
            goal=Goal(0.5, at_least=True, of_ratio=True),
        ),
        Figure("latency", "at 500/s, p50", "ms", probe=0.66, broker=1.61, goal=Goal(1.5)),
    ]
    assert markdown_table(figures, quick=False) == (
        "| row | figure | unit | machine | probe | broker | broker / probe | goal | verdict |\n"
        "|---|---|---|--:|--:|--:|--:|---|---|\n"
        "| disk | write + fdatasync of 4 KiB, p50 | us | 56.2 |  |  |  |  |  |\n"
        "| both | both at once, 1 KiB | messages/s |  | 120,000 | 66,000 | 0.55 | >= 50% of the probe | met |\n"
        "| latency | at 500/s, p50 | ms |  | 0.660 | 1.61 | 2.44 | <= 1.5 ms | missed |\n"
    )
