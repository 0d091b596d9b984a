#!/usr/bin/env python3
"""Time ocelli and its rivals in turns on the same shapes, and write one file of figures.

Usage: compare.py OCELLI DATA OUT.json [--only WORD ...] [--rounds 7] [--threads 2] [--gguf MODEL.gguf]
                  [--rust BINARY] [--prefix 'chrt -f 50']
DATA is made by make_models.py, BINARY by cargo in rust/. In a round each engine has one turn (A B C, A B C), in a process that lives through
all rounds; a turn begins with one repetition that does not count, and is taken again where other processes had the
cores. OUT.json is filled row by row; a row that is there already is measured again only where --only names a word
of it. report.py turns it into the table and the plot.
"""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).parent
# A turn goes on for about so many seconds, or for one repetition.
TURN = 0.6
# Between turns: threads of some engines go on spinning for a while after their work.
PAUSE = 0.3
# A turn in which threads waited for a core longer than this share of it, because another process had the core, is
# taken again, up to so many turns; the one that waited least counts.
WAITED = 0.15
TRIES = 4
# How often a process that is timed as a whole is given each picture.
REPEATED = 10
# No turn is taken again after so many seconds.
SLOW = 8

TASKS = {"vit-b16": ("vit-b16", "encode"), "clip-l14": ("clip-l14", "encode"), "train": ("vit-s16", "train"),
         "prefill": ("llama-1.1b", "prefill"), "decode": ("llama-1.1b", "decode")}

# Title, task, type, pictures or tokens, rivals.
ROWS = [
    ("ViT-B/16, one picture, f32", "vit-b16", "f32", 1, ["openvino", "onnxruntime", "rten", "torch", "candle"]),
    ("ViT-B/16, one picture, bf16", "vit-b16", "bf16", 1, ["openvino", "torch"]),
    ("ViT-B/16, one picture, int8", "vit-b16", "int8", 1, ["openvino", "onnxruntime", "rten"]),
    ("ViT-B/16, eight pictures, f32", "vit-b16", "f32", 8, ["openvino", "onnxruntime", "rten", "torch", "candle"]),
    ("ViT-B/16, eight pictures, bf16", "vit-b16", "bf16", 8, ["openvino", "torch"]),
    ("ViT-B/16, eight pictures, int8", "vit-b16", "int8", 8, ["openvino", "onnxruntime", "rten"]),
    ("CLIP ViT-L/14, one picture, bf16", "clip-l14", "bf16", 1, ["openvino", "torch"]),
    ("CLIP ViT-L/14, one picture, int8", "clip-l14", "int8", 1, ["openvino", "onnxruntime", "rten"]),
    ("ViT-S/16, training step of eight, f32", "train", "f32", 8, ["torch"]),
    ("ViT-S/16, training step of eight, bf16", "train", "bf16", 8, ["torch"]),
    ("LLaMA 1.1B, a token behind 256, Q4_0", "decode", "q4_0", 256, ["llama.cpp", "candle"]),
    ("LLaMA 1.1B, a token behind 256, Q8_0", "decode", "q8_0", 256, ["llama.cpp", "candle"]),
    ("LLaMA 1.1B, a token behind 256, bf16", "decode", "bf16", 256, ["llama.cpp", "torch"]),
    ("LLaMA 1.1B, prefill of 256, Q4_0", "prefill", "q4_0", 256, ["llama.cpp"]),
    ("LLaMA 1.1B, prefill of 256, bf16", "prefill", "bf16", 256, ["llama.cpp", "torch"]),
    ("SmolLM2-135M, a token behind 256, the file's types", "decode", "file", 256, ["llama.cpp"]),
    ("SmolLM2-135M, prefill of 256, the file's types", "prefill", "file", 256, ["llama.cpp"]),
    ("CLIP ViT-B/32, a JPEG of 12 megapixels to its vector, bf16", "embed", "bf16", "large", ["torch"]),
    ("the same with --fast-decode", "embed-fast", "bf16", "large", ["torch"]),
    ("CLIP ViT-B/32, a JPEG of 0.3 megapixels to its vector, bf16", "embed", "bf16", "small", ["torch"]),
    ("process start to the first vector of ViT-B/16, f32", "once", "f32", 1,
     ["openvino", "onnxruntime", "rten", "torch", "candle"]),
]


def priority(pid):
    """The policy and the niceness by which the system gives a process its cores."""
    return os.sched_getscheduler(pid), os.getpriority(os.PRIO_PROCESS, pid)


class Resident:
    """An engine that answers the line protocol."""

    def __init__(self, command):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                                        text=True)
        while (line := self.process.stdout.readline()).strip() != "ready":
            if not line:
                self.fail()
        first = self.ask(2)[1]
        self.count = max(1, min(20, round(TURN * 1e3 / first)))

    def fail(self):
        self.errors.seek(0)
        raise RuntimeError(self.errors.read()[-400:].strip() or "no answer")

    def ask(self, count):
        """The times of so many repetitions, in milliseconds."""
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        times = [float(t) for t in self.process.stdout.readline().split()]
        if len(times) != count:
            self.fail()
        return times

    def turn(self):
        """The median of one turn, the share of it in which a thread waited for a core, and the priority behind it."""
        before, begin = self.waited(), time.perf_counter()
        times = self.ask(self.count + 1)
        share = (self.waited() - before) / (time.perf_counter() - begin)
        return statistics.median(times[1:] or times), share, priority(self.process.pid)

    def waited(self):
        """Seconds that the threads of the engine could have run and had no core."""
        total = 0
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[1])
        return total / 1e9

    def peak(self):
        """The most memory that was resident, files that are mapped included, in MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Whole:
    """A process that is timed from its start to its end."""

    def __init__(self, command, parts=1):
        self.command, self.parts, self.most = command, parts, 0.0
        self.turn()

    def turn(self):
        begin = time.perf_counter()
        with tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=errors)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            taken = 1e3 * (time.perf_counter() - begin) / self.parts
            behind = priority(process.pid)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                errors.seek(0)
                raise RuntimeError(errors.read()[-400:].strip())
        self.most = max(self.most, usage.ru_maxrss / 1024)
        return taken, 0.0, behind

    def peak(self):
        return self.most

    def close(self):
        pass


class Loop(Resident):
    """A resident engine whose repetition is a folder of pictures: times are those of one picture."""

    def __init__(self, command, parts):
        self.parts = parts
        super().__init__(command)
        self.count = 0

    def ask(self, count):
        return [time / self.parts for time in super().ask(count)]


def linked(folder, files):
    """A folder of as many links to each picture as make the loading of a model a small part of the whole."""
    many = folder.with_name(folder.name + "_many")
    many.mkdir(exist_ok=True)
    for i in range(REPEATED):
        for file in files:
            link = many / f"{i}-{file.name}"
            if not link.exists():
                link.symlink_to(file.resolve())
    return many


def start(engine, task, kind, size, args):
    """The engine at this task."""
    prefix, threads = shlex.split(args.prefix), ["--threads", str(args.threads)]
    data = str(args.data)
    folder = args.data / "pictures" / str(size)
    files = sorted(folder.glob("*.jpg"))
    if engine == "ocelli":
        own = [*prefix, args.ocelli]
        if task.startswith("embed"):
            fast = ["--fast-decode"] if task == "embed-fast" else []
            many = linked(folder, files)
            command = [*own, "embed", "-m", f"{data}/clip_b32", "--dtype", kind, *fast, *threads, "-q", str(many)]
            return Whole(command, REPEATED * len(files))
        if task == "once":
            picture = str(next((args.data / "pictures" / "small").glob("*.jpg")))
            return Whole([*own, "embed", "-m", f"{data}/vit_b16_hf", *threads, "-q", picture])
        shape, job = TASKS[task]
        model = ["-m", str(args.gguf)] if kind == "file" else ["--shape", shape]
        if task == "vit-b16":
            model = ["-m", f"{data}/vit_b16_hf"]
        amount = ["--tokens" if task in ("prefill", "decode") else "--batch", str(size)]
        dtype = [] if kind == "file" else ["--dtype", kind]
        return Resident([*own, "bench", *model, "--task", job, *amount, *dtype, *threads, "--interactive"])
    kind = str(args.gguf) if kind == "file" else kind
    task = "embed" if task == "embed-fast" else task
    size = folder if task == "embed" else size
    if engine in ("rten", "candle"):
        limits = [f"RAYON_NUM_THREADS={args.threads}", f"RTEN_NUM_THREADS={args.threads}"]
        command = [*prefix, "env", *limits, str(args.rust), engine, task, kind, str(size), data]
        return Whole(command) if task == "once" else Resident(command)
    command = [*prefix, sys.executable, str(HERE / "rival.py"), engine, task, kind, str(size), data, *threads]
    if task == "embed":
        return Loop(command, len(files))
    return Whole(command) if task == "once" else Resident(command)


def measure(row, args):
    """All engines of a row: their medians by round, and their peak memory."""
    title, task, kind, size, rivals = row
    engines, failures = {}, {}
    for name in ["ocelli", *rivals]:
        if name in ("rten", "candle") and not args.rust:
            continue
        try:
            engines[name] = start(name, task, kind, size, args)
        except (RuntimeError, OSError) as problem:
            failures[name] = str(problem)
            print(f"{title}: {name} fails: {problem}", file=sys.stderr)
    rounds = {name: [] for name in engines}
    waits = {name: [] for name in engines}
    priorities = set()
    for _ in range(args.rounds):
        for name, engine in engines.items():
            turns = []
            begin = time.perf_counter()
            # An engine whose own threads wait for each other does so in every turn.
            while not turns or (len(turns) < TRIES and turns[-1][1] > WAITED and time.perf_counter() < begin + SLOW):
                time.sleep(PAUSE)
                turns.append(engine.turn())
            taken, waited, behind = min(turns, key=lambda turn: turn[1])
            priorities.add(behind)
            rounds[name].append(taken)
            waits[name].append(waited)
    figures = {name: {"rounds": rounds[name], "waited": waits[name], "peak_mib": engine.peak()}
               for name, engine in engines.items()}
    for engine in engines.values():
        engine.close()
    if len(priorities) > 1:
        raise RuntimeError(f"{title}: priorities changed on the way, measure it again: {sorted(priorities)}")
    return {"title": title, "task": task, "type": kind, "size": size, "engines": figures, "failures": failures}


def main():
    """Measure row by row, and keep what there is after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ocelli")
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gguf", type=pathlib.Path, help="SmolLM2-135M; without it its rows are left out")
    parser.add_argument("--rust", type=pathlib.Path, help="rten and candle; without it they are left out")
    parser.add_argument("--prefix", default="", help="before each engine's command")
    args = parser.parse_args()
    done = {}
    if args.out.exists():
        done = {row["title"]: row for row in json.loads(args.out.read_text())}
    for row in ROWS:
        title = row[0]
        wanted = any(word in title for word in args.only) if args.only else title not in done
        if not wanted or (row[2] == "file" and not args.gguf):
            continue
        done[title] = measure(row, args)
        ordered = [done[r[0]] for r in ROWS if r[0] in done]
        args.out.write_text(json.dumps(ordered, indent=1) + "\n")
        medians = {name: statistics.median(f["rounds"]) for name, f in done[title]["engines"].items()}
        print(title, *(f"{name} {value:.1f}" for name, value in medians.items()), flush=True)


main()
