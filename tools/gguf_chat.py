#!/usr/bin/env python3
"""Write testdata/gguf/chat.gguf: the tiny LLaMA of testdata/golden/backbones/llama_gqa as a chat model.

The weights are the same in f32 with the rows of queries and keys in the order of this format, the
tokenizer is its SentencePiece model, and a chat template is added. Usage: gguf_chat.py [OUT.gguf].
Needs gguf, numpy, safetensors and sentencepiece.
"""

import json
import sys

import gguf
import sentencepiece
from safetensors.numpy import load_file

MODEL = "testdata/golden/backbones/llama_gqa"
TEMPLATE = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- raise_exception('this model has no system message') }}
    {%- endif %}
[{{ message.role }}] {{ message.content.strip() }}{{ eos_token if message.role == 'assistant' }}
{% endfor %}
{%- if add_generation_prompt %}[assistant]{% endif %}"""


def interleaved(weight, heads):
    """Rows of each head in pairs that turn together, as in this format."""
    rows, width = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, width)
    return halves.swapaxes(1, 2).reshape(rows, width)


def main():
    """Write the file."""
    out = sys.argv[1] if len(sys.argv) > 1 else "testdata/gguf/chat.gguf"
    with open(f"{MODEL}/config.json", encoding="utf-8") as file:
        config = json.load(file)
    weights = load_file(f"{MODEL}/model.safetensors")
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{MODEL}/tokenizer.model")
    writer = gguf.GGUFWriter(out, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    kinds = {pieces.is_unknown: 2, pieces.is_control: 3, pieces.is_unused: 5, pieces.is_byte: 6}
    ids = range(pieces.vocab_size())
    writer.add_tokenizer_model("llama")
    writer.add_token_list([pieces.id_to_piece(i) for i in ids])
    writer.add_token_scores([pieces.get_score(i) for i in ids])
    writer.add_token_types([next((n for is_kind, n in kinds.items() if is_kind(i)), 1) for i in ids])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_chat_template(TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in weights.items():
        projection = name.split(".")[-2]
        if projection in heads:
            weight = interleaved(weight, heads[projection])
        writer.add_tensor(names.get_name(name, (".weight",)), weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
