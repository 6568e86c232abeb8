"""Import: brings accounts and a history of movements along from CSV files, over the public API.

The effect is as if the rows were done one by one in the order of the file. So one batch is on its way at a time (the
server promises no order between calls that run at once), and the next one is read and encoded meanwhile.

Ids are idempotency keys: an import that was stopped is simply run again.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Final, NamedTuple

from google.rpc import code_pb2
from rich.console import Console

from ledger.client import LedgerClient, NoAnswer, Refused, Sent, Target, connected
from ledger.csv_rows import (
    ACCOUNT_COLUMNS,
    MOVEMENT_COLUMNS,
    CsvFile,
    MalformedRow,
    Movement,
    Row,
    UnusableFile,
    read_account,
    read_movement,
)
from ledger.domain.money import Money
from ledger.import_report import ImportSummary, ProgressBars, print_summary
from ledger.rejects import RejectsFile, rejects_path
from ledger.row_outcomes import Counts, Outcome, Verdict, explanation, verdict
from ledger.v1 import account_pb2, batch_pb2, ledger_pb2

COMMANDS_PER_BATCH: Final = 1_000
BYTES_PER_BATCH: Final = 512 * 1024
"""Of the file, and the rest of the last row. A payment's id is sent three times: that is still less than 2 MiB of 3."""

_UNKNOWN_MOST: Final = 10_000

Request = batch_pb2.ExecuteBatchRequest
Encode = Callable[[Sequence[str], Request], None]


class CannotImport(Exception):
    """The import can't run, or can't go on. The message is for the person who started it."""


def run_import(
    accounts: Path,
    movements: Path,
    *,
    target: Target,
    ledger: str = "",
    rejects: Path | None = None,
    console: Console,
) -> ImportSummary:
    """Import two files into a ledger of a running server, and print how it went.

    Rows that are declined or refused go with their reasons into a file beside each input, or in the folder `rejects`.
    Raises CannotImport if it can't run or go on, NoAnswer if no server answers (any more), RejectsUnwritable. Whatever
    ended it, running it again does nothing twice.
    """
    try:
        with ExitStack() as stack:
            account_file = stack.enter_context(CsvFile(accounts, ACCOUNT_COLUMNS))
            movement_file = stack.enter_context(CsvFile(movements, MOVEMENT_COLUMNS))
            _require_files_apart(account_file, movement_file, rejects)
            account_rejects = stack.enter_context(RejectsFile(account_file, rejects))
            movement_rejects = stack.enter_context(RejectsFile(movement_file, rejects))
            channel = stack.enter_context(connected(target))
            bars = stack.enter_context(ProgressBars(console))
            work = Import(LedgerClient(channel, ledger, bars.waiting), bars)
            summary = work.run(account_file, account_rejects, movement_file, movement_rejects)
    except OSError as error:
        raise CannotImport(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
    except UnusableFile as error:
        raise CannotImport(str(error)) from error
    except Refused as error:
        raise CannotImport(str(error)) from error
    print_summary(summary, console)
    return summary


def _require_files_apart(accounts: CsvFile, movements: CsvFile, rejects: Path | None) -> None:
    """Raise CannotImport if rejected rows would go where others go or come from, whatever the paths look like."""
    sources = {each.path.resolve() for each in (accounts, movements)}
    targets = {rejects_path(each, rejects).resolve() for each in (accounts, movements)}
    if len(targets) == 1:
        raise CannotImport("the rejected rows of both files would go into one file: rename one of the files")
    for path in sources & targets:
        raise CannotImport(f"{path}: here the rejected rows of the other file would go: rename one of the files")


class SentRow(NamedTuple):
    """A row in a batch: how many commands it has there, or why it has none."""

    row: Row
    commands: int
    problem: str = ""


@dataclass(slots=True)
class RowBatch:
    """Rows that are sent together."""

    request: Request
    bytes_before: int = 0
    """How much of the file was read before the first of the rows."""
    rows: list[SentRow] = field(default_factory=list)
    bytes_read: int = 0
    """How much of the file is read with the last of the rows."""
    sent: Sent | None = None

    @property
    def is_full(self) -> bool:
        return (
            len(self.request.commands) >= COMMANDS_PER_BATCH
            or len(self.rows) >= COMMANDS_PER_BATCH
            or self.bytes_read - self.bytes_before >= BYTES_PER_BATCH
        )

    def verdicts(self, results: Sequence[batch_pb2.BatchResult]) -> Iterator[tuple[Row, Verdict]]:
        """What became of each row."""
        start = 0
        for row, commands, problem in self.rows:
            stop = start + commands
            yield row, verdict(results[start:stop]) if commands else Verdict(Outcome.REFUSED, problem)
            start = stop


class Import:
    """One run: what it knows of the accounts, and how far it has come."""

    def __init__(self, client: LedgerClient, bars: ProgressBars) -> None:
        self._client, self._bars = client, bars
        self._currencies: dict[str, str] = {}
        self._unknown: dict[str, str] = {}
        self._position = 0
        self._opened_at = 0

    def run(
        self,
        accounts: CsvFile,
        account_rejects: RejectsFile,
        movements: CsvFile,
        movement_rejects: RejectsFile,
    ) -> ImportSummary:
        started = monotonic()
        account_counts = self._do_file(accounts, self._add_account, account_rejects)
        self._opened_at = self._position
        movement_counts = self._do_file(movements, self._add_movement, movement_rejects)
        is_readable = self._wait_for_read_models()
        return ImportSummary(
            account_counts,
            movement_counts,
            seconds=monotonic() - started,
            last_position=self._position,
            is_readable=is_readable,
            rejects=tuple(each.path for each in (account_rejects, movement_rejects) if each.rows),
        )

    # --- batches -----------------------------------------------------------------------------------------------------

    def _do_file(self, file: CsvFile, encode: Encode, rejects: RejectsFile) -> Counts:
        """Do all rows of a file, in order. While the server has a batch, the next is read and the last one counted."""
        outcomes: Counter[Outcome] = Counter()
        self._bars.begin(file.path.name, file.size)
        before = self._new_batch()
        for batch in self._batches(file, encode):
            results = self._results(before)
            if batch.request.commands:
                batch.sent = self._client.send(batch.request)
            self._count(before, results, outcomes, rejects)
            before = batch
        self._count(before, self._results(before), outcomes, rejects)
        return Counts.of(outcomes)

    def _new_batch(self, bytes_before: int = 0) -> RowBatch:
        return RowBatch(self._client.batch_of(), bytes_before)

    def _batches(self, file: CsvFile, encode: Encode) -> Iterator[RowBatch]:
        batch = self._new_batch(file.bytes_read)
        for row in file:
            if batch.is_full:
                yield batch
                batch = self._new_batch(batch.bytes_read)
            batch.rows.append(_encoded(row, encode, batch.request))
            batch.bytes_read = file.bytes_read
        yield batch

    def _results(self, batch: RowBatch) -> list[batch_pb2.BatchResult]:
        if batch.sent is None:
            return []
        results = batch.sent.results()
        self._position = max(self._position, batch.sent.position)
        self._learn_currencies(results)
        return results

    def _learn_currencies(self, results: Sequence[batch_pb2.BatchResult]) -> None:
        """The row that opened an account tells its currency, whatever a row that was refused said before."""
        for result in results:
            if result.HasField("open_account"):
                account = result.open_account.account
                self._currencies[account.account_id] = sys.intern(account.currency_code)

    def _count(
        self,
        batch: RowBatch,
        results: Sequence[batch_pb2.BatchResult],
        outcomes: Counter[Outcome],
        rejects: RejectsFile,
    ) -> None:
        for row, (outcome, reason) in batch.verdicts(results):
            outcomes[outcome] += 1
            if reason:
                rejects.add(row, outcome, reason)
        self._bars.advance(batch.bytes_read, outcomes.total())

    # --- rows to commands --------------------------------------------------------------------------------------------

    def _add_account(self, cells: Sequence[str], request: Request) -> None:
        account = read_account(cells)
        # Kept if the row is refused too: amounts that are meant in this currency must not be read in another one.
        self._currencies.setdefault(account.account_id, sys.intern(account.currency_code))
        command = request.commands.add().open_account
        command.account_id = account.account_id
        command.currency_code = account.currency_code
        command.kind = account_pb2.ACCOUNT_KIND_EXTERNAL if account.is_external else account_pb2.ACCOUNT_KIND_CUSTOMER
        if account.credit_limit is not None:
            _set_money(command.credit_limit, account.credit_limit)

    def _add_movement(self, cells: Sequence[str], request: Request) -> None:
        movement = read_movement(cells, self._currency_of)
        if movement.is_payment:
            _add_payment(movement, request)
        else:
            _add_transfer(movement, request)

    def _currency_of(self, account_id: str) -> str:
        """The currency of an account: as the accounts file says, else as the ledger does. Raises MalformedRow."""
        known = self._currencies.get(account_id)
        if known is not None:
            return known
        if account_id not in self._unknown:
            try:
                # Whoever opened accounts before this import did expects that it sees them.
                account = self._client.account(account_id, min_position=self._opened_at)
            except Refused as error:
                if len(self._unknown) >= _UNKNOWN_MOST:
                    self._unknown.clear()
                self._unknown[account_id] = f"from_account: {explanation(error.status)}"
            else:
                self._currencies[account_id] = sys.intern(account.currency_code)
                return account.currency_code
        raise MalformedRow(self._unknown[account_id])

    # --- reading back ------------------------------------------------------------------------------------------------

    def _wait_for_read_models(self) -> bool:
        """Wait until reads know all that was done. False if that takes too long: what was done stays done."""
        any_account = next(iter(self._currencies), None)
        if any_account is None or not self._position:
            return True
        self._bars.say(f"waiting until the read models reach position {self._position:,}")
        try:
            self._client.account(any_account, min_position=self._position)
        except Refused as error:
            return error.status.code == code_pb2.NOT_FOUND
        except NoAnswer:
            return False
        return True


def _encoded(row: Row, encode: Encode, request: Request) -> SentRow:
    """Add a row's commands to a request."""
    if row.problem:
        return SentRow(row, 0, row.problem)
    before = len(request.commands)
    try:
        encode(row.cells, request)
    except MalformedRow as error:
        return SentRow(row, 0, str(error))
    return SentRow(row, len(request.commands) - before)


# Fields are set one by one, in place: that takes half the time of building messages and copying them in.


def _add_transfer(movement: Movement, request: Request) -> None:
    command = request.commands.add().post_transfer
    command.transfer_id = movement.id
    leg = command.legs.add()
    leg.from_account_id = movement.from_account
    leg.to_account_id = movement.to_account
    _set_money(leg.amount, movement.amount)
    command.reference = movement.reference
    if movement.effective_at is not None:
        command.effective_at.CopyFrom(movement.effective_at)


def _add_payment(movement: Movement, request: Request) -> None:
    """An authorization and the capture of all of it. Capture ids are per payment: the payment's own will do."""
    authorize = request.commands.add().authorize_payment
    authorize.payment_id = movement.id
    authorize.payer_account_id = movement.from_account
    authorize.payee_account_id = movement.to_account
    _set_money(authorize.amount, movement.amount)
    authorize.reference = movement.reference
    capture = request.commands.add().capture_payment
    capture.payment_id = movement.id
    capture.capture_id = movement.id
    if movement.effective_at is not None:
        authorize.effective_at.CopyFrom(movement.effective_at)
        capture.effective_at.CopyFrom(movement.effective_at)


def _set_money(field: ledger_pb2.Money, money: Money) -> None:
    field.currency_code = money.currency_code
    field.minor_units = money.minor_units
