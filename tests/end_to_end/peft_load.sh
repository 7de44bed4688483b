#!/usr/bin/env bash
# An adapter written here loads in PEFT with no missing or unexpected keys, and gives the loss there that it gives here.
. "$(dirname "$0")/common.sh"

if ! python3 -c 'import peft, safetensors, torch, transformers' 2>/dev/null; then
  echo "skipped: python3 has no peft and transformers (python3 -m venv V; V/bin/pip install torch transformers peft; PATH=V/bin:\$PATH)"
  exit 77
fi

for family in llama qwen2 qwen3; do
  token_config "$work/config.yml" "num_epochs: 2" "output_dir: $work/$family"
  succeeds train "$work/config.yml" --set base_model="$models/$family" --set lora_target_modules='[lm_head]'
  run evaluate "$models/$family" --adapter "$work/$family" --data "$work/rows.jsonl" $fp32 --report "$work/$family.json"
  equal "exit status" "$status" 0
  checks=$((checks + 1))
  python3 - "$models/$family" "$work/$family" "$work/rows.jsonl" "$work/$family.json" <<'PY' || problem "$family: see above"
import json, sys, torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

base_folder, folder, rows, report = sys.argv[1:]
base = lambda: AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16).float()

# As PEFT's own loader does it, with its verdict kept.
model = get_peft_model(base(), LoraConfig.from_pretrained(folder))
verdict = set_peft_model_state_dict(model, load_file(f"{folder}/adapter_model.safetensors"))
missing = [key for key in verdict.missing_keys if "lora_" in key]
assert not missing, f"missing keys: {missing}"
assert not verdict.unexpected_keys, f"unexpected keys: {verdict.unexpected_keys}"
config = json.load(open(f"{folder}/adapter_config.json"))
assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM", config

model = PeftModel.from_pretrained(base(), folder).eval()
here = json.load(open(report))
total = tokens = 0
for line, row in zip(open(rows), here["rows"], strict=True):
    data = json.loads(line)
    ids = torch.tensor([data["input_ids"]])
    labels = torch.tensor(data["labels"])[1:]
    with torch.no_grad():
        logits = model(ids).logits[0, :-1].double()
    losses = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    assert int((labels != -100).sum()) == row["tokens"], (data, row)
    assert abs(losses.item() - row["loss_sum"]) <= 1e-4, (losses.item(), row)
    total += losses.item()
    tokens += row["tokens"]
assert abs(total / tokens - here["loss"]) <= 1e-5, (total / tokens, here["loss"])
print(f"{base_folder.split('/')[-1]}: loss {here['loss']:.6f} here, {total / tokens:.6f} with PEFT")
PY
done

finish
