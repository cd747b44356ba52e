"""A scikit-learn classifier on grey pixels, and the table of its answers.

    python examples/grey_pixels.py DATA answers.csv
    tumorlens evaluate --predictions answers.csv --data DATA

DATA has the folders Training and Testing. This is what many try first with such a set:
no network, and nothing is known of copies and patients. Nothing here needs tumorlens,
which then says what the answers are worth.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import RandomForestClassifier


def read(folder: Path) -> tuple[list[Path], NDArray[np.float32], list[str]]:
    """Return the files, their grey pixels (N, 4096) from 0 to 1, and their classes."""
    files = sorted(path for path in folder.glob("*/*") if path.is_file())
    pixels = [
        np.asarray(Image.open(path).convert("L").resize((64, 64)), np.float32).ravel()
        for path in files
    ]
    return files, np.stack(pixels) / np.float32(255), [one.parent.name for one in files]


def main() -> None:
    """Train on Training, answer Testing."""
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    _, images, labels = read(data / "Training")
    model = RandomForestClassifier(n_estimators=300, random_state=42)
    model.fit(images, labels)
    files, images, _ = read(data / "Testing")
    with out.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", *(f"prob_{name}" for name in model.classes_)])
        for path, probs in zip(files, model.predict_proba(images), strict=True):
            table.writerow([path.relative_to(data).as_posix(), *probs])


if __name__ == "__main__":
    main()
