#!/usr/bin/env bash
# An environment that is another one with a different transformers in front: seconds instead of gigabytes.
#
#   bash tools/setup_transformers.sh .venv .venv-transformers-5 "transformers>=5"
#
# Exit status: 0 ready, 2 the packages could not be installed.
set -euo pipefail
[ "$#" -eq 3 ] || { echo "usage: bash tools/setup_transformers.sh ENVIRONMENT NEW_ENVIRONMENT REQUIREMENT" >&2; exit 2; }
base=$(realpath "$1") new=$(realpath -m "$2") wanted=$3
stamp=$new/.vesselseg-stamp
[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || exit 0

uv=$(command -v uv || echo "$PWD/.venv-tools/bin/uv")
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    mirror=${PIP_INDEX_URL:-$("$base/bin/python" -m pip config get global.index-url 2>/dev/null || python3 -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$mirror" ] || export UV_DEFAULT_INDEX=$mirror
fi
# not in the checkout: its pyproject.toml holds transformers back
cd "$(dirname "$new")/.." 2>/dev/null || cd /
"$uv" venv --quiet --clear --python "$base/bin/python" "$new"
if ! "$uv" pip install --quiet --no-config --python "$new/bin/python" "$wanted"; then
    rm -rf "$new"
    echo "error: $wanted could not be installed; is the package index reachable?" >&2
    exit 2
fi
site=$("$new/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$base/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/zz_base.pth"
echo "$wanted" >"$stamp"
"$new/bin/python" -c 'import torch, transformers; print(f".venv with transformers {transformers.__version__}, torch {torch.__version__}")'
