#!/usr/bin/env python3
"""Builds the bilingual picture-text training set from permissively licensed drawings.

    tools/fetch_training_pictures.py OUT [--cache DIR]

Needs Python 3.11 (standard library only) and npm; `apt-get` and `dpkg-deb` add Open Clip Art
(run `apt-get update` before). Packages are pinned by version and fetched by name; nothing in them is run.

Writes WebDataset tar shards (picture + json a sample; SVG, or WebP where the source is WebP):

    OUT/train-NNNN.tar      emoji drawings, joined to a Unicode emoji and so to English and Chinese text
    OUT/icons-NNNN.tar      named icons, flags and clip art: noisier text, most of it English only
    OUT/val.tar             2 % of the training samples, not in the shards above
    OUT/test-twemoji.tar    every test concept drawn in Twemoji, a style that is never trained on
    OUT/labels_test.txt     English names of the test concepts, in the order of test-twemoji.tar
    OUT/labels_heldout.txt  the names among them that are trained on in no style
    OUT/heldout_concepts.json, OUT/index.json   the held-out concepts; counts by style and licence, attribution

Json of a sample: id, label_en, label_zh, tags_en, tags_zh, captions_en, captions_zh, group, style, licence
and, where joined, hexcode. Test samples add `index` (row of labels_test.txt) and `heldout`.

Test concepts: the emoji that Noto, Fluent flat, Twemoji and OpenMoji all draw (OpenMoji and EmojiOne are
share-alike or restrictive: of OpenMoji only the list of code points is read, of EmojiOne nothing).
Held out: the first 200 test concepts in the order of sha256(hexcode), leaving out clock faces and joined
sequences (woman farmer, ...), whose near twins would stay in training. A sample is dropped from training if
it is of a held-out code point (skin tones and gendered forms included), if its label or a short name equals
a held-out label, or, for named icons and clip art, if its name or a tag contains one as a run of words.
A text that equals a held-out label is taken out of the captions of other emoji; the words of such labels do
occur inside longer captions (the dog may be held out while the dog face is not).
"""
import argparse, collections, colorsys, hashlib, html, io, json, os, re, sys, tarfile

from package_clients import Packages

HELD_OUT = 200
VAL_SHARE = 0.02
SHARD_SAMPLES = 2048
MAX_PICTURE_BYTES = 200_000
MAX_CLIPART_BYTES = 60_000
ALLOWED = {'Apache-2.0', 'MIT', 'CC0-1.0', 'CC-BY-3.0', 'CC-BY-4.0'}
EMOJIBASE = 'emojibase-data@17.0.0'
FLUENT_3D = '@lobehub/fluent-emoji-3d@1.1.0'
CLIPART = 'openclipart-svg=1:0.18+dfsg-19'
TEST_STYLE, REFERENCE_ONLY = ('twemoji', '1.2.5'), ('openmoji', '1.2.29')
EMOJI_STYLES = {'noto': '1.2.9', 'noto-v1': '1.2.5', 'fluent-emoji-flat': '1.2.6', 'fluent-emoji': '1.2.7',
                'fluent-emoji-high-contrast': '1.2.6', 'fxemoji': '1.2.2', 'streamline-emojis': '1.2.4'}
ICON_STYLES = {'icon-park': '1.2.4', 'flat-color-icons': '1.2.3', 'fluent-color': '1.2.21', 'meteocons': '1.2.4',
               'marketeq': '1.2.2', 'flat-ui': '1.2.3', 'streamline-color': '1.2.2', 'streamline-ultimate-color': '1.2.2',
               'streamline-plump-color': '1.2.2', 'streamline-freehand-color': '1.2.2', 'streamline-kameleon-color': '1.2.2',
               'streamline-stickies-color': '1.2.2', 'streamline-flex-color': '1.2.2', 'streamline-cyber-color': '1.2.2',
               'streamline-sharp-color': '1.2.2', 'game-icons': '1.2.4', 'mdi': '1.2.3', 'ph': '1.2.2', 'fa6-solid': '1.2.4',
               'healthicons': '1.2.13', 'temaki': '1.2.6', 'maki': '1.2.5'}
FLAG_STYLES = {'flag': '1.2.12', 'circle-flags': '1.2.11', 'flagpack': '1.2.8', 'cif': '1.2.7'}
# One drawing an icon: the filled variant where a set draws every icon several times.
ONLY_SUFFIX = {'ph': '-fill', 'flag': '-4x3'}
SKIP_NAME = {'mdi': r'-outline|-variant|-box|-circle-', 'healthicons': r'-outline|-negative|24px', 'maki': r'-1[15]$',
             'meteocons': r'-fill|code-|uv-index|beaufort', 'circle-flags': r'^lang-'}
STYLE_WORDS = {'fill', 'flat', 'duo', 'duotone', 'outline', 'variant', '16', '20', '24', '28', '32', '48', 'one', 'two',
               'filled', 'solid', 'circle', 'square'}
WEAK_WORDS = {'button', 'arrow', 'arrows', 'a', 'in', 'of', 'on', 'up', 'down', 'left', 'right', 'and', 'the', 'with', 'to', 'no', 'off',
              'left-right', 'circle', 'square', 'box', 'symbol', 'sign', 'mark', 'text', 'file', 'folder', 'page', 'screen', 'input',
              'alpha', 'sort', 'user', 'menu', 'tab', 'data', 'computer', 'mobile', 'back', 'end', 'new', 'x', 'o', 'm', 'i', 'b'}
NOT_CLIPART = re.compile(r'theme|gramastar|part of the flat|lemon svg|clipart by|unnamed|untitled|aiga.symbol|hash|various clipart', re.I)
ADULT = re.compile(r'stripper|nude|naked|sex|porn|penis|breast', re.I)


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


def bare(hexcode):
    """A code point sequence in upper case without variation selectors, so that every set spells it alike."""
    return hexcode.upper().replace('-FE0F', '')


def words(text):
    """Lower-case words, plurals cut, for comparing names of different origin."""
    found = re.findall(r'[^\W_]+', text.lower().replace("'", '').replace('’', ''))
    return tuple(w[:-1] if len(w) > 3 and w.endswith('s') and not w.endswith('ss') else w for w in found)


def contains(text, run):
    """Whether the words of `text` contain the words `run` one after another."""
    w = words(text)
    return any(w[i:i + len(run)] == run for i in range(len(w) - len(run) + 1))


def load(*path):
    with open(os.path.join(*path), encoding='utf8') as f:
        return json.load(f)


class IconSet:
    """One icon package: drawings by name, the licence of the set and its code point map if it has one."""

    def __init__(self, packages, prefix, version):
        self.prefix, folder = prefix, packages.npm(f'@iconify-json/{prefix}@{version}')
        self.data, self.info = load(folder, 'icons.json'), load(folder, 'info.json')
        self.licence = self.info['license']['spdx']
        chars = os.path.join(folder, 'chars.json')
        self.chars = {h.upper(): n for h, n in load(chars).items()} if os.path.exists(chars) else {}
        meta = os.path.join(folder, 'metadata.json')
        self.group = {n: g for g, names in (load(meta).get('categories', {}) if os.path.exists(meta) else {}).items() for n in names}

    def resolve(self, name):
        """The name under which the drawing is stored; None for unknown names and mirrored or turned copies."""
        alias = self.data.get('aliases', {}).get(name)
        if name not in self.data['icons'] and alias and set(alias) == {'parent'}:
            name = alias['parent']
        return name if name in self.data['icons'] else None

    def svg(self, name):
        icon = self.data['icons'][name]
        get = lambda key, default: icon.get(key, self.data.get(key, default))
        body = icon['body']
        if 'currentColor' in body:  # a single-colour icon: a strong colour that depends on the drawing alone
            seed = int(sha(f'{self.prefix}/{name}')[:8], 16)
            rgb = colorsys.hls_to_rgb(seed % 997 / 997, 0.25 + seed // 997 % 100 / 400, 0.3 + seed // 99700 % 100 / 143)
            body = body.replace('currentColor', '#' + ''.join(f'{round(255 * c):02x}' for c in rgb))
        w, h = get('width', 16), get('height', 16)
        return ('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'width="{w}" height="{h}" viewBox="{get("left", 0)} {get("top", 0)} {w} {h}">{body}</svg>').encode()


class Emoji:
    """Labels, tags and short names of the Unicode emoji in English and Chinese, found by code point or by name."""

    def __init__(self, folder):
        self.en = {e['hexcode']: e for e in load(folder, 'en/data.json') if e.get('group') is not None}
        self.zh = {e['hexcode']: e for e in load(folder, 'zh/data.json')}
        self.groups = {g['order']: g['message'] for g in load(folder, 'en/messages.json')['groups']}
        self.by_bare = {bare(h): h for h in self.en}
        self.short, self.by_name = collections.defaultdict(list), {}
        for h, e in self.en.items():
            self.by_name.setdefault(self.squash(e['label']), h)
        for preset in ('cldr', 'emojibase', 'github', 'iamcal'):
            for h, names in load(folder, f'en/shortcodes/{preset}.json').items():
                full = self.by_bare.get(bare(h))
                for n in [names] if isinstance(names, str) else names:
                    if full and n.replace('_', ' ') not in self.short[full] and len(n) > 2:
                        self.short[full].append(n.replace('_', ' ').replace('-', ' '))
                        self.by_name.setdefault(self.squash(n), full)
        self.vocabulary = {w for e in self.en.values() for t in [e['label'], *e.get('tags', [])] for w in words(t)} - WEAK_WORDS

    @staticmethod
    def squash(name):
        return ''.join(words(name))

    def find(self, name):
        """The code point of an icon name: as it is, without a trailing number, without `face`."""
        for n in (name, re.sub(r'-\d+$', '', name), re.sub(r'(-face)?(-\d+)?$', '', name)):
            if self.squash(n) in self.by_name:
                return self.by_name[self.squash(n)]
        return None

    def text(self, hexcode, barred=frozenset()):
        """The text fields of a sample; English texts that equal a label of `barred` (as words) are left out."""
        e, z = self.en[hexcode], self.zh.get(hexcode, {})
        free = lambda texts: [t for t in texts if words(t) not in barred]
        tags = free(e.get('tags', []))
        return dict(hexcode=hexcode, label_en=e['label'], label_zh=z.get('label'), tags_en=tags, tags_zh=z.get('tags', []),
                    captions_en=captions(e['label'], free(self.short[hexcode]), tags, ', '),
                    captions_zh=captions(z['label'], [], z.get('tags', []), '，') if z.get('label') else [],
                    group=self.groups.get(e['group'], str(e['group'])))


def captions(label, others, tags, comma):
    """Distinct caption texts: the label, other names, the label with all and with each half of the tags."""
    tags = [t for t in tags if t.lower() != label.lower()]
    rows = [label, *others]
    for part in (tags, tags[::2], tags[1::2]):
        if part:
            rows.append(comma.join([label, *part]))
    return list({r.lower(): r for r in reversed(rows)}.values())[::-1]


class HeldOut:
    """Decides which samples may not be trained on."""

    def __init__(self, emoji, hexcodes):
        self.codes = {bare(h) for h in hexcodes}
        self.labels = {words(emoji.en[h]['label']) for h in hexcodes}
        self.codes |= {bare(h) for h, e in emoji.en.items() if words(e['label']) in self.labels}

    def code(self, hexcode):
        plain = re.sub(r'-1F3F[B-F]', '', bare(hexcode))
        return plain in self.codes or re.sub(r'-200D-(2640|2642|27A1)', '', plain) in self.codes

    def named(self, *texts):
        return any(contains(t, run) for t in texts for run in self.labels)


def skin_tone(name):
    return re.search(r'skin-tone|-(light|medium|dark|medium-light|medium-dark)$', name) is not None


def emoji_samples(packages, emoji, held, sets):
    """Every drawing of the emoji styles that is joined to a code point, and named ones of the rest."""
    names_of = {n: h for s in ('fluent-emoji-flat', 'noto') for h, n in sets[s].chars.items()}
    for prefix in EMOJI_STYLES:
        icons, seen = sets[prefix], set()
        pairs = [(h, n) for h, n in icons.chars.items()] or [(None, n) for n in icons.data['icons']]
        for given, name in pairs:
            stored = icons.resolve(name)
            if stored is None or stored in seen or skin_tone(name):
                continue
            seen.add(stored)
            joined = emoji.by_bare.get(bare(given)) if given else (emoji.by_bare.get(bare(names_of.get(name, ''))) or emoji.find(name))
            if joined:
                if not held.code(joined) and '1F3F' not in joined[5:]:
                    yield prefix, icons.licence, name, 'svg', icons.svg(stored), emoji.text(joined, held.labels)
            elif prefix == 'streamline-emojis':
                label = re.sub(r'\d+$', '', name.replace('-', ' ')).strip()
                if len(label) > 2 and not held.named(label):
                    yield prefix, icons.licence, name, 'svg', icons.svg(stored), plain_text(label, icons.group.get(name))
    folder = packages.npm(FLUENT_3D)
    for f in sorted(os.listdir(os.path.join(folder, 'assets'))):
        joined = emoji.by_bare.get(bare(f.removesuffix('.webp')))
        if joined and not held.code(joined):
            with open(os.path.join(folder, 'assets', f), 'rb') as picture:
                yield 'fluent-emoji-3d', 'MIT', f.removesuffix('.webp'), 'webp', picture.read(), emoji.text(joined, held.labels)


def plain_text(label, group, tags=(), description=''):
    return dict(label_en=label, label_zh=None, tags_en=list(tags), tags_zh=[], captions_zh=[], group=group,
                captions_en=captions(label, [description] if description else [], list(tags), ', '))


def icon_samples(emoji, held, sets):
    """Named icons with at least one word that the emoji texts know."""
    for prefix in ICON_STYLES:
        icons, seen = sets[prefix], set()
        for name in icons.data['icons']:
            suffix, skip = ONLY_SUFFIX.get(prefix, ''), SKIP_NAME.get(prefix)
            if not name.endswith(suffix) or skip and re.search(skip, name):
                continue
            parts = [w for w in name.removesuffix(suffix).split('-') if w not in STYLE_WORDS and not w.isdigit()]
            label = ' '.join(parts)
            if not set(words(label)) & emoji.vocabulary or (label in seen and prefix == 'fluent-color'):
                continue
            seen.add(label)
            joined = emoji.find('-'.join(parts))
            if joined and held.code(joined) or held.named(label):
                continue
            text = emoji.text(joined, held.labels) if joined else plain_text(label, icons.group.get(name))
            yield prefix, icons.licence, name, 'svg', icons.svg(name), text


def flag_samples(emoji, held, sets):
    """Country flags, joined by the two-letter country code."""
    for prefix in FLAG_STYLES:
        icons, suffix = sets[prefix], ONLY_SUFFIX.get(prefix, '')
        for name in icons.data['icons']:
            code = name.removesuffix(suffix)
            if name.endswith(suffix) and re.fullmatch('[a-z]{2}', code):
                joined = emoji.by_bare.get('-'.join(f'{0x1F1E6 + ord(c) - ord("a"):X}' for c in code))
                if joined and not held.code(joined):
                    yield prefix, icons.licence, name, 'svg', icons.svg(name), emoji.text(joined, held.labels)


def clipart_samples(packages, held):
    """Titled drawings of Open Clip Art whose metadata dedicates them to the public domain."""
    folder = packages.deb(CLIPART)
    if folder is None:
        print('Open Clip Art left out: apt-get and dpkg-deb are needed for it', file=sys.stderr)
        return
    root = os.path.join(folder, 'usr/share/openclipart/svg')
    for where, dirs, files in os.walk(root):
        dirs.sort()
        category = os.path.relpath(where, root)
        if re.match(r'(shapes/stars|computer/icons|unsorted/duplicates|special)', category):
            continue
        for f in sorted(f for f in files if f.endswith('.svg')):
            with open(os.path.join(where, f), 'rb') as picture:
                svg = picture.read()
            meta = re.search(r'<metadata.*?</metadata>', svg.decode('utf8', 'replace'), re.S)
            meta = meta.group(0) if meta else ''
            field = lambda name: html.unescape((re.search(rf'<dc:{name}>\s*([^<]*?)\s*</dc:{name}>', meta) or ('', ''))[1])
            title, about = ' '.join(field('title').replace('_', ' ').split()), ' '.join(field('description').split())
            tags = sorted({' '.join(html.unescape(k).lower().split()) for k in re.findall(r'<rdf:li>\s*([^<]*?)\s*</rdf:li>', meta)} - {'', 'hash'})
            everything = ' '.join([title, about, *tags])
            if not title or NOT_CLIPART.search(title) or ADULT.search(everything) or 'publicdomain' not in meta.lower():
                continue
            title = re.sub(r'\s*\d+$', '', title)
            about = about if 3 <= len(about.split()) <= 40 else ''
            if len(svg) <= MAX_CLIPART_BYTES and len(title) > 2 and not held.named(title, about, *tags):
                yield 'openclipart', 'public domain', f'{category}/{f[:-4]}', 'svg', svg, plain_text(title, category, tags, about)


class Shards:
    """Writes samples into numbered tar files whose bytes depend on the samples alone."""

    def __init__(self, out, stem):
        self.out, self.stem, self.count, self.tar = out, stem, 0, None

    def add(self, key, kind, picture, text):
        if self.count % SHARD_SAMPLES == 0 and (self.tar is None or '{}' in self.stem):
            self.close()
            self.tar = tarfile.open(os.path.join(self.out, self.stem.format(f'{self.count // SHARD_SAMPLES:04}')), 'w', format=tarfile.USTAR_FORMAT)
        for suffix, data in ((kind, picture), ('json', json.dumps(text, ensure_ascii=False).encode())):
            entry = tarfile.TarInfo(f'{key}.{suffix}')
            entry.size, entry.mode = len(data), 0o644
            self.tar.addfile(entry, io.BytesIO(data))
        self.count += 1

    def close(self):
        if self.tar is not None:
            self.tar.close()


def main():
    ap = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    ap.add_argument('out')
    ap.add_argument('--cache', help='folder for fetched packages (default OUT/_packages)')
    a = ap.parse_args()
    os.makedirs(a.out, exist_ok=True)
    packages = Packages(a.cache or os.path.join(a.out, '_packages'))
    emoji = Emoji(packages.npm(EMOJIBASE))
    sets = {p: IconSet(packages, p, v) for p, v in {**EMOJI_STYLES, **ICON_STYLES, **FLAG_STYLES}.items()}
    for s in sets.values():
        if s.licence not in ALLOWED:
            sys.exit(f'{s.prefix}: licence {s.licence} is not one of {sorted(ALLOWED)}; take the set out of the lists')

    test, reference = IconSet(packages, *TEST_STYLE), IconSet(packages, *REFERENCE_ONLY)
    drawn = lambda s: {h for h, n in s.chars.items() if h in emoji.en and s.resolve(n)}
    concepts = sorted(drawn(sets['noto']) & drawn(sets['fluent-emoji-flat']) & drawn(test) & drawn(reference))
    eligible = [h for h in concepts if '200D' not in h and not re.search(r"o['’]clock|-thirty", emoji.en[h]['label'])]
    heldout = sorted(eligible, key=sha)[:HELD_OUT]
    held = HeldOut(emoji, heldout)

    shards = Shards(a.out, 'test-twemoji.tar')
    for i, h in enumerate(concepts):
        text = dict(id=f'twemoji/{h}', style='twemoji', licence=test.licence, index=i, heldout=h in heldout, **emoji.text(h))
        shards.add(f'{i:04}-{h}', 'svg', test.svg(test.resolve(test.chars[h])), text)
    shards.close()
    label = lambda h: emoji.en[h]['label']
    for name, codes in (('labels_test.txt', concepts), ('labels_heldout.txt', [h for h in concepts if h in heldout])):
        with open(os.path.join(a.out, name), 'w', encoding='utf8') as f:
            f.writelines(label(h) + '\n' for h in codes)
    with open(os.path.join(a.out, 'heldout_concepts.json'), 'w', encoding='utf8') as f:
        json.dump([dict(hexcode=h, label_en=label(h), label_zh=emoji.zh.get(h, {}).get('label')) for h in heldout], f, ensure_ascii=False, indent=1)

    styles = collections.defaultdict(lambda: collections.Counter())
    licences, totals = collections.Counter(), {}
    val = Shards(a.out, 'val.tar')
    for stem, source in (('train', emoji_samples(packages, emoji, held, sets)),
                         ('icons', [*icon_samples(emoji, held, sets), *flag_samples(emoji, held, sets), *clipart_samples(packages, held)])):
        shards = Shards(a.out, stem + '-{}.tar')
        for style, licence, name, kind, picture, text in sorted(source, key=lambda s: sha(f'{s[0]}/{s[2]}')):
            if len(picture) > MAX_PICTURE_BYTES:
                styles[style]['too_large'] += 1
                continue
            key = re.sub(r'[^\w-]+', '_', f'{style}-{name}')[:90]
            to_val = int(sha(f'val {style}/{name}')[:8], 16) < VAL_SHARE * 2**32
            (val if to_val else shards).add(key, kind, picture, dict(id=f'{style}/{name}', style=style, licence=licence, **text))
            styles[style]['val' if to_val else stem] += 1
            styles[style]['joined'] += 'hexcode' in text
            licences[licence] += 1
        shards.close()
        totals[stem] = shards.count
    val.close()
    totals['val'], totals['test'], totals['heldout'] = val.count, len(concepts), len(heldout)
    repeated = [l for l, n in collections.Counter(map(label, concepts)).items() if n > 1]
    about = {s.prefix: dict(name=s.info['name'], author=s.info['author']['name'], source=s.info['author'].get('url'),
                            licence=s.licence, licence_url=s.info['license'].get('url')) for s in [*sets.values(), test]}
    about['fluent-emoji-3d'] = dict(name='Fluent Emoji 3D', author='Microsoft Corporation', licence='MIT')
    about['openclipart'] = dict(name='Open Clip Art Library', author='named in the metadata of each drawing', licence='public domain')
    about['emojibase-data'] = dict(name='Emojibase (labels and tags, from Unicode CLDR)', author='Miles Johnson', licence='MIT')
    with open(os.path.join(a.out, 'index.json'), 'w', encoding='utf8') as f:
        json.dump(dict(totals=totals, styles=styles, licences=licences, repeated_test_labels=repeated, attribution=about), f, ensure_ascii=False, indent=1)
    for style, n in styles.items():
        print(f'{style:28} {dict(n)}')
    print(dict(licences), totals, f'repeated labels: {repeated}')


if __name__ == '__main__':
    main()
