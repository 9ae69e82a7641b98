"""`bench.grpo`: it runs, goes on, and mixes no runs of other settings."""

import pytest

from bench import grpo


@pytest.mark.slow
def test_the_quick_run_goes_on(tmp_path, capsys, monkeypatch):
    runs = tmp_path / "runs.jsonl"
    grpo.main(["--quick", "--runs", str(runs)])
    first = capsys.readouterr().out
    assert first.count("| hard |") >= 3
    lines = runs.read_text()
    # All of it is there: nothing is made again.
    monkeypatch.setattr(grpo, "run", None)
    grpo.main(["--quick", "--runs", str(runs)])
    assert runs.read_text() == lines
    table = lambda out: out.partition("Held-out accuracy")[2].partition("load")[0]  # noqa: E731
    assert table(capsys.readouterr().out) == table(first)


def test_a_file_of_other_settings_is_refused(tmp_path):
    runs = tmp_path / "runs.jsonl"
    with grpo.journal_writer(runs, grpo.header_of(False)):
        pass
    with pytest.raises(ValueError, match="quick=False, and this one has True"):
        grpo.main(["--quick", "--runs", str(runs)])
