-- events_of_payment: a payment's own events and those that it caused on accounts, by position
SELECT position, stream, version, topic, state FROM events
WHERE stream = 'payment/' || %(payment_id)s
   OR (stream LIKE 'account/%%' AND convert_from(state, 'UTF8')::jsonb #>> '{cause,payment_id}' = %(payment_id)s)
ORDER BY position

-- account_events: what each event on an account did, in order
SELECT substr(stream, length('account/') + 1), topic,
       coalesce((state ->> 'amount')::bigint, 0), coalesce((state ->> 'from_reserved')::boolean, false)
FROM (SELECT stream, topic, position, convert_from(state, 'UTF8')::jsonb AS state FROM events
      WHERE stream LIKE 'account/%') AS account_events
ORDER BY position
