#!/usr/bin/env bash
# Makes $1/pgbouncer, the newest one that Debian has, with the libraries that it needs, whichever Debian this is. Nothing
# is installed. On another system it is the installed one.
set -euo pipefail

folder=$1
[ ! -x "$folder/pgbouncer" ] || exit 0
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2> /dev/null | head -1) || true

rm -rf "$folder"
if [ -z "$mirror" ] || [ ! -e "$keyring" ]; then
    mkdir "$folder"
    ln -s "$(PATH=$PATH:/usr/sbin type -P pgbouncer)" "$folder/pgbouncer"
    exit
fi
mkdir -p "$folder"/{root,lists/partial,cache/archives/partial}
echo "deb [signed-by=$keyring] $mirror sid main" > "$folder/sources.list"
apt() {
    "apt-$1" -o Dir::Etc::sourcelist="$folder/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o Dir::State::lists="$folder/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$folder/cache" \
        -o APT::Sandbox::User=root "${@:2}"
}
apt get update --quiet=2
# The libraries of its libraries, too; not the packages of programs.
libraries=$(apt cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances pgbouncer | sed -n 's/^ *Depends: \(lib[^<>]*\)$/\1/p; s/^ *Depends: \(zlib1g\)$/\1/p' | sort -u)
(
    cd "$folder/cache"
    # shellcheck disable=SC2086 # a list of words
    apt get download --quiet=2 pgbouncer $libraries
    for package in ./*.deb; do dpkg-deb --extract "$package" "$folder/root"; done
)
loader=$(find "$folder/root" -name 'ld-linux-*.so.*' | head -1)
found=$(find "$folder/root" -name 'libevent-2.1.so.7' | head -1)
printf '#!/bin/sh\nexec "%s" --library-path "%s" "%s" "$@"\n' "$loader" "$(dirname "$found")" "$folder/root/usr/sbin/pgbouncer" \
    > "$folder/pgbouncer"
chmod +x "$folder/pgbouncer"
rm -r "$folder/lists" "$folder/cache"
"$folder/pgbouncer" --version | head -1
