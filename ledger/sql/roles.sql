-- existing: which of some roles there are
SELECT rolname FROM pg_roles WHERE rolname = ANY (%(names)s)

-- login: who this session is, the database it is in, and whether it may do anything
SELECT session_user, current_database(), rolsuper FROM pg_roles WHERE rolname = session_user

-- not_ours: those of some roles that the login may not act as
SELECT rolname FROM pg_roles
WHERE rolname = ANY (%(names)s)
  AND NOT pg_has_role(session_user, oid, 'SET')
ORDER BY rolname

-- may_create: whether a role may make schemas in this database, as a rebuild of the read models does
SELECT has_database_privilege(%(owner)s, current_database(), 'CREATE')

-- may_read_tokens: whether a role may read the tokens of callers
SELECT has_schema_privilege(%(writer)s, 'callers', 'USAGE') AND has_table_privilege(%(writer)s, 'callers.tokens', 'SELECT')

-- not_owned: statements that hand over to a role what others own of a schema: that of a release without roles
SELECT format('ALTER SCHEMA %%I OWNER TO %%I', nspname, %(owner)s::text) FROM pg_namespace
WHERE nspname = %(schema)s AND nspowner <> %(owner)s::regrole
UNION ALL
(SELECT format('ALTER %%s %%I.%%I OWNER TO %%I', CASE relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, nspname, relname, %(owner)s::text)
 FROM pg_class JOIN pg_namespace AS n ON n.oid = relnamespace
 WHERE nspname = %(schema)s AND relkind IN ('r', 'p', 'v') AND relowner <> %(owner)s::regrole ORDER BY pg_class.oid)
UNION ALL
SELECT format('ALTER FUNCTION %%s OWNER TO %%I', p.oid::regprocedure, %(owner)s::text)
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = pronamespace
WHERE nspname = %(schema)s AND proowner <> %(owner)s::regrole

-- schema: the one that is searched first
SELECT current_schema()

-- relations: the tables and views of that schema
SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'v')

-- granted: who may do what there, but for their owner: the relation ('' is the schema itself), the role, the privilege
SELECT c.relname, coalesce(r.rolname, 'PUBLIC'), a.privilege_type
FROM pg_class AS c, aclexplode(c.relacl) AS a LEFT JOIN pg_roles AS r ON r.oid = a.grantee
WHERE c.relnamespace = current_schema()::regnamespace AND a.grantee <> c.relowner
UNION ALL
SELECT '', coalesce(r.rolname, 'PUBLIC'), a.privilege_type
FROM pg_namespace AS n, aclexplode(n.nspacl) AS a LEFT JOIN pg_roles AS r ON r.oid = a.grantee
WHERE n.nspname = current_schema() AND a.grantee <> n.nspowner

-- open_functions: those of that schema that anybody may call, as a restored one can be
SELECT p.oid FROM pg_proc AS p, aclexplode(coalesce(proacl, acldefault('f', proowner))) AS a
WHERE pronamespace = current_schema()::regnamespace AND a.grantee = 0 AND a.privilege_type = 'EXECUTE'
