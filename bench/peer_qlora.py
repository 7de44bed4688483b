#!/usr/bin/env python3
"""QLoRA with transformers, PEFT and bitsandbytes on a CPU: what bench/against_peer measures nibble beside.

The settings are those of bench/against_peer's configuration: NF4 with double quantization, LoRA of rank 16 on every linear of the
blocks, alpha 32, no dropout, AdamW, gradients clipped to 1, checkpointing, bf16. Rows are conversations of two messages; longer
ones than --tokens are left out, as nibble does. Prints "step N ..." to stderr as steps end and one JSON object to stdout.

It does not evaluate before it trains: in evaluation mode bitsandbytes 0.50 repacks its 4-bit weights for the CPU, and training after
that loses the gradient through the base model.
"""

import argparse
import itertools
import json
import sys
import time

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

IGNORED = -100


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--data", required=True, help="JSONL with messages")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=4, help="rows a step")
    parser.add_argument("--tokens", type=int, default=256, help="the longest row")
    return parser.parse_args()


def load_model(path):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16, device_map="cpu", quantization_config=quantization)
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=True)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


def read_rows(path, tokenizer, longest):
    """(ids, labels) of each conversation; the answer and its end-of-turn token train."""
    rows = []
    with open(path) as file:
        for line in file:
            question, answer = json.loads(line)["messages"]
            prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, tokenize=False)
            whole = prompt + answer["content"] + "<|im_end|>\n"
            encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
            trained_end = len(whole) - 1  # the line feed after the turn does not train
            labels = [
                token if len(prompt) <= begin < trained_end else IGNORED
                for token, (begin, _) in zip(encoded.input_ids, encoded.offset_mapping)
            ]
            if len(labels) <= longest:
                rows.append((encoded.input_ids, labels))
    return rows


def collate(rows, pad):
    width = max(len(ids) for ids, _ in rows)
    fill = lambda values, filler: torch.tensor([v + [filler] * (width - len(v)) for v in values])
    return {
        "input_ids": fill([ids for ids, _ in rows], pad),
        "labels": fill([labels for _, labels in rows], IGNORED),
        "attention_mask": fill([[1] * len(ids) for ids, _ in rows], 0),
    }


def main():
    options = arguments()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = itertools.cycle(read_rows(options.data, tokenizer, options.tokens))
    model = load_model(options.model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=2e-4, weight_decay=0.0)
    model.train()

    tokens = 0
    losses = []
    for step in range(1, options.steps + 1):
        taken = list(itertools.islice(rows, options.rows))
        loss = model(**collate(taken, tokenizer.pad_token_id)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {step}/{options.steps}  loss {losses[-1]:.4f}", file=sys.stderr, flush=True)
        if step == 1:
            started = time.monotonic()
        else:
            tokens += sum(len(ids) for ids, _ in taken)
    seconds = time.monotonic() - started
    json.dump({"tokens": tokens, "seconds": seconds, "first_loss": round(losses[0], 6), "last_loss": round(losses[-1], 6)}, sys.stdout)
    print()


if __name__ == "__main__":
    main()
