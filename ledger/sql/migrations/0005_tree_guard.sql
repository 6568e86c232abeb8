-- Whoever changes a tile says where names are looked for, and could have an operator of his own say that no hash differs.
-- So every name says where it is from.

CREATE OR REPLACE FUNCTION refuse_other_hashes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.level OPERATOR(pg_catalog.<>) OLD.level OR NEW.index OPERATOR(pg_catalog.<>) OLD.index
       OR pg_catalog.substring(NEW.hashes, 1, pg_catalog.octet_length(OLD.hashes)) OPERATOR(pg_catalog.<>) OLD.hashes THEN
        RAISE EXCEPTION 'a tile of the tree only ever grows'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
