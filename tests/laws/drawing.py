"""How steps are drawn: few ids, so that they meet; amounts at their bounds; now and then something malformed."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from asking import LISTS, LOOKS, KnownAt, ListOf, Look, Moment
from hypothesis import strategies as st
from steps import (
    DAY,
    DINARS,
    EUROS,
    EVERYBODY,
    NEW,
    SECOND,
    YEN,
    Amount,
    Authorize,
    Capture,
    Close,
    Freeze,
    Increment,
    Leg,
    Open,
    Refund,
    SetLimit,
    Terms,
    Transfer,
    Unfreeze,
    Void,
)

Value = TypeVar("Value")


def _some(*weighted: tuple[int, Value]) -> st.SearchStrategy[Value]:
    """One of the values, as often as its weight says. The first is the simplest."""
    return st.sampled_from([value for weight, value in weighted for _ in range(weight)])


@st.composite
def _one(draw: st.DrawFn, *weighted: tuple[int, st.SearchStrategy[Any]]) -> Any:
    """From one of the strategies, as often as its weight says. (`one_of` takes each strategy once.)"""
    number = draw(_some(*((weight, number) for number, (weight, _) in enumerate(weighted))))
    return draw(weighted[number][1])


def _amounts(*of: str, small: int = 3) -> st.SearchStrategy[Amount]:
    """Mostly small ones; or one of the bounds, and one below and beyond it. Now and then of a currency of its own."""
    codes = _some((30, ""), (1, "EUR"), (1, "JPY"), (1, "KWD"))
    few = st.builds(Amount, st.just(""), _some((1, 1), (1, 2), (2, 5), (3, 10), (3, 20), (1, 50), (1, 100)), codes)
    at_bounds = st.builds(Amount, st.sampled_from(of), _some((3, 0), (2, 1), (1, -1)), codes)
    return _one((small, few), (1, at_bounds))


@st.composite
def _two_accounts(draw: st.DrawFn) -> tuple[str, str]:
    """Mostly two of one currency."""
    pool = draw(_some((10, EUROS), (2, YEN), (2, DINARS), (1, EUROS + NEW), (1, [*EVERYBODY, "nobody"])))
    first, second = draw(st.lists(st.sampled_from(pool), min_size=2, max_size=2, unique=True))
    return first, second


WHICH: Final = st.integers(0, 30)
BOOLEANS: Final = st.booleans()
RARELY: Final = _some((7, False), (1, True))
CHANGE_IDS: Final = _some(*((1, f"x{number}") for number in range(1, 7)))
ACCOUNTS: Final = _some(*((3, name) for name in [*EUROS, *NEW]), *((1, name) for name in [*YEN, *DINARS, "nobody"]))
REASONS: Final = _some((1, ""), (1, "why"), (1, "why not"))
REFERENCES: Final = _some((1, ""), (1, "order-1"), (1, "order-2"))
METADATA: Final = _some((2, {}), (1, {"a": "1"}), (1, {"a": "1", "b": "é"}))

AGOS: Final = _some((15, None), (2, 0), (1, 999), (2, 3600 * SECOND), (2, 10 * DAY), (1, -999), (1, -1000))
"""How many nanoseconds ago something took effect. From a microsecond in the future on it is refused."""

HOLDS: Final = _some(
    (6, None), (3, 60 * SECOND), *((1, hold) for hold in (1_999, SECOND, 3600 * SECOND, 31 * DAY + 999))
)
"""Nanoseconds."""

LEGS: Final = st.builds(
    lambda two, amount: Leg(*two, amount),
    _two_accounts(),
    _amounts("available", "room to pay", "room to receive", "most"),
)

FILLS: Final = Leg("rich", "refundable", Amount("room to receive"))
"""So that there is no room for a refund."""

OPENINGS: Final = st.builds(
    Open,
    _some(*((3, name) for name in [*NEW, "new-4", "new-5"]), (1, "alice"), (1, "bank")),
    _some((3, "EUR"), (1, "JPY"), (1, "KWD")),
    RARELY,
    _some((3, None), (2, Amount("", 100)), (1, Amount("most"))),
    METADATA,
)
LIMITS: Final = st.builds(
    SetLimit,
    _one((1, ACCOUNTS), (1, st.sampled_from(["bob", "rich"]))),
    _amounts("used", "used", "so already", "most", small=1),
    REASONS,
)
FREEZES: Final = st.builds(Freeze, _one((2, ACCOUNTS), (1, st.just("promising"))), st.integers(0, 3), REASONS)
UNFREEZES: Final = st.builds(Unfreeze, _one((1, st.just("")), (1, ACCOUNTS)), REASONS)
CLOSINGS: Final = st.builds(
    Close,
    _some((15, "awaiting"), (5, "promised"), *((2, name) for name in [*NEW, "shop", "zoe"]), (1, "alice"), (1, "bank")),
    REASONS,
)
AUTHORIZATIONS: Final = st.builds(
    lambda payment, two, amount, *others: Authorize(payment, *two, amount, *others),
    _some(*((1, f"p{number}") for number in range(1, 13))),
    _two_accounts(),
    _amounts("available", "room to promise", "most"),
    HOLDS,
    AGOS,
    REFERENCES,
    METADATA,
)
INCREMENTS: Final = st.builds(
    Increment,
    WHICH,
    _some((6, "capturable"), (4, "blocked"), (1, ""), (1, "none")),
    CHANGE_IDS,
    _amounts("available", "room to promise", "as much", "one", "most", small=1),
)
SHARES: Final = _one((1, st.none()), (2, _amounts("whole", "whole", "whole", "most")))
CAPTURES: Final = st.builds(
    Capture, WHICH, _some((12, "capturable"), (2, ""), (1, "none")), CHANGE_IDS, SHARES, st.booleans(), AGOS
)
VOIDS: Final = st.builds(Void, WHICH, _some((4, "capturable"), (2, "captured"), (1, ""), (1, "none")), REASONS)
REFUNDS: Final = st.builds(
    Refund, WHICH, _some((12, "captured"), (4, "full"), (2, ""), (1, "none")), CHANGE_IDS, SHARES, AGOS
)
TRANSFERS: Final = st.builds(
    Transfer,
    _some(*((1, f"t{number}") for number in range(1, 13))),
    _one((7, st.lists(LEGS, min_size=1, max_size=4)), (1, st.just([FILLS]))),
    AGOS,
    REFERENCES,
    METADATA,
)
SETTINGS: Final = st.one_of(OPENINGS, LIMITS, FREEZES, UNFREEZES, CLOSINGS)
CHANGES: Final = _one((4, CAPTURES), (4, REFUNDS), (2, INCREMENTS), (1, VOIDS))
COMMANDS: Final = _one((3, AUTHORIZATIONS), (3, CHANGES), (2, TRANSFERS), (1, SETTINGS))

CONDITIONS: Final = st.lists(
    st.tuples(_some(*((2, name) for name in EUROS), (4, "nobody")), _some((3, 0), (2, 1), (2, -1))),
    min_size=1,
    max_size=2,
)
TERMS: Final = st.builds(
    Terms,
    _some((30, ""), (3, "main"), (1, "none")),
    _some((9, False), (1, True)),
    _one((9, st.just(())), (1, CONDITIONS)),
    _one((15, st.just(0)), (1, st.integers(1, 60))),
)
TERMS_IN_BATCH: Final = st.builds(
    Terms,
    _some((60, ""), (1, "main")),
    _some((60, False), (1, True)),
    _one((20, st.just(())), (1, CONDITIONS)),
    _one((50, st.just(0)), (1, st.integers(1, 60))),
)
# Deferred, as Hypothesis would write out all of it, to name it, otherwise.
COMMANDS_IN_BATCH: Final = st.tuples(st.deferred(lambda: COMMANDS), TERMS_IN_BATCH)
BATCHES: Final = st.lists(COMMANDS_IN_BATCH, min_size=1, max_size=6)
SMALL_BATCHES: Final = st.lists(COMMANDS_IN_BATCH, min_size=1, max_size=3)
MODES: Final = _some((10, 0), (10, 1), (1, 3))

TICKS: Final = _some((4, 0), (2, 1), (2, 1_000_000))
"""Microseconds that pass before a step."""

WAITS: Final = _some(*((1, time // 1_000) for time in (1_000, SECOND, 60 * SECOND, 3600 * SECOND, 7 * DAY, 40 * DAY)))
"""Microseconds."""

MOMENTS: Final = st.builds(Moment, st.integers(0, 200), _some((4, 0), (1, 1), (1, -1)))
KNOWN_AT: Final = _one(
    (2, st.just(KnownAt(None, None))),
    (2, st.builds(KnownAt, _one((10, st.integers(0, 80)), (1, st.just(-1))), st.none())),
    (2, st.builds(KnownAt, st.none(), MOMENTS)),
    (1, st.just(KnownAt(None, Moment(0, 1_000 * DAY // 1_000)))),  # to come
)
LOOK_AT: Final = st.builds(
    Look,
    st.sampled_from(LOOKS),
    _some(*((1, name) for name in [*EVERYBODY, "p1", "p2", "p3", "p4", "given", "t1", "t2", "t3", "nobody"])),
    KNOWN_AT,
    _one((1, st.none()), (1, MOMENTS)),
)
PAGE_SIZES: Final = _some((4, 1), (3, 2), (1, 3), (1, 5))
PAGES: Final = st.builds(
    ListOf,
    _some(*zip((1, 4, 3, 4), LISTS, strict=True)),
    _some((10, ""), *((1, name) for name in [*EUROS, "yumi", "new-1", "nobody"])),
    _some((15, ""), (1, "alice"), (1, "bank")),
    _some((15, ""), (1, "bob"), (1, "shop")),
    _one((3, st.just(())), (1, st.lists(st.integers(1, 12), max_size=4, unique=True))),
    _some((10, ""), (2, "EUR"), (1, "JPY")),
    _some((8, ""), (1, "order-1"), (1, "order-2")),
    st.sampled_from(["recorded", "effective"]),
    _one((3, st.none()), (1, MOMENTS)),
    _one((3, st.none()), (1, MOMENTS)),
    st.integers(0, 2),
    _one((10, PAGE_SIZES), (1, st.just(0))),
)
SWEEPER: Final = _some((5, "slower"), (5, "quicker"), (1, "as quick"))
