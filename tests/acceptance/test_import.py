"""Imports through a running server: what arrives, in what order, what is said of the rest, and nothing twice."""

from __future__ import annotations

import csv
import io
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from rich.console import Console
from serving import LEDGER, ROOT, LedgerServer, environment, eventually, run_ledger, serving

from ledger.client import Target
from ledger.csv_rows import ACCOUNT_COLUMNS, MOVEMENT_COLUMNS, CsvFile
from ledger.import_report import ImportSummary
from ledger.importer import COMMANDS_PER_BATCH, CannotImport, run_import
from ledger.rejects import RejectsFile, RejectsUnwritable

DAY = "2024-01-31T12:00:00Z"


class History(NamedTuple):
    """The two files of an import, whose ids are one test's own."""

    accounts: Path
    movements: Path
    server: LedgerServer
    tag: str

    def id(self, name: str) -> str:
        return f"{name}:{self.tag}"

    def write(self, accounts: Sequence[str], movements: Sequence[str]) -> None:
        """Write both files, with the tag for every `~`: "alice~" is "alice:0f3a"."""
        for path, columns, rows in (
            (self.accounts, ACCOUNT_COLUMNS, accounts),
            (self.movements, MOVEMENT_COLUMNS, movements),
        ):
            lines = [",".join(columns), *(row.replace("~", f":{self.tag}") for row in rows)]
            path.write_text("\n".join(lines) + "\n")

    def run(self, console: Console | None = None) -> ImportSummary:
        return run_import(
            self.accounts,
            self.movements,
            target=Target(self.server.address),
            ledger=self.server.ledger,
            console=console or Console(file=io.StringIO()),
        )

    def posted(self, name: str, min_position: int = 0) -> int:
        account = self.server.account(self.id(name), min_position)
        assert account is not None
        return account.posted

    def rejected(self, path: Path) -> list[dict[str, str]]:
        """The rejected rows of a file, without the tag."""
        with path.with_name(f"{path.stem}.rejected.csv").open(newline="") as file:
            return [
                {name: value.replace(f":{self.tag}", "~") for name, value in row.items()}
                for row in csv.DictReader(file)
            ]


@pytest.fixture
def history(tmp_path: Path, server: LedgerServer, tag: str) -> History:
    return History(tmp_path / "accounts.csv", tmp_path / "movements.csv", server, tag)


PEOPLE = ["bank~,EUR,external,", "alice~,EUR,customer,100.00", "bob~,EUR,Customer,"]


# --- what arrives ----------------------------------------------------------------------------------------------------


def test_accounts_transfers_and_payments_arrive(history: History) -> None:
    """A payment is authorized and captured at once, and the rows count on the day on which they took effect."""
    history.write(
        PEOPLE,
        [f"t1~,{DAY},transfer,bank~,alice~,50.00,salary", f'p1~,{DAY},payment,alice~,bob~,120.05,"coat, ""blue"""'],
    )

    summary = history.run()

    assert summary.complete
    assert summary.is_readable
    assert (summary.accounts.done, summary.movements.done) == (3, 2)
    assert [history.posted(name) for name in ("bank", "alice", "bob")] == [-5000, -7005, 12005]
    with history.server.database() as database:
        assert database.execute(
            "SELECT state, amount_captured, reference, effective_at::text FROM payments WHERE payment_id = %s",
            [history.id("p1")],
        ).fetchone() == ("CAPTURED", 12005, 'coat, "blue"', "2024-01-31 12:00:00+00")
    assert not list(history.accounts.parent.glob("*rejected*"))


def test_an_import_that_is_run_again_changes_nothing(history: History) -> None:
    """Every row is a replay: the log has no event more, and the answer is the same position."""
    history.write(PEOPLE, [f"t1~,{DAY},transfer,bank~,alice~,50,", f"p1~,{DAY},payment,alice~,bob~,20,"])
    first = history.run()

    second = history.run()

    assert second.complete
    assert (second.accounts.replayed, second.movements.replayed) == (3, 2)
    assert second.last_position == first.last_position
    assert history.posted("alice", first.last_position) == 3000


def test_rows_are_done_in_the_order_of_the_file(history: History) -> None:
    """Each payment can only be paid out of the transfer right before it, across many batches."""
    count = 2 * COMMANDS_PER_BATCH
    history.write(
        ["bank~,EUR,external,", "alice~,EUR,customer,"],
        [
            row
            for number in range(count)
            for row in (
                f"in-{number}~,{DAY},transfer,bank~,alice~,7.00,",
                f"out-{number}~,{DAY},payment,alice~,bank~,7.00,",
            )
        ],
    )

    summary = history.run()

    assert summary.movements.done == 2 * count
    assert history.posted("alice") == 0


def test_an_account_that_the_file_lacks_is_asked_from_the_ledger(history: History) -> None:
    """Its currency decides how many digits an amount has."""
    history.write(["tokyo~,JPY,external,", "kenji~,JPY,customer,"], [])
    history.run()
    history.write(
        [],
        [
            f"t1~,{DAY},transfer,tokyo~,kenji~,500,",
            f"t2~,{DAY},transfer,tokyo~,kenji~,500.00,",
            f"t3~,{DAY},transfer,nobody~,kenji~,500,",
        ],
    )

    summary = history.run()

    assert (summary.movements.done, summary.movements.refused) == (1, 2)
    assert history.posted("kenji") == 500
    digits, nobody = history.rejected(history.movements)
    assert digits["reason"].startswith("amount: '500.00' has too many digits: JPY has no minor digits")
    assert nobody["reason"].startswith("from_account: NOT_FOUND: ")


def test_amounts_are_in_the_currency_that_the_account_was_opened_in(history: History) -> None:
    """An account whose first row is refused, and whose second is not, has the currency of the second."""
    history.write(
        ["bank~,USD,external,5", "bank~,JPY,external,", "bank~,USD,external,", "kenji~,JPY,customer,"],
        [f"t1~,{DAY},transfer,bank~,kenji~,500,", f"t2~,{DAY},transfer,bank~,kenji~,5.00,"],
    )

    summary = history.run()

    assert [row["line"] for row in history.rejected(history.accounts)] == ["2", "4"]
    assert (summary.movements.done, summary.movements.refused) == (1, 1)
    assert history.posted("kenji") == 500


def test_amounts_are_not_read_in_a_currency_that_the_file_does_not_mean(history: History) -> None:
    """Where the ledger has the account in another one, what it pays is refused too: 500 yen are not 500 EUR."""
    history.write(["bank~,EUR,external,", "alice~,EUR,customer,"], [])
    history.run()
    history.write(["bank~,JPY,external,"], [f"t1~,{DAY},transfer,bank~,alice~,500,"])

    summary = history.run()

    assert (summary.accounts.refused, summary.movements.refused) == (1, 1)
    assert "holds EUR, not JPY" in history.rejected(history.movements)[0]["reason"]
    assert history.posted("alice") == 0


# --- what does not ---------------------------------------------------------------------------------------------------


def test_a_broken_row_is_written_out_with_its_reason_and_spoils_no_other(history: History) -> None:
    """Whether the importer or the server refuses it: the rows around it are done."""
    history.write(
        [*PEOPLE, "eve~,EUR,pirate,", "-mallory~,EUR,customer,", "alice~,EUR,customer,200.00"],
        [
            f"t1~,{DAY},transfer,bank~,alice~,10.00,",
            f"x1~,{DAY},transfer,bank~,alice~,10.005,",
            f"x2~,{DAY},transfer,bank~",
            f'x3~,{DAY},transfer,"bank~,alice~,10.00,',
            "x4~,2024-01-31,transfer,bank~,alice~,10.00,",
            f"x5~,{DAY},transfer,bank~,nobody~,10.00,",
            f"x6~,{DAY},transfer,bank~,bank~,10.00,",
            f"x7~,{DAY},payment,alice~,bob~,0,",
            f",{DAY},transfer,bank~,alice~,10.00,",
            "x9~,2999-01-01T00:00:00Z,transfer,bank~,alice~,10.00,",
            "",
            f"x10~,{DAY},transfer,bank~,alice~,10.00,{'long' * 100}",
            f"x11~,{DAY},transfer,bank~,alice~,10.00,card 4111 1111 1111 1111",
            f"t2~,{DAY},payment,alice~,bob~,4.00,",
        ],
    )

    summary = history.run()

    assert (summary.accounts.done, summary.accounts.refused) == (3, 3)
    assert (summary.movements.rows, summary.movements.done, summary.movements.refused) == (13, 2, 11)
    assert (history.posted("alice"), history.posted("bob")) == (600, 400)
    assert [(row["line"], row["outcome"]) for row in history.rejected(history.accounts)] == [
        ("5", "refused"), ("6", "refused"), ("7", "refused"),
    ]  # fmt: skip
    assert [
        (row["line"], row["outcome"], row["reason"].split(": ")[:2]) for row in history.rejected(history.movements)
    ] == [
        ("3", "refused", ["amount", "'10.005' has too many digits"]),
        ("4", "refused", ["4 columns instead of 7"]),
        ("5", "refused", [history.rejected(history.movements)[2]["reason"]]),
        ("6", "refused", ["effective_at", "'2024-01-31' is not a time with a zone, such as 1993-01-31T12:00:00Z"]),
        ("7", "refused", ["NOT_FOUND", "There is no account 'nobody~' in this ledger."]),
        ("8", "refused", ["INVALID_ARGUMENT", "to_account"]),
        ("9", "refused", ["INVALID_ARGUMENT", "amount"]),
        ("10", "refused", ["INVALID_ARGUMENT", "id"]),
        ("11", "refused", ["INVALID_ARGUMENT", "effective_at"]),
        ("13", "refused", ["INVALID_ARGUMENT", "reference"]),
        ("14", "refused", ["INVALID_ARGUMENT", "reference"]),
    ]  # fmt: skip
    assert summary.rejects == tuple(
        path.with_name(f"{path.stem}.rejected.csv") for path in (history.accounts, history.movements)
    )


@pytest.mark.parametrize("count", [12, 60])
def test_rows_with_long_cells_are_refused_one_by_one(history: History, count: int) -> None:
    """However many come together, more than a request may have or gRPC takes; and a row that is too long by itself."""
    long = "long" * 15_000
    history.write(
        PEOPLE,
        [
            f"t1~,{DAY},transfer,bank~,alice~,10.00,",
            *(f"x{number}~,{DAY},transfer,bank~,alice~,10.00,{long}" for number in range(2 * count)),
            *(f"{number}{long},{DAY},payment,alice~,bob~,1.00," for number in range(count)),
            f"x~,{DAY},transfer,bank~,alice~,10.00,{2 * long}",
            f"t2~,{DAY},payment,alice~,bob~,4.00,",
        ],
    )

    summary = history.run()

    assert (summary.movements.done, summary.movements.refused) == (2, 3 * count + 1)
    assert [row["reason"].split(": ")[:2] for row in history.rejected(history.movements)] == [
        *[["INVALID_ARGUMENT", "reference"]] * 2 * count,
        *[["INVALID_ARGUMENT", "id"]] * count,
        ["longer than 65,536 bytes"],
    ]
    assert (history.posted("alice"), history.posted("bob")) == (600, 400)


def test_a_row_that_the_accounts_decline_stays_declined(history: History) -> None:
    """A decline is recorded and final for its id, whatever comes later; running it again says the same."""
    history.write(
        PEOPLE,
        [
            f"p1~,{DAY},payment,alice~,bob~,100.01,too much",
            f"t1~,{DAY},transfer,bob~,alice~,0.01,",
            f"t2~,{DAY},transfer,bank~,alice~,1000,",
        ],
    )
    history.run()
    first = history.rejected(history.movements)

    summary = history.run()

    assert not summary.complete
    assert (summary.movements.done, summary.movements.declined) == (1, 2)
    assert [(row["id"], row["outcome"], row["reason"]) for row in first] == [
        ("p1~", "declined", "INSUFFICIENT_FUNDS: account alice~"),
        ("t1~", "declined", "INSUFFICIENT_FUNDS: account bob~"),
    ]
    assert history.rejected(history.movements) == first
    assert history.posted("alice") == 100_000


def test_an_id_that_comes_twice_is_a_replay_or_refused(history: History) -> None:
    """The same row again is done already; another row under the same id must not be lost without a word."""
    history.write(
        PEOPLE,
        [
            f"t1~,{DAY},transfer,bank~,alice~,10.00,",
            f"t1~,{DAY},transfer,bank~,alice~,10.00,",
            f"t1~,{DAY},transfer,bank~,alice~,11.00,",
        ],
    )

    summary = history.run()

    assert (summary.movements.done, summary.movements.replayed, summary.movements.refused) == (2, 1, 1)
    assert history.posted("alice") == 1000
    (row,) = history.rejected(history.movements)
    assert (row["line"], row["outcome"]) == ("4", "refused")
    assert row["reason"].startswith("ALREADY_EXISTS: ")


def test_the_file_of_rejected_rows_is_that_of_the_last_import(history: History) -> None:
    """When the rows are mended, and all are done, it is gone."""
    history.write(PEOPLE, [f"t1~,{DAY},transfer,bank~,alice~,ten,"])
    (rejects,) = history.run().rejects
    assert rejects.exists()
    history.write(PEOPLE, [f"t1~,{DAY},transfer,bank~,alice~,10,"])

    summary = history.run()

    assert summary.complete
    assert sorted(history.accounts.parent.iterdir()) == [history.accounts, history.movements]


def test_rejected_rows_can_go_elsewhere(history: History, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The input may stand in a folder where nothing can be written."""
    folder = tmp_path_factory.mktemp("rejects")
    history.write(PEOPLE, [f"t1~,{DAY},transfer,bank~,alice~,ten,"])

    summary = run_import(
        history.accounts,
        history.movements,
        target=Target(history.server.address),
        ledger=history.server.ledger,
        rejects=folder,
        console=Console(file=io.StringIO()),
    )

    assert summary.rejects == (folder / "movements.rejected.csv",)


@pytest.mark.parametrize("name", ["accounts", "movements"])
def test_a_folder_in_the_place_of_rejected_rows_stops_before_anything_is_done(name: str, history: History) -> None:
    """It is named, and no file is left beside it."""
    history.write(PEOPLE, [f"t1~,{DAY},transfer,bank~,alice~,ten,"])
    folder = history.accounts.with_name(f"{name}.rejected.csv")
    folder.mkdir()

    with pytest.raises(CannotImport, match=f"^{re.escape(str(folder))}: Is a directory$"):
        history.run()

    assert history.server.account(history.id("alice")) is None
    assert sorted(folder.parent.iterdir()) == sorted([history.accounts, history.movements, folder])


@pytest.mark.parametrize(
    ("movements", "why"),
    [
        ("accounts.rejected.csv", "accounts.rejected.csv: here the rejected rows of the other file would go"),
        ("accounts.txt", "the rejected rows of both files would go into one file"),
        ("here/accounts.txt", "the rejected rows of both files would go into one file"),
    ],
)
def test_rejected_rows_take_no_other_file_s_place(history: History, movements: str, why: str) -> None:
    """Neither that of the other file, which would be gone then, nor that of its rejected rows."""
    (history.accounts.parent / "here").symlink_to(history.accounts.parent)
    clashing = history._replace(movements=history.accounts.parent / movements)
    clashing.write(PEOPLE, [])
    before = clashing.movements.read_bytes()

    with pytest.raises(CannotImport, match=re.escape(why)):
        clashing.run()

    assert clashing.movements.read_bytes() == before
    assert len(list(history.accounts.parent.iterdir())) == 3


def test_rejected_rows_that_can_not_be_put_in_place_leave_no_file(history: History) -> None:
    """Here a folder has come there meanwhile. They are found again by running the import again."""
    history.write(PEOPLE, [f"t1~,{DAY},transfer,bank~,alice~,ten,"])
    folder = history.movements.with_name("movements.rejected.csv")

    def reject() -> None:
        with CsvFile(history.movements, MOVEMENT_COLUMNS) as source, RejectsFile(source) as rejects:
            rejects.add(next(iter(source)), "refused", "amount")
            folder.mkdir()

    with pytest.raises(RejectsUnwritable, match=re.escape(f"can't write {folder}: Is a directory")):
        reject()

    assert sorted(folder.parent.iterdir()) == sorted([history.accounts, history.movements, folder])


def test_a_wrong_header_stops_before_anything_is_done(history: History) -> None:
    """Also when it is that of the second file: no account is opened."""
    history.write(PEOPLE, [])
    history.movements.write_text("id,when,kind,from_account,to_account,amount,reference\n")

    with pytest.raises(CannotImport, match="missing: effective_at; unknown: 'when'"):
        history.run()

    assert history.server.account(history.id("alice")) is None


def test_a_ledger_that_the_server_lacks_stops_the_import(history: History) -> None:
    """What concerns all rows is not said row by row."""
    history.write(PEOPLE, [f"t1~,{DAY},transfer,bank~,alice~,10,"])

    with pytest.raises(CannotImport, match=r"^NOT_FOUND: .*'nowhere'"):
        run_import(
            history.accounts,
            history.movements,
            target=Target(history.server.address),
            ledger="nowhere",
            console=Console(file=io.StringIO()),
        )

    assert sorted(history.accounts.parent.iterdir()) == [history.accounts, history.movements]


# --- what can come between -------------------------------------------------------------------------------------------


def many(history: History, count: int = 8 * COMMANDS_PER_BATCH) -> int:
    """Write a history that takes a while; what it leaves on alice's account."""
    history.write(
        ["bank~,EUR,external,", "alice~,EUR,customer,"],
        [f"t{number}~,{DAY},transfer,bank~,alice~,0.01," for number in range(count)],
    )
    return count


def importing(history: History) -> subprocess.Popen[str]:
    """`ledger import`, which has done some of the movements."""
    command = [*LEDGER, "import", str(history.accounts), str(history.movements), "--server", history.server.address,
               "--ledger", history.server.ledger]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    eventually(lambda: has_begun(history))
    return process


def has_begun(history: History) -> bool:
    account = history.server.account(history.id("alice"))
    return account is not None and account.posted > 0


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_import_that_was_stopped_goes_on_where_it_was(history: History, how: signal.Signals) -> None:
    """By Ctrl-C or a timer, and the same command again: every row is done, and once."""
    expected = many(history)
    with importing(history) as process:
        process.send_signal(how)
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "ledger: stopped; run it again" in errors
    assert "Traceback" not in errors
    assert history.posted("alice") < expected
    assert sorted(history.accounts.parent.iterdir()) == [history.accounts, history.movements]

    summary = history.run()

    assert summary.complete
    assert 0 < summary.movements.replayed < expected
    assert history.posted("alice", summary.last_position) == expected


def test_an_import_outlives_its_server(tmp_path: Path, tag: str) -> None:
    """The server is killed and started again: the import goes on by itself, and nothing is done twice."""
    with serving(tmp_path) as server:
        history = History(tmp_path / "accounts.csv", tmp_path / "movements.csv", server, tag)
        expected = many(history)
        with importing(history) as process:
            server.kill()
            server.start()
            output, errors = process.communicate()

        assert process.returncode == 0, errors
        assert "waiting for the server: UNAVAILABLE" in output
        assert history.posted("alice") == expected


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_command(history: History) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(server: str = history.server.address) -> subprocess.CompletedProcess[str]:
        files = (history.accounts, history.movements)
        return run_ledger("import", *files, "--server", server, "--ledger", history.server.ledger)

    return run


def test_the_command_says_how_it_went(
    history: History, run_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """0 when all is done, 1 when some is not, 2 when it can't run; what it prints is for people, and plain."""
    history.write(PEOPLE, [f"t1~,{DAY},transfer,bank~,alice~,10,"])
    done = run_command()
    history.write(PEOPLE, [f"t2~,{DAY},transfer,alice~,bank~,1000,"])
    some = run_command()
    history.accounts.unlink()
    none = run_command()

    assert (done.returncode, some.returncode, none.returncode) == (0, 1, 2)
    assert "the read models have reached it" in done.stdout
    assert f": {history.movements.with_name('movements.rejected.csv')}\n" in some.stdout
    assert f"{history.accounts}: No such file or directory" in none.stderr
    assert "\x1b" not in done.stdout + some.stdout


def test_the_command_says_when_there_is_no_server(
    history: History, run_command: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """In one line, with what to do."""
    history.write(PEOPLE, [])

    failed = run_command("127.0.0.1:1")

    assert failed.returncode == 3
    assert failed.stderr == "ledger: no ledger answers at 127.0.0.1:1: is `ledger serve` running there?\n"


def test_the_command_says_when_rejected_rows_can_not_be_written(history: History) -> None:
    """As when the disk is full, here for files of more than 4 KiB: what file, and that the import can be run again."""
    history.write(PEOPLE, [f"t{number}~,{DAY},transfer,bank~,alice~,ten,{'x' * 90}" for number in range(100)])
    command = [*LEDGER, "import", str(history.accounts), str(history.movements)]
    where = ["--server", history.server.address, "--ledger", history.server.ledger]
    limited = ["bash", "-c", 'ulimit -f 4; exec "$@"', "-", *command, *where]
    failed = subprocess.run(limited, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)
    rejects = history.movements.with_name("movements.rejected.csv")

    assert failed.returncode == 3
    assert failed.stderr.endswith(
        f"ledger: can't write {rejects}: File too large. What was done stays done: when there is room, run it again\n"
    )
    assert sorted(rejects.parent.iterdir()) == sorted([history.accounts, history.movements])
    assert history.run().complete is False
    assert len(history.rejected(history.movements)) == 100


def test_a_terminal_shows_how_far_it_is(history: History) -> None:
    """A bar with rows and speed, which is gone when the summary stands there."""
    many(history, 3 * COMMANDS_PER_BATCH)
    screen = io.StringIO()

    history.run(Console(file=screen, force_terminal=True, width=100))

    assert "movements.csv" in screen.getvalue()
    assert "rows, " in screen.getvalue()
