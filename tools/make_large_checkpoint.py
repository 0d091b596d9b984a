#!/usr/bin/env python3
"""Writes a checkpoint of a full-size model with random weights in bf16, one shard after the other.

Usage: tools/make_large_checkpoint.py LIST DIR [--like DIR] [--seed N]

LIST names tensors and their shapes, as testdata/shapes/llava-1.5-7b-hf.json does. Weights are normal,
scaled by the root of the inputs, so that activations stay in range through all blocks; norms are 1.
--like names a folder of the same family whose tokenizer is copied. Needs NumPy; takes the memory of
the largest tensor, and two bytes of disk for each value. config.json is that of LLaVA-1.5-7B.
"""
import argparse
import json
import pathlib
import shutil
import struct

import numpy as np

SHARD_BYTES = 4_900_000_000
CONFIG = {
    "model_type": "llava",
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
                    "vocab_size": 32064, "hidden_size": 4096, "intermediate_size": 11008,
                    "num_hidden_layers": 32, "num_attention_heads": 32},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 1024, "image_size": 336,
                      "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
                      "patch_size": 14, "projection_dim": 768},
}
PICTURES = {
    "image_processor_type": "CLIPImageProcessor", "do_center_crop": True, "do_convert_rgb": True,
    "do_normalize": True, "do_rescale": True, "do_resize": True, "resample": 3,
    "crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336},
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


def names(keys):
    """Each name with its shape; `{i}` runs over what `i` says."""
    for name, entry in keys.items():
        if "i" not in entry:
            yield name, entry["shape"]
            continue
        numbers = entry["i"]
        if isinstance(numbers, str):
            first, last = numbers.split("..")
            numbers = range(int(first), int(last) + 1)
        for i in numbers:
            yield name.replace("{i}", str(i)), entry["shape"]


def values(name, shape, rng):
    """bf16 as the upper halves of f32."""
    if len(shape) == 1:
        is_norm = "norm" in name and name.endswith("weight")
        drawn = np.full(shape, 1.0 if is_norm else 0.0, np.float32)
    else:
        drawn = rng.standard_normal(shape, np.float32)
        is_table = "embed" in name and "patch" not in name
        drawn *= 0.02 if is_table else np.prod(shape[1:], dtype=np.float64) ** -0.5
    return (drawn.view(np.uint32) >> 16).astype("<u2")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("list", type=pathlib.Path)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--like", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.dir.mkdir(parents=True, exist_ok=True)
    shards, size = [[]], 0
    for name, shape in names(json.loads(args.list.read_text())["keys"]):
        tensor = 2 * int(np.prod(shape, dtype=np.int64))
        if size + tensor > SHARD_BYTES and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append((name, shape, tensor))
        size += tensor
    rng = np.random.default_rng(args.seed)
    index = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        header, at = {}, 0
        for name, shape, tensor in shard:
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + tensor]}
            at += tensor
            index[name] = file
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(args.dir / file, "wb") as out:
            out.write(struct.pack("<Q", len(text)) + text)
            for name, shape, _ in shard:
                values(name, shape, rng).tofile(out)
        print(f"{file}: {at:,} bytes", flush=True)
    total = sum(tensor for shard in shards for _, _, tensor in shard)
    (args.dir / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}))
    if args.like:
        like = json.loads((args.like / "config.json").read_text())
        CONFIG["image_token_index"] = like["image_token_index"]
    (args.dir / "config.json").write_text(json.dumps(CONFIG, indent=1))
    (args.dir / "preprocessor_config.json").write_text(json.dumps(PICTURES, indent=1))
    if args.like:
        for file in sorted(args.like.iterdir()):
            if "token" in file.name or file.name == "generation_config.json":
                shutil.copy(file, args.dir / file.name)


main()
