-- settle: what a follower's session needs
-- Losing the last moments of what can be made again is no loss, and the log itself was durable before it was read.
SET synchronous_commit = off;
-- A follower that hangs between two statements must not keep the checkpoint from others.
SET idle_in_transaction_session_timeout = '10s'

-- flush: have what is committed on its way to standbys at once, and not when the WAL writer comes by
SET synchronous_commit = local
