#!/bin/bash
# Reconstruct an archive on several machines without a scheduler. Start it on each of them:
#   FIRST=machine0 NODES=2 NODE=0 DEVICES=4 examples/cluster/predict_torchrun.sh SCANS THIN
# FIRST is the first machine, which all others reach at PORT; NODE counts the machines from 0.
set -euo pipefail
torchrun --nnodes "$NODES" --node_rank "$NODE" --nproc_per_node "$DEVICES" \
  --master_addr "$FIRST" --master_port "${PORT:-29500}" \
  -m mpunet predict "$1" "$2" --devices "$DEVICES" --trainer.num_nodes "$NODES" "${@:3}"
