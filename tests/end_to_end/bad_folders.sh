#!/usr/bin/env bash
# Output that cannot be written: in the way, forbidden, no room; and a loss that is not a number. Nothing is left half-written.
. "$(dirname "$0")/common.sh"

config=$work/config.yml
token_config "$config"

# A file where a folder should be.
watched=$work/watched
mkdir "$watched"
echo "not a folder" >"$watched/file"
refuses 1 "$watched/file" 'Not a directory|not a folder' -- train "$config" --set output_dir="$watched/file"
refuses 1 "$watched/file" 'Not a directory|not a folder' -- train "$config" --set output_dir="$watched/file/run"
refuses '[12]' "$watched/file" -- quantize "$models/llama" --output "$watched/file"
token_rows 4 >"$work/rows.jsonl"
refuses 1 "$watched/file/report.json" -- evaluate "$models/llama" --data "$work/rows.jsonl" $fp32 --report "$watched/file/report.json"

# quantize never writes into a folder that holds something.
mkdir "$watched/folder"
echo precious >"$watched/folder/config.json"
refuses '[12]' "$watched/folder" 'exist' -- quantize "$models/llama" --output "$watched/folder"
mkdir "$work/empty"
succeeds quantize "$models/llama" --output "$work/empty/"
exists "$work/empty/model.safetensors"
refuses 2 'type' 'nf5' 'nf4' -- quantize "$models/llama" --output "$watched/new" --type nf5
refuses 2 'output' -- quantize "$models/llama"
absent "$watched/new"

# No permission. Root may write anywhere, so root steps down for it.
forbidden=$work/forbidden
mkdir "$forbidden"
chmod 755 "$work"
cp -r "$models/llama" "$work/readable" # the checkout may be closed to others
chmod -R a+rX "$work/readable"
chmod 555 "$forbidden"
as=()
[ "$(id -u)" -ne 0 ] || as=(setpriv --reuid=65534 --regid=65534 --clear-groups)
if "${as[@]}" "$nibble" --version >/dev/null 2>&1; then
  program=$nibble
  printf '#!/bin/sh\nexec %s "%s" "$@"\n' "${as[*]}" "$program" >"$work/nobody"
  chmod 755 "$work/nobody"
  nibble=$work/nobody watched=$forbidden
  refuses 1 "$forbidden" 'Permission denied' -- train "$config" --set output_dir="$forbidden/run"
  refuses 1 "$forbidden" 'Permission denied' 'output_dir' -- train "$config" --set output_dir="$forbidden"
  refuses 1 "$forbidden" 'Permission denied' -- quantize "$work/readable" --output "$forbidden/quantized"
  refuses 1 "$forbidden" 'Permission denied' -- evaluate "$work/readable" --data "$work/rows.jsonl" $fp32 --report "$forbidden/report.json"
  nibble=$program
else
  echo "the checks of permissions are left out: the program cannot be run as another user here"
fi

# No room: files may not grow past 8 KiB. (The signal that would end the process is ignored, as on a disk that is full there is none.)
full=$work/full
mkdir "$full"
printf '#!/bin/bash\ntrap "" XFSZ\nulimit -f 8\nexec "%s" "$@"\n' "$nibble" >"$work/no_room"
chmod +x "$work/no_room"
program=$nibble
nibble=$work/no_room
watched=$full
refuses 1 "$full/quantized" 'File too large|No space' -- quantize "$models/llama" --output "$full/quantized"
watched=
refuses 1 "$full/run" 'File too large|No space' -- train "$config" --set output_dir="$full/run"
nibble=$program
equal "nothing half-written" "$(find "$full/run" -name '*.tmp*' -o -name 'adapter_*' -o -name 'checkpoint-*')" ""
# With room again the same command with --resume does it.
succeeds train "$config" --set output_dir="$full/run" --resume
exists "$full/run/adapter_model.safetensors"

# A report cut short by a full disk must not look complete.
checks=$((checks + 1))
"$nibble" evaluate "$models/llama" --data "$work/rows.jsonl" $fp32 >/dev/full 2>"$work/err"
equal "stdout full" "$? $(grep -c '^error: .*standard output' "$work/err")" "1 1"

# A loss that is not finite: stops, names step and rows, keeps the last good checkpoint and no adapter.
token_config "$config" "learning_rate: 100" "weight_decay: 1000" "max_grad_norm: 0" "lr_scheduler: constant" "max_steps: 40" \
  "save_steps: 1" "save_total_limit: 0" "adam_epsilon: 1e-8" "output_dir: $work/diverged"
sed -i '/^learning_rate: 1e-3/d' "$config"
run train "$config"
equal "exit status" "$status" 1
equal "one error" "$(grep -c '^error: ' "$work/err")" 1
says err '^error: .*step [0-9]+.*(not finite|NaN|inf)' '^error: .*rows\.jsonl' '^error: .*learning_rate'
step=$(sed -n 's/^error: .*step \([0-9]*\).*/\1/p' "$work/err")
exists "$work/diverged/checkpoint-$((step - 1))/trainer_state.json"
absent "$work/diverged/checkpoint-$step" "$work/diverged/adapter_model.safetensors"
equal "no leftovers" "$(find "$work/diverged" -name '*.tmp*' | wc -l)" 0
equal "metrics end before it" "$("$probe" jsonl "$work/diverged/metrics.jsonl" step | tail -1)" $((step - 1))

# The same in evaluate, from an adapter that overflows: the row is named.
run evaluate "$models/llama" --data "$work/rows.jsonl" --adapter "$work/diverged/checkpoint-$((step - 1))" --set bf16=false \
  --report "$work/diverged.json"
equal "exit status" "$status" 1
says err '^error: .*(row|line).*(not finite|finite)'
absent "$work/diverged.json"

finish
