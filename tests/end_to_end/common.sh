# Shared by the end-to-end scripts. Sourced with their arguments: the program under test and the probe. They run in the source root.

nibble=$1
probe=$2
models=$PWD/tests/golden/models
here=$PWD/tests/end_to_end
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fp32="--set load_in_4bit=false --set bf16=false"
export LC_ALL=C
unset OMP_WAIT_POLICY # the program sees to it itself

failures=0
checks=0

# problem TEXT...: the check at work has failed.
problem() {
  printf 'FAILED: %s\n' "$*"
  failures=$((failures + 1))
}

# finish: the script's last line. A script that checked nothing has not passed.
finish() {
  [ "$checks" -gt 0 ] || problem "no check ran"
  printf '%d checks, %d failed\n' "$checks" "$failures"
  [ "$failures" -eq 0 ]
}

# run ARGUMENT...: runs nibble; leaves $status, $work/out and $work/err.
run() {
  checks=$((checks + 1))
  command_line="nibble $*"
  timeout 50 "$nibble" "$@" >"$work/out" 2>"$work/err" </dev/null
  status=$?
  if grep -qE 'runtime error:|Sanitizer' "$work/err"; then
    problem "a sanitizer has something to say: $command_line"
    show_output
  fi
}

show_output() {
  printf -- '--- %s\n--- exit %s\n--- stdout\n' "$command_line" "$status"
  head -c 2000 "$work/out"
  printf -- '--- stderr\n'
  head -c 3000 "$work/err"
}

# succeeds ARGUMENT...: exit 0, and no error or warning line.
succeeds() {
  run "$@"
  if [ "$status" -ne 0 ] || grep -qE '^(error|warning): ' "$work/err"; then
    problem "should succeed: $command_line"
    show_output
  fi
}

# listing FOLDER: names, sizes and contents' sums of everything in it.
listing() { (cd "$1" && find . -type f -exec cksum {} + -o -type d -print | sort); }

# refuses EXIT PATTERN... -- ARGUMENT...: nibble ends with this exit status (1, or [12]), prints nothing to stdout, and one
# "error: " line, the last one, that matches every extended regular expression. Nothing in $watched (a folder, if set) changes.
refuses() {
  local exit_wanted=$1 patterns=() pattern before= line
  shift
  while [ "$1" != -- ]; do
    patterns+=("$1")
    shift
  done
  shift
  [ -z "${watched:-}" ] || before=$(listing "$watched")
  run "$@"
  line=$(tail -1 "$work/err")
  [ -z "${shows_errors:-}" ] || printf '%s\n    %s\n' "$command_line" "$line"
  if [[ ! $status =~ ^$exit_wanted$ ]]; then
    problem "exit status $status instead of $exit_wanted: $command_line"
    show_output
  elif [ -s "$work/out" ]; then
    problem "data on stdout beside an error: $command_line"
    show_output
  elif [ "$(grep -c '^error: ' "$work/err")" -ne 1 ] || [[ $line != "error: "* ]]; then
    problem "not exactly one error line, the last: $command_line"
    show_output
  else
    for pattern in "${patterns[@]}"; do
      grep -qE -- "$pattern" <<<"$line" || problem "$command_line: the error does not say /$pattern/: $line"
    done
  fi
  if [ -n "${watched:-}" ] && [ "$before" != "$(listing "$watched")" ]; then
    problem "$command_line: changed $watched"
    diff <(printf '%s\n' "$before") <(listing "$watched")
  fi
}

# says FILE PATTERN...: the file (out or err) has a line for each extended regular expression.
says() {
  local file=$1 pattern
  shift
  checks=$((checks + 1))
  for pattern in "$@"; do
    grep -qE -- "$pattern" "$work/$file" || { problem "$command_line: no line of std$file matches /$pattern/"; show_output; }
  done
}

# equal WHAT A B
equal() {
  checks=$((checks + 1))
  [ "$2" = "$3" ] || problem "$1: \"$2\" is not \"$3\""
}

# close WHAT A B TOLERANCE: |A - B| <= TOLERANCE
close() {
  checks=$((checks + 1))
  awk -v a="$2" -v b="$3" -v t="$4" 'BEGIN { d = a - b; exit !(a != "" && b != "" && d <= t && -d <= t) }' ||
    problem "$1: $2 is not within $4 of $3"
}

# Adds up numbers, one a line.
sum() { awk '{ s += $1 } END { printf "%.0f\n", s }'; }

# exists PATH..., absent PATH...
exists() {
  checks=$((checks + 1))
  for path; do [ -e "$path" ] || problem "missing: $path"; done
}
absent() {
  checks=$((checks + 1))
  for path; do [ ! -e "$path" ] || problem "should not be there: $path"; done
}

# token_rows COUNT: rows of tokens for the tiny models (259 ids), of 5 to 16 tokens, the first two not trained.
token_rows() {
  awk -v count="$1" 'BEGIN {
    for (row = 0; row < count; row++) {
      length_of = 5 + row * 7 % 12
      ids = labels = ""
      for (i = 0; i < length_of; i++) {
        id = 3 + (row * 31 + i * i * 17 + i * 5) % 256
        ids = ids (i ? "," : "") id
        labels = labels (i ? "," : "") (i < 2 ? -100 : id)
      }
      printf "{\"input_ids\": [%s], \"labels\": [%s]}\n", ids, labels
    }
  }'
}

# text_model FOLDER: a copy of the tiny llama with a tokenizer of single bytes and the chatml template.
text_model() {
  mkdir -p "$1"
  cp "$models"/llama/{config.json,generation_config.json,model.safetensors} "$1"
  cp "$here/byte_tokenizer.json" "$1/tokenizer.json"
  cat >"$1/tokenizer_config.json" <<'JSON'
{"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
 "chat_template": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"}
JSON
  chmod -R u+w "$1"
}

# chat_rows COUNT: short conversations.
chat_rows() {
  awk -v count="$1" 'BEGIN {
    for (row = 0; row < count; row++)
      printf "{\"messages\": [{\"role\": \"user\", \"content\": \"Say %d\"}, " \
             "{\"role\": \"assistant\", \"content\": \"%d it is\"}]}\n", row, row
  }'
}

# token_config FILE [LINE...]: a configuration that trains the tiny llama on 12 rows of tokens, plus the given lines.
token_config() {
  local file=$1
  shift
  token_rows 12 >"$work/rows.jsonl"
  {
    cat <<YAML
base_model: $models/llama
adapter: qlora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
datasets:
  - path: $work/rows.jsonl
sequence_len: 32
micro_batch_size: 2
learning_rate: 1e-3
bf16: false
YAML
    printf '%s\n' "$@"
  } >"$file"
}
