"""The token bucket: how much a caller may ask for, by a clock that the test moves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.rate_limit import RateExceeded, RateLimit


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def passes(limit: RateLimit, caller: str = "alice", amount: int = 1) -> bool:
    try:
        limit.take(caller, amount)
    except RateExceeded:
        return False
    return True


def test_a_burst_passes_and_then_the_rate() -> None:
    """Ten at once, then one every half second."""
    clock = Clock()
    limit = RateLimit(2, 10, clock)
    assert [passes(limit) for _ in range(12)] == [True] * 10 + [False] * 2
    clock.now += 0.5
    assert [passes(limit) for _ in range(2)] == [True, False]
    clock.now += 1_000
    assert [passes(limit) for _ in range(11)] == [True] * 10 + [False]


def test_a_batch_passes_whatever_its_size_and_is_paid_for_afterwards() -> None:
    """A batch of 5,000 at 1,000 a second: nothing more for five seconds, less the burst."""
    clock = Clock()
    limit = RateLimit(1_000, 10, clock)
    assert passes(limit, amount=5_000)
    clock.now += 4.98
    assert not passes(limit)
    clock.now += 0.02
    assert passes(limit)


def test_callers_do_not_pay_for_each_other() -> None:
    """Who asks too much is refused, by name; others are not."""
    limit = RateLimit(1, 1, Clock())
    assert passes(limit, "alice")
    with pytest.raises(RateExceeded) as raised:
        limit.take("alice", 1)
    assert raised.value.details == {"actor": "alice", "rate_per_s": "1"}
    assert passes(limit, "bob")


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 50)), max_size=60))
def test_over_any_time_no_more_than_the_rate_the_burst_and_one_batch_pass(asked: list[tuple[float, int]]) -> None:
    """However they come: the law that the limit is there for."""
    clock, passed = Clock(), 0
    limit = RateLimit(3, 7, clock)
    for pause, amount in asked:
        clock.now += pause
        if passes(limit, amount=amount):
            passed += amount
    assert passed <= 7 + 3 * (clock.now - 100) + 50 + 1e-6
