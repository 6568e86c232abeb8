"""An event-sourced payment ledger: the write side and its shell."""
