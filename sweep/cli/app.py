"""The program `conformer-sweep`: its commands, its groups and its exit codes.

A command imports what it needs inside its function: Ray, torch and MLflow take seconds, which
`--help` and a misspelled option must not wait for.
"""

import errno
import sys
from typing import Annotated

import typer

from core.files import own_temporary_folder
from sweep.cli import (
    archive_commands,
    asr_commands,
    export_command,
    import_command,
    inspect_commands,
    model_commands,
    prune_command,
    sensitivity_command,
    setup_commands,
    submit_command,
    sweep_commands,
)
from sweep.cli.options import BAD_INPUT, RESUMABLE, end
from sweep.cli.output.streams import flushed_output, guard_output
from sweep.cli.prune_command import spread_shares
from sweep.run.library_caches import prepare_process

COMMANDS = {
    "Sweeps": (
        sweep_commands.demo,
        sweep_commands.run,
        sweep_commands.resume,
        sweep_commands.extend,
        sweep_commands.stop,
        sweep_commands.confirm,
        sweep_commands.warm_start,
    ),
    "Inspect": (
        inspect_commands.status,
        inspect_commands.trials,
        inspect_commands.show,
        inspect_commands.pareto,
        inspect_commands.listen,
        inspect_commands.ui,
    ),
    "Models": (
        import_command.import_,
        prune_command.prune,
        sensitivity_command.sensitivity,
        model_commands.adapt,
        asr_commands.transcribe,
        asr_commands.evaluate,
        model_commands.bench,
        export_command.export,
    ),
    "Setup": (setup_commands.init, setup_commands.check, setup_commands.doctor),
    "Clusters and archives": (
        submit_command.submit,
        archive_commands.pack,
        archive_commands.unpack,
        archive_commands.promote,
    ),
}
"""The commands by the group under which `--help` lists them."""

app = typer.Typer(
    name="conformer-sweep",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for group, commands in COMMANDS.items():
    for command in commands:
        # `import` is a keyword of Python, so its function ends in an underscore.
        name = command.__name__.strip("_").replace("_", "-")
        app.command(name, rich_help_panel=group)(command)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from importlib.metadata import version  # a twentieth of a second

        typer.echo(f"conformer-sweep {version('conformer-sweep')}")
        raise typer.Exit


@app.callback()
def program(
    show_version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Sweep structured pruning of a Conformer recognizer: word error rate against FLOPs."""


WRONG_PATH = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
)
"""Error numbers of a path that the user has to correct."""


def _describe(error: OSError) -> str:
    """Returns an error of the system with its path first."""
    if error.filename is None or error.strerror is None:
        return str(error)
    return f"`{error.filename}` cannot be used: {error.strerror}"


def main() -> None:
    """Runs a command; an error of the user is one line on stderr and exit code 2."""
    prepare_process()
    guard_output()
    try:
        with own_temporary_folder(), flushed_output():
            app(spread_shares(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(RESUMABLE)
    # A StoreError is a ConnectionError, and so an OSError: it has to be caught before those.
    except (ValueError, ConnectionError) as error:
        end(str(error), BAD_INPUT)
    except OSError as error:  # a full disk, most often; finished work is safe
        end(_describe(error), BAD_INPUT if error.errno in WRONG_PATH else RESUMABLE)
    except RuntimeError as error:
        if str(error).startswith("Symlink loop"):  # from `Path.resolve` before Python 3.13
            end(str(error), BAD_INPUT)
        if not type(error).__module__.startswith(("core.", "sweep.")):
            raise  # a bug of the program, shown with its traceback
        end(str(error), getattr(error, "exit_code", BAD_INPUT))
