"""Ray: workers decode a file of prompts, whatever happens to them or the command."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
import types
import uuid

import numpy as np
import pytest
from helpers import compiling

import jaxdave
from jaxdave.distributed import ray_answers, ray_cluster
from jaxdave.distributed.ray_config import RayConfig
from jaxdave.engine.decode_config import DecodeConfig, LoadConfig
from jaxdave.integrations.ray import RayDecoder

COUNT = 240
SETTINGS = ("--max-new-tokens", "32", "--temperature", "0.7", "--seed", "5")
SETTINGS += ("--draft-steps", "4", "--batch-size", "4")
PATIENCE = 900
"""Seconds after which a command is given up."""


def prompt(number: int) -> str:
    first, more = number % 7 + 2, number % 11 + 3
    return f"Mia has {first} pens. She buys {more} more pens. How many are there?"


@pytest.fixture(scope="module")
def needs_ray():
    pytest.importorskip("ray.data", reason="the extra [ray] is not installed")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> pathlib.Path:
    """Prompts, of which one has a stop string and two have draft texts."""
    lines: list[dict] = [{"prompt": prompt(number)} for number in range(COUNT)]
    lines[5]["stop"] = "\n"
    lines[6]["draft_text"] = lines[60]["draft_text"] = "3+4=7"
    file = tmp_path_factory.mktemp("ray") / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


class Command:
    """`jaxdave generate` in a process of its own, and everything that it starts."""

    def __init__(self, folder: pathlib.Path, *words: object) -> None:
        self.mark = uuid.uuid4().hex
        path = os.pathsep.join(one for one in sys.path if one)
        env = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
        env |= {"XDG_CACHE_HOME": str(folder / "cache"), "MARK": self.mark}
        env |= compiling.VARIABLES
        env.pop("JAXDAVE_NO_CACHE", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jaxdave", "generate", *map(str, words)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A shell in the background has its children ignore interrupts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def end(self) -> tuple[int, str, str]:
        """Wait for it; gives (exit code, stdout, stderr)."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err

    def others(self) -> dict[int, str]:
        """The processes that it has started, by id, and what they call themselves."""
        found = {}
        for folder in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                if self.mark in (folder / "environ").read_text(errors="replace"):
                    found[int(folder.name)] = (folder / "cmdline").read_text()
            except OSError:
                continue  # it has ended, or is another user's
        found.pop(self.process.pid, None)
        return found

    def leaves_nothing(self) -> bool:
        """True once none of its processes is left; a killed one takes a moment."""
        latest = time.monotonic() + PATIENCE / 8
        while self.others() and time.monotonic() < latest:
            time.sleep(0.05)
        return not self.others()

    def workers(self) -> list[int]:
        return sorted(one for one, name in self.others().items() if "MapWorker" in name)

    def wait_for_lines(self, file: pathlib.Path, count: int) -> None:
        latest = time.monotonic() + PATIENCE
        while not file.exists() or file.read_bytes().count(b"\n") < count:
            assert self.process.poll() is None, self.end()
            if time.monotonic() > latest:
                self.process.kill()
                raise AssertionError(self.end())
            time.sleep(0.02)


def answers(file: pathlib.Path) -> list[dict]:
    # Only a line feed ends a line: texts hold U+2028 and its like as they are.
    return [json.loads(line) for line in file.read_bytes().splitlines()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_nothing_is_lost_and_nothing_comes_twice(needs_ray, prompts, tmp_path):
    """The command is interrupted in the middle, and after that a worker is killed."""
    one, many = tmp_path / "one.jsonl", tmp_path / "many.jsonl"
    words = ("--prompts", prompts, *SETTINGS)
    # The programs that it compiles are loaded by the workers.
    alone = Command(tmp_path, *words, "--output", one).end()
    assert alone[0] == 0, alone

    part = many.with_name("many.jsonl.part")
    words = (*words, "--output", many, "--ray", "local", "--workers", "2")
    first = Command(tmp_path, *words)
    first.wait_for_lines(part, 20)
    first.process.send_signal(signal.SIGINT)
    assert first.end() == (130, "", "jaxdave: interrupted\n")
    assert not many.exists() and first.leaves_nothing(), first.others()
    before = len(answers(part)) - 1  # without the header
    assert 20 <= before + 1 < COUNT

    second = Command(tmp_path, *words, "--resume")
    second.wait_for_lines(part, before + 12)
    workers = second.workers()
    assert len(workers) == 2
    assert len(answers(part)) < COUNT
    os.kill(workers[0], signal.SIGKILL)
    code, out, err = second.end()
    assert (code, out) == (0, ""), err
    assert f"{COUNT} answers ({before} of an earlier run)" in err
    assert not part.exists() and second.leaves_nothing(), second.others()
    assert [row["index"] for row in answers(many)] == list(range(COUNT))
    for alone, shared in zip(answers(one), answers(many), strict=True):
        names = ("text", "token_ids", "finish_reason", "seed", "draft_steps")
        assert [alone[name] for name in names] == [shared[name] for name in names]


@pytest.fixture(scope="module")
def cluster(needs_ray):
    """A local cluster of one worker, and the module `ray`."""
    with pytest.MonkeyPatch.context() as patch:
        # The workers inherit it.
        for name, value in compiling.VARIABLES.items():
            patch.setenv(name, value)
        with ray_cluster.connected(RayConfig(address="local")) as ray:
            yield ray


def test_decoder_in_a_dataset(cluster):
    config = DecodeConfig(max_new_tokens=16, method="static")
    rows = [{"prompt": prompt(n), "request": n, "stop": ["\n"]} for n in range(3)]
    data = cluster.data.from_items(rows).map_batches(
        RayDecoder,
        fn_constructor_kwargs={"config": config},
        batch_size=3,
        compute=cluster.data.ActorPoolStrategy(size=1),
    )
    sampler = jaxdave.Sampler(jaxdave.load(), config)
    found = {row["request"]: row for row in data.take_all()}
    assert sorted(found) == [0, 1, 2]
    texts = [prompt(number) for number in found]
    alone = sampler.batch(texts, requests=list(found), stop="\n")
    for row, expected in zip(found.values(), alone, strict=True):
        assert (row["text"], row["finish_reason"]) == (expected.text, "stop")
        assert tuple(row["token_ids"]) == expected.token_ids
        assert json.loads(row["answer"])["nfe"]["total"] == row["calls"] > 0


def test_a_worker_without_weights(cluster, tmp_path):
    """What only a worker can find out is one line of the command all the same."""
    folder = tmp_path / "model"
    model = jaxdave.load()
    folder.mkdir()
    for path in model.folder.iterdir():
        content = path.read_bytes()
        cut = len(content) // 2 if path.suffix == ".safetensors" else len(content)
        (folder / path.name).write_bytes(content[:cut])
    work = ray_answers.RayWork(
        load=LoadConfig(model=str(folder)), config=DecodeConfig(max_new_tokens=8)
    )
    prompts = [ray_answers.EncodedPrompt(request=0, ids=[1, 2, 3])]
    with pytest.raises(ValueError, match="truncated or unreadable") as caught:
        list(ray_answers.decode_on_ray(cluster, work, prompts))
    assert str(caught.value).startswith(f"checkpoint {folder}")


@pytest.fixture(scope="module")
def decoder() -> RayDecoder:
    return RayDecoder(config=DecodeConfig(max_new_tokens=8, draft_steps=4))


def test_columns_of_prompts(decoder):
    """A turn, a conversation and token ids are one prompt; other columns stay."""
    model = jaxdave.load()
    text = prompt(1)
    ids = np.asarray([model.codec.encode_prompt(text)], np.int32)
    messages = np.empty(1, object)
    messages[0] = np.asarray([{"role": "user", "content": text}], object)
    columns = {"prompt": np.asarray([text]), "messages": messages, "prompt_ids": ids}
    found = [decoder({name: value, "id": [7]}) for name, value in columns.items()]
    assert {one["text"][0] for one in found} == {found[0]["text"][0]} != {""}
    assert all(one["id"] == [7] for one in found)


@pytest.mark.parametrize("names", [(), ("prompt", "prompt_ids"), ("text",)])
def test_a_batch_has_one_column_of_prompts(decoder, names):
    with pytest.raises(ValueError, match="must hold exactly one of prompt, messages"):
        decoder({name: ["a"] for name in ("id", *names)})


def test_a_batch_that_kills_its_workers_ends_the_run(monkeypatch):
    """Ray would give it to a worker for ever."""

    count = ray_answers._AttemptCounter()  # pyright: ignore
    # Ray's handle of an actor, and the fetching of what it returns.
    handle = types.SimpleNamespace(begin=types.SimpleNamespace(remote=count.begin))
    monkeypatch.setitem(
        sys.modules, "ray", types.SimpleNamespace(get=lambda value: value)
    )
    decoder = ray_answers._CountedDecoder(  # pyright: ignore
        counter=handle,
        version=jaxdave.__version__,
        config=DecodeConfig(max_new_tokens=8, draft_steps=4),
    )
    batch = {"prompt": [prompt(1)], "request": [9]}
    attempts = [decoder(batch)["attempt"] for _ in range(ray_answers.MAX_ATTEMPTS)]
    assert attempts == [[1], [2], [3], [4]]
    with pytest.raises(ValueError, match="4 workers have died at .* with prompt 9,"):
        decoder(batch)
    assert decoder({**batch, "request": [10]})["attempt"] == [1]


def test_workers_have_the_same_version():
    with pytest.raises(ValueError, match="a worker has jaxdave .* has 0.0.0; install"):
        ray_answers._CountedDecoder(counter=None, version="0.0.0")  # pyright: ignore


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ray", "local", "--workers", 0), "workers=0 must be at least 1"),
        (("--ray", "nonsense"), "ray='nonsense' must be local, auto or HOST:PORT"),
        (("--ray", "a:70000"), "ray='a:70000' must be local, auto or HOST:PORT"),
        (("--ray", "ray://a:1"), "is an address for Ray's client"),
        (("--workers", 2), "--workers 2 is for a cluster; name it by --ray"),
    ],
)
def test_bad_options(run, prompts, tmp_path, words, message):
    out = tmp_path / "out.jsonl"
    code, printed, err = run("generate", "--prompts", prompts, "--output", out, *words)
    assert (code, printed, err.count("\n")) == (2, "", 1) and message in err
    assert not list(tmp_path.iterdir())


def test_files_are_needed(run, prompts, tmp_path):
    code, _, err = run("generate", "x", "--ray", "local")
    assert code == 2 and "add --prompts FILE" in err
    code, _, err = run("generate", "--prompts", prompts, "--ray", "local")
    assert code == 2 and "add --output FILE" in err


def test_ray_is_not_installed(run, prompts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ("--prompts", prompts, "--output", tmp_path / "out.jsonl")
    code, out, err = run("generate", *words, "--ray", "local")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "Ray is not installed" in err and "pip install 'jaxdave[ray]'" in err
    assert not list(tmp_path.iterdir())


def test_no_cluster_there(needs_ray, run, prompts, tmp_path, monkeypatch):
    """A port where nobody listens, and one where somebody does who is no cluster."""
    monkeypatch.setattr(ray_cluster, "JOIN_SECONDS", 4.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as closed:
            nobody = closed.getsockname()[1]
        for number, reason in ((nobody, "refused"), (port, "no answer of a Ray")):
            code, out, err = run(
                *("generate", "--prompts", prompts, *SETTINGS),
                *("--output", tmp_path / "out.jsonl", "--ray", f"127.0.0.1:{number}"),
            )
            assert (code, out, err.count("\n")) == (2, "", 1), err
            assert f"'127.0.0.1:{number}' cannot be reached" in err and reason in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("cluster_has", "worker_gets"),
    [
        ({"CPU": 4.0}, {"num_cpus": 1}),
        ({"CPU": 4.0, "GPU": 2.0}, {"num_gpus": 1}),
        ({"CPU": 4.0, "TPU": 4.0}, {"resources": {"TPU": 1}}),
    ],
)
def test_every_worker_gets_a_device(cluster_has, worker_gets):
    assert ray_cluster.worker_resources(cluster_has) == worker_gets


def test_a_worker_with_a_mesh_gets_its_devices():
    assert ray_cluster.worker_resources({"GPU": 8.0}, 4) == {"num_gpus": 4}


def test_a_mesh_larger_than_the_cluster():
    ray = types.SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0, "GPU": 2.0})
    work = ray_answers.RayWork(
        load=LoadConfig(mesh="model=4"), config=DecodeConfig(max_new_tokens=8)
    )
    prompts = [ray_answers.EncodedPrompt(request=0, ids=[1, 2, 3])]
    with pytest.raises(ValueError, match="needs 4 devices and the cluster has 2 .GPU"):
        next(ray_answers.decode_on_ray(ray, work, prompts))
