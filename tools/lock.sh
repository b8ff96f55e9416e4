#!/usr/bin/env bash
# Resolves requirements/*.in into pinned, hashed requirements without any address in them.
set -euo pipefail
cd "$(dirname "$0")/.."
export UV_CUSTOM_COMPILE_COMMAND="make lock"
compile() { .venv/bin/uv pip compile -q --universal --python-version 3.10 --generate-hashes --no-emit-index-url "$@"; }
compile requirements/uv.in -o requirements/uv.txt
compile requirements/test.in -o requirements/test.txt
# The demo's versions are the tests' versions: one environment can hold both.
compile -c requirements/test.txt requirements/demo.in -o requirements/demo.txt
# The peers run in an environment of their own, on the same OpenTelemetry.
compile -c requirements/test.txt requirements/peers.in -o requirements/peers.txt
# So do the frameworks on top of the clients, and older versions of these.
otel() { grep -oE '^opentelemetry[a-z-]*==[^ ]+' requirements/test.txt; }
for name in frameworks sdks-oldest sdks-httpx sdks-httpx2 mcp-oldest mcp-v1 mlx-oldest llama-server llama-server-oldest; do
  compile -c <(otel) "requirements/$name.in" -o "requirements/$name.txt"
done
# Put into a folder beside the tests' environment.
compile requirements/local-servers.in -o requirements/local-servers.txt
compile --no-deps requirements/aiobotocore.in -o requirements/aiobotocore.txt
compile --no-deps requirements/botocore.in -o requirements/botocore.txt
compile --no-deps requirements/botocore-oldest.in -o requirements/botocore-oldest.txt
compile --no-deps requirements/llama.in -o requirements/llama.txt
compile --no-deps requirements/llama-oldest.in -o requirements/llama-oldest.txt
