"""Hatchling's hook: every build, an editable install included, first generates the wire code.

The generator itself is `protos/generate.py`, which also runs without hatchling.
"""

import runpy
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateProtos(BuildHookInterface[Any]):
    """Generates into the source tree being built; `artifacts` in pyproject.toml carries it from there."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - the hook's signature
        """Called by hatchling before it collects files."""
        root = Path(self.root)
        runpy.run_path(str(root / "protos" / "generate.py"))["generate"](root / "consumer")
