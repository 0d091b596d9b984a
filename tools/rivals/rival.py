#!/usr/bin/env python3
"""One rival from its own Python package, behind the line protocol of `ocelli bench --interactive`.

Usage: rival.py ENGINE TASK TYPE SIZE DATA [--threads 2]
ENGINE is torch, onnxruntime, openvino or llama.cpp; SIZE is pictures or tokens, or for `embed` a folder of pictures.
Prints `ready`, then answers each line N on standard input with N times in milliseconds. TASK `once` runs once and
ends: its time is that of the whole process.
"""

import argparse
import os
import pathlib
import sys
import time

ONNX = {"vit-b16": "vit_b16", "clip-l14": "clip_l14"}
CLIP_L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 224, "patch_size": 14, "projection_dim": 768}
# Steps of an answer before the cache is cut back to the prompt.
ANSWER = 128


def pixels(batch):
    """The same pictures in every run."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((batch, 3, 224, 224), np.float32)


def ids(count):
    """Ids inside a vocabulary of 32,000 that do not repeat soon."""
    return [300 + i * 4099 % 31_000 for i in range(count)]


def torch_rival(args):
    """PyTorch as it comes, without compilation; bf16 training is its autocast."""
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    if args.task == "embed":
        return open_clip_loop(args)
    if args.task == "train":
        return torch_step(args)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.type]
    if args.task in ("prefill", "decode"):
        return torch_language(args, dtype)
    if args.task == "vit-b16":
        import timm

        model = timm.create_model("vit_base_patch16_224", pretrained=False)
    else:
        from transformers import CLIPVisionConfig, CLIPVisionModel

        model = CLIPVisionModel(CLIPVisionConfig(**CLIP_L14))
    model = model.eval().to(dtype)
    x = torch.from_numpy(pixels(args.size)).to(dtype)

    def work():
        with torch.inference_mode():
            model(x)

    return work


def torch_step(args):
    """A training step of ViT-S/16: forward, backward, fused AdamW."""
    import timm
    import torch

    model = timm.create_model("vit_small_patch16_224", pretrained=False).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x, labels = torch.from_numpy(pixels(args.size)), torch.arange(args.size)

    def work():
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=args.type == "bf16"):
            loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()

    return work


def torch_language(args, dtype):
    """transformers' LLaMA with its cache."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(args.data / "llama_1b_hf", dtype=dtype).eval()
    prompt = torch.tensor([ids(args.size)])

    def read():
        with torch.inference_mode():
            return model(prompt, use_cache=True, logits_to_keep=1).past_key_values

    if args.task == "prefill":
        return read
    cache = read()

    def work():
        if cache.get_seq_length() == args.size + ANSWER:
            cache.crop(args.size)
        with torch.inference_mode():
            model(prompt[:, :1], past_key_values=cache, use_cache=True)

    return work


def open_clip_loop(args):
    """Pictures from their files to vectors with open_clip, 32 at once."""
    import open_clip
    import torch
    from PIL import Image

    checkpoint = str(args.data / "clip_b32" / "open_clip_model.safetensors")
    model, _, prepare = open_clip.create_model_and_transforms("ViT-B-32", pretrained=checkpoint)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.type]
    model = model.eval().to(dtype)
    files = sorted(args.size.glob("*.jpg"))

    def work():
        with torch.inference_mode():
            for i in range(0, len(files), 32):
                batch = [prepare(Image.open(file).convert("RGB")) for file in files[i:i + 32]]
                model.encode_image(torch.stack(batch).to(dtype), normalize=True)

    return work


def onnxruntime_rival(args):
    """ONNX Runtime; int8 finds the scales of activations as it runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = args.threads
    name = ONNX[args.task] + {"f32": ".onnx", "int8": "_int8.onnx"}[args.type]
    session = onnxruntime.InferenceSession(str(args.data / name), options, providers=["CPUExecutionProvider"])
    x = {"x": pixels(args.size)}
    return lambda: session.run(None, x)


def openvino_rival(args):
    """OpenVINO for latency; int8 has the scales of activations from its calibration."""
    import openvino

    core = openvino.Core()
    graph = core.read_model(args.data / (ONNX[args.task] + ("_int8.xml" if args.type == "int8" else ".onnx")))
    graph.reshape([args.size, 3, 224, 224])
    options = {"INFERENCE_NUM_THREADS": args.threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1,
               "INFERENCE_PRECISION_HINT": "bf16" if args.type == "bf16" else "f32"}
    request = core.compile_model(graph, "CPU", options).create_infer_request()
    x = pixels(args.size)
    return lambda: request.infer([x], share_inputs=True)


def llama_rival(args):
    """llama.cpp on the GGUF file of the type, or on the file that TYPE names."""
    import llama_cpp

    name = args.type if args.type.endswith(".gguf") else str(args.data / f"llama_1b_{args.type}.gguf")
    model = llama_cpp.Llama(name, n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=args.threads,
                            n_threads_batch=args.threads, verbose=False)
    prompt = ids(args.size)

    def read():
        model.reset()
        model.eval(prompt)

    if args.task == "prefill":
        return read
    read()

    def work():
        if model.n_tokens == args.size + ANSWER:
            model.n_tokens = args.size
        model.eval(prompt[:1])

    return work


ENGINES = {"torch": torch_rival, "onnxruntime": onnxruntime_rival, "openvino": openvino_rival,
           "llama.cpp": llama_rival}


def main():
    """Set the engine up, then answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("task")
    parser.add_argument("type")
    parser.add_argument("size")
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    once = args.task == "once"
    args.task = "vit-b16" if once else args.task
    args.size = pathlib.Path(args.size) if args.task == "embed" else int(args.size)
    work = ENGINES[args.engine](args)
    if once:
        work()
        return
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - start))
        print(*(f"{t:.4f}" for t in times), flush=True)


main()
