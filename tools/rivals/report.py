#!/usr/bin/env python3
"""Turn the figures of compare.py into the table of docs/performance.md and the plot beside it.

Usage: report.py FIGURES.json docs/performance.md docs/performance.svg
The table replaces what is between the two marks in the guide. Standard library only.
"""

import html
import json
import math
import pathlib
import statistics
import sys

BEGIN, END = "<!-- table: tools/rivals/report.py -->", "<!-- end of the table -->"
NAMES = {"torch": "PyTorch", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
# Memory is compared where one picture is all the work.
SMALL = "ViT-B/16, one picture"


def quartiles(values):
    """The quarter, the middle and the three quarters of the values."""
    return statistics.quantiles(values, n=4, method="inclusive")


def ratios(row, rival):
    """The rival's time over ours, round by round: above 1 where ocelli is faster."""
    pairs = zip(row["engines"][rival]["rounds"], row["engines"]["ocelli"]["rounds"])
    return [theirs / ours for theirs, ours in pairs]


def rivals(row):
    """The rivals that ran, the fastest first."""
    others = [name for name in row["engines"] if name != "ocelli"]
    return sorted(others, key=lambda name: statistics.median(ratios(row, name)))


def label(row, rival):
    """An engine's name, with what it ran where that is not the row's."""
    name = NAMES.get(rival, rival)
    return f"open_clip, {name}" if row["task"].startswith("embed") else name


def number(value):
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(rows):
    """A line for each engine of each row."""
    lines = ["| work | engine | median, ms | quartiles | its time / ocelli's | lowest – highest | peak, MiB |",
             "| --- | --- | --- | --- | --- | --- | --- |"]
    for row in rows:
        for i, name in enumerate(["ocelli", *rivals(row)]):
            figures = row["engines"][name]
            low, middle, high = quartiles(figures["rounds"])
            cells = [row["title"] if i == 0 else "", "**ocelli**" if i == 0 else label(row, name),
                     number(middle), f"{number(low)} – {number(high)}"]
            if i:
                each = ratios(row, name)
                cells += [f"{statistics.median(each):.2f}", f"{min(each):.2f} – {max(each):.2f}"]
            else:
                cells += ["", ""]
            cells.append(number(figures["peak_mib"]))
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bars(rows):
    """Title, rival, ratio, lowest and highest of each bar: speed, then memory."""
    speed, memory = [], []
    for row in rows:
        best, *_ = rivals(row)
        each = ratios(row, best)
        speed.append((row["title"], label(row, best), statistics.median(each), min(each), max(each)))
        if row["title"].startswith(SMALL):
            peaks = {name: row["engines"][name]["peak_mib"] for name in rivals(row)}
            least = min(peaks, key=peaks.get)
            ratio = peaks[least] / row["engines"]["ocelli"]["peak_mib"]
            memory.append((f"peak memory: {row['title']}", label(row, least), ratio, ratio, ratio))
    return speed + memory


def plot(rows):
    """Horizontal bars of the fastest rival's time over ours, on a logarithmic axis through 1."""
    entries = bars(rows)
    left, width, step, top = 430, 420, 24, 58
    most = max(2.0, *(entry[4] for entry in entries)) * 1.1
    least = min(0.5, *(entry[3] for entry in entries)) / 1.1
    place = lambda value: left + width * math.log(value / least) / math.log(most / least)
    height = top + step * len(entries) + 30
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="1020" height="{height}" viewBox="0 0 1020 {height}" '
             'font-family="sans-serif" font-size="12">',
             f'<rect width="1020" height="{height}" fill="#fff"/>',
             '<text x="12" y="22" font-size="15" font-weight="bold">The fastest rival\'s time over ocelli\'s</text>',
             '<text x="12" y="40" fill="#555">above 1 ocelli is faster; medians over rounds, the thin line from the '
             'lowest round to the highest; for memory the rival that takes least</text>']
    for tick in (0.25, 0.5, 1, 2, 4, 8, 16):
        if least <= tick <= most:
            x, shade = place(tick), "#000" if tick == 1 else "#ddd"
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6}" y2="{height - 26}" stroke="{shade}"/>')
            parts.append(f'<text x="{x:.1f}" y="{height - 10}" text-anchor="middle">{tick}</text>')
    for i, (title, rival, ratio, low, high) in enumerate(entries):
        y = top + step * i
        start, end = sorted((place(1), place(ratio)))
        fill = "#3b7a57" if ratio >= 1 else "#b5533c"
        parts += [f'<text x="{left - 10}" y="{y + 13}" text-anchor="end">{html.escape(title)}</text>',
                  f'<rect x="{start:.1f}" y="{y + 2}" width="{end - start:.1f}" height="15" fill="{fill}"/>',
                  f'<line x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{y + 9.5}" y2="{y + 9.5}" stroke="#222"/>',
                  f'<text x="{left + width + 14}" y="{y + 13}">{ratio:.2f}  {html.escape(rival)}</text>']
    return "\n".join([*parts, "</svg>"]) + "\n"


def main():
    """Write both."""
    figures, guide, picture = map(pathlib.Path, sys.argv[1:])
    rows = [row for row in json.loads(figures.read_text()) if "ocelli" in row["engines"] and rivals(row)]
    before, rest = guide.read_text().split(BEGIN)
    after = rest.split(END)[1]
    guide.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{after}")
    picture.write_text(plot(rows))


main()
