#!/usr/bin/env bash
# Runs every fuzz target for some seconds on stable Rust, from the files of testdata/ as seeds.
# Usage: tools/fuzz.sh [SECONDS] [TARGET ...]
# Needs a C++ compiler for libFuzzer. `cargo +nightly fuzz` adds the address sanitizer.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}
shift || true
host=$(rustc -vV | sed -n 's/^host: //p')
out=${CARGO_TARGET_DIR:-target}/fuzz
# What cargo-fuzz asks of the compiler, but for the sanitizer: counters of edges and comparisons.
flags="-Cpasses=sancov-module --cfg fuzzing -Cdebug-assertions=on"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$option"
done
RUSTFLAGS="$flags" CARGO_TARGET_DIR="$out" \
    cargo build --release --manifest-path fuzz/Cargo.toml --target "$host"
declare -A seeds=(
    [chat_template]=text [csv_rows]=dataset [gguf]=gguf [image_decode]=preprocess/images
    [npz]=checkpoint [pickle]=checkpoint [safetensors]=checkpoint [sentencepiece]=text
    [tar_index]=dataset [tokenizer_files]=text [tokenizer_text]=text
    [video_frames]=preprocess/videos
)
failed=()
for path in fuzz/fuzz_targets/*.rs; do
    target=$(basename "$path" .rs)
    [[ $# -eq 0 || " $* " == *" $target "* ]] || continue
    corpus=$out/corpus/$target
    mkdir -p "$corpus" "$out/found/$target"
    echo "== $target"
    "$out/$host/release/$target" "$corpus" "testdata/${seeds[$target]:-text}" \
        -max_total_time="$seconds" -timeout=20 -rss_limit_mb=3000 -max_len=300000 \
        -artifact_prefix="$out/found/$target/" 2>&1 | grep -E "^#.*DONE|ERROR|panicked|Test unit" || true
    [[ -z $(ls -A "$out/found/$target") ]] || failed+=("$target: see $out/found/$target")
done
if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
