"""Run programs on beds, a line of JSON each in a file that is added to, and print the table of what is there.

python -m benchmarks.programs.run BED ... --programs snella,trainer,peft --seeds 0,1,2 --seconds 120 --out FILE
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

HERE = Path(__file__).parent
ROOTS = (str(HERE.parents[1]), str(HERE.parents[1] / "src"))  # of benchmarks, and of this program
PROGRAMS = {
    "snella": ("with_snella.py",),
    "trainer": ("with_transformers.py", "trainer"),
    "peft": ("with_transformers.py", "peft"),
    "fastai": ("with_fastai.py",),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the file does not have, and print the table."""
    parser = argparse.ArgumentParser(description="other programs beside this one")
    parser.add_argument("beds", nargs="*", type=Path, help="folders of benchmarks.programs.bed")
    parser.add_argument("--programs", default="snella,trainer,peft")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--seconds", type=float, default=120, help="of one training with what belongs to it, each")
    parser.add_argument("--python", default=sys.executable, help="of the environment that has the programs")
    parser.add_argument("--flags", default="", help="for snella; the row is then called so")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    lines = args.out.read_text().splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in lines]
    there = {(row["bed"], row["program"], row["seed"], row["budget"]) for row in rows}
    for bed in args.beds:
        for seed in map(int, args.seeds.split(",")):
            for program in args.programs.split(","):
                name = f"{program} {args.flags}".strip()
                if (bed.name, name, seed, args.seconds) in there:
                    continue
                found = run(args.python, program, bed, args.seconds, seed, args.flags.split())
                row = {"bed": bed.name, "program": name, "seed": seed, "budget": args.seconds, **found}
                rows.append(row)
                with open(args.out, "a") as file:
                    file.write(json.dumps(row) + "\n")
                print(row, flush=True)
    print(table(rows))


def run(python: str, program: str, bed: Path, seconds: float, seed: int, flags: Sequence[str]) -> dict:
    """Return what a program prints; its error where it has failed."""
    script, *words = PROGRAMS[program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(ROOTS)}
    command = [python, str(HERE / script), *words, str(bed), str(seconds), str(seed), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"error": done.stderr[-500:]}


def table(rows: Sequence[dict]) -> str:
    """Return the mean top-1 over the seeds, %, of each program on each bed, as Markdown."""
    beds, programs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("bed", "program"))
    lines = ["| program | " + " | ".join(beds) + " | mean |", "|---|" + "---:|" * (len(beds) + 1)]
    for program in programs:
        found = [[r["top1"] for r in rows if (r["bed"], r["program"]) == (b, program) and "top1" in r] for b in beds]
        means = [100 * fmean(scores) if scores else None for scores in found]
        cells = ["–" if m is None else f"{m:.1f}" for m in means]
        whole = fmean(m for m in means if m is not None) if None not in means else None
        lines.append(f"| {program} | " + " | ".join(cells) + f" | {'–' if whole is None else f'{whole:.1f}'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
