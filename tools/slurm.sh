#!/usr/bin/env bash
# Train on several nodes of a SLURM cluster: tools/dist.sh once on each of them.
#
#   sbatch [SBATCH OPTIONS] tools/slurm.sh CONFIG GPUS_PER_NODE [OPTIONS OF tools/dist.sh train]
#   sbatch --nodes=2 --gpus-per-node=4 tools/slurm.sh configs/internvl3_8b_4x24gb.py 4 --work-dir /shared/run
#
# Submit from the repository's folder. It, the data, the weights and the work dir must lie on a file system that all
# nodes share, under the same path. The job continues from the last checkpoint of its work dir if there is one
# (--resume auto), so that it may be requeued, or submitted again with another number of nodes.
#
#SBATCH --job-name=vesselseg
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --output=slurm_%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail

fail() {
    echo "error: $1" >&2
    exit 2
}

[[ -n "${SLURM_JOB_ID:-}" ]] || fail "not in a SLURM job; start it with: sbatch tools/slurm.sh CONFIG GPUS_PER_NODE"
[[ $# -ge 2 ]] || fail "tools/slurm.sh takes CONFIG and GPUS_PER_NODE"
cd "$SLURM_SUBMIT_DIR" # SLURM runs a copy of this file, which lies elsewhere
[[ -f tools/dist.sh ]] || fail "$SLURM_SUBMIT_DIR holds no tools/dist.sh; submit from the repository's folder"

NNODES="$SLURM_JOB_NUM_NODES"
hosts="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
MASTER_ADDR="${hosts%%$'\n'*}"
PORT="${PORT:-$((20000 + SLURM_JOB_ID % 10000))}" # jobs that share a node must not share a port
export NNODES MASTER_ADDR PORT

config="$1"
gpus="$2"
shift 2
resume=(--resume auto)
for argument in "$@"; do
    case "$argument" in
        --resume | --resume=*) resume=() ;;
    esac
done

# A node that loses a process tells the others itself, and all of them say which one it was.
# shellcheck disable=SC2016  # SLURM_NODEID is the node's own
exec srun --ntasks-per-node=1 --ntasks="$NNODES" --kill-on-bad-exit=0 \
    ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
    bash -c 'NODE_RANK="$SLURM_NODEID" exec bash tools/dist.sh train "$@"' node \
    "$config" "$gpus" ${resume[@]+"${resume[@]}"} "$@"
