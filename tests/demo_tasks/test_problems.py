"""The generated tasks, their frozen test sets, their graders and the tokenizer."""

import collections
import hashlib
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from jaxdave.demo_tasks import lists, problem_sets, words
from jaxdave.demo_tasks.grade import (
    TEST_INPUTS,
    baselines,
    extract_number,
    is_allowed,
    is_correct,
)
from jaxdave.demo_tasks.mixture import kind_of, training_problem
from jaxdave.demo_tasks.problem import Problem, from_line, split_of, to_line
from jaxdave.training.demo.tokenizer import SPECIAL_TOKENS, build_tokenizer

STREAM = 20000
EQUATION = re.compile(r"(\d+)([-+*/])(\d+)=(\d+)")
WORD_SETS = ("words_test", "words_long", "words_names")
SHIPPED = Path(problem_sets.__file__).parents[1] / "demo" / "sdar-1m"


@pytest.fixture(scope="module")
def stream() -> list[Problem]:
    return [training_problem(0, index) for index in range(STREAM)]


@pytest.fixture(scope="module")
def sets() -> dict[str, list[Problem]]:
    return {name: problem_sets.load(name) for name in problem_sets.SETS}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


def numbers_checked(problem: Problem) -> list[int]:
    """Follows the equations of an answer, and returns every number in them."""
    *equations, last = problem.answer.split("\n")
    value = int(problem.key.split()[1])
    numbers = [value]
    for line, step in zip(equations, problem.key.split()[2:], strict=True):
        match = EQUATION.fullmatch(line)
        assert match
        left, right, result = int(match[1]), int(match[3]), int(match[4])
        assert left == value and step.endswith(str(right))
        exact = {"+": left + right, "-": left - right, "*": left * right}
        if match[2] == "/":
            assert result * right == left
        else:
            assert result == exact[match[2]]
        value = result
        numbers += [right, result]
    assert last == f"#### {value}"
    return numbers


def all_functions() -> list[lists.ListFunction]:
    def rules(table) -> list[tuple[str, int]]:
        """Names of the rules, with every constant that they may have."""
        lowest = {name: rule.min_constant for name, rule in table.items()}
        return [
            (n, k) for n, low in lowest.items() for k in range(low, 10 if low else 1)
        ]

    choices = itertools.product(
        lists.AGGREGATES, rules(lists.MAPS), rules(lists.FILTERS)
    )
    return [
        lists.ListFunction(aggregate, *map_rule, *filter_rule)
        for aggregate, map_rule, filter_rule in choices
    ]


def test_training_shares_nothing_with_the_frozen_sets(stream, sets) -> None:
    keys, prompts = {p.key for p in stream}, {p.prompt for p in stream}
    for name, (count, _) in problem_sets.SETS.items():
        assert not keys & {p.key for p in sets[name]}
        assert {split_of(p.key) for p in sets[name]} == {"test"}
        unique = {p.prompt for p in sets[name]}
        assert len(unique) == count and not unique & prompts
    codes = {p.answer for p in stream if p.family == "lists"}
    assert not codes & {p.answer for p in sets["lists_test"]}


def test_held_out_words_are_only_in_their_set(stream, sets) -> None:
    held_out = {name for name, _ in words.HELD_OUT_PEOPLE} | set(words.HELD_OUT_ITEMS)
    held_out |= {item.removesuffix("s") for item in words.HELD_OUT_ITEMS}
    prompts = " ".join(p.prompt for p in stream)
    assert not held_out & set(re.findall(r"\w+", prompts))
    for problem in sets["words_names"]:
        assert held_out & set(re.findall(r"\w+", problem.prompt))


def test_the_key_does_not_depend_on_the_wording() -> None:
    one = words.sample(np.random.default_rng(3), 3)
    other = words.sample(np.random.default_rng(3), 3, words.HELD_OUT_PEOPLE)
    assert (one.key, one.answer) == (other.key, other.answer)
    assert one.prompt != other.prompt


def test_training_problem_is_pure_and_of_its_kind(stream) -> None:
    again = [training_problem(0, i) for i in reversed(range(50))]
    assert again[::-1] == stream[:50]
    assert training_problem(1, 0) != stream[0]
    assert [from_line(to_line(problem)) for problem in again] == again
    for index, problem in enumerate(stream):
        assert f"{problem.family}{problem.data.get('ops', '')}" == kind_of(index)


def test_word_answers_are_right_and_in_range(stream, sets) -> None:
    for problem in itertools.chain(stream, *(sets[name] for name in WORD_SETS)):
        if problem.family == "words":
            shown = [int(n) for n in re.findall(r"\d+", problem.prompt)]
            assert all(1 <= n <= 60 for n in shown + numbers_checked(problem))
    assert {p.data["ops"] for p in sets["words_long"]} == {5}


def test_list_answers_do_what_their_key_says(stream) -> None:
    codes = {p.key: p.answer for p in stream if p.family == "lists"}
    for key, code in codes.items():
        namespace: dict = {}
        exec(code, namespace)
        for xs in TEST_INPUTS:
            expected = lists.parse_key(key).expected_result(xs)
            assert repr(namespace["f"](list(xs))) == repr(expected)


def test_the_inputs_tell_different_functions_apart() -> None:
    rng = np.random.default_rng(0)
    wide = [rng.integers(-40, 41, size=n).tolist() for n in (2, 3, 5, 9) * 20]
    alike = collections.defaultdict(list)
    for function in all_functions():
        alike[repr([function.expected_result(xs) for xs in TEST_INPUTS])].append(
            function
        )
    for group in alike.values():
        for xs in wide if len(group) > 1 else ():
            assert len({repr(function.expected_result(xs)) for function in group}) == 1


@pytest.mark.parametrize("family", [words, lists])
def test_sample_from_split_keeps_to_its_split(family) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        assert {
            split_of(family.sample_from_split(rng, split).key) for _ in range(30)
        } == {split}
    with pytest.raises(ValueError, match=r"ops=6 must be in 1\.\.5"):
        words.sample(rng, 6)


@pytest.mark.parametrize("name", problem_sets.SETS)
def test_frozen_files_are_pinned_and_rebuild_identically(name: str) -> None:
    content = (problem_sets.FOLDER / f"{name}.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() == problem_sets.SHA256[name]
    assert problem_sets.build(name) == content
    assert len(content) < 200_000


def test_unknown_and_changed_sets_are_refused(tmp_path, monkeypatch) -> None:
    with pytest.raises(
        ValueError, match="^frozen set 'nope' is unknown; choose one.*$"
    ):
        problem_sets.load("nope")
    monkeypatch.setattr(problem_sets, "FOLDER", tmp_path)
    (tmp_path / "words_test.jsonl").write_bytes(b"{}\n")
    for name in ("words_test", "words_long"):  # changed, missing
        with pytest.raises(ValueError, match=f"^frozen set {name} has .* restore it$"):
            problem_sets.load(name)


@pytest.mark.parametrize("name", WORD_SETS)
def test_word_references_pass_and_other_numbers_fail(name: str, sets) -> None:
    for problem in sets[name]:
        right = extract_number(problem.answer)
        assert right is not None and is_correct(problem, problem.answer)
        assert not is_correct(problem, f"#### {right + 1}")
        assert not is_correct(problem, problem.answer.replace("####", "="))
    assert all(share < 0.1 for share in baselines(sets[name]).values())


def test_list_references_pass_and_perturbed_ones_fail(sets) -> None:
    assert all(is_correct(problem, problem.answer) for problem in sets["lists_test"])
    for problem in sets["lists_test"][:40]:
        assert not is_correct(problem, problem.answer.replace(" in xs", " in range(3)"))


NUMBERS = {"#### 3\n#### 14": 14, "####-4.": -4, "#### 14<|im_end|>": 14, "14": None}
NUMBERS |= {"#### 14.5": None, "#### 14+3": None, "#### 3 ####": None, "#### ٣": None}


@pytest.mark.parametrize(("text", "number"), NUMBERS.items())
def test_extract_number(text: str, number: int | None) -> None:
    assert extract_number(text) == number


FORBIDDEN = ("__import__('os')", "xs.copy()", "().__class__", "open(0)", "2 ** 9")
FORBIDDEN += ("sum(y for y in xs)", "max(xs, key=abs)", "'text'", "1\nimport os")
FORBIDDEN += ("(lambda: 1)()", "xs[0]", "(x := 1)", "1\n    return 2", "-" * 600 + "1")


@pytest.mark.parametrize("code", FORBIDDEN)
def test_code_outside_the_family_is_refused(code: str) -> None:
    assert not is_allowed(f"def f(xs):\n    return {code}")


def test_the_value_counts_and_not_the_spelling(sets) -> None:
    counted = Problem("lists", "", "", "lists count none0 even0")
    assert is_correct(counted, "def f(xs): return sum(1 for x in xs if not x % 2)")
    listed = Problem("lists", "", "", "lists list none0 none0")
    assert not is_correct(listed, "def f(xs):\n    return [x == 1 for x in xs]")
    with pytest.raises(ValueError, match="family 'songs' has no grader"):
        is_correct(Problem("songs", "", "", ""), "la")


@settings(max_examples=300, deadline=None)
@given(text=st.text())
def test_tokenizer_round_trips_any_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_each_number_is_one_token_and_specials_come_last(tokenizer) -> None:
    assert all(len(tokenizer.encode(str(number)).ids) == 1 for number in range(100))
    size = tokenizer.get_vocab_size()
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(size - len(SPECIAL_TOKENS), size)) and size <= 1024


def test_the_shipped_tokenizer_is_what_the_generator_makes(tmp_path: Path) -> None:
    build_tokenizer(tmp_path)
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (SHIPPED / path.name).read_bytes()
