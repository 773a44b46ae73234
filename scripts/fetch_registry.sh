#!/usr/bin/env bash
# Puts Debian's docker-registry into the per-user cache, for the tests of pull and push; needs no
# root. What is there already is kept. Prints its path.
set -euo pipefail

folder=${XDG_CACHE_HOME:-$HOME/.cache}/kvsup/docker-registry
program=$folder/docker-registry

say() { printf 'kvsup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

from_debian() {
  local partial
  command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 1
  say "downloading docker-registry from Debian"
  mkdir -p "$folder"
  partial=$(mktemp -d "$folder/.partial-XXXXXX")
  # shellcheck disable=SC2064 # the folder is the one of now
  trap "rm -rf '$partial'" EXIT
  (cd "$partial" && { apt-get download docker-registry ||
    { apt-get update && apt-get download docker-registry; }; }) >"$folder/download.log" 2>&1 || return 1
  dpkg-deb --fsys-tarfile "$partial"/docker-registry_*.deb |
    tar -xf - -C "$partial" ./usr/bin/docker-registry || return 1
  mv "$partial/usr/bin/docker-registry" "$program"
}

on_path() {
  local found
  for found in docker-registry registry; do
    found=$(command -v "$found") || continue
    mkdir -p "$folder"
    ln -sf "$found" "$program"
    return 0
  done
  return 1
}

[[ -x $program ]] || on_path || from_debian ||
  fail "no docker-registry for the tests: put it, or the registry of the distribution project, on PATH" \
    "(Debian: apt-get install docker-registry; see $folder/download.log)"
echo "$program"
