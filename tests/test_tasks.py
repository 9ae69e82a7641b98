"""The generated tasks, their frozen test sets, their graders and the tokenizer."""

import dataclasses
import hashlib
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jaxdave.tasks import frozen, lists, words
from jaxdave.tasks.grade import CASES, baselines, extract_number, grade, is_allowed
from jaxdave.tasks.mixture import training_problem
from jaxdave.tasks.problem import Problem, from_line, split_of, to_line
from jaxdave.tasks.sandbox import run_program
from jaxdave.train.tokenizer import SPECIALS, build_tokenizer

STREAM = 20000
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
WORD_SETS = ("words_test", "words_long", "words_names")


@pytest.fixture(scope="module")
def stream() -> list[Problem]:
    return [training_problem(0, index) for index in range(STREAM)]


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Problem]]:
    return {name: frozen.load(name) for name in frozen.SETS}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer(folder, problems=4000)
    return folder


@pytest.fixture(scope="module")
def tokenizer(built: Path) -> Tokenizer:
    return Tokenizer.from_file(str(built / "tokenizer.json"))


def numbers_checked(problem: Problem) -> list[int]:
    """Every number of an answer, after following its equations on their own terms."""
    *equations, last = problem.answer.split("\n")
    value = int(problem.key.split()[1])
    seen = [value]
    for line, step in zip(equations, problem.key.split()[2:], strict=True):
        found = EQUATION.fullmatch(line)
        assert found
        left, sign, right, result = (
            int(found[1]),
            found[2],
            int(found[3]),
            int(found[4]),
        )
        assert left == value and step.endswith(str(right))
        if sign == "/":
            assert result * right == left
        else:
            exact = {"+": left + right, "-": left - right, "*": left * right}
            assert exact[sign] == result
        value = result
        seen += [right, result]
    assert last == f"#### {value}"
    return seen


# The split


def test_training_shares_no_key_with_any_frozen_set(
    stream: list[Problem], sets: dict[str, list[Problem]]
) -> None:
    trained = {p.key for p in stream}
    for problems in sets.values():
        assert not trained & {p.key for p in problems}


def test_frozen_sets_hold_unique_prompts_of_test_keys(
    sets: dict[str, list[Problem]],
) -> None:
    for name, (count, _) in frozen.SETS.items():
        assert len({p.prompt for p in sets[name]}) == count
        assert {split_of(p.key) for p in sets[name]} == {"test"}


def test_held_out_words_are_only_in_their_set(
    stream: list[Problem], sets: dict[str, list[Problem]]
) -> None:
    held = {name for name, _ in words.HELD_NAMES} | set(words.HELD_ITEMS)
    held |= {item.removesuffix("s") for item in words.HELD_ITEMS}
    shown = set(re.findall(r"\w+", " ".join(p.prompt for p in stream)))
    assert not held & shown
    assert all(held & set(re.findall(r"\w+", p.prompt)) for p in sets["words_names"])


def test_five_operations_are_never_trained(
    stream: list[Problem], sets: dict[str, list[Problem]]
) -> None:
    assert {p.data["ops"] for p in sets["words_long"]} == {5}
    assert {p.data["ops"] for p in stream if p.family == "words"} == {1, 2, 3, 4}


@given(st.text())
def test_about_three_percent_of_keys_are_tested(prefix: str) -> None:
    tested = sum(split_of(f"{prefix}{i}") == "test" for i in range(1000))
    assert 5 <= tested <= 70


def test_the_key_does_not_depend_on_the_wording() -> None:
    one = words.sample(np.random.default_rng(3), 3)
    other = words.sample(
        np.random.default_rng(3), 3, words.HELD_NAMES, words.HELD_ITEMS
    )
    assert (one.key, one.answer) == (other.key, other.answer)
    assert one.prompt != other.prompt


# The problems


def test_training_problem_is_pure() -> None:
    later = [training_problem(7, i) for i in reversed(range(50))]
    assert [training_problem(7, i) for i in range(50)] == later[::-1]
    assert training_problem(8, 0) != training_problem(7, 0)


def test_the_stream_has_the_stated_mix(stream: list[Problem]) -> None:
    told = [p.data["ops"] for p in stream if p.family == "words"]
    assert len(told) / STREAM == pytest.approx(0.8, abs=0.02)
    for ops, share in zip(words.OPS, words.OPS_SHARES, strict=True):
        assert told.count(ops) / len(told) == pytest.approx(share, abs=0.02)


def test_word_answers_are_right_and_in_range(
    stream: list[Problem], sets: dict[str, list[Problem]]
) -> None:
    frozen_words = [p for name in WORD_SETS for p in sets[name]]
    for problem in [*stream, *frozen_words]:
        if problem.family == "words":
            assert all(1 <= number <= 60 for number in numbers_checked(problem))
            shown = {int(n) for n in re.findall(r"\d+", problem.prompt)}
            assert all(1 <= number <= 60 for number in shown)


def test_list_answers_do_what_their_key_says(stream: list[Problem]) -> None:
    codes = {p.key: p.answer for p in stream if p.family == "lists"}
    assert len(codes) > 1000
    for key, code in codes.items():
        space: dict = {}
        exec(code, space)
        for xs in CASES:
            wanted = lists.parse_key(key).reference(xs)
            assert repr(space["f"](list(xs))) == repr(wanted)


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("family", [words, lists])
def test_draw_keeps_to_its_split(family, split) -> None:
    rng = np.random.default_rng(0)
    assert {split_of(family.draw(rng, split).key) for _ in range(30)} == {split}


@pytest.mark.parametrize("ops", [0, 6])
def test_other_numbers_of_operations_are_refused(ops: int) -> None:
    with pytest.raises(ValueError, match=rf"ops={ops} must be in 1\.\.5"):
        words.sample(np.random.default_rng(0), ops)


def test_lines_round_trip(stream: list[Problem]) -> None:
    for problem in stream[:200]:
        line = to_line(problem)
        assert "\n" not in line
        assert from_line(line) == problem


# The frozen files


@pytest.mark.parametrize("name", frozen.SETS)
def test_frozen_files_are_pinned_and_rebuild_identically(name: str) -> None:
    content = (frozen.FOLDER / f"{name}.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() == frozen.SHA256[name]
    assert frozen.build(name) == content
    assert len(content) < 200_000


def test_an_unknown_set_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="'nope' is unknown; choose one of") as caught:
        frozen.load("nope")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"{}\n", None])
def test_a_changed_or_missing_file_is_refused(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "FOLDER", tmp_path)
    if content is not None:
        (tmp_path / "words_test.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match="words_test has sha256 .* to restore it"):
        frozen.load("words_test")


# The graders


@pytest.mark.parametrize("name", WORD_SETS)
def test_word_references_pass_and_other_numbers_fail(
    name: str, sets: dict[str, list[Problem]]
) -> None:
    for problem in sets[name]:
        right = extract_number(problem.answer)
        assert right is not None
        assert grade(problem, problem.answer)
        assert not grade(problem, f"#### {right + 1}")
        assert not grade(problem, problem.answer.replace("####", "="))


def test_list_references_pass(sets: dict[str, list[Problem]]) -> None:
    assert all(grade(p, p.answer) for p in sets["lists_test"])


def test_perturbed_list_answers_fail(sets: dict[str, list[Problem]]) -> None:
    for problem in sets["lists_test"][:40]:
        s = lists.parse_key(problem.key)
        other = "min" if s.aggregate == "max" else "max"
        wrong = dataclasses.replace(s, aggregate=other)
        code = (
            f"def f(xs):\n    return {other}(xs, default={wrong.reference([]) or 11})"
        )
        assert not grade(problem, code)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 14", 14),
        ("#### 3\n#### 14", 14),
        ("####14", 14),
        ("#### -4.", -4),
        ("#### 14<|im_end|>", 14),
        ("14", None),
        ("####", None),
        ("#### 14.5", None),
        ("#### 14+3", None),
        ("#### 1,400", None),
        ("#### 3 ####", None),
        ("#### " + "9" * 5000, None),
        ("#### ٣", None),
    ],
)
def test_extract_number(text: str, number: int | None) -> None:
    assert extract_number(text) == number


@given(st.text(max_size=80))
def test_no_text_breaks_the_graders(text: str) -> None:
    extract_number(text)
    is_allowed(text)
    is_allowed(f"def f(xs):\n    return {text}")


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os')",
        "xs.copy()",
        "().__class__",
        "open(0)",
        "eval('1')",
        "sum(y for y in xs)",
        "max(xs, key=abs)",
        "'text'",
        "1.5",
        "2 ** 9",
        "(lambda: 1)()",
        "xs[0]",
        "(x := 1)",
        "f'{x}'",
        "[*xs]",
        "1\n    return 2",
        "1\nimport os",
        "1\nf(3)",
    ],
)
def test_code_outside_the_family_is_refused(code: str) -> None:
    assert not is_allowed(f"def f(xs):\n    return {code}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import os",
        "def g(xs):\n    return 1",
        "def f(x):\n    return 1",
        "def f(xs, x):\n    return 1",
        "def f(*xs):\n    return 1",
        "def f(xs=1):\n    return 1",
        "def f(xs) -> list:\n    return 1",
        "@abs\ndef f(xs):\n    return 1",
        "async def f(xs):\n    return 1",
        "def f(xs):\n    pass",
        "def f(xs):\n    return",
        "def f(xs):\n    return " + "-" * 600 + "1",
    ],
)
def test_other_shapes_are_refused(text: str) -> None:
    problem = lists.sample(np.random.default_rng(0))
    assert not grade(problem, text)


def test_another_right_spelling_passes_and_a_bool_is_not_a_number() -> None:
    problem = Problem("lists", "", "", "lists count none0 even0")
    assert grade(problem, "def f(xs): return sum(1 for x in xs if not x % 2)")
    assert grade(problem, "def f(xs):\n  return len(list(x for x in xs if x%2==0))")
    largest = Problem("lists", "", "", "lists list none0 none0")
    assert not grade(largest, "def f(xs):\n    return [x == 1 for x in xs]")


def test_an_unknown_family_is_refused() -> None:
    with pytest.raises(ValueError, match="family 'songs' has no grader"):
        grade(Problem("songs", "", "", ""), "la")


def test_baselines(sets: dict[str, list[Problem]]) -> None:
    assert all(share < 0.1 for share in baselines(sets["words_test"]).values())
    twins = [Problem("words", f"{n} and {n}?", "#### 4", "") for n in (3, 4)]
    assert baselines(twins) == {"majority": 1.0, "copy_last": 0.5}
    for wrong in ([], sets["lists_test"]):
        with pytest.raises(ValueError, match="defined for word problems only"):
            baselines(wrong)


# The sandbox


@pytest.mark.parametrize("source", ["", "assert 1 + 1 == 2", "print('quiet')"])
def test_honest_programs_pass(source: str) -> None:
    assert run_program(source).reason == "passed"


@pytest.mark.parametrize(
    "source",
    [
        "assert False",
        "def f(",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "x = bytearray(8 << 30)",
        "print('passed'); assert False",
        "import os; os.write(1, b'passed'); os._exit(0)",
        "import os\nif os.fork(): os._exit(0)",
        "import os\nif os.fork() == 0: raise SystemExit\nassert False",
        "open('big', 'wb').write(b'0' * (16 << 20))",
        "input()",
        "def f(): f()\nf()",
        "import os; assert os.environ.get('PATH')",
        "import jaxdave",
        "\x00",
        "'\ud800'\nassert False",
    ],
)
def test_hostile_programs_fail(source: str) -> None:
    assert run_program(source).reason == "failed"


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import os, time\nos.fork()\ntime.sleep(60)",
    ],
)
def test_endless_programs_time_out(source: str) -> None:
    begun = time.monotonic()
    assert run_program(source, seconds=0.3).reason == "timeout"
    assert time.monotonic() - begun < 5


def test_what_a_program_leaves_behind_is_ended(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    source = (
        "import os, time\nif os.fork() == 0:\n"
        f"    time.sleep(0.5); open({str(mark)!r}, 'w').close(); os._exit(0)"
    )
    assert run_program(source).passed
    time.sleep(1)
    assert not mark.exists()


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        run_program("", seconds=seconds)


# The tokenizer


@settings(max_examples=300)
@given(st.text())
def test_tokenizer_round_trips_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_each_number_is_one_token(tokenizer: Tokenizer) -> None:
    for number in range(100):
        assert len(tokenizer.encode(str(number)).ids) == 1
    tokens = tokenizer.encode("12+5=17\n17-3=14").tokens
    assert tokens == ["12", "+", "5", "=", "17", "Ċ", "17", "-", "3", "=", "14"]


def test_special_tokens_come_last_in_order(tokenizer: Tokenizer) -> None:
    size = tokenizer.get_vocab_size()
    ids = [tokenizer.token_to_id(token) for token in SPECIALS]
    assert ids == list(range(size - len(SPECIALS), size))
    assert size <= 1024


def test_tokenizer_bytes_depend_on_the_arguments_only(
    built: Path, tmp_path: Path
) -> None:
    build_tokenizer(tmp_path, problems=4000)
    names = sorted(path.name for path in built.iterdir())
    assert names == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / name).read_bytes() == (built / name).read_bytes()


def test_a_vocabulary_without_room_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size=300 has no room for the number"):
        build_tokenizer(tmp_path, vocab_size=300, problems=10)
    assert not list(tmp_path.iterdir())


def test_transformers_loads_the_folder(built: Path) -> None:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(built)
    size = len(loaded)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (size - 4, size - 4)
    assert loaded.mask_token_id == size - 1
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "4"}]
    rendered = loaded.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )
    assert rendered == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n4<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = loaded(rendered)["input_ids"]
    assert loaded.decode(ids) == rendered
    assert loaded.decode(ids, skip_special_tokens=True) == (
        "user\nHi\nassistant\n4\nassistant\n"
    )
