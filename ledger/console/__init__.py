"""The commands for people: one for every rpc of accounts, payments and transfers, sent to a running server."""
