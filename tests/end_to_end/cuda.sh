#!/usr/bin/env bash
# cuda: the program on a GPU that is emulated: training as on the CPU, resuming, generating, and what it says where that cannot be.
. "$(dirname "$0")/common.sh"

# losses RUN: of its steps, one a line.
losses() {
  grep -v eval_loss "$1/metrics.jsonl" >"$1.jsonl"
  "$probe" jsonl "$1.jsonl" loss
}

run --version
says out 'GPU: emulated GPU, compute capability 8.9'

# The same six steps on both devices, in bf16.
token_config "$work/config.yml" "num_epochs: 1" "lora_dropout: 0.1" "save_steps: 3"
gpu="--set bf16=true --set device=cuda"
succeeds train "$work/config.yml" --set output_dir="$work/cpu" --set bf16=true --set device=cpu
succeeds train "$work/config.yml" --set output_dir="$work/cuda" $gpu
says err 'emulated GPU'
equal "steps" "$(losses "$work/cuda" | wc -l)" 6
paste <(losses "$work/cpu") <(losses "$work/cuda") >"$work/both"
while read -r cpu cuda; do close "a step's loss" "$cuda" "$cpu" 5e-3; done <"$work/both"

# Again: the same bytes. Without the library: within the tolerance. By auto: the same device.
adapter=$(cksum <"$work/cuda/adapter_model.safetensors")
succeeds train "$work/config.yml" --set output_dir="$work/again" $gpu
equal "again, the same adapter" "$(cksum <"$work/again/adapter_model.safetensors")" "$adapter"
succeeds train "$work/config.yml" --set output_dir="$work/auto" --set bf16=true --set device=auto
equal "by auto, the same adapter" "$(cksum <"$work/auto/adapter_model.safetensors")" "$adapter"
succeeds train "$work/config.yml" --set output_dir="$work/kept" $gpu --set gradient_checkpointing=true
equal "with recomputation, the same adapter" "$(cksum <"$work/kept/adapter_model.safetensors")" "$adapter"

# Killed once it has saved, and resumed: the same bytes.
"$nibble" train "$work/config.yml" --set output_dir="$work/killed" $gpu >"$work/out" 2>"$work/err" </dev/null &
training=$!
while kill -0 "$training" 2>/dev/null && [ ! -e "$work/killed/checkpoint-3" ]; do :; done
kill -KILL "$training" 2>/dev/null
wait "$training" 2>/dev/null
exists "$work/killed/checkpoint-3"
absent "$work/killed/adapter_model.safetensors"
succeeds train "$work/config.yml" --set output_dir="$work/killed" $gpu --resume
equal "resumed, the same adapter" "$(cksum <"$work/killed/adapter_model.safetensors")" "$adapter"

# evaluate and generate on both.
succeeds evaluate "$models/llama" --adapter "$work/cuda" --data "$work/rows.jsonl" $gpu --report "$work/gpu.json"
succeeds evaluate "$models/llama" --adapter "$work/cuda" --data "$work/rows.jsonl" --set bf16=true --set device=cpu --report "$work/cpu.json"
close "the losses" "$("$probe" json "$work/gpu.json" loss)" "$("$probe" json "$work/cpu.json" loss)" 5e-3

greedy=$("$probe" tensor "$models/llama/reference.safetensors" base.greedy)
prompt=$(cut -d, -f1-8 <<<"$greedy")
generate() { succeeds generate "$models/llama" --token-ids "$prompt" --max-tokens 12 --ignore-eos --set load_in_4bit="$1" --set bf16=true --set device="$2"; }
for four_bit in false true; do
  generate "$four_bit" cpu
  cp "$work/out" "$work/cpu.txt"
  generate "$four_bit" cuda
  equal "12 tokens, 4 bits: $four_bit" "$(cat "$work/out")" "$(cat "$work/cpu.txt")"
done

refuses '[12]' 'bf16' 'cuda|GPU|device' -- train "$work/config.yml" --set output_dir="$work/fp32" --set bf16=false --set device=cuda
finish
