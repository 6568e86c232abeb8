-- others: sessions that rebuild the same ledger now
SELECT pid FROM pg_stat_activity
WHERE application_name = %(name)s AND datname = current_database() AND pid <> pg_backend_pid()

-- indexes: those of the first schema that no constraint needs: what removes them, and what makes them again
SELECT format('DROP INDEX %%s', i.indexrelid::regclass), pg_get_indexdef(i.indexrelid)
FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
WHERE c.relnamespace = current_schema()::regnamespace
  AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid)

-- snapshot: see all at one moment, and write nothing
SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY

-- rows_balances: every row by its key, as text
SELECT account_id, t::text FROM balances AS t ORDER BY account_id

-- rows_payments: every row by its key, as text
SELECT payment_id, t::text FROM payments AS t ORDER BY payment_id

-- rows_transfers: every row by its key, as text
SELECT transfer_id, t::text FROM transfers AS t ORDER BY transfer_id

-- rows_transfer_accounts: every row by its key, as text
SELECT account_id || ' ' || lpad(position::text, 19, '0'), t::text FROM transfer_accounts AS t ORDER BY account_id, position

-- rows_entries: every row by its key, as text
SELECT account_id || ' ' || lpad(position::text, 19, '0'), t::text FROM entries AS t ORDER BY account_id, position

-- lock_checkpoint: keep followers from moving it, until the end of the transaction
SELECT position FROM checkpoints WHERE name = 'read_models' FOR UPDATE

-- patience: how long to wait for tables that somebody reads; longer would keep all others waiting behind
SET LOCAL lock_timeout = '2s'

-- brief: all of the next statement has to be done in less than the server's deadlock_timeout, which is 1s unless it is set
SET LOCAL statement_timeout = '900ms'

-- lock: nobody reads or writes the tables until the end of the transaction. The views come first, each by itself, which a change
-- of the owner to the owner does: a query has its view before the table, and holding one it would wait for the other. A LOCK
-- TABLE takes the tables of a view as well. Who reads several views at once can be in the way still: hence so briefly, that this
-- is ended before he is, as the victim of a deadlock
DO $$
BEGIN
    ALTER VIEW balances_v1 OWNER TO CURRENT_ROLE;
    ALTER VIEW accounts_v1 OWNER TO CURRENT_ROLE;
    ALTER VIEW payments_v1 OWNER TO CURRENT_ROLE;
    ALTER VIEW transfers_v1 OWNER TO CURRENT_ROLE;
    ALTER VIEW entries_v1 OWNER TO CURRENT_ROLE;
    LOCK TABLE balances, payments, transfers, transfer_accounts, entries IN ACCESS EXCLUSIVE MODE;
END
$$

-- as_before: as long as it takes again
SET LOCAL statement_timeout TO DEFAULT

-- grants: what lets others than their owner use the tables, as statements
SELECT format('GRANT %%s ON %%I.%%I TO %%s', a.privilege_type, current_schema(), c.relname, a.grantee::regrole)
FROM pg_class AS c, aclexplode(c.relacl) AS a
WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY (%(tables)s)
  AND a.grantee <> 0 AND a.grantee <> c.relowner

-- set_checkpoint: the new tables' own
UPDATE checkpoints SET position = %(position)s, moved_at = clock_timestamp(), failure = NULL WHERE name = 'read_models'

-- analyze: let the planner know the new tables
ANALYZE balances, payments, transfers, transfer_accounts, entries
