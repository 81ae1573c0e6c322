"""FILE of `crucible run`, `check` and `graph`: a workflow in YAML, or an object in Python."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

from granville.crucible.workflow.model import Workflow
from granville.crucible.workflow.reading import open_workflow, workflow_from
from granville.errors import StartupError


def load(file: str, tools: Collection[str] | None = None) -> tuple[Workflow, Path]:
    """The workflow, checked, and the folder where its paths begin. `tools` are the names that there are, None when
    nobody knows them yet. Raises WorkflowError with all that is wrong with it,
    StartupError when there is none."""
    where, colon, name = file.rpartition(":")
    if not colon or Path(file).exists():
        if file.endswith(".py"):
            raise StartupError(f"{file}: name the workflow in it, for example {file}:workflow")
        return open_workflow(Path(file), tools=tools), Path(file).parent
    module = _module(where)
    value = getattr(module, name, None)
    folder = Path(getattr(module, "__file__", None) or ".").parent
    if not isinstance(value, Workflow):
        found = [key for key, one in vars(module).items() if isinstance(one, Workflow)]
        hint = f"; it has {', '.join(found)}" if found else "; a granville.crucible Workflow is expected"
        raise StartupError(f"{file}: {where} has no workflow called {name!r}{hint}")
    return workflow_from(value, folder=folder, file=file, tools=tools), folder


def _module(where: str) -> ModuleType:
    """A file's path that ends in .py, or a module's name."""
    try:
        if not where.endswith(".py"):
            sys.path.insert(0, "")  # as with `python -m`
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(Path(where).parent.absolute()))  # what lies beside it can be imported
        sys.modules.setdefault(spec.name, module)
        spec.loader.exec_module(module)
        return module
    except FileNotFoundError:
        raise StartupError(f"{where}: no such file") from None
    except Exception as error:
        raise StartupError(f"{where}: cannot be imported: {type(error).__name__}: {error}") from error
