"""A user's own code, named ``module:Name`` in a configuration."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fedkd.errors import ConfigError, FedkdError


def load_symbol(name: str, base: Path) -> Any:
    """The attribute that ``module:Name`` stands for, searched in ``base`` (the configuration's folder), then
    in the working directory, then wherever Python finds packages.

    Raises ConfigError when there is no such module or attribute, or when importing the module fails.
    """
    module_name, _, attribute = name.partition(":")
    module = _module(name, module_name, base)
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(
            f"module {module_name!r} has no {attribute!r}",
            where=f"{name} ({getattr(module, '__file__', None) or 'built in'})",
            fix="check the spelling after the colon",
        ) from None


def call(name: str, function: Callable[..., Any], *args: Any, kind: type[FedkdError] = ConfigError) -> Any:
    """``function(*args)``; what the user's code raises becomes one ``kind`` with the line that raised it."""
    try:
        return function(*args)
    except FedkdError:
        raise
    except Exception as error:
        raise kind(f"{name} failed: {last_line(error)}", where=_place(error), fix="mend this code") from error


def last_line(error: BaseException) -> str:
    """The last line that Python's own traceback would show."""
    return traceback.format_exception_only(error)[-1].strip()


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}, in {frames[-1].name}" if frames else ""


def _module(name: str, module_name: str, base: Path) -> ModuleType:
    roots = list(dict.fromkeys([base.resolve(), Path.cwd()]))
    # At the end of the path, so that a user's server.py never takes the place of a package; and for good,
    # because functions may import their helpers only when they are called.
    sys.path.extend(str(root) for root in roots if str(root) not in sys.path)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigError(f"importing {name} failed: {last_line(error)}", fix="install what it needs") from error
        folders = ", ".join(str(root) for root in roots)
        raise ConfigError(
            f"there is no module {error.name!r}", where=f"{name}, searched in {folders}", fix="check the spelling"
        ) from None
    except Exception as error:
        raise ConfigError(f"importing {name} failed: {last_line(error)}", where=_place(error)) from error
    _refuse_namesake(name, module, roots)
    return module


def _refuse_namesake(name: str, module: ModuleType, roots: list[Path]) -> None:
    """A module of the same name that was found or imported earlier must not silently replace the user's file."""
    found = getattr(module, "__file__", None)
    parts = module.__name__.split(".")
    files = [root.joinpath(*parts).with_suffix(".py") for root in roots]
    files += [root.joinpath(*parts, "__init__.py") for root in roots]
    wanted = [file.resolve() for file in files if file.is_file()]
    if wanted and (found is None or Path(found).resolve() not in wanted):
        raise ConfigError(
            f"module {module.__name__!r} is already {found or 'part of Python'}",
            where=f"{name}, expected {wanted[0]}",
            fix="rename your file to something that no package uses",
        )
