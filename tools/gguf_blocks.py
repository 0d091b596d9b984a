#!/usr/bin/env python3
"""Write testdata/gguf/blocks.gguf, a tensor of every type that is read, and its values beside it.

Blocks are random bytes with sound scales; the values are those that the gguf package unpacks.
Usage: gguf_blocks.py [FOLDER]. Needs gguf, numpy and safetensors.
"""

import sys

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file

# Where a block has its f16 scales.
SCALES = {Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}


def main():
    """Draw the tensors and write both files."""
    folder = sys.argv[1] if len(sys.argv) > 1 else "testdata/gguf"
    random = np.random.default_rng(20)
    writer = gguf.GGUFWriter(f"{folder}/blocks.gguf", "llama")
    writer.add_array("test.texts", ["a", "b\u00e9"])
    writer.add_float32("test.number", 0.5)
    values = {}
    for kind, scales in SCALES.items():
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rows, blocks = 4, 2
        data = random.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
        for at in scales:
            halves = random.normal(0, 0.1, (rows, blocks)).astype(np.float16)
            data[:, :, at : at + 2] = halves[..., None].view(np.uint8)
        data = data.reshape(rows, blocks * size)
        name = kind.name.lower()
        writer.add_tensor(name, data, raw_dtype=kind)
        values[name] = gguf.dequantize(data, kind).astype(np.float32).reshape(rows, blocks * block)
    for kind, dtype in [(Type.F32, np.float32), (Type.F16, np.float16)]:
        plain = random.normal(0, 1, (3, 5)).astype(dtype)
        writer.add_tensor(kind.name.lower(), plain)
        values[kind.name.lower()] = plain.astype(np.float32)
    upper = (random.normal(0, 1, (3, 4)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    writer.add_tensor("bf16", upper.view(np.uint8).reshape(3, 8), raw_dtype=Type.BF16)
    values["bf16"] = (upper.astype(np.uint32) << 16).view(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(values, f"{folder}/blocks.safetensors")


main()
