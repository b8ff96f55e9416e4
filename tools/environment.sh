#!/usr/bin/env bash
# Makes the project's own environment (.venv) from nothing: tools/environment.sh demo|check|test
# `check` is `test` without llama-cpp-python, which has to be built.
# Needs Python >= 3.10 and nothing else; installs nothing outside .venv and the cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."
purpose=${1:?usage: tools/environment.sh demo|check|test}
want=$([ "$purpose" = demo ] && echo demo || echo test)
venv=.venv
say() { if [ -t 2 ]; then printf '\033[2m── %s\033[0m\n' "$*" >&2; else printf -- '-- %s\n' "$*" >&2; fi; }
die() { printf '\n%s\n' "$*" >&2; exit 1; }

find_python() {
  for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python3.10 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "No Python 3.10 or newer was found. Install one (Debian/Ubuntu: sudo apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3 …"
}

if [ ! -x "$venv/bin/python" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
  python=$(find_python)
  say "making $venv with $python"
  rm -rf "$venv"
  if ! "$python" -m venv "$venv" 2>/dev/null; then
    rm -rf "$venv"
    if command -v uv >/dev/null; then
      uv venv -q --seed --python "$python" "$venv"
    else
      version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
      die "$python cannot make a virtual environment: its venv module is missing. Debian/Ubuntu: sudo apt install python$version-venv"
    fi
  fi
fi

hash_of() { "$venv/bin/python" -c 'import hashlib,sys; print(hashlib.sha256(b"".join(open(f,"rb").read() for f in sys.argv[1:])).hexdigest()[:16])' "$@"; }

stamp=$venv/.$want-$(hash_of "requirements/$want.txt" requirements/uv.txt pyproject.toml tools/environment.sh)
if [ ! -e "$stamp" ]; then
  if [ ! -x "$venv/bin/uv" ]; then
    say "fetching uv into $venv"
    "$venv/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
  fi
  say "installing requirements/$want.txt (about $([ "$want" = demo ] && echo 300 || echo 600) MB the first time)"
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" --require-hashes -r "requirements/$want.txt"
  # The build backend is among the pinned requirements, so nothing unpinned is fetched.
  "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation -e .
  rm -f "$venv/.$want-"*
  touch "$stamp"
fi

cache=${SOTTOVOCE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sottovoce}
tag=$("$venv/bin/python" -c 'import platform,sys; print("%s-%s-cp%d%d" % (sys.platform, platform.machine(), *sys.version_info[:2]))')

# Sets `wheels` to the folder with the wheel of requirements/$1.txt, built if it is not there yet.
llama_wheel() {
  wheels=$cache/wheels/$tag-$(hash_of "requirements/$1.txt")
  ! ls "$wheels"/*.whl >/dev/null 2>&1 || return 0
  command -v c++ >/dev/null || die "llama-cpp-python has no ready-made wheel and no C++ compiler was found, so its tests cannot run. Debian/Ubuntu: sudo apt install g++; macOS: xcode-select --install"
  mkdir -p "$wheels"
  say "building llama-cpp-python ($1) once, $2; kept in $wheels"
  "$venv/bin/python" -m ensurepip -q 2>/dev/null || true
  # No vision, no OpenMP, -O1: the tests' models are tiny, so build time is what counts. Newer
  # compilers miss two headers that the oldest leaves out.
  CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_ALL_WARNINGS=OFF -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS='-include cstdint -include chrono'" \
    "$venv/bin/python" -m pip wheel -q --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
    --require-hashes -r "requirements/$1.txt" -w "$wheels" &
  local build=$! seconds=0
  while kill -0 $build 2>/dev/null; do
    sleep 5
    seconds=$((seconds + 5))
    [ $((seconds % 30)) -ne 0 ] || say "still building llama-cpp-python ($seconds s)"
  done
  wait $build || die "llama-cpp-python could not be built; the messages above say why."
}

if [ "$purpose" = test ]; then
  llama_wheel llama "3 to 8 minutes"
  "$venv/bin/python" -c 'import llama_cpp' 2>/dev/null || "$venv/bin/uv" pip install -q --python "$venv/bin/python" --no-deps "$wheels"/*.whl
  # For environments that the tests make.
  llama_wheel llama-oldest "about a minute"
fi
