-- The public keys that heads were signed with: whoever reads the log can take along all that it takes to check it.

CREATE TABLE tree_keys (
    number     bigint NOT NULL CONSTRAINT tree_keys_in_order PRIMARY KEY,
    public_key text   NOT NULL CONSTRAINT tree_keys_once_each UNIQUE,
    first_head bigint NOT NULL
);
COMMENT ON TABLE tree_keys IS 'The public keys that heads were signed with, in the order in which they were introduced: 1, 2, 3 ... An auditor compares them with the one that he was given.';
COMMENT ON COLUMN tree_keys.public_key IS '<name>+<key id>+<base64>; see docs/audit.md.';
COMMENT ON COLUMN tree_keys.first_head IS 'The number of the first head that it signed.';

CREATE TRIGGER tree_keys_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON tree_keys
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
