-- From here on the ledger has roles (ledger/roles.py), and its schema an owner as whom nobody logs in. `ledger migrate`
-- makes them around the migrations. What triggers run is nobody else's to call.

REVOKE EXECUTE ON FUNCTION refuse_change(), refuse_other_hashes() FROM PUBLIC;
