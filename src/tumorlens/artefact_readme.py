"""What stands in the README of an artefact: how to use it where there is no tumorlens.

The recipe is run by a test in a process that cannot import tumorlens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tumorlens.artefacts import Kind

_LOAD = {
    "torchscript": """import torch

graph = torch.jit.load("graph.pt").eval()
with torch.no_grad():
    parts = graph(torch.from_numpy(images))
probs, logits, embedding = (part.numpy() for part in parts)
""",
    "torch-export": """import torch

graph = torch.export.load("graph.pt2").module()
with torch.no_grad():
    parts = graph(torch.from_numpy(images))
probs, logits, embedding = (part.numpy() for part in parts)
""",
    "onnx": """import onnxruntime

graph = onnxruntime.InferenceSession("graph.onnx")
probs, logits, embedding = graph.run(None, {"images": images})
""",
    "openvino": """import openvino

hint = {"INFERENCE_PRECISION_HINT": "PRECISION"}
graph = openvino.Core().compile_model("graph.xml", "CPU", hint)
probs, logits, embedding = (graph([images])[number] for number in range(3))
""",
}


def readme_of(kind: Kind, classes: Sequence[str]) -> str:
    """Return the text of README.md."""
    base = kind.removesuffix("-int8").removesuffix("-bf16")
    precision = "bf16" if kind.endswith("bf16") else "f32"
    code = _LOAD[base].replace("PRECISION", precision)
    return f"""# {kind}

Input `images`: (N, S, S, 3), uint8. Outputs: `probs`, `logits`, `embedding`.

```python
{code}
classes = {list(classes)!r}
print([classes[row.argmax()] for row in probs])
```
"""
