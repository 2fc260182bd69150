"""A family under a rising load: fixed sizes against one that adapts.

    .venv/bin/python benchmarks/adaptive.py --family runs/mine/family --texts ../shared/data/glue/SST-2/dev.tsv

Texts of a file with columns `sentence` and `label` come at random moments (an open loop: whoever asks does not wait
for others), in phases of a rising rate that end where they began. Rates are parts of what the largest size alone could
answer. Prints for each phase median and 99th percentile of the milliseconds from asking to answer, and the accuracy.
"""

import argparse
import csv
import random
import statistics
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from compressor.export import Family
from compressor.export.adaptive import Adaptive, Answer

PHASES = (0.5, 1.0, 2.0, 3.0, 0.5)


def ask(service: Adaptive, texts: list[str], rate: float, seconds: float, seed: int) -> list[tuple[int, Answer]]:
    """Place of the text and answer of everything that was asked in a phase."""
    random_ = random.Random(seed)
    asked: list[tuple[int, Future[Answer]]] = []
    begun = moment = time.perf_counter()
    while moment < begun + seconds:
        moment += random_.expovariate(rate)
        time.sleep(max(0.0, moment - time.perf_counter()))
        place = random_.randrange(len(texts))
        asked.append((place, service.submit(texts[place])))
    return [(place, answer.result()) for place, answer in asked]


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--latency", type=float, default=None, help="milliseconds; four times the largest size's")
    parser.add_argument("--seconds", type=float, default=8.0, help="of a phase")
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    with options.texts.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    texts = [row["sentence"] for row in rows]
    family = Family.load(options.family)
    names = list(family.manifest.task["id2label"].values())
    labels = [name if name in names else names[int(name)] for name in (row["label"] for row in rows)]
    largest = family.open(family.sizes[0].name, options.precision)
    took = []
    for text in texts[:200]:
        start = time.perf_counter()
        largest.predict(text)
        took.append(time.perf_counter() - start)
    alone = statistics.mean(took)
    latency = options.latency or 4000 * alone
    print(f"the largest size takes {1000 * alone:.2f} ms a text, {latency:.1f} ms are allowed")
    print("| | " + " | ".join(f"{phase:g}x load" for phase in PHASES) + " |")
    print("|---" + "|---:" * len(PHASES) + "|")
    places = (0, len(family.sizes) // 2, len(family.sizes) - 1)
    fixed = {family.sizes[place].name: [family.sizes[place].name] for place in places}
    for title, sizes in {**fixed, "adaptive": None}.items():
        # A fixed size has no other to go to, so nothing is asked of it.
        limit = latency if sizes is None else 1e9
        with family.adaptive(limit, options.precision, sizes=sizes, workers=options.workers) as service:
            cells = []
            for number, phase in enumerate(PHASES):
                answers = ask(service, texts, options.workers * phase / alone, options.seconds, number)
                p50, p99 = np.percentile([answer.milliseconds for _, answer in answers], (50, 99))
                right = statistics.mean(answer.prediction.label == labels[place] for place, answer in answers)
                cells.append(f"{p50:.1f} / {p99:.1f} ms, {100 * right:.1f}")
        print(f"| {title} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
