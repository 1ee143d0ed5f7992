"""``fedkd init``: a project of one's own, which runs as it is written."""

from __future__ import annotations

from pathlib import Path

from fedkd.config import Scenario, load
from fedkd.errors import ConfigError
from simulations.prepare import build_proxy

TEMPLATE = Path(__file__).with_name("template")
_HASH = "PROXY_HASH"
_FILES = (".py", ".yaml", ".md")


def scaffold(folder: Path) -> list[Path]:
    """Write the project into ``folder`` and return its files. Raises ConfigError unless the folder is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("the folder is not empty", where=str(folder), fix="choose another one")
    folder.mkdir(parents=True, exist_ok=True)
    for source in sorted(path for path in TEMPLATE.iterdir() if path.suffix in _FILES):
        (folder / source.name).write_bytes(source.read_bytes())
    proxy = build_proxy(load(Scenario, folder / "scenario.yaml"), folder)
    proxy.save(folder / "proxy.safetensors")
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text(encoding="utf-8").replace(_HASH, proxy.hash), encoding="utf-8")
    return sorted(path for path in folder.iterdir() if path.is_file())
