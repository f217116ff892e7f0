"""The `dskc` command. A subcommand's file is imported when it is called, so that `check` stays fast."""

from __future__ import annotations

from importlib import import_module
from typing import NoReturn

import click

from . import __version__

COMMANDS = {  # in the order that help lists them -> the file of commands/ that has the function of that name
    "check": "check",
    "fmt": "fmt",
    "compile": "compile",
    "shapes": "shapes",
    "ir": "ir",
    "train": "run",
    "generate": "run",
    "import": "weights",
}


class Commands(click.Group):
    """The subcommands, each imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in COMMANDS:
            self._unknown(ctx, cmd_name)
        module = import_module(f".commands.{COMMANDS[cmd_name]}", __package__)
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def _unknown(self, ctx: click.Context, name: str) -> NoReturn:
        from dskc.dsl.suggest import did_you_mean

        near = did_you_mean(name, COMMANDS)
        ctx.fail(f"there is no command `{name}`: " + (f"did you mean `{near}`?" if near else ", ".join(COMMANDS)))


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dskc")
def main() -> None:
    """Compile language-model architectures: check a spec, generate its code, train it, sample from it."""


if __name__ == "__main__":
    main()
