#!/usr/bin/env python3
"""Runs the models of fetch_models.py in their reference library and stores inputs and outputs for `ocelli verify`.

    tools/reference_real_models.py MODELS OUT IMAGE...        MODELS: output folder of fetch_models.py

Needs torch, transformers, safetensors, numpy, Pillow and onnxruntime + onnx (only with --onnx).

    OUT/dinov2_s   golden.safetensors: in/pixel_values, out/hidden_states.9 (after 9 blocks), out/last_hidden_state
    OUT/minilm     golden.safetensors: in/input_ids, in/attention_mask, in/token_type_ids, out/last_hidden_state,
                   and embed/embeddings: mean over the unmasked tokens, L2-normalised, as `ocelli embed` gives it

Each folder also holds golden.json (what was run, pictures or texts, distance of f32 from f64) and links to the
checkpoint files. Pictures are resized by Pillow, so in/pixel_values is also the answer for `ocelli preprocess`.
--onnx FILE compares the DINOv2 outputs with the ONNX file the weights were taken from.
"""
import argparse, json, os

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.numpy import save_file

SENTENCES = ['a photo of a cat', 'A kitten is sitting on the sofa.', 'fox', 'red circle', 'An astronaut in an orange suit smiles at the camera.',
             'Two people ride their bicycles along the river on a sunny day; the city behind them is already lit.']
HIDDEN = 9


def link_checkpoint(source, out):
    os.makedirs(out, exist_ok=True)
    for name in os.listdir(source):
        target = os.path.join(out, name)
        if not os.path.lexists(target):
            os.symlink(os.path.abspath(os.path.join(source, name)), target)


def store(out, what, reference, tensors, differences, **more):
    tensors = {name: np.ascontiguousarray(t) for name, t in tensors.items()}
    save_file(tensors, os.path.join(out, 'golden.safetensors'))
    index = {name: [str(t.dtype), list(t.shape)] for name, t in sorted(tensors.items())}
    about = dict(what=what, reference=reference, **more, f32_vs_f64_max_abs=differences, tensors=index)
    with open(os.path.join(out, 'golden.json'), 'w', encoding='utf8') as f:
        json.dump(about, f, ensure_ascii=False, indent=1)
    print(f'{out}: {what}; f32 from f64: {differences}')


def run_twice(model, run):
    """The f32 outputs by name, and for each the largest distance from the f64 run."""
    with torch.inference_mode():
        single, double = run(model.float()), run(model.double())
    return ({n: t.numpy() for n, t in single.items()},
            {n: float(f'{(t.double() - double[n]).abs().max().item():.3e}') for n, t in single.items()})


def dinov2(source, out, images, onnx):
    link_checkpoint(source, out)
    model = transformers.Dinov2Model.from_pretrained(source, attn_implementation='eager').eval()
    processor = transformers.BitImageProcessorPil.from_pretrained(source)
    pictures = [Image.open(path).convert('RGB') for path in images]
    pixels = torch.from_numpy(np.stack(processor(pictures, return_tensors='np')['pixel_values'])).float()

    def run(m):
        o = m(pixel_values=pixels.to(m.dtype), output_hidden_states=True)
        return {f'out/hidden_states.{HIDDEN}': o.hidden_states[HIDDEN], 'out/last_hidden_state': o.last_hidden_state}

    outputs, differences = run_twice(model, run)
    store(out, 'Dinov2Model on photographs; hidden_states.i = after block i (before the final norm)',
          f'transformers {transformers.__version__} Dinov2Model (eager attention)',
          {'in/pixel_values': pixels.numpy(), **outputs}, differences, images=[os.path.basename(p) for p in images])
    if onnx:
        compare_with_onnx(onnx, pixels.numpy(), outputs)


def compare_with_onnx(path, pixels, outputs):
    import onnx
    import onnxruntime
    taps = {f'out/hidden_states.{HIDDEN}': f'/backbone/encoder/layer.{HIDDEN - 1}/Add_1_output_0',
            'out/last_hidden_state': '/backbone/layernorm/Add_1_output_0'}
    model = onnx.load(path)
    for tap in taps.values():
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(tap))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
    found = session.run(list(taps.values()), {session.get_inputs()[0].name: pixels})
    for name, theirs in zip(taps, found):
        print(f'{name}: largest distance from ONNX Runtime {np.abs(theirs - outputs[name]).max():.3e} (largest value {np.abs(theirs).max():.1f})')


def minilm(source, out):
    link_checkpoint(source, out)
    model = transformers.BertModel.from_pretrained(source, attn_implementation='eager', add_pooling_layer=False).eval()
    batch = transformers.AutoTokenizer.from_pretrained(source)(SENTENCES, padding=True, return_tensors='pt')

    def run(m):
        hidden = m(**batch).last_hidden_state
        mask = batch['attention_mask'].to(hidden.dtype)[:, :, None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return {'out/last_hidden_state': hidden, 'embed/embeddings': torch.nn.functional.normalize(mean, dim=1)}

    outputs, differences = run_twice(model, run)
    store(out, 'BertModel on sentences; embed/embeddings = mean over unmasked tokens, L2-normalised',
          f'transformers {transformers.__version__} BertModel (eager attention)',
          {**{f'in/{n}': t.numpy() for n, t in batch.items()}, **outputs}, differences, texts=SENTENCES)


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('models')
    ap.add_argument('out')
    ap.add_argument('images', nargs='+')
    ap.add_argument('--onnx')
    a = ap.parse_args()
    dinov2(os.path.join(a.models, 'dinov2_s'), os.path.join(a.out, 'dinov2_s'), a.images, a.onnx)
    minilm(os.path.join(a.models, 'minilm'), os.path.join(a.out, 'minilm'))


if __name__ == '__main__':
    main()
