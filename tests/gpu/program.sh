#!/usr/bin/env bash
# The program on a GPU, here the emulated one: which device it takes and says, what it refuses, its benchmarks, and the table they write.
. tests/end_to_end/common.sh

export XDG_CONFIG_HOME=$work/configuration
cat >"$work/config.yml" <<END
base_model: $models/llama
adapter: qlora
lora_r: 8
lora_target_linear: true
datasets: [{path: $work/rows.jsonl, type: tokens}]
learning_rate: 1e-3
lr_scheduler: constant
sequence_len: 40
micro_batch_size: 2
max_steps: 2
save_steps: 1
val_set_size: 2
output_dir: $work/run
END
for row in 1 2 3 4 5 6; do
  printf '{"input_ids": [%s]}\n' "$(seq -s, $((row + 3)) 3 $((row + 3 + 3 * (12 + row))))"
done >"$work/rows.jsonl"

# device: auto is the GPU, and the plan says how it will multiply.
succeeds plan "$work/config.yml"
says out '^device +emulated GPU \(compute capability 8\.9\)' '^products +forward +64 x 64 (fused|scratch)' '^ +backward 64 x 128 '
succeeds plan "$work/config.yml" --json
equal "device" "$("$probe" json "$work/out" device)" 'emulated GPU'
"$probe" json "$work/out" products.0.path >/dev/null || problem "the plan's JSON names no products"
planned=$("$probe" json "$work/out" peak_bytes)

# A run, its checkpoint's record, and the same bytes when it is cut in two.
succeeds train "$work/config.yml"
says err 'emulated GPU' 'step 2/2'
grep -q "\"memory_bytes\":$planned" "$work/run/metrics.jsonl" || problem "the run's peak is not the $planned bytes that were planned"
equal "recorded device" "$("$probe" json "$work/run/checkpoint-2/products.json" device)" 'emulated GPU'
"$probe" json "$work/run/checkpoint-2/products.json" products.0.path >/dev/null || problem "the checkpoint records no products"
succeeds train "$work/config.yml" --set output_dir="$work/cut" --set max_steps=1
succeeds train "$work/config.yml" --set output_dir="$work/cut" --resume
cmp "$work/run/adapter_model.safetensors" "$work/cut/adapter_model.safetensors" || problem "a resumed run leaves another adapter"

# Its adapter on both devices.
succeeds evaluate "$models/llama" --adapter "$work/run" --data "$work/rows.jsonl" --set sequence_len=64
gpu=$(grep -oE '[0-9]+\.[0-9]+' "$work/out" | head -1)
succeeds evaluate "$models/llama" --adapter "$work/run" --data "$work/rows.jsonl" --set sequence_len=64 --set device=cpu --set bf16=true
cpu=$(grep -oE '[0-9]+\.[0-9]+' "$work/out" | head -1)
awk -v a="$gpu" -v b="$cpu" 'BEGIN { d = a - b; exit !(a > 0 && d < 0.005 && d > -0.005) }' ||
  problem "loss $gpu on the GPU, $cpu on the CPU"
succeeds generate "$models/llama" --adapter "$work/run" --token-ids 5,6,7 --max-tokens 6 --ignore-eos
[ "$(wc -w <"$work/out")" -ge 1 ] || problem "nothing was generated"

# The same answer wherever the embedding lies, with either head: its one-token work is recorded too.
for head in false true; do
  for place in device host; do
    succeeds generate "$models/llama" --token-ids 5,6,7 --max-tokens 8 --ignore-eos --set head_4bit=$head --set embedding_device=$place
    mv "$work/out" "$work/answer-$place"
  done
  cmp "$work/answer-device" "$work/answer-host" || problem "head_4bit: $head: another answer with the embedding on the host"
done

# What it refuses.
refuses 2 'bf16: false' 'device: cpu' -- plan "$work/config.yml" --set device=cuda --set bf16=false
succeeds plan "$work/config.yml" --set bf16=false
says out '^device +.*threads'

# Benchmarks, and the table that later runs follow.
for what in attention matmul; do
  succeeds bench $what --device cuda --quick --json
  equal "$what's device" "$("$probe" json "$work/out" device)" 'emulated GPU'
done
for way in fused scratch overlapped bf16; do
  grep -q "\"path\": \"$way\"" "$work/out" || problem "matmul does not measure $way"
done
succeeds bench step --device cuda --quick --json --model "$models/llama/config.json" --recompute auto
equal "the step's peak" "$("$probe" json "$work/out" results.0.peak_bytes)" "$("$probe" json "$work/out" results.0.planned_bytes)"
succeeds bench generate --device cuda --quick --json --model "$models/llama/config.json"
succeeds bench matmul --device cuda --quick --json --write
table=$(echo "$XDG_CONFIG_HOME"/nibble/products-emulated-GPU-*.json)
[ -f "$table" ] || problem "no table was written to $XDG_CONFIG_HOME/nibble"
sed -i 's/"path": "[a-z]*"/"path": "overlapped"/' "$table"
succeeds plan "$work/config.yml"
says out '^products +forward +64 x 64 overlapped' 'dequantized once|^device'
echo '{"device": 3' >"$table"
refuses 1 'products-emulated-GPU' 'not JSON' -- plan "$work/config.yml"

finish
