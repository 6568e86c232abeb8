"""What is a secret by its shape is hidden, and what stands around it stays."""

from __future__ import annotations

import pytest

from ledger.redaction import redact, redacted

TOKEN = "lgr_0123456789ab_" + "aB3-_" * 8 + "xyz"

CASES = {
    "a URL": ("to postgresql://ledger:hunter2@db:5432/ledger now", "to postgresql://ledger:***@db:5432/ledger now"),
    "a URL with an at sign in it": ("postgres://u:p@ss:w@rd@db/x", "postgres://u:***@db/x"),
    "a URL without a user": ("postgresql://:hunter2@db/x", "postgresql://:***@db/x"),
    "a URL's query": (
        "postgresql://db/x?password=hunter2&sslmode=require",
        "postgresql://db/x?password=***&sslmode=require",
    ),
    "key and value": ("host=db password=hunter2 user=x", "host=db password=*** user=x"),
    "key and quoted value": (r"password='hun ter\'2' user=x", "password=*** user=x"),
    "key and value with spaces": ("host=db password = hunter2 user=x", "host=db password = *** user=x"),
    "the password of a key": ("sslkey=a.key sslpassword=hunter2", "sslkey=a.key sslpassword=***"),
    "a variable of Postgres' own": ("PGPASSWORD=hunter2 pg_dump", "PGPASSWORD=*** pg_dump"),
    "a variable": ("LEDGER_DB_PASSWORD=hunter2", "LEDGER_DB_PASSWORD=***"),
    "a token": (f"for {TOKEN}, expired", "for lgr_0123456789ab_***, expired"),
    "a token on a line of its own, escaped": (f"'\\n{TOKEN}'", "'\\nlgr_0123456789ab_***'"),
    "a token in a URL": (f"Bearer%20{TOKEN}", "Bearer%20lgr_0123456789ab_***"),
    "a bearer": (f"authorization: Bearer {TOKEN}", "authorization: Bearer lgr_0123456789ab_***"),
    "a bearer of others": ("Authorization: Bearer eyJhbGci.eyJz.c2ln end", "Authorization: Bearer *** end"),
    "other authorization": ("authorization=Basic dXNlcjpodW50ZXIy", "authorization=***"),
    "metadata": ("(('authorization', 'Basic dXNlcjpod'), ('a', 'b'))", "(('authorization', '***'), ('a', 'b'))"),
    "a private key": (
        "x -----BEGIN PRIVATE KEY-----\nMIIE\nvQ==\n-----END PRIVATE KEY----- y",
        "x -----BEGIN PRIVATE KEY----- *** y",
    ),
    "half a private key": ("-----BEGIN EC PRIVATE KEY-----\nMIIE", "-----BEGIN EC PRIVATE KEY----- ***"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_secret_is_hidden(case: str) -> None:
    """And what is around it is not."""
    text, shown = CASES[case]
    assert redacted(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "can't reach the database: connection to server at 127.0.0.1, port 5432 failed",
        "password authentication failed for user ledger",
        "serving on 127.0.0.1:50051 (ledger main, an embedded Postgres in .data)",
        "http://127.0.0.1:9464/metrics at 12:30:01, mail someone@example.com",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    """To the letter."""
    assert redacted(text) == text


def test_a_log_line_is_redacted_throughout() -> None:
    """Whatever the values are; numbers stay numbers."""
    event = {
        "event": "lost postgresql://u:hunter2@db",
        "error": ValueError("password=hunter2"),
        "parts": ["password=hunter2"],
        "token": "anything",
        "waiting": 7,
        "stopped": None,
    }
    line = redact(None, "info", event)
    assert "hunter2" not in str(line)
    assert line["token"] == "***"
    assert (line["waiting"], line["stopped"]) == (7, None)
