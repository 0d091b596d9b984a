#!/usr/bin/env python3
"""Opens what `ocelli train` exported in the library that its layout is of, and compares.

Usage: tools/verify_exports.py OCELLI EXPORT... [-- PICTURE...]
       EXPORT are folders named `export` in runs of CLIP (ViT: transformers, ResNet: open_clip) or of a
       ViT classifier (transformers). The pictures are PNG or JPEG files, by default six of random
       colours. Needs torch, transformers, open_clip_torch, safetensors and Pillow. Ends with 1 if a
       largest difference is above 1e-4.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save_file

TEXTS = ["a red fox", "pizza & tea", "an umbrella with rain drops"]
LIMIT = 1e-4


def run(*command):
    return subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, check=True).stdout


def ours(ocelli, export, pictures, folder):
    """Pixels, and embeddings of pictures and texts, as the program computes them."""
    out = Path(folder) / "out.safetensors"
    run(ocelli, "preprocess", "-m", export, *pictures, "-o", out)
    pixels = load_file(out)["pixel_values"]
    run(ocelli, "embed", "-m", export, *pictures, "-o", out)
    images = load_file(out)["embeddings"]
    run(ocelli, "embed", "-m", export, *[a for t in TEXTS for a in ("--text", t)], "-o", out)
    return pixels, images, load_file(out)["embeddings"]


def unit(rows):
    return rows / rows.norm(dim=-1, keepdim=True)


def embedded(rows):
    """The embeddings in what a method of the library gives, which depends on its version."""
    return unit(getattr(rows, "pooler_output", rows))


def compare(ocelli, export, pictures, folder):
    if (export / "open_clip_config.json").is_file():
        import open_clip

        model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{export}")
        model.eval()
        pixels, images, texts = ours(ocelli, export, pictures, folder)
        yield "images", images, unit(model.encode_image(pixels))
        yield "texts", texts, unit(model.encode_text(ids_of(ocelli, export, model.context_length)))
        return
    import transformers

    config = json.loads((export / "config.json").read_text())
    if config["model_type"] == "clip":
        model, info = transformers.CLIPModel.from_pretrained(export, output_loading_info=True)
        check_loaded(info)
        transformers.CLIPImageProcessor.from_pretrained(export)
        tokenizer = transformers.CLIPTokenizer.from_pretrained(export)
        model.eval()
        pixels, images, texts = ours(ocelli, export, pictures, folder)
        yield "images", images, embedded(model.get_image_features(pixel_values=pixels))
        rows = [tokenizer(t, truncation=True, return_tensors="pt")["input_ids"] for t in TEXTS]
        theirs = [embedded(model.get_text_features(input_ids=row)) for row in rows]
        yield "texts", texts, torch.cat(theirs)
        return
    model, info = transformers.ViTForImageClassification.from_pretrained(
        export, output_loading_info=True
    )
    check_loaded(info)
    model.eval()
    out = Path(folder) / "out.safetensors"
    run(ocelli, "preprocess", "-m", export, *pictures, "-o", out)
    theirs = model(pixel_values=load_file(out)["pixel_values"]).logits.softmax(-1)
    rows = run(ocelli, "classify", "-m", export, "--top", 1000, "--jsonl", *pictures).splitlines()
    ours_ = [{e["label"]: e["prob"] for e in json.loads(row)["labels"]} for row in rows]
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    yield "probabilities", torch.tensor([[row[n] for n in names] for row in ours_]), theirs


def check_loaded(info):
    left = {key: value for key, value in info.items() if value}
    if left:
        sys.exit(f"not loaded as it is: {left}")


def ids_of(ocelli, export, context_length):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    done = subprocess.run(
        [ocelli, "tokenize", "-m", export], input=lines, text=True, stdout=subprocess.PIPE, check=True
    )
    rows = [json.loads(line)["ids"] for line in done.stdout.splitlines()]
    return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])


def main():
    arguments = sys.argv[1:]
    pictures = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, pictures = arguments[:at], arguments[at + 1:]
    ocelli, exports = arguments[0], [Path(a).resolve() for a in arguments[1:]]
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        if not pictures:
            torch.manual_seed(1)
            for i in range(6):
                noise = torch.randint(0, 256, (5, 7, 3), dtype=torch.uint8).numpy()
                pictures.append(f"{folder}/{i}.png")
                Image.fromarray(noise).resize((70, 50)).save(pictures[-1])
        for export in exports:
            for what, a, b in compare(ocelli, export, pictures, folder):
                difference = (a - b).abs().max().item()
                worst = max(worst, difference)
                print(f"{export}: {what} {list(a.shape)}, largest difference {difference:.1e}")
    sys.exit(worst > LIMIT)


main()
