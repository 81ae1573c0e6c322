"""`crucible run`: one workflow, in this process, watched to its end."""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import msgspec
import trio
from cyclopts import Parameter

from granville.cli.crucible.following import conclude, run_here
from granville.cli.crucible.inputs import audio_input, gather
from granville.cli.crucible.loading import load
from granville.cli.crucible.options import Allow, Granville, JournalFile, Json, Out, OwnTools, Quiet, WaitForGranville
from granville.cli.crucible.outputs import check_out
from granville.cli.exits import status_of
from granville.client.address import DEFAULT_ADDRESS
from granville.crucible.running.link import WAIT_FOR_GRANVILLE_S
from granville.crucible.running.run import Run
from granville.crucible.running.runner import Runner
from granville.crucible.tools.toolbox import toolboxes
from granville.crucible.workflow.problems import WorkflowError
from granville.errors import BadRequest


def run(
    file: Annotated[str, Parameter(help="A workflow: a file in YAML, or `file.py:object`, `module:object`.")],
    /,
    *,
    input: Annotated[
        tuple[str, ...],
        Parameter(
            name=("--input", "-i"),
            show_default=False,
            help="An input as NAME=VALUE; JSON where a number, a list or an object is expected. May be repeated.",
        ),
    ] = (),
    input_file: Annotated[
        tuple[str, ...],
        Parameter(show_default=False, help="An input as NAME=PATH: the text, or sound, in a file; - is stdin."),
    ] = (),
    input_json: Annotated[
        tuple[str, ...], Parameter(show_default=False, help="An input as NAME=JSON or NAME=@PATH.")
    ] = (),
    audio: Annotated[
        str | None,
        Parameter(allow_leading_hyphen=True, help="The file for the one input that is sound; - is stdin."),
    ] = None,
    microphone: Annotated[
        float | None,
        Parameter(help="Record that input: for so many seconds or until Enter; 0 for until Enter alone."),
    ] = None,
    out: Out = (),
    granville: Granville = DEFAULT_ADDRESS,
    allow: Allow = (),
    tools: OwnTools = (),
    timeout: Annotated[float | None, Parameter(help="Seconds that the whole run may take.")] = None,
    id: Annotated[
        str | None, Parameter(help="The run's id; the same again, with the same inputs, is the same run.")
    ] = None,
    journal: JournalFile = None,
    wait_for_granville: WaitForGranville = WAIT_FOR_GRANVILLE_S,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Run a workflow here, and watch it. Its outputs go to standard output, its progress to standard error.

    All that is wrong with a workflow is said, with line and column, before any of it runs.

    Ctrl-C stops the run, and says how to go on with it: steps that have finished are not run again. A second Ctrl-C
    ends at once. `crucible help` has the meaning of the exit status.
    """
    toolbox_for = toolboxes(tools)
    try:
        workflow, folder = load(file, toolbox_for.catalogue.names)
    except WorkflowError as error:
        for problem in error.problems:
            print(f"crucible: {problem}", file=sys.stderr)
        return status_of(error)
    check_out(out)
    allowed = toolbox_for.check(allow)
    if timeout is not None:
        if not timeout > 0:
            raise BadRequest(f"--timeout: must be more than 0 seconds, got {timeout:g}")
        workflow = msgspec.structs.replace(workflow, timeout_s=min(timeout, workflow.timeout_s or timeout))
    recorded = None
    if microphone is not None:
        from granville.cli.crucible.microphone import record

        audio_input(workflow, "--microphone", {})
        recorded = record(microphone)
    given = gather(workflow, inputs=input, files=input_file, values=input_json, audio=audio, recorded=recorded)

    async def begin(runner: Runner) -> Run:
        return await runner.start(workflow, given, run_id=id, folder=folder, allow=allowed)

    work = partial(
        run_here, begin, granville=granville, journal=journal, toolbox_for=toolbox_for,
        wait_for_granville_s=wait_for_granville, quiet=quiet,
    )  # fmt: skip
    return conclude(trio.run(work), out, json=json)
