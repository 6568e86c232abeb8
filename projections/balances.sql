-- create: one row per account, as it stands
CREATE TABLE IF NOT EXISTS balances (
    account_id      text        COLLATE "C" NOT NULL CONSTRAINT balances_one_per_account PRIMARY KEY,
    kind            text        NOT NULL CONSTRAINT balances_kind CHECK (kind IN ('CUSTOMER', 'EXTERNAL')),
    status          text        NOT NULL CONSTRAINT balances_status CHECK (status IN ('OPEN', 'FROZEN', 'CLOSED')),
    freeze_scope    text        CONSTRAINT balances_freeze_scope CHECK (freeze_scope IN ('DEBITS', 'CREDITS', 'ALL')),
    currency_code   text        NOT NULL,
    minor_digits    smallint    NOT NULL,
    posted          bigint      NOT NULL,
    reserved        bigint      NOT NULL CONSTRAINT balances_reserved_is_not_negative CHECK (reserved >= 0),
    credit_limit    bigint      CONSTRAINT balances_credit_limit_is_not_negative CHECK (credit_limit >= 0),
    available       bigint      NOT NULL GENERATED ALWAYS AS (posted - reserved + coalesce(credit_limit, 0)) STORED,
    version         bigint      NOT NULL,
    position        bigint      NOT NULL,
    recorded_at     timestamptz NOT NULL,
    opened_at       timestamptz NOT NULL,
    opened_position bigint      NOT NULL,
    metadata        jsonb       NOT NULL,
    CONSTRAINT balances_scope_only_while_frozen CHECK ((status = 'FROZEN') = (freeze_scope IS NOT NULL)),
    CONSTRAINT balances_external_has_no_limit CHECK ((kind = 'EXTERNAL') = (credit_limit IS NULL)),
    CONSTRAINT balances_customer_within_limit CHECK (kind = 'EXTERNAL' OR available >= 0),
    CONSTRAINT balances_bounded CHECK (abs(posted) <= 1000000000000000000 AND reserved <= 1000000000000000000),
    CONSTRAINT balances_closed_is_empty CHECK (status <> 'CLOSED' OR (posted = 0 AND reserved = 0))
) WITH (fillfactor = 70);  -- every event on the account changes its row: in place, on the same page
CREATE UNIQUE INDEX IF NOT EXISTS balances_in_order ON balances (opened_position);  -- for lists
COMMENT ON TABLE balances IS 'Accounts as they stand. Amounts are in minor units of currency_code, which has minor_digits digits.';
COMMENT ON COLUMN balances.posted IS 'Money that has moved: all credits minus all debits.';
COMMENT ON COLUMN balances.reserved IS 'Promised to open authorizations.';
COMMENT ON COLUMN balances.credit_limit IS 'How far posted - reserved may go below zero. NULL for EXTERNAL accounts, which have no limit.';
COMMENT ON COLUMN balances.available IS 'What can be spent: posted - reserved + credit_limit.';
COMMENT ON COLUMN balances.version IS 'How many events the account has had.';
COMMENT ON COLUMN balances.position IS 'The position of the last of them.';
COMMENT ON COLUMN balances.recorded_at IS 'When the last of them was recorded.';

-- insert_opened: accounts that are new
COPY balances (
    account_id, kind, status, freeze_scope, currency_code, minor_digits, posted, reserved, credit_limit,
    version, position, recorded_at, opened_at, opened_position, metadata
) FROM STDIN

-- update_changed: accounts that were there, each at the version before its first change
UPDATE balances AS b
SET status = n.status, freeze_scope = n.freeze_scope, posted = n.posted, reserved = n.reserved,
    credit_limit = n.credit_limit, version = n.version, position = n.position, recorded_at = n.recorded_at::timestamptz
FROM unnest(
    %b::text[], %b::bigint[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[],
    %b::bigint[], %b::text[]
) AS n (account_id, version_before, status, freeze_scope, posted, reserved, credit_limit, version, position, recorded_at)
WHERE b.account_id = n.account_id AND b.version = n.version_before

-- select_accounts: the checkpoint, and beside it those of the accounts that exist
SELECT c.position, c.failure, b.account_id, b.kind, b.status, b.freeze_scope, b.currency_code, b.posted, b.reserved,
       b.credit_limit, b.available, b.version, b.position, b.opened_at, b.metadata
FROM checkpoints AS c LEFT JOIN balances AS b ON b.account_id = ANY (%(ids)b::text[])
WHERE c.name = 'read_models'

-- list_all: accounts opened between two positions, those that changed after `at` whatever their status was
SELECT b.opened_position AS place, b.account_id, b.kind, b.status, b.freeze_scope, b.currency_code, b.posted, b.reserved,
       b.credit_limit, b.available, b.version, b.position, b.opened_at, b.metadata
FROM balances AS b
WHERE b.opened_position > %(low)s AND b.opened_position <= %(high)s

-- where_kinds: of any of these kinds
AND b.kind = ANY (%(kinds)s)

-- where_statuses: of any of these statuses
AND (b.status = ANY (%(statuses)s) OR b.position > %(at)s)

-- where_currency_code: of this currency
AND b.currency_code = %(currency_code)s

-- where_since: opened at this time or later
AND b.opened_at >= %(since)s

-- where_until: opened before this time
AND b.opened_at < %(until)s

-- select_known: the checkpoint, and beside it the balance of an account as it was at a position
SELECT c.position, c.failure, e.account_id, e.currency_code, e.posted, e.reserved, e.credit_limit, e.available, e.version,
       e.position
FROM checkpoints AS c
LEFT JOIN LATERAL (
    SELECT * FROM entries WHERE account_id = %(account_id)s AND position <= %(at)s ORDER BY position DESC LIMIT 1
) AS e ON true
WHERE c.name = 'read_models'

-- select_effective: the same, with only that posted which was effective at a time
SELECT c.position, c.failure, e.account_id, e.currency_code, s.posted, e.reserved, e.credit_limit,
       s.posted - e.reserved + coalesce(e.credit_limit, 0), e.version, e.position
FROM checkpoints AS c
LEFT JOIN LATERAL (
    SELECT * FROM entries WHERE account_id = %(account_id)s AND position <= %(at)s ORDER BY position DESC LIMIT 1
) AS e ON true
LEFT JOIN LATERAL (
    SELECT coalesce(sum(posted_change), 0) AS posted FROM entries
    WHERE account_id = %(account_id)s AND position <= %(at)s AND effective_at <= %(effective_at)s AND posted_change <> 0
) AS s ON true
WHERE c.name = 'read_models'
