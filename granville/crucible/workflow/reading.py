"""A workflow out of a file, a text or plain objects: read, joined with the workflows that it names, and checked.

    workflow = open_workflow(Path("voice.yaml"))

Whatever is wrong is in one WorkflowError, with file, line and column. Of all of `granville.crucible.workflow` this
module alone opens files.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from granville.crucible.workflow.check import problems_of
from granville.crucible.workflow.model import MAX_GROUP_DEPTH, Step, Workflow
from granville.crucible.workflow.problems import Path as FieldPath
from granville.crucible.workflow.problems import Problem, WorkflowError
from granville.crucible.workflow.shape import BAD, Shape
from granville.crucible.workflow.source import MAX_SOURCE_BYTES, Source, parse

MAX_FILES = 64
"""That one workflow is made of."""
UNNAMED = "workflow"
"""What a workflow is called that nobody has named, and that is no file."""
_TYPE = inspect.type_info(Workflow)


def open_workflow(path: Path, *, tools: Collection[str] | None = None) -> Workflow:
    """The workflow of a file, with those that it names in place of their paths. Raises WorkflowError.

    `tools` are the names that are known; None when nobody knows them yet.
    """
    reader = _Reader()
    source, workflow = reader.file(path, str(path))
    return _checked(reader, source, workflow, tools)


def workflow_from(
    value: Workflow | Mapping[str, Any] | str,
    *,
    folder: Path | None = None,
    file: str = "",
    tools: Collection[str] | None = None,
) -> Workflow:
    """The same of a workflow that was made in Python, of a map that came as JSON or MessagePack, or of a YAML text.

    Paths of other workflows begin at `folder`; without one there can be none. Raises WorkflowError.
    """
    reader = _Reader()
    if isinstance(value, Workflow):
        value = msgspec.to_builtins(value, builtin_types=(bytes,))
    source = parse(value, file) if isinstance(value, str) else Source(value, file)
    return _checked(reader, source, reader.workflow(source, folder, Path(file).stem or UNNAMED), tools)


def _checked(reader: _Reader, source: Source, workflow: Workflow | None, tools: Collection[str] | None) -> Workflow:
    if workflow is not None:
        reader.problems += problems_of(workflow, source, tools)
    if reader.problems or workflow is None:
        raise WorkflowError(reader.problems)
    return workflow


@dataclass
class _Reader:
    """Files that are being read, for one workflow."""

    problems: list[Problem] = field(default_factory=list)
    _read: dict[Path, tuple[Source, Workflow | None]] = field(default_factory=dict)
    _open: list[Path] = field(default_factory=list)
    """From the first to the one that is being read."""

    def file(self, path: Path, name: str) -> tuple[Source, Workflow | None]:
        """Raises WorkflowError for what cannot be read at all."""
        real = path.resolve()
        if real not in self._read:
            source = parse(_text_of(path, name), name)
            self._open.append(real)
            try:
                self._read[real] = source, self.workflow(source, path.parent, path.stem)
            finally:
                self._open.pop()
        return self._read[real]

    def workflow(self, source: Source, folder: Path | None, name: str) -> Workflow | None:
        """What could be read of it, with its problems noted; None when that is nothing that could be checked."""

        def tell(path: FieldPath, sentence: str, *, key: bool = False) -> None:
            self.problems.append(source.problem(path, sentence, key=key))

        plain = source.value
        if isinstance(plain, Mapping) and "name" not in plain:
            plain = {"name": name[:128], **plain}
        shape = Shape(tell, source.written)
        plain = shape.check(plain, _TYPE, ())
        source.broken.update(shape.broken)
        if plain is BAD:
            return None
        return self._joined(msgspec.convert(plain, Workflow, builtin_types=(bytes,)), source, (), folder)

    def _joined(self, workflow: Workflow, source: Source, path: FieldPath, folder: Path | None) -> Workflow:
        """With the workflows of other files in their places."""
        return msgspec.structs.replace(workflow, steps=self._steps(workflow.steps, source, path, folder))

    def _steps(self, steps: tuple[Step, ...], source: Source, path: FieldPath, folder: Path | None) -> tuple[Step, ...]:
        return tuple(self._step(step, source, (*path, "steps", at), folder) for at, step in enumerate(steps))

    def _step(self, step: Step, source: Source, path: FieldPath, folder: Path | None) -> Step:
        if step.steps is not None:
            return msgspec.structs.replace(step, steps=self._steps(step.steps, source, path, folder))
        if step.workflow is None:
            return step
        place = (*path, "workflow")
        if isinstance(step.workflow, Workflow):
            joined: Workflow | None = self._joined(step.workflow, source, place, folder)
        else:
            joined = self._other(step.workflow, source, place, folder)
        if joined is None:
            source.broken.add(path)
            return step
        return msgspec.structs.replace(step, workflow=joined)

    def _other(self, name: str, source: Source, place: FieldPath, folder: Path | None) -> Workflow | None:
        if folder is None:
            self.problems.append(
                source.problem(place, "a path has no folder to begin at here; give the workflow itself")
            )
            return None
        path = folder / name
        real = path.resolve()
        if real in self._open:
            chain = " → ".join(one.name for one in (*self._open[self._open.index(real) :], real))
            self.problems.append(source.problem(place, f"the workflow would run itself: {chain}"))
        elif len(self._open) > MAX_GROUP_DEPTH or len(self._read) >= MAX_FILES:
            self.problems.append(
                source.problem(
                    place, f"more than {MAX_GROUP_DEPTH} workflows in each other, or {MAX_FILES} in all, are too many"
                )
            )
        else:
            try:
                other, workflow = self.file(path, str(path))
            except WorkflowError as error:
                if all(problem.line is None for problem in error.problems):
                    self.problems += [source.problem(place, str(problem)) for problem in error.problems]
                else:
                    self.problems += error.problems
                return None
            source.others[place] = other
            return workflow
        return None


def _text_of(path: Path, name: str) -> str:
    try:
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise WorkflowError([Problem("is no file; give the path of a workflow", name)])
        with path.open("rb") as file:
            data = file.read(MAX_SOURCE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WorkflowError([Problem(f"cannot be read: {reason}", name)]) from None
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise WorkflowError([Problem(f"not UTF-8, at byte {error.start}", name)]) from None
