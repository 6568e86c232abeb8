"""The program's settings: flags first, then the environment (LEDGER_...), then a file `.env`, then these defaults."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from ledger.limits import MEMORY_MOST_STREAMS, QUEUE_MOST_COMMANDS
from ledger.postgres import schema_of


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, [IPv6]:PORT included; raises ValueError if it isn't that."""
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65_536):
        raise ValueError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host.strip("[]"), int(port)


def _loopback(address: str) -> str:
    host, _ = split_address(address)
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ValueError(
            f"{host!r} is not a loopback address: without TLS and tokens only 127.0.0.1, ::1 and localhost are"
        )
    return address


def _address(address: str) -> str:
    split_address(address)
    return address


def _ledger_name(name: str) -> str:
    schema_of(name)
    return name


def _connection_string(dsn: str) -> str:
    try:
        conninfo_to_dict(dsn)
    except ProgrammingError:
        # The driver's own words would repeat the string, and the password in it.
        raise ValueError("not a connection string of Postgres, such as postgresql://USER@HOST:5432/DATABASE") from None
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
    listen: Annotated[str, AfterValidator(_loopback)] = "127.0.0.1:50051"
    server: Annotated[str, AfterValidator(_address)] = "127.0.0.1:50051"
    follower: bool = True
    tree_key: Path | None = None
    tree_origin: Annotated[str, AfterValidator(_origin)] | None = None
    queue_most_commands: int = Field(QUEUE_MOST_COMMANDS, ge=1)
    memory_most_streams: int = Field(MEMORY_MOST_STREAMS, ge=1)
    unsafe_durability: bool = False
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["console", "json"] = "console"

    @property
    def origin(self) -> str:
        """The name under which the tree of this ledger is signed."""
        return self.tree_origin or f"ledger/{self.ledger}"

    @property
    def key_path(self) -> Path | None:
        """Where the key is that signs; None if this process signs nothing."""
        return self.tree_key or (self.data_dir / "tree.key" if self.dsn is None else None)
