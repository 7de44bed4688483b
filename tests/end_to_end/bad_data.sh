#!/usr/bin/env bash
# Data that is missing, damaged, or would train a model wrongly.
. "$(dirname "$0")/common.sh"

text_model "$work/text"
data=$work/data.jsonl
watched=$work/watched
mkdir "$watched"

# evaluates EXIT PATTERN...: nothing in $data can be evaluated by the tiny llama, which has no tokenizer.
evaluates() { refuses "$@" -- evaluate "$models/llama" --data "$data" $fp32 --report "$watched/report.json"; }
# trains EXIT PATTERN...: $data cannot be trained on, and no run folder comes of it.
trains() {
  refuses "$@" -- train "$work/config.yml" --set output_dir="$watched/run" --set "datasets=[{path: $data}]"
}
# trains_text EXIT PATTERN...: the same with the model that has a tokenizer.
trains_text() {
  refuses "$@" -- train "$work/config.yml" --set base_model="$work/text" --set output_dir="$watched/run" --set sequence_len=96 \
    --set "datasets=[{path: $data}]"
}
token_config "$work/config.yml"

# ---- files ----

data=$work/nothing.jsonl
evaluates 1 "$data" 'No such file'
trains 1 "$data" 'No such file'
data=$work/data.jsonl
: >"$data"
evaluates 1 "$data" 'no row|empty'
trains 1 "$data" 'no row|empty'
printf '\n\n  \n' >"$data"
trains 1 "$data" 'no row|empty'
echo '[]' >"$data"
trains 1 "$data" 'no row|empty'
{ token_rows 2; echo 'this is no JSON'; } >"$data"
evaluates 1 "$data" '(line )?3'
{ token_rows 2; printf '{"input_ids": [3, 4, 5'; } >"$data"
trains 1 "$data" '(line )?3'
head -c 200000 /dev/zero | tr '\0' '[' >"$data"
trains 1 "$data"
token_rows 12 | gzip -c | head -c 80 >"$data"
trains 1 "$data" 'gzip'
printf '{"text": "caf\351"}\n' >"$data"
trains_text 1 "$data" '(line )?1' 'UTF-8|byte'
echo '{"something": "else"}' >"$data"
trains_text 2 "$data" 'something' 'type'
data=$work/folder.jsonl
mkdir "$data"
trains 1 "$data" 'directory|folder'
data=$work/data.jsonl

# ---- rows of tokens ----

echo '{"input_ids": [3,4,5,6], "labels": [-100,-100,-100,-100]}' >"$data"
evaluates 1 "$data" '(line )?1' 'answer|train'
trains 1 "$data" '(line )?1' 'answer|train'
echo '{"input_ids": [3,4,500], "labels": [3,4,500]}' >"$data"
trains 1 "$data" '(line )?1' '500' '259|vocabulary'
echo '{"input_ids": [3,4,5], "labels": [3,4]}' >"$data"
trains 1 "$data" '(line )?1' 'labels'
echo '{"input_ids": [3,4,5], "labels": [3,4,6]}' >"$data"
trains 1 "$data" '(line )?1' 'label'
echo '{"input_ids": "three", "labels": [3]}' >"$data"
trains 1 "$data" '(line )?1' 'input_ids'
# All rows longer than sequence_len.
token_rows 12 >"$data"
refuses 1 "$data" 'sequence_len' -- train "$work/config.yml" --set output_dir="$watched/run" --set sequence_len=4 \
  --set "datasets=[{path: $data}]"
# Some rows longer: dropped, with their count, and the run goes on.
checks=$((checks + 1))
run train "$work/config.yml" --set output_dir="$work/short" --set "datasets=[{path: $data}]" --set sequence_len=10
equal "exit status" "$status" 0
longer=$(awk -F'labels' '{ if (gsub(/,/, ",", $1) > 10) n++ } END { print n }' "$data")
says err "^warning: .*$data.*\b$longer\b.*sequence_len"
# One rotten row in many: dropped, with its line; the run goes on.
{ token_rows 40; echo '{"input_ids": [3,4,500], "labels": [3,4,500]}'; } >"$data"
run train "$work/config.yml" --set output_dir="$work/rotten" --set "datasets=[{path: $data}]" --set max_steps=2
equal "exit status" "$status" 0
says err "^warning: .*$data.*41"

# ---- text ----

# Without a tokenizer.
chat_rows 12 >"$data"
trains 2 'token'
evaluates 2 'token'
# A row without an answer; an empty answer; an unknown role; content that is not text.
echo '{"messages": [{"role": "user", "content": "Anyone?"}]}' >"$data"
trains_text 1 "$data" '(line )?1' 'answer|assistant|train'
echo '{"messages": []}' >"$data"
trains_text 1 "$data" '(line )?1'
echo '{"messages": [{"role": "wizard", "content": "Hm"}, {"role": "assistant", "content": "Yes"}]}' >"$data"
trains_text 1 "$data" '(line )?1' 'wizard'
echo '{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "Yes"}]}' >"$data"
trains_text 1 "$data" '(line )?1' 'content'
# The wrong type for the rows.
chat_rows 12 >"$data"
refuses 1 "$data" '(line )?1' 'instruction|output' -- train "$work/config.yml" --set base_model="$work/text" --set sequence_len=96 \
  --set output_dir="$watched/run" --set "datasets=[{path: $data, type: alpaca}]"
refuses 2 'chat_templat' 'chat_template' -- train "$work/config.yml" --set "datasets=[{path: $data, type: chat_templat}]"

# A template that is not known, and no template at all: both name the key.
sed -i 's/{% for message in messages %}/{% for message in messages %}{# hm #}/' "$work/text/tokenizer_config.json"
trains_text 2 'chat_template' 'chatml'
refuses 2 'chat_template' 'chatml' 'raw' -- generate "$work/text" --prompt hello
run train "$work/config.yml" --set base_model="$work/text" --set output_dir="$work/named" --set sequence_len=96 \
  --set "datasets=[{path: $data}]" --set chat_template=chatml
equal "with chat_template: chatml" "$status" 0
sed -i 's/"chat_template"/"chat_templat_"/' "$work/text/tokenizer_config.json"
trains_text 2 'chat_template' 'chatml'
refuses 2 'chat_templat' 'chatml' -- generate "$work/text" --prompt hello --set chat_template=nonsense

# A damaged tokenizer.
echo '{"model": {"type": "Unigram", "vocab": []}}' >"$work/text/tokenizer.json"
refuses 2 'tokenizer.json' 'Unigram' -- generate "$work/text" --prompt hello
head -c 1000 "$here/byte_tokenizer.json" >"$work/text/tokenizer.json"
refuses 1 'tokenizer.json' 'line [0-9]+' -- generate "$work/text" --prompt hello
rm "$work/text/tokenizer.json"
refuses 2 'tokenizer.json' -- generate "$work/text" --prompt hello

# Messages.
text_model "$work/text"
messages=$work/messages.json
echo '[{"role": "user"}]' >"$messages"
refuses 1 "$messages" 'content' -- generate "$work/text" --messages "$messages"
echo '{"role": "user", "content": "hi"}' >"$messages"
refuses 1 "$messages" 'array' -- generate "$work/text" --messages "$messages"
refuses 1 "$work/no-messages.json" 'No such file' -- generate "$work/text" --messages "$work/no-messages.json"

absent "$watched/run" "$watched/report.json"
finish
