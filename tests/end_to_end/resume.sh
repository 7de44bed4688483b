#!/usr/bin/env bash
# Kills the program with SIGKILL at random moments, at least 20 of them, some while it writes a checkpoint, and goes on with --resume
# each time: the adapter's bytes and the metrics are those of a run that nobody touched. The killed run pages its masters and moments,
# each time more or less of them, and goes on each time with other things kept elsewhere and in other pieces; the other run keeps all on
# the device. (Where exactly in a step a kill lands is tests/parity/test_killed.c's.)
. "${0%/*}/common.sh"
kills_wanted=24

token_rows 40 >"$work/rows.jsonl"
config() {
  cat <<YAML
base_model: $models/llama
adapter: qlora
datasets: [{path: $work/rows.jsonl, type: tokens}]
val_set_size: 6
sequence_len: 32
sample_packing: true
micro_batch_size: 1
gradient_accumulation_steps: 2
max_steps: 60
learning_rate: 2e-3
lr_scheduler: cosine
warmup_steps: 4
optimizer: $2
lora_r: 40
lora_alpha: 16
lora_dropout: 0.1
lora_target_linear: true
bf16: false
threads: 1
seed: 7
eval_steps: 7
save_steps: 2
save_total_limit: 3
load_best_model_at_end: true
output_dir: $1
YAML
}
config "$work/whole" adamw_8bit >"$work/whole.yml"
config "$work/killed" paged_adamw_8bit >"$work/killed.yml"

# 0.000 to $1 milliseconds, as seconds.
random_seconds() { awk -v r="$RANDOM" -v most="$1" 'BEGIN { printf "%.4f", r / 32768 * most / 1000 }'; }

lines() { if [ -f "$work/killed/metrics.jsonl" ]; then wc -l <"$work/killed/metrics.jsonl"; else echo 0; fi; }

is_running() { kill -0 "$1" 2>/dev/null; }

is_writing() { compgen -G "$work/killed/checkpoint-*.tmp" >/dev/null; }

# Lets a run get one step further than it began, so that the rounds come to an end. ($2: the metrics' lines before it began.)
await_progress() {
  while is_running "$1" && [ "$(lines)" -le "$2" ]; do :; done
}

succeeds train "$work/whole.yml"
exists "$work/whole/adapter_model.safetensors"

kills=0 while_writing=0 round=0
elsewhere=(
  "--set gradient_checkpointing=true"
  "--set accumulation_order=layer_major --set loss_chunk_rows=256"
  "--set embedding_device=host --set pinned=false"
  "--set gradient_checkpointing=attention --set mlp_chunk_tokens=256"
  "--set accumulation_order=layer_major --set embedding_device=host"
)

# Starts or resumes the run and, until there were enough of them, kills it. Returns 1 when the run came to its own end.
run_round() {
  round=$((round + 1))
  # shellcheck disable=SC2086
  "$nibble" train "$work/killed.yml" --resume --set resident_optimizer_bytes=$((round % 3 * 200000)) \
    ${elsewhere[round % ${#elsewhere[@]}]} >"$work/out" 2>"$work/err" </dev/null &
  local run_id=$! before status
  before=$(lines)
  if ! is_enough; then
    case $((round % 3)) in
      0) sleep "$(random_seconds 120)" ;;                          # anywhere: in set-up, loading, resuming
      1) await_progress $run_id "$before"; sleep "$(random_seconds 30)" ;;  # in steps, evaluation, saving
      2) await_progress $run_id "$before"                          # while a checkpoint is written
         while is_running $run_id && ! is_writing; do :; done ;;
    esac
    if kill -KILL $run_id 2>/dev/null; then
      kills=$((kills + 1))
      if is_writing; then while_writing=$((while_writing + 1)); fi
    fi
  fi
  wait $run_id 2>/dev/null
  status=$?
  [ $status -ne 137 ] || return 0
  if [ $status -ne 0 ]; then
    command_line="nibble train killed.yml --resume (round $round)"
    problem "round $round ended with $status"
    show_output
  fi
  return 1
}

is_enough() { [ $kills -ge $kills_wanted ] && [ $while_writing -ge 1 ]; }

same_file() {
  checks=$((checks + 1))
  cmp "$work/whole/$1" "$work/killed/$1" || problem "$1 differs from the uninterrupted run's"
}
without_times() { sed -E 's/"(seconds|tokens_per_second|memory_bytes)":[^,}]*//g' "$work/$1/metrics.jsonl"; }

same_runs() {
  same_file adapter_model.safetensors
  same_file adapter_config.json
  equal metrics.jsonl "$(without_times killed)" "$(without_times whole)"
  equal "checkpoints" "$(cd "$work/killed" && echo checkpoint-*)" "$(cd "$work/whole" && echo checkpoint-*)"
  for checkpoint in "$work"/whole/checkpoint-*; do
    same_file "${checkpoint##*/}/optimizer.safetensors"
  done
  absent "$work"/killed/*.tmp*
}

# How many kills a run takes before its end depends on the machine, so there are as many runs as are needed.
runs=0
while [ $runs -lt 40 ] && ! is_enough; do
  rm -rf "$work/killed"
  runs=$((runs + 1))
  while run_round; do :; done
  same_runs
done
printf '%s kills in %s rounds of %s runs, %s of them while a checkpoint was written\n' $kills $round $runs $while_writing
checks=$((checks + 1))
is_enough || problem "only $kills kills, $while_writing of them while a checkpoint was written"

# A damaged newest checkpoint is passed over with a warning, and the end is the same.
newest=$(cd "$work/killed" && printf '%s\n' checkpoint-* | sort -t- -k2n | tail -1)
"$probe" patch "$work/killed/$newest/optimizer.safetensors" 9000 5a5a5a5a
rm "$work/killed/adapter_model.safetensors"
run train "$work/killed.yml" --resume
[ "$status" -eq 0 ] || { problem "resuming past a damaged checkpoint"; show_output; }
says err "^warning: .*$newest/optimizer.safetensors.*damaged"
same_file adapter_model.safetensors
equal metrics.jsonl "$(without_times killed)" "$(without_times whole)"

# A run is not begun anew over another, and goes on with its own configuration alone.
watched=$work/killed
refuses 2 'already holds a run' -- train "$work/killed.yml"
refuses 2 'seed' -- train "$work/killed.yml" --resume --set seed=8
refuses '[12]' 'no-such' -- train "$work/killed.yml" --resume "$work/no-such"
watched=
finish
