"""What the chapters need to show the package's own code."""

from __future__ import annotations

import inspect

__all__ = ["quiet", "source"]


def source(thing):
    """Show the source of a function or class, highlighted, as it stands in the package."""
    from IPython.display import Code

    return Code(inspect.getsource(thing), language="python")


def quiet() -> None:
    """Keep the loading notes and progress bars of transformers out of a notebook's outputs."""
    import warnings

    warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm's, where ipywidgets is not installed
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
