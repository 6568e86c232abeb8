-- create: one row per event on an account; rows are only ever added
CREATE TABLE IF NOT EXISTS entries (
    account_id              text        COLLATE "C" NOT NULL,
    position                bigint      NOT NULL,
    version                 bigint      NOT NULL,
    recorded_at             timestamptz NOT NULL,
    effective_at            timestamptz NOT NULL,
    kind                    text        NOT NULL,
    currency_code           text        NOT NULL,
    minor_digits            smallint    NOT NULL,
    posted_change           bigint      NOT NULL,
    reserved_change         bigint      NOT NULL,
    posted                  bigint      NOT NULL,
    reserved                bigint      NOT NULL,
    credit_limit            bigint,
    available               bigint      NOT NULL GENERATED ALWAYS AS (posted - reserved + coalesce(credit_limit, 0)) STORED,
    counterparty_account_id text        COLLATE "C",
    payment_id              text        COLLATE "C",
    capture_id              text        COLLATE "C",
    refund_id               text        COLLATE "C",
    increment_id            text        COLLATE "C",
    transfer_id             text        COLLATE "C",
    leg                     integer,
    reason                  text,
    -- The key is the history of an account in order, and finds the account as of any position.
    CONSTRAINT entries_one_per_event PRIMARY KEY (account_id, position),
    CONSTRAINT entries_kind CHECK (kind IN (
        'OPENED', 'AUTHORIZED', 'INCREMENTED', 'CAPTURED', 'VOIDED', 'EXPIRED', 'REFUNDED', 'TRANSFERRED',
        'CREDIT_LIMIT_CHANGED', 'FROZEN', 'UNFROZEN', 'CLOSED'
    )),
    CONSTRAINT entries_effective_is_not_later CHECK (effective_at <= recorded_at),
    CONSTRAINT entries_one_cause CHECK (num_nonnulls(payment_id, transfer_id) <= 1),
    CONSTRAINT entries_leg_of_transfer CHECK ((transfer_id IS NULL) = (leg IS NULL))
) WITH (
    -- Rows are only added: vacuum often enough that sums by effective time are answered from the index alone.
    autovacuum_vacuum_insert_scale_factor = 0.05
);
-- Balances by effective time are sums over this index; only lines that moved money are in it.
CREATE INDEX IF NOT EXISTS entries_by_effective_at ON entries (account_id, effective_at) INCLUDE (position, posted_change)
    WHERE posted_change <> 0;
-- Analysts ask by time. Rows stand in its order: a page's worth of bounds finds those of a day.
CREATE INDEX IF NOT EXISTS entries_by_time ON entries USING brin (recorded_at) WITH (autosummarize);
COMMENT ON TABLE entries IS 'The history of accounts, a line per event. Amounts are in minor units of currency_code, which has minor_digits digits.';
COMMENT ON COLUMN entries.position IS 'The position of the event in the log.';
COMMENT ON COLUMN entries.version IS 'The version of the account after this line: 1, 2, 3 ...';
COMMENT ON COLUMN entries.effective_at IS 'When the line counts in reports; recorded_at unless the request said otherwise.';
COMMENT ON COLUMN entries.posted_change IS 'What the line did to posted: negative for a debit, positive for a credit.';
COMMENT ON COLUMN entries.reserved_change IS 'What the line did to reserved: positive when promised, negative when captured or released.';
COMMENT ON COLUMN entries.posted IS 'The balance after the line, as reserved, credit_limit and available are.';
COMMENT ON COLUMN entries.counterparty_account_id IS 'The other side of a debit or credit.';

-- insert: lines
COPY entries (
    account_id, position, version, recorded_at, effective_at, kind, currency_code, minor_digits,
    posted_change, reserved_change, posted, reserved, credit_limit,
    counterparty_account_id, payment_id, capture_id, refund_id, increment_id, transfer_id, leg, reason
) FROM STDIN

-- list_all: the lines of an account between two positions
SELECT e.position AS place, e.version, e.recorded_at, e.effective_at, e.kind, e.posted_change, e.reserved_change, e.posted,
       e.reserved, e.available, e.credit_limit, e.account_id, e.currency_code, e.counterparty_account_id, e.payment_id,
       e.transfer_id, e.leg, e.capture_id, e.refund_id, e.increment_id, coalesce(p.reference, t.reference, ''), e.reason
FROM entries AS e
LEFT JOIN payments AS p ON p.payment_id = e.payment_id
LEFT JOIN transfers AS t ON t.transfer_id = e.transfer_id
WHERE e.account_id = %(account_id)s AND e.position > %(low)s AND e.position <= %(high)s

-- where_kinds: of any of these kinds
AND e.kind = ANY (%(kinds)s)

-- where_reference: of payments and transfers with this reference. EXISTS can be answered line by line as well as from a list
-- of all that have the reference; IN only from the list, which is gone through for every line when memory doesn't hold it
AND (
    EXISTS (
        SELECT FROM payments AS r
        WHERE r.payment_id = e.payment_id AND r.reference = %(reference)s AND r.reference <> ''
    )
    OR EXISTS (
        SELECT FROM transfers AS r
        WHERE r.transfer_id = e.transfer_id AND r.reference = %(reference)s AND r.reference <> ''
    )
)

-- where_since: recorded at this time or later
AND e.recorded_at >= %(since)s

-- where_until: recorded before this time
AND e.recorded_at < %(until)s

-- where_effective_since: effective at this time or later
AND e.effective_at >= %(effective_since)s

-- where_effective_until: effective before this time
AND e.effective_at < %(effective_until)s
