"""What all configurations are made of: a closed model, and the types of single values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

USER_CODE = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"  # module:function or module:Class
SHA256 = r"^[0-9a-f]{64}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Delta = Annotated[float, Field(ge=1e-10, lt=1)]
Size = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Frozen, and closed to keys that it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _text(value: object) -> object:
    """Names and labels may be written as whole numbers; YAML's yes, no and 0.5 would not come back as written."""
    if isinstance(value, bool | float):
        raise ValueError(f"YAML reads this as {value!r}: put it in quotes")
    return str(value) if isinstance(value, int) else value


Text = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
Texts = tuple[Text, ...]


def distinct(names: Sequence[str], what: str) -> None:
    """For validators: raises ValueError, which says what is named twice."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{what} named twice: {', '.join(twice)}")
