#!/usr/bin/env bash
# Start a training in one or more processes.
#
#   bash tools/dist.sh train CONFIG GPUS [--work-dir DIR] [--resume auto|PATH] [--force] [--profile [N]]
#                                        [--skip-plan] [--find-micro-batch] [--cfg-options KEY=VALUE ...]
#
# GPUS      processes on this machine; 0 is one process on the CPU. Without a GPU, N processes train on the CPU.
# Several machines: the same command on each, with NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment, or
# tools/slurm.sh. NODES_WAIT (900): seconds in which all must have called the first one. LOST_AFTER (60): seconds without
# a heartbeat after which a process or a machine counts as lost, and the job ends.
set -euo pipefail

usage() {
    sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

fail() {
    echo "error: $1" >&2
    usage >&2
    exit 2
}

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
case "${1:-}" in
    train) ;;
    -h | --help | help) usage; exit 0 ;;
    "") fail "no command given; expected: train" ;;
    *) fail "unknown command '$1'; expected: train" ;;
esac
shift
if [[ "${1:-}" == "-h" || "${1:-}" == "--help" ]]; then
    usage
    exit 0
fi
[[ $# -ge 2 ]] || fail "train takes CONFIG and GPUS"
config="$1"
gpus="$2"
shift 2
[[ -f "$config" ]] || fail "$config does not exist; configs are in configs/"
[[ "$gpus" =~ ^[0-9]+$ ]] || fail "GPUS must be a whole number, found '$gpus'"

# The log counts from here.
started="${EPOCHREALTIME:-$(date +%s)}"
export VESSELSEG_STARTED="${started/,/.}"

# The active environment, else the repository's own.
python=python
command -v python >/dev/null || python=python3
if [[ -z "${VIRTUAL_ENV:-}" && -z "${CONDA_PREFIX:-}" && -x "$here/.venv/bin/python" ]]; then
    python="$here/.venv/bin/python"
fi
command -v "$python" >/dev/null || fail "no Python found; run 'make env' in $here first"
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m vesselseg train "$config" "$gpus" "$@"
