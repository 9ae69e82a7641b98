"""Codecs: the demo's tokenizer, a real SDAR folder, and folders with faults."""

import json
import shutil
import unicodedata
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
from helpers import checkpoint_folders

from jaxdave.io import tokenizer_backend
from jaxdave.io.tokenizer import load_codec
from jaxdave.models.presets import preset

SDAR = Path(__file__).parents[3] / "shared" / "data" / "sdar-4b-chat"
TURNS = [
    {"role": "user", "content": "Tom has 3 cards."},
    {"role": "assistant", "content": "Good."},
    {"role": "user", "content": "How many?"},
]
RENDERED = (
    "<|im_start|>user\nTom has 3 cards.<|im_end|>\n"
    "<|im_start|>assistant\nGood.<|im_end|>\n"
    "<|im_start|>user\nHow many?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tokenizer files of the demo, and nothing else."""
    for path in checkpoint_folders.TOKENIZER.iterdir():
        if path.name.startswith(("tokenizer", "special")):
            shutil.copy(path, tmp_path)
    return tmp_path


def change(folder: Path, **changes) -> None:
    """Sets keys of the tokenizer's JSON files, or with ... drops them."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        value = {**json.loads((folder / name).read_text()), **changes}
        remaining = {key: part for key, part in value.items() if part is not ...}
        (folder / name).write_text(json.dumps(remaining))


def load_error(folder: Path) -> str:
    """The one line of an error that loading the codec must raise."""
    with pytest.raises(ValueError) as caught:
        load_codec(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_demo_ids(folder):
    codec = load_codec(folder)
    assert (codec.mask_id, codec.pad_id, codec.size) == (775, 772, 776)
    assert codec.stop_ids == (772,)


def test_a_conversation_as_text_has_the_ids_of_the_conversation(folder):
    codec = load_codec(folder)
    assert codec.render(TURNS) == RENDERED
    assert codec.encode_text(RENDERED) == codec.encode_messages(TURNS)
    assert codec.encode_text("") == []
    with pytest.raises(ValueError, match="mask token"):
        codec.encode_text("a <|MASK|>")
    with pytest.raises(ValueError, match="messages are empty"):
        codec.render([])


def test_demo_prompt_and_text(folder):
    codec = load_codec(folder)
    ids = codec.encode_prompt("Tom has 3 cards.")
    assert ids[0] == 773 and 774 in ids
    assert codec.decode(ids) == "user\nTom has 3 cards.\nassistant\n"
    assert codec.decode([]) == ""


@pytest.mark.parametrize("text", ["é ∑ 你好 🙂", "a  b\n\n c\t", "99 100 <b>[x]</b>"])
def test_any_text_survives(folder, text):
    codec = load_codec(folder)
    assert codec.decode(codec.encode_prompt(text)) == f"user\n{text}\nassistant\n"


def test_generation_config_says_where_to_stop(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": [774, 772]}')
    assert load_codec(folder).stop_ids == (774, 772)
    (folder / "generation_config.json").write_text('{"eos_token_id": 774}')
    assert load_codec(folder).stop_ids == (774,)
    (folder / "generation_config.json").write_text('{"eos_token_id": "end"}')
    assert "eos_token_id='end'" in load_error(folder)


def test_both_libraries_agree(folder, monkeypatch):
    light = load_codec(folder)
    monkeypatch.setattr(tokenizer_backend, "_PLAIN_CLASSES", ())
    heavy = load_codec(folder)
    assert (light.mask_id, light.stop_ids, light.pad_id, light.size) == (
        (heavy.mask_id, heavy.stop_ids, heavy.pad_id, heavy.size)
    )
    ids = light.encode_messages(TURNS)
    assert ids == heavy.encode_messages(TURNS)
    assert light.decode(ids) == heavy.decode(ids)


def test_template_file_wins(folder):
    (folder / "chat_template.jinja").write_text("Q: {{ messages[0].content }}")
    assert load_codec(folder).decode(load_codec(folder).encode_prompt("x")) == "Q: x"


def test_mask_token_is_asked_for(folder):
    change(folder, mask_token=...)
    assert "mask_token=None" in load_error(folder)
    change(folder, mask_token="<|none|>")
    assert "mask_token='<|none|>'" in load_error(folder)
    assert load_codec(folder, mask_id=775).mask_id == 775


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_and_broken_files(folder, name):
    content = (folder / name).read_text()
    (folder / name).write_text(content[: len(content) // 2])
    assert "tokenizer" in load_error(folder)
    (folder / name).unlink()
    assert "tokenizer" in load_error(folder)


def test_template_is_asked_for(folder):
    change(folder, chat_template=...)
    assert "no chat template" in load_error(folder)
    change(folder, chat_template="{% if %}")
    assert "unreadable tokenizer" in load_error(folder)


def test_template_may_refuse(folder):
    change(folder, chat_template="{{ raise_exception('no\nsystem turn') }}")
    with pytest.raises(ValueError, match="no system turn"):
        load_codec(folder).encode_prompt("x")


@pytest.mark.parametrize("text", ["", " \n"])
def test_empty_prompt(folder, text):
    with pytest.raises(ValueError, match="is empty"):
        load_codec(folder).encode_prompt(text)


def test_prompt_with_the_mask_token(folder):
    with pytest.raises(ValueError, match="mask token"):
        load_codec(folder).encode_prompt("fill <|MASK|> in")


def test_literal_markup(folder):
    """The rendered text of a conversation, written out, has the same ids."""
    codec = load_codec(folder)
    assert codec.encode_text(RENDERED) == codec.encode_messages(TURNS)
    assert codec.encode_text("") == []
    with pytest.raises(ValueError, match="mask token"):
        codec.encode_text("fill <|MASK|> in")


@pytest.mark.parametrize(
    "messages",
    [[], "hi", None, [{"role": "user"}], [{"role": "user", "content": 3}], ["hi"]],
)
def test_bad_messages(folder, messages):
    with pytest.raises(ValueError, match="messages"):
        load_codec(folder).encode_messages(messages)


@pytest.fixture(scope="module")
def sdar():
    """The codec of the real folder."""
    if not SDAR.exists():
        pytest.skip(f"needs the SDAR-4B-Chat folder in {SDAR.parent}")
    return load_codec(SDAR)


def test_real_sdar_ids(sdar):
    config = preset("sdar-4b")
    assert sdar.mask_id == config.mask_id == 151669
    assert sdar.size == config.vocab_size == 151670
    assert (sdar.stop_ids, sdar.pad_id) == (config.stop_ids, config.pad_id)


def test_real_sdar_template(sdar):
    """The template adds no system turn of its own, and opens the answer."""
    assert sdar.render(TURNS) == RENDERED
    ids = sdar.encode_messages(TURNS)
    assert ids.count(151644) == 4 and ids.count(151645) == 3
    assert sdar.decode(ids).startswith("user\nTom has 3 cards.\n")
    system = {"role": "system", "content": "Be brief."}
    system_turn = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert sdar.render([system, *TURNS]) == system_turn + RENDERED


@hypothesis.given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
@hypothesis.settings(max_examples=200)
@hypothesis.example("é ∑ 你好 🙂 👩‍👩‍👧 \u200b \ufeff \x00 \U0010ffff \ufffd")
@hypothesis.example("e\u0301 \u1100\u1161 \r\n\t  don't ,  .  ")
def test_real_sdar_text_survives(sdar, text):
    """Any Unicode comes back, composed: the tokenizer normalises to NFC."""
    ids = sdar._encode(text)
    assert sdar.decode(ids) == unicodedata.normalize("NFC", text)
    assert all(0 <= i < 151643 for i in ids)


@pytest.mark.skipif(not SDAR.exists(), reason="needs the SDAR-4B-Chat folder")
def test_real_sdar_folder_opens_in_silence(capfd):
    """Neither a question about remote code nor advice about PyTorch."""
    load_codec(SDAR)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "content", ["", "  ", None, [], [{"type": "text", "text": " "}]]
)
def test_messages_without_a_word_are_refused(content):
    codec = load_codec(checkpoint_folders.TOKENIZER)
    with pytest.raises(ValueError, match="messages are empty"):
        codec.encode_messages([{"role": "user", "content": content}])
