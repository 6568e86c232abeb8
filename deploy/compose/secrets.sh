#!/bin/sh
# Makes what the services of docker-compose.yml keep secret: passwords, a certificate, the key that signs. Once: what is
# there is left as it is. Each folder is a volume of its own, for the one service that has to know what is in it.
set -eu
umask 077

postgres=${SECRETS_POSTGRES:?} ledger=${SECRETS_LEDGER:?} grafana=${SECRETS_GRAFANA:?} tree=${SECRETS_TREE:?}
clients=${SECRETS_CLIENTS:?}

password() {
    python -c 'import secrets; print(secrets.token_urlsafe(24))'
}

# Writes a file from stdin, first under another name: a file that is there is whole.
put() {
    cat >"$1.new"
    mv "$1.new" "$1"
}

if [ ! -e "$postgres/password" ]; then
    new=$(password)
    echo "$new" | put "$postgres/password"
fi
if [ ! -e "$ledger/pgpass" ]; then
    echo "*:*:*:ledger:$(cat "$postgres/password")" | put "$ledger/pgpass"
fi
if [ ! -e "$ledger/tls" ]; then
    rm -rf "$ledger/tls.new"
    ledger tls dev-cert "$ledger/tls.new" --host server --days 365 >/dev/null
    mv "$ledger/tls.new" "$ledger/tls"
fi
if [ ! -e "$clients/ca.pem" ]; then
    put "$clients/ca.pem" <"$ledger/tls/ca.pem"
fi
if [ ! -e "$tree/tree.key" ]; then
    LEDGER_TREE_KEY="$tree/tree.key" ledger audit make-key
fi
if [ ! -e "$grafana/password" ]; then
    new=$(password)
    echo "$new" | put "$grafana/password"
fi

# Each for the user that its service runs as: postgres' image drops to 999, grafana's to 472, ours to 10001.
if [ "$(id -u)" = 0 ]; then
    chown -R 999:999 "$postgres"
    chown -R 472:472 "$grafana"
    chown -R 10001:10001 "$ledger" "$tree" "$clients"
fi
