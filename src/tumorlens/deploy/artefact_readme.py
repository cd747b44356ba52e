"""What stands in the README of an artefact: how to use it where there is no tumorlens.

Plain text from the card and the verdict. What the newcomer would get wrong: the code in
it is not an illustration. Tests cut it out and run it in a process that cannot import
tumorlens, so whoever changes how an image is read changes it here as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tumorlens.deploy.artefact import GRAPH_FILES

if TYPE_CHECKING:
    from tumorlens.deploy.artefact import ArtefactCard, Parity

_ASK = {
    "torchscript": """import torch

graph = torch.jit.load("graph.pt").eval()
with torch.no_grad():
    outputs = graph(torch.from_numpy(images))
probs, logits, embedding = (output.numpy() for output in outputs)
""",
    "torch-export": """import torch

graph = torch.export.load("graph.pt2").module()
with torch.no_grad():
    outputs = graph(torch.from_numpy(images))
probs, logits, embedding = (output.numpy() for output in outputs)
""",
    "onnx": """# Else it collects usage data, below the home folder.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime

graph = onnxruntime.InferenceSession("graph.onnx", providers=["CPUExecutionProvider"])
probs, logits, embedding = graph.run(None, {"images": images})
""",
    "openvino": """# Else it collects usage data, below the home folder.
sys.modules["openvino_telemetry"] = None
import openvino

# Not left to itself: it would take bf16 wherever the processor can.
hint = {"INFERENCE_PRECISION_HINT": "TYPE"}
graph = openvino.Core().compile_model("graph.xml", "CPU", hint)
outputs = graph([images])
probs, logits, embedding = (outputs[number] for number in range(3))
""",
}

_READ = """{imports}

import numpy as np
from PIL import Image, ImageOps

SIZE_PX = {size_px}
CLASSES = {classes}


def read_square(path):
    image = ImageOps.exif_transpose(Image.open(path))
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image.convert("RGBA"))
    image = image.convert("RGB")
{fit}    return np.array(image.resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR))
"""

_PAD = """    image = Image.fromarray(pad(crop(np.array(image))))
"""

_PAD_FUNCTIONS = '''

def crop(pixels):
    """Cut off the black border."""
    bright = pixels.max(axis=2) > 12
    ends = []
    for counts in (bright.sum(axis=1), bright.sum(axis=0)):
        filled = np.flatnonzero(counts >= max(1, 0.02 * counts.max()))
        ends += [filled[0], filled[-1] + 1] if len(filled) else [0, 0]
    top, bottom, left, right = ends
    if min(bottom - top, right - left) < 16:
        return pixels  # a speck in the dark
    return pixels[top:bottom, left:right]


def pad(pixels):
    """Add black at the shorter sides until the image is square."""
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 3), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square
'''

_FIT_WORDS = {
    "squash": "Resized as it is, so that proportions change.",
    "pad": "First the black border is cut off, then black is added at the shorter\n"
    "sides until the image is square, so that proportions are kept.",
}

_NOTES = {
    "torchscript": """
TorchScript is a legacy format: PyTorch has deprecated it, and a later version may not
load this file any more. `torch-export` and `onnx` are its successors.
""",
    "torch-export": """
A `.pt2` file promises to load in the version of torch that wrote it and in later ones.
""",
    "onnx-int8": """
Static int8 by ONNX Runtime, per channel, with ranges from training images.
""",
    "openvino-int8": """
Static int8 by NNCF, per channel, with ranges from training images.
""",
    "openvino-bf16": """
The weights are those of fp32; the arithmetic is bf16. A processor without it makes
OpenVINO compute in fp32, more slowly and no less exactly.
""",
}


_USAGE_WORDS = {
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
}
"""Runtimes that report their use unless they are told not to."""


def readme_of(card: ArtefactCard, verdict: Parity) -> str:
    """Return the text of README.md.

    Args:
        card: Of the artefact.
        verdict: From `parity.judge_parity`.
    """
    networks = " + ".join(card.networks)
    libraries = ", ".join(f"{name} {number}" for name, number in card.made_with.items())
    shape = f"(N, {card.size_px}, {card.size_px}, 3)"
    temperatures = ", ".join(f"{value:g}" for value in card.temperature)
    return f"""# {networks} as {card.kind}

A classifier of 2-D brain MRI images, exported from the run `{card.run}` by tumorlens
{card.tumorlens}. **For research and teaching. Not a medical device; never use it for a
diagnosis.** It answers for any image, also for one that is no brain, and what it was
trained and tested on is in the run's own report.
{_NOTES.get(card.kind, "")}
## Input and outputs

| | shape | type | |
|---|---|---|---|
| `images` | {shape} | uint8 | RGB; grey repeats its values; any number N |
| `probs` | (N, {len(card.classes)}) | float32 | each row sums to 1 |
| `logits` | (N, {len(card.classes)}) | float32 | before temperature and softmax |
| `embedding` | (N, {card.embedding_size}) | float32 | what the last layer is given |

Classes, in order: {", ".join(f"`{name}`" for name in card.classes)}.

Inside the graph, and so not left to the caller: normalization; the views of an image
that are averaged over ({card.views}); the temperature ({temperatures}).

## From a file to a label

Run here, with numpy, Pillow and the runtime. The graph was made and proved with
{libraries}.

```python
{_recipe(card)}```

Saved as `recipe.py`, `python recipe.py scan.jpg ...` prints a label for each image.
{_usage_words(card)}
An image becomes a square like this: upright as EXIF says, transparency over black, RGB.
{_FIT_WORDS[card.fit]}
Pillow's bilinear filter averages where it shrinks; another library's resize gives other
numbers. All this is for files with 8 bits per channel. For 16 bits and for DICOM, give
this folder to `tumorlens predict`.

## Does it answer as the run does?

{_verdict_words(verdict)}

`parity.json` has every figure, with the bounds.

## Is it the file that was exported?

`manifest.json` has the SHA-256 of every file here, and tumorlens checks them before it
loads one. A digest is no signature: it shows damage, not who made the file. Loading a
model can run code of whoever made it, so load only what you trust.
"""


def _base(card: ArtefactCard) -> str:
    return card.kind.removesuffix("-int8").removesuffix("-bf16")


def _usage_words(card: ArtefactCard) -> str:
    name = _USAGE_WORDS.get(_base(card))
    if name is None:
        return ""
    return (
        f"Left to itself {name} collects usage data, and a medical tool must not tell\n"
        "anybody what it is used on: the line before its import switches that off.\n"
    )


def _recipe(card: ArtefactCard) -> str:
    base = _base(card)
    is_padded = card.fit == "pad"
    read = _READ.format(
        size_px=card.size_px,
        classes=list(card.classes),
        fit=_PAD if is_padded else "",
        imports="import os\nimport sys" if base == "onnx" else "import sys",
    )
    ask = _ASK[base].replace("TYPE", "bf16" if card.precision == "bf16" else "f32")
    assert GRAPH_FILES[card.kind][0] in ask
    library, _, rest = ask.partition("\n\n")
    first, _, body = read.partition("\n\nSIZE_PX")
    return f"""{first}
{library}

SIZE_PX{body}{_PAD_FUNCTIONS if is_padded else ""}

images = np.stack([read_square(path) for path in sys.argv[1:]])
{rest}for path, row in zip(sys.argv[1:], probs):
    print(path, CLASSES[row.argmax()], f"{{row.max():.4f}}", sep="\\t")
"""


def _verdict_words(verdict: Parity) -> str:
    accuracy, flips = verdict.accuracy, verdict.flips
    change = accuracy.change
    interval = (
        ""
        if change.low is None or change.high is None
        else f" (95 % interval {100 * change.low:+.2f} to {100 * change.high:+.2f})"
    )
    words = (
        f"On the {verdict.num_images} images of the run's val subset, from file to "
        f"label, a probability differs by at most {verdict.max_difference:.2g} "
        f"({verdict.mean_difference:.2g} in the mean), {len(flips)} label(s) flip, "
        f"and accuracy goes from {100 * accuracy.run:.2f} % to "
        f"{100 * accuracy.artefact:.2f} %, {100 * change.value:+.2f} points"
        f"{interval}."
    )
    if flips:
        words += "\n\n" + "\n".join(
            f"- `{flip.path}`: {flip.run} became {flip.artefact} (the run's "
            f"margin was {flip.margin:.3f})"
            for flip in flips[:20]
        )
    if len(flips) > 20:
        words += f"\n- and {len(flips) - 20} more in `parity.json`"
    return words
