#!/usr/bin/env python3
"""Measures a CLIP on the Twemoji drawings: names among all 1,442, and the 200 concepts never trained.

Usage: tools/measure_builtin.py OCELLI DRAWINGS [-m MODEL]
       OCELLI is the binary, DRAWINGS what tools/fetch_training_pictures.py wrote. Standard library only.
"""
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def classify(binary, model, labels, files):
    command = [binary, "classify", *model, "--labels-file", str(labels), "--top", "5", "--jsonl", "-"]
    text = "\n".join(files) + "\n"
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["image"]: [label["label"] for label in row["labels"]] for row in rows}


def main():
    binary, drawings, model = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    with tempfile.TemporaryDirectory() as folder:
        names = {}
        with tarfile.open(drawings / "test-twemoji.tar") as tar:
            members = {m.name: m for m in tar.getmembers()}
            for name, member in members.items():
                if not name.endswith(".json"):
                    continue
                meta = json.load(tar.extractfile(member))
                stem = name[: -len(".json")]
                picture = Path(folder) / (stem.replace("/", "_") + ".svg")
                picture.write_bytes(tar.extractfile(members[stem + ".svg"]).read())
                names[str(picture)] = (meta["label_en"], meta["heldout"])
        everything = sorted(names)
        unseen = [f for f in everything if names[f][1]]
        for what, labels, files in [
            ("all concepts", "labels_test.txt", everything),
            ("concepts never trained", "labels_heldout.txt", unseen),
        ]:
            best = classify(binary, model, drawings / labels, files)
            top1 = sum(best[f][0] == names[f][0] for f in files) / len(files)
            top5 = sum(names[f][0] in best[f] for f in files) / len(files)
            count = sum(1 for _ in open(drawings / labels, encoding="utf8"))
            print(f"{what}: {len(files)} pictures, {count} labels: top-1 {top1:.1%}, top-5 {top5:.1%}")


main()
