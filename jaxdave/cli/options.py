"""Options of commands, made from configurations; where compiled programs are kept."""

import dataclasses
import functools
import inspect
import os
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from jaxdave.distributed.process_config import ProcessConfig
from jaxdave.distributed.ray_config import RayConfig
from jaxdave.engine.config_record import Option
from jaxdave.engine.config_record import options as options_of
from jaxdave.runtime.files import NO_CACHE

CONTEXT = {"help_option_names": ["-h", "--help"]}
"""Settings of every command."""
BatchSize = Annotated[int, typer.Option(help="Prompts decoded together.")]
NoCache = Annotated[
    bool, typer.Option("--no-compile-cache", help="Do not keep compiled programs.")
]
TemplateArgs = Annotated[
    list[str] | None,
    typer.Option(help="NAME=VALUE for the chat template; may be repeated."),
]
Distributed = Annotated[
    bool,
    typer.Option(
        "--distributed",
        help="Be one of several processes that run this command; the first one writes.",
    ),
]
Coordinator = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of the first process; as the environment tells."),
]
NumProcesses = Annotated[
    int | None, typer.Option(help="How many; as the environment tells.")
]
ProcessId = Annotated[
    int | None, typer.Option(help="Of this one, from 0; as the environment tells.")
]
ConnectSeconds = Annotated[
    int, typer.Option(help="How long processes wait for each other at the start.")
]


@dataclasses.dataclass(frozen=True)
class Fields:
    """Marks a command's parameter that users give field by field, one option each.

    Attributes:
        record: The configuration whose fields they are.
        names: Only these fields; None: all of them.
        leave_out: All but these fields.
        unset: Help texts of fields that have no default here: the parameter is a
            mapping then, and lacks what was left out.

    Example:
        config: Annotated[DecodeConfig, Fields(DecodeConfig)]
    """

    record: type
    names: tuple[str, ...] | None = None
    leave_out: tuple[str, ...] = ()
    unset: Mapping[str, str] | None = None

    def options(self) -> list[Option]:
        """The options that users give."""
        fields = {option.name: option for option in options_of(self.record)}
        names = self.names or fields
        return [fields[name] for name in names if name not in self.leave_out]

    def build(self, values: Mapping[str, Any]) -> Any:
        """The command's argument from the values of its options.

        Args:
            values: Values by option name, as typer passes them.

        Returns:
            A record; under `unset` a dict without the options that were left out.
        """
        if self.unset is None:
            return self.record.from_dict(values)  # pyright: ignore
        return {
            name: value
            for name, value in values.items()
            if value is not None or name not in self.unset
        }

    def parameter(self, option: Option) -> inspect.Parameter:
        """One option as a parameter that typer understands.

        Args:
            option: A field of the record.

        Returns:
            A keyword-only parameter, annotated with typer's option.
        """
        help, kind, default = option.help, option.type, option.default
        if self.unset is not None and option.name in self.unset:
            help, default = self.unset[option.name], None
            kind = kind | None
        # A word that is parsed later: typer itself must not try to convert it.
        if option.parse is not None:
            kind = str if default is not None else str | None
        # A flag that is off by default needs no twin that turns it off.
        flags = (f"--{option.name.replace('_', '-')}",) if kind is bool else ()
        return inspect.Parameter(
            option.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, typer.Option(*flags, help=help)],
        )


def expand_fields(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameters marked with `Fields` are options of their own.

    Args:
        command: A function of keyword-only parameters.

    Returns:
        The function as typer should see it.
    """
    signature = inspect.signature(command)
    marked: dict[str, Fields] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        marks = typing.get_args(parameter.annotation)[1:]
        fields = next((mark for mark in marks if isinstance(mark, Fields)), None)
        if fields is None:
            parameters.append(parameter)
            continue
        marked[name] = fields
        parameters += map(fields.parameter, fields.options())

    @functools.wraps(command)
    def run(**values: Any) -> None:
        for name, fields in marked.items():
            own = {option.name: values.pop(option.name) for option in fields.options()}
            values[name] = fields.build(own)
        command(**values)

    # typer reads the signature, and annotations for what the signature leaves open.
    run.__signature__ = signature.replace(parameters=parameters)  # pyright: ignore
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def check_files(option: str, prompts: Path | None, output: Path | None) -> None:
    """Refuse an option that needs both a file of prompts and one for answers.

    Args:
        option: Its name.
        prompts: `--prompts`.
        output: `--output`.

    Raises:
        ValueError: One of them is missing.
    """
    if prompts is None or output is None:
        missing = "--prompts FILE" if prompts is None else "--output FILE"
        raise ValueError(f"{option} decodes a file into another; add {missing}")


def process_config(
    is_asked: bool,
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    connect_seconds: int,
) -> ProcessConfig | None:
    """The processes that options name.

    Args:
        is_asked: `--distributed`.
        coordinator: `--coordinator`.
        num_processes: `--num-processes`.
        process_id: `--process-id`.
        connect_seconds: `--connect-seconds`.

    Returns:
        The processes; None for one that works alone.

    Raises:
        ValueError: `--distributed` is missing, or the values are bad.
    """
    given = {
        "--coordinator": coordinator,
        "--num-processes": num_processes,
        "--process-id": process_id,
    }
    names = [name for name, value in given.items() if value is not None]
    if not is_asked:
        if names:
            raise ValueError(f"{names[0]} is for several processes; add --distributed")
        return None
    return ProcessConfig(
        coordinator=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        connect_seconds=connect_seconds,
    )


def ray_config(
    address: str | None, workers: int | None, prompts: Path | None, output: Path | None
) -> RayConfig | None:
    """The Ray cluster that options name.

    Args:
        address: `--ray`.
        workers: `--workers`.
        prompts: `--prompts`.
        output: `--output`.

    Returns:
        The cluster; None where no option names one.

    Raises:
        ValueError: One of the others is missing, or the values are bad.
    """
    if address is None:
        if workers is not None:
            raise ValueError(f"--workers {workers} is for a cluster; name it by --ray")
        return None
    check_files("--ray", prompts, output)
    return RayConfig(address=address, workers=1 if workers is None else workers)


def disable_cache(is_off: bool) -> None:
    """Keep neither programs nor measurements on disk where that is turned off.

    Args:
        is_off: The option `--no-compile-cache`.
    """
    if is_off:
        os.environ[NO_CACHE] = "1"


def enable_jax_cache(is_off: bool) -> None:
    """Let JAX keep programs that `jaxdave.runtime` does not, unless that is turned off.

    Args:
        is_off: The option `--no-compile-cache`.
    """
    disable_cache(is_off)
    if os.environ.get(NO_CACHE):
        return
    import jax

    from jaxdave.runtime.xla_cache import open_xla_cache

    # A folder that the user has named is his own affair.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = open_xla_cache()
        if folder is None:
            return
        jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
