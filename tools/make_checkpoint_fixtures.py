"""Writes the small checkpoint files of testdata/checkpoint, which the tests of ocelli-nn read.

Run: python tools/make_checkpoint_fixtures.py     Needs: torch, numpy, safetensors.

`jax_vit.npz` beside them is the tiny JAX ViT of the golden data, copied.
Every tensor is a count 0, 1, 2, … of its own shape unless noted, so the tests know each value.
"""

import collections
import json
import os
import pathlib
import pickle
import sys
import zipfile

import numpy as np
import torch
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "testdata" / "checkpoint"


def count(*shape, dtype=torch.float32):
    return torch.arange(int(np.prod(shape))).reshape(shape).to(dtype)


def tensors():
    """One tensor of every kind: types, strides, offsets, shared storages, scalars, no elements."""
    base = count(4, 6)
    return collections.OrderedDict(
        f32=base,
        f16=count(2, 3, dtype=torch.float16) / 4,
        bf16=count(2, 3, dtype=torch.bfloat16) / 4,
        f64=count(5, dtype=torch.float64),
        i64=count(3, dtype=torch.int64) - 1,
        i32=count(3, dtype=torch.int32) - 1,
        i16=count(3, dtype=torch.int16) - 1,
        i8=count(3, dtype=torch.int8) - 1,
        u8=count(3, dtype=torch.uint8),
        bool=torch.tensor([True, False, True]),
        transposed=base.t(),  # shares the storage of f32
        window=base[1:3, 2:5],  # offset and row gap
        every_other=base[:, ::2],
        expanded=torch.tensor([[7.0]]).expand(3, 2),  # stride 0
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 4),
        parameter=torch.nn.Parameter(count(2, 2)),
    )


class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 2)
        self.norm = torch.nn.LayerNorm(2)

    def forward(self, x):
        return self.norm(self.fc(x))


class Tiny(torch.nn.Module):
    """Nested modules, a sequence, a buffer, a number, a half-precision weight: as CLIP's archive."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.Sequential(Block(), Block())
        self.proj = torch.nn.Parameter(count(2, 2).half())
        self.register_buffer("steps", torch.tensor(7))
        self.context_length = 77

    def forward(self, x):
        for block in self.blocks:
            x = block(torch.cat([x, x[:, :1]], 1))
        return x @ self.proj.float() + self.context_length


def write_torch():
    torch.save(tensors(), OUT / "zip.pt")
    torch.save(tensors(), OUT / "legacy.bin", _use_new_zipfile_serialization=False)
    wrapped = {
        "epoch": 3,
        "name": "tiny",
        "state_dict": {f"module.{name}": tensor for name, tensor in tensors().items()},
        "optimizer": {"state": {0: {"exp_avg": count(2)}}, "param_groups": [{"lr": 0.1}]},
    }
    torch.save(wrapped, OUT / "wrapped.pth")
    module = Tiny()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(count(*parameter.shape))
    torch.jit.script(module).save(str(OUT / "script.pt"))
    torch.save(module.state_dict(), OUT / "script_state.pt")
    torch.save({"x": torch.zeros(2, dtype=torch.complex64)}, OUT / "complex.pt")


class Shell:
    def __reduce__(self):
        return os.system, ("echo this must never run",)


def write_malicious():
    (OUT / "malicious.bin").write_bytes(pickle.dumps({"weight": Shell()}, protocol=2))
    torch.save({"weight": count(2), "extra": Shell()}, OUT / "malicious.pt")


def write_npz():
    arrays = dict(
        f4=np.arange(6, dtype="<f4").reshape(2, 3),
        f8=np.arange(6, dtype="<f8").reshape(2, 3),
        f2=np.arange(6, dtype="<f2").reshape(2, 3),
        i8=np.arange(3, dtype="<i8") - 1,
        i4=np.arange(3, dtype="<i4") - 1,
        u1=np.arange(3, dtype="u1"),
        b1=np.array([True, False, True]),
        fortran=np.asfortranarray(np.arange(24, dtype="<f4").reshape(2, 3, 4)),
        scalar=np.array(2.5, dtype="<f4"),
        empty=np.zeros((0, 4), dtype="<f4"),
        bf16=np.array([0x3F80, 0xC000], dtype="<u2").view("V2"),
    )
    arrays["layer/kernel"] = np.ones((2, 2), dtype="<f4")
    np.savez(OUT / "stored.npz", **arrays)
    np.savez_compressed(OUT / "deflated.npz", **arrays)
    np.savez(OUT / "big_endian.npz", x=np.arange(3, dtype=">f4"))
    np.savez(OUT / "objects.npz", x=np.array([{}, None], dtype=object))
    for version in (2, 3):
        with zipfile.ZipFile(OUT / f"version{version}.npz", "w") as archive:
            with archive.open("x.npy", "w") as member:
                np.lib.format.write_array(member, np.arange(3, dtype="<f4"), version=(version, 0))


def write_sharded():
    folder = OUT / "sharded"
    folder.mkdir(exist_ok=True)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file({"a": count(2, 2), "b": count(3)}, folder / names[0], {"format": "pt"})
    save_file({"c": count(4, dtype=torch.bfloat16)}, folder / names[1], {"format": "pt"})
    index = {
        "metadata": {"total_size": 36},
        "weight_map": {"a": names[0], "b": names[0], "c": names[1]},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    write_torch()
    write_malicious()
    write_npz()
    write_sharded()
    print(f"torch {torch.__version__}, numpy {np.__version__}", file=sys.stderr)
