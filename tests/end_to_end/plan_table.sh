#!/usr/bin/env bash
# plan --table: the longest rows that fit, for models and cards that are not here, without a configuration or data.
. "$(dirname "$0")/common.sh"

# Each cell tried here is one of README.md's table, which the command made.
cell() { grep -E "^\\| $1 +\\|" | cut -d'|' -f"2,3,$2" | tr -s ' '; }
for place in "smollm2-135m rtx-4070 5" "llama-3-8b rtx-4090 7" "llama-3-70b rtx-4060 4"; do
  read -r model device column <<<"$place"
  succeeds plan --table --model "$model" --device "$device"
  equal "$model on $device, in README.md's table" "$(cell "$model" "$column" <README.md)" "$(cell "$model" 4 <"$work/out")"
done
says out '^\| model +\| made for \| rtx-4060 +\|$' '^\| llama-3-70b +\| +8k +\| [0-9]+k\+? [a-z0-9]+ +\|$' 'optimizer=paged_adamw_8bit' \
  '^rtx-4060: NVIDIA GeForce RTX 4060, 8188 MiB\.$'
equal "a row for each model" "$(sed -n '/^| model /,/^$/p' README.md | grep -cE '^\| [a-z0-9-]+ +\| +[0-9]+k')" "$(ls configs/models/*.json | wc -l)"

# What a cell says is what a configuration of that kind gets.
succeeds plan --table --model llama-3-70b --device rtx-4060 --json --set resident_layers=80
equal "70B resident on 8 GB" "$("$probe" json "$work/out" models.0.cells.0)" null
succeeds plan --table --model llama-3-8b --device rtx-4060 --json --set resident_layers=80
equal "the settings" "$("$probe" json "$work/out" settings.8)" resident_layers=80
longest=$("$probe" json "$work/out" models.0.cells.0.sequence_len)
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
refuses 2 "--table's" -- plan --model llama-3-8b "$work/8b.yml"
refuses 2 'llama-3-9b' -- plan --table --model llama-3-9b
refuses 2 'lora_rank' -- plan --table --device rtx-4060 --set lora_rank=8
refuses 2 'needs CONFIG' '--table' -- plan

finish
