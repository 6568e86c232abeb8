-- balances: every account as queries see it, by id
SELECT account_id, kind, status, freeze_scope, currency_code, minor_digits, posted, reserved, credit_limit,
       version, position, recorded_at, opened_at, opened_position, metadata::text, available
FROM balances ORDER BY account_id COLLATE "C"

-- entries: every line, by account and position
SELECT account_id, position, version, recorded_at, effective_at, kind, currency_code, minor_digits,
       posted_change, reserved_change, posted, reserved, credit_limit,
       counterparty_account_id, payment_id, capture_id, refund_id, increment_id, transfer_id, leg, reason, available
FROM entries ORDER BY account_id COLLATE "C", position

-- payments: every payment, by id
SELECT payment_id, payer_account_id, payee_account_id, currency_code, minor_digits, amount_requested,
       authorized_at, authorized_position, expires_at, effective_at, reference, metadata::text, decline_reason,
       declined_account_id,
       state, amount_authorized, amount_captured, amount_capturable, amount_released, amount_expired, amount_refunded,
       captures::text, refunds::text, increments::text, void_reason, version, position, recorded_at
FROM payments ORDER BY payment_id COLLATE "C"

-- transfers: every transfer, by id
SELECT transfer_id, state, legs::text, reference, metadata::text, recorded_at, effective_at,
       decline_reason, declined_leg, declined_account_id, version, position
FROM transfers ORDER BY transfer_id COLLATE "C"

-- transfer_accounts: the accounts of every transfer, by its id; of transfers that are not there the first
SELECT coalesce(t.transfer_id, '') AS transfer_id, a.account_id, a.position
FROM transfer_accounts AS a
LEFT JOIN (SELECT position, min(transfer_id) AS transfer_id FROM transfers GROUP BY position) AS t USING (position)
ORDER BY coalesce(t.transfer_id, '') COLLATE "C", a.account_id COLLATE "C"
