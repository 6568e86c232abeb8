-- Who may call: tokens, of which only hashes are kept. One table for all ledgers of a database.

CREATE TABLE tokens (
    token_id    text        COLLATE "C" PRIMARY KEY,
    secret_hash bytea       NOT NULL,
    name        text        NOT NULL,
    roles       text[]      NOT NULL,
    ledgers     text[]      NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    created_by  text        NOT NULL DEFAULT session_user,
    expires_at  timestamptz NOT NULL,
    revoked_at  timestamptz,
    revoked_by  text,
    CONSTRAINT tokens_secret_is_hashed CHECK (length(secret_hash) = 32),
    CONSTRAINT tokens_secret_is_one_tokens UNIQUE (secret_hash),
    CONSTRAINT tokens_name_a_role CHECK (cardinality(roles) > 0),
    CONSTRAINT tokens_roles_are_known CHECK (roles <@ ARRAY['payments', 'operator', 'auditor', 'analyst']),
    CONSTRAINT tokens_name_a_ledger CHECK (cardinality(ledgers) > 0),
    CONSTRAINT tokens_end CHECK (expires_at > created_at),
    CONSTRAINT tokens_revoked_by_somebody CHECK ((revoked_at IS NULL) = (revoked_by IS NULL))
);

COMMENT ON TABLE tokens IS 'Who may call. Rows are added and revoked, and never changed otherwise or deleted.';
COMMENT ON COLUMN tokens.token_id IS 'The part of the token that is no secret.';
COMMENT ON COLUMN tokens.secret_hash IS 'SHA-256 of the token. It has 256 random bits: nothing slower is needed to keep it from being guessed.';
COMMENT ON COLUMN tokens.name IS 'The caller: the actor of every event that comes of what is asked for with this token.';

CREATE FUNCTION only_revoke() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.revoked_at IS NULL AND NEW.revoked_at IS NOT NULL THEN
        NEW.revoked_at := clock_timestamp();
        NEW.revoked_by := session_user;
        IF (to_jsonb(OLD) - 'revoked_at' - 'revoked_by') = (to_jsonb(NEW) - 'revoked_at' - 'revoked_by') THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION '% on callers.tokens is refused: a token is made, revoked once, and otherwise left as it is', TG_OP
        USING ERRCODE = 'insufficient_privilege';
END
$$;

CREATE TRIGGER tokens_are_only_revoked BEFORE UPDATE OR DELETE ON tokens
    FOR EACH ROW EXECUTE FUNCTION only_revoke();
CREATE TRIGGER tokens_are_never_emptied BEFORE TRUNCATE ON tokens
    FOR EACH STATEMENT EXECUTE FUNCTION only_revoke();
