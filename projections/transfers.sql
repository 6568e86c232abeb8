-- create: one row per transfer; rows are only ever added
CREATE TABLE IF NOT EXISTS transfers (
    transfer_id         text        COLLATE "C" NOT NULL CONSTRAINT transfers_one_per_id PRIMARY KEY,
    state               text        NOT NULL CONSTRAINT transfers_state CHECK (state IN ('POSTED', 'DECLINED')),
    legs                jsonb       NOT NULL CONSTRAINT transfers_have_legs CHECK (jsonb_array_length(legs) > 0),
    reference           text        NOT NULL,
    metadata            jsonb       NOT NULL,
    recorded_at         timestamptz NOT NULL,
    effective_at        timestamptz NOT NULL,
    decline_reason      text,
    declined_leg        integer,
    declined_account_id text        COLLATE "C",
    version             bigint      NOT NULL,
    position            bigint      NOT NULL,
    CONSTRAINT transfers_declined_for_a_reason CHECK (
        num_nonnulls(decline_reason, declined_leg, declined_account_id) = CASE state WHEN 'DECLINED' THEN 3 ELSE 0 END
    ),
    CONSTRAINT transfers_never_change CHECK (version = 1)
);
-- For lists.
CREATE UNIQUE INDEX IF NOT EXISTS transfers_in_order ON transfers (position);
CREATE INDEX IF NOT EXISTS transfers_by_reference ON transfers (reference, position) WHERE reference <> '';
-- For analysts, as that of entries.
CREATE INDEX IF NOT EXISTS transfers_by_time ON transfers USING brin (recorded_at) WITH (autosummarize);
CREATE TABLE IF NOT EXISTS transfer_accounts (
    account_id text   COLLATE "C" NOT NULL,
    position   bigint NOT NULL,
    CONSTRAINT transfer_accounts_once_per_transfer PRIMARY KEY (account_id, position)
);
COMMENT ON TABLE transfer_accounts IS 'Which accounts stand in the legs of which transfer; position is the transfer''s.';
COMMENT ON TABLE transfers IS 'Transfers as they were posted or declined.';
COMMENT ON COLUMN transfers.legs IS 'In order: from_account_id, to_account_id, currency_code, minor_digits, minor_units.';
COMMENT ON COLUMN transfers.declined_leg IS 'The first leg that was refused, counted from 0.';
COMMENT ON COLUMN transfers.position IS 'The position of its event in the log.';

-- insert: transfers
COPY transfers (
    transfer_id, state, legs, reference, metadata, recorded_at, effective_at,
    decline_reason, declined_leg, declined_account_id, version, position
) FROM STDIN

-- insert_accounts: the accounts of transfers
COPY transfer_accounts (account_id, position) FROM STDIN

-- list_columns: what lists read of a transfer
SELECT t.position AS place, t.transfer_id, t.state, t.legs, t.reference, t.metadata, t.recorded_at, t.effective_at,
       t.decline_reason, t.declined_leg, t.declined_account_id

-- from_all: transfers posted or declined between two positions
FROM transfers AS t
WHERE t.position > %(low)s AND t.position <= %(high)s

-- from_account_id: of these, those with an account on either side of any leg
FROM transfer_accounts AS a JOIN transfers AS t ON t.position = a.position
WHERE a.account_id = %(account_id)s AND a.position > %(low)s AND a.position <= %(high)s

-- where_states: in any of these states
AND t.state = ANY (%(states)s)

-- where_currency_code: with a leg of this currency
AND t.legs @> jsonb_build_array(jsonb_build_object('currency_code', %(currency_code)s::text))

-- where_reference: with this reference
AND t.reference = %(reference)s AND t.reference <> ''

-- where_since: recorded at this time or later
AND t.recorded_at >= %(since)s

-- where_until: recorded before this time
AND t.recorded_at < %(until)s

-- select_transfers: the checkpoint, and beside it those of the transfers that exist
SELECT c.position, c.failure, t.transfer_id, t.state, t.legs, t.reference, t.metadata, t.recorded_at, t.effective_at,
       t.decline_reason, t.declined_leg, t.declined_account_id
FROM checkpoints AS c LEFT JOIN transfers AS t ON t.transfer_id = ANY (%(ids)b::text[])
WHERE c.name = 'read_models'
