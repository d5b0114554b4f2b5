#!/bin/sh
# A dirty file from the shell: embedded, gone on with, searched, reranked; nothing but asyncembed is needed.
#
#     pip install "asyncembed[cpu,cli]"
#     sh examples/command_line.sh [FOLDER]
#
# `python -m asyncembed` is the same as `asyncembed`. The shell completes commands, options and names of models with
#     eval "$(_ASYNCEMBED_COMPLETE=bash_source asyncembed)"           in ~/.bashrc (zsh_source in ~/.zshrc)
#     _ASYNCEMBED_COMPLETE=fish_source asyncembed | source            in fish's config
set -eu
model=${MODEL:-BAAI/bge-small-en-v1.5}
reranker=${RERANKER:-Xenova/ms-marco-MiniLM-L-6-v2}
cd "${1:-.}"

cat > articles.jsonl <<'END'
{"id": 1, "body": "A full queue makes its writer wait."}
{"id": 2, "body": 42}
{"id": 3, "body": "Cats sleep most of the day."}
this line is broken
{"id": 5, "body": "Backpressure slows the producer down."}
END

# Each record goes into the result with its vector, in the order of the source. Those that fail go aside, each with its
# place and its reason; without --on-error the first one ends the run.
asyncembed embed "$model" articles.jsonl --column body --on-error failed.jsonl -o articles.parquet
cat failed.jsonl

# Until it is whole, a result is in OUT.partial. --resume goes on with it after Ctrl-C, or a kill at any moment, and each
# record is in the result once. What is whole is left as it is. --sparse is for sparse vectors.
asyncembed embed "$model" articles.jsonl --column body --on-error failed.jsonl -o articles.parquet --resume

# `search` knows the model from what `embed` wrote (for .npy and .jsonl in OUT.meta.json), and compares all vectors.
asyncembed search articles.parquet "what is backpressure?" -k 2
asyncembed rerank "$reranker" "what is backpressure?" articles.parquet --column body -k 2

# In a pipe: texts on stdin, JSONL on stdout. --json is for programs, in every command.
printf 'one\ntwo\n' | asyncembed embed "$model" - | head -n 1 | cut -c 1-60
