"""Groups of commands one of which needs no name: `train DATA RUN` beside `train diffusion DATA RUN`."""

from typing import Any

from typer.core import TyperGroup


def with_default(command: str) -> type[TyperGroup]:
    """The class of a group that runs this command where no other is named.

    Args:
        command: Its name, for who wants to name it.
    """

    class Group(TyperGroup):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0] not in self.commands and "--help" not in args[:1]:
                args = [command, *args]
            return super().parse_args(ctx, args)

    return Group
