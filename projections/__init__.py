"""The read side: what the log adds up to, kept in tables that can be thrown away and rebuilt."""

from projections.read_models import create_tables

__all__ = ["create_tables"]
