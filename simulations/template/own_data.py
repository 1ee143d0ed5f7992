"""Your examples. Put your own in the place of scikit-learn's, and keep what the functions return.

x is numbers [n, ...], y is integers [n]. Say how many classes there are: the list of labels is public and fixed. Never
scale by a mean or a maximum of the private examples: that would leave the client, and nobody would have charged it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_breast_cancer

PUBLIC = 400  # how many examples anybody may see; the rest plays one client's private data


def public() -> dict[str, Any]:
    """Public examples: the proxy set is cut off these, and a simulation deals them out to its clients."""
    return _examples(slice(0, PUBLIC))


def private() -> dict[str, Any]:
    """One client's private examples. They never leave this machine."""
    return _examples(slice(PUBLIC, None))


def _examples(part: slice) -> dict[str, Any]:
    bunch = load_breast_cancer()
    return {"x": np.log1p(bunch.data[part]), "y": bunch.target[part], "classes": 2}
