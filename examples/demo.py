"""The commands of `make demo`, one after the other, with the time that each takes.

    python examples/demo.py

runs them at the root of the repository and prints each as it is typed. They share one
process: five of their own would each load torch and its kind again.
"""

from __future__ import annotations

import sys
import time

from tumorlens.cli import app

COMMANDS = {
    "images made from a brain template, with planted faults": ("phantom demo/images"),
    "audit: what is wrong with them": "audit demo/images --out demo/audit",
    "train, on a split that keeps patients and copies together": (
        "train configs/demo.toml --data demo/images --out demo/run"
    ),
    "evaluate on the test subset": "evaluate demo/run",
    "report: one page": "report demo/run --data demo/images",
    "card: what the network is, and what is known of it": "card demo/run",
}
"""Title -> command."""


def main() -> int:
    """Run the commands until one fails; return the exit status of the last."""
    times = []
    for number, (title, command) in enumerate(COMMANDS.items(), start=1):
        print(f"==> {number}/{len(COMMANDS)} {title}")
        print(f"tumorlens {command}", flush=True)
        start = time.perf_counter()
        status = app.main(command.split())
        if status != 0:
            return status
        times.append(f"{command.split()[0]} {time.perf_counter() - start:.0f} s")
    print(f"==> time: {', '.join(times)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
