"""`vesselseg completion`."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh"]) -> None:
    """Print the completion script of a shell: commands, options and their choices.

    bash: echo 'source <(vesselseg completion bash)' >> ~/.bashrc
    zsh: echo 'source <(vesselseg completion zsh)' >> ~/.zshrc, after compinit

    Args:
        shell: the shell to complete in
    """
    from vesselseg.cli.main import create_app

    print(create_app().generate_completion(shell=shell))
