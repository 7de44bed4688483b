#!/usr/bin/env bash
# evaluate: the loss is the reference's, the report has a row a row, sums add up, base types agree with each other.
. "$(dirname "$0")/common.sh"

# The base model's loss as transformers gives it, and with the adapter of three steps.
for family in llama qwen3 mistral; do
  "$probe" rows "$models/$family/reference.safetensors" >"$work/reference.jsonl"
  succeeds evaluate "$models/$family" --data "$work/reference.jsonl" $fp32 --report "$work/report.json"
  close "$family: loss" "$("$probe" json "$work/report.json" loss)" \
    "$("$probe" tensor "$models/$family/reference.safetensors" base.loss)" 2e-5
done

# What it prints is what it reports; stdout holds that line alone.
says out '^loss [0-9.]+  perplexity [0-9.]+  tokens [0-9]+$'
equal "lines on stdout" "$(wc -l <"$work/out")" 1
close "printed loss" "$(awk '{ print $2 }' "$work/out")" "$("$probe" json "$work/report.json" loss)" 1e-6
close "perplexity" "$("$probe" json "$work/report.json" perplexity)" \
  "$(awk -v loss="$("$probe" json "$work/report.json" loss)" 'BEGIN { printf "%.9f", exp(loss) }')" 1e-3

# Rows in the file's order; rows that cannot be used keep their places with 0 tokens.
{
  token_rows 3
  echo '{"input_ids": [3,4,5,6], "labels": [-100,-100,-100,-100]}'
  token_rows 24 | tail -21
  ids=$(seq -s, 3 22)
  echo "{\"input_ids\": [$ids], \"labels\": [$ids]}"
} >"$work/mixed.jsonl"
run evaluate "$models/llama" --data "$work/mixed.jsonl" $fp32 --set sequence_len=16 --report "$work/mixed.json"
equal "exit status" "$status" 0
says err '^warning: .*mixed.jsonl'
tokens() { "$probe" json "$1" "rows.$2.tokens"; }
loss_sum() { "$probe" json "$1" "rows.$2.loss_sum"; }
equal "a row without an answer" "$(tokens "$work/mixed.json" 3) $(loss_sum "$work/mixed.json" 3)" "0 0"
equal "a row longer than sequence_len" "$(tokens "$work/mixed.json" 25) $(loss_sum "$work/mixed.json" 25)" "0 0"
checks=$((checks + 1))
"$probe" json "$work/mixed.json" rows.26 >/dev/null 2>&1 && problem "the report has more rows than the file"
total=0 losses=0
for row in $(seq 0 25); do
  total=$((total + $(tokens "$work/mixed.json" $row)))
  losses="$losses + $(loss_sum "$work/mixed.json" $row)"
done
equal "tokens add up" "$total" "$("$probe" json "$work/mixed.json" tokens)"
close "losses add up" "$(awk "BEGIN { printf \"%.12f\", ($losses) / $total }")" "$("$probe" json "$work/mixed.json" loss)" 1e-9
# A row of 5 tokens of which the first two do not train has 3; the shift costs none of them.
equal "trained tokens of row 0" "$(tokens "$work/mixed.json" 0)" 3

# A row's loss depends on the row alone: not on its neighbours, nor on the number of threads.
token_rows 2 | tail -1 >"$work/one.jsonl"
succeeds evaluate "$models/llama" --data "$work/one.jsonl" $fp32 --report "$work/one.json"
equal "row 1 alone" "$(loss_sum "$work/one.json" 0)" "$(loss_sum "$work/mixed.json" 1)"
succeeds evaluate "$models/llama" --data "$work/one.jsonl" $fp32 --set threads=1 --report "$work/one-thread.json"
equal "one thread" "$(cat "$work/one-thread.json")" "$(cat "$work/one.json")"

# A report to stdout stands before the loss, into a file as into a pipe; the link (as /dev/stdout is one) stays a link.
ln -s /proc/self/fd/1 "$work/stdout"
succeeds evaluate "$models/llama" --data "$work/one.jsonl" $fp32
line=$(cat "$work/out")
succeeds evaluate "$models/llama" --data "$work/one.jsonl" $fp32 --report "$work/stdout"
equal "report and loss in a file" "$(cat "$work/out")" "$(cat "$work/one.json")
$line"
equal "report and loss in a pipe" "$("$nibble" evaluate "$models/llama" --data "$work/one.jsonl" $fp32 --report "$work/stdout" 2>"$work/err" | cat)" \
  "$(cat "$work/one.json")
$line"
checks=$((checks + 1))
[ -L "$work/stdout" ] || problem "the link to stdout was replaced"

# The same rows as a JSON array and gzipped.
{ printf '['; paste -sd, "$work/one.jsonl"; printf ']'; } >"$work/one-array.json"
succeeds evaluate "$models/llama" --data "$work/one-array.json" $fp32 --report "$work/array-report.json"
equal "a JSON array" "$(cat "$work/array-report.json")" "$(cat "$work/one.json")"
gzip -c "$work/one.jsonl" >"$work/one.jsonl.gz"
succeeds evaluate "$models/llama" --data "$work/one.jsonl.gz" $fp32 --report "$work/gzip-report.json"
equal "gzipped" "$(cat "$work/gzip-report.json")" "$(cat "$work/one.json")"

# NF4 made at load, the reference's NF4 folder and what quantize writes are one model.
token_rows 12 >"$work/rows.jsonl"
succeeds evaluate "$models/llama" --data "$work/rows.jsonl" --set bf16=false
nf4=$(cat "$work/out")
succeeds evaluate "$models/llama/bnb4" --data "$work/rows.jsonl" --set bf16=false
equal "the reference's 4-bit folder" "$(cat "$work/out")" "$nf4"
succeeds quantize "$models/llama" --output "$work/quantized"
equal "quantize prints no data" "$(wc -c <"$work/out")" 0
succeeds evaluate "$work/quantized" --data "$work/rows.jsonl" --set bf16=false
equal "what quantize writes" "$(cat "$work/out")" "$nf4"
succeeds evaluate "$models/llama" --data "$work/rows.jsonl" $fp32
checks=$((checks + 1))
[ "$(cat "$work/out")" != "$nf4" ] || problem "16-bit and 4-bit weights give the same loss"

# FP4, and scales in fp32.
succeeds quantize "$models/llama" --output "$work/fp4" --type fp4 --single
succeeds evaluate "$work/fp4" --data "$work/rows.jsonl" --set bf16=false
fp4=$(cat "$work/out")
succeeds evaluate "$models/llama" --data "$work/rows.jsonl" --set bf16=false --set bnb_4bit_quant_type=fp4 \
  --set bnb_4bit_use_double_quant=false
equal "fp4, single" "$(cat "$work/out")" "$fp4"
succeeds quantize "$models/llama" --output "$work/fp4-set" --set bnb_4bit_quant_type=fp4 --set bnb_4bit_use_double_quant=false \
  --set threads=1
equal "fp4, single, by keys" "$(cksum <"$work/fp4-set/model.safetensors")" "$(cksum <"$work/fp4/model.safetensors")"

# The same bytes as bitsandbytes writes, file for file.
exists "$work/quantized/config.json" "$work/quantized/model.safetensors"
"$probe" json "$work/quantized/config.json" quantization_config.quant_method >"$work/method"
equal "quant_method" "$(cat "$work/method")" bitsandbytes
for tensor in model.layers.0.self_attn.q_proj.weight model.layers.1.mlp.down_proj.weight.absmax lm_head.weight; do
  for folder in "$models/llama/bnb4" "$work/quantized"; do
    read -r offset bytes < <("$probe" place "$folder/model.safetensors" "$tensor")
    tail -c +$((offset + 1)) "$folder/model.safetensors" | head -c "$bytes" | cksum
  done >"$work/sums"
  equal "$tensor" "$(sed -n 1p "$work/sums")" "$(sed -n 2p "$work/sums")"
done

# An adapter changes the loss, and evaluate --adapter finds it.
"$probe" rows "$models/llama/reference.safetensors" >"$work/reference.jsonl"
succeeds evaluate "$models/llama" --data "$work/reference.jsonl" $fp32
base=$(awk '{ print $2 }' "$work/out")
run evaluate "$models/llama" --adapter "$models/llama/adapter_after_3_steps" --data "$work/reference.jsonl" $fp32
equal "exit status" "$status" 0
trained=$(awk '{ print $2 }' "$work/out")
awk -v a="$trained" -v b="$base" 'BEGIN { exit !(a < b) }' || problem "three steps do not lower the loss: $base -> $trained"

# A text longer than sequence_len is evaluated in pieces, and stays one row of the report; an empty one keeps its place.
text_model "$work/text"
printf '%s\n' '{"text": "a text that is longer than ten tokens"}' '{"text": ""}' '{"text": "short"}' >"$work/texts.jsonl"
run evaluate "$work/text" --data "$work/texts.jsonl" $fp32 --set sequence_len=10 --report "$work/texts.json"
equal "exit status" "$status" 0
absent_row=$("$probe" json "$work/texts.json" rows.3 2>/dev/null) && problem "pieces of a text are rows of the report: $absent_row"
equal "tokens of a text in four pieces" "$(tokens "$work/texts.json" 0)" 34
equal "tokens of an empty text" "$(tokens "$work/texts.json" 1)" 0
equal "tokens of a short text" "$(tokens "$work/texts.json" 2)" 5
equal "tokens add up" "$("$probe" json "$work/texts.json" tokens)" 39

finish
