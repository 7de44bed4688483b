#!/usr/bin/env bash
# generate, chat and tokenize: the reference's tokens, text as it comes, determinism.
. "$(dirname "$0")/common.sh"

# Greedy answers equal transformers' for every family: 12 tokens after the first 8.
for family in llama llama_tied llama3_rope mistral qwen2 qwen3; do
  greedy=$("$probe" tensor "$models/$family/reference.safetensors" base.greedy)
  prompt=$(cut -d, -f1-8 <<<"$greedy")
  succeeds generate "$models/$family" --token-ids "$prompt" --max-tokens 12 $fp32 --ignore-eos
  equal "$family" "$(cat "$work/out")" "$(cut -d, -f9-20 <<<"$greedy")"
done

# --token-ids ends after an eos: ask for a model whose second answer token is one.
greedy=$("$probe" tensor "$models/llama/reference.safetensors" base.greedy)
prompt=$(cut -d, -f1-8 <<<"$greedy")
second=$(cut -d, -f10 <<<"$greedy")
mkdir "$work/eos"
cp "$models/llama/model.safetensors" "$work/eos"
sed "s/\"eos_token_id\": 2/\"eos_token_id\": $second/" "$models/llama/config.json" >"$work/eos/config.json"
succeeds generate "$work/eos" --token-ids "$prompt" --max-tokens 12 $fp32
equal "ends after an eos" "$(cat "$work/out")" "$(cut -d, -f9-10 <<<"$greedy")"
succeeds generate "$work/eos" --token-ids "$prompt" --max-tokens 12 $fp32 --ignore-eos
equal "--ignore-eos" "$(cat "$work/out")" "$(cut -d, -f9-20 <<<"$greedy")"

# Drawn tokens: the same for a seed, others for another, and the likeliest where k is 1.
draw() { run generate "$models/llama" --token-ids "$prompt" --max-tokens 24 $fp32 --ignore-eos --temperature 1.5 "$@"; cat "$work/out"; }
first=$(draw --seed 7)
equal "the same seed" "$(draw --seed 7)" "$first"
checks=$((checks + 1))
[ "$(draw --seed 8)" != "$first" ] || problem "seeds 7 and 8 draw the same 24 tokens"
equal "the key seed" "$(draw --set seed=7)" "$first"
equal "top-k 1 is greedy" "$(draw --seed 7 --top-k 1 | cut -d, -f1-12)" "$(cut -d, -f9-20 <<<"$greedy")"
equal "tokens drawn" "$(tr ',' '\n' <<<"$first" | wc -l)" 24

# An adapter's tokens differ from the base's, and a folder without one is refused (bad_input.sh).
run generate "$models/llama" --adapter "$models/llama/adapter_after_3_steps" --token-ids "$prompt" --max-tokens 12 $fp32 --ignore-eos
equal "exit status with an adapter" "$status" 0
equal "ids on one line" "$(wc -l <"$work/out")" 1

# The context bounds the answer.
run generate "$models/llama" --token-ids "$prompt" --max-tokens 100 $fp32 --ignore-eos --set sequence_len=16
equal "fills the context" "$status $(tr ',' '\n' <"$work/out" | wc -l)" "0 8"
says err '^warning: .*context'
refuses 2 'context' -- generate "$models/llama" --token-ids "$prompt" --set sequence_len=8
refuses 2 'vocabulary|0 to 258' -- generate "$models/llama" --token-ids 1,259
refuses 2 'token-ids' -- generate "$models/llama" --token-ids 1,x
refuses 2 'no tokens|not an id' -- generate "$models/llama" --token-ids ''

# Text: the template is applied, --raw leaves it out, --messages says the same as --prompt.
text_model "$work/text"
succeeds generate "$work/text" --prompt 'Hello' --max-tokens 8 $fp32
by_prompt=$(cksum <"$work/out")
echo '[{"role": "user", "content": "Hello"}]' >"$work/messages.json"
succeeds generate "$work/text" --messages "$work/messages.json" --max-tokens 8 $fp32
equal "--messages" "$(cksum <"$work/out")" "$by_prompt"
iconv -f UTF-8 -t UTF-8 "$work/out" >/dev/null 2>&1 || problem "generate prints bytes that are not UTF-8"
ids=$(printf '{"text": "<|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\n"}' | "$nibble" tokenize "$work/text" |
  tr -d ' ' | sed 's/.*\[\(.*\)\].*/\1/')
succeeds generate "$work/text" --token-ids "$ids" --max-tokens 8 $fp32
printf '{"ids": [%s]}\n' "$(sed 's/,2$//' "$work/out")" | "$nibble" tokenize "$work/text" --decode >"$work/decoded"
answer=$("$probe" json "$work/decoded" text)
succeeds generate "$work/text" --prompt 'Hello' --max-tokens 8 $fp32
equal "the answer is the rendered prompt's" "$(cat "$work/out")" "$answer"
succeeds generate "$work/text" --prompt 'Hello' --raw --max-tokens 8 $fp32
checks=$((checks + 1))
[ "$(cksum <"$work/out")" != "$by_prompt" ] || problem "--raw gives the template's answer"
refuses 2 'raw' -- generate "$work/text" --messages "$work/messages.json" --raw
refuses 2 'token-ids' 'tokenizer' -- generate "$models/llama" --prompt hello

# chat reads turns and ends with its input; the prompt sign and notes stay off stdout.
checks=$((checks + 1))
printf 'Hello\n/new\nHello\n' | timeout 50 "$nibble" chat "$work/text" --max-tokens 8 $fp32 >"$work/out" 2>"$work/err"
equal "chat's exit status" $? 0
succeeds generate "$work/text" --prompt 'Hello' --max-tokens 8 $fp32
answer=$(cat "$work/out")
printf 'Hello\n/new\nHello\n' | "$nibble" chat "$work/text" --max-tokens 8 $fp32 2>/dev/null >"$work/chat"
equal "chat's answers" "$(cat "$work/chat")" "$answer"$'\n'"$answer"

# A line that cannot be answered, too long for the context or not UTF-8, does not end the conversation.
long=$(printf 'word %.0s' {1..60})
printf '%s\nHello\n\377\nHello\n/new\nHello\n' "$long" |
  "$nibble" chat "$work/text" --max-tokens 8 --set sequence_len=100 $fp32 2>"$work/err" >"$work/chat"
equal "chat's exit status after lines without an answer" $? 0
says err '^warning: .*filled the context of 100 tokens'
says err '^warning: .*UTF-8'
equal "chat's first answer after them" "$(head -1 "$work/chat")" "$answer"
equal "chat's answer after /new" "$(tail -1 "$work/chat")" "$answer"

# tokenize: SmolLM2's ids, and the text back.
smollm2=$PWD/tests/golden/smollm2
checks=$((checks + 1))
"$nibble" tokenize "$smollm2/tokenizer.gguf" <"$smollm2/tokenizer.jsonl" >"$work/ids.jsonl" || problem "tokenize fails"
equal "ids" "$("$probe" jsonl "$work/ids.jsonl" ids | cksum)" "$("$probe" jsonl "$smollm2/tokenizer.jsonl" ids | cksum)"
"$nibble" tokenize "$smollm2/tokenizer.gguf" --decode <"$smollm2/tokenizer.jsonl" >"$work/texts.jsonl" || problem "tokenize --decode fails"
equal "texts" "$("$probe" jsonl "$work/texts.jsonl" text | cksum)" "$("$probe" jsonl "$smollm2/tokenizer.jsonl" decoded | cksum)"
equal "lines" "$(wc -l <"$work/ids.jsonl")" "$(wc -l <"$smollm2/tokenizer.jsonl")"
for bad in '{"text": 1}' '{"txt": "a"}' 'no json' '{"text": "unfinished'; do
  checks=$((checks + 1))
  printf '{"text": "good"}\n%s\n' "$bad" | "$nibble" tokenize "$smollm2/tokenizer.gguf" >"$work/out" 2>"$work/err"
  equal "tokenize, $bad" "$? $(grep -c '^error: standard input, line 2: ' "$work/err") $(wc -l <"$work/out")" "1 1 1"
done
checks=$((checks + 1))
echo '{"ids": [1, 999999]}' | "$nibble" tokenize "$smollm2/tokenizer.gguf" --decode >"$work/out" 2>"$work/err"
[ $? -ne 0 ] && grep -q '^error: .*999999' "$work/err" || problem "an id outside the vocabulary: $(cat "$work/err")"

finish
