#!/usr/bin/env bash
# Makes the Python environment of this checkout. Quick when nothing changed; never touches the user's own Python.
#
#   bash tools/setup_env.sh                         .venv with the newest versions that pyproject.toml allows
#   TORCH=2.6.0 bash tools/setup_env.sh             .venv with this torch, for instance for an older NVIDIA driver
#   VENV=.venv-x PYTHON=python3.12 bash tools/setup_env.sh
#   VENV=.venv-newest LINE=newest bash tools/setup_env.sh   the newest version of everything
#
# Exit status: 0 ready, 2 something is missing, said in one message.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
torch=${TORCH:-}
line=${LINE:-}
newest=tools/newest.uv.toml # uv's settings for LINE=newest
tools=$PWD/.venv-tools # uv, when the machine has none, and a downloaded interpreter, when it has no fitting one
log=$tools/setup.log
stamp=$venv/.vesselseg-stamp
free_gib_needed=7 # measured: 5.6 GiB with torch 2.12, 6.1 with 2.6, shared with uv's cache on the same disk
uv_at_least=0.9.0

say() { printf '%s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

# --- what is there -------------------------------------------------------------------------------------------------

fits() { "$1" -c 'import sys; raise SystemExit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }
runs() { "$1" -c 'import sys; raise SystemExit(sys.version_info < (3, 8))' >/dev/null 2>&1; }
real_path() { "$1" -c 'import sys; print(sys.executable)'; }

candidates() {
    printf '%s\n' python3.11 python3.12 python3.10 python3 python
    local root=${PYENV_ROOT:-$HOME/.pyenv} folder
    for folder in "$root"/versions/3.11* "$root"/versions/3.12* "$root"/versions/3.10*; do
        printf '%s\n' "$folder/bin/python"
    done
    printf '%s\n' "$tools"/python/*/bin/python3
}

find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" || fail "PYTHON=$PYTHON is not a working Python 3.10, 3.11 or 3.12 $("$PYTHON" --version 2>/dev/null || true)"
        real_path "$PYTHON"
        return
    fi
    while read -r name; do
        if fits "$name"; then
            real_path "$name"
            return
        fi
    done < <(candidates)
}

# Any Python that can run pip is good enough to fetch uv.
find_any_python() {
    local name
    while read -r name; do
        if runs "$name"; then
            real_path "$name"
            return
        fi
    done < <(candidates)
}

new_enough() { # VERSION: at least $uv_at_least?
    [ "$(printf '%s\n%s\n' "$uv_at_least" "$1" | sort -V | head -n 1)" = "$uv_at_least" ]
}

uv_works() { # PATH
    local version
    version=$("$1" --version 2>/dev/null | awk '{print $2}') || return 1
    [ -n "$version" ] && new_enough "$version"
}

find_uv() {
    local name
    for name in "${UV:-}" uv "$HOME/.local/bin/uv" "$tools/bin/uv"; do
        if [ -n "$name" ] && uv_works "$name"; then
            command -v "$name"
            return
        fi
    done
}

# --- what can go wrong -----------------------------------------------------------------------------------------------

check_disk() {
    local free cache
    cache=$("$uv" cache dir 2>/dev/null || printf '%s' "$HOME/.cache/uv")
    free=$(free_gib "$PWD")
    [ "$free" -ge "$free_gib_needed" ] ||
        fail "the environment needs about $free_gib_needed GiB of free disk, $PWD has $free; free some or move the checkout"
    while [ ! -d "$cache" ]; do cache=$(dirname "$cache"); done
    free=$(free_gib "$cache")
    [ "$free" -ge "$free_gib_needed" ] ||
        fail "downloads need about $free_gib_needed GiB of free disk, $cache has $free; free some or point UV_CACHE_DIR elsewhere"
}

free_gib() { df -Pk "$1" | awk 'NR == 2 {print int($4 / 1048576)}'; }

explain() { # WHAT: the log of a failed installation -> one sentence, then the installer's own last words
    local reason
    if grep -qiE 'no space left|disk quota' "$log"; then
        reason="the disk is full"
    elif grep -qiE 'dns error|error sending request|failed to fetch|connection|timed out|network|certificate|NewConnectionError' "$log"; then
        reason="the package index cannot be reached; check the network, the proxy (HTTPS_PROXY), a private certificate (SSL_CERT_FILE) or set a mirror (UV_DEFAULT_INDEX)"
    elif grep -qiE 'no solution found|unsatisfiable' "$log"; then
        reason="the versions in pyproject.toml do not go together on this machine"
    elif grep -qiE 'gcc|g\+\+|command .*(cc|c\+\+).* failed|Python\.h' "$log"; then
        reason="a package had to be compiled and no working C++ compiler or Python header was found; install g++ and the Python development headers"
    else
        reason="the installer stopped"
    fi
    printf 'error: %s: %s. Last lines (all of it in %s):\n' "$1" "$reason" "$log" >&2
    tail -n 4 "$log" | cut -c 1-200 | sed 's/^/    /' >&2
    exit 2
}

# --- the steps -------------------------------------------------------------------------------------------------------

fetch_uv() {
    local base
    base=$(find_any_python)
    [ -n "$base" ] || fail "no Python was found; install Python 3.10, 3.11 or 3.12 (or uv, which can fetch one) and run this again"
    say "fetching uv into .venv-tools"
    if ! "$base" -m venv "$tools" >"$log" 2>&1; then
        fail "$base cannot make virtual environments; install its venv package (Debian and Ubuntu: apt install python3-venv) or uv"
    fi
    "$tools/bin/python" -m pip install --disable-pip-version-check "uv>=$uv_at_least" >"$log" 2>&1 || explain "uv could not be fetched"
    uv=$tools/bin/uv
}

fetch_python() {
    say "no Python 3.10, 3.11 or 3.12 found: uv tries to download one"
    if ! UV_PYTHON_INSTALL_DIR="$tools/python" timeout 300 "$uv" python install 3.11 >"$log" 2>&1; then
        fail "vesselseg needs Python 3.10, 3.11 or 3.12; none was found$(other_python) and none could be downloaded. Install one, or name one with PYTHON=/path/to/python3.11"
    fi
    python=$(find_python)
    [ -n "$python" ] || fail "the downloaded Python does not run; install Python 3.10, 3.11 or 3.12"
}

other_python() {
    local base
    base=$(find_any_python)
    [ -z "$base" ] || printf ' (there is %s, %s)' "$base" "$("$base" --version 2>&1)"
}

# A driver older than the wheel's CUDA would leave the GPU unused without an error.
torch_for_driver() {
    local driver
    driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d. -f1) || true
    case $driver in '' | *[!0-9]*) return ;; esac
    if [ "$driver" -lt 525 ]; then
        say "note: NVIDIA driver $driver is older than 525: no supported torch can use this GPU; update the driver" >&2
    elif [ "$driver" -lt 580 ]; then
        say "note: NVIDIA driver $driver is older than 580: taking torch 2.6.0 (CUDA 12.4); TORCH=... chooses another" >&2
        printf '2.6.0'
    fi
}

# An environment that exists keeps its interpreter, unless PYTHON asks for another one.
install() {
    if ! keeps_interpreter; then
        [ ! -e "$venv" ] || [ -f "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv")" ] ||
            fail "$venv exists and is no Python environment; move it away or set VENV"
        "$uv" venv --quiet --clear --python "$python" "$venv" >"$log" 2>&1 || return
    fi
    if [ "$line" = newest ]; then
        "$uv" pip install --config-file "$newest" --upgrade --python "$venv/bin/python" \
            --editable '.[train,dicom,distill,serve]' --group xtuner --group dev >"$log" 2>&1
    elif [ -n "$torch" ]; then
        "$uv" pip install --python "$venv/bin/python" --editable '.[train,dicom,distill,serve]' --group xtuner --group dev \
            "torch==$torch" torchvision >"$log" 2>&1
    else
        UV_PROJECT_ENVIRONMENT=$venv "$uv" sync --extra train --extra dicom --extra distill --extra serve >"$log" 2>&1
    fi
}

keeps_interpreter() { fits "$venv/bin/python" && { [ -z "${PYTHON:-}" ] || same_version; }; }

# Wheels that install everywhere may still want system libraries.
check_imports() {
    "$venv/bin/python" -c 'import torch, torchvision, cv2, transformers' >"$log" 2>&1 && return
    if grep -q 'libGL\|libgthread\|libglib' "$log"; then
        fail "OpenCV needs two system libraries: apt install libgl1 libglib2.0-0 (or mesa-libGL and glib2), then run this again"
    fi
    explain "the environment was made but does not import"
}

fingerprint() { # the dependencies, this script and the torch that was asked for
    { cat pyproject.toml "$newest" tools/setup_env.sh && printf '%s' "$torch$line"; } | cksum | cut -d' ' -f1
}

remembered_torch() { if [ -f "$stamp" ]; then sed -n 2p "$stamp"; fi; }

ready() {
    [ -f "$stamp" ] && [ "$(head -n 1 "$stamp")" = "$(fingerprint)" ] && keeps_interpreter
}

same_version() { [ "$("$PYTHON" -V 2>&1)" = "$("$venv/bin/python" -V 2>&1)" ]; }

[ -n "$torch" ] || torch=$(remembered_torch)
ready && exit 0
[ -n "$torch" ] || torch=$(torch_for_driver)

mkdir -p "$tools"
if keeps_interpreter; then python=$venv/bin/python; else python=$(find_python); fi
uv=$(find_uv)
[ -n "$uv" ] || fetch_uv
[ -n "$python" ] || fetch_python
check_disk

# uv reads no pip settings; a mirror that pip uses is the one that works here.
if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
    mirror=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$mirror" ] || export UV_DEFAULT_INDEX=$mirror
fi
export UV_PYTHON_DOWNLOADS=never

if keeps_interpreter; then doing=updating; else doing=making; fi
say "$doing $venv with $("$python" --version 2>&1), torch ${torch:-${line:-newest allowed}}: several GB on the first run, minutes"
install || explain "the environment could not be made"
check_imports
printf '%s\n%s\n' "$(fingerprint)" "$torch" >"$stamp"
say "$venv is ready"
command -v g++ >/dev/null || command -v c++ >/dev/null ||
    say "note: no C++ compiler (g++): training with the optimizer on the CPU (the *_offload configs, and CPU runs) needs one"
