"""Whether a run of `make quickstart` came to what it should: `python tests/check_quickstart.py runs/quickstart`."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd


def main() -> None:
    run = Path(sys.argv[1])
    assert len(pd.read_parquet(run / "front.parquet")) >= 3
    finalists = pd.read_parquet(run / "finalists.parquet")
    assert (finalists["status"] == "completed").all()
    assert finalists["test_accuracy"].min() >= 0.95
    assert (run / "committees.parquet").exists()


if __name__ == "__main__":
    main()
