"""The command line: arguments in, one call each.

What a command needs is imported inside it: Ray, torch and MLflow take seconds that `--help` and a
misspelt option should not.
"""

import errno
import os
import sys

import typer

from core import environment
from core.files import own_temporary_folder
from core.telemetry import disable_telemetry
from sweep.cli import (
    archive_commands,
    asr_commands,
    export_command,
    import_command,
    inspect_commands,
    model_commands,
    setup_commands,
    submit_command,
    sweep_commands,
)
from sweep.cli.options import BAD_INPUT, RESUMABLE, end
from sweep.cli.output.streams import flushed_output, guard_output
from sweep.console import make_logs_safe
from sweep.run.library_caches import provide_home

COMMANDS = (
    *(
        sweep_commands.demo,
        sweep_commands.run,
        sweep_commands.resume,
        sweep_commands.extend,
        sweep_commands.stop,
        sweep_commands.confirm,
        sweep_commands.warm_start,
    ),
    *(setup_commands.init, setup_commands.check, setup_commands.prune, setup_commands.doctor),
    *(
        inspect_commands.status,
        inspect_commands.trials,
        inspect_commands.show,
        inspect_commands.pareto,
        inspect_commands.listen,
        inspect_commands.ui,
    ),
    *(
        import_command.import_,
        asr_commands.transcribe,
        asr_commands.evaluate,
        model_commands.bench,
        model_commands.adapt,
    ),
    export_command.export,
    submit_command.submit,
    *(archive_commands.pack, archive_commands.unpack, archive_commands.promote),
)

app = typer.Typer(
    name="conformer-sweep",
    help="Sweep structured pruning of a Conformer recogniser: word error rate against FLOPs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    # A name that Python keeps for itself has a stroke more there than on the command line.
    app.command(command.__name__.strip("_").replace("_", "-"))(command)


WRONG_PATH = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
)
"""What the system says of a path that a person has to put right."""


def _said(error: OSError) -> str:
    """What the system says, with the culprit first."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"`{error.filename}` cannot be used: {error.strerror}"


def main() -> None:
    """Run a command; what a person got wrong is one line and exit code 2."""
    disable_telemetry(os.environ)
    provide_home(os.environ)
    environment.set_defaults(os.environ)
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # Ray reads it when imported
    make_logs_safe()
    guard_output()
    try:
        with own_temporary_folder(), flushed_output():
            app()
    except KeyboardInterrupt:
        sys.exit(RESUMABLE)
    except (ValueError, ConnectionError) as error:
        end(str(error), BAD_INPUT)
    except OSError as error:  # a full disk, most often: what is done is kept
        end(_said(error), BAD_INPUT if error.errno in WRONG_PATH else RESUMABLE)
    except RuntimeError as error:
        if str(error).startswith("Symlink loop"):  # so says `Path.resolve` before Python 3.13
            end(str(error), BAD_INPUT)
        if not type(error).__module__.startswith(("core.", "sweep.")):
            raise  # a fault of the program, to be reported whole
        end(str(error), getattr(error, "exit_code", BAD_INPUT))
