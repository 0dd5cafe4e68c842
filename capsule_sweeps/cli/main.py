"""Inspect and manage runs."""

import argparse
import logging
import sys
from contextlib import AbstractContextManager, nullcontext, suppress
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from capsule_sweeps import __version__, cli
from capsule_sweeps.display import Formatter, terminal, write_any_text


def make_parser(command: str | None = None) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of one command, or of all where there is no such command, and the parsers of these by name."""
    parser = argparse.ArgumentParser(prog="python -m capsule_sweeps", description=__doc__)
    parser.add_argument("--version", action="version", version=f"capsule_sweeps {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands = {}
    names = [module.name for module in iter_modules(cli.__path__) if module.name != "main"]
    chosen = [name for name in names if name.replace("_", "-") == command]
    for name in chosen or names:
        module = import_module(f"capsule_sweeps.cli.{name}")
        for function in ("add_arguments", "run"):
            if not hasattr(module, function):
                raise ValueError(f"{module.__file__} is no command: define the function {function} in it")
        about = (module.__doc__ or "").strip()
        listed: dict[str, Any] = {} if getattr(module, "HIDDEN", False) else {"help": about.partition("\n")[0]}
        typed = name.replace("_", "-")
        commands[typed] = own = subparsers.add_parser(typed, description=about, **listed)
        module.add_arguments(own)
        own.set_defaults(function=module.run)
    return parser, commands


def main() -> None:
    write_any_text()
    assert logging.lastResort is not None  # prints warnings, as no command sets up a log
    logging.lastResort.setFormatter(Formatter())
    words = sys.argv[1:]
    try:
        parser, commands = make_parser(words[0] if words else None)
    except ModuleNotFoundError as error:
        from capsule_sweeps.console import missing_package  # rich takes its time

        sys.exit(f"Error: {missing_package(error)}")
    except ValueError as error:
        sys.exit(f"Error: {terminal(error)}")
    with suppress(ModuleNotFoundError):  # completion is for those who have installed it
        import argcomplete

        argcomplete.autocomplete(parser)
    if not words:
        parser.print_help(sys.stderr)
        sys.exit(2)
    own = commands.get(words[0])
    # Options may be before, between and after overrides, which argparse does not allow behind a subparser
    if own and (escape := own.get_default("escape")):
        words = escape(words)
    arguments = own.parse_intermixed_args(words[1:]) if own else parser.parse_args(words)
    try:
        with _width(arguments):
            arguments.function(arguments)
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has closed the pipe
    except ModuleNotFoundError as error:
        from capsule_sweeps.console import missing_package  # rich takes its time

        sys.exit(f"Error: {missing_package(error)}")
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {terminal(error)}")
    except KeyboardInterrupt:
        sys.exit(130)


def _width(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    """With --wide no table is fitted to the terminal."""
    if not getattr(arguments, "wide", False):
        return nullcontext()
    from capsule_sweeps.console import wide

    return wide()
