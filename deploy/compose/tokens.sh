#!/bin/sh
# Makes a token for each role, in a file of its own, once the database is migrated. What is there is left as it is.
set -eu
umask 077

clients=${SECRETS_CLIENTS:?}

for role in payments operator auditor analyst; do
    if [ ! -e "$clients/$role.token" ]; then
        # First under another name: a file that is there is a token that is whole.
        ledger token create "compose-$role" --role "$role" --expires-in 365d >"$clients/$role.new"
        mv "$clients/$role.new" "$clients/$role.token"
    fi
done
