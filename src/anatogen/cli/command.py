"""Commands derived from the library's calls: an option is written once, where it is called in Python.

Positional parameters of a call become arguments, keyword-only ones become options of the same names, and the
docstring's "Args:" their texts. Beside that, `overrides` become words KEY.SUB=VALUE after the arguments, none
of which can then be left out; and a parameter whose annotation is a text (`"GANConfig | None"`) is for Python
alone.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import click

from anatogen.core.files import writes_into

if TYPE_CHECKING:
    from anatogen.config.resolving import Section

_SHORT = {"num_samples": "-n", "num_cases": "-n"}
_OVERRIDES = "overrides"
# What commands call the folder or file that they write.
_WRITTEN = ("out", "run", "study")


class Group(click.Group):
    """A group of commands, listed in the order in which they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order in which they were added."""
        return list(self.commands)

    def get_short_help_str(self, limit: int = 45) -> str:
        """What the group is for, whole."""
        return self.help or ""

    def derive(
        self,
        name: str,
        call: Callable[..., Any],
        show: Callable[[Any, Mapping[str, Any]], None],
        configs: Callable[[], Sequence["type[Section]"]] = tuple,
    ) -> None:
        """Adds a command that makes a call of the library.

        Args:
            name: Name of the command.
            call: The call.
            show: Prints what the call returned; takes that, and the call's arguments by name.
            configs: Gives the configurations whose keys the call's overrides may have.
        """
        summary, texts = _documented(call)
        parameters = inspect.signature(call).parameters
        has_overrides = _OVERRIDES in parameters
        arguments: list[click.Parameter] = []
        options: list[click.Parameter] = []
        for parameter in parameters.values():
            if parameter.name == _OVERRIDES or isinstance(parameter.annotation, str):
                continue
            if parameter.kind is parameter.KEYWORD_ONLY:
                options.append(_option(parameter, texts[parameter.name]))
            else:
                arguments.append(_argument(parameter, texts[parameter.name], required=has_overrides))
        if has_overrides:
            text = texts[_OVERRIDES]
            arguments.append(click.Argument([_OVERRIDES], nargs=-1, metavar="[KEY.SUB=VALUE]...", help=text))

        def run(**given: Any) -> None:
            if has_overrides:
                from anatogen.config.resolving import parse_overrides

                given[_OVERRIDES] = parse_overrides(given[_OVERRIDES], *configs())
            # What a command writes lies below the folder that it is told, whichever of its parts writes.
            folder = next((given[name] for name in _WRITTEN if given.get(name) is not None), None)
            with nullcontext() if folder is None else writes_into(folder):
                show(call(**given), given)

        self.add_command(
            click.Command(
                name,
                params=[*arguments, *options],
                callback=run,
                help=summary,
                short_help=summary.partition("\n\n")[0].replace("\n", " "),
                no_args_is_help=bool(arguments),
            )
        )


class _Listed(click.ParamType):
    """Texts with commas between."""

    name = "A,B,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """The texts."""
        return tuple(value.split(",")) if isinstance(value, str) else value


def _argument(parameter: inspect.Parameter, text: str, *, required: bool) -> click.Argument:
    is_several, kind = _kind(parameter.annotation)
    return click.Argument(
        [parameter.name],
        type=kind,
        nargs=-1 if is_several else 1,
        required=required or parameter.default is parameter.empty,
        help=text,
    )


def _option(parameter: inspect.Parameter, text: str) -> click.Option:
    name, default = parameter.name, parameter.default
    flag = f"--{name.replace('_', '-')}"
    if default is True:
        return click.Option(
            [f"--no-{flag[2:]}", name],
            flag_value=False,
            default=True,
            help=f"Don't {text[0].lower()}{text[1:]}",
        )
    if default is False:
        return click.Option([flag], is_flag=True, help=text)
    is_several, kind = _kind(parameter.annotation)
    names = [_SHORT[name], flag] if name in _SHORT else [flag]
    if is_several and isinstance(kind, click.Path):
        return click.Option(names, type=kind, multiple=True, help=f"{text} May be given several times.")
    if is_several:
        default = None if default is None else ",".join(default)
        return click.Option(
            names, type=_Listed(), default=default, show_default=default is not None, help=text
        )
    return click.Option(names, type=kind, default=default, show_default=default is not None, help=text)


def _kind(annotation: Any) -> tuple[bool, Any]:
    """Whether a parameter takes several values, and what a value is."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is Sequence:
            return True, _kind(get_args(part)[0])[1]
    found = [annotation] if annotation in (int, float, str) else list(get_args(annotation))
    if Path in found:
        return False, click.Path(path_type=Path)
    for kind in (int, float):
        if kind in found:
            return False, kind
    # What may be chosen is checked where it is used, in words of its own.
    return False, str


def _documented(call: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """A docstring up to its arguments, and the text of each argument."""
    about, _, rest = inspect.cleandoc(call.__doc__ or "").partition("\n\nArgs:\n")
    described = rest.partition("\n\n")[0]
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", described, re.MULTILINE)
    return about, {name: " ".join(text.split()) for name, text in found}
