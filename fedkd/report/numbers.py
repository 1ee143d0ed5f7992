"""Numbers as strict JSON can carry them: infinity is a word, and never left blank."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field

Finite = Annotated[float, Field(allow_inf_nan=False)]
Number = Finite | Literal["inf"]


def number(value: float) -> Number:
    """The JSON form."""
    return "inf" if math.isinf(value) else value
