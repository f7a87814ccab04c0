"""Every benchmark that needs nothing but the package: `make bench`. On two idle cores it takes about half an hour.

Those that need real preference pairs, text, a finished run or another library say so in their own first lines: extraction, sae_training,
pretraining, head_accuracy, safer, preview_vs_retrained, causal, sarm_ablation, embedded_benchmarks.
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS: tuple[tuple[str, ...], ...] = (
    ("store_queries",),
    ("salience",),
    ("impact",),
    ("impact", "--pairs", "100000", "--features", "65536", "--active", "192", "--point"),
    ("planted",),
    ("denoising", "demo", "--noise", "0.1", "--seeds", "3"),
    ("steering",),
    ("steering_specificity", "demo"),
    ("dashboard",),
    ("steering_browser",),
)


def main() -> None:
    failed = []
    for name, *arguments in BENCHMARKS:
        print(f"\n## {' '.join((name, *arguments))}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *arguments], check=False).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"These benchmarks failed: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
