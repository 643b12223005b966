"""Shell completion: a script for bash, which zsh understands too, made from the tables of options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["completion_script"]

SCRIPT = """\
# bash: eval "$(mpunet --completion)"
# zsh:  autoload -U bashcompinit && bashcompinit && eval "$(mpunet --completion)"
_mpunet() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  if [ "$COMP_CWORD" -eq 1 ]; then
    words="{commands}"
  else
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o bashdefault -o default -F _mpunet mpunet
"""


def completion_script(options: Mapping[str, Sequence[str]]) -> str:
    """Return a script that completes commands, their options, and file names.

    Args:
        options: the options of each command.
    """
    cases = [f'      {command}) words="{" ".join(names)}" ;;' for command, names in options.items()]
    return SCRIPT.format(commands=" ".join(options), cases="\n".join(cases))
