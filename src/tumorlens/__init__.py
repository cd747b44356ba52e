"""tumorlens: from a folder of brain MRI images to a classifier that can be trusted.

Importing this package imports neither torch nor timm. Each stage is a module with
one public function of the stage's name, and the command line calls nothing else.
`Predictor` is the way in for programs that use a model; it is imported when asked for.
"""

from typing import TYPE_CHECKING, Any

from tumorlens.extras import switch_off_usage_data

if TYPE_CHECKING:
    from tumorlens.deploy.predictor import Predictor

switch_off_usage_data()

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from tumorlens.deploy.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
