-- missing: whether one of them is not there
SELECT count(to_regclass(name)) < 6
FROM unnest(ARRAY['accounts_v1', 'balances_v1', 'payments_v1', 'transfers_v1', 'entries_v1', 'events_v1']) AS v (name)

-- create_over_read_models: what analysts read. A view keeps its name and its columns; what has to change gets a new name, ..._v2
CREATE OR REPLACE VIEW accounts_v1 AS
SELECT account_id, kind, status, freeze_scope, currency_code, minor_digits, opened_at, opened_position, metadata,
       version, position, recorded_at
FROM balances;
COMMENT ON VIEW accounts_v1 IS 'One row per account: what it is, and whether it can be used.';
COMMENT ON COLUMN accounts_v1.account_id IS 'The id that the client chose.';
COMMENT ON COLUMN accounts_v1.kind IS 'CUSTOMER, or EXTERNAL for what stands for the world outside (a bank, a card scheme).';
COMMENT ON COLUMN accounts_v1.status IS 'OPEN, FROZEN or CLOSED.';
COMMENT ON COLUMN accounts_v1.freeze_scope IS 'What a freeze stops: DEBITS, CREDITS or ALL. NULL unless FROZEN.';
COMMENT ON COLUMN accounts_v1.currency_code IS 'ISO 4217. An account has one currency, for good.';
COMMENT ON COLUMN accounts_v1.minor_digits IS 'How many decimal digits the minor units of that currency stand for: 2 for EUR.';
COMMENT ON COLUMN accounts_v1.opened_at IS 'When it was opened.';
COMMENT ON COLUMN accounts_v1.opened_position IS 'The position of its first event.';
COMMENT ON COLUMN accounts_v1.metadata IS 'As given when it was opened: an object of texts.';
COMMENT ON COLUMN accounts_v1.version IS 'How many events it has had.';
COMMENT ON COLUMN accounts_v1.position IS 'The position of the last of them.';
COMMENT ON COLUMN accounts_v1.recorded_at IS 'When the last of them was recorded.';

CREATE OR REPLACE VIEW balances_v1 AS
SELECT account_id, kind, currency_code, minor_digits, posted, reserved, credit_limit, available, version, position,
       recorded_at
FROM balances;
COMMENT ON VIEW balances_v1 IS 'One row per account: its balance now. The posted balances of a ledger sum to zero per currency. Amounts are in minor units of currency_code.';
COMMENT ON COLUMN balances_v1.account_id IS 'The account.';
COMMENT ON COLUMN balances_v1.kind IS 'CUSTOMER or EXTERNAL.';
COMMENT ON COLUMN balances_v1.currency_code IS 'ISO 4217.';
COMMENT ON COLUMN balances_v1.minor_digits IS 'Divide amounts by 10 to this power for decimals.';
COMMENT ON COLUMN balances_v1.posted IS 'Money that has moved: all credits minus all debits.';
COMMENT ON COLUMN balances_v1.reserved IS 'Promised to open authorizations.';
COMMENT ON COLUMN balances_v1.credit_limit IS 'How far posted - reserved may go below zero. NULL for EXTERNAL accounts, which have no limit.';
COMMENT ON COLUMN balances_v1.available IS 'What can be spent: posted - reserved + credit_limit.';
COMMENT ON COLUMN balances_v1.version IS 'How many events the account has had.';
COMMENT ON COLUMN balances_v1.position IS 'The position of the last of them.';
COMMENT ON COLUMN balances_v1.recorded_at IS 'When the last of them was recorded.';

CREATE OR REPLACE VIEW payments_v1 AS
SELECT payment_id, payer_account_id, payee_account_id, currency_code, minor_digits, state, amount_requested,
       amount_authorized, amount_captured, amount_capturable, amount_released, amount_expired, amount_refunded,
       authorized_at, authorized_position, expires_at, effective_at, reference, metadata, captures, refunds, increments,
       decline_reason, declined_account_id, void_reason, version, position, recorded_at
FROM payments;
COMMENT ON VIEW payments_v1 IS 'One row per payment as it stands, declined ones included. Amounts are in minor units of currency_code. amount_authorized = captured + capturable + released + expired.';
COMMENT ON COLUMN payments_v1.payment_id IS 'The id that the client chose.';
COMMENT ON COLUMN payments_v1.payer_account_id IS 'Whose money it is.';
COMMENT ON COLUMN payments_v1.payee_account_id IS 'Who gets it on capture.';
COMMENT ON COLUMN payments_v1.currency_code IS 'ISO 4217.';
COMMENT ON COLUMN payments_v1.minor_digits IS 'Divide amounts by 10 to this power for decimals.';
COMMENT ON COLUMN payments_v1.state IS 'DECLINED, AUTHORIZED, PARTIALLY_CAPTURED, CAPTURED, VOIDED or EXPIRED. Refunds do not change it.';
COMMENT ON COLUMN payments_v1.amount_requested IS 'As asked. It never changes.';
COMMENT ON COLUMN payments_v1.amount_authorized IS 'Promised so far, with increments; 0 if declined.';
COMMENT ON COLUMN payments_v1.amount_captured IS 'Moved to the payee, before refunds.';
COMMENT ON COLUMN payments_v1.amount_capturable IS 'Can still be captured, and is reserved on the payer.';
COMMENT ON COLUMN payments_v1.amount_released IS 'Given back to the payer by a void or with the last capture.';
COMMENT ON COLUMN payments_v1.amount_expired IS 'Given back to the payer because the time was over.';
COMMENT ON COLUMN payments_v1.amount_refunded IS 'Moved back to the payer after capture.';
COMMENT ON COLUMN payments_v1.authorized_at IS 'When it was authorized or declined.';
COMMENT ON COLUMN payments_v1.authorized_position IS 'The position of its first event.';
COMMENT ON COLUMN payments_v1.expires_at IS 'When the hold ends. NULL if declined.';
COMMENT ON COLUMN payments_v1.effective_at IS 'When the authorization counts in reports.';
COMMENT ON COLUMN payments_v1.reference IS 'The client''s text.';
COMMENT ON COLUMN payments_v1.metadata IS 'As given when it was authorized: an object of texts.';
COMMENT ON COLUMN payments_v1.captures IS 'An array, in order: capture_id, amount, amount_released, recorded_at, effective_at.';
COMMENT ON COLUMN payments_v1.refunds IS 'An array, in order: refund_id, amount, recorded_at, effective_at.';
COMMENT ON COLUMN payments_v1.increments IS 'An array, in order: increment_id, amount (the new total), recorded_at.';
COMMENT ON COLUMN payments_v1.decline_reason IS 'ACCOUNT_CLOSED, ACCOUNT_FROZEN, INSUFFICIENT_FUNDS or BALANCE_LIMIT. NULL unless DECLINED.';
COMMENT ON COLUMN payments_v1.declined_account_id IS 'The account that the reason is about. NULL unless DECLINED.';
COMMENT ON COLUMN payments_v1.void_reason IS 'As given with the void. NULL if there was none.';
COMMENT ON COLUMN payments_v1.version IS 'How many events the payment has had.';
COMMENT ON COLUMN payments_v1.position IS 'The position of the last of them.';
COMMENT ON COLUMN payments_v1.recorded_at IS 'When the last of them was recorded.';

CREATE OR REPLACE VIEW transfers_v1 AS
SELECT transfer_id, state, legs, reference, metadata, effective_at, decline_reason, declined_leg, declined_account_id,
       position, recorded_at
FROM transfers;
COMMENT ON VIEW transfers_v1 IS 'One row per transfer, declined ones included. A transfer never changes. For one row per movement see entries_v1.';
COMMENT ON COLUMN transfers_v1.transfer_id IS 'The id that the client chose.';
COMMENT ON COLUMN transfers_v1.state IS 'POSTED or DECLINED.';
COMMENT ON COLUMN transfers_v1.legs IS 'An array, in order: from_account_id, to_account_id, currency_code, minor_digits, minor_units.';
COMMENT ON COLUMN transfers_v1.reference IS 'The client''s text.';
COMMENT ON COLUMN transfers_v1.metadata IS 'As given by the client: an object of texts.';
COMMENT ON COLUMN transfers_v1.effective_at IS 'When it counts in reports.';
COMMENT ON COLUMN transfers_v1.decline_reason IS 'ACCOUNT_CLOSED, ACCOUNT_FROZEN, INSUFFICIENT_FUNDS or BALANCE_LIMIT. NULL unless DECLINED.';
COMMENT ON COLUMN transfers_v1.declined_leg IS 'The first leg that was refused, counted from 0. NULL unless DECLINED.';
COMMENT ON COLUMN transfers_v1.declined_account_id IS 'The account that the reason is about. NULL unless DECLINED.';
COMMENT ON COLUMN transfers_v1.position IS 'The position of its event.';
COMMENT ON COLUMN transfers_v1.recorded_at IS 'When it was recorded.';

CREATE OR REPLACE VIEW entries_v1 AS
SELECT account_id, position, version, kind, currency_code, minor_digits, posted_change, reserved_change, posted, reserved,
       credit_limit, available, counterparty_account_id, payment_id, capture_id, refund_id, increment_id, transfer_id, leg,
       reason, recorded_at, effective_at
FROM entries;
COMMENT ON VIEW entries_v1 IS 'The history of accounts: one row per event on an account, which never changes. Amounts are in minor units of currency_code.';
COMMENT ON COLUMN entries_v1.account_id IS 'The account.';
COMMENT ON COLUMN entries_v1.position IS 'The position of the event in the log.';
COMMENT ON COLUMN entries_v1.version IS 'The version of the account after this line: 1, 2, 3 ...';
COMMENT ON COLUMN entries_v1.kind IS 'OPENED, AUTHORIZED, INCREMENTED, CAPTURED, VOIDED, EXPIRED, REFUNDED, TRANSFERRED, CREDIT_LIMIT_CHANGED, FROZEN, UNFROZEN or CLOSED.';
COMMENT ON COLUMN entries_v1.currency_code IS 'ISO 4217.';
COMMENT ON COLUMN entries_v1.minor_digits IS 'Divide amounts by 10 to this power for decimals.';
COMMENT ON COLUMN entries_v1.posted_change IS 'What the line did to posted: negative for a debit, positive for a credit.';
COMMENT ON COLUMN entries_v1.reserved_change IS 'What the line did to reserved: positive when promised, negative when captured or released.';
COMMENT ON COLUMN entries_v1.posted IS 'The balance after the line.';
COMMENT ON COLUMN entries_v1.reserved IS 'What is reserved after the line.';
COMMENT ON COLUMN entries_v1.credit_limit IS 'The limit after the line. NULL for EXTERNAL accounts.';
COMMENT ON COLUMN entries_v1.available IS 'posted - reserved + credit_limit, after the line.';
COMMENT ON COLUMN entries_v1.counterparty_account_id IS 'The other side of a debit or credit.';
COMMENT ON COLUMN entries_v1.payment_id IS 'The payment that caused the line, if one did.';
COMMENT ON COLUMN entries_v1.capture_id IS 'The capture of that payment, if one did.';
COMMENT ON COLUMN entries_v1.refund_id IS 'The refund of that payment, if one did.';
COMMENT ON COLUMN entries_v1.increment_id IS 'The increment of that payment, if one did.';
COMMENT ON COLUMN entries_v1.transfer_id IS 'The transfer that caused the line, if one did.';
COMMENT ON COLUMN entries_v1.leg IS 'The leg of that transfer, counted from 0.';
COMMENT ON COLUMN entries_v1.reason IS 'Given with a new credit limit, a freeze, an unfreeze or a close.';
COMMENT ON COLUMN entries_v1.recorded_at IS 'When the event was recorded.';
COMMENT ON COLUMN entries_v1.effective_at IS 'When the line counts in reports; recorded_at unless the request said otherwise.';

-- create_over_log: the same
CREATE OR REPLACE VIEW events_v1 AS
SELECT position, stream, version, topic, recorded_at, convert_from(state, 'UTF8')::jsonb AS state
FROM events;
COMMENT ON VIEW events_v1 IS 'The log: one row per event, in order of position without gaps. It may be ahead of the other views by a moment.';
COMMENT ON COLUMN events_v1.position IS 'The place of the event in the log: 1, 2, 3 ... in commit order.';
COMMENT ON COLUMN events_v1.stream IS 'The account, payment or transfer that the event belongs to: account/<id>, payment/<id>, transfer/<id>.';
COMMENT ON COLUMN events_v1.version IS 'The place of the event in its stream: 1, 2, 3 ...';
COMMENT ON COLUMN events_v1.topic IS 'The kind of the event.';
COMMENT ON COLUMN events_v1.recorded_at IS 'When the event was recorded. It never goes backwards.';
COMMENT ON COLUMN events_v1.state IS 'The event''s fields as jsonb. The exact bytes are in events.state.';
