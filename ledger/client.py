"""A client that does not give up early: what a server can't answer now, it sends again with the same ids.

That is safe because ids are idempotency keys: what was done already is answered as a replay.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from google.rpc import code_pb2
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from ledger.settings import Settings, is_loopback, variable
from ledger.tls import TlsFiles, TlsUnusable
from ledger.v1 import account_pb2, account_pb2_grpc, batch_pb2, batch_pb2_grpc

PATIENCE_S: Final = 60.0
"""How long nothing at all may succeed before the client gives up."""

_CONNECT_S: Final = 20.0
_CALL_S: Final = 30.0
_PAUSE_FIRST_S: Final = 0.05
_PAUSE_MOST_S: Final = 2.0

# INTERNAL and UNKNOWN leave open what became of a call as a whole. As the result of one command they are its result.
_COMMAND_AGAIN: Final = frozenset(
    {code_pb2.UNAVAILABLE, code_pb2.RESOURCE_EXHAUSTED, code_pb2.DEADLINE_EXCEEDED, code_pb2.CANCELLED}
)
_CALL_AGAIN: Final = _COMMAND_AGAIN | {code_pb2.INTERNAL, code_pb2.UNKNOWN}

_ONE_WORD: Final = re.compile(r"[!-~]+").fullmatch

_CHANNEL_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),
    # A server that was restarted is found again in a second, not in two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


class NoAnswer(Exception):
    """The server can't be reached, or has not answered for so long that waiting on makes no sense."""


class Refused(Exception):
    """The server refused a call for good; `status` says why."""

    def __init__(self, status: Status) -> None:
        super().__init__(f"{code_name(status)}: {status.message}")
        self.status: Final = status


@dataclass(frozen=True, slots=True)
class Target:
    """A server, how it proves who it is, and how we do."""

    server: str
    ca: str | None = None
    """The file of the authorities that its certificate may be from; `public`: those that gRPC knows; unset: no TLS."""

    client_cert: Path | None = None
    client_key: Path | None = None
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: Settings) -> Target:
        """What the settings name. Raises NoAnswer if a file can't be read, or what is there can't be a token."""
        token = settings.token and settings.token.get_secret_value()
        if settings.token_file is not None:
            token = _read(settings.token_file).decode("ascii", "replace").strip()
        if token and not _ONE_WORD(token):
            source = variable("token" if settings.token_file is None else "token_file")
            raise NoAnswer(f"what {source} gives is not a token: that is one word in ASCII. Nothing was sent")
        return cls(settings.server, settings.ca, settings.client_cert, settings.client_key, token or None)

    def channel(self) -> grpc.Channel:
        """A channel to it. Raises NoAnswer if it can't be had as it is asked for."""
        # A proxy (`http_proxy`) would look for a loopback address on its own machine, and be sent our token as it is.
        options = (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", int(not is_loopback(self.server))))
        if self.ca is None:
            if self.token and not is_loopback(self.server):
                raise NoAnswer(f"a token is not sent to {self.server} without TLS: set LEDGER_CA (docs/security.md)")
            channel = grpc.insecure_channel(self.server, options=options)
        else:
            channel = grpc.secure_channel(self.server, self._credentials(self.ca), options=options)
        return grpc.intercept_channel(channel, _SendsToken(self.token)) if self.token else channel

    def _credentials(self, ca: str) -> grpc.ChannelCredentials:
        """Of files that are looked at first: of what gRPC can't use it would only say that nobody answers."""
        root_certificates = None if ca == "public" else _read(Path(ca))
        if root_certificates is not None and b"-----BEGIN CERTIFICATE-----" not in root_certificates:
            raise NoAnswer(f"{ca} has no certificate in PEM")
        try:
            if self.client_cert is not None and self.client_key is not None:
                TlsFiles(self.client_cert, self.client_key).read()
        except TlsUnusable as error:
            raise NoAnswer(str(error)) from error
        return grpc.ssl_channel_credentials(
            root_certificates=root_certificates,
            private_key=None if self.client_key is None else _read(self.client_key),
            certificate_chain=None if self.client_cert is None else _read(self.client_cert),
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NoAnswer(f"can't read {path}: {error.strerror}") from error


class _SendsToken(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    """Sends the token with every call. gRPC's own way refuses to on a channel without TLS, be it to loopback."""

    def __init__(self, token: str) -> None:
        self._header: Final = ("authorization", f"Bearer {token}")

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def intercept_unary_stream(self, continuation: Any, details: Any, request: Any) -> Any:
        return continuation(self._with_token(details), request)

    def _with_token(self, details: Any) -> Any:
        return details._replace(metadata=[*(details.metadata or ()), self._header])


@contextmanager
def connected(target: Target) -> Iterator[grpc.Channel]:
    """A channel to a server that answers. Raises NoAnswer if none does: at once if nothing listens there."""
    with target.channel() as channel:
        problem = _problem(channel)
        if problem is not None:
            raise NoAnswer(f"no ledger answers at {target.server}: {_advice(target, problem)}")
        yield channel


def _advice(target: Target, problem: str) -> str:
    """What to look at, as far as gRPC's words tell."""
    if "CERTIFICATE_VERIFY_FAILED" in problem:
        return f"its certificate is not one that {target.ca} vouches for"
    if "Hostname Verification" in problem or "Peer name" in problem:
        return "its certificate is not for that name"
    if "lookup" in problem or "resolv" in problem:
        return "no address was found for that name"
    if "refused" in problem:
        return "is `ledger serve` running there?"
    if target.ca is not None:
        return "is `ledger serve` running there, with TLS? If it asks for a certificate, set LEDGER_CLIENT_CERT"
    return "is `ledger serve` running there? If it speaks TLS, set LEDGER_CA"


def _problem(channel: grpc.Channel) -> str | None:
    """Why no call gets through, or None: where nobody listens they fail at once. A busy server takes its time."""
    try:
        channel.unary_unary("/grpc.health.v1.Health/Check", bytes, bytes)(b"", timeout=_CONNECT_S)
    except grpc.RpcError as error:
        status = error_status(error)
        return status.message if status.code in (code_pb2.UNAVAILABLE, code_pb2.DEADLINE_EXCEEDED) else None
    return None


def code_name(status: Status) -> str:
    """The name of a status' code: "NOT_FOUND"."""
    return code_pb2.Code.Name(code_pb2.Code.ValueType(status.code))


class Patience:
    """How long to go on trying: pauses that grow, and an end to it."""

    def __init__(self, waiting: Callable[[str], None]) -> None:
        """`waiting` is told why before every pause."""
        self._waiting = waiting
        self.renew()

    def renew(self) -> None:
        """Something went forward: count from now."""
        self._since = time.monotonic()
        self._pause_s = _PAUSE_FIRST_S

    def pause(self, status: Status) -> None:
        """Wait a little, and at least as long as the server asks; raise NoAnswer when it has been long enough."""
        reason = f"{code_name(status)}: {status.message}"
        if time.monotonic() - self._since > PATIENCE_S:
            raise NoAnswer(f"nothing has gone forward for {PATIENCE_S:.0f} s. The server says {reason}")
        self._waiting(reason)
        time.sleep(max(self._pause_s, _asked_pause_s(status)))
        self._pause_s = min(self._pause_s * 2, _PAUSE_MOST_S)


class Sent:
    """A batch on its way: it is in the server's hands while the caller does something else."""

    def __init__(self, client: LedgerClient, request: batch_pb2.ExecuteBatchRequest) -> None:
        self._client, self._request = client, request
        self._call = client.execute_batch(request)
        self.position = 0
        """The highest position in the results, once they are there."""

    def results(self) -> list[batch_pb2.BatchResult]:
        """One result for each command, for good: what the server could not do for now is sent again, in order.

        Raises NoAnswer, and Refused if the server refuses the batch as a whole.
        """
        patience = Patience(self._client.waiting)
        commands = self._request.commands
        results = self._answer(patience)
        while again := _to_send_again(results):
            patience.pause(results[again[0]].error)
            self._request = self._client.batch_of(commands[number] for number in again)
            self._call = self._client.execute_batch(self._request)
            for number, result in zip(again, self._answer(patience), strict=True):
                results[number] = result
            if len(_to_send_again(results)) < len(again):
                patience.renew()
        return results

    def _answer(self, patience: Patience) -> list[batch_pb2.BatchResult]:
        """The results of the call, made again until it is answered."""
        while True:
            try:
                response = self._call.result()
            except grpc.RpcError as error:
                patience.pause(_passing_status(error))
                self._call = self._client.execute_batch(self._request)
            else:
                self.position = max(self.position, response.position)
                return list(response.results)


class LedgerClient:
    """The calls that an import makes to one ledger of a server."""

    def __init__(
        self, channel: grpc.Channel, ledger: str = "", waiting: Callable[[str], None] = lambda _: None
    ) -> None:
        """`waiting` is told why, before every pause that is made because the server can't answer."""
        self._ledger, self.waiting = ledger, waiting
        self._accounts = account_pb2_grpc.AccountServiceStub(channel)
        self._batches = batch_pb2_grpc.BatchServiceStub(channel)

    def batch_of(self, commands: Iterable[batch_pb2.BatchCommand] = ()) -> batch_pb2.ExecuteBatchRequest:
        return batch_pb2.ExecuteBatchRequest(ledger=self._ledger, commands=commands)

    def send(self, request: batch_pb2.ExecuteBatchRequest) -> Sent:
        """Send a batch, and return without waiting for it. Wait before sending the next one, if order matters."""
        return Sent(self, request)

    def execute_batch(self, request: batch_pb2.ExecuteBatchRequest) -> Any:
        """One call, as a future."""
        return self._batches.ExecuteBatch.future(request, timeout=_CALL_S)

    def account(self, account_id: str, min_position: int = 0) -> account_pb2.Account:
        """An account, as it is after `min_position`. Raises NoAnswer and Refused."""
        request = account_pb2.GetAccountRequest(ledger=self._ledger, account_id=account_id, min_position=min_position)
        patience = Patience(self.waiting)
        while True:
            try:
                return self._accounts.GetAccount(request, timeout=_CALL_S).account
            except grpc.RpcError as error:
                patience.pause(_passing_status(error))


def _to_send_again(results: Sequence[batch_pb2.BatchResult]) -> list[int]:
    """The numbers of the commands that were not done but can be, a little later.

    The errors after the first such command count with it: they may be its consequence (no payment to capture).
    """
    errors = [number for number, each in enumerate(results) if each.HasField("error")]
    while errors and results[errors[0]].error.code not in _COMMAND_AGAIN:
        del errors[0]
    return errors


def error_status(error: grpc.RpcError) -> Status:
    """What the server says of a failed call, or gRPC where it can't say anything."""
    assert isinstance(error, grpc.Call)
    return rpc_status.from_call(error) or Status(code=error.code().value[0], message=error.details() or "")


def _passing_status(error: grpc.RpcError) -> Status:
    """The status of a failed call that is worth making again; raise Refused if it isn't."""
    status = error_status(error)
    if status.code not in _CALL_AGAIN:
        raise Refused(status) from error
    return status


def _asked_pause_s(status: Status) -> float:
    """How long the server asks to wait before the next try."""
    for detail in status.details:
        info = RetryInfo()
        if detail.Unpack(info):
            return info.retry_delay.ToTimedelta().total_seconds()
    return 0.0
