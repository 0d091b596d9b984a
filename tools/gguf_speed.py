#!/usr/bin/env python3
"""Measure prefill and decode of a GGUF file, tokens per second, in turns with llama.cpp.

Usage: gguf_speed.py OCELLI MODEL.gguf [--prompt 256] [--new 64] [--rounds 5] [--threads 2] [--quant TYPE]
Needs xllamacpp (or prints our figures alone without it) and nothing else. Medians over rounds.
"""

import argparse
import json
import os
import statistics
import subprocess

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
        import xllamacpp
    except ImportError:
        xllamacpp = None
    server = None
    if xllamacpp:
        params = xllamacpp.CommonParams()
        params.model.path = args.model
        params.n_ctx, params.n_batch, params.n_ubatch = 2048, 2048, 512
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
        server = xllamacpp.Server(params)
    figures = {"ocelli": [], "llama.cpp": []}
    for turn in range(args.rounds):
        tokens, prefill, decode = ours(args, prompt)
        figures["ocelli"].append((prefill, decode))
        if server:
            answer = server.handle_completions({
                "prompt": prompt, "n_predict": args.new, "temperature": 0.0, "cache_prompt": False,
                "ignore_eos": True,
            })
            answer = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
            times = answer["timings"]
            assert times["prompt_n"] in (tokens, tokens + 1), (times, tokens)
            figures["llama.cpp"].append((times["prompt_per_second"], times["predicted_per_second"]))
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
