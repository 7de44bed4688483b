#!/usr/bin/env bash
# Configurations that cannot be meant so: exit 2, the line, and the nearest key.
. "$(dirname "$0")/common.sh"

watched=$work/watched
mkdir "$watched"
config=$work/config.yml

# wrong PATTERN... -- YAML_LINE...: the good configuration plus these lines is refused with exit status 2.
wrong() {
  local patterns=()
  while [ "$1" != -- ]; do
    patterns+=("$1")
    shift
  done
  shift
  token_config "$config" "output_dir: $watched/run" "$@"
  refuses 2 "${patterns[@]}" -- train "$config"
}
# replaced PATTERN... -- SED: the good configuration, edited.
replaced() {
  local patterns=()
  while [ "$1" != -- ]; do
    patterns+=("$1")
    shift
  done
  token_config "$config" "output_dir: $watched/run"
  sed -i "$2" "$config"
  refuses 2 "${patterns[@]}" -- train "$config"
}

# Unknown keys: file, line, column, the nearest.
wrong "$config:13:1: " 'gradient_chekpointing' 'gradient_checkpointing' -- 'gradient_chekpointing: true'
wrong "$config:13:1: " 'zzzzzzzz' -- 'zzzzzzzz: 1'
replaced "$config:" 'pth' 'path' -- 's/path:/pth:/'
wrong "$config:13:1: " 'lora_r' 'twice|already|duplicate' -- 'lora_r: 8'
wrong "$config:13:" 'num_epochs' 'soon' -- 'num_epochs: soon'
wrong "$config:13:" 'lr_scheduler' 'cosin' 'cosine' -- 'lr_scheduler: cosin'
wrong "$config:13:" 'optimizer' 'sgd' 'adamw' -- 'optimizer: sgd'
wrong "$config:13:" 'lora_dropout' -- 'lora_dropout: 1.5'
wrong "$config:13:" 'micro|gradient_accumulation_steps' -- 'gradient_accumulation_steps: 0'
wrong "$config:13:" 'gradient_accumulation_steps' -- 'gradient_accumulation_steps: 1.5'
wrong "$config:1" -- 'val_set_size: [1'
wrong "$config:13:" -- 'seed: -1'
wrong "$config:13:" 'device' 'cuda' -- 'device: cude'

# Learning rates.
replaced "$config:10:16" 'learning_rate' -- 's/^learning_rate:.*/learning_rate: 0/'
replaced 'learning_rate' -- 's/^learning_rate:.*/learning_rate: -1e-4/'
replaced 'learning_rate' -- 's/^learning_rate:.*/learning_rate: 1e30/'
replaced 'learning_rate' -- 's/^learning_rate:.*/learning_rate: .nan/'
replaced 'learning_rate is missing' '0.0002' -- '/^learning_rate/d'

# What train needs, and what excludes what.
replaced 'base_model' -- '/^base_model/d'
replaced 'adapter' 'qlora' -- '/^adapter/d'
replaced 'datasets' -- '/^datasets/,+1d'
replaced 'lora_target' -- '/^lora_target/d'
wrong 'load_in_4bit' 'qlora' 'lora' -- 'load_in_4bit: false'
wrong 'eval_steps' 'evals_per_epoch' -- 'eval_steps: 2' 'evals_per_epoch: 2' 'val_set_size: 2'
wrong 'load_best_model_at_end' 'val_set_size' -- 'load_best_model_at_end: true'
wrong 'val_set_size' 'test_datasets' -- 'val_set_size: 2' "test_datasets: [{path: $work/rows.jsonl}]"
wrong 'val_set_size' -- 'val_set_size: 12'

# Targets that the model does not have: those it has.
wrong 'w_proj' 'q_proj' 'down_proj' -- 'lora_target_modules: [w_proj]'
wrong 'all-linear' 'lora_target_linear' -- 'lora_target_modules: [all-linear]'
# An adapter to go on from that is another's, or not there.
replaced 'lora_r' '8' '4' -- "s|^lora_r:.*|lora_r: 8\\nlora_model_dir: $models/llama/adapter_start|"
token_config "$config" "output_dir: $watched/run" "lora_model_dir: $work/nowhere"
refuses 1 "$work/nowhere" 'adapter_config.json' -- train "$config"

# Special tokens that the tokenizer does not have.
text_model "$work/text"
chat_rows 12 >"$work/chat.jsonl"
token_config "$config" "output_dir: $watched/run" "special_tokens:" "  eos_token: <|other|>"
refuses 1 'eos_token' '<\|other\|>' -- train "$config" --set base_model="$work/text" --set "datasets=[{path: $work/chat.jsonl}]"

# --set: the same checks.
token_config "$config" "output_dir: $watched/run"
refuses 2 '--set' 'learning_rat' 'learning_rate' -- train "$config" --set learning_rat=1
refuses 2 '--set' 'lora_r' -- train "$config" --set lora_r=many
refuses 2 'resume' -- plan "$config" --resume
refuses 1 "$work/no.yml" 'No such file' -- train "$work/no.yml"
refuses 2 'sequence_len' -- evaluate "$models/llama" --data "$work/rows.jsonl" --set sequence_len=1

absent "$watched/run"
finish
