"""The command line; heavy imports wait until a command needs them."""

import io
import sys

import click

from anatogen.cli import downstream, generators, scans, study
from anatogen.cli.command import Group
from anatogen.core.errors import UserError
from anatogen.core.version import __version__

_OUT_OF_MEMORY = (
    "the GPU's memory is full: lower flow_training.batch_size (of preset paper "
    "autoencoder_training.batch_size or diffusion_training.batch_size, of a GAN gan_training.batch_size) "
    "when training, --batch-size when sampling"
)


app = Group(
    help="From a folder of 3D medical scans to a generator of new ones.",
    params=[
        click.Option(["--debug"], is_flag=True, expose_value=False, help="Show the traceback of an error.")
    ],
)
click.version_option(__version__, message="%(prog)s %(version)s")(app)
scans.add_commands(app)
generators.add_commands(app)


app.add_command(downstream.group)
app.add_command(study.group)


def main() -> None:
    """Entry point of the `anatogen` command: errors that a user can mend become one line."""
    # File names that are not UTF-8, and what an old terminal can't show, are printed with backslashes.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments, prog_name="anatogen")
    except (UserError, RuntimeError) as error:
        # By name: torch, whose error it is, need not be loaded.
        out_of_memory = type(error).__name__ == "OutOfMemoryError"
        if len(arguments) < len(sys.argv) - 1 or not (out_of_memory or isinstance(error, UserError)):
            raise
        text = _OUT_OF_MEMORY if out_of_memory else error
        print(f"anatogen: {text}", file=sys.stderr)
        sys.exit(1)
