-- ledgers: the schemas of the ledgers that have a role
SELECT nspname FROM pg_namespace
WHERE nspname LIKE 'ledger\_%%' AND EXISTS (SELECT FROM pg_roles WHERE rolname = nspname || '_' || %(role)s::text)
