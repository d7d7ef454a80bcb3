"""The console command `vesselseg`: its commands by stage, and how a command line is run.

Commands are imported when they are needed, and import what they work with when they run: `--help` and every wrong
argument are answered within half a second of CPU time, without torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from inspect import BoundArguments
from typing import Any, cast

from cyclopts import App, CycloptsError, Group, Parameter

from vesselseg import __version__
from vesselseg.cli.messages import describe
from vesselseg.cli.parameters import shown_default
from vesselseg.errors import UserError
from vesselseg.models.hub_kernels import keep_hub_kernels_out
from vesselseg.run_tool import exit_status
from vesselseg.utf8_mode import ensure_utf8

HELP = "Fine-tune Sa2VA for blood vessel segmentation: from labelled images to a Hugging Face model and a report."

# stage: {command: function, or app with further commands}, in the order of the work
STAGES = {
    "Try": {
        "demo": "vesselseg.cli.demo:demo",
        "synthetic": "vesselseg.cli.synthetic:synthetic",
    },
    "Data": {
        "prepare": "vesselseg.cli.prepare:prepare",
        "check": "vesselseg.cli.check:check",
        "browse": "vesselseg.cli.browse:browse",
        "folds": "vesselseg.cli.folds:app",
    },
    "Train": {
        "configs": "vesselseg.cli.configs:app",
        "weights": "vesselseg.cli.weights:app",
        "plan": "vesselseg.cli.plan:plan",
        "train": "vesselseg.cli.train:train",
        "report": "vesselseg.cli.report:app",
    },
    "Use": {
        "convert": "vesselseg.cli.convert:convert",
        "predict": "vesselseg.cli.predict:predict",
        "serve": "vesselseg.cli.serve:serve",
        "distill": "vesselseg.cli.distill:distill",
    },
    "Evaluate": {
        "eval": "vesselseg.cli.eval:evaluate",
        "compare": "vesselseg.cli.compare:compare",
        "baselines": "vesselseg.cli.baselines:app",
        "curve": "vesselseg.cli.curve:curve",
    },
    "Shell": {
        "completion": "vesselseg.cli.completion:completion",
    },
}


def create_app(first: str = "") -> App:
    """The command line. first: its first word; where that names a command, no other one is imported."""
    app = App(
        name="vesselseg",
        help=HELP,
        version=__version__,
        help_format="plaintext",
        # no --no-FLAG twins; an option that is given twice counts as it was given last
        default_parameter=Parameter(negative=(), allow_repeating=True, show_default=shown_default),
        result_action="return_value",
    )
    for stage, commands in STAGES.items():
        group = Group.create_ordered(stage)
        for place, (name, function) in enumerate(commands.items()):
            app.command(function, name=name, group=group, sort_key=place)
            if not any(first in known for known in STAGES.values()):
                app[name]  # imports it: the list of commands shows their first lines
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default this process's own; returns the exit status.

    0: done, 1: done with a finding (each command says which), 2: bad input, 130: Ctrl-C. Messages go to stderr.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    ensure_utf8(words)
    keep_hub_kernels_out()
    return exit_status(lambda: run(words))


def run(arguments: list[str]) -> int | None:
    """Parse, call; raises UserError for a command line that cannot be understood."""
    function, bound = parse(arguments)
    status = function(*bound.args, **bound.kwargs)
    return status if isinstance(status, int) else None


def parse(arguments: list[str]) -> tuple[Callable[..., Any], BoundArguments]:
    """The function that a command line names, and its arguments; raises UserError."""
    try:
        # errors are written by `exit_status`: rich's console, which takes a tenth of a second to import, is not needed
        function, bound, _ = create_app(*arguments[:1]).parse_args(
            arguments, error_console=cast(Any, sys.stderr), exit_on_error=False, print_error=False
        )
    except CycloptsError as error:
        raise UserError(describe(error)) from None
    return function, bound
