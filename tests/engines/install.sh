#!/usr/bin/env bash
# Installs the engines if one of them is missing and this is root.
set -euo pipefail

programs="pgpool patroni etcd haproxy pg_autoctl pgbouncer"
packages="postgresql pgpool2 patroni etcd-server haproxy pg-auto-failover-cli pgbouncer"

PATH=$PATH:/usr/sbin
# shellcheck disable=SC2086 # several words each
if ! type -P $programs > /dev/null || ! ls /usr/lib/postgresql/*/lib/pgautofailover.so > /dev/null 2>&1; then
    [ "$(id -u)" = 0 ] || { echo "missing; on Debian and Ubuntu: apt-get install $packages"; exit 1; }
    apt-get update --quiet=2
    # The extension of the server's own major version.
    packages+=" $(apt-cache search --names-only '^postgresql-[0-9]+-auto-failover$' | cut -d' ' -f1)"
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --no-install-recommends $packages > /dev/null
fi
