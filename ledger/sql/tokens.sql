-- insert: a new token, of which only the hash is known here
INSERT INTO callers.tokens (token_id, secret_hash, name, roles, ledgers, expires_at)
VALUES (%(token_id)s, %(secret_hash)s, %(name)s, %(roles)s, %(ledgers)s, clock_timestamp() + %(valid_for)s)
RETURNING expires_at

-- list: every token that was ever made, oldest first
SELECT
    token_id, name, roles, ledgers, created_at, created_by, expires_at, revoked_at,
    CASE
        WHEN revoked_at IS NOT NULL THEN 'revoked'
        WHEN expires_at <= clock_timestamp() THEN 'expired'
        ELSE 'valid'
    END AS state
FROM callers.tokens ORDER BY created_at, token_id

-- revoke: by its id, unless it is revoked already
UPDATE callers.tokens SET revoked_at = clock_timestamp(), revoked_by = session_user
WHERE token_id = %(token_id)s AND revoked_at IS NULL

-- exists: whether there is such a token, revoked or not
SELECT FROM callers.tokens WHERE token_id = %(token_id)s

-- state: changes when a token is made or revoked, which is all that ever happens to them
SELECT count(*), count(revoked_at) FROM callers.tokens

-- load: all that a server needs to know a caller by
SELECT secret_hash, name, roles, ledgers, expires_at, revoked_at FROM callers.tokens
