"""Measure the main job, each figure beside its floor in the same run: `make bench`, or with names of scenarios.

Everything is durable (fsync and synchronous_commit on). Client, server and Postgres share the machine, so the figures
say what all of them together do on it. Rounds are interleaved with their floors; what is printed is the median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psycopg
import uvloop

from ledger.cli import prepare
from ledger.embedded import EmbeddedPostgres
from ledger.event_log import append_columns
from ledger.postgres import connect
from ledger.v1 import (
    account_pb2,
    account_pb2_grpc,
    batch_pb2,
    batch_pb2_grpc,
    ledger_pb2,
    payment_pb2,
    payment_pb2_grpc,
    transfer_pb2,
)

ROOT = Path(__file__).parent.parent
BERKA = Path(os.environ.get("LEDGER_TEST_DATA", ROOT.parent / "shared" / "data")) / "berka" / "transactions.csv.gz"
ACCOUNTS = 1_000
EUR = "EUR"

BARE_INSERT = (
    "INSERT INTO bare SELECT * FROM unnest(%(streams)b::text[], %(versions)b::bigint[], %(topics)b::text[],"
    " %(states)b::bytea[])"
)

Stub = Any


def money(minor_units: int) -> ledger_pb2.Money:
    return ledger_pb2.Money(currency_code=EUR, minor_units=minor_units)


@contextmanager
def server(dsn: str) -> Iterator[str]:
    """A real server process on the database; yields its address."""
    command = [sys.executable, "-m", "ledger.cli", "serve", "--listen", "127.0.0.1:0", "--dsn", dsn]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield line.split(" on ")[1].split(" ")[0]
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def echo_server() -> Iterator[str]:
    """The floor of a call: a bare grpc.aio + uvloop server that answers with a fixed message."""
    command = [sys.executable, __file__, "--echo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.terminate()


async def serve_echo() -> None:
    reply = payment_pb2.AuthorizePaymentResponse(payment=payment_pb2.Payment(payment_id="x" * 20), position=1)

    async def echo(_request: Any, _context: Any) -> Any:
        return reply

    echo_server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(
        echo, payment_pb2.AuthorizePaymentRequest.FromString, payment_pb2.AuthorizePaymentResponse.SerializeToString
    )
    service = "ledger.v1.PaymentService"
    handlers = grpc.method_handlers_generic_handler(service, {"AuthorizePayment": handler})
    echo_server.add_generic_rpc_handlers((handlers,))
    port = echo_server.add_insecure_port("127.0.0.1:0")
    await echo_server.start()
    print(port, flush=True)
    await echo_server.wait_for_termination()


def open_accounts(address: str) -> None:
    """A bank, a shop, and customers with money."""
    batch = batch_pb2.ExecuteBatchRequest()
    batch.commands.add().open_account.CopyFrom(
        account_pb2.OpenAccountRequest(account_id="bank", currency_code=EUR, kind=account_pb2.ACCOUNT_KIND_EXTERNAL)
    )
    for name in ["shop", *(f"customer-{number}" for number in range(ACCOUNTS))]:
        batch.commands.add().open_account.CopyFrom(account_pb2.OpenAccountRequest(account_id=name, currency_code=EUR))
    for number in range(ACCOUNTS):
        leg = transfer_pb2.TransferLeg(from_account_id="bank", to_account_id=f"customer-{number}", amount=money(10**12))
        batch.commands.add().post_transfer.CopyFrom(
            transfer_pb2.PostTransferRequest(transfer_id=f"fund-{number}", legs=[leg])
        )
    with grpc.insecure_channel(address) as channel:
        reply = batch_pb2_grpc.BatchServiceStub(channel).ExecuteBatch(batch)
    assert not any(each.HasField("error") for each in reply.results)


def authorization(payment_id: str, number: int) -> payment_pb2.AuthorizePaymentRequest:
    return payment_pb2.AuthorizePaymentRequest(
        payment_id=payment_id,
        payer_account_id=f"customer-{number % ACCOUNTS}",
        payee_account_id="shop",
        amount=money(100 + number % 900),
    )


# --- scenarios: a round of each returns what was measured ------------------------------------------------------------


def lone_ms(address: str, tag: str, calls: int = 400) -> float:
    """p50 of one client authorizing one payment after the other."""
    took = []
    with grpc.insecure_channel(address) as channel:
        stub = payment_pb2_grpc.PaymentServiceStub(channel)
        for number in range(calls):
            request = authorization(f"{tag}-{number}", number)
            began = time.perf_counter()
            stub.AuthorizePayment(request)
            took.append(time.perf_counter() - began)
    return statistics.median(took) * 1_000


def bare_commit_ms(connection: psycopg.Connection[Any], calls: int = 400) -> float:
    """p50 of inserting and committing the two rows that an authorization comes to."""
    took = []
    for number in range(calls):
        columns = {"streams": ["s"] * 2, "versions": [number] * 2, "topics": ["t"] * 2, "states": [b"x" * 400] * 2}
        began = time.perf_counter()
        connection.execute(BARE_INSERT, columns)
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1_000


def batches(address: str, tag: str, calls: int = 20, size: int = 1_000, outstanding: int = 4) -> tuple[float, float]:
    """Payments/s of ExecuteBatch, and the seconds from the last reply to the read models having them."""
    requests = []
    for call in range(calls):
        request = batch_pb2.ExecuteBatchRequest()
        for number in range(size):
            request.commands.add().authorize_payment.CopyFrom(authorization(f"{tag}-{call}-{number}", number))
        requests.append(request)

    async def run() -> tuple[float, float]:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Stub = batch_pb2_grpc.BatchServiceStub(channel)
            queue = iter(requests)
            last = 0

            async def work() -> None:
                nonlocal last
                for request in queue:
                    reply = await stub.ExecuteBatch(request)
                    assert not any(each.HasField("error") for each in reply.results)
                    last = max(last, reply.position)

            began = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(outstanding)))
            done = time.perf_counter()
            accounts: Stub = account_pb2_grpc.AccountServiceStub(channel)
            await accounts.GetAccountBalance(
                account_pb2.GetAccountBalanceRequest(account_id="shop", min_position=last), timeout=30
            )
            return calls * size / (done - began), time.perf_counter() - done

    return uvloop.run(run())


def bare_rows_per_s(connection: psycopg.Connection[Any], rows: list[Any], per_commit: int = 2_000) -> float:
    """Rows/s of a bare INSERT of the same rows from one connection."""
    began = time.perf_counter()
    for start in range(0, len(rows), per_commit):
        connection.execute(BARE_INSERT, append_columns(rows[start : start + per_commit]))
    return len(rows) / (time.perf_counter() - began)


def import_rows_per_s(address: str, folder: Path) -> float:
    """Rows/s of `ledger import` of the Berka data, from file to read model, its start-up included."""
    subprocess.run([sys.executable, ROOT / "examples/berka/convert.py", BERKA, folder], check=True, capture_output=True)
    rows = sum(1 for _ in (folder / "movements.csv").open()) - 1
    began = time.perf_counter()
    command = ["ledger.cli", "import", folder / "accounts.csv", folder / "movements.csv", "--server", address]
    subprocess.run([sys.executable, "-m", *command], check=False, capture_output=True, cwd=ROOT)
    return rows / (time.perf_counter() - began)


# --- the report ------------------------------------------------------------------------------------------------------


def measure(rounds: int, wanted: set[str]) -> list[dict[str, Any]]:
    report: list[dict[str, Any]] = []

    def row(scenario: str, unit: str, values: list[float], floor: str, floors: list[float], target: str) -> None:
        value, floor_value = statistics.median(values), statistics.median(floors)
        report.append(
            {
                "scenario": scenario,
                "unit": unit,
                "value": round(value, 3),
                "rounds": [round(each, 3) for each in values],
                "floor": floor,
                "floor_value": round(floor_value, 3),
                "ratio": round(value / floor_value, 3),
                "target": target,
            }
        )

    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "data") as postgres:
        prepare(postgres.dsn, "main")
        with server(postgres.dsn) as address, echo_server() as echo, connect(postgres.dsn, "main", "bench") as bare:
            open_accounts(address)
            bare.execute(
                "CREATE TABLE bare (stream text, version bigint, topic text, state bytea);"
                "CREATE INDEX ON bare (stream, version)"
            )
            if "lone" in wanted:
                lone, floor = [], []
                for each in range(rounds):
                    lone.append(lone_ms(address, f"lone-{each}"))
                    floor.append(bare_commit_ms(bare) + lone_ms(echo, f"echo-{each}"))
                row("one client authorizes, p50", "ms", lone, "bare commit + echo", floor, "< 2.5 ms")
            if "batch" in wanted:
                rate, lag, floor = [], [], []
                for each in range(rounds):
                    payments, behind = batches(address, f"batch-{each}")
                    rate.append(payments * 2)
                    lag.append(behind)
                    floor.append(bare_rows_per_s(bare, stored_rows(bare)))
                row("ExecuteBatch of 1,000, events", "1/s", rate, "bare unnest rows", floor, ">= 12,000")
                row("read models at the head after the last reply", "s", lag, "1 second", [1.0], "<= 2 s")
            if "import" in wanted and BERKA.exists():
                values, floor = [], []
                rows = import_rows_per_s(address, Path(folder) / "berka")
                values.append(rows)
                floor.append(bare_rows_per_s(bare, stored_rows(bare)))
                row("import of the Berka data, rows", "1/s", values, "bare unnest rows", floor, ">= 3,000")
    return report


def stored_rows(connection: psycopg.Connection[Any], most: int = 40_000) -> list[Any]:
    """Rows of the log, as the floor inserts them."""
    from eventsourcing.persistence import StoredEvent

    newest = "SELECT stream, version, topic, state FROM events ORDER BY position DESC LIMIT %s"
    return [StoredEvent(*row) for row in connection.execute(newest, (most,))]


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), "?")  # noqa: SIM115, PTH123
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"


def main() -> None:
    scenarios: dict[str, Callable[..., Any]] = {"lone": lone_ms, "batch": batches, "import": import_rows_per_s}
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("scenarios", nargs="*", help="which ones; all unless given")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--echo", action="store_true", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.echo:
        uvloop.run(serve_echo())
        return
    report = measure(given.rounds, set(given.scenarios or scenarios))
    print(f"{machine()}; fsync=on, synchronous_commit=on; median of {given.rounds} rounds")
    for each in report:
        print(
            f"{each['scenario']:46} {each['value']:>10,.2f} {each['unit']:4} floor {each['floor_value']:>10,.2f}"
            f" ({each['floor']})  ratio {each['ratio']:.2f}  target {each['target']}"
        )
    out = ROOT / "bench" / "out"
    out.mkdir(exist_ok=True)
    (out / "main_job.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
