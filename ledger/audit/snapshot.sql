-- hold_read_models: let everybody use them, and nobody replace them; to lock a table so is no look at it, and takes no snapshot
LOCK TABLE balances, payments, transfers, transfer_accounts, entries IN ACCESS SHARE MODE

-- share: let other connections see what this one does
SELECT pg_export_snapshot()

-- head: the last position
SELECT max(position) FROM events

-- log: every event, in the order in which it was recorded
SELECT position, stream, version, topic, recorded_at, state FROM events ORDER BY position
