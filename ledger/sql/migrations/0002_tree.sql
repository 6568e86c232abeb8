-- The Merkle tree over the log, and what was signed of it. The leaves are documented in docs/audit.md.

CREATE TABLE tree_tiles (
    level  smallint NOT NULL,
    index  bigint   NOT NULL,
    hashes bytea    STORAGE EXTERNAL NOT NULL,  -- nothing compresses hashes
    CONSTRAINT tree_tiles_one_per_place PRIMARY KEY (level, index),
    CONSTRAINT tree_tiles_of_1_to_256_hashes CHECK (octet_length(hashes) BETWEEN 32 AND 8192 AND octet_length(hashes) % 32 = 0)
);
COMMENT ON TABLE tree_tiles IS 'The hashes of the tree, up to 256 a row: those of the leaves at level 0, the roots of full tiles of one level at the next. A tile only ever grows.';
COMMENT ON COLUMN tree_tiles.index IS 'The first hash of the tile is number 256 * index of its level, counted from 0.';

CREATE TABLE tree_heads (
    number    bigint      NOT NULL CONSTRAINT tree_heads_in_order PRIMARY KEY,
    tree_size bigint      NOT NULL CONSTRAINT tree_heads_size_is_not_negative CHECK (tree_size >= 0),
    root_hash bytea       NOT NULL CONSTRAINT tree_heads_root_is_a_hash CHECK (octet_length(root_hash) = 32),
    note      text        NOT NULL,
    signed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX tree_heads_by_size ON tree_heads (tree_size, number);
COMMENT ON TABLE tree_heads IS 'Every tree head that was signed: 1, 2, 3 ...';
COMMENT ON COLUMN tree_heads.tree_size IS 'How many events it covers: the positions 1 to tree_size.';
COMMENT ON COLUMN tree_heads.note IS 'What was signed, with its signatures: a C2SP tlog-checkpoint.';

CREATE TABLE tree_breaks (
    number      bigint      NOT NULL CONSTRAINT tree_breaks_in_order PRIMARY KEY,
    note        text        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE tree_breaks IS 'Every time that signing went on from a log that was not the one signed before: after a restore, by an operator''s word.';
COMMENT ON COLUMN tree_breaks.note IS 'What was signed of it; see docs/audit.md.';

CREATE FUNCTION refuse_other_hashes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.level, NEW.index) <> (OLD.level, OLD.index)
       OR substring(NEW.hashes FROM 1 FOR octet_length(OLD.hashes)) <> OLD.hashes THEN
        RAISE EXCEPTION 'a tile of the tree only ever grows'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER tree_tiles_only_grow BEFORE UPDATE ON tree_tiles FOR EACH ROW EXECUTE FUNCTION refuse_other_hashes();
CREATE TRIGGER tree_tiles_are_never_removed BEFORE DELETE OR TRUNCATE ON tree_tiles
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER tree_heads_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON tree_heads
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER tree_breaks_are_never_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON tree_breaks
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
