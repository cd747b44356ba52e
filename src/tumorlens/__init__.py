"""tumorlens: from a folder of brain MRI images to a classifier that can be trusted.

Importing this package imports neither torch nor timm. Each stage is a module with
one public function of the stage's name, and the command line calls nothing else.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
