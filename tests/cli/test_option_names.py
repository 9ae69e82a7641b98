"""The options of every command: names, defaults and help stay as they are."""

from typing import Any

import pytest
import typer

from jaxdave.cli.main import app

NAMES = {
    "generate": (
        "prompt model method draft_steps tokens_per_step threshold policy cache "
        "guidance no_stop logits_eos_inf stop_last confidence_eos_eot_inf draft "
        "draft_text lossy block_length "
        "max_new_tokens temperature top_k top_p seed dtype quantize numerics prompts "
        "template_arg batch_size json no_compile_cache"
    ),
    "eval": (
        "model tasks methods preset as_published data_dir limit out "
        "allow_code_execution threshold draft_steps draft policy sweep trajectory "
        "block_length max_new_tokens batch_size seed dtype quantize numerics "
        "no_compile_cache"
    ),
    "calibrate": (
        "model prompts problems cache block_length max_new_tokens dtype quantize "
        "batch_size no_compile_cache"
    ),
    "demo": "model draft_steps problems quantize no_compile_cache",
    "train": "out recipe steps no_compile_cache",
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
    # A flag has no twin that turns it off.
    assert not any(one.secondary_opts for one in parameters(command).values())


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
        ("generate", "top_p", 1.0, "1 is off."),
        ("generate", "batch_size", 1, "Prompts decoded together."),
        ("eval", "threshold", None, "Of the threshold methods; the preset's."),
        ("eval", "draft_steps", None, "A number, or auto; the preset's."),
        ("eval", "max_new_tokens", None, "Room for the answer; the preset's."),
        ("eval", "block_length", None, "The model's."),
        ("eval", "numerics", "guarded", "guarded, exact or fast."),
        ("calibrate", "batch_size", 8, "Prompts decoded together."),
        ("demo", "draft_steps", 8, "States checked per call."),
        ("demo", "quantize", None, "int8: matrices as int8, a model of its own."),
    ],
)
def test_defaults_and_help(command, name, default, help):
    option = parameters(command)[name]
    assert option.default == default
    assert option.help == help  # pyright: ignore
