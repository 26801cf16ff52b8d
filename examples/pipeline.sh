#!/usr/bin/env bash
# The two stages of the DPO paper: supervised fine-tuning on the chosen completions, then DPO with that as the reference.
#
#     examples/pipeline.sh [MODEL DATA OUT [FLAGS OF TRAIN]]     without arguments: bundled model and pairs
#
# DATA holds pairs. The first stage would also accept rows with messages, or with prompt and completion.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
model=${1:-$here/mlx_dpo/demo/model} data=${2:-$here/mlx_dpo/demo/pairs} out=${3:-pipeline}
flags=("${@:4}")
if [ $# -eq 0 ]; then flags=(--iters 40 --learning-rate 4e-4); fi

mlx-dpo train --loss sft --reference none --model "$model" --data "$data" --adapter-path "$out/sft" "${flags[@]}"
mlx-dpo train --loss sigmoid --init-adapter "$out/sft" --model "$model" --data "$data" --adapter-path "$out/dpo" "${flags[@]}"
mlx-dpo evaluate --model "$model" --adapter-path "$out/dpo" --data "$data"
