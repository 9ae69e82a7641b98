"""`jaxdave-lm-eval`, and errors of one line."""

import json
from types import SimpleNamespace

import pytest
from helpers.lm_tasks import TASK, make_dataset, make_lm, make_request

from jaxdave.integrations.lm_eval import cli


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"colour": "red"}, "model_args: 'colour' is unknown; use add_bos_token"),
        ({"threshold": "high"}, "threshold='high' must be a number or none"),
        ({"draft_steps": 0}, "draft_steps=0 must be at least 1"),
        ({"mc_num": 0}, "mc_num=0 must be at least 1"),
        ({"likelihood": "exact"}, "likelihood='exact' is unknown; use one of bound,"),
        (
            {"scored": "all"},
            "scored='all' is unknown; use one of target, context, both",
        ),
        ({"scored": "context"}, "scored='context' needs full attention, and 'sdar-1m'"),
        ({"guidance": 1.0}, "guidance=1.0 needs full attention"),
        ({"block_length": 3}, "block_length=3 must divide 64"),
        ({"numerics": "loose"}, "numerics='loose' is unknown"),
        ({"batch_size": "many"}, "batch_size='many' must be a whole number"),
        ({"add_bos_token": True}, "'sdar-1m' has no bos_token"),
    ],
)
def test_bad_arguments_are_one_line(args, words):
    with pytest.raises(ValueError) as caught:
        make_lm(**args)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_request_without_room_is_one_line():
    lm = make_lm(max_length=40)
    with pytest.raises(ValueError, match="max_gen_toks=40 leaves no room"):
        request = make_request("generate_until", "x", {"max_gen_toks": 40})
        lm.generate_until([request], True)


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command on a task from a YAML file and a data file; returns its code."""
    data, tasks = tmp_path / "words.jsonl", tmp_path / "tasks"
    data.write_text("".join(json.dumps(row) + "\n" for row in make_dataset()["test"]))
    tasks.mkdir()
    task = {key: TASK[key] for key in TASK if key != "custom_dataset"}
    task |= {
        "task": "words_cli",
        "dataset_path": "json",
        "output_type": "multiple_choice",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 1,
    }
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
            cli.main()
        return caught.value.code

    return run


@pytest.mark.slow
def test_the_command_line(command, tmp_path, capsys):
    """A task goes round beside the harness's own, which take it long to list."""
    assert command("model=sdar-1m,numerics=fast,draft_steps=4") == 0
    (path,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(path.read_text())
    assert results["results"]["words_cli"]["acc,none"] == 1.0
    assert results["config"]["jaxdave_settings"]["draft_steps"] == 4
    # A task of choices has no texts, so there is no file about them either.
    assert "jaxdave_stats" not in results["config"]
    assert not [*(tmp_path / "out").rglob("stats_*")]
    assert "words_cli" in capsys.readouterr().out


class FakeTracker:
    """The parts of the harness's tracker that are looked at."""

    def __init__(self, output_path, date_id: str | None = "today"):
        self.output_path, self.date_id = output_path, date_id
        self.general_config_tracker = SimpleNamespace(model_name_sanitized="tiny")
        self.saved = []

    def save_results_aggregated(self, results, samples=None):
        self.saved.append((results, samples))
        return "saved"


def test_a_file_of_texts_lies_beside_the_results(tmp_path):
    usual = FakeTracker.save_results_aggregated
    for output, found in (
        (tmp_path / "out", tmp_path / "out" / "tiny" / "stats_today.jsonl"),
        (tmp_path / "r.json", tmp_path / "r_stats_today.jsonl"),
        (None, None),
    ):
        lm = make_lm()
        request = make_request("generate_until", "x", {"max_gen_toks": 8})
        with cli._stats_beside_results(FakeTracker):
            lm.generate_until([request], True)
            del lm  # as the harness drops it before it saves
            tracker = FakeTracker(output and str(output))
            assert tracker.save_results_aggregated({"a": 1}, samples=None) == "saved"
        assert tracker.saved == [({"a": 1}, None)]
        if found is not None:
            (line,) = found.read_text().splitlines()
            assert json.loads(line)["doc_id"] == 0
    assert FakeTracker.save_results_aggregated is usual


@pytest.mark.slow
def test_the_command_line_says_what_the_model_refuses(command, capsys):
    assert command("model=sdar-1m,colour=red") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("jaxdave-lm-eval: model_args: 'colour' is unknown")
