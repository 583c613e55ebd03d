#!/usr/bin/env bash
# One machine, all of its GPUs: scripts/launch/single_node.sh RUN_DIR [options of train_astra.py]
#
# A rank that dies takes the others with it; torchrun starts all of them anew, up to three times, and the run goes on
# at its last checkpoint. Stop it with Ctrl-C or SIGTERM (to torchrun): it saves, and --resume continues.
set -euo pipefail
run_dir=${1:?usage: $0 RUN_DIR [options]}
shift
gpus=${GPUS:-$(python -c 'import torch; print(torch.cuda.device_count())')}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

exec torchrun --standalone --nproc-per-node "$gpus" --max-restarts 3 \
    scripts/train_astra.py --run_dir "$run_dir" "${@:---config=cifar10}"
