"""The certificates of `ledger tls dev-cert` are what TLS libraries accept, for what they were made for and no more."""

from __future__ import annotations

import os
import shlex
import socket
import ssl
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from ledger.dev_cert import DevCertificates, FileInTheWay, files_in, is_host, make_dev_certificates

NOW = datetime.now(UTC)
WITHIN_S = 10.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DevCertificates:
    """Certificates of which the server's is good for two names more."""
    return make_dev_certificates(tmp_path_factory.mktemp("made"), ["ledger.test", "10.1.2.3"], 30, NOW)


def server_side(files: DevCertificates, *, asks_for_certificate: bool) -> ssl.SSLContext:
    """As a server uses them."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(files.server, files.server_key)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if asks_for_certificate:
        context.load_verify_locations(files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_side(trusts: Path, shows: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """As a client uses them; strict is what Python is from 3.13 on."""
    context = ssl.create_default_context(cafile=trusts)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if shows:
        context.load_cert_chain(*shows)
    return context


def talk(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> bytes:
    """What a client hears from a server that it knows as `host`. Raises ssl's errors, of either side."""
    here, there = socket.socketpair()
    for each in (here, there):
        each.settimeout(WITHIN_S)

    def serve() -> None:
        with there, server.wrap_socket(there, server_side=True) as connection:
            connection.sendall(connection.recv(5).upper())

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        try:
            with here, client.wrap_socket(here, server_hostname=host) as connection:
                connection.sendall(b"hello")
                heard = connection.recv(5)
        except ssl.SSLError:
            served.exception(WITHIN_S)
            raise
        served.result(WITHIN_S)
        return heard


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "ledger.test", "10.1.2.3"])
def test_a_client_that_trusts_the_ca_talks_to_the_server(made: DevCertificates, host: str) -> None:
    """By each of its names."""
    assert talk(server_side(made, asks_for_certificate=False), client_side(made.ca), host) == b"HELLO"


def test_another_name_is_not_the_servers(made: DevCertificates) -> None:
    """What was not asked for is not in the certificate."""
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        talk(server_side(made, asks_for_certificate=False), client_side(made.ca), "elsewhere.test")


def test_both_sides_show_a_certificate(made: DevCertificates) -> None:
    """The server asks for one, and takes the client's."""
    client = client_side(made.ca, (made.client, made.client_key))
    assert talk(server_side(made, asks_for_certificate=True), client, "localhost") == b"HELLO"


@pytest.mark.parametrize("who", ["nobody", "server", "stranger"])
def test_a_server_that_asks_takes_none_but_the_clients_certificate(
    made: DevCertificates, tmp_path: Path, who: str
) -> None:
    """Not none at all, not the server's own, not one by another CA."""
    stranger = make_dev_certificates(tmp_path, [], 30, NOW)
    shows = {
        "nobody": None,
        "server": (made.server, made.server_key),
        "stranger": (stranger.client, stranger.client_key),
    }[who]
    with pytest.raises((ssl.SSLError, ConnectionError)):
        talk(server_side(made, asks_for_certificate=True), client_side(made.ca, shows), "localhost")


def test_the_clients_certificate_is_no_servers(made: DevCertificates) -> None:
    """Whoever has the client's key can't pass for the server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(made.client, made.client_key)
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        talk(context, client_side(made.ca), "localhost")


def test_a_stranger_is_not_trusted(made: DevCertificates, tmp_path: Path) -> None:
    """Two runs have two CAs."""
    other = make_dev_certificates(tmp_path, [], 30, NOW)
    with pytest.raises(ssl.SSLCertVerificationError):
        talk(server_side(other, asks_for_certificate=False), client_side(made.ca), "localhost")


def test_grpc_takes_them_on_both_sides(made: DevCertificates) -> None:
    """gRPC brings a TLS of its own."""

    def echo(request: bytes, _context: grpc.ServicerContext) -> bytes:
        return request

    handlers = {"Echo": grpc.unary_unary_rpc_method_handler(echo)}
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", handlers),))
    pair = (made.server_key.read_bytes(), made.server.read_bytes())
    port = server.add_secure_port(
        "localhost:0", grpc.ssl_server_credentials([pair], made.ca.read_bytes(), require_client_auth=True)
    )
    server.start()
    shows = grpc.ssl_channel_credentials(made.ca.read_bytes(), made.client_key.read_bytes(), made.client.read_bytes())
    with grpc.secure_channel(f"localhost:{port}", shows) as channel:
        assert channel.unary_unary("/test/Echo")(b"hello", timeout=WITHIN_S, wait_for_ready=True) == b"hello"
    with grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(made.ca.read_bytes())) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/test/Echo")(b"hello", timeout=WITHIN_S)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    server.stop(None).wait(WITHIN_S)


def test_only_their_owner_reads_keys_whatever_the_umask_is(tmp_path: Path) -> None:
    """And there is no key of the CA."""
    umask = os.umask(0)
    try:
        files = make_dev_certificates(tmp_path / "new", [], 30, NOW)
    finally:
        os.umask(umask)
    modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "new").iterdir()}
    assert modes == {
        "ca.pem": 0o644,
        "server.pem": 0o644,
        "server.key": 0o600,
        "client.pem": 0o644,
        "client.key": 0o600,
    }
    assert b"PRIVATE" not in b"".join(each.read_bytes() for each in (files.ca, files.server, files.client))


def test_they_are_good_for_the_days_asked_for(tmp_path: Path) -> None:
    """All of them."""
    files = make_dev_certificates(tmp_path, [], 3, NOW)
    for each in (files.ca, files.server, files.client):
        certificate = x509.load_pem_x509_certificate(each.read_bytes())
        assert certificate.not_valid_before_utc < NOW
        assert certificate.not_valid_after_utc == NOW.replace(microsecond=0) + timedelta(days=3)


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key", "client.pem", "client.key"])
def test_nothing_is_replaced(tmp_path: Path, name: str) -> None:
    """If one of the files is there, none is written."""
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileInTheWay, match=name):
        make_dev_certificates(tmp_path, [], 30, NOW)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {name: "mine"}


def test_of_two_at_once_one_writes(tmp_path: Path) -> None:
    """No file of one is mixed with those of the other unnoticed: the second ends with an error."""
    barrier = threading.Barrier(2, timeout=WITHIN_S)

    def run() -> bool:
        barrier.wait()
        try:
            make_dev_certificates(tmp_path, [], 30, NOW)
        except (FileInTheWay, FileExistsError):
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        wrote = [each.result() for each in [pool.submit(run), pool.submit(run)]]
    assert sorted(wrote) == [False, True]
    files = files_in(tmp_path)
    assert talk(server_side(files, asks_for_certificate=False), client_side(files.ca), "localhost") == b"HELLO"


@pytest.mark.parametrize("host", ["a b", "", "*.test", "ä.test", "a..b", "https://a", "a:1", "x" * 64])
def test_what_is_no_host_is_told_apart(host: str) -> None:
    """Before anything is written."""
    assert not is_host(host)


def test_the_command_prints_settings_that_a_shell_takes(tmp_path: Path) -> None:
    """With absolute paths, even where a name has a space in it; and run again it refuses in one line."""
    command = [sys.executable, "-m", "ledger.cli", "tls", "dev-cert", "my certs", "--host", "ledger.test"]
    first = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [line for line in first.stdout.splitlines() if not line.startswith("#")]
    settings = dict(shlex.split(line)[0].split("=", 1) for line in lines)
    files = files_in(tmp_path / "my certs")
    assert settings == {
        "LEDGER_TLS_CERT": str(files.server),
        "LEDGER_TLS_KEY": str(files.server_key),
        "LEDGER_TLS_CLIENT_CA": str(files.ca),
        "LEDGER_CA": str(files.ca),
        "LEDGER_CLIENT_CERT": str(files.client),
        "LEDGER_CLIENT_KEY": str(files.client_key),
    }
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"ledger: {files.ca} is there already: name another folder, or remove it\n"
