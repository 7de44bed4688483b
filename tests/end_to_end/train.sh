#!/usr/bin/env bash
# train: the run folder, metrics, evaluation, packing, Ctrl-C and --resume.
. "$(dirname "$0")/common.sh"

token_config "$work/config.yml" "num_epochs: 2" "lr_scheduler: cosine" "test_datasets: [{path: $work/rows.jsonl}]"
succeeds train "$work/config.yml" --set output_dir="$work/run"
equal "train prints no data" "$(wc -c <"$work/out")" 0
exists "$work"/run/{adapter_config.json,adapter_model.safetensors,config.yml,metrics.jsonl,checkpoint-6/trainer_state.json,checkpoint-12}
metrics=$work/run/metrics.jsonl
for key in step epoch loss grad_norm learning_rate tokens trained_tokens tokens_per_second seconds memory_bytes; do
  grep -v eval_loss "$metrics" >"$work/steps.jsonl"
  equal "$key in every step's line" "$("$probe" jsonl "$work/steps.jsonl" $key | wc -l)" 12
done
equal "steps" "$("$probe" jsonl "$work/steps.jsonl" step | paste -sd,)" 1,2,3,4,5,6,7,8,9,10,11,12
grep eval_loss "$metrics" >"$work/evaluations.jsonl"
equal "an evaluation an epoch" "$("$probe" jsonl "$work/evaluations.jsonl" step | paste -sd,)" 6,12
first=$("$probe" jsonl "$work/evaluations.jsonl" eval_loss | head -1)
last=$("$probe" jsonl "$work/evaluations.jsonl" eval_loss | tail -1)
awk -v a="$last" -v b="$first" 'BEGIN { exit !(a < b) }' || problem "the evaluation loss does not fall: $first -> $last"
equal "tokens of an epoch" "$(head -6 "$work/steps.jsonl" >"$work/epoch.jsonl"; "$probe" jsonl "$work/epoch.jsonl" tokens | sum)" \
  "$(tr -cd ',\n' <"$work/rows.jsonl" | awk '{ n += (length($0) - 1) / 2 + 1 } END { print n }')"
equal "no leftovers" "$(find "$work/run" -name '*.tmp*' | wc -l)" 0

# evaluate measures the adapter as the run's last evaluation did.
run evaluate "$models/llama" --adapter "$work/run" --data "$work/rows.jsonl" --set bf16=false --report "$work/report.json"
close "evaluate and the run" "$("$probe" json "$work/report.json" loss)" "$last" 1e-6

# The same again, and with another number of threads: the same bytes.
adapter=$(cksum <"$work/run/adapter_model.safetensors")
succeeds train "$work/config.yml" --set output_dir="$work/again" --set threads=1
equal "one thread, the same adapter" "$(cksum <"$work/again/adapter_model.safetensors")" "$adapter"
succeeds train "$work/config.yml" --set output_dir="$work/kept" --set gradient_checkpointing=true
equal "gradient checkpointing, the same adapter" "$(cksum <"$work/kept/adapter_model.safetensors")" "$adapter"
succeeds train "$work/config.yml" --set output_dir="$work/seed" --set seed=7
checks=$((checks + 1))
[ "$(cksum <"$work/seed/adapter_model.safetensors")" != "$adapter" ] || problem "another seed, the same adapter"

# A folder that holds a run is not trained into again.
watched=$work/run
refuses 2 "$work/run" 'already holds a run' '--resume' -- train "$work/config.yml" --set output_dir="$work/run"
watched=

# Text with packing, 8-bit moments and dropout; lora on bf16 weights.
text_model "$work/text"
chat_rows 24 >"$work/chat.jsonl"
cat >"$work/text.yml" <<YAML
base_model: $work/text
base_model_name: someone/text
adapter: lora
lora_r: 8
lora_alpha: 16
lora_dropout: 0.1
lora_target_modules: [q_proj, v_proj, down_proj]
datasets:
  - path: $work/chat.jsonl
    type: chat_template
val_set_size: 4
sequence_len: 120
sample_packing: true
micro_batch_size: 1
gradient_accumulation_steps: 2
max_steps: 6
optimizer: paged_adamw_8bit
learning_rate: 2e-3
warmup_steps: 2
bf16: auto
flash_attention: true
wandb_project: ~
output_dir: $work/text-run
YAML
run train "$work/text.yml"
equal "exit status" "$status" 0
says err 'flash_attention' 'paged'
grep -v eval_loss "$work/text-run/metrics.jsonl" >"$work/steps.jsonl"
equal "the first warm step has learning rate 0" "$("$probe" jsonl "$work/steps.jsonl" learning_rate | head -1 | awk '{ print $1 + 0 }')" 0
equal "max_steps" "$(wc -l <"$work/steps.jsonl")" 6
equal "the base's name" "$("$probe" json "$work/text-run/adapter_config.json" base_model_name_or_path)" someone/text
run generate "$work/text" --adapter "$work/text-run" --prompt 'Say 3' --max-tokens 4
equal "generate with it" "$status" 0

# sequence_len may pass the model's context of 128 tokens; a row that does is used, and said.
token_config "$work/long.yml" "output_dir: $work/long"
succeeds train "$work/long.yml" --set sequence_len=512
{ cat "$work/rows.jsonl"; echo "{\"input_ids\": [$(seq -s, 3 202)]}"; } >"$work/long.jsonl"
for verb in evaluate train; do
  if [ $verb = train ]; then
    run train "$work/long.yml" --set sequence_len=512 --set "datasets=[{path: $work/long.jsonl}]" --set output_dir="$work/longer"
  else
    run evaluate "$models/llama" --data "$work/long.jsonl" $fp32 --set sequence_len=512
  fi
  equal "$verb: a row longer than the context" "$status" 0
  says err '^warning: .*long.jsonl: 1 of 13 rows .* 128 tokens .* up to 200; sequence_len: 128'
done

# Going on from an adapter.
run train "$work/text.yml" --set lora_model_dir="$work/text-run" --set lora_r=null --set lora_alpha=null --set output_dir="$work/more"
equal "lora_model_dir" "$status" 0

finish
