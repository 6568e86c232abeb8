-- server: when it is, and which Postgres
SELECT clock_timestamp(), current_setting('server_version'), current_setting('server_version_num')::int / 10000

-- newest_head: what was signed last
SELECT note FROM tree_heads ORDER BY number DESC LIMIT 1

-- migration: the last one that is applied
SELECT max(number) FROM migrations

-- is_there: whether there is a schema
SELECT to_regnamespace(%(schema)s) IS NOT NULL

-- tables: those of the schema that is searched first
SELECT tablename FROM pg_tables WHERE schemaname = current_schema() ORDER BY tablename
