"""Supervised fine-tuning: from rows in a file to a tuned, merged, talking model.

Importing this package is cheap: torch and transformers load only when a verb needs them.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("vicugna")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0+source"
