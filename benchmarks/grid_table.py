"""One table of a full grid, every epoch of every trial, from runs of its sweep that differ in `train.seed` alone.

    for seed in 0 1 2; do
        lsmha-sweep run search_spaces/cifar10-small.yaml --out runs/grid-$seed --set data.path=FOLDER \\
            --set train.seed=$seed --set finalists.max_finalists=0 \\
            --set search.sampler=grid --set search.num_trials=94 --set search.suggestion_batch=94
    done
    python benchmarks/grid_table.py runs/grid-* --out benchmarks/cifar10_small_grid.parquet

A table that is there gets the seeds that it lacks. Latencies are those of the first run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd

from orchestrator import Run, load_run

OF_TRIALS = ["params", "macs", "precision", "attention"]


def rows_of(run: Run) -> pd.DataFrame:
    """A row for each epoch of each trial.

    Raises:
        SystemExit: A trial has not got to its end.
    """
    trials = run.trials.set_index("id")
    if not (trials["status"] == "completed").all():
        raise SystemExit(f"error: {run.folder}: must be a complete grid, but has trials that are not completed")
    rows = run.curves.merge(trials[[*run.config.space, *OF_TRIALS]], left_on="id", right_index=True)
    rows.insert(0, "seed", run.config.train.seed)
    return rows.drop(columns="id")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    runs = [load_run(folder) for folder in options.runs]
    point = [*runs[0].config.space]
    known = pd.read_parquet(options.out) if options.out.exists() else None
    latency = (runs[0].trials if known is None else known)[[*point, "latency_ms"]].drop_duplicates()
    seeds = [rows_of(run).merge(latency, on=point, validate="many_to_one") for run in runs]
    if known is not None:
        seeds.append(known[~known["seed"].isin([run.config.train.seed for run in runs])])
    table = pd.concat(seeds).sort_values(["seed", *point, "epoch"], ignore_index=True)
    if table[[*point, *OF_TRIALS]].drop_duplicates().duplicated(point).any():
        raise SystemExit("error: precision and attention must be those of the first run, else seeds do not compare")
    table.to_parquet(options.out, compression="zstd")
    print(
        f"{options.out}: {len(table):,} epochs of {table['seed'].nunique()} seeds, {options.out.stat().st_size:,} bytes"
    )


if __name__ == "__main__":
    main()
