"""The anchor of a run: what the teacher of the run before says of the proxies, frozen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedkd.config import ServerConfig
from fedkd.continual.anchor import anchored
from fedkd.distill.model import Model, ProxyView
from fedkd.distill.trainer import logits
from fedkd.errors import ConfigError, DataError


def anchor_of(config: ServerConfig, base: Path, view: ProxyView) -> NDArray[np.float32] | None:
    """Soft labels [proxies, classes] of this run's proxy set, whatever set the teacher was made with; None without a
    teacher. Raises DataError for one of other examples, ConfigError for labels that there are not.
    """
    if config.anchor is None:
        return None
    proxy, path = view.proxy, base / config.anchor
    teacher = Model.open(path, base / config.code)
    shape = tuple(teacher.features.spec["shape"])
    if (shape, teacher.classes) != (proxy.shape, proxy.classes):
        raise DataError(
            f"this teacher tells {teacher.classes} classes of examples {list(shape)}, the proxy set has "
            f"{proxy.classes} of {list(proxy.shape)}",
            where=str(path),
        )
    classes = config.anchor_classes or range(proxy.classes)
    if max(classes) >= proxy.classes:
        raise ConfigError(f"labels are 0 to {proxy.classes - 1}, not {max(classes)}", where="key 'anchor_classes'")
    rows: NDArray[np.float32] = anchored(
        logits(teacher.network, teacher.inputs(proxy.examples)), classes, config.temperature
    ).numpy()
    return rows
