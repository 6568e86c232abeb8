"""Why a read can't be answered, though nothing is wrong with what it asks for."""

from __future__ import annotations

from ledger.domain.errors import Refusal


class ReadsUnavailable(Refusal):
    """The database that reads come from did not answer in time; try again."""

    code = "READS_UNAVAILABLE"


class ReadModelBehind(Refusal):
    """The read models stand at position {position} and did not reach {min_position} in time; try again."""

    code = "READ_MODEL_BEHIND"


class ReadModelStopped(Refusal):
    """The read models have stopped at position {position} and need an operator."""

    code = "READ_MODEL_STOPPED"


class PositionAheadOfHead(Refusal):
    """There is no position {min_position} yet: the log ends at {head}."""

    code = "POSITION_AHEAD_OF_HEAD"


class BalanceNotRepresentable(Refusal):
    """What was effective on account {account_id!r} then adds up to more than an int64 can hold."""

    code = "BALANCE_NOT_REPRESENTABLE"
