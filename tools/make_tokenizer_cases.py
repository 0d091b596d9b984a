#!/usr/bin/env python3
"""Small vocabularies in the files of Qwen and ChatGLM, with ids of their reference libraries.

    pip install tiktoken sentencepiece
    tools/make_tokenizer_cases.py testdata/text/tokenizers

Writes `qwen_tiny` (ids of tiktoken, special tokens as in Qwen-VL) and `glm_tiny` (ids of SentencePiece
with ChatGLM's spelling of line ends, tabs and runs of spaces). The texts they are trained on stand
below, so the same versions write the same files.
"""

import base64
import json
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import regex
import sentencepiece
import tiktoken

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TRAINING = [
    "A fox stands in the snow and looks at the camera.",
    "Describe the image in English: a red bus waits at the corner of the street.",
    "What is the colour of the box on the left? The box is blue.",
    "The picture shows a man with a guitar, a woman and two dogs.",
    "问：这张图片里有什么？答：图片里有一只狐狸，背景是雪。",
    "请描述这张图片的背景和内容。",
    "It's 1000 metres; they'll be there at 12:30, won't they?",
    "    indented\tlines\n\nand more   blanks",
]
TEXTS = [
    "",
    "Hello world",
    "A fox stands in the snow.",
    "  two blanks  and   three\tand a tab\n\nand lines \n",
    "It'S they'LL 12345 x2",
    "这张图片里有什么？",
    "cafe\u0301 na\u00efve \U0001f98a \u0e44\u0e17\u0e22",
    "e\u0301\u0323 \u212b",
    "punctuation?!... (yes) [no] {maybe}",
]
QWEN_TEXTS = [
    "<|im_start|>user\nPicture 1: <img>a.jpg</img>\nWhat is it?<|im_end|>\n",
    "<ref>the fox</ref><box>(70,250),(500,999)</box>",
    "<|endoftext|><|extra_204|><imgpad>",
]
GLM_TEXTS = ["<img>", "</img>问：What is it?\n答：", "a" + " " * 81 + "b", "x\n\n\ty"]


def byte_pairs(count):
    """The `count` pieces of byte-pair encoding of the training texts, bytes first."""
    ranks = {bytes([b]): b for b in range(256)}
    words = Counter(w for text in TRAINING for w in regex.findall(PATTERN, text))
    split = {w: [bytes([b]) for b in w.encode()] for w in words}
    while len(ranks) < count:
        pairs = Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda p: (pairs[p], p))
        ranks.setdefault(b"".join(best), len(ranks))
        for word, parts in split.items():
            merged, i = [], 0
            while i < len(parts):
                if tuple(parts[i : i + 2]) == best:
                    merged.append(b"".join(best))
                    i += 2
                else:
                    merged.append(parts[i])
                    i += 1
            split[word] = merged
    return ranks


def qwen(folder):
    folder.mkdir(parents=True, exist_ok=True)
    ranks = byte_pairs(420)
    lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ranks.items())
    (folder / "qwen.tiktoken").write_text("".join(lines))
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    names += [f"<|extra_{i}|>" for i in range(205)]
    names += ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]
    special = {name: len(ranks) + i for i, name in enumerate(names)}
    reference = tiktoken.Encoding("qwen", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
    kept = {special[n] for n in ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"]}
    cases = []
    for text in TEXTS + QWEN_TEXTS:
        ids = reference.encode(unicodedata.normalize("NFC", text), allowed_special="all")
        shown = [i for i in ids if i < len(ranks) or i in kept]
        cases.append({"text": text, "ids": ids, "decoded": reference.decode(shown)})
    (folder / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")


def glm(folder):
    folder.mkdir(parents=True, exist_ok=True)
    blanks = [f"<|blank_{n}|>" for n in range(2, 81)]
    model = str(folder / "ice_text")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([t.replace("\n", "<n>") for t in TRAINING] * 4),
        model_prefix=model,
        vocab_size=520,
        model_type="unigram",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        hard_vocab_limit=False,
        user_defined_symbols=["<n>", "<|tab|>"] + blanks,
        control_symbols=["[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"],
        pad_id=3,
        minloglevel=2,
    )
    Path(model + ".vocab").unlink()
    Path(model + ".model").rename(folder / "ice_text.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "ice_text.model"))
    cases = []
    for text in TEXTS[1:] + GLM_TEXTS:
        if text[0].isspace():
            continue  # SentencePiece marks the start before such a piece; ocelli does not.
        spelled = text.replace("\n", "<n>").replace("\t", "<|tab|>")
        for n in range(80, 1, -1):
            spelled = spelled.replace(" " * n, f"<|blank_{n}|>")
        ids = reference.encode(spelled)
        end = [reference.piece_to_id("[gMASK]"), reference.piece_to_id("<sop>")]
        cases.append({"text": text, "ids": ids + end, "decoded": None})
    cases = [{k: v for k, v in case.items() if v is not None} for case in cases]
    (folder / "cases.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    qwen(Path(sys.argv[1]) / "qwen_tiny")
    glm(Path(sys.argv[1]) / "glm_tiny")
