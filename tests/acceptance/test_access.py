"""Who may call, and who is calling: TLS, tokens, roles, and the actor on every event. On real servers and channels."""

from __future__ import annotations

import json
import re
import secrets
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any, Final

import grpc
import psycopg
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub
from serving import HAPPENS_WITHIN_S, LedgerServer, eventually, run_ledger, serving
from test_api import (
    COMMAND_NAMES,
    RPCS,
    Client,
    Refused,
    authorize,
    batch,
    capture,
    eur,
    freeze,
    leg,
    limit,
    opening,
    refund,
    refused_by,
    transfer,
    void,
)

from bench import frames
from ledger.callers import Role
from ledger.client import Target
from ledger.dev_cert import DevCertificates, make_dev_certificates
from ledger.permissions import PERMITTED
from ledger.v1.account_pb2 import ACCOUNT_KIND_EXTERNAL
from ledger.v1.audit_pb2 import ReadEventsRequest
from ledger.v1.batch_pb2 import BATCH_MODE_ATOMIC, BatchCommand, ExecuteBatchRequest
from ledger.v1.payment_pb2 import PAYMENT_STATE_AUTHORIZED, GetPaymentRequest

ROOT: Final = Path(__file__).parents[2]

METHODS: Final = {method.name: method for method in RPCS.values()}
REQUESTS: Final = {name: GetMessageClass(method.input_type) for name, method in METHODS.items()}
CELLS: Final = [(rpc, role) for rpc in METHODS for role in Role]

NOT_LET_IN: Final = {StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED}


def certificates_in(folder: Path) -> DevCertificates:
    return make_dev_certificates(folder, (), 2, datetime.now(UTC))


def tls_settings(files: DevCertificates) -> dict[str, str]:
    return {"LEDGER_TLS_CERT": str(files.server), "LEDGER_TLS_KEY": str(files.server_key)}


@dataclass(frozen=True)
class Guarded:
    """A server that speaks TLS and asks for tokens, and how tokens are made for it."""

    server: LedgerServer
    files: DevCertificates

    def token(self, role: Role, name: str = "", *more: str) -> str:
        """A new token of a caller whose name is the role's, unless one is given; usable at once."""
        return made(self.server, name or role.value, "--role", role.value, "--ledger", self.server.ledger, *more)

    def revoke(self, token: str) -> None:
        ended = run_ledger("token", "revoke", token, *self.server.where)
        assert (ended.returncode, ended.stdout) == (0, "ledger: revoked\n"), ended.stderr

    @contextmanager
    def client(self, token: str | None, tag: str) -> Iterator[Client]:
        """A client over TLS that sends this token."""
        target = Target(self.server.address, ca=str(self.files.ca), token=token)
        with target.channel() as channel:
            yield Client(channel, self.server.ledger, tag)

    def environment(self, token: str) -> dict[str, str]:
        """The settings of a command of that client."""
        return {"LEDGER_CA": str(self.files.ca), "LEDGER_TOKEN": token, "LEDGER_SERVER": self.server.address}


def made(server: LedgerServer, *arguments: str) -> str:
    """A token, as the command prints it."""
    ended = run_ledger("token", "create", *arguments, *server.where)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    files = certificates_in(folder / "tls")
    with serving(folder, LEDGER_TOKENS="true", **tls_settings(files)) as server:
        yield Guarded(server, files)


@pytest.fixture(scope="module")
def tokens(guarded: Guarded) -> dict[Role, str]:
    """A token of each role."""
    found = {role: guarded.token(role) for role in Role}
    with guarded.client(found[Role.ANALYST], "") as client:
        until_known(client)
    return found


@contextmanager
def calling(guarded: Guarded, token: str | None, tag: str) -> Iterator[Client]:
    """A client whose token the server knows by now."""
    with guarded.client(token, tag) as client:
        until_known(client)
        yield client


def until_known(client: Client) -> None:
    """Wait until the server has read the client's token."""
    eventually(lambda: code_of(client, REQUESTS["ListAccounts"]()) is not StatusCode.UNAUTHENTICATED)


def code_of(client: Client, request: Any) -> StatusCode:
    """How a call ends, whatever it is for."""
    streams = RPCS[request.DESCRIPTOR.full_name].server_streaming
    try:
        _ = next(client.stream(request)) if streams else client(request)
    except grpc.RpcError as error:
        return error.code() if isinstance(error, grpc.Call) else StatusCode.UNKNOWN
    return StatusCode.OK


@pytest.fixture
def payments(guarded: Guarded, tokens: dict[Role, str], tag: str) -> Iterator[Client]:
    """Somebody who makes payments, between accounts that an operator has opened and funded somehow."""
    operator = guarded.client(tokens[Role.OPERATOR], tag)
    paying = guarded.client(tokens[Role.PAYMENTS], tag)
    with operator as operator_client, paying as client:
        operator_client.do(opening("bank~", kind=ACCOUNT_KIND_EXTERNAL), opening("alice~"), opening("shop~"))
        client.do(transfer("fund~", leg("bank~", "alice~", 100_00)))
        yield client


# --- what a role may ------------------------------------------------------------------------------------------------


def test_the_table_has_every_rpc() -> None:
    """And nothing else; the docs have the same table, a column for each role."""
    assert PERMITTED.keys() == METHODS.keys()
    text = (ROOT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| ([A-Z]\w+) \|(.+)\|$", text, re.MULTILINE)
    told = {rpc: [bool(cell.strip()) for cell in cells.split("|")] for rpc, cells in rows}
    assert told == {rpc: [role in roles for role in Role] for rpc, roles in PERMITTED.items()}


@pytest.mark.parametrize(("rpc", "role"), CELLS, ids=[f"{rpc}-{role}" for rpc, role in CELLS])
def test_a_role_calls_what_the_table_says(
    guarded: Guarded, tokens: dict[Role, str], rpc: str, role: Role, tag: str
) -> None:
    """Whatever the request is worth: who may not call is told that first, and with both names."""
    with guarded.client(tokens[role], tag) as client:
        if role in PERMITTED[rpc]:
            assert code_of(client, REQUESTS[rpc]()) not in NOT_LET_IN
        else:
            denied = Refused(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED", {"role": role.value, "rpc": rpc})
            assert client.refuses(REQUESTS[rpc]()) == denied


WRITES: Final = {name: RPCS[request].name for request, name in COMMAND_NAMES.items()}
"""The rpc of each command, by its name in a batch."""


@pytest.mark.parametrize("role", [Role.PAYMENTS, Role.OPERATOR])
def test_each_command_of_a_batch_is_held_against_the_table(
    guarded: Guarded, tokens: dict[Role, str], role: Role, tag: str
) -> None:
    """A batch is no way around: each command has the refusal that it would have alone, the others their own."""
    commands = [BatchCommand(**{name: REQUESTS[rpc]()}) for name, rpc in WRITES.items()]
    with guarded.client(tokens[role], tag) as client:
        results = client(ExecuteBatchRequest(commands=commands)).results
    for rpc, result in zip(WRITES.values(), results, strict=True):
        reason = Refused.of(result.error).reason
        assert reason == ("INVALID_REQUEST" if role in PERMITTED[rpc] else "PERMISSION_DENIED"), rpc


def test_in_an_independent_batch_the_rest_is_done(guarded: Guarded, tokens: dict[Role, str], payments: Client) -> None:
    """And nothing of what was not the caller's to give."""
    first, second, third = payments(batch(authorize("p1~"), freeze("alice~"), authorize("p2~"))).results
    assert first.authorize_payment.payment.state == PAYMENT_STATE_AUTHORIZED
    assert Refused.of(second.error).metadata == {"role": "payments", "rpc": "FreezeAccount"}
    assert third.authorize_payment.payment.state == PAYMENT_STATE_AUTHORIZED
    with guarded.client(tokens[Role.OPERATOR], payments.tag) as operator:
        operator.position = payments.position
        assert operator.account("alice~").version == 4  # Opened, funded, reserved twice.


def test_an_atomic_batch_with_a_command_that_is_not_the_callers_does_nothing(payments: Client) -> None:
    """The command is named by its number."""
    results = payments(batch(authorize("p1~"), limit("alice~", eur(1)), mode=BATCH_MODE_ATOMIC)).results
    aborted, denied = (Refused.of(each.error) for each in results)
    assert (aborted.reason, aborted.metadata) == ("BATCH_ABORTED", {"failed": "1"})
    assert denied.reason == "PERMISSION_DENIED"
    assert payments.refuses(GetPaymentRequest(payment_id="p1~")).reason == "PAYMENT_NOT_FOUND"


# --- who is let in ---------------------------------------------------------------------------------------------------


@contextmanager
def sending(guarded: Guarded, *headers: tuple[str, str]) -> Iterator[Callable[[Any], Refused]]:
    """How the server refuses requests that come with these headers."""
    with guarded.client(None, "") as client:

        def refused(request: Any) -> Refused:
            with pytest.raises(grpc.RpcError) as raised:
                client.start(request, metadata=headers).result()
            return refused_by(raised.value)

        yield refused


UNKNOWN: Final = f"lgr_{'0' * 12}_{'a' * 43}"


@pytest.mark.parametrize(
    ("headers", "why"),
    [
        ([], "there was none"),
        ([("authorization", "")], "it was not sent that way"),
        ([("authorization", UNKNOWN)], "it was not sent that way"),
        ([("authorization", f"Basic {UNKNOWN}")], "it was not sent that way"),
        ([("authorization", "Bearer")], "it was not sent that way"),
        ([("authorization", "Bearer ")], "there is no such token"),
        ([("authorization", f"Bearer {UNKNOWN}")], "there is no such token"),
        ([("authorization", f"bearer {UNKNOWN}")], "there is no such token"),
        ([("authorization", "Bearer nonsense")], "there is no such token"),
        ([("authorization", f"Bearer {UNKNOWN}"), ("authorization", f"Bearer {UNKNOWN}")], "there was more than one"),
    ],
)
def test_who_has_no_token_is_not_let_in(guarded: Guarded, headers: Sequence[tuple[str, str]], why: str) -> None:
    """Told what is wrong with it, and nothing else."""
    with sending(guarded, *headers) as refused:
        assert refused(authorize("p")) == Refused(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", {"why": why})


def test_a_token_of_the_right_form_with_another_secret_is_none(guarded: Guarded, tokens: dict[Role, str]) -> None:
    """Half of what it takes is nothing."""
    token = tokens[Role.PAYMENTS]
    forged = token[:-1] + ("a" if token[-1] != "a" else "b")
    with sending(guarded, ("authorization", f"Bearer {forged}")) as refused:
        assert refused(authorize("p")).metadata == {"why": "there is no such token"}


def test_health_is_told_to_everybody_and_reflection_to_callers_who_are_known(
    guarded: Guarded, tokens: dict[Role, str]
) -> None:
    """What looks after containers has no token."""
    with guarded.client(None, "") as nobody:
        served = HealthStub(nobody.channel).Check(HealthCheckRequest(service="ledger.v1.write"), timeout=10).status
        assert served == HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as raised:
            ProtoReflectionDescriptorDatabase(nobody.channel).get_services()
        assert refused_by(raised.value).reason == "UNAUTHENTICATED"
        asked = iter([ServerReflectionRequest(list_services="")])
        token = ("authorization", f"Bearer {tokens[Role.ANALYST]}")
        (told,) = ServerReflectionStub(nobody.channel).ServerReflectionInfo(asked, timeout=10, metadata=[token])
        assert "ledger.v1.PaymentService" in {each.name for each in told.list_services_response.service}


def test_a_token_can_be_sent_in_the_way_of_grpc_itself(guarded: Guarded, tokens: dict[Role, str], tag: str) -> None:
    """By a call that ends before its channel is closed: to close it under one can hang in grpcio for ever."""
    tls = grpc.ssl_channel_credentials(guarded.files.ca.read_bytes())
    token = grpc.access_token_call_credentials(tokens[Role.ANALYST])
    with grpc.secure_channel(guarded.server.address, grpc.composite_channel_credentials(tls, token)) as channel:
        assert code_of(Client(channel, guarded.server.ledger, tag), REQUESTS["ListAccounts"]()) is StatusCode.OK


def test_a_revoked_token_is_refused_soon_and_others_of_that_name_are_not(guarded: Guarded, tag: str) -> None:
    """So a token is changed without a gap: another, then the end of the first."""
    first, second = (guarded.token(Role.ANALYST, f"bi-{tag}") for _ in range(2))
    request = REQUESTS["ListAccounts"]()
    with calling(guarded, first, tag) as one, calling(guarded, second, tag) as other:
        guarded.revoke(first)
        eventually(lambda: code_of(one, request) is StatusCode.UNAUTHENTICATED)
        assert one.refuses(request).metadata == {"why": "it was revoked"}
        assert code_of(other, request) is StatusCode.OK


def test_a_stream_ends_with_the_token_that_it_began_with(guarded: Guarded, tag: str) -> None:
    """An auditor whose token is revoked learns of nothing that is recorded after that."""
    token = guarded.token(Role.AUDITOR, f"kpmg-{tag}")
    with calling(guarded, token, tag) as auditor:
        follow = ReadEventsRequest(follow=True, heartbeat_interval=Duration(seconds=1))
        call = auditor.stream(follow)
        assert next(call).head >= 0
        guarded.revoke(token)
        with pytest.raises(grpc.RpcError) as raised:
            deque(call, maxlen=0)
    assert refused_by(raised.value).metadata == {"why": "it was revoked"}


def test_reflection_ends_with_the_token_that_it_began_with(guarded: Guarded, tag: str) -> None:
    """It is a stream as well, and asked for more it tells no more."""
    token = guarded.token(Role.ANALYST, f"ide-{tag}")
    revoked = Event()

    def questions() -> Iterator[ServerReflectionRequest]:
        yield ServerReflectionRequest(list_services="")
        revoked.wait(HAPPENS_WITHIN_S)
        yield ServerReflectionRequest(list_services="")

    with calling(guarded, token, tag) as client:
        call = ServerReflectionStub(client.channel).ServerReflectionInfo(
            questions(), metadata=[("authorization", f"Bearer {token}")]
        )
        assert next(call).list_services_response.service
        guarded.revoke(token)
        eventually(lambda: code_of(client, REQUESTS["ListAccounts"]()) is StatusCode.UNAUTHENTICATED)
        revoked.set()
        with pytest.raises(grpc.RpcError) as raised:
            next(call)
    assert refused_by(raised.value).metadata == {"why": "it was revoked"}


def test_a_client_that_does_not_read_keeps_its_place_no_longer_than_its_token(tmp_path: Path, tag: str) -> None:
    """Else some streams, opened while a token was good and never read, would keep all others out after its end."""
    with serving(tmp_path, LEDGER_TOKENS="true", LEDGER_CALLS_MOST="1") as server:
        stolen, good = (made(server, "kpmg", "--role", "auditor", "--ledger", server.ledger) for _ in range(2))
        host, port = server.address.split(":")
        with (
            Target(server.address, token=good).channel() as channel,
            socket.create_connection((host, int(port)), timeout=HAPPENS_WITHIN_S) as connection,
        ):
            client = Client(channel, server.ledger, tag)
            until_known(client)
            asked = ReadEventsRequest(ledger=server.ledger, follow=True)
            connection.sendall(unread("/ledger.v1.AuditService/ReadEvents", server.address, stolen, asked))
            came, rest = [], b""
            while frames.HEADERS not in came:  # They come with the first answer, for which itself there is no room.
                found, rest = frames.split(rest + connection.recv(65_536))
                for kind, flags, _, payload in found:
                    came.append(kind)
                    if kind in (frames.SETTINGS, frames.PING) and not flags & frames.ACK:
                        # gRPC hangs up on who does not say so within a minute.
                        acknowledged = payload if kind == frames.PING else b""
                        connection.sendall(frames.frame(kind, frames.ACK, 0, acknowledged))
            assert frames.DATA not in came
            assert code_of(client, REQUESTS["ListAccounts"]()) is StatusCode.RESOURCE_EXHAUSTED
            assert run_ledger("token", "revoke", stolen, *server.where).returncode == 0
            eventually(lambda: code_of(client, REQUESTS["ListAccounts"]()) is StatusCode.OK)


def unread(path: str, address: str, token: str, request: Any) -> bytes:
    """A call, from a client that gives the server no room for an answer."""
    block = frames.request_block(path, address, {"authorization": f"Bearer {token}"})
    body = frames.message(request.SerializeToString())
    return (
        frames.PREFACE
        + frames.settings({frames.INITIAL_WINDOW_SIZE: 0})
        + frames.frame(frames.HEADERS, frames.END_HEADERS, 1, block)
        + frames.frame(frames.DATA, frames.END_STREAM, 1, body)
    )


def test_a_token_ends_by_itself(guarded: Guarded, tag: str) -> None:
    """The server says when it was."""
    token = f"lgr_{secrets.token_hex(6)}_{secrets.token_urlsafe(32)}"
    old = """
        INSERT INTO callers.tokens (token_id, secret_hash, name, roles, ledgers, created_at, expires_at)
        VALUES (%s, sha256(%s), 'old', '{analyst}', %s, '2020-01-01Z', '2020-01-02Z')
    """
    with psycopg.connect(guarded.server.dsn()) as connection:
        connection.execute(old, [token.split("_")[1], token.encode(), [guarded.server.ledger]])
    with guarded.client(token, tag) as client:
        ended = {"why": "it expired at 2020-01-02T00:00:00Z"}
        eventually(lambda: client.refuses(REQUESTS["ListAccounts"]()).metadata == ended)


def test_a_token_is_for_its_ledgers_only(guarded: Guarded, tag: str) -> None:
    """Whether there is another of that name is not told to who has no business there."""
    token = made(guarded.server, f"other-{tag}", "--role", "analyst", "--ledger", "other", "--ledger", "elsewhere")
    with calling(guarded, token, tag) as client:
        for ledger in (guarded.server.ledger, "nowhere"):
            refused = client.refuses(REQUESTS["ListAccounts"](ledger=ledger))
            assert refused == Refused(StatusCode.PERMISSION_DENIED, "LEDGER_NOT_PERMITTED", {"ledger": ledger})
        assert client.refuses(REQUESTS["ListAccounts"](ledger="other")).reason == "LEDGER_NOT_FOUND"


# --- the actor -------------------------------------------------------------------------------------------------------


def test_every_event_names_who_asked_for_it(guarded: Guarded, tokens: dict[Role, str], payments: Client) -> None:
    """By the name of the token, whatever else the caller says of itself."""
    start = payments.position + 1
    payments.start(authorize("p~"), metadata=[("actor", "mallory"), ("x-actor", "mallory")]).result()
    payments.do(capture("p~", amount=eur(4_00), keep_remainder=True), void("p~"), refund("p~"))
    with guarded.client(tokens[Role.AUDITOR], payments.tag) as auditor:
        streams = ["payment/p~", "account/alice~", "account/shop~"]
        request = ReadEventsRequest(from_position=start, streams=streams)
        events = [json.loads(each.state) for response in auditor.stream(request) for each in response.events]
    assert len(events) >= 8
    assert {each["actor"] for each in events} == {"payments"}


def test_the_same_id_from_another_caller_tells_nothing_of_the_first(guarded: Guarded, payments: Client) -> None:
    """Not even whether the rest is the same; and the payment is as it was."""
    payments.do(authorize("p~", 12_34, reference="a secret"), capture("p~", "c~", amount=eur(1_00)))
    with calling(guarded, guarded.token(Role.PAYMENTS, f"rival-{payments.tag}"), payments.tag) as rival:
        for request, id_field, id_ in (
            (authorize("p~", 12_34, reference="a secret"), "payment_id", "p~"),
            (authorize("p~", 1), "payment_id", "p~"),
            (capture("p~", "c~", amount=eur(1_00)), "capture_id", "c~"),
            (refund("p~", "c~"), "refund_id", "c~"),
            (transfer("fund~", leg("bank~", "alice~", 100_00)), "transfer_id", "fund~"),
        ):
            told = {"id_field": id_field, "id": rival.name(id_), "field": "actor"}
            assert rival.refuses(request) == Refused(StatusCode.ALREADY_EXISTS, "ID_ALREADY_USED", told)
    assert payments(authorize("p~", 12_34, reference="a secret")).replayed


# --- TLS -------------------------------------------------------------------------------------------------------------


def certificate_shown(address: str) -> bytes:
    """The certificate of a server, as a new connection sees it."""
    host, port = address.rsplit(":", 1)
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port))))


def certificate_in(path: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(path.read_text())


def test_a_new_certificate_is_shown_without_a_restart(tmp_path: Path, tag: str) -> None:
    """Calls that are under way are not disturbed; files that don't fit together change nothing."""
    files = certificates_in(tmp_path / "tls")
    with serving(tmp_path, **tls_settings(files)) as server:
        before = certificate_in(files.server)
        assert certificate_shown(server.address) == before
        with Target(server.address, ca=str(files.ca)).channel() as channel:
            client = Client(channel, server.ledger, tag)
            client.do(opening("alice~"))

            other = certificates_in(tmp_path / "other")
            other.server_key.replace(files.server_key)
            assert certificate_shown(server.address) == before
            assert "certificate_not_reloaded" in server.log
            assert "is not the key of the certificate" in server.log

            other.server.replace(files.server)
            other.ca.replace(files.ca)
            assert certificate_shown(server.address) == certificate_in(files.server) != before
            assert "certificate_reloaded" in server.log
            client.do(opening("bob~"))
        with Target(server.address, ca=str(files.ca)).channel() as channel:
            Client(channel, server.ledger, tag).do(opening("carol~"))


def test_a_server_with_authorities_of_clients_lets_in_their_certificates_only(tmp_path: Path, tag: str) -> None:
    """Mutual TLS: without one, or with one of somebody else's, there is no connection."""
    files, others = certificates_in(tmp_path / "tls"), certificates_in(tmp_path / "other")
    settings = tls_settings(files) | {"LEDGER_TLS_CLIENT_CA": str(files.ca)}
    with serving(tmp_path, **settings) as server:
        command = ["account", "list", "--ledger", server.ledger]
        known = {"LEDGER_SERVER": server.address, "LEDGER_CA": str(files.ca)}

        def certificate(of: DevCertificates) -> dict[str, str]:
            return {"LEDGER_CLIENT_CERT": str(of.client), "LEDGER_CLIENT_KEY": str(of.client_key)}

        assert run_ledger(*command, **known, **certificate(files)).returncode == 0
        for refused in (run_ledger(*command, **known), run_ledger(*command, **known, **certificate(others))):
            assert refused.returncode == 3
            assert "set LEDGER_CLIENT_CERT" in refused.stderr
        mixed = certificate(files) | {"LEDGER_CLIENT_KEY": str(others.client_key)}
        unusable = run_ledger(*command, **known, **mixed)
        assert (unusable.returncode, f"{others.client_key} is not the key of" in unusable.stderr) == (3, True)


def test_a_server_whose_certificate_has_expired_does_not_start(tmp_path: Path, server: LedgerServer) -> None:
    """Its clients would refuse it, each with words of its own."""
    files = make_dev_certificates(tmp_path, (), 1, datetime(2020, 1, 1, tzinfo=UTC))
    where = ["--dsn", server.dsn(), "--ledger", server.ledger]
    ended = run_ledger("serve", "--listen", "127.0.0.1:0", *where, **tls_settings(files))
    assert ended.returncode == 3
    assert "expired on 2020-01-02" in ended.stderr


# --- as people use it ------------------------------------------------------------------------------------------------


def test_commands_speak_tls_and_send_a_token(guarded: Guarded, tokens: dict[Role, str], tag: str) -> None:
    """By the environment; what is missing or wrong is said in a line that tells what to set."""
    environment = guarded.environment(tokens[Role.OPERATOR])
    opened = run_ledger("account", "open", f"eva:{tag}", "EUR", "--ledger", guarded.server.ledger, **environment)
    assert opened.returncode == 0, opened.stderr

    command = ["account", "list", "--ledger", guarded.server.ledger]
    assert f"eva:{tag}" in run_ledger(*command, **environment).stdout
    without = {name: value for name, value in environment.items() if name != "LEDGER_TOKEN"}
    refused = run_ledger(*command, **without)
    assert (refused.returncode, "(UNAUTHENTICATED)" in refused.stderr) == (1, True)
    plain = run_ledger(*command, LEDGER_SERVER=guarded.server.address)
    assert (plain.returncode, "set LEDGER_CA" in plain.stderr) == (3, True), plain.stderr
    denied = run_ledger("payment", "list", "--ledger", guarded.server.ledger, **environment)
    assert (denied.returncode, "(PERMISSION_DENIED)" in denied.stderr) == (1, True)


def test_an_import_takes_a_token_of_two_roles(guarded: Guarded, tmp_path: Path, tag: str) -> None:
    """It opens accounts and moves money. With one role what it may not do is told row by row."""
    accounts, movements = tmp_path / "accounts.csv", tmp_path / "movements.csv"
    accounts.write_text(f"account_id,currency,kind,credit_limit\nbank-{tag},EUR,external,\neva-{tag},EUR,customer,\n")
    movement = f"m-{tag},2024-01-31T12:00:00Z,transfer,bank-{tag},eva-{tag},12.50,salary"
    movements.write_text(f"id,effective_at,kind,from_account,to_account,amount,reference\n{movement}\n")
    both = guarded.token(Role.PAYMENTS, f"importer-{tag}", "--role", "operator", "--expires-in", "1h")
    with calling(guarded, both, tag) as client:
        assert code_of(client, REQUESTS["ReadEvents"]()) is StatusCode.PERMISSION_DENIED
    command = ["import", str(accounts), str(movements), "--ledger", guarded.server.ledger]
    ended = run_ledger(*command, **guarded.environment(both))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    with guarded.client(both, tag) as client:
        assert client.account(f"eva-{tag}").posted == 12_50


def test_a_token_may_be_in_a_file(guarded: Guarded, tokens: dict[Role, str], tmp_path: Path) -> None:
    """As a secret that is mounted into a container is; a line's end after it does no harm."""
    (tmp_path / "token").write_text(tokens[Role.OPERATOR] + "\n")
    environment = guarded.environment("") | {"LEDGER_TOKEN_FILE": str(tmp_path / "token")}
    ended = run_ledger("account", "list", "--ledger", guarded.server.ledger, **environment)
    assert ended.returncode == 0, ended.stderr


def test_a_certificate_that_nobody_vouches_for_is_refused(guarded: Guarded, tmp_path: Path) -> None:
    """By the client, before it has said anything."""
    others = certificates_in(tmp_path)
    environment = {"LEDGER_CA": str(others.ca), "LEDGER_SERVER": guarded.server.address}
    ended = run_ledger("account", "list", **environment)
    assert ended.returncode == 3
    assert f"not one that {others.ca} vouches for" in ended.stderr


def test_tokens_are_listed_without_what_could_be_used(guarded: Guarded, tokens: dict[Role, str], tag: str) -> None:
    """For people and for programs; the database has hashes only."""
    token = guarded.token(Role.AUDITOR, f"kpmg-{tag}", "--expires-in", "12h")
    guarded.revoke(token)
    again = run_ledger("token", "revoke", token.split("_")[1], *guarded.server.where)
    assert again.stdout == "ledger: it was revoked before\n"

    table = run_ledger("token", "list", *guarded.server.where).stdout
    (line,) = [each for each in table.splitlines() if f"kpmg-{tag}" in each]
    assert line.split()[:5] == [token.split("_")[1], f"kpmg-{tag}", "auditor", guarded.server.ledger, "revoked"]
    listed = json.loads(run_ledger("token", "list", "--json", *guarded.server.where).stdout)
    (found,) = [each for each in listed if each["name"] == f"kpmg-{tag}"]
    valid_for = datetime.fromisoformat(found["expires_at"]) - datetime.fromisoformat(found["created_at"])
    assert (found["state"], round(valid_for.total_seconds() / 3600)) == ("revoked", 12)

    narrow = run_ledger("token", "list", *guarded.server.where, FORCE_COLOR="1", COLUMNS="40").stdout
    assert line.rstrip() in narrow  # By an id that is cut off nothing can be revoked.

    with psycopg.connect(guarded.server.dsn()) as connection:
        rows = connection.execute("SELECT tokens::text FROM callers.tokens").fetchall()
    for each in (token, *tokens.values()):
        secret = each.split("_", 2)[2]
        assert secret not in table + json.dumps(listed) + str(rows) + guarded.server.log


@pytest.mark.parametrize(
    ("arguments", "code", "complaint"),
    [
        (["create", "Bob", "--role", "auditor"], 1, "'Bob' can't be a caller's name"),
        (["create", "sweeper", "--role", "auditor"], 1, "can't be a caller's name"),
        (["create", "anonymous", "--role", "auditor"], 1, "can't be a caller's name"),
        (["create", "bob", "--role", "auditor", "--ledger", "Main"], 1, "'Main' can't be a ledger's name"),
        (["create", "bob", "--role", "king"], 2, "king"),
        (["create", "bob"], 2, "--role"),
        (["create", "bob", "--role", "auditor", "--expires-in", "soon"], 2, "not a time such as 90d"),
        (["create", "bob", "--role", "auditor", "--expires-in", "0d"], 2, "not a time such as 90d"),
        (["revoke", "000000000000"], 1, "there is no token '000000000000'"),
    ],
)
def test_what_can_not_be_done_with_tokens_is_said(
    guarded: Guarded, arguments: list[str], code: int, complaint: str
) -> None:
    """And nothing is done."""
    with psycopg.connect(guarded.server.dsn()) as connection:
        before = connection.execute("SELECT tokens::text FROM callers.tokens ORDER BY 1").fetchall()
        connection.commit()
        ended = run_ledger("token", *arguments, *guarded.server.where)
        assert ended.returncode == code
        assert complaint in ended.stderr
        assert not ended.stdout
        assert connection.execute("SELECT tokens::text FROM callers.tokens ORDER BY 1").fetchall() == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE callers.tokens SET roles = '{operator}'",
        "UPDATE callers.tokens SET expires_at = expires_at + interval '1 year'",
        "UPDATE callers.tokens SET revoked_at = NULL, revoked_by = NULL",
        "UPDATE callers.tokens SET revoked_at = now(), revoked_by = 'me', roles = '{operator}'",
        "DELETE FROM callers.tokens",
        "TRUNCATE callers.tokens",
    ],
)
def test_a_token_is_made_and_revoked_and_never_changed_otherwise(
    guarded: Guarded, tokens: dict[Role, str], statement: str
) -> None:
    """Whoever tries it in the database, its owner included."""
    with psycopg.connect(guarded.server.dsn()) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


def test_a_stranger_is_refused_before_the_request_is_sent(guarded: Guarded) -> None:
    """So nobody who is not known can leave calls open that never say what they ask for."""
    said_all = Event()

    def nothing_yet() -> Iterator[bytes]:
        said_all.wait()
        yield from ()

    try:
        with guarded.client(None, "stranger") as client:
            ask = client.channel.stream_unary("/ledger.v1.AccountService/GetAccount")
            with pytest.raises(grpc.RpcError) as raised:
                ask(nothing_yet(), timeout=10)
            assert refused_by(raised.value).reason == "UNAUTHENTICATED"
    finally:
        said_all.set()
