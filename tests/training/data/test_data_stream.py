"""Batches from samples: each sample once an epoch, and the same after a restart."""

import itertools
import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from helpers.checkpoint_folders import TOKENIZER
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxdave.io.tokenizer import load_codec
from jaxdave.training.data.batch_config import BatchConfig
from jaxdave.training.data.data_stream import batches_of, open_batches
from jaxdave.training.data.token_batch import PADDING, TokenBatch

PAD = 999


def samples_of(lengths):
    """Samples whose tokens all are their index; (prompt, answer) lengths."""
    return [([i] * prompt, [i] * answer) for i, (prompt, answer) in enumerate(lengths)]


LENGTHS = [(2, 3), (0, 1), (4, 4), (1, 1), (3, 2), (5, 1), (2, 2)]
SAMPLES = samples_of(LENGTHS)


def config(**changes) -> BatchConfig:
    default = {"batch_size": 2, "length": 10, "pad_id": PAD, "seed": 3, "prefetch": 0}
    return BatchConfig(**{**default, **changes})


def found(batch: TokenBatch) -> list[tuple[int, int, int]]:
    """(index, prompt length, answer length) of each sample of a batch, in order."""
    samples = []
    for tokens_T, is_answer_T, sample_T in zip(*map(np.asarray, batch), strict=True):
        for sample in range(sample_T.max() + 1):
            at_T = sample_T == sample
            [index] = np.unique(tokens_T[at_T])
            answer = int(is_answer_T[at_T].sum())
            # Prompts come first, and a sample is in one piece.
            assert np.all(np.diff(np.flatnonzero(at_T)) == 1)
            assert is_answer_T[at_T][-answer:].all()
            samples.append((int(index), int(at_T.sum()) - answer, answer))
        assert (tokens_T[sample_T == PADDING] == PAD).all()
        assert not is_answer_T[sample_T == PADDING].any()
    return samples


def take(stream, count: int) -> list[TokenBatch]:
    return list(itertools.islice(stream, count))


def same(left, right) -> bool:
    return len(left) == len(right) and all(
        np.array_equal(a, b)
        for one, two in zip(left, right, strict=True)
        for a, b in zip(one, two, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=12
    ),
    seed=st.integers(0, 2**40),
    batch_size=st.integers(1, 4),
    packing=st.sampled_from(["pack", "one"]),
    epochs=st.integers(1, 3),
)
def test_each_sample_is_trained_once_an_epoch(
    lengths, seed, batch_size, packing, epochs
):
    stream = batches_of(
        samples_of(lengths),
        config(
            length=12,
            seed=seed,
            batch_size=batch_size,
            packing=packing,
            epochs=epochs,
        ),
    )
    seen = []
    for batch in stream:
        assert batch.tokens_BT.shape == (batch_size, 12)
        seen += found(batch)
        # Each batch is one stretch of the sequence of all epochs: no sample is a whole
        # epoch ahead of another.
        counts = np.bincount([index for index, _, _ in seen], minlength=len(lengths))
        assert counts.max() - counts.min() <= 1
        assert stream.epoch == len(seen) / len(lengths)
    expected = [(i, *lengths[i]) for i in range(len(lengths))] * epochs
    assert sorted(seen) == sorted(expected)


def first_fit(samples, rows: int, length: int):
    """A plain statement of the packing: a list of rows for each batch."""
    batch = [[] for _ in range(rows)]
    for sample in samples:
        size = len(sample[0]) + len(sample[1])
        while True:
            for row in batch:
                if sum(len(p) + len(a) for p, a in row) + size <= length:
                    row.append(sample)
                    break
            else:
                yield batch
                batch = [[] for _ in range(rows)]
                continue
            break
    yield batch


def test_rows_are_packed_first_fit():
    rng = np.random.default_rng(0)
    samples = samples_of(rng.integers(1, 7, (60, 2)).tolist())
    stream = batches_of(samples, config(length=20, shuffle=False, epochs=1))
    expected = [
        [index for row in batch for index in (prompt[0] for prompt, _ in row)]
        for batch in first_fit(samples, 2, 20)
    ]
    assert [[i for i, _, _ in found(batch)] for batch in stream] == expected


def test_an_epoch_has_an_order_of_its_own_that_the_seed_draws():
    samples = samples_of([(1, 1)] * 50)

    def orders(**changes):
        stream = batches_of(
            samples, config(batch_size=1, packing="one", epochs=3, **changes)
        )
        seen = [found(batch)[0][0] for batch in stream]
        return [tuple(seen[i : i + 50]) for i in range(0, 150, 50)]

    drawn = [order for seed in (0, 1, 2) for order in orders(seed=seed)]
    assert len(set(drawn)) == 9  # no seed has the order of another a few epochs later
    assert orders(seed=1) == drawn[3:6]
    assert orders(shuffle=False) == [tuple(range(50))] * 3


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {"packing": "pack"},
        {"packing": "one"},
        {"packing": "pack", "length": 7, "too_long": "skip"},
        {"packing": "one", "length": 7, "too_long": "skip", "epochs": 5},
        {"packing": "one", "answer_start": 6},
    ],
)
def test_a_stream_goes_on_after_a_restart_as_it_would_have(changes, prefetch):
    settings = config(**changes, prefetch=prefetch)
    uninterrupted = take(batches_of(SAMPLES, settings), 9)
    stream = batches_of(SAMPLES, settings)
    for step in range(len(uninterrupted)):
        state = json.loads(json.dumps(stream.get_state()))
        resumed = batches_of(SAMPLES, settings)
        resumed.set_state(state)
        assert resumed.get_state() == state and resumed.epoch == stream.epoch
        assert same(take(resumed, 9 - step), uninterrupted[step:])
        next(stream)
    # An iterator that has run goes back, too.
    stream.set_state(state)
    assert same([next(stream)], uninterrupted[-1:])


def test_batches_made_ahead_are_not_counted():
    ahead, plain = (
        batches_of(SAMPLES, config(prefetch=4)),
        batches_of(SAMPLES, config()),
    )
    for _ in range(8):
        assert ahead.get_state() == plain.get_state()
        assert same([next(ahead)], [next(plain)])


@pytest.mark.parametrize("packing", ["pack", "one"])
def test_the_sequence_goes_on_with_another_batch_size(packing):
    first = batches_of(SAMPLES, config(packing=packing, epochs=4))
    seen = [sample for batch in take(first, 3) for sample in found(batch)]
    changes = {"batch_size": 3, "length": 12, "prefetch": 2}
    second = batches_of(SAMPLES, config(packing=packing, epochs=4, **changes))
    second.set_state(first.get_state())
    seen += [sample for batch in second for sample in found(batch)]
    assert sorted(seen) == sorted(4 * [(i, *n) for i, n in enumerate(LENGTHS)])


@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize(
    "changes",
    [{}, {"packing": "one", "answer_start": 5, "epochs": 3}, {"too_long": "skip"}],
)
def test_the_parts_of_processes_are_the_batch_of_one(changes, count):
    changes = {"batch_size": 6, "length": 10, **changes}
    if "too_long" in changes:
        changes["length"] = 6
    whole = take(batches_of(SAMPLES, config(**changes)), 4)
    parts = [
        take(
            batches_of(
                SAMPLES, config(**changes, process_index=i, process_count=count)
            ),
            4,
        )
        for i in range(count)
    ]
    joined = [
        TokenBatch(*(np.concatenate(arrays) for arrays in zip(*step, strict=True)))
        for step in zip(*parts, strict=True)
    ]
    assert same(joined, whole)


def test_the_last_batch_is_filled_up_with_padding():
    [batch] = batches_of(SAMPLES[:1], config(batch_size=3, epochs=1))
    assert found(batch) == [(0, 2, 3)]
    assert (batch.sample_BT[1:] == PADDING).all()


@pytest.mark.parametrize(
    "changes, expected",
    [
        # (prompt, answer) lengths were (2, 3) and (4, 4).
        ({"end_padding": "none"}, [3, 4]),
        ({"end_padding": "block", "block_length": 4, "length": 12}, [6, 4]),
        ({"end_padding": "row", "packing": "one"}, [8, 6]),
        ({"end_padding": 5}, [5, 5]),
        ({"end_padding": "row", "packing": "one", "answer_start": 4}, [6, 6]),
        (
            {
                "end_padding": "block",
                "block_length": 3,
                "packing": "one",
                "answer_start": 4,
            },
            [3, 6],
        ),
    ],
)
def test_padding_behind_the_end_is_part_of_the_answer(changes, expected):
    samples = [SAMPLES[0], SAMPLES[2]]
    settings = config(shuffle=False, epochs=1, **changes)
    answers = []
    for batch in batches_of(samples, settings):
        for tokens_T, is_answer_T, sample_T in zip(*batch, strict=True):
            for sample in range(sample_T.max() + 1):
                at_T = (sample_T == sample) & is_answer_T
                answers.append(tokens_T[at_T].tolist())
    clean = [answer for _, answer in samples]
    assert answers == [
        [*answer, *[PAD] * (size - len(answer))]
        for answer, size in zip(clean, expected, strict=True)
    ]


def test_aligned_answers_begin_in_one_column():
    settings = config(packing="one", answer_start=6, epochs=1)
    for batch in batches_of(SAMPLES, settings):
        rows = batch.sample_BT[:, 6] != PADDING
        assert batch.is_answer_BT[rows, 6].all()
        assert not batch.is_answer_BT[:, :6].any()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"length": 7}, "sample 2: .*prompt of 4 .*answer of 4 are 8.*length=7"),
        ({"end_padding": 3}, "sample 2: an answer of 4 .*end_padding=3"),
        (
            {"packing": "one", "answer_start": 4, "length": 12},
            "sample 5: a prompt of 5 .*answer_start=4",
        ),
        (
            {"packing": "one", "answer_start": 8, "length": 11},
            "sample 2: an answer of 4 .*room of 3.*length=11",
        ),
    ],
)
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_sample_that_does_not_fit_is_named_or_skipped(changes, words, prefetch):
    stream = batches_of(SAMPLES, config(**changes, prefetch=prefetch))
    with pytest.raises(ValueError, match=words) as error:
        take(stream, 10)
    assert "\n" not in str(error.value)
    assert stream.skipped.count == 0
    settings = config(**changes, prefetch=prefetch, too_long="skip", epochs=4)
    stream = batches_of(SAMPLES, settings)
    seen = {sample[0] for batch in stream for sample in found_any(batch)}
    skipped = set(range(len(SAMPLES))) - seen
    assert stream.skipped.count == len(skipped) == 1
    [message] = stream.skipped.messages
    assert message.startswith(f"sample {skipped.pop()}: ")


def found_any(batch: TokenBatch):
    """(index,) of each sample, padded answers included."""
    for tokens_T, sample_T in zip(batch.tokens_BT, batch.sample_BT, strict=True):
        for sample in range(sample_T.max() + 1):
            yield (int(tokens_T[sample_T == sample][0]),)


@pytest.mark.parametrize("seed", range(6))
def test_one_sample_that_fits_is_enough(seed):
    # It may be the first of an epoch and the last of the next.
    samples = samples_of([(1, 1), (4, 4), (4, 4), (4, 4)])
    stream = batches_of(samples, config(seed=seed, length=4, too_long="skip"))
    for batch in take(stream, 8):
        assert found(batch) == [(0, 1, 1)] * 4
    assert stream.skipped.count == 3


def test_where_nothing_fits_there_is_an_end():
    stream = batches_of(SAMPLES[:1], config(length=2, too_long="skip", prefetch=1))
    with pytest.raises(ValueError, match="all 1 samples are too long.*sample 0"):
        next(stream)


def lines(path, count):
    rows = [{"prompt": f"How many, {i}?", "response": str(i)} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_are_trained_and_a_change_is_noticed_at_the_restart(tmp_path):
    codec = load_codec(TOKENIZER)
    paths = [lines(tmp_path / "a.jsonl", 5), lines(tmp_path / "b.jsonl", 4)]
    settings = config(length=64, pad_id=codec.pad_id, epochs=1, prefetch=2)
    stream = open_batches(paths, codec, settings)
    batches = list(stream)
    answers = sorted(
        codec.decode(batch.tokens_BT[row][batch.is_answer_BT[row] & at_T].tolist())
        for batch in batches
        for row, sample_T in enumerate(batch.sample_BT)
        for at_T in (sample_T == sample for sample in range(sample_T.max() + 1))
    )
    assert answers == sorted([*"01234", *"0123"])
    state = stream.get_state()
    # Files may move, but not change.
    moved = paths[1].rename(tmp_path / "c.jsonl")
    open_batches([paths[0], moved], codec, settings).set_state(state)
    lines(moved, 5)
    with pytest.raises(ValueError, match="c.jsonl has changed since the checkpoint"):
        open_batches([paths[0], moved], codec, settings).set_state(state)
    with pytest.raises(ValueError, match="1 files .*written with 2"):
        open_batches(paths[:1], codec, settings).set_state(state)
    short = config(length=12, pad_id=codec.pad_id)
    with pytest.raises(ValueError, match=r"a.jsonl, line \d: .*length=12"):
        take(open_batches(paths[:1], codec, short), 5)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"seed": 4}, "seed=4 .*seed=3"),
        ({"shuffle": False}, "shuffle=False .*shuffle=True"),
        ({"packing": "one"}, "packing='one' .*packing='pack'"),
    ],
)
def test_another_order_is_refused_at_the_restart(changes, words):
    state = batches_of(SAMPLES, config()).get_state()
    with pytest.raises(ValueError, match=words):
        batches_of(SAMPLES, config(**changes)).set_state(state)
    with pytest.raises(ValueError, match="samples has changed"):
        batches_of(SAMPLES[1:], config()).set_state(state)
    far = batches_of(SAMPLES, config())
    take(far, 4)
    with pytest.raises(ValueError, match=r"epochs=1 .* 2\.00 epochs .* raise it"):
        batches_of(SAMPLES, config(epochs=1)).set_state(far.get_state())
    with pytest.raises(ValueError, match="is none"):
        batches_of(SAMPLES, config()).set_state({"step": 3})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"packing": "best"}, "packing='best'"),
        ({"too_long": "cut"}, "too_long='cut'"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"length": 0}, "length=0"),
        ({"seed": -1}, "seed=-1"),
        ({"epochs": 0}, "epochs=0"),
        ({"prefetch": -1}, "prefetch=-1"),
        ({"process_count": 0}, "process_count=0"),
        ({"process_index": 1}, "process_index=1"),
        ({"batch_size": 5, "process_count": 2}, "batch_size=5.*use 6"),
        ({"answer_start": 5}, "packing='one'"),
        ({"answer_start": 10, "packing": "one"}, "answer_start=10"),
        ({"end_padding": "row"}, "packing='one'"),
        ({"end_padding": "end"}, "end_padding='end'"),
        ({"end_padding": 0}, "end_padding=0"),
        ({"end_padding": "block"}, "give block_length"),
        ({"block_length": 5}, "give block_length"),
        ({"end_padding": "block", "block_length": 4}, "multiple of block_length=4"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(changes, words):
    with pytest.raises(ValueError, match=words) as error:
        config(**changes)
    assert "\n" not in str(error.value)


def test_a_stream_that_is_left_open_says_nothing_when_python_ends():
    code = (
        "from jaxdave.training.data.batch_config import BatchConfig\n"
        "from jaxdave.training.data.data_stream import batches_of\n"
        "config = BatchConfig(batch_size=1, length=4, pad_id=0, prefetch=2)\n"
        "stream = batches_of([([1], [2])], config)\n"
        "print(next(stream).tokens_BT.tolist())\n"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (result.stdout, result.stderr) == ("[[1, 2, 1, 2]]\n", "")


def test_a_closed_stream_has_no_thread_and_no_batches():
    stream = batches_of(SAMPLES, config(prefetch=2))
    next(stream)
    threads = threading.active_count()
    stream.close()
    stream.close()
    assert threading.active_count() == threads - 1
    with pytest.raises(ValueError, match="closed"):
        next(stream)


def test_without_grain_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ValueError, match=r"pip install 'jaxdave\[train\]'"):
        batches_of(SAMPLES, config())
    with pytest.raises(ValueError, match=r"pip install 'jaxdave\[train\]'"):
        open_batches([tmp_path / "missing"], load_codec(TOKENIZER), config())
