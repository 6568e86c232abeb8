"""The library's own cases for recorders, run against the log of a ledger. Its stream ids are text."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest
from eventsourcing.tests import persistence

from ledger.event_log import EventLog, LogDatastore


class OnAFreshLedger(persistence.RecorderTestCase):
    """Where the cases below get their recorders from."""

    __test__ = False

    @pytest.fixture(autouse=True)
    def place(self, dsn: str, ledger: str) -> None:
        self.dsn, self.ledger = dsn, ledger

    def create_recorder(self) -> EventLog:
        datastore = LogDatastore(self.dsn, self.ledger)
        self.addCleanup(datastore.close)
        return EventLog(datastore)

    def new_originator_id(self) -> UUID | str:
        return f"account/{uuid4()}"


class TestEventLog(OnAFreshLedger, persistence.ApplicationRecorderTestCase[EventLog]):
    """It is an application recorder, and gives notification ids without gaps."""

    __test__ = True

    def test_insert_subscribe(self) -> None:
        """Its subscriptions yield what was recorded and what comes later, of some topics or all, until stopped."""
        self.optional_test_insert_subscribe()


class TestPositions(OnAFreshLedger, persistence.NonInterleavingNotificationIDsBaseCase):
    """Two inserts at once get positions that do not interleave."""

    __test__ = True
