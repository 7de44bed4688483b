#!/usr/bin/env bash
# Ctrl-C finishes the step, saves and exits 130; --resume goes on from there. One folder, one run.
. "$(dirname "$0")/common.sh"

token_config "$work/config.yml" "lr_scheduler: constant" "max_steps: 1000000" "save_steps: 1000000" "output_dir: $work/run"

"$nibble" train "$work/config.yml" >"$work/train.out" 2>"$work/train.err" &
process=$!
for _ in $(seq 400); do
  [ -f "$work/run/metrics.jsonl" ] && [ "$(wc -l <"$work/run/metrics.jsonl")" -ge 3 ] && break
  sleep 0.05
done

# While it trains, nobody else may write there.
before=$(find "$work/run" -mindepth 1 -maxdepth 1 | sort)
refuses 2 "$work/run" 'another|already' -- train "$work/config.yml"
refuses 2 "$work/run" 'another' -- train "$work/config.yml" --resume
equal "the folder is left alone" "$(find "$work/run" -mindepth 1 -maxdepth 1 | sort)" "$before"

checks=$((checks + 1))
kill -INT $process
wait $process
equal "exit status" $? 130
grep -q '^error: ' "$work/train.err" && problem "an interruption is no error: $(grep '^error: ' "$work/train.err")"
equal "stdout" "$(wc -c <"$work/train.out")" 0
done_steps=$("$probe" jsonl "$work/run/metrics.jsonl" step | tail -1)
exists "$work/run/checkpoint-$done_steps/trainer_state.json"
absent "$work/run/adapter_model.safetensors"
equal "no leftovers" "$(find "$work/run" -name '*.tmp*' | wc -l)" 0

# Going on to three steps more, and never past a step twice.
succeeds train "$work/config.yml" --resume --set max_steps=$((done_steps + 3))
equal "steps once each" "$("$probe" jsonl "$work/run/metrics.jsonl" step | cksum)" "$(seq $((done_steps + 3)) | cksum)"
exists "$work/run/adapter_model.safetensors"

# The uninterrupted run ends with the same adapter.
succeeds train "$work/config.yml" --set max_steps=$((done_steps + 3)) --set output_dir="$work/whole"
equal "the same adapter" "$(cksum <"$work/run/adapter_model.safetensors")" "$(cksum <"$work/whole/adapter_model.safetensors")"

# A resume that does not fit the run is refused: another rank, another seed; so is a folder that is no checkpoint.
watched=$work/run
refuses 2 'lora_r' -- train "$work/config.yml" --resume --set lora_r=8
refuses 2 'seed' -- train "$work/config.yml" --resume --set seed=1
refuses 1 "$work/nothing" -- train "$work/config.yml" --resume "$work/nothing"
watched=

# A damaged newest checkpoint is passed over, with a warning, for the one before it.
token_config "$work/two.yml" "num_epochs: 2" "output_dir: $work/two"
succeeds train "$work/two.yml"
adapter=$(cksum <"$work/two/adapter_model.safetensors")
rm "$work/two/adapter_model.safetensors"
"$probe" patch "$work/two/checkpoint-12/optimizer.safetensors" 3000 ffffffff
run train "$work/two.yml" --resume
equal "exit status" "$status" 0
says err '^warning: .*checkpoint-12'
equal "the same adapter" "$(cksum <"$work/two/adapter_model.safetensors")" "$adapter"
# All damaged: an error, and nothing trained.
"$probe" patch "$work/two/checkpoint-6/optimizer.safetensors" 3000 ffffffff
"$probe" patch "$work/two/checkpoint-12/optimizer.safetensors" 3000 ffffffff
run train "$work/two.yml" --resume
equal "all damaged" "$status $(grep -c '^error: ' "$work/err")" "1 1"

finish
