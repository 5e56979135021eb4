"""The command line: verbs to calls. Each verb's module is imported when it is used, and what is heavy only there."""

from __future__ import annotations

import errno
import importlib
import sys

import click

from conform import __version__
from conform.report import output

_VERBS = {
    "run": "run cases against a stack, and report",
    "check": "validate cases without running them",
    "list": "list the trials that cases give",
    "show": "show a case: its requirements, its steps, its packets",
    "judge": "derive the verdicts and reports of a saved run again",
    "compare": "hold runs beside each other: stacks, or one stack before and after",
    "stacks": "the stacks that ship: what is here, what is missing; build one",
    "expect": "keep the list of a stack's known deviations",
    "doctor": "what this machine can and cannot do, and how to mend it",
    "agent-check": "check that a program speaks the agent protocol",
    "schema": "print the JSON Schema of the case format",
    "new": "write a commented case to start from",
}


class _Verbs(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        module = importlib.import_module(f"conform.cli.{cmd_name.replace('-', '_')}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl(list(_VERBS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _VERBS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], _VERBS, 1)
            hint = f", did you mean {near[0]!r}?" if near else f": there are {', '.join(_VERBS)}"
            raise click.UsageError(f"there is no verb {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "--version", prog_name="conform")
def group() -> None:
    """conform tests TCP stacks, packet by packet, against RFC 9293 and its companions.

    Exit codes: 0 everything as expected, 1 an unexpected result, 2 a bad case or bad usage, 3 conform's own failure,
    5 nothing selected, 129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM (what had finished is reported), 141
    nobody reads the output (of other verbs than run).
    """


def main() -> None:
    """The console script."""
    output.install()
    try:
        code = group.main(prog_name="conform", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except output.UnheardError as error:  # conform ... | head
        code = 141 if error.number == errno.EPIPE else 3
    except Exception:  # a fault of conform's own, which Python would call 1: an unexpected result
        import traceback

        traceback.print_exc()
        click.echo("conform itself failed; the lines above say where", err=True)
        code = 3
    sys.exit(code if isinstance(code, int) else 0)
