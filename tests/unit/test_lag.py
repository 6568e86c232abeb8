"""Lag is counted from when a head was first seen that is not applied, by a clock of our own."""

from __future__ import annotations

from projections.lag import MARKS_MOST, Lag


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_what_is_applied_is_not_behind() -> None:
    """Neither before anything was seen, nor at the head."""
    lag = Lag(Clock())
    assert (lag.events, lag.seconds) == (0, 0.0)
    lag.see(head=7, applied=7)
    assert (lag.events, lag.seconds) == (0, 0.0)


def test_seconds_count_from_the_oldest_head_that_is_not_applied() -> None:
    """And go on counting while nothing more is seen."""
    clock = Clock()
    lag = Lag(clock)
    lag.see(head=5, applied=5)
    clock.now_s += 10
    lag.see(head=8, applied=5)
    clock.now_s += 2
    lag.see(head=9, applied=5)
    clock.now_s += 1
    assert (lag.events, lag.seconds) == (4, 3.0)

    lag.see(head=9, applied=8)
    assert (lag.events, lag.seconds) == (1, 1.0)

    lag.see(head=9, applied=9)
    assert (lag.events, lag.seconds) == (0, 0.0)


def test_what_waited_already_when_it_was_first_seen_counts_too() -> None:
    """A process that starts beside an old backlog says how old it is."""
    clock = Clock()
    lag = Lag(clock)
    lag.see(head=9, applied=5, waiting_s=60)
    clock.now_s += 1
    assert lag.seconds == 61


def test_a_lag_of_days_takes_little_memory_and_is_told_exactly() -> None:
    """Of the heads in between some are forgotten, never the first one."""
    clock = Clock()
    lag = Lag(clock)
    for head in range(1, 100_000):
        lag.see(head, applied=0)
        clock.now_s += 1
    assert lag.seconds == 99_999
    assert len(lag._marks) <= MARKS_MOST
    lag.see(head=100_000, applied=50_000)
    assert 0 < lag.seconds <= 50_000


def test_a_log_that_became_shorter_is_not_behind() -> None:
    """As after a restore: what is applied may be more than there is."""
    lag = Lag(Clock())
    lag.see(head=5, applied=9)
    assert (lag.events, lag.seconds) == (0, 0.0)
