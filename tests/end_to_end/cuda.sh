#!/usr/bin/env bash
# cuda: training and generating on the emulated GPU beside the CPU, the same bytes on every run, and after a kill.
. "$(dirname "$0")/common.sh"

# losses RUN: of its steps, one a line.
losses() {
  grep -v eval_loss "$1/metrics.jsonl" >"$1.jsonl"
  "$probe" jsonl "$1.jsonl" loss
}

# The same six steps on both devices.
token_config "$work/config.yml" "num_epochs: 1" "lora_dropout: 0.1" "save_steps: 3"
gpu="--set bf16=true --set device=cuda"
succeeds train "$work/config.yml" --set output_dir="$work/cpu" --set bf16=true --set device=cpu
succeeds train "$work/config.yml" --set output_dir="$work/cuda" $gpu
equal "steps" "$(losses "$work/cuda" | wc -l)" 6
paste <(losses "$work/cpu") <(losses "$work/cuda") >"$work/both"
while read -r cpu cuda; do close "a step's loss" "$cuda" "$cpu" 5e-3; done <"$work/both"

# A plan leaves the driver its share: 256 MiB and 4 for each of the emulated GPU's 4 multiprocessors. Once the GPU is open, so does the run.
succeeds plan "$work/config.yml" $gpu --set memory_budget=320MiB --json
equal "the driver's share" "$("$probe" json "$work/out" driver_bytes)" $((272 << 20))
equal "the arena's share" "$("$probe" json "$work/out" available_bytes)" $((48 << 20))
succeeds train "$work/config.yml" --set output_dir="$work/budget" $gpu --set memory_budget=320MiB
says err "^ +2[0-9]{2}\.[0-9] MiB  the driver's own share, beside them$"
refuses 1 'within memory_budget, this needs' -- train "$work/config.yml" --set output_dir="$work/none" $gpu --set memory_budget=256MiB

adapter=$(cksum <"$work/cuda/adapter_model.safetensors")
succeeds train "$work/config.yml" --set output_dir="$work/again" $gpu
equal "again, the same adapter" "$(cksum <"$work/again/adapter_model.safetensors")" "$adapter"

# Killed once it has saved, and resumed.
"$nibble" train "$work/config.yml" --set output_dir="$work/killed" $gpu >"$work/out" 2>"$work/err" </dev/null &
training=$!
while kill -0 "$training" 2>/dev/null && [ ! -e "$work/killed/checkpoint-3" ]; do :; done
kill -KILL "$training" 2>/dev/null
wait "$training" 2>/dev/null
exists "$work/killed/checkpoint-3"
absent "$work/killed/adapter_model.safetensors"
succeeds train "$work/config.yml" --set output_dir="$work/killed" $gpu --resume
equal "resumed, the same adapter" "$(cksum <"$work/killed/adapter_model.safetensors")" "$adapter"

# Greedy answers.
greedy=$("$probe" tensor "$models/llama/reference.safetensors" base.greedy)
prompt=$(cut -d, -f1-8 <<<"$greedy")
answer() {
  succeeds generate "$models/llama" --token-ids "$prompt" --max-tokens 12 --ignore-eos --set load_in_4bit="$1" --set bf16=true --set device="$2"
  cat "$work/out"
}
for four_bit in false true; do
  answer "$four_bit" cpu >"$work/said"
  equal "12 tokens, 4 bits: $four_bit" "$(answer "$four_bit" cuda)" "$(cat "$work/said")"
done

finish
