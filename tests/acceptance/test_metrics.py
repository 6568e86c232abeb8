"""Metrics: what a server shows to Prometheus is what has happened, and what docs, dashboard and alerts say it shows."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.error import HTTPError

import grpc
import promql_parser
import pytest
import yaml
from google.protobuf.duration_pb2 import Duration
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from serving import LEDGER, ROOT, LedgerServer, environment, eventually, run_ledger, serving
from test_api import Client, authorize, batch, leg, opening, transfer

from ledger.v1.account_pb2 import ACCOUNT_KIND_EXTERNAL, GetAccountRequest
from ledger.v1.audit_pb2 import ReadEventsRequest

DOCUMENT: Final = ROOT / "docs" / "metrics.md"
TABLE: Final = re.compile(r"^\| `(ledger_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)


class Scraped:
    """What /metrics answered."""

    def __init__(self, text: str) -> None:
        self.families = {each.name: each for each in text_string_to_metric_families(text)}
        self.samples: list[Sample] = [sample for each in self.families.values() for sample in each.samples]

    def value(self, name: str, **labels: str) -> float:
        """The one sample with this name and these labels; 0 where there is none."""
        found = [each.value for each in self.samples if each.name == name and labels.items() <= each.labels.items()]
        assert len(found) <= 1, (name, labels)
        return found[0] if found else 0.0

    def labels(self, name: str) -> set[str]:
        """The labels of a metric; those of a histogram's buckets without the bucket."""
        return {label for each in self.samples if each.name.startswith(name) for label in each.labels} - {"le"}


def scrape(address: str) -> Scraped:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        return Scraped(response.read().decode())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LedgerServer]:
    """A server with metrics, which signs as well."""
    with serving(tmp_path_factory.mktemp("server"), LEDGER_METRICS_LISTEN="127.0.0.1:0") as server:
        yield server


@pytest.fixture(scope="module")
def metrics(server: LedgerServer) -> str:
    """Where its metrics are."""
    return metrics_address(server.log)


def metrics_address(log: str) -> str:
    found = re.search(r"metrics_served +address=(\S+)", log)
    assert found, log
    return found[1]


@pytest.fixture
def client(server: LedgerServer, tag: str) -> Iterator[Client]:
    with server.channel() as channel:
        client = Client(channel, server.ledger, tag)
        client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"), opening("shop~"))
        client.do(transfer("fund~", leg("bank~", "alice~", 100_00)))
        yield client


# --- what is counted -------------------------------------------------------------------------------------------------


def test_a_call_is_counted_by_its_rpc_and_code(client: Client, metrics: str) -> None:
    """Once, with its duration, under the status that the client got."""

    def calls(code: str, rpc: str) -> float:
        return scrape(metrics).value("ledger_request_duration_seconds_count", rpc=rpc, code=code)

    kinds = (("OK", "AuthorizePayment"), ("INVALID_ARGUMENT", "AuthorizePayment"), ("NOT_FOUND", "GetAccount"))
    before = {each: calls(*each) for each in kinds}
    client(authorize("p~"))
    client(authorize("p~"))
    for wrong in (authorize(""), GetAccountRequest(account_id="nobody~")):
        with pytest.raises(grpc.RpcError):
            client(wrong)
    assert {each: calls(*each) - count for each, count in before.items()} == {
        ("OK", "AuthorizePayment"): 2,
        ("INVALID_ARGUMENT", "AuthorizePayment"): 1,
        ("NOT_FOUND", "GetAccount"): 1,
    }
    assert scrape(metrics).value("ledger_request_duration_seconds_sum", rpc="AuthorizePayment", code="OK") > 0


def test_a_call_whose_client_went_away_is_counted_as_cancelled(client: Client, metrics: str) -> None:
    """A stream that follows the log ends no other way."""

    def cancelled() -> float:
        return scrape(metrics).value("ledger_request_duration_seconds_count", rpc="ReadEvents", code="CANCELLED")

    before = cancelled()
    call = client.stream(ReadEventsRequest(follow=True))
    next(call)
    assert scrape(metrics).value("ledger_following_calls") == 1
    call.cancel()
    eventually(lambda: cancelled() == before + 1)
    assert scrape(metrics).value("ledger_following_calls") == 0


def test_a_command_is_counted_by_what_came_of_it(client: Client, metrics: str) -> None:
    """Each command of a batch for itself."""
    names = ("recorded", "declined", "replayed", "validated", "refused")

    def outcomes() -> dict[str, float]:
        now = scrape(metrics)
        return {each: now.value("ledger_commands_total", outcome=each) for each in names}

    before = outcomes()
    client(authorize("p~", 10_00))
    client(authorize("seen~", 10_00, validate_only=True))
    client(
        batch(
            authorize("p~", 10_00), authorize("dear~", 999_00), opening("eve~"), opening("alice~", currency_code="USD")
        )
    )
    eventually(lambda: sum(outcomes().values()) >= sum(before.values()) + 6)  # told after the answer
    after = outcomes()
    gained = {each: after[each] - before[each] for each in names}
    assert gained == {"recorded": 2, "declined": 1, "replayed": 1, "validated": 1, "refused": 1}


def test_commands_that_wait_together_are_one_commit(client: Client, metrics: str) -> None:
    """A batch is decided in one go, and its size and time are observed once."""

    def commits() -> tuple[float, float]:
        now = scrape(metrics)
        assert now.value("ledger_commit_duration_seconds_count") == now.value("ledger_commit_commands_count")
        return now.value("ledger_commit_commands_count"), now.value("ledger_commit_commands_sum")

    count, commands = commits()
    client(batch(*(opening(f"many-{number}~") for number in range(50))))
    assert commits() == (count + 1, commands + 50)


def test_expired_authorizations_are_counted(client: Client, metrics: str) -> None:
    """As the sweeper has had them recorded."""
    expired = scrape(metrics).value("ledger_expired_authorizations_total")
    client(authorize("brief~", hold_for=Duration(seconds=1)))
    eventually(lambda: scrape(metrics).value("ledger_expired_authorizations_total") == expired + 1)
    assert scrape(metrics).value("ledger_sweeps_total") > 0


def test_positions_and_lags_come_to_rest_at_the_head(client: Client, metrics: str) -> None:
    """Read models and tree have all that the log has, and are not behind."""
    position = client(opening("last~")).position
    eventually(lambda: scrape(metrics).value("ledger_follower_position") >= position)
    eventually(lambda: scrape(metrics).value("ledger_tree_size") >= position)

    def at_rest() -> bool:
        now = scrape(metrics)
        lags = [each.value for each in now.samples if "_lag_" in each.name]
        return now.value("ledger_head_position") == now.value("ledger_follower_position") and lags == [0, 0, 0, 0]

    eventually(at_rest)
    now = scrape(metrics)
    assert now.value("ledger_serving", service="ledger.v1.write") == 1
    assert now.value("ledger_serving", service="ledger.v1.read") == 1
    assert abs(now.value("ledger_clock_offset_seconds")) < 1


def test_a_follower_of_its_own_shows_how_far_it_is(server: LedgerServer, client: Client, tmp_path: Path) -> None:
    """What is about followers, and nothing about calls and commits, which it has none of."""
    following = [*LEDGER, "follow", "--ledger", server.ledger]
    settings = {"LEDGER_DSN": server.dsn(), "LEDGER_METRICS_LISTEN": "127.0.0.1:0"}
    log = tmp_path / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            following, cwd=tmp_path, env=environment() | settings, stdout=subprocess.DEVNULL, stderr=stderr
        ) as process,
    ):
        try:
            eventually(lambda: "metrics_served" in log.read_text())
            address = metrics_address(log.read_text())
            position = client(opening("last~")).position
            eventually(lambda: scrape(address).value("ledger_follower_position") >= position)
            eventually(lambda: scrape(address).value("ledger_follower_lag_events") == 0)
            names = {each.name for each in scrape(address).samples if not each.name.startswith("process_")}
            rest = {"ledger_info", "ledger_head_position"}
            lags = {"ledger_follower_lag_events", "ledger_follower_lag_seconds"}
            assert names == {"ledger_follower_position", "ledger_follower_stopped", *lags, *rest}
        finally:
            process.terminate()
    assert process.returncode == 0


def test_only_metrics_are_served(metrics: str) -> None:
    """Any other path is not found."""
    with pytest.raises(HTTPError, match="404"):
        urllib.request.urlopen(f"http://{metrics}/", timeout=10)


def test_an_address_for_metrics_that_is_taken_ends_the_server(metrics: str, tmp_path: Path) -> None:
    """In one line that says which: a server that can't be watched does not start."""
    ran = run_ledger("serve", "--data-dir", tmp_path, "--listen", "127.0.0.1:0", LEDGER_METRICS_LISTEN=metrics)
    assert ran.returncode == 3
    assert f"ledger: can't serve metrics on {metrics}: Address already in use" in ran.stderr


# --- what is said of them --------------------------------------------------------------------------------------------


def test_the_document_lists_the_metrics_that_there_are(client: Client, metrics: str) -> None:
    """All of them and no others, with their types and labels."""
    client(authorize("p~"))
    now = scrape(metrics)
    shown = {
        (each.name + "_total" * (each.type == "counter"), each.type, frozenset(now.labels(each.name)))
        for each in now.families.values()
        if not each.name.startswith("process_")
    }
    rows = TABLE.findall(DOCUMENT.read_text())
    assert {(name, kind, frozenset(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows} == shown
    assert len(rows) == len(shown)


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard, with the panel that it is of."""
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/ledger.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert found, variable
            yield f"variable {variable['name']}", f"sum by ({found[2]}) ({found[1]})"


def alert_expressions() -> Iterator[tuple[str, str]]:
    rules = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


EXPRESSIONS: Final = [*dashboard_expressions(), *alert_expressions()]
BY_PROMETHEUS: Final = {"up": {"job", "instance"}}
"""What Prometheus itself adds for every target."""


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_a_query_asks_for_metrics_and_labels_that_there_are(
    where: str, expression: str, client: Client, metrics: str
) -> None:
    """Each selector of the dashboard and of the alerts finds series on a running server, and each grouping a label."""
    client(authorize("p~"))
    now = scrape(metrics)
    parsed = promql_parser.parse(expression)
    selected, grouped = set(), set()
    for each in parts_of(parsed):
        if isinstance(each, promql_parser.VectorSelector):
            selected.add(each.name)
            for matcher in each.matchers.matchers:
                grouped.add(matcher.name)
        if isinstance(each, promql_parser.AggregateExpr) and each.modifier is not None:
            grouped.update(each.modifier.labels)
        if isinstance(each, promql_parser.BinaryExpr) and each.modifier is not None and each.modifier.matching:
            grouped.update(each.modifier.matching.labels)
    known = {"job", "instance", "le"} | {label for name in selected for label in now.labels(name)}
    assert selected
    assert selected - {each.name for each in now.samples} <= BY_PROMETHEUS.keys()
    assert grouped <= known


def parts_of(expression: promql_parser.Expr) -> Iterator[promql_parser.Expr]:
    """An expression, and all that it is made of."""
    yield expression
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        part = getattr(expression, name, None)
        if isinstance(part, promql_parser.Expr):
            yield from parts_of(part)
    for part in getattr(expression, "args", None) or ():
        yield from parts_of(part)


def test_every_metric_is_on_the_dashboard() -> None:
    """But for those that only name or bound something."""
    asked = " ".join(expression for _, expression in dashboard_expressions())
    names = {name for name, _, _ in TABLE.findall(DOCUMENT.read_text())}
    assert {each for each in names if each not in asked} == set()
