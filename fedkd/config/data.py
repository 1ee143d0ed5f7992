"""Where examples come from, how they are dealt out, what is public of them, and its features."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from fedkd.config.base import USER_CODE, Finite, Model, Positive, Rate, Text, Texts, distinct

FEATURES = ("none", "pca", "scattering", "patches")


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, float) else value


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


class Column(Model):
    """A column of a table, and how it becomes numbers. All of it is public: nothing is counted or measured on private
    rows."""

    name: Text = Field(description="as the header has it")
    categories: Texts = Field((), description="fixed public list, one input each; without a list the column is numeric")
    mean: Finite | None = Field(None, description="public, of a numeric column; null: that of the proxy set")
    sd: Positive | None = Field(None, description="public, of a numeric column; null: that of the proxy set")
    fill: Annotated[Text | None, BeforeValidator(_number_as_text)] = Field(
        None, description="public, stands for a missing cell; null: a missing cell is an error"
    )

    @model_validator(mode="after")
    def _typed(self) -> Self:
        distinct(self.categories, "categories")
        if (self.mean is None) != (self.sd is None):
            raise ValueError("mean and sd come together: give both, or neither")
        if self.categories and self.mean is not None:
            raise ValueError("a column with categories has no mean and sd")
        if self.fill is None:
            return self
        if self.categories and self.fill not in self.categories:
            raise ValueError(f"fill must be one of the categories, not {self.fill!r}")
        if not self.categories and not _is_finite(self.fill):
            raise ValueError(f"fill of a numeric column must be a number, not {self.fill!r}")
        return self


def _columns(value: object) -> object:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(item if isinstance(item, Mapping | Column) else {"name": item} for item in value)
    return value


class Image(Model):
    """To what size and colours every image is brought."""

    height: int = Field(ge=1, le=4096, description="pixels; images of another size are resampled")
    width: int = Field(ge=1, le=4096, description="pixels")
    colour: Literal["grey", "rgb"] = Field("grey", description="one channel or three")
    column: Text = Field("image", description="of a Hugging Face data set: the column of the images")


# What a source reads beside test_fraction, and which of it must be there.
_READS: dict[str, tuple[set[str], set[str]]] = {
    "digits": (set(), set()),
    "mnist1d": ({"size", "seed"}, set()),
    "idx": ({"path"}, set()),
    "npz": ({"path"}, set()),
    "csv": ({"path", "label", "labels", "columns", "missing"}, {"path", "label", "labels", "columns"}),
    "folder": ({"path", "labels", "image"}, {"path", "labels", "image"}),
    "hf": ({"path", "label", "labels", "columns", "missing", "image"}, {"path", "label", "labels"}),
}
_SOURCES = ", ".join(_READS)


class Data(Model):
    """Where examples come from."""

    source: str = Field("digits", description=f"{_SOURCES.replace(', ', ' | ')} | module:function")
    path: str | None = Field(
        None,
        description="folder of IDX files, of images, or of a Hugging Face data set (or its name, if it has been "
        "downloaded); the .npz or .csv file",
    )
    test_fraction: Rate = Field(0.2, description="share cut off for testing when the source has no test part")
    label: Text | None = Field(None, description="csv, hf: the column of the labels")
    labels: Texts = Field((), description="csv, folder, hf: the fixed public list of labels; their order numbers them")
    columns: Annotated[tuple[Column, ...], BeforeValidator(_columns)] = Field(
        (), description="csv, hf: the columns that are inputs, in this order; a bare name is a numeric column"
    )
    missing: tuple[str, ...] = Field(("",), description="csv, hf: texts that mean that a cell is missing")
    image: Image | None = Field(None, description="folder, hf: images")
    size: int = Field(5000, ge=10, le=10_000_000, description="mnist1d: examples, a fifth of them for testing")
    seed: int = Field(
        42, ge=0, lt=2**63, description="mnist1d: of the examples; the run's own seed does not touch them"
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.source in _READS:
            reads, needs = _READS[self.source]
        elif re.match(USER_CODE, self.source):
            reads, needs = {"path"}, set()
        else:
            raise ValueError(f"unknown source {self.source!r}: use {_SOURCES} or module:function")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in needs and not value:
                raise ValueError(f"the source {self.source} needs {name!r}")
            if value != field.default and name not in reads | {"source", "test_fraction"}:
                raise ValueError(f"the source {self.source} does not read {name!r}: remove it, or name another source")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        distinct(self.labels, "labels")
        distinct([column.name for column in self.columns], "columns")
        if self.label in [column.name for column in self.columns]:
            raise ValueError(f"the label {self.label!r} cannot be an input too: take it out of 'columns'")
        if self.source == "hf" and bool(self.columns) == (self.image is not None):
            raise ValueError("the source hf needs either 'columns' or 'image'")
        return self


class Partition(Model):
    """How a simulation deals the private pool out to its clients."""

    kind: Literal["iid", "dirichlet", "pathological", "shard", "size", "natural_id"] = Field(
        "iid",
        description="dirichlet: clients differ in classes and sizes; pathological: each has a few classes; shard: each "
        "has a few runs of the examples sorted by class; size: some have more; natural_id: whoever a column names",
    )
    alpha: Positive = Field(0.5, description="dirichlet: concentration; small means that clients differ much")
    classes_per_client: int = Field(2, ge=1, description="pathological: how many classes a client has")
    shards_per_client: int = Field(2, ge=1, description="shard: how many shards a client has")
    growth: Literal["linear", "square", "exponential"] = Field(
        "linear", description="size: of client 1, 2, 3, ... as 1, 2, 3 or as 1, 4, 9 or as e, e^2, e^3"
    )
    column: Text = Field(
        "ids", description="natural_id: column (csv, hf) or array (npz, function) of whose an example is"
    )


class Poison(Model):
    """Simulated clients that send bad answers, of the right form."""

    kind: Literal["label_flip", "random", "colluding"] = Field(
        description="label_flip: every class named as the next one; random: sure of a class drawn for each answer; "
        "colluding: sure of the class next to their own first choice"
    )
    share: Annotated[float, Field(ge=0, le=1)] = Field(0.2, description="of the clients, chosen by the seed")


class Proxy(Model):
    """The public examples, cut off before anything else."""

    size: int = Field(400, ge=2, description="examples that all parties hold and answer on")
    labelled: bool = Field(False, description="labelled proxies also teach the teacher their labels")
    tune_size: int = Field(100, ge=0, description="a further public split, on which settings are chosen")


class Features(Model):
    """The frozen extractor fitted on the proxy set: one kind, or several joined by + and concatenated."""

    kind: str = Field("scattering", description="none | pca | scattering | patches | module:Class, or several: a+b")
    components: int = Field(30, ge=1, description="how many of them are kept of each kind, at the most")
    weights: str | None = Field(None, description="safetensors file with the weights of a module:Class")

    @model_validator(mode="after")
    def _known(self) -> Self:
        parts = self.kind.split("+")
        odd = [part for part in parts if part not in FEATURES and not re.match(USER_CODE, part)]
        if odd:
            raise ValueError(f"unknown features {odd[0]!r}: use {', '.join(FEATURES)} or module:Class")
        if len(parts) > 1 and ("none" in parts or len(set(parts)) < len(parts)):
            raise ValueError(f"features {self.kind!r} cannot be joined: name each once, and none alone")
        if self.weights is not None and sum(part not in FEATURES for part in parts) != 1:
            raise ValueError("weights belong to one module:Class: remove weights, or name the class in kind")
        return self
