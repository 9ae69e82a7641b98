"""lm-evaluation-harness round trips, offline, with tasks whose data is in this package.

They need the harness, which the `test` extra leaves out: `pip install -e ".[eval]"`.
"""

import json
import os
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest

_WHY = "lm-eval is not installed: pip install -e '.[eval]'"
lm_eval = pytest.importorskip("lm_eval", reason=_WHY)
datasets = pytest.importorskip("datasets", reason=_WHY)

from lm_eval.api.instance import Instance  # noqa: E402  # pyright: ignore
from lm_eval.api.model import CacheHook  # noqa: E402  # pyright: ignore
from lm_eval.tasks import TaskManager  # noqa: E402  # pyright: ignore

import jaxdave  # noqa: E402
from jaxdave import checkpoint  # noqa: E402
from jaxdave.integrations import harness  # noqa: E402
from jaxdave.integrations.lm_eval import JaxDave  # noqa: E402
from jaxdave.tasks import frozen, grade  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compiles")
COUNT, ROOM = 5, 48
PROBLEMS = frozen.load("words_test")[:COUNT]
DRAFTED = {"draft_steps": 4, "draft": "nested", "numerics": "fast"}


@pytest.fixture(scope="module")
def model() -> checkpoint.Model:
    return checkpoint.load("sdar-1m")


def of(model, **args) -> JaxDave:
    return JaxDave(model, **{**DRAFTED, "batch_size": 8, **args})


def ask(kind: Any, *args) -> Instance:
    return Instance(kind, {}, args, 0, ("t", 0, 1))


class Hook(CacheHook):
    """Keeps what the harness would write to its cache."""

    def __init__(self, seen: list):
        super().__init__(None)
        self.seen = seen

    def add_partial(self, attr, req, res):
        self.seen.append((attr, req, res))


def docs(**_):
    rows = [
        {
            "prompt": p.prompt,
            "answer": p.answer,
            "choices": [PROBLEMS[i - 1].answer, p.answer, p.answer + "0"],
        }
        for i, p in enumerate(PROBLEMS)
    ]
    return {"test": datasets.Dataset.from_list(rows)}


TASK = {
    "custom_dataset": docs, "test_split": "test", "num_fewshot": 0,
    "doc_to_text": "{{prompt}}",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}  # fmt: skip


def graded(doc, texts):
    right = grade.extract_number(texts[0]) == grade.extract_number(doc["answer"])
    return {"acc": float(right)}


GENERATE = {
    **TASK, "task": "words", "output_type": "generate_until",
    "doc_to_target": "{{answer}}", "process_results": graded,
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": ROOM, "do_sample": False},
}  # fmt: skip
CHOOSE = {
    **TASK, "task": "choices", "output_type": "multiple_choice",
    "doc_to_choice": "{{choices}}", "doc_to_target": 1,
}  # fmt: skip


def evaluated(lm, task, **settings):
    return lm_eval.simple_evaluate(
        model=lm, tasks=[task], bootstrap_iters=0, apply_chat_template=True,
        task_manager=TaskManager(include_defaults=False), **settings,
    )  # fmt: skip


def test_a_task_of_texts_goes_round(model):
    """Every answer is right, and is what `jaxdave.generate` says."""
    found = evaluated(of(model), GENERATE)
    assert found["results"]["words"]["acc,none"] == 1.0
    texts = [sample["resps"][0][0] for sample in found["samples"]["words"]]
    decoder = jaxdave.freedave(
        model.config, draft_steps=4, max_new_tokens=ROOM, numerics="fast"
    )
    prompts = [model.codec.encode_prompt(p.prompt) for p in PROBLEMS]
    rows = jaxdave.generate(decoder, model.params, prompts).rows
    assert texts == [model.codec.decode(row.token_ids) for row in rows]


def test_a_task_of_choices_goes_round(model):
    """The right answer is likelier than another's, and than one with a digit more."""
    found = evaluated(of(model, mc_num=15), CHOOSE)
    assert found["results"]["choices"]["acc,none"] == 1.0


def test_settings_differ_by_request_and_order_is_kept(model):
    """Stop strings, rooms and temperatures of their own, whatever the batch."""
    chat = model.codec.render
    prompts = [chat([{"role": "user", "content": p.prompt}]) for p in PROBLEMS]
    said = [
        {"until": ["="], "max_gen_toks": ROOM},
        {"until": "####", "max_gen_toks": ROOM},
        {"max_gen_toks": 3},
        {"until": [], "max_gen_toks": ROOM},
        {"until": ["nothing", ""], "max_new_tokens": ROOM, "temperature": 0.0},
    ]
    requests = [
        ask("generate_until", prompt, kwargs)
        for prompt, kwargs in zip(prompts, said, strict=True)
    ]
    seen = []
    texts = {}
    for size in (1, 8):
        lm = of(model, batch_size=size)
        lm.set_cache_hook(Hook(seen))
        texts[size] = lm.generate_until(requests, True)
    assert texts[1] == texts[8]
    first, second, short, *whole = texts[8]
    answers = [p.answer for p in PROBLEMS]
    assert first == answers[0].partition("=")[0]
    assert second == answers[1].partition("####")[0]
    assert answers[2].startswith(short) and len(model.codec.encode_text(short)) == 3
    assert whole == answers[3:]
    assert sorted(text for _, _, text in seen) == sorted(texts[1] + texts[8])
    for kind, (context, kwargs), text in seen:
        at = prompts.index(context)
        assert (kind, kwargs, text) == ("generate_until", said[at], texts[8][at])


def test_likelihoods_do_not_depend_on_the_batch(model):
    requests = [
        ask("loglikelihood", "Q: " + p.prompt + " ", p.answer) for p in PROBLEMS
    ]
    requests.append(ask("loglikelihood", "", PROBLEMS[0].answer))
    requests.append(ask("loglikelihood", "no more", ""))
    alone = of(model, batch_size=1, mc_num=15).loglikelihood(requests, True)
    lm, seen = of(model, mc_num=15), []
    lm.set_cache_hook(Hook(seen))
    together = lm.loglikelihood(requests, True)
    assert [greedy for _, greedy in together[:-1]] == [False] * 6
    assert together[-1] == (0.0, True)
    for (a, _), (b, _) in zip(alone, together, strict=True):
        assert a == pytest.approx(b, abs=1e-3) and a <= 0
    assert len({round(value, 3) for value, _ in together}) == 7
    kept = {args: value for _, args, value in seen}
    assert kept == {r.args: x for r, x in zip(requests[:-1], together, strict=False)}


def test_a_continuation_begins_where_its_text_does(model):
    """After a chat template's newline, but before spaces and inside shared tokens."""
    lm, encode = of(model), model.codec.encode_text
    asked = lm.apply_chat_template([{"role": "user", "content": "How many?"}])
    assert asked.endswith("\n")
    assert lm._encode_pair(asked, "1+2") == (encode(asked), encode("1+2"))
    assert lm._encode_pair("Tom has  ", "3") == (encode("Tom has"), encode("  3"))
    assert lm._encode_pair("a To", "m has") == (encode("a"), encode(" Tom has"))
    assert lm._encode_pair("Tom", "") == (encode("Tom"), [])


def test_the_chain_and_what_is_greedy(model):
    """The answer that greedy decoding writes, token by token, and another."""
    context = model.codec.render([{"role": "user", "content": PROBLEMS[0].prompt}])
    right, wrong = PROBLEMS[0].answer[:5], "77777"
    requests = [ask("loglikelihood", context, text) for text in (right, wrong)]
    lm = of(model, likelihood="chain", is_greedy=True)
    (good, is_good), (bad, is_bad) = lm.loglikelihood(requests, True)
    assert is_good and not is_bad
    assert -0.1 < good <= 0 and bad < -10


def test_long_texts_are_scored_in_windows(model):
    text = " ".join(p.prompt for p in PROBLEMS)
    lm = of(model, max_length=70, mc_num=3)
    (whole,) = lm.loglikelihood_rolling([ask("loglikelihood_rolling", text)], True)
    ids = lm.tok_encode(text)
    assert len(ids) > 2 * 69
    cut = [ids[at : at + 69] for at in range(0, len(ids), 69)]
    before = [[lm.eot_token_id], *([part[-1]] for part in cut)]
    pairs = [(("", ""), *pair) for pair in zip(before, cut, strict=False)]
    parts = lm._loglikelihood_tokens(pairs[:-1], True)
    # The last window sees as much of what stands before it as fits.
    size = len(cut[-1])
    parts += lm._loglikelihood_tokens([(("", ""), ids[-69 - 1 : -size], cut[-1])], True)
    assert whole == pytest.approx(sum(value for value, _ in parts), rel=1e-4)


def test_the_chat_template_and_a_begun_answer(model):
    lm = of(model)
    turns = [{"role": "user", "content": "How many?"}]
    asked = lm.apply_chat_template(turns)
    assert lm.tok_encode(asked) == model.codec.encode_prompt("How many?")
    begun = [*turns, {"role": "assistant", "content": "1+"}]
    assert lm.apply_chat_template(begun, add_generation_prompt=False) == asked + "1+"
    with pytest.raises(ValueError, match="role 'user' and must be the assistant's"):
        lm.apply_chat_template(turns, add_generation_prompt=False)
    assert lm.tokenizer_name == "sdar-1m"
    assert "add_generation_prompt" in (lm.chat_template(True) or "")
    assert lm.chat_template(False) is None


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"colour": "red"}, "model_args: 'colour' is unknown; use add_bos_token"),
        ({"threshold": "high"}, "threshold='high' must be a number or none"),
        ({"draft_steps": 0}, "draft_steps=0 must be at least 1"),
        ({"mc_num": 0}, "mc_num=0 must be at least 1"),
        ({"likelihood": "exact"}, "likelihood='exact' is unknown"),
        ({"block_length": 3}, "block_length=3 must divide 64"),
        ({"numerics": "loose"}, "numerics='loose' is unknown"),
        ({"batch_size": "many"}, "batch_size='many' must be a whole number"),
        ({"add_bos_token": True}, "'sdar-1m' has no bos_token"),
    ],
)
def test_bad_arguments_are_one_line(model, args, words):
    with pytest.raises(ValueError) as caught:
        of(model, **args)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_request_without_room_is_one_line(model):
    lm = of(model, max_length=40)
    with pytest.raises(ValueError, match="max_gen_toks=40 leaves no room"):
        lm.generate_until([ask("generate_until", "x", {"max_gen_toks": 40})], True)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command on a task from a YAML file and a data file; gives its code."""
    data, tasks = tmp_path / "words.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps(row) + "\n" for row in docs()["test"]))
    tasks.mkdir()
    task = {key: TASK[key] for key in TASK if key != "custom_dataset"}
    task |= {
        "task": "words_cli", "dataset_path": "json", "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "doc_to_choice": "{{choices}}", "doc_to_target": 1,
    }  # fmt: skip
    (tasks / "words.yaml").write_text(json.dumps(task))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def run(model_args: str) -> object:
        args = (
            f"jaxdave-lm-eval run --model jaxdave --model_args {model_args} "
            f"--tasks words_cli --include_path {tasks} --batch_size 8 "
            f"--apply_chat_template --output_path {tmp_path / 'out'}"
        )
        monkeypatch.setattr("sys.argv", args.split())
        with pytest.raises(SystemExit) as caught:
            harness.main()
        return caught.value.code

    return run


@pytest.mark.slow
def test_the_command_line(command, tmp_path, capsys):
    """A task goes round beside the harness's own, which take it long to list."""
    assert command("model=sdar-1m,numerics=fast,draft_steps=4") == 0
    (result,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(result.read_text())
    assert found["results"]["words_cli"]["acc,none"] == 1.0
    assert found["config"]["jaxdave_settings"]["draft_steps"] == 4
    assert "words_cli" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_line_says_what_the_model_refuses(command, capsys):
    assert command("model=sdar-1m,colour=red") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("jaxdave-lm-eval: model_args: 'colour' is unknown")
