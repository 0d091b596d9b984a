#!/usr/bin/env python3
"""Makes the model inside the binary from a finished run.

Usage: tools/pack_builtin.py RUN        (RUN/export is read, crates/models/assets/builtin written)

Weights become half precision; nothing else changes. Standard library only.
"""
import array
import json
import shutil
import struct
import sys
from pathlib import Path

LIMIT = 12_000_000  # Bytes of all files together.
VOCABULARY = ["vocab.json", "merges.txt"]


def main():
    export = Path(sys.argv[1]) / "export"
    target = Path(__file__).resolve().parent.parent / "crates/models/assets/builtin"
    target.mkdir(parents=True, exist_ok=True)
    raw = (export / "open_clip_model.safetensors").read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    data, out, at = raw[8 + length:], {}, 0
    blobs = []
    for name in sorted(header):
        entry = header[name]
        begin, end = entry["data_offsets"]
        if entry["dtype"] != "F32":
            sys.exit(f"{name}: expected F32, found {entry['dtype']}")
        values = array.array("f", data[begin:end])
        half = struct.pack(f"<{len(values)}e", *values)
        out[name] = {"dtype": "F16", "shape": entry["shape"], "data_offsets": [at, at + len(half)]}
        at += len(half)
        blobs.append(half)
    text = json.dumps(out, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    weights = struct.pack("<Q", len(text)) + text + b"".join(blobs)
    (target / "model.safetensors").write_bytes(weights)
    total = len(weights)
    for theirs, name in [("open_clip_config.json", "config.json"), *[(n, n) for n in VOCABULARY]]:
        shutil.copyfile(export / theirs, target / name)
        total += (target / name).stat().st_size
    print(f"{total} bytes, limit {LIMIT}")
    if total > LIMIT:
        sys.exit("the model is too large to ship")


main()
