"""Settings from a file: what is wrong is named with file, line and value."""

import re
from pathlib import Path

import pytest

from jaxdave.models.presets import preset
from jaxdave.training.config_file import convert
from jaxdave.training.objective.objectives import sdar
from jaxdave.training.train_config import TrainConfig, read_train_config

GOOD = """\
[model]
start = "sdar-1m"

[data]
files = ["train.jsonl"]
length = 128

[objective]
name = "sdar"

[optimiser]
learning_rate = 1e-3
warmup_steps = 5

[train]
steps = 20
accumulate = 2
ema_decay = 0.99
mesh = "data=2"

[lora]
rank = 4
targets = ["q", "v"]
"""


def read(tmp_path: Path, text: str) -> TrainConfig:
    path = tmp_path / "train.toml"
    path.write_text(text)
    return read_train_config(path)


def test_every_section_arrives(tmp_path):
    config = read(tmp_path, GOOD)
    assert config.model.start == "sdar-1m" and config.data.files == ("train.jsonl",)
    assert config.optimiser.learning_rate == 1e-3 and config.optimiser.warmup_steps == 5
    assert config.train.update.ema_decay == 0.99 and config.train.loop.steps == 20
    assert config.train.mesh_shape is not None and config.train.mesh_shape.data == 2
    assert config.lora is not None and config.lora.targets == ("q", "v")


def test_the_objective_has_the_blocks_and_the_shift_of_the_model(tmp_path):
    config = read(tmp_path, GOOD)
    assert config.objective(preset("sdar-1m")) == sdar(preset("sdar-1m").block_length)
    a2d = GOOD.replace('name = "sdar"', 'name = "a2d"')
    assert not read(tmp_path, a2d).objective(preset("sdar-1m")).shift
    own = GOOD.replace('name = "sdar"', 'name = "sdar"\nblock_length = 16')
    assert read(tmp_path, own).objective(preset("sdar-1m")).block_length == 16


# What is replaced, by what, the line of the error, and what it says.
BAD = {
    "unknown field": (
        "steps = 20",
        "stepz = 20",
        16,
        "stepz = 20 is no field of [train]; use steps perhaps",
    ),
    "unknown section": ("[lora]", "[loar]", 21, "[loar] is unknown; use lora perhaps"),
    "a text for a number": ("length = 128", 'length = "128"', 6, "a whole number"),
    "a number for a text": ('start = "sdar-1m"', "start = 3", 2, "a text in quotes"),
    "a bool for a number": ("steps = 20", "steps = true", 16, "a whole number"),
    "a text for a list": ('["train.jsonl"]', '"train.jsonl"', 5, "a list in brackets"),
    "a bad choice": ('["q", "v"]', '["q", "w"]', 23, "must be some of q, k, v"),
    "out of range": ("ema_decay = 0.99", "ema_decay = 1.5", 18, "ema_decay=1.5"),
    "bad mesh": ('mesh = "data=2"', 'mesh = "rows=2"', 19, "mesh='rows=2' must name"),
    "unknown objective": ('name = "sdar"', 'name = "sdra"', 9, "name='sdra' must be"),
    "objective field": (
        'name = "sdar"',
        'name = "sdar"\nblocks = 4',
        10,
        "blocks = 4 is no field of [objective]",
    ),
    "nan": ("learning_rate = 1e-3", "learning_rate = nan", 12, "learning_rate=nan"),
    "a preset for a model": (
        'start = "sdar-1m"',
        'start = "sdar-1m"\npreset = "sdar-1m"',
        2,
        "give a preset with 'scratch'",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_values_are_named_with_their_line(tmp_path, kind):
    old, new, line, message = BAD[kind]
    assert old in GOOD
    with pytest.raises(ValueError) as error:
        read(tmp_path, GOOD.replace(old, new))
    text = str(error.value)
    assert (
        text.startswith(f"{tmp_path / 'train.toml'}, line {line}: ") and message in text
    )
    assert "\n" not in text


@pytest.mark.parametrize("section, field", [("data", "files"), ("train", "steps")])
def test_what_is_needed_and_missing_is_named(tmp_path, section, field):
    text = re.sub(rf"^{field} = .*\n", "", GOOD, flags=re.M)
    with pytest.raises(ValueError, match=rf"\[{section}\] has no {field}"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"[model\n", "is no TOML"),
        (b"steps = 3\n", "steps = 3 is in no section"),
        (b"\xff\xfe\x00", "is no TOML"),
    ],
)
def test_files_that_are_no_settings(tmp_path, content, message):
    path = tmp_path / "train.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_train_config(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        read_train_config(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="cannot be read"):
        read_train_config(tmp_path)


def test_whole_numbers_are_numbers_and_bools_are_not():
    assert convert(1, float) == 1.0 and isinstance(convert(1, float), float)
    assert convert(3, int | None) == 3
    with pytest.raises(ValueError, match="a number"):
        convert(True, float)
    with pytest.raises(ValueError, match="a whole number"):
        convert(1.5, int | None)
