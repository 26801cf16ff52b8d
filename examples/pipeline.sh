#!/usr/bin/env bash
# The paper's two stages: imitate the wanted answers, then prefer them to the others, the first stage being the reference.
#
#     examples/pipeline.sh [MODEL DATA OUT [FLAGS OF TRAIN]]     without arguments: the bundled model and pairs
#
# DATA holds pairs; for the first stage it could as well be rows of messages, or of prompt and completion.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
model=${1:-$here/mlx_dpo/demo/model} data=${2:-$here/mlx_dpo/demo/pairs} out=${3:-pipeline}
flags=("${@:4}")
if [ $# -eq 0 ]; then flags=(--iters 40 --learning-rate 4e-4); fi

mlx-dpo train --loss sft --reference none --model "$model" --data "$data" --adapter-path "$out/sft" "${flags[@]}"
mlx-dpo train --loss sigmoid --init-adapter "$out/sft" --model "$model" --data "$data" --adapter-path "$out/dpo" "${flags[@]}"
mlx-dpo evaluate --model "$model" --adapter-path "$out/dpo" --data "$data"
