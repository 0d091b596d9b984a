#!/usr/bin/env python3
"""Writes testdata/golden/flamingo/openflamingo_mosaic_gpt: an OpenFlamingo on a MosaicGPT, the first MPT.

    tools/make_mosaic_gpt_case.py          # needs torch and safetensors

The tower, the resampler and the layers between blocks are those of the case openflamingo_mpt. Without norms
of queries and keys the two language models are the same, so this plain writing of both is first held against
that case, whose numbers come from OpenFlamingo's own code.
"""
import json, os
import torch, torch.nn.functional as F
from safetensors.torch import load_file, save_file

GOLDEN = os.path.join(os.path.dirname(__file__), '..', 'testdata', 'golden', 'flamingo')
OURS = [('norm_1', 'ln_1'), ('norm_2', 'ln_2'), ('norm_f', 'ln_f'), ('ffn.up_proj', 'mlp.mlp_up'),
        ('ffn.down_proj', 'mlp.mlp_down')]
BLOCK = 'lang_encoder.transformer.blocks.{}.'
HEADS = {'lang': 4, 'clip': 2, 'perceiver': 3, 'gated': 3}


class Model:
    def __init__(self, weights, config):
        self.w, self.c = weights, config

    def norm(self, x, name):
        return F.layer_norm(x, x.shape[-1:], self.w[name + '.weight'], self.w.get(name + '.bias'))

    def linear(self, x, name):
        return F.linear(x, self.w[name + '.weight'], self.w.get(name + '.bias'))

    def attend(self, q, k, v, heads, bias=0.0, zero=None):
        split = lambda t: t.unflatten(-1, (heads, -1)).transpose(-3, -2)
        q, k, v = split(q), split(k), split(v)
        share = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias).softmax(-1)
        if zero is not None:
            share = share.masked_fill(zero, 0.0)
        return (share @ v).transpose(-3, -2).flatten(-2)

    def tower(self, pixels):
        p = 'vision_encoder.'
        x = F.conv2d(pixels, self.w[p + 'conv1.weight'], stride=self.c['clip_vision']['patch'])
        x = x.flatten(2).transpose(1, 2)
        first = self.w[p + 'class_embedding'].expand(len(x), 1, -1)
        x = self.norm(torch.cat([first, x], 1) + self.w[p + 'positional_embedding'], p + 'ln_pre')
        for i in range(self.c['clip_vision']['layers']):
            b = f'{p}transformer.resblocks.{i}.'
            y = self.norm(x, b + 'ln_1')
            q, k, v = F.linear(y, self.w[b + 'attn.in_proj_weight'], self.w[b + 'attn.in_proj_bias']).chunk(3, -1)
            x = x + self.linear(self.attend(q, k, v, HEADS['clip']), b + 'attn.out_proj')
            y = self.linear(self.norm(x, b + 'ln_2'), b + 'mlp.c_fc')
            x = x + self.linear(y * torch.sigmoid(1.702 * y), b + 'mlp.c_proj')
        return x[:, 1:]

    def feed(self, x, name):
        y = F.gelu(self.linear(self.norm(x, name + '0'), name + '1'))
        return x, self.linear(y, name + '3')

    def media(self, pixels):
        batch, media, frames = pixels.shape[:3]
        x = self.tower(pixels.flatten(0, 2)).unflatten(0, (batch, media, frames)).flatten(2, 3)
        latents = self.w['perceiver.latents'].expand(batch, media, -1, -1)
        for i in range(self.c['perceiver']['depth']):
            b = f'perceiver.layers.{i}.'
            seen, own = self.norm(x, b + '0.norm_media'), self.norm(latents, b + '0.norm_latents')
            k, v = self.linear(torch.cat([seen, own], -2), b + '0.to_kv').chunk(2, -1)
            mixed = self.attend(self.linear(own, b + '0.to_q'), k, v, HEADS['perceiver'])
            latents = latents + self.linear(mixed, b + '0.to_out')
            latents = sum(self.feed(latents, b + '1.'))
        return self.norm(latents, 'perceiver.norm')

    def look(self, x, media, time, name):
        count, each = media.shape[1:3]
        which = torch.arange(1, count + 1).repeat_interleave(each)
        hidden = (time[:, None, :, None] != which) * -torch.finfo(x.dtype).max
        k, v = self.linear(media.flatten(1, 2), name + 'attn.to_kv').chunk(2, -1)
        q = self.linear(self.norm(x, name + 'attn.norm'), name + 'attn.to_q')
        mixed = self.attend(q, k, v, HEADS['gated'], hidden, (time == 0)[:, None, :, None])
        x = x + torch.tanh(self.w[name + 'attn_gate']) * self.linear(mixed, name + 'attn.to_out')
        x, y = self.feed(x, name + 'ff.')
        return x + torch.tanh(self.w[name + 'ff_gate']) * y

    def logits(self, ids, mask, media, words):
        x, tokens = words[ids], ids.shape[1]
        time = (ids == self.c['media_token_id']).cumsum(-1)
        slopes = 2.0 ** (-8.0 * torch.arange(1, HEADS['lang'] + 1) / HEADS['lang'])
        bias = slopes[:, None, None] * torch.arange(1 - tokens, 1)
        least = torch.finfo(x.dtype).min
        bias = bias.masked_fill(~mask[:, None, None, :].bool(), least)
        bias = bias.masked_fill(torch.ones(tokens, tokens, dtype=bool).triu(1), least)
        for i in range(self.c['lm_config']['n_layers']):
            b = BLOCK.format(i)
            x = self.look(x, media, time, b + 'gated_cross_attn_layer.')
            b += 'decoder_layer.'
            q, k, v = self.linear(self.norm(x, b + 'ln_1'), b + 'attn.Wqkv').chunk(3, -1)
            if b + 'attn.q_ln.weight' in self.w:
                q, k = self.norm(q, b + 'attn.q_ln'), self.norm(k, b + 'attn.k_ln')
            x = x + self.linear(self.attend(q, k, v, HEADS['lang'], bias), b + 'attn.out_proj')
            x = x + self.linear(F.gelu(self.linear(self.norm(x, b + 'ln_2'), b + 'mlp.mlp_up')), b + 'mlp.mlp_down')
        return F.linear(self.norm(x, 'lang_encoder.transformer.ln_f'), words)


def results(model, case):
    pixels, ids, labels = case['in/pixel_values'], case['in/input_ids'], case['in/labels']
    words = model.w['lang_encoder.transformer.wte.weight']
    parameters = {n: t.requires_grad_() for n, t in model.w.items()}
    logits = model.logits(ids, case['in/attention_mask'], model.media(pixels), words)
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    out = {'out/logits': logits.detach(), 'out/loss': loss.detach(), 'grad/input_embeddings': words.grad}
    for name, tensor in parameters.items():
        if 'q_ln' in name or 'k_ln' in name or 'grad/' + name in case:
            out['grad/' + name] = tensor.grad
    said, media, margin = case['gen/prompt_ids'], model.media(pixels[:1]), []
    while said.shape[1] < case['gen/full_forward_ids'].shape[1]:
        last = model.logits(said, torch.ones_like(said), media, words)[0, -1]
        best = last.topk(2)
        margin.append((best.values[0] - best.values[1]).item())
        said = torch.cat([said, best.indices[:1, None]], 1)
    out['gen/full_forward_ids'] = said
    return out, min(margin)


def main():
    mpt = os.path.join(GOLDEN, 'openflamingo_mpt')
    config = json.load(open(os.path.join(mpt, 'config.json')))
    case = load_file(os.path.join(mpt, 'golden.safetensors'))
    # In 64 bits, so that only what is compared rounds.
    torch.set_default_dtype(torch.float64)
    case = {n: t.double() if t.is_floating_point() else t for n, t in case.items()}
    weights = {}
    for name, tensor in load_file(os.path.join(mpt, 'model.safetensors')).items():
        for theirs, ours in OURS:
            name = name.replace(theirs, ours)
        weights[name] = tensor.double()
    del weights['lang_encoder.lm_head.weight']
    known, _ = results(Model({n: t.clone() for n, t in weights.items()}, config), case)
    for name, value in known.items():
        there = case['in/attention_mask'].bool() if name == 'out/logits' else slice(None)
        far = (value[there] - case[name][there]).abs().max().item() if value.dim() else abs(value - case[name]).item()
        print(f'{name}: {far:.1e} from OpenFlamingo')
        assert far < 1e-4, name
    torch.manual_seed(7)
    for i in range(config['lm_config']['n_layers']):
        for part in 'qk':
            name = BLOCK.format(i) + f'decoder_layer.attn.{part}_ln.weight'
            weights[name] = 1.0 + 0.5 * torch.randn(config['lm_config']['d_model'], dtype=torch.float32).double()
    made, margin = results(Model({n: t.clone() for n, t in weights.items()}, config), case)
    made |= {n: t for n, t in case.items() if n.startswith('in/') or n == 'gen/prompt_ids'}
    config |= {'lm': 'mosaic_gpt', 'lm_config': {
        'model_type': 'mosaic_gpt', 'vocab_size': 60, 'd_model': 32, 'n_layers': 2, 'n_heads': 4, 'mlp_ratio': 4,
        'max_seq_len': 64, 'no_bias': True, 'alibi': True, 'alibi_bias_max': 8, 'attn_qk_ln': True,
        'attn_clip_qkv': None, 'softmax_scale': None, 'prefix_lm': False, 'attn_uses_sequence_id': False,
        'logit_scale': None}}
    config |= {'weights_seed': 7, 'greedy_min_margin': margin}
    for stale in ('released_checkpoint_keys', 'state_dict_aliases_left_out'):
        del config[stale]
    to = os.path.join(GOLDEN, 'openflamingo_mosaic_gpt')
    os.makedirs(to, exist_ok=True)
    for file, tensors in ('model', weights), ('golden', made):
        stored = {n: (t.float() if t.is_floating_point() else t).contiguous() for n, t in tensors.items()}
        save_file(stored, os.path.join(to, f'{file}.safetensors'), {'format': 'pt'})
    with open(os.path.join(to, 'config.json'), 'w') as file:
        json.dump(config, file, indent=1)


main()
