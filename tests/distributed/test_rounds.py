"""Several processes do each item once, give it to the first, and fail together."""

import dataclasses
import logging

import pytest
from helpers.threaded_processes import all_raised, run_together

from jaxdave.distributed.process_answers import SharedDecode
from jaxdave.distributed.processes import (
    ALONE,
    AgreedError,
    check_same,
    first_speaks,
    own_share,
)
from jaxdave.distributed.rounds import SharedRounds
from jaxdave.engine.prompt_batches import EncodedPrompt

COUNTS = (1, 2, 3, 5)


def prompts(count: int) -> list[EncodedPrompt]:
    # Numbers with gaps, as files with empty lines have them.
    return [EncodedPrompt(request=2 * n, ids=[n + 1]) for n in range(count)]


def decode(batch):
    return [{"index": one.request, "ids": list(one.ids)} for one in batch]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("items", [0, 1, 2, 7, 10])
def test_shares_are_a_partition_in_rounds(count, items):
    shares = [
        list(own_share(range(items), dataclasses.replace(ALONE, index=i, count=count)))
        for i in range(count)
    ]
    assert len({len(share) for share in shares}) == 1
    given = [item for share in shares for item in share if item is not None]
    assert sorted(given) == list(range(items))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("items", [0, 1, 4, 9])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_prompt_is_answered_once(count, items, batch_size):
    """The first process leaves out what it has; some have nothing to do at all."""
    everything = prompts(items)
    rest = everything[:1] + everything[2:]
    decoded: list[list[int]] = [[] for _ in range(count)]

    def work(processes):
        def counted(batch):
            decoded[processes.index] += [one.request for one in batch]
            assert len(batch) <= batch_size
            return decode(batch)

        shared = SharedDecode(processes, counted, batch_size)
        if processes.is_first:
            return list(shared.lead(rest))
        return shared.follow(everything)

    first, *others = run_together(count, work)
    assert sorted(first, key=lambda one: one["index"]) == decode(rest)
    assert others == [None] * (count - 1)
    assert sorted(sum(decoded, [])) == [one.request for one in rest]


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("failing", [0, 2, 4, 6, 8])
def test_a_prompt_that_cannot_be_decoded_ends_all(count, failing):
    def fails(batch):
        if any(one.request == failing for one in batch):
            raise OSError(f"prompt {failing} is bad")
        return decode(batch)

    def work(processes):
        shared = SharedDecode(processes, fails, 2)
        if not processes.is_first:
            return shared.follow(prompts(5))
        try:
            return list(shared.lead(prompts(5)))
        except ValueError as error:
            shared.fail(error)  # they know
            raise

    outcomes = run_together(count, work)
    assert all_raised(outcomes, AgreedError, f"prompt {failing} is bad")


@pytest.mark.parametrize("written", range(5))
def test_a_full_disk_ends_all(written):
    """It is the first process's, after any number of answers."""

    def work(processes):
        shared = SharedDecode(processes, decode, 1)
        if not processes.is_first:
            return shared.follow(prompts(5))
        try:
            for number, _ in enumerate(shared.lead(prompts(5))):
                if number == written:
                    raise OSError("no space left")
        except OSError as error:
            shared.fail(error)
            raise

    first, *others = run_together(3, work)
    assert all_raised([first], OSError, "no space left")
    assert all_raised(others, AgreedError, "no space left")


@pytest.mark.parametrize("failing", range(3))
def test_rounds_fail_together(failing):
    """What a process attempts alone fails in the next round, the last one included."""

    def full_disk():
        raise OSError("disk")

    def work(processes):
        shared, seen = SharedRounds(processes), []
        for number in range(3):
            seen.append(shared.exchange(lambda: [processes.index]))
            if (number, processes.index) == (failing, 1):
                shared.attempt(full_disk)
        shared.end()
        return seen

    assert all_raised(run_together(2, work), AgreedError, "disk")


def test_processes_agree():
    def fails_on_second(processes):
        def check():
            if processes.index == 1:
                raise OSError("no such file")
            return processes.index

        return processes.agree(check)

    assert all_raised(run_together(3, fails_on_second), AgreedError, "no such file")
    assert run_together(3, lambda p: p.agree(lambda: p.index)) == [0, 1, 2]
    with pytest.raises(OSError):  # one that works alone keeps its errors
        ALONE.agree(lambda: open("/nowhere/at/all"))


def test_processes_do_the_same():
    check_same("options", [{"a": 1}] * 3)
    with pytest.raises(AgreedError, match="processes 0 and 2 have different options"):
        check_same("options", [{"a": 1}, {"a": 1}, {"a": 2}])


def test_only_the_first_speaks(capsys):
    other = dataclasses.replace(ALONE, index=1, count=2)
    level = logging.getLogger("jaxdave").level
    with first_speaks(ALONE):
        print("once")
    with pytest.raises(SystemExit) as caught, first_speaks(other):
        print("twice")
        raise AgreedError("all know this")
    assert caught.value.code == 2
    with pytest.raises(ValueError, match="only here"), first_speaks(other):
        raise ValueError("only here")
    assert capsys.readouterr().out == "once\n"
    assert logging.getLogger("jaxdave").level == level  # warnings are heard again
