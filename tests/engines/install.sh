#!/usr/bin/env bash
# Installs the engines that are missing, if this is root.
set -euo pipefail

packages=(pgpool2)
programs=(pgpool)

for program in "${programs[@]}"; do
    command -v "$program" > /dev/null && continue
    [ "$(id -u)" = 0 ] || { echo "missing: $program (Debian and Ubuntu: apt-get install ${packages[*]})"; exit 1; }
    apt-get update --quiet=2
    DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --no-install-recommends "${packages[@]}" > /dev/null
    break
done
