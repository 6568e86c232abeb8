-- create: one row per payment, as it stands
CREATE TABLE IF NOT EXISTS payments (
    payment_id          text        COLLATE "C" NOT NULL CONSTRAINT payments_one_per_id PRIMARY KEY,
    payer_account_id    text        COLLATE "C" NOT NULL,
    payee_account_id    text        COLLATE "C" NOT NULL,
    currency_code       text        NOT NULL,
    minor_digits        smallint    NOT NULL,
    state               text        NOT NULL,
    amount_requested    bigint      NOT NULL,
    amount_authorized   bigint      NOT NULL,
    amount_captured     bigint      NOT NULL,
    amount_capturable   bigint      NOT NULL,
    amount_released     bigint      NOT NULL,
    amount_expired      bigint      NOT NULL,
    amount_refunded     bigint      NOT NULL,
    authorized_at       timestamptz NOT NULL,
    authorized_position bigint      NOT NULL,
    expires_at          timestamptz,
    effective_at        timestamptz NOT NULL,
    reference           text        NOT NULL,
    metadata            jsonb       NOT NULL,
    captures            jsonb       NOT NULL,
    refunds             jsonb       NOT NULL,
    increments          jsonb       NOT NULL,
    decline_reason      text,
    declined_account_id text        COLLATE "C",
    void_reason         text,
    version             bigint      NOT NULL,
    position            bigint      NOT NULL,
    recorded_at         timestamptz NOT NULL,
    CONSTRAINT payments_state CHECK (
        state IN ('DECLINED', 'AUTHORIZED', 'PARTIALLY_CAPTURED', 'CAPTURED', 'VOIDED', 'EXPIRED')
    ),
    CONSTRAINT payments_amounts_add_up CHECK (
        amount_authorized = amount_captured + amount_capturable + amount_released + amount_expired
    ),
    CONSTRAINT payments_amounts_are_not_negative CHECK (
        least(amount_captured, amount_capturable, amount_released, amount_expired, amount_refunded) >= 0
    ),
    CONSTRAINT payments_refunded_within_captured CHECK (amount_refunded <= amount_captured),
    CONSTRAINT payments_two_accounts CHECK (payer_account_id <> payee_account_id),
    CONSTRAINT payments_declined_for_a_reason CHECK (
        (state = 'DECLINED') = (decline_reason IS NOT NULL) AND (state = 'DECLINED') = (declined_account_id IS NOT NULL)
    ),
    CONSTRAINT payments_authorized_until CHECK ((state = 'DECLINED') = (expires_at IS NULL))
) WITH (fillfactor = 85);  -- most are captured soon, and once
COMMENT ON TABLE payments IS 'Payments as they stand. Amounts are in minor units of currency_code, which has minor_digits digits.';
COMMENT ON COLUMN payments.amount_requested IS 'As asked. It never changes.';
COMMENT ON COLUMN payments.amount_authorized IS 'Promised so far, with increments: captured + capturable + released + expired.';
COMMENT ON COLUMN payments.amount_captured IS 'Moved to the payee, before refunds.';
COMMENT ON COLUMN payments.amount_capturable IS 'Can still be captured, and is reserved on the payer.';
COMMENT ON COLUMN payments.amount_released IS 'Given back to the payer by a void or with the last capture.';
COMMENT ON COLUMN payments.amount_expired IS 'Given back to the payer because the time was over.';
COMMENT ON COLUMN payments.amount_refunded IS 'Moved back to the payer after capture.';
COMMENT ON COLUMN payments.authorized_at IS 'When it was authorized or declined.';
COMMENT ON COLUMN payments.captures IS 'In order: capture_id, amount, amount_released, recorded_at, effective_at.';
COMMENT ON COLUMN payments.refunds IS 'In order: refund_id, amount, recorded_at, effective_at.';
COMMENT ON COLUMN payments.increments IS 'In order: increment_id, amount (the new total), recorded_at.';
COMMENT ON COLUMN payments.version IS 'How many events the payment has had.';
COMMENT ON COLUMN payments.position IS 'The position of the last of them.';

-- The sweeper looks for what has expired; a payment leaves this index when nothing of it is capturable any more.
CREATE INDEX IF NOT EXISTS payments_by_expiry ON payments (expires_at) WHERE amount_capturable > 0;
-- For lists.
CREATE UNIQUE INDEX IF NOT EXISTS payments_in_order ON payments (authorized_position);
CREATE INDEX IF NOT EXISTS payments_by_payer ON payments (payer_account_id, authorized_position);
CREATE INDEX IF NOT EXISTS payments_by_payee ON payments (payee_account_id, authorized_position);
CREATE INDEX IF NOT EXISTS payments_by_reference ON payments (reference, authorized_position) WHERE reference <> '';
-- For analysts, as that of entries.
CREATE INDEX IF NOT EXISTS payments_by_time ON payments USING brin (authorized_at) WITH (autosummarize);

-- insert_requested: payments that are new
COPY payments (
    payment_id, payer_account_id, payee_account_id, currency_code, minor_digits, amount_requested,
    authorized_at, authorized_position, expires_at, effective_at, reference, metadata, decline_reason, declined_account_id,
    state, amount_authorized, amount_captured, amount_capturable, amount_released, amount_expired, amount_refunded,
    captures, refunds, increments, void_reason, version, position, recorded_at
) FROM STDIN

-- update_changed: payments that were there, each at the version before its first change
UPDATE payments AS p
SET state = n.state, amount_authorized = n.amount_authorized, amount_captured = n.amount_captured,
    amount_capturable = n.amount_capturable, amount_released = n.amount_released, amount_expired = n.amount_expired,
    amount_refunded = n.amount_refunded, captures = p.captures || n.captures::jsonb,
    refunds = p.refunds || n.refunds::jsonb, increments = p.increments || n.increments::jsonb,
    void_reason = coalesce(n.void_reason, p.void_reason), version = n.version, position = n.position, recorded_at = n.recorded_at::timestamptz
FROM unnest(
    %b::text[], %b::bigint[], %b::text[], %b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[],
    %b::bigint[], %b::text[], %b::text[], %b::text[], %b::text[], %b::bigint[], %b::bigint[], %b::text[]
) AS n (
    payment_id, version_before,
    state, amount_authorized, amount_captured, amount_capturable, amount_released, amount_expired, amount_refunded,
    captures, refunds, increments, void_reason, version, position, recorded_at
)
WHERE p.payment_id = n.payment_id AND p.version = n.version_before

-- select_payments: the checkpoint, and beside it those of the payments that exist
SELECT c.position, c.failure, p.payment_id, p.payer_account_id, p.payee_account_id, p.currency_code, p.state,
       p.amount_requested, p.amount_authorized, p.amount_captured, p.amount_capturable, p.amount_released,
       p.amount_expired, p.amount_refunded, p.authorized_at, p.expires_at, p.version, p.effective_at, p.reference,
       p.metadata, p.captures, p.refunds, p.increments, p.decline_reason, p.declined_account_id, p.void_reason
FROM checkpoints AS c LEFT JOIN payments AS p ON p.payment_id = ANY (%(ids)b::text[])
WHERE c.name = 'read_models'

-- list_columns: what lists read of a payment
SELECT p.authorized_position AS place, p.payment_id, p.payer_account_id, p.payee_account_id, p.currency_code, p.state,
       p.amount_requested, p.amount_authorized, p.amount_captured, p.amount_capturable, p.amount_released,
       p.amount_expired, p.amount_refunded, p.authorized_at, p.expires_at, p.version, p.effective_at, p.reference,
       p.metadata, p.captures, p.refunds, p.increments, p.decline_reason, p.declined_account_id, p.void_reason, p.position

-- from_all: payments authorized or declined between two positions
FROM payments AS p
WHERE p.authorized_position > %(low)s AND p.authorized_position <= %(high)s

-- from_account_id: of these, an account's, on either side: two scans in order that are merged. Postgres merges only what has
-- no condition of its own: with one inside it would read and sort all payments of the account for every page
FROM (
    SELECT *, payer_account_id AS account_id FROM payments
    UNION ALL
    SELECT *, payee_account_id AS account_id FROM payments
) AS p
WHERE p.account_id = %(account_id)s AND p.authorized_position > %(low)s AND p.authorized_position <= %(high)s

-- where_payer_account_id: of this payer
AND p.payer_account_id = %(payer_account_id)s

-- where_payee_account_id: of this payee
AND p.payee_account_id = %(payee_account_id)s

-- where_states: in any of these states; those that changed after `at` whatever their state was
AND (p.state = ANY (%(states)s) OR p.position > %(at)s)

-- where_currency_code: of this currency
AND p.currency_code = %(currency_code)s

-- where_reference: with this reference
AND p.reference = %(reference)s AND p.reference <> ''

-- where_since: authorized or declined at this time or later
AND p.authorized_at >= %(since)s

-- where_until: authorized or declined before this time
AND p.authorized_at < %(until)s

-- select_expired: payments whose time is over and that still have something reserved, those first that waited longest
SELECT payment_id FROM payments
WHERE amount_capturable > 0 AND expires_at <= %(now)s ORDER BY expires_at LIMIT %(most)s
