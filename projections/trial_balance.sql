-- begin: the checkpoint, and beside it the head
SELECT position, failure, (SELECT coalesce(max(position), 0) FROM events) FROM checkpoints WHERE name = 'read_models'

-- standing: the next accounts after one, in byte order, as they were at a position, ...
-- One that has not changed since is as it stands; of the others a line of their history says it.
WITH standing AS (
    SELECT b.account_id, b.currency_code, coalesce(e.posted, b.posted) AS posted, coalesce(e.reserved, b.reserved) AS reserved,
           coalesce(e.credit_limit, b.credit_limit) AS credit_limit, coalesce(e.version, b.version) AS version,
           coalesce(e.position, b.position) AS position
    FROM balances AS b
    LEFT JOIN LATERAL (
        SELECT * FROM entries
        WHERE b.position > %(at)s AND entries.account_id = b.account_id AND entries.position <= %(at)s
        ORDER BY entries.position DESC LIMIT 1
    ) AS e ON true
    WHERE b.opened_position <= %(at)s AND b.account_id > %(after)s

-- where_currency_code: ... those of a currency, ...
AND b.currency_code = %(currency_code)s

-- standing_end: ... so many,
    ORDER BY b.account_id LIMIT %(limit)s
),

-- known: with all that was posted by then, ...
balance AS (SELECT * FROM standing)

-- effective: or with only that posted which was effective at a time, ...
balance AS (
    SELECT s.account_id, s.currency_code, m.posted, s.reserved, s.credit_limit, s.version, s.position
    FROM standing AS s,
         LATERAL (
             SELECT coalesce(sum(posted_change), 0) AS posted FROM entries
             WHERE account_id = s.account_id AND position <= %(at)s AND effective_at <= %(effective_at)s
               AND posted_change <> 0
         ) AS m
)

-- totals: ... beside the checkpoint, added up by currency
SELECT c.position, c.failure, t.* FROM checkpoints AS c LEFT JOIN (
    SELECT currency_code, count(*), coalesce(sum(-posted) FILTER (WHERE posted < 0), 0),
           coalesce(sum(posted) FILTER (WHERE posted > 0), 0), sum(reserved), max(account_id)
    FROM balance GROUP BY currency_code
) AS t ON true
WHERE c.name = 'read_models'

-- accounts: ... beside the checkpoint, one by one
SELECT c.position, c.failure, b.account_id, b.currency_code, b.posted, b.reserved, b.credit_limit,
       b.posted - b.reserved + coalesce(b.credit_limit, 0), b.version, b.position
FROM checkpoints AS c LEFT JOIN balance AS b ON true
WHERE c.name = 'read_models'
ORDER BY b.account_id
