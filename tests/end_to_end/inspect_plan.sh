#!/usr/bin/env bash
# inspect and plan: what they say is true, and --json is JSON.
. "$(dirname "$0")/common.sh"

succeeds inspect "$models/llama" --json
cp "$work/out" "$work/model.json"
equal "family" "$("$probe" json "$work/model.json" family)" llama
equal "layers" "$("$probe" json "$work/model.json" layers)" 2
# Every tensor of the file, and what config.json's sizes give: 2 layers of 64 wide, 4 + 2 heads of 16, 128 inside; 259 tokens.
per_layer=$((64 * 64 * 2 + 64 * 32 * 2 + 64 * 128 * 3 + 64 * 2))
equal "parameters" "$("$probe" json "$work/model.json" parameters)" $((2 * per_layer + 2 * 259 * 64 + 64))
"$probe" json "$work/model.json" tensors.0.shape >/dev/null || problem "no shape"
succeeds inspect "$models/llama"
says out '^family +llama' 'lm_head.weight +BF16 +\[259,64\] +33152' 'tensors, '

succeeds inspect "$models/llama/bnb4" --json
equal "quantized" "$("$probe" json "$work/out" quantized)" 'bitsandbytes nf4'
succeeds inspect "$models/llama/adapter_start" --json
equal "rank" "$("$probe" json "$work/out" rank)" 4
succeeds inspect "$models/llama/model.safetensors" --json
"$probe" json "$work/out" tensors.3.bytes >/dev/null || problem "no bytes"

text_model "$work/text"
succeeds inspect "$work/text" --json
equal "tokens" "$("$probe" json "$work/out" tokenizer.tokens)" 259
equal "template" "$("$probe" json "$work/out" chat_template | head -1 | cut -c1-30)" '{% for message in messages %}{'

# Data: alone, its rows and fields; with a model, what trains between the marks.
chat_rows 24 >"$work/chat.jsonl"
succeeds inspect "$work/chat.jsonl" --json
equal "rows" "$("$probe" json "$work/out" rows)" 24
equal "fields" "$("$probe" json "$work/out" fields)" '["messages"]'
succeeds inspect "$work/chat.jsonl" --model "$work/text"
says out '^type +chat_template' '【0 it is<\|im_end\|>】'
succeeds inspect "$work/chat.jsonl" --model "$work/text" --json --rows 2
equal "kept" "$("$probe" json "$work/out" kept)" 24
checks=$((checks + 1))
"$probe" json "$work/out" shown.1 >/dev/null || problem "--rows 2 shows fewer"
"$probe" json "$work/out" shown.2 >/dev/null 2>&1 && problem "--rows 2 shows more"

# plan: a table for people, one JSON object for scripts; nothing is trained or written.
token_config "$work/config.yml" "output_dir: $work/never"
succeeds plan "$work/config.yml"
says out 'MiB|bytes'
succeeds plan "$work/config.yml" --json
cp "$work/out" "$work/plan.json"
equal "rows" "$("$probe" json "$work/plan.json" rows)" 12
equal "steps" "$("$probe" json "$work/plan.json" steps)" 6
# LoRA of rank 4 on 7 linears of 2 layers: 4 * (in + out) each.
equal "trainable parameters" "$("$probe" json "$work/plan.json" trainable_parameters)" \
  $((2 * 4 * ((64 + 64) * 2 + (64 + 32) * 2 + (64 + 128) * 3)))
equal "the categories add up" "$("$probe" json "$work/plan.json" categories | tr -cs "0-9" "\n" | sum)" \
  "$("$probe" json "$work/plan.json" peak_bytes)"
succeeds plan "$work/config.yml" --json --set sequence_len=64
checks=$((checks + 1))
[ "$("$probe" json "$work/out" peak_bytes)" -gt "$("$probe" json "$work/plan.json" peak_bytes)" ] ||
  problem "longer rows do not cost memory"
absent "$work/never"

# Without the data, the same bytes, with evaluation's.
for settings in "" "--set val_set_size=0.25" "--set sequence_len=64"; do
  succeeds plan "$work/config.yml" --json $settings
  peak=$("$probe" json "$work/out" peak_bytes)
  sed "s|$work/rows.jsonl|$work/none.jsonl|" "$work/config.yml" >"$work/dataless.yml"
  succeeds plan "$work/dataless.yml" --json --without-data $settings
  equal "planned without the data, $settings" "$("$probe" json "$work/out" peak_bytes)" "$peak"
  equal "rows" "$("$probe" json "$work/out" rows)" 0
done
succeeds plan "$work/dataless.yml" --without-data
says out '^data +not read$'
refuses 1 'none.jsonl' -- plan "$work/dataless.yml"

# The recipes, on the card that they are for.
for recipe in 70b-24gb 8b-long-context; do
  succeeds plan configs/$recipe.yml --without-data --device rtx-4090 --json
  equal "$recipe fits" "$("$probe" json "$work/out" fits)" true
done

# What the plan says is what the run takes, to the byte.
succeeds train "$work/config.yml" --set output_dir="$work/trained"
equal "planned and real memory" "$("$probe" jsonl "$work/trained/metrics.jsonl" memory_bytes | tail -1)" \
  "$("$probe" json "$work/plan.json" peak_bytes)"

# A card that is not here: its arithmetic, its ways to multiply, its memory.
printf 'base_model: configs/models/llama-3-8b.json\nadapter: qlora\nlora_r: 16\nlora_target_linear: true\nsequence_len: 2048\n' >"$work/8b.yml"
printf 'datasets: [{path: %s/long.jsonl, type: tokens}]\nlearning_rate: 1e-4\nmax_steps: 2\n' "$work" >>"$work/8b.yml"
printf 'optimizer: adamw_8bit\ngradient_checkpointing: true\n' >>"$work/8b.yml"
printf '{"input_ids": [%s]}\n' "$(seq -s, 3 2050)" >"$work/long.jsonl"
succeeds plan "$work/8b.yml" --device rtx-4090
says out '^device +NVIDIA GeForce RTX 4090 \(compute capability 8.9\)' '^products +forward +4096 x 4096 ' 'arithmetic bf16' 'of 24564 MiB$' \
  "^ +1259\.9 MiB  the driver's own share, beside them$"
succeeds plan "$work/8b.yml" --device rtx-4090 --json
equal "the arena's and the driver's memory" $(($("$probe" json "$work/out" available_bytes) + $("$probe" json "$work/out" driver_bytes))) $((24564 << 20))
# Within a budget the context's share counts, not what the driver keeps from every program.
succeeds plan "$work/8b.yml" --device rtx-4090 --set memory_budget=12GiB --json
equal "the driver's share of a budget" "$("$probe" json "$work/out" driver_bytes)" $((768 << 20))
equal "the arena's share of a budget" "$("$probe" json "$work/out" available_bytes)" $(((12288 - 768) << 20))
succeeds plan "$work/8b.yml" --device h200 --json
peak=$("$probe" json "$work/out" peak_bytes)
# 6.78 GiB are the weights, states and activations that cannot be done without; a matrix in bf16 twice over comes on top.
[ "$peak" -gt 6500000000 ] && [ "$peak" -lt 7462000000 ] || problem "8B with 2,048 tokens needs $peak bytes on an H200"
# Paged, masters and moments leave the card, and what they pass through adds nothing to the peak: 160 + 81 MiB less.
succeeds plan "$work/8b.yml" --device rtx-4090 --json
resident=$("$probe" json "$work/out" peak_bytes)
succeeds plan "$work/8b.yml" --device rtx-4090 --set optimizer=paged_adamw_8bit --set resident_optimizer_bytes=0 --json
paged=$("$probe" json "$work/out" peak_bytes) pinned=$("$probe" json "$work/out" pinned_bytes)
[ $((resident - paged)) -ge 252000000 ] || problem "paging saves $((resident - paged)) bytes alone"
[ $((pinned - (resident - paged))) -le 1048576 ] || problem "$pinned bytes of host memory for $((resident - paged)) of the card's"
[ "$paged" -le 7194070220 ] || problem "8B with 2,048 tokens, paged, needs $paged bytes" # 6.7 GiB
succeeds plan "$work/8b.yml" --device rtx-4090 --set optimizer=paged_adamw_8bit --set resident_optimizer_bytes=100MiB --json
checks=$((checks + 1))
[ "$("$probe" json "$work/out" pinned_bytes)" -gt $((pinned - 104857600)) ] || problem "more than 100 MiB stay resident"
[ "$("$probe" json "$work/out" pinned_bytes)" -lt $((pinned - 104000000)) ] || problem "less than 100 MiB stay resident"
refuses 2 'rtx-4091' 'rtx-4090' -- plan "$work/8b.yml" --device rtx-4091
refuses 2 'bf16: false' 'device: cpu' -- plan "$work/8b.yml" --device rtx-4090 --set bf16=false

# A budget decides what the blocks keep; one that is too small is said before anything is taken.
succeeds plan "$work/8b.yml" --device h200 --set gradient_checkpointing=auto --set memory_budget=9GB
says out '^recompute +[0-9]+ of 32 blocks' 'of 8583 MiB within memory_budget$'
succeeds plan "$work/8b.yml" --device h200 --set gradient_checkpointing=auto --set memory_budget=16GiB
grep -q '^recompute' "$work/out" && problem "16 GiB do not keep all of 8B with 2,048 tokens"
succeeds plan "$work/8b.yml" --device h200 --set memory_budget=5GB --set resident_layers=32
says out 'does not fit'
succeeds plan "$work/8b.yml" --device h200 --set memory_budget=5GB
says out '^memory +3[0-9]{3}\.[0-9] MiB at the peak, of 4768 MiB within memory_budget$' 'MiB  of pinned host memory' \
  '^note: resident_layers: the weights of [0-9]+ of 32 blocks stand in pinned host memory; .* over the link: '
grep -q 'does not fit' "$work/out" && problem "8B with streamed layers does not fit into 5 GB"
succeeds plan "$work/8b.yml" --device h200 --set memory_budget=2GB
says out 'does not fit'
refuses 2 'resident_layers' 'whole number, or auto' -- plan "$work/8b.yml" --device h200 --set resident_layers=most
refuses 2 'memory_budget' '24GB' -- plan "$work/8b.yml" --device h200 --set memory_budget=lots
refuses 2 'memory_budget' '24GB' -- plan "$work/8b.yml" --device h200 --set memory_budget=0
sed -e "s|configs/models/llama-3-8b.json|$models/llama|" -e "s|long.jsonl|short.jsonl|" "$work/8b.yml" >"$work/small.yml"
printf '{"input_ids": [%s]}\n' "$(seq -s, 3 40)" >"$work/short.jsonl"
refuses 1 'within memory_budget, this needs' -- train "$work/small.yml" --set memory_budget=64kB --set output_dir="$work/small"

# The most that fits, and what does not fit at all.
succeeds plan "$work/8b.yml" --device rtx-4090 --longest-context --largest-batch
says out '^sequence_len: [0-9]{5,6} with micro_batch_size: 1: .* of 24564 MiB on NVIDIA GeForce RTX 4090' '^sequence_len: 2048 with micro_batch_size: [0-9]{2,3}: '
longest=$(sed -n 's/^sequence_len: \([0-9]*\) with micro_batch_size: 1: .*/\1/p' "$work/out")
printf '{"input_ids": [%s]}\n' "$(seq -s, 3 2050)" >"$work/long.jsonl"
succeeds plan "$work/8b.yml" --device rtx-4090 --json --set sequence_len="$longest"
equal "the longest fits" "$("$probe" json "$work/out" fits)" true
succeeds plan "$work/8b.yml" --device rtx-4090 --json --set sequence_len=$((longest + 256))
equal "a tile more does not" "$("$probe" json "$work/out" fits)" false
refuses 1 'too few' -- plan "$work/8b.yml" --device rtx-4090 --longest-context --set memory_budget=4GB --set resident_layers=32
succeeds plan "$work/8b.yml" --device rtx-4090 --longest-context --set memory_budget=5GB
says out '^sequence_len: [0-9]{4,5} with .* of 4768 MiB on .* MiB of pinned host memory'

finish
