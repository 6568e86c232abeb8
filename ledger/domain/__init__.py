"""The pure core of the ledger: it decides, and does no I/O."""
