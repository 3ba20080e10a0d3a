#!/bin/sh
# System packages: bubblewrap makes cells, nftables and iproute2 their network. Installs what is missing, as root or with sudo
# that asks nothing; else prints the line to run. `setup/system.sh tests` also wants what the tests need: a Chromium, in which the
# console's pages are tried, and a router's UPnP daemon.
set -eu

missing=""
need() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || missing="$missing $2"; }
need bwrap bubblewrap
need nft nftables
need ip iproute2
if [ "${1:-}" = tests ]; then
    command -v chromium >/dev/null 2>&1 || command -v google-chrome >/dev/null 2>&1 || missing="$missing chromium"
    need miniupnpd miniupnpd-nftables
fi
"${PYTHON:-python3}" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
[ -z "$missing" ] && exit 0

install="apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends$missing"
if ! command -v apt-get >/dev/null 2>&1; then
    echo "Please install with your package manager:$missing" >&2
    exit 1
elif [ "$(id -u)" = 0 ]; then
    sh -c "$install"
elif sudo -n true 2>/dev/null; then
    sudo sh -c "$install"
else
    echo "These system packages are missing; please run:" >&2
    echo "    sudo sh -c '$install'" >&2
    exit 1
fi
