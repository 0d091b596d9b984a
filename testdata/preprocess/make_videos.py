"""Makes videos/* and videos.safetensors: small GIFs and WebPs of six frames, and what Pillow reads.

Needs Pillow 13.0.0, numpy and safetensors. Tensors: `<file>` is convert("RGB") of each frame, [frames, h, w, 3].
Containers are written here, so that every way to dispose of a frame and to put one on another occurs.
"""
import io
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

here = Path(__file__).parent
WIDTH, HEIGHT, FRAMES = 14, 11, 6


def area(rng, first, even):
    """Left, top, width and height; the first frame is whole half of the time."""
    if first and rng.random() < 0.5:
        return 0, 0, WIDTH, HEIGHT
    left, top = int(rng.integers(WIDTH - 2)), int(rng.integers(HEIGHT - 2))
    if even:
        left, top = left // 2 * 2, top // 2 * 2
    return left, top, int(rng.integers(1, WIDTH - left + 1)), int(rng.integers(1, HEIGHT - top + 1))


def codes(indices):
    """LZW of eight colours that never learns a code: it starts anew before codes grow."""
    bits, n = 0, 0
    for i, index in enumerate(indices):
        if i % 6 == 0:
            bits, n = bits | 8 << n, n + 4
        bits, n = bits | int(index) << n, n + 4
    bits, n = bits | 9 << n, n + 4
    data = bits.to_bytes((n + 7) // 8, 'little')
    blocks = [data[i:i + 255] for i in range(0, len(data), 255)]
    return b'\x03' + b''.join(bytes([len(b)]) + b for b in blocks) + b'\0'


def gif(rng):
    palette = lambda: rng.integers(0, 256, 24, dtype=np.uint8).tobytes()
    out = b'GIF89a' + struct.pack('<HHBBB', WIDTH, HEIGHT, 0x82, int(rng.integers(8)), 0) + palette()
    for frame in range(FRAMES):
        left, top, width, height = area(rng, frame == 0, False)
        has_transparent, method = rng.random() < 0.6, int(rng.integers(4))
        flags = method << 2 | int(has_transparent)
        out += b'!\xf9\x04' + struct.pack('<BHBB', flags, 5, int(rng.integers(8)), 0)
        own, interlaced = rng.random() < 0.4, rng.random() < 0.3
        out += b',' + struct.pack('<HHHHB', left, top, width, height, (0x82 if own else 0) | (0x40 if interlaced else 0))
        out += palette() if own else b''
        out += codes(rng.integers(0, 8, width * height))
    return out + b';'


def chunk(name, data):
    return name + struct.pack('<I', len(data)) + data + b'\0' * (len(data) % 2)


def three(n):
    return struct.pack('<I', n)[:3]


def webp(rng, is_lossless=True):
    frames = b''
    for frame in range(FRAMES):
        left, top, width, height = area(rng, frame == 0, True)
        channels = 3 if rng.random() < 0.3 else 4
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        if channels == 4:
            alpha = pixels[..., 3]
            alpha[rng.random((height, width)) < 0.3] = 0
            alpha[rng.random((height, width)) < 0.3] = 255
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, 'webp', lossless=is_lossless, exact=True, quality=90)
        picture = file.getvalue()[12:]
        # A header of its own belongs to a file, not to a frame.
        picture = picture[18:] if picture.startswith(b'VP8X') else picture
        flags = int(rng.integers(4))
        head = three(left // 2) + three(top // 2) + three(width - 1) + three(height - 1) + three(50) + bytes([flags])
        frames += chunk(b'ANMF', head + picture)
    head = bytes([0x12, 0, 0, 0]) + three(WIDTH - 1) + three(HEIGHT - 1)
    data = b'WEBP' + chunk(b'VP8X', head) + chunk(b'ANIM', struct.pack('<IH', 0, 0)) + frames
    return b'RIFF' + struct.pack('<I', len(data)) + data


def lossy_webp(rng):
    return webp(rng, False)


def main(to, seeds):
    """`make_videos.py TO SEEDS` makes more of them elsewhere."""
    (to / 'videos').mkdir(exist_ok=True, parents=True)
    read = {}
    for make, ending in ((gif, 'gif'), (webp, 'webp'), (lossy_webp, 'webp')):
        for seed in range(1 if make == lossy_webp else seeds):
            name = f'{make.__name__}{seed}.{ending}'
            (to / 'videos' / name).write_bytes(make(np.random.default_rng(seed)))
            video = Image.open(to / 'videos' / name)
            assert video.n_frames == FRAMES
            frames = []
            for frame in range(FRAMES):
                video.seek(frame)
                frames.append(np.asarray(video.convert('RGB')))
            read[name] = np.stack(frames)
    save_file(read, to / 'videos.safetensors')


if __name__ == '__main__':
    main(Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) > 2 else main(here, 6)
