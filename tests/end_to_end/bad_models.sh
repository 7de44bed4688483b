#!/usr/bin/env bash
# Models and adapters that are truncated, corrupt, hostile, unsupported or do not fit.
. "$(dirname "$0")/common.sh"

# model NAME: a fresh writable copy of the tiny llama in $work/NAME; sets $folder and $weights.
model() {
  folder=$work/$1
  rm -rf "$folder"
  mkdir "$folder"
  cp "$models"/llama/{config.json,generation_config.json,model.safetensors} "$folder"
  chmod u+w "$folder"/*
  weights=$folder/model.safetensors
  watched=$folder
}

# opens EXIT PATTERN...: generate on $folder is refused so.
opens() { refuses "$@" -- generate "$folder" --token-ids 1,2,3 --max-tokens 2 $fp32; }

little_endian() { # VALUE BYTES: in hex
  local value=$1 i
  for ((i = 0; i < $2; i++)); do
    printf '%02x' $(((value >> (8 * i)) & 255))
  done
}

bytes() { printf "$(sed 's/../\\x&/g' <<<"$1")"; }

# header JSON: makes $weights of this header and 64 zero bytes of data.
header() {
  { bytes "$(little_endian ${#1} 8)"; printf '%s' "$1"; head -c 64 /dev/zero; } >"$weights"
}

# ---- safetensors ----

model truncated
head -c 60000 "$models/llama/model.safetensors" >"$weights"
opens 1 "$weights" 'past the end|truncated|missing' 'incomplete|download|again'
: >"$weights"
opens 1 "$weights"
printf 'short' >"$weights"
opens 1 "$weights"
model long_header
"$probe" patch "$weights" 0 ffffffffffffff7f
opens 1 "$weights" 'header'
"$probe" patch "$weights" 0 ffffffffffffffff
opens 1 "$weights" 'header'
header 'not json at all'
opens 1 "$weights"
header '[1, 2, 3]'
opens 1 "$weights"
header "$(printf '{"a":%.0s' $(seq 3000))"
opens 1 "$weights"
header "$(head -c 100000 /dev/zero | tr '\0' '[')"
opens 1 "$weights"

tensor='"model.embed_tokens.weight"'
first='{"dtype":"BF16","shape":[4,8],"data_offsets":[0,64]}'
header "{$tensor:$first,\"other\":$first}"
opens 1 "$weights" 'overlap|two tensors'
header "{$tensor:{\"dtype\":\"BF16\",\"shape\":[4,8],\"data_offsets\":[64,128]}}"
opens 1 "$weights" 'embed_tokens'
header "{$tensor:{\"dtype\":\"BF16\",\"shape\":[4,8],\"data_offsets\":[64,0]}}"
opens 1 "$weights" 'embed_tokens'
header "{$tensor:{\"dtype\":\"BF16\",\"shape\":[4611686018427387904,4611686018427387904],\"data_offsets\":[0,64]}}"
opens 1 "$weights" 'embed_tokens'
header "{$tensor:{\"dtype\":\"BF16\",\"shape\":[-4,8],\"data_offsets\":[0,64]}}"
opens 1 "$weights" 'embed_tokens'
header "{$tensor:{\"dtype\":\"Q99\",\"shape\":[4,8],\"data_offsets\":[0,64]}}"
opens 1 "$weights" 'embed_tokens' 'Q99'
header "{$tensor:{\"dtype\":\"BF16\",\"shape\":[4,8],\"data_offsets\":[0,64]}}"
opens 1 "$folder" 'embed_tokens' '259'

# The right header but for one tensor's dtype: as many bytes, another meaning.
model integers
sed -i 's/"lm_head.weight":{"dtype":"BF16"/"lm_head.weight":{"dtype":"I16" /' "$weights"
opens 1 'lm_head.weight' 'I16'

# Weights that are not numbers.
token_rows 12 >"$work/rows.jsonl"
for name in model.layers.1.mlp.up_proj.weight model.embed_tokens.weight lm_head.weight model.norm.weight; do
  model nan
  read -r offset _ < <("$probe" place "$weights" "$name")
  "$probe" patch "$weights" $((offset + 64)) c07f
  refuses 1 "$name" 'NaN|not finite|finite|nan' -- evaluate "$folder" --data "$work/rows.jsonl" --set bf16=false
done

# ---- folders ----

model no_weights
rm "$weights"
opens 1 "$folder" 'model.safetensors'
model no_config
rm "$folder/config.json"
opens 1 "$folder" 'config.json'
folder=$work/nothing_here watched=
opens 1 "$work/nothing_here" 'No such file|no such|not found'
model sharded
mv "$weights" "$folder/model-00001-of-00002.safetensors"
echo '{"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}' >"$folder/model.safetensors.index.json"
opens 1 'model-00002-of-00002.safetensors|model.embed_tokens.weight'
echo '{"weight_map": {"lm_head.weight": "../../../etc/passwd"}}' >"$folder/model.safetensors.index.json"
opens 1 'index.json' 'lm_head.weight' 'file name'

# ---- config.json ----

# config SED: edits config.json.
config() {
  model config
  sed -i "$1" "$folder/config.json"
}
config 's/"silu"/"gelu"/'; opens 1 'config.json' 'hidden_act' 'gelu'
config 's/"rope_type": "default"/"rope_type": "yarn"/'; opens 1 'config.json' 'yarn'
config 's/"mlp_bias": false/"mlp_bias": true/'; opens 1 'config.json' 'mlp_bias'
config 's/"model_type": "llama"/"model_type": "mamba"/; s/LlamaForCausalLM/MambaForCausalLM/'
opens 1 'config.json' 'mamba' 'llama, mistral, qwen2, qwen3'
config 's/"num_attention_heads": 4/"num_attention_heads": 0/'; opens 1 'config.json' 'num_attention_heads'
config 's/"num_hidden_layers": 2/"num_hidden_layers": 2000000000/'; opens 1 'config.json|model.layers'
config 's/"num_hidden_layers": 2/"num_hidden_layers": 3/'; opens 1 'model.layers.2'
config 's/"hidden_size": 64/"hidden_size": "wide"/'; opens 1 'config.json' 'hidden_size'
config 's/"vocab_size": 259,*/"vocab_size": 260/'; opens 1 'embed_tokens|lm_head' '260'
config '1,5d'; opens 1 'config.json' '[Jj][Ss][Oo][Nn]|line|:1:'

# A 4-bit folder cannot be opened in 16 bits.
refuses 2 'load_in_4bit' -- generate "$models/llama/bnb4" --token-ids 1 --set load_in_4bit=false
# NF4 scales that were cut off.
model bnb4
cp "$models"/llama/bnb4/* "$folder"
chmod u+w "$folder"/*
sed -i 's/q_proj.weight.absmax/q_proj.weight.absmxa/' "$weights"
opens_4bit() { refuses "$@" -- generate "$folder" --token-ids 1,2,3 --set bf16=false; }
opens_4bit 1 'q_proj.weight' 'absmax'

# ---- GGUF ----

folder=$work/model.gguf watched=
gguf=$folder
printf 'GGU' >"$gguf"; opens 1 "$gguf"
printf 'FUGG00000000000000000000' >"$gguf"; opens 1 "$gguf" 'GGUF'
# 2^62 tensors
{ printf 'GGUF'; bytes "$(little_endian 3 4)$(little_endian $((1 << 62)) 8)$(little_endian 0 8)"; } >"$gguf"
opens 1 "$gguf" 'tensors'
{ printf 'GGUF'; bytes "$(little_endian 99 4)$(little_endian 0 8)$(little_endian 0 8)"; } >"$gguf"
opens 1 "$gguf" 'version' '99'
# a key of 2^40 bytes
{ printf 'GGUF'; bytes "$(little_endian 3 4)$(little_endian 0 8)$(little_endian 1 8)$(little_endian $((1 << 40)) 8)"; } >"$gguf"
opens 1 "$gguf" 'metadata|past the end'
# arrays in arrays in arrays
{
  printf 'GGUF'
  bytes "$(little_endian 3 4)$(little_endian 0 8)$(little_endian 1 8)$(little_endian 1 8)61$(little_endian 9 4)"
  bytes "$(for _ in $(seq 2000); do printf '%s%s' "$(little_endian 9 4)" "$(little_endian 1 8)"; done)"
} >"$gguf"
opens 1 "$gguf" 'array|nest'
# a real one, cut short, and one without weights
head -c 500000 tests/golden/smollm2/tokenizer.gguf >"$gguf"
opens 1 "$gguf" 'past the end|truncated|reach|end of the file'
folder=tests/golden/smollm2/tokenizer.gguf
opens 1 'tokenizer.gguf'

# ---- adapters ----

# adapter SED: a copy of adapter_start with adapter_config.json edited.
adapter() {
  rm -rf "$work/adapter"
  cp -r "$models/llama/adapter_start" "$work/adapter"
  chmod -R u+w "$work/adapter"
  sed -i "$1" "$work/adapter/adapter_config.json"
  watched=$work/adapter
}
fits() { refuses "$@" -- generate "$models/llama" --adapter "$work/adapter" --token-ids 1,2,3 $fp32; }
adapter 's/"use_dora": false/"use_dora": true/'; fits 1 'adapter_config.json' 'use_dora'
adapter 's/"bias": "none"/"bias": "all"/'; fits 1 'adapter_config.json' 'bias'
adapter 's/"modules_to_save": null/"modules_to_save": ["lm_head"]/'; fits 1 'adapter_config.json' 'modules_to_save'
adapter 's/"rank_pattern": {}/"rank_pattern": {"q_proj": 8}/'; fits 1 'adapter_config.json' 'rank_pattern'
adapter 's/"peft_type": "LORA"/"peft_type": "IA3"/'; fits 1 'adapter_config.json' 'IA3'
adapter 's/"r": 4/"r": 8/'; fits 2 'adapter_model.safetensors' 'lora_A' '4' '8'
adapter 's/"r": 4/"r": -1/'; fits 1 'adapter_config.json' '\br\b|rank'
adapter 's/"v_proj",//'; fits 2 'v_proj'
adapter 's/"v_proj"/"w_proj"/'; fits 2 'w_proj' 'q_proj'
adapter 's/x/x/'
truncate -s 2000 "$work/adapter/adapter_model.safetensors"; fits 1 'adapter_model.safetensors'
adapter 's/x/x/'
rm "$work/adapter/adapter_model.safetensors"; fits 1 'adapter_model.safetensors'
rm "$work/adapter/adapter_config.json"; fits 1 'adapter_config.json'
watched=
# One of another model: its shapes do not fit.
refuses 2 'lora_' -- generate "$models/llama" --adapter "$models/qwen3/adapter_start" --token-ids 1,2,3 $fp32

finish
