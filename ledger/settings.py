"""The program's settings: flags first, then the environment (LEDGER_...), then a file `.env`, then these defaults."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ledger.limits import (
    CALLS_MOST,
    DEADLINE_DEFAULT_S,
    DEADLINE_LEAST_S,
    MEMORY_MOST_STREAMS,
    MESSAGE_MOST_BYTES,
    QUEUE_MOST_COMMANDS,
    READ_LAG_MOST_S,
)
from ledger.postgres import schema_of


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, [IPv6]:PORT included; raises ValueError if it isn't that."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ValueError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is on this machine only."""
    host, _ = split_address(address)
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(address: str) -> str:
    split_address(address)
    return address


def _ledger_name(name: str) -> str:
    schema_of(name)
    return name


def _connection_string(dsn: str) -> str:
    try:
        parts = conninfo_to_dict(dsn)
    except ProgrammingError:
        # The driver's own words would repeat the string, and the password in it.
        raise ValueError("not a connection string of Postgres, such as postgresql://USER@HOST:5432/DATABASE") from None
    hosts, ports = (str(parts.get(key, "")).split(",") for key in ("host", "port"))
    # The rest of a password that has an @ is taken for a host, and would be named as one that can't be found. One that
    # begins with an @ is an abstract socket, and one that begins with a / the folder of one: /home/me@company/run, say.
    is_rest = any("@" in host[1:] for host in hosts if not host.startswith("/"))
    if is_rest or not all(port.isdigit() or not port for port in ports):
        raise ValueError("its host or port can't be one: in a URL an @ or / of the password is written %40 or %2F")
    return dsn


def _origin(origin: str) -> str:
    if not re.fullmatch(r"[!-*,-~]{1,200}", origin):
        raise ValueError(f"{origin!r} can't be an origin: that is visible ASCII characters without +")
    return origin


Dsn = Annotated[str, AfterValidator(_connection_string)]


class Settings(BaseSettings):
    """Every setting. `.env.example` lists them with what they mean."""

    model_config = SettingsConfigDict(env_prefix="LEDGER_", env_file=".env", env_ignore_empty=True, extra="ignore")

    dsn: Dsn | None = None
    read_dsn: Dsn | None = None
    data_dir: Path = Path(".data")
    ledger: Annotated[str, AfterValidator(_ledger_name)] = "main"
    listen: Annotated[str, AfterValidator(_address)] = "127.0.0.1:50051"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tokens: bool = False
    server: Annotated[str, AfterValidator(_address)] = "127.0.0.1:50051"
    ca: str | None = None
    client_cert: Path | None = None
    client_key: Path | None = None
    token: SecretStr | None = None
    token_file: Path | None = None
    follower: bool = True
    tree_key: Path | None = None
    tree_origin: Annotated[str, AfterValidator(_origin)] | None = None
    calls_most: int = Field(CALLS_MOST, ge=1)
    rate_per_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    rate_burst: float | None = Field(None, ge=1, allow_inf_nan=False)
    deadline_default_s: float = Field(DEADLINE_DEFAULT_S, gt=0, allow_inf_nan=False)
    deadline_least_s: float = Field(DEADLINE_LEAST_S, ge=0, allow_inf_nan=False)
    message_most_bytes: int = Field(MESSAGE_MOST_BYTES, ge=1_024, le=2**30)
    queue_most_commands: int = Field(QUEUE_MOST_COMMANDS, ge=1)
    memory_most_streams: int = Field(MEMORY_MOST_STREAMS, ge=1)
    read_lag_most_s: float = Field(READ_LAG_MOST_S, gt=0)
    metrics_listen: Annotated[str, AfterValidator(_address)] | None = None
    unsafe_durability: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @model_validator(mode="after")
    def _hang_together(self) -> Self:
        _require_with(self, "tls_cert", "tls_key")
        _require_with(self, "tls_key", "tls_cert")
        _require_with(self, "tls_client_ca", "tls_cert")
        _require_with(self, "client_cert", "client_key")
        _require_with(self, "client_key", "client_cert")
        _require_with(self, "client_cert", "ca")
        _require_with(self, "rate_burst", "rate_per_s")
        if self.token is not None and self.token_file is not None:
            raise ValueError(f"{variable('token')} and {variable('token_file')} are both set: it is one of them")
        return self

    @property
    def unsafe_listen(self) -> str | None:
        """Why this server must not be started, if what is set would let just anybody in."""
        walls = {"LEDGER_TLS_CERT and LEDGER_TLS_KEY": self.tls_cert, "LEDGER_TOKENS=true": self.tokens}
        missing = [name for name, is_set in walls.items() if not is_set]
        if not missing or is_loopback(self.listen):
            return None
        host, _ = split_address(self.listen)
        return (
            f"listen: {host!r} is not a loopback address, and needs TLS and tokens: set {' and '.join(missing)} "
            "(docs/security.md), or listen on 127.0.0.1"
        )

    @property
    def origin(self) -> str:
        """The name under which the tree of this ledger is signed."""
        return self.tree_origin or f"ledger/{self.ledger}"

    @property
    def key_path(self) -> Path | None:
        """Where the key is that signs; None if this process signs nothing."""
        return self.tree_key or (self.data_dir / "tree.key" if self.dsn is None else None)


def variable(field: str) -> str:
    """The environment variable that a setting is read from."""
    return f"LEDGER_{field.upper()}"


def _require_with(settings: Settings, name: str, other: str) -> None:
    if getattr(settings, name) is not None and getattr(settings, other) is None:
        raise ValueError(f"{variable(name)} is set and {variable(other)} is not: they go together")
