#!/usr/bin/env python3
"""Measure prefill and decode of a GGUF file, tokens per second, in turns with llama.cpp.

Usage: gguf_speed.py OCELLI MODEL.gguf [--prompt 256] [--new 64] [--rounds 5] [--threads 2] [--quant TYPE]
Without llama-cpp-python it prints our figures alone. Build that package for the machine, or it has no
instructions beyond AVX2: CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python llama-cpp-python
Medians over rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import time

WORDS = "the quick brown fox jumps over a lazy dog while seven old men count their boats by the sea and sing"


def ours(args, prompt):
    """A batch of eight short prompts first, so that nothing of what is measured is set up on the way."""
    command = [args.ocelli, "generate", "-m", args.model, "-n", str(args.new), "--json"]
    command += ["--quant", args.quant] if args.quant else []
    for text in ["warm up"] * 8 + [prompt]:
        command += ["-i", text]
    env = dict(os.environ, OCELLI_THREADS=str(args.threads))
    lines = subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout
    line = json.loads(lines.splitlines()[-1])
    steps = max(line["generated_tokens"] - 1, 1)
    return line["prompt_tokens"], 1e3 * line["prompt_tokens"] / line["prefill_ms"], 1e3 * steps / line["decode_ms"]


def main():
    """Run both in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ocelli")
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quant")
    args = parser.parse_args()
    words = WORDS.split()
    prompt = " ".join(words[i % len(words)] for i in range(args.prompt))
    try:
        import llama_cpp
    except ImportError:
        llama_cpp = None
    if llama_cpp:
        theirs = llama_cpp.Llama(args.model, n_ctx=2048, n_batch=2048, n_ubatch=512, n_threads=args.threads,
                                 n_threads_batch=args.threads, verbose=False)
        ids = theirs.tokenize(prompt.encode(), add_bos=False)
    figures = {"ocelli": [], "llama.cpp": []}
    for _ in range(args.rounds):
        tokens, prefill, decode = ours(args, prompt)
        figures["ocelli"].append((prefill, decode))
        if llama_cpp:
            assert len(ids) in (tokens, tokens + 1), (len(ids), tokens)
            theirs.reset()
            start = time.perf_counter()
            theirs.eval(ids)
            read = time.perf_counter()
            for i in range(args.new):
                theirs.eval([ids[i % len(ids)]])
            done = time.perf_counter()
            figures["llama.cpp"].append((len(ids) / (read - start), args.new / (done - read)))
    medians = {}
    for name, rows in figures.items():
        if rows:
            medians[name] = [statistics.median(column) for column in zip(*rows)]
            prefill, decode = medians[name]
            print(f"{name:10} prefill {prefill:8.1f}   decode {decode:8.1f} tokens/s")
    if len(medians) == 2:
        ratios = [a / b for a, b in zip(medians["ocelli"], medians["llama.cpp"])]
        print(f"ratio      prefill {ratios[0]:8.2f}   decode {ratios[1]:8.2f}")


main()
