"""The options of every command: names, defaults and help stay as they are."""

from typing import Any

import pytest
import typer

from jaxdave.cli.main import app

NAMES = {
    "generate": (
        "prompt model method draft_steps tokens_per_step threshold policy cache "
        "guidance no_stop logits_eos_inf stop_last confidence_eos_eot_inf "
        "no_early_exit record_steps stop draft "
        "draft_text lossy block_length "
        "max_new_tokens temperature top_k top_p confidence seed dtype quantize mesh "
        "numerics prompts "
        "template_arg samples batch_size json output resume ray workers distributed "
        "coordinator num_processes process_id connect_seconds no_compile_cache"
    ),
    "chat": (
        "model method draft_steps tokens_per_step threshold policy cache "
        "guidance no_stop logits_eos_inf stop_last confidence_eos_eot_inf draft "
        "no_early_exit confidence "
        "lossy block_length max_new_tokens temperature top_k top_p seed dtype "
        "quantize mesh numerics system history live compare template_arg "
        "no_compile_cache"
    ),
    "eval": (
        "model tasks methods preset as_published data_dir limit out "
        "allow_code_execution threshold draft_steps draft policy sweep trajectory "
        "block_length max_new_tokens no_early_exit batch_size seed dtype quantize mesh "
        "numerics rescore distributed coordinator num_processes process_id "
        "connect_seconds no_compile_cache"
    ),
    "calibrate": (
        "model prompts problems policy tokens_per_step cache block_length "
        "max_new_tokens dtype quantize mesh batch_size no_compile_cache"
    ),
    "demo": "model draft_steps problems speed html quantize mesh no_compile_cache",
    "train": (
        "out config recipe steps distributed coordinator num_processes process_id "
        "connect_seconds no_compile_cache"
    ),
    "policies": "",
}


def parameters(command: str) -> dict[str, Any]:
    """The parameters of a command, by the names that users see."""
    group = typer.main.get_command(app)
    found = {}
    for one in group.commands[command].params:  # pyright: ignore
        name = one.opts[0].removeprefix("--").replace("-", "_")
        if name != "help":
            found[name] = one
    return found


@pytest.mark.parametrize("command", NAMES)
def test_names(command):
    assert set(parameters(command)) == set(NAMES[command].split())
    # A flag has no twin that turns it off, unless it depends on the terminal.
    for name, one in parameters(command).items():
        assert bool(one.secondary_opts) == (name == "live")


@pytest.mark.parametrize(
    ("command", "name", "default", "help"),
    [
        ("generate", "method", "freedave", "freedave, static, threshold"),
        (
            "generate",
            "draft_steps",
            "auto",
            "States checked per call, or auto: chosen call by call.",
        ),
        (
            "generate",
            "threshold",
            None,
            "Commit all tokens this sure (0.9); with freedave as well.",
        ),
        (
            "generate",
            "max_new_tokens",
            None,
            "Room for the answer; the model's, or 256.",
        ),
        ("generate", "no_stop", False, "Never predict any end token."),
        ("generate", "top_p", None, "1 is off; the model's, or 1."),
        (
            "generate",
            "batch_size",
            None,
            "Answers decoded together; by default those to one prompt.",
        ),
        ("eval", "batch_size", 1, "Prompts decoded together."),
        ("eval", "threshold", None, "Of the threshold methods; the preset's."),
        ("eval", "draft_steps", None, "A number, or auto; the preset's."),
        ("eval", "max_new_tokens", None, "Room for the answer; the preset's."),
        ("eval", "block_length", None, "The model's."),
        (
            "eval",
            "numerics",
            None,
            "guarded, exact or fast; guarded, and exact for a mixture of experts.",
        ),
        ("calibrate", "batch_size", 8, "Prompts decoded together."),
        (
            "demo",
            "draft_steps",
            "auto",
            "States checked per call, or auto: chosen call by call.",
        ),
        (
            "demo",
            "quantize",
            None,
            "int8 or fp8: matrices in 8 bits, a model of its own.",
        ),
    ],
)
def test_defaults_and_help(command, name, default, help):
    option = parameters(command)[name]
    assert option.default == default
    assert option.help == help  # pyright: ignore
