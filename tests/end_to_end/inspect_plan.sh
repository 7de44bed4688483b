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

# What the plan says is what the run takes, to the byte.
succeeds train "$work/config.yml" --set output_dir="$work/trained"
equal "planned and real memory" "$("$probe" jsonl "$work/trained/metrics.jsonl" memory_bytes | tail -1)" \
  "$("$probe" json "$work/plan.json" peak_bytes)"

finish
