"""The `dskc` command. A subcommand's file is imported when it is called, so that `check` stays fast."""

from __future__ import annotations

from importlib import import_module

import click

from . import __version__

COMMANDS = {  # in the order that help lists them -> the file of commands/ that has the function of that name
    "new": "new",
    "check": "check",
    "explain": "explain",
    "fmt": "fmt",
    "compile": "compile",
    "lock": "lock",
    "breaking": "breaking",
    "shapes": "shapes",
    "ir": "ir",
    "eject": "eject",
    "train": "run",
    "merge": "run",
    "generate": "run",
    "eval": "run",
    "runs": "runs",
    "diff": "diff",
    "import": "weights",
    "tune": "tune",
    "bench": "bench",
    "completion": "completion",
}


class Commands(click.Group):
    """The subcommands, each imported when asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".commands.{COMMANDS[cmd_name]}", __package__)
        command = getattr(module, f"{cmd_name}_command")
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:  # where a shell completes
            from dskc.dsl.suggest import did_you_mean

            near = did_you_mean(name, COMMANDS)
            ctx.fail(f"there is no command `{name}`: " + (f"did you mean `{near}`?" if near else ", ".join(COMMANDS)))
        return super().resolve_command(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="dskc")
def main() -> None:
    """Compile language-model architectures: check a spec, generate its code, train it, sample from it."""


if __name__ == "__main__":
    main()
