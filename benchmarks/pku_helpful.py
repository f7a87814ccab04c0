"""Puts PKU-SafeRLHF and HH helpful pairs in one file, for the runs of docs/safer.md.

python -m benchmarks.pku_helpful ../shared/data pku_helpful.parquet
rewardscope build pku_helpful.yaml      # a copy of benchmarks/configs/pku_helpful.yaml beside that file
"""

from __future__ import annotations

import argparse
from pathlib import Path

import polars as pl

FILES = ("pku_saferlhf_test_5k.parquet", "hh_helpful_base_test.parquet")


def join_files(data: Path, target: Path) -> int:
    """Writes the pairs of both files into one, without their split (both are test splits: hold out anew); how many."""
    frames = [pl.read_parquet(data / name).drop("split") for name in FILES]
    pl.concat(frames, how="vertical_relaxed").write_parquet(target)
    return sum(map(len, frames))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with the two Parquet files")
    parser.add_argument("target", type=Path)
    arguments = parser.parse_args()
    print(f"{join_files(arguments.data, arguments.target):,} pairs in {arguments.target}")


if __name__ == "__main__":
    main()
