"""Accuracy of the teacher against bytes an answer, by codec, as a Markdown table.

python benchmarks/codec_table.py simulations/digits.yaml --seeds 0 1 2 --set clients=10

One round: what the teacher learns of the same answers, each through a codec. Bytes are those of the rows alone; a
message has some 400 more.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from replay import Replay, through

CODECS = ("float32", "float16", "float16+zlib", "int8", "int8+zlib", "top3", "top3+zlib", "label", "label+zlib")


def main() -> None:
    """Run and print; accuracies are the mean over seeds, and the smallest and largest value."""
    options = _arguments()
    rounds = [Replay(options.scenario, [*options.set, f"seed={seed}"]) for seed in options.seeds]
    print("| codec | bytes a row | teacher |", "| --- | --- | --- |", sep="\n", flush=True)
    for codec in CODECS:
        sizes, found = [], []
        for one in rounds:
            arrived = {client: through(codec, rows) for client, rows in one.answers.items()}
            sizes += [size / len(rows) for rows, size in arrived.values()]
            found.append(100 * one.accuracy("mean", {client: rows for client, (rows, _) in arrived.items()}))
        teacher = f"{statistics.mean(found):.1f} ({min(found):.1f}–{max(found):.1f})"
        print(f"| {codec} | {statistics.mean(sizes):.2f} | {teacher} |", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scenario", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    return parser.parse_args()


if __name__ == "__main__":
    main()
