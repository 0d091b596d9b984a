#!/usr/bin/env python3
"""Writes testdata/dataset/*.tar with Python's tarfile, one a format, for the tests of the tar index.

    tools/make_tar_fixtures.py
"""
import io, os, tarfile

OUT = os.path.join(os.path.dirname(__file__), '..', 'testdata', 'dataset')
LONG = 'folder/' + 'n' * 90 + '/' + 'm' * 60 + '.txt'
FORMATS = {'ustar': tarfile.USTAR_FORMAT, 'gnu': tarfile.GNU_FORMAT, 'pax': tarfile.PAX_FORMAT}


def add(archive, name, content, **fields):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(content))


os.makedirs(OUT, exist_ok=True)
for name, kind in FORMATS.items():
    with tarfile.open(os.path.join(OUT, f'{name}.tar'), 'w', format=kind) as archive:
        add(archive, 'a.txt', b'first')
        add(archive, 'folder', b'', type=tarfile.DIRTYPE)
        add(archive, LONG, b'long name')
        add(archive, 'link.txt', b'', type=tarfile.SYMTYPE, linkname='x' * (90 if name == 'ustar' else 150))
        # pax and GNU keep what ustar cannot: non-ASCII text and, in GNU, an id as a base-256 number.
        add(archive, 'b.txt' if name == 'ustar' else '画.txt', b'', uid=1 if name == 'ustar' else 1 << 30)
        add(archive, 'c.txt', bytes(range(256)) * 3)
