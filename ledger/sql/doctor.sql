-- engine: what it says that it is
SELECT version(), current_setting('server_version_num')::int, current_setting('server_encoding')

-- settings: some of the server's settings, as every session finds them that sets none of its own
SELECT name, setting FROM pg_settings WHERE name = ANY (%(names)s)

-- login: who this is, and whether it may do anything
SELECT rolname, rolsuper FROM pg_roles WHERE rolname = session_user

-- role_logins: roles of the ledger as which somebody can log in
SELECT rolname FROM pg_roles WHERE rolname = ANY (%(names)s) AND rolcanlogin ORDER BY rolname

-- owners: who owns what stands in the schema that is searched first
SELECT DISTINCT owner::regrole::text FROM (
    SELECT relowner FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'v')
    UNION SELECT nspowner FROM pg_namespace WHERE nspname = current_schema()
) AS owners (owner) ORDER BY 1

-- triggers: those that stand and fire
SELECT tgrelid::regclass::text, tgname FROM pg_trigger
WHERE tgrelid IN (SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace)
  AND NOT tgisinternal AND tgenabled IN ('O', 'A')

-- clock: the server's time
SELECT clock_timestamp()

-- standby: whether it is one, and which standbys commits wait for
SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names')

-- connections: how many are left to logins like this one
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0)
       - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid())

-- backend: the server process behind this connection
SELECT pg_backend_pid()

-- backend_and_schema: the same, and the schemas that this session was told to search
SELECT pg_backend_pid(), current_setting('search_path')
