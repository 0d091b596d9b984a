#!/usr/bin/env python3
"""Compare greedy answers to 20 prompts of 50 to 500 tokens with transformers, on a GGUF file.

transformers unpacks the file to f32. Usage:
  gguf_greedy.py OCELLI MODEL.gguf [--new 32] [--quant TYPE]

Needs torch, transformers and gguf. Prints one line per prompt: tokens of the prompt, whether all new
ids are equal, and, if not, where they part and by how much the reference's best two logits differ there.
"""

import argparse
import json
import os
import subprocess

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

TOPICS = [
    "The history of bread begins long before there were ovens",
    "A lighthouse keeper wrote in his diary every evening",
    "To repair a bicycle tyre you first take off the wheel",
    "The capital of France is Paris, and its river is the Seine",
    "Photosynthesis turns light, water and air into sugar",
    "def fibonacci(n):\n    a, b = 0, 1\n    for _ in range(n):",
    "Dear Sir or Madam, I am writing to complain about",
    "1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144",
    "Once upon a time a fox lived at the edge of a wood",
    "In a small pan, melt the butter over a low heat",
]
MORE = (
    " and then, as everybody knew, something else had to be said about it.",
    " Nobody could tell why, but it was so, and it had been so for years.",
    " There are three reasons for this: the first is cost, the second is time, and the third is habit.",
    " In 1923, 47 people saw it; in 1987 there were 3,206 of them.",
)


def prompts(tokenizer):
    """Twenty texts whose lengths rise from 50 to 500 tokens."""
    for i in range(20):
        want = 50 + 450 * i // 19
        text, at = TOPICS[i % len(TOPICS)], i
        while len(tokenizer(text).input_ids) < want:
            text += MORE[at % len(MORE)]
            at += 1
        yield tokenizer.decode(tokenizer(text).input_ids[:want])


def main():
    """Run both on every prompt."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ocelli")
    parser.add_argument("model")
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--quant")
    args = parser.parse_args()
    folder, file = os.path.split(os.path.abspath(args.model))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    if tokenizer.convert_tokens_to_ids("<gh_stars>") is not None:
        # The reader of GGUF files takes every byte-level tokenizer for GPT-2's; SmolLM's own
        # tokenizer.json takes digits apart first.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ])
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    texts = list(prompts(tokenizer))
    command = [args.ocelli, "generate", "-m", args.model, "-n", str(args.new), "--json"]
    command += ["--quant", args.quant] if args.quant else []
    for text in texts:
        command += ["-i", text]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    equal = 0
    for text, line in zip(texts, lines, strict=True):
        ours = json.loads(line)
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert ids.shape[1] == ours["prompt_tokens"], (ids.shape, ours["prompt_tokens"])
        with torch.no_grad():
            out = model.generate(
                ids, do_sample=False, max_new_tokens=args.new, output_logits=True,
                return_dict_in_generate=True,
            )
        theirs = out.sequences[0, ids.shape[1]:].tolist()
        same = theirs == ours["ids"]
        equal += same
        note = ""
        if not same:
            at = next((i for i, (a, b) in enumerate(zip(theirs, ours["ids"])) if a != b), -1)
            best = out.logits[at][0].topk(2).values
            note = f"  from new token {at} on, gap {float(best[0] - best[1]):.4f}"
        print(f"{ids.shape[1]:4} tokens  {'equal' if same else 'DIFFERENT'}{note}", flush=True)
    print(f"{equal} of {len(texts)} answers equal")


main()
