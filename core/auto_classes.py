"""Makes transformers' Auto classes know SARM models after `import core`, which itself imports neither torch nor transformers.

transformers has no place to announce a model without importing it, so a finder waits for its two Auto modules and
registers the configuration and the model right after each has been imported.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

REGISTERED_BY = {
    "transformers.models.auto.configuration_auto": "core.models.sarm_config",
    "transformers.models.auto.modeling_auto": "core.models.sarm",
}
"""Which module of this program registers its class with which of transformers'."""


class _ThenRegister(Loader):
    """The module's own loader, after which ours is imported."""

    def __init__(self, own: Loader, ours: str) -> None:
        self.own, self.ours = own, ours

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.own.exec_module(module)
        importlib.import_module(self.ours)


class _AutoModules(MetaPathFinder):
    """Finds the Auto modules as everybody else does, once each, and wraps their loader."""

    def __init__(self) -> None:
        self.waiting = dict(REGISTERED_BY)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in self.waiting:
            return None
        ours = self.waiting.pop(name)
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, ours)
        return spec


def register_when_imported() -> None:
    """Registers now what is already imported, and the rest when it is."""
    if not any(isinstance(finder, _AutoModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModules())
    for theirs, ours in REGISTERED_BY.items():
        if theirs in sys.modules:
            importlib.import_module(ours)
