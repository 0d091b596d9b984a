#!/usr/bin/env python3
"""Checks the workspace's manifests: who imports whom, licences, duplicate versions.

Usage: tools/check_workspace.py        (reads `cargo metadata`; standard library only)
"""
import json
import subprocess
import sys

# What each crate may import of ours.
ARROWS = {
    "kernels": [],
    "tensor": ["kernels"],
    "nn": ["kernels", "tensor"],
    "data": ["kernels", "tensor"],
    "models": ["kernels", "tensor", "nn", "data"],
    "eval": ["kernels", "tensor", "nn", "data", "models"],
    "train": ["kernels", "tensor", "nn", "data", "models", "eval"],
    "cli": ["kernels", "tensor", "nn", "data", "models", "eval", "train"],
}

LICENCES = {
    "MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "ISC",
    "Zlib", "Unicode-3.0", "CC0-1.0", "0BSD", "Unlicense", "MIT-0", "BSL-1.0", "CDLA-Permissive-2.0",
}



def allowed(expression):
    """Whether an SPDX expression can be met by the licences above."""
    text = expression.replace("/", " OR ").replace("(", " ").replace(")", " ")
    for choice in text.split(" OR "):
        if all(part.strip() in LICENCES for part in choice.split(" AND ")):
            return True
    # `A AND (B OR C)`: every name that appears must be allowed in some way.
    names = [n.strip() for n in text.replace(" AND ", "\n").replace(" OR ", "\n").split("\n")]
    return all(n in LICENCES for n in names)


def main():
    command = ["cargo", "metadata", "--format-version", "1", "--locked"]
    data = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    ours = {p["id"]: p for p in data["packages"] if p["source"] is None}
    short = lambda name: "cli" if name == "ocelli" else name.removeprefix("ocelli-")
    problems = []
    for package in ours.values():
        name = short(package["name"])
        if name not in ARROWS:
            problems.append(f"crate {name} has no arrows in this script")
            continue
        for dependency in package["dependencies"]:
            if not dependency["name"].startswith("ocelli"):
                continue
            to = short(dependency["name"])
            is_test = dependency["kind"] == "dev"
            if to not in ARROWS[name] and not is_test:
                problems.append(f"{name} must not import {to}")
    # Only what the program is built from, tests included.
    nodes = {n["id"] for n in data["resolve"]["nodes"]}
    versions = {}
    for package in data["packages"]:
        if package["id"] not in nodes or package["source"] is None:
            continue
        licence = package.get("license") or "none stated"
        if not allowed(licence):
            problems.append(f"{package['name']} {package['version']}: licence {licence} is not allowed")
        if not package["source"].startswith("registry+"):
            problems.append(f"{package['name']} comes from {package['source']}")
        versions.setdefault(package["name"], set()).add(package["version"])
    doubled = {n: v for n, v in versions.items() if len(v) > 1}
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(ours)} crates, {len(nodes)} packages, {len(doubled)} in several versions: "
          + ", ".join(f"{n} {'/'.join(sorted(v))}" for n, v in sorted(doubled.items())))
    sys.exit(1 if problems else 0)


main()
