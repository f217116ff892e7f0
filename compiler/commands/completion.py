"""`dskc completion`: the script by which a shell completes commands, options, specs and names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import ShellComplete

_LINES = {
    "bash": ("~/.bashrc", 'eval "$(dskc completion bash)"'),
    "zsh": ("~/.zshrc", 'eval "$(dskc completion zsh)"'),
    "fish": ("~/.config/fish/config.fish", "dskc completion fish | source"),
}


@click.command(name="completion", epilog="\b\n" + "\n".join(f"{file}: {line}" for file, line in _LINES.values()))
@click.argument("shell", type=click.Choice(list(_LINES)))
def completion_command(shell: str) -> None:
    """Print what a shell needs to complete dskc's commands; put the line below into its file."""
    from click.shell_completion import get_completion_class

    from ..cli import main

    made = get_completion_class(shell)
    assert made is not None, f"click knows {shell}"
    click.echo(_source(made(main, {}, "dskc", "_DSKC_COMPLETE")))


def _source(completion: ShellComplete) -> str:
    """The script. Bash's own `source` would start a bash to ask its version, which may not be there."""
    return completion.source_template % completion.source_vars()
