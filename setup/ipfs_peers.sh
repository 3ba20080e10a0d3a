#!/bin/sh
# IPFS implementations of others, which the tests exchange blocks with: npm packages, each in its folder. Only `make test` needs
# them, and only now the network.
set -eu
cd "$(dirname "$0")/../tests/integration/ipfs"

if ! command -v npm >/dev/null 2>&1; then
    install="apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends nodejs npm"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        sh -c "$install"
    else
        echo "The tests need Node.js and npm; please install them, for example: sudo sh -c '$install'" >&2
        exit 1
    fi
fi
for manifest in */package.json; do
    folder=${manifest%/package.json}
    stamp="$folder/node_modules/.edgellm-installed"
    if ! cmp -s "$manifest" "$stamp"; then
        echo "installing $folder for the tests"
        (cd "$folder" && npm install --ignore-scripts --no-audit --no-fund --loglevel=error)
        cp "$manifest" "$stamp"
    fi
done
