"""The command line: arguments in, one call each.

What a command needs is imported inside it: Ray, torch and MLflow take seconds that `--help` and a
misspelt option should not.
"""

import os
import sys

import typer

from sweep.commands import keeping, looking, models, planning, running, submitting
from sweep.commands.terminal import BAD_INPUT, RESUMABLE, end

COMMANDS = (
    *(
        running.demo,
        running.run,
        running.resume,
        running.extend,
        running.stop,
        running.confirm,
        running.warm_start,
    ),
    *(planning.init, planning.check, planning.doctor),
    *(looking.status, looking.trials, looking.show, looking.pareto, looking.ui),
    *(models.transcribe, models.evaluate),
    submitting.submit,
    *(keeping.pack, keeping.unpack, keeping.promote),
)

app = typer.Typer(
    name="conformer-sweep",
    help="Sweep structured pruning of a Conformer recogniser: word error rate against FLOPs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run a command; what a person got wrong is one line and exit code 2."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # Ray reads it when imported
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(RESUMABLE)
    except (ValueError, ConnectionError, FileNotFoundError, PermissionError) as error:
        end(str(error), BAD_INPUT)
    except OSError as error:  # a full disk, most often: what is done is kept
        end(str(error), RESUMABLE)
    except RuntimeError as error:
        if not type(error).__module__.startswith(("core.", "sweep.")):
            raise  # a fault of the program, to be reported whole
        end(str(error), getattr(error, "exit_code", BAD_INPUT))
