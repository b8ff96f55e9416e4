#!/usr/bin/env bash
# Runs tests on other Pythons of this machine: tools/pythons.sh "VERSIONS" TESTS…
# Looks on the path and among pyenv's; says which are not there. Installs nothing but in the cache folder.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=$1
shift
cache=${SOTTOVOCE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sottovoce}

find_python() {
  for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1"*/bin/python; do
    if "$candidate" -c '' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

for version in $versions; do
  if ! python=$(find_python "$version"); then
    echo "── Python $version: not on this machine" >&2
    continue
  fi
  environment=$cache/pythons/$version-$(cat requirements/test.txt pyproject.toml | cksum | cut -d' ' -f1)
  if [ ! -e "$environment/.made" ]; then
    echo "── Python $version: making $environment" >&2
    rm -rf "$cache/pythons/$version-"*
    .venv/bin/uv venv -q --python "$python" "$environment"
    .venv/bin/uv pip install -q --python "$environment/bin/python" --require-hashes -r requirements/test.txt
    touch "$environment/.made"
  fi
  # Anew each time: another checkout may have been tested in it.
  .venv/bin/uv pip install -q --python "$environment/bin/python" --no-deps --no-build-isolation -e .
  echo "── $("$environment/bin/python" --version)" >&2
  "$environment/bin/python" -m pytest -q -m "not e2e" -n logical --dist loadfile "$@"
done
