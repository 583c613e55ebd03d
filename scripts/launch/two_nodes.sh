#!/usr/bin/env bash
# Two machines. Start it on both, with the same arguments, HOST being the first one's name or address:
#
#   scripts/launch/two_nodes.sh HOST RUN_DIR [options of train_astra.py]
#
# RUN_DIR and the data lie on a file system that both see. Checkpoints are written by rank 0 alone. The machines find
# each other at HOST:29500 (set PORT for another port); a job that one of them leaves is started anew on both.
set -euo pipefail
host=${1:?usage: $0 HOST RUN_DIR [options]}
run_dir=${2:?usage: $0 HOST RUN_DIR [options]}
shift 2
gpus=${GPUS:-$(python -c 'import torch; print(torch.cuda.device_count())')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

exec torchrun --nnodes 2 --nproc-per-node "$gpus" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$host:${PORT:-29500}" --rdzv-id "$(basename "$run_dir")" \
    scripts/train_astra.py --run_dir "$run_dir" "${@:---config=cifar10}"
