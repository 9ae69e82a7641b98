"""Settings of every protocol, and the tasks and families that it refuses."""

import pytest

from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import make_decoder
from jaxdave.eval.benchmarks.registry import TASKS, open_task
from jaxdave.eval.protocols.registry import NAMES, PRESETS, open_preset
from jaxdave.grading.types import Item
from jaxdave.models.presets import preset as model_preset

SUM = Item("gsm8k/0", "What is 1+1?", "2", {"index": 0})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("model", ["sdar-4b", "llada-8b", "dream-7b"])
def test_every_setting_makes_a_decoder(name: str, model: str) -> None:
    config = model_preset(model)
    for task in TASKS.values():
        given = PRESETS[name].settings(config.family, task)
        settings = DecodeConfig(method="threshold", **given)
        made = make_decoder(config, settings)
        assert made.max_new_tokens == given["max_new_tokens"]


def test_settings_of_the_paper() -> None:
    settings = {
        family: PRESETS["paper-2025"].settings(family, TASKS["gsm8k"])
        for family in ("sdar", "dream")
    }
    assert settings["sdar"] == {
        "max_new_tokens": 2048, "block_length": 4, "threshold": 0.9, "draft_steps": 8,
        "temperature": 0.0,
    }  # fmt: skip
    assert settings["dream"] == {
        "max_new_tokens": 1600, "block_length": 32, "threshold": 0.95, "draft_steps": 4,
        "temperature": 0.0,
    }  # fmt: skip
    published = open_preset("paper-2025", as_published=True)
    assert published.settings("sdar", TASKS["gsm8k"]) == (
        {**settings["sdar"], "temperature": 1.0, "top_k": 1}
    )
    long = PRESETS["paper-2025-thinking"].settings("sdar", TASKS["gsm8k"])
    assert long["max_new_tokens"] == 30000


REFUSED = {
    ("llada", "sdar", "gsm8k"): "has no text to ask gsm8k with",
    ("dream", "dream", "aime2024"): "has no text to ask aime2024 with",
    ("paper-2025", "fast-dllm-v2", "gsm8k"): "has no prompt for models of the family",
    ("paper-2025-thinking", "dream", "gsm8k"): "has no prompt for models",
}


@pytest.mark.parametrize(("name", "family", "task"), REFUSED)
def test_what_no_protocol_says_is_refused(name: str, family: str, task: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name, family, task]) as caught:
        PRESETS[name].prompt(family, TASKS[task], SUM)
    assert "\n" not in str(caught.value)


def test_unknown_presets_and_forms_are_refused() -> None:
    with pytest.raises(ValueError, match="preset 'mine' is unknown; use one of paper"):
        open_preset("mine")
    for call in (
        lambda: open_preset("sdar", as_published=True),
        lambda: open_task("gsm8k", preset="sdar", as_published=True),
    ):
        with pytest.raises(ValueError, match="'sdar' has no published form"):
            call()
