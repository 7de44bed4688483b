#!/usr/bin/env bash
# plan --table: the longest rows that fit, for models and cards that are not here, without a configuration or data.
. "$(dirname "$0")/common.sh"

succeeds plan --table --device rtx-4060
says out '^\| model +\| made for \| rtx-4060 +\|$' '^\| llama-3-8b +\| +8k +\| [0-9]+k\+? [a-z0-9]+ +\|$' 'optimizer=paged_adamw_8bit' \
  '^rtx-4060: NVIDIA GeForce RTX 4060, 8188 MiB\.$'
equal "a line for each model" "$(grep -cE '^\| [a-z0-9-]+ +\| +[0-9]+k' "$work/out")" "$(ls configs/models/*.json | wc -l)"

# README.md prints what the command does; a column tells whether it still does.
column() { grep -E '^\| [a-z0-9-]+ +\| +[0-9]+k' | cut -d'|' -f"2,3,$1" | tr -s ' '; }
succeeds plan --table --device rtx-4090
equal "the column 24 GB of README.md's table" "$(column 7 <README.md)" "$(column 4 <"$work/out")"

# What a cell says is what a configuration of that kind gets.
succeeds plan --table --device rtx-4060 --json --set resident_layers=80
equal "the settings" "$("$probe" json "$work/out" settings.8)" resident_layers=80
equal "the model" "$("$probe" json "$work/out" models.3.model)" llama-3-8b
longest=$("$probe" json "$work/out" models.3.cells.0.sequence_len)
equal "70B resident on 8 GB" "$("$probe" json "$work/out" models.8.cells.0)" null
printf '{"input_ids": [3, 3, 3]}\n' >"$work/row.jsonl"
cat >"$work/8b.yml" <<END
base_model: configs/models/llama-3-8b.json
adapter: qlora
lora_r: 16
lora_target_linear: true
optimizer: paged_adamw_8bit
learning_rate: 2e-4
host_memory_budget: 128GB
resident_layers: 80
datasets: [{path: $work/row.jsonl, type: tokens}]
sequence_len: 256
END
succeeds plan "$work/8b.yml" --device rtx-4060 --longest-context
says out "^sequence_len: $longest with micro_batch_size: 1: .* MiB of 8188 MiB on .* MiB of pinned host memory, .* MiB of pageable; .*; a step takes"
succeeds plan "$work/8b.yml" --device rtx-4060 --longest-context --largest-batch --json
equal "the same for programs" "$("$probe" json "$work/out" longest_context.sequence_len)" "$longest"
equal "rows of the most" "$("$probe" json "$work/out" largest_batch.sequence_len)" 256

refuses 2 'leave out a.yml' -- plan --table a.yml
refuses 2 '--largest-batch' -- plan --table --largest-batch
refuses 2 'rtx-4061' 'rtx-4060' -- plan --table --device rtx-4061
refuses 2 'lora_rank' -- plan --table --device rtx-4060 --set lora_rank=8
refuses 2 'needs CONFIG' '--table' -- plan

finish
