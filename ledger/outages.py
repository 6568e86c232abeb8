"""Why the ledger can't answer a command now, though nothing is wrong with the command."""

from __future__ import annotations

from ledger.domain.errors import Refusal


class Outage(Refusal):
    """The command was not decided, or what came of it is not known."""

    def again(self) -> Outage:
        """The same, to be raised once more: an exception keeps what it was raised through, and this may be many."""
        return type(self)(**self.details)


class DatabaseUnavailable(Outage):
    """The database can't be reached. Nothing was recorded; try again."""

    code = "DATABASE_UNAVAILABLE"


class NotRecorded(Outage):
    """The database failed while the command was being recorded. It was not recorded; try again."""

    code = "NOT_RECORDED"


class OutcomeUnknown(Outage):
    """The database failed while the command was being recorded, and can't be asked. Try again with the same id."""

    code = "OUTCOME_UNKNOWN"


class QueueFull(Outage):
    """Too many commands are waiting ({waiting}). Nothing was recorded; try again later."""

    code = "QUEUE_FULL"


class DeadlinePassed(Outage):
    """The deadline passed before this was begun, or as good as passed. Nothing was recorded."""

    code = "DEADLINE_PASSED"


class ShuttingDown(Outage):
    """This server is shutting down. Nothing was recorded; try another, or again in a moment."""

    code = "SHUTTING_DOWN"


class WritesStopped(Outage):
    """This server has stopped writing: {why}. Nothing was recorded."""

    code = "WRITES_STOPPED"


class Internal(Outage):
    """Something went wrong in this server, whose log has it. Send the same ids again: the answer tells what is so."""

    code = "INTERNAL"
