#!/usr/bin/env python3
"""Make what the rivals run: models with random weights in every rival's format, and pictures.

Usage: make_models.py DATA [vit] [clip] [llama] [open_clip] [pictures]     (all, where none is named)
Times do not depend on the weights. Needs requirements.txt, 9 GB in DATA and 10 GB of memory.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from PIL import Image


def export(model, path):
    """The graph in ONNX with a free batch, and two copies of it in int8."""
    import nncf
    import openvino
    from onnxruntime.quantization import QuantType, quantize_dynamic

    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    torch.onnx.export(model.eval(), (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False, opset_version=17,
                      input_names=["x"], output_names=["y"], dynamic_axes=axes)
    # Scales of activations as the graph runs: ONNX Runtime reads this one.
    quantize_dynamic(path, path.with_name(f"{path.stem}_int8.onnx"), weight_type=QuantType.QInt8, per_channel=True)
    # Scales of activations from a few inputs beforehand: OpenVINO's way.
    inputs = nncf.Dataset(list(np.random.default_rng(0).standard_normal((8, 1, 3, 224, 224), np.float32)))
    graph = openvino.Core().read_model(path)
    graph = nncf.quantize(graph, inputs, model_type=nncf.ModelType.TRANSFORMER, subset_size=8)
    openvino.save_model(graph, path.with_name(f"{path.stem}_int8.xml"), compress_to_fp16=False)


class Hidden(torch.nn.Module):
    """A tower of transformers whose result is one tensor."""

    def __init__(self, tower):
        super().__init__()
        self.tower = tower

    def forward(self, x):
        return self.tower(pixel_values=x)[0]


def vit(data):
    """ViT-B/16 with a head of 1,000 classes: of timm, whose three projections are one product, in ONNX."""
    import timm
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(ViTConfig(num_labels=1000)).save_pretrained(data / "vit_b16_hf")
    model = timm.create_model("vit_base_patch16_224", pretrained=False)
    for block in model.blocks:
        block.attn.fused_attn = False  # The engines find the pattern of plain products themselves.
    export(model, data / "vit_b16.onnx")


def clip(data):
    """The image tower of CLIP ViT-L/14."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from rival import CLIP_L14

    config = CLIPVisionConfig(**CLIP_L14, attn_implementation="eager")
    export(Hidden(CLIPVisionModel(config)), data / "clip_l14.onnx")


# Names in a GGUF file, and those of transformers that they stand for.
OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
BLOCK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def llama(data):
    """LLaMA in the shape of TinyLlama, 1.1 B weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22,
                         num_attention_heads=32, num_key_value_heads=4, max_position_embeddings=2048)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(data / "llama_1b_hf")
    names = dict(OUTER)
    for i in range(config.num_hidden_layers):
        names.update({f"blk.{i}.{ours}": f"model.layers.{i}.{theirs}" for ours, theirs in BLOCK.items()})
    weights = {ours: model.get_parameter(f"{theirs}.weight").detach() for ours, theirs in names.items()}
    for kind in ("bf16", "q8_0", "q4_0"):
        write_gguf(data / f"llama_1b_{kind}.gguf", kind, config, weights)


def write_gguf(path, kind, config, weights):
    """One file; norms stay f32, as llama.cpp wants them."""
    import gguf

    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_tokenizer_model("llama")
    special = ["<unk>", "<s>", "</s>"]
    tokens = special + [f"<0x{i:02X}>" for i in range(256)]
    tokens += [f"word{i}" for i in range(config.vocab_size - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    of = gguf.TokenType
    plain = len(tokens) - len(special) - 256
    writer.add_token_types([of.UNKNOWN, of.CONTROL, of.CONTROL] + [of.BYTE] * 256 + [of.NORMAL] * plain)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, weight in weights.items():
        held = types.F32 if weight.ndim == 1 else types[kind.upper()]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight.float().numpy(), held), raw_dtype=held)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def open_clip(data):
    """CLIP ViT-B/32 as an open_clip folder, for pictures from their files to vectors."""
    import open_clip as package
    from safetensors.torch import save_file

    folder = data / "clip_b32"
    folder.mkdir(exist_ok=True)
    model = package.create_model("ViT-B-32", pretrained=None)
    mean, deviation = package.OPENAI_DATASET_MEAN, package.OPENAI_DATASET_STD
    config = {"model_cfg": package.get_model_config("ViT-B-32"), "preprocess_cfg": {"mean": mean, "std": deviation}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              folder / "open_clip_model.safetensors")


def pictures(data):
    """JPEGs of 12 and of 0.3 megapixels: shapes of many sizes under the noise of a sensor."""
    for name, width, height, count in (("large", 4000, 3000, 20), ("small", 640, 480, 100)):
        (data / "pictures" / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            chance = np.random.default_rng(i)
            canvas = np.zeros((height, width, 3), np.float32)
            for side in (4, 12, 40, 120):
                coarse = chance.integers(0, 256, (side * 3 // 4, side, 3), np.uint8)
                layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
                canvas += np.asarray(layer, np.float32) * (0.4 if side == 4 else 0.2)
            grain = chance.integers(-6, 7, (height // 2, width // 2, 1)).repeat(2, 0).repeat(2, 1)
            picture = Image.fromarray((canvas + grain).clip(0, 255).astype(np.uint8))
            picture.save(data / "pictures" / name / f"{i:03}.jpg", quality=88)


def main():
    """Make each part in its turn."""
    parts = {f.__name__: f for f in (vit, clip, llama, open_clip, pictures)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("parts", nargs="*", metavar="PART")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(parts):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(parts)}")
    args.data.mkdir(parents=True, exist_ok=True)
    for name in args.parts or parts:
        torch.manual_seed(0)
        parts[name](args.data)
        print(f"{name}: done", flush=True)


main()
