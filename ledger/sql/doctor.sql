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

-- guards: the triggers of the schema that is searched first and of that of tokens, what they call, and whether they fire
SELECT CASE nspname WHEN current_schema() THEN relname::text ELSE nspname || '.' || relname END, tgname, tgtype::int,
       proname, prosrc, tgenabled IN ('O', 'A')
FROM pg_trigger
JOIN pg_class AS c ON c.oid = tgrelid
JOIN pg_namespace AS n ON n.oid = relnamespace
JOIN pg_proc AS p ON p.oid = tgfoid AND pronamespace = n.oid
WHERE nspname IN (current_schema(), 'callers')
  -- One with a condition or for some columns lets others through.
  AND NOT tgisinternal AND tgqual IS NULL AND tgattr::text = ''

-- clock: the server's time
SELECT clock_timestamp()

-- standby: whether it is one, and which standbys commits wait for
SELECT pg_is_in_recovery(), current_setting('synchronous_standby_names')

-- connections: how many are left to logins like this one. Of others' sessions a login is told that they are there, and
-- not what they are: whatever is connected to a database is counted then, which background workers hardly ever are
SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
       - coalesce(current_setting('reserved_connections', true)::int, 0)
       - (SELECT count(*) FROM pg_stat_activity
          WHERE datid IS NOT NULL AND coalesce(backend_type, 'client backend') = 'client backend' AND pid <> pg_backend_pid())

-- backend: the server process behind this connection
SELECT pg_backend_pid()

-- backend_and_schema: the same, and the schemas that this session was told to search
SELECT pg_backend_pid(), current_setting('search_path')
