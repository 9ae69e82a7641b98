"""Bad input to jaxdave-convert: one line, exit code 2, and no DST."""

import contextlib
import dataclasses
import errno
import json
import resource
import shutil
import subprocess
from pathlib import Path

import folders
import numpy as np
import pytest
import sources
from jaxdave_convert import run
from safetensors.numpy import load_file
from sources import INDEX, ONE_FILE, change_json, change_tensors, write_index

DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return sources.make(tmp_path_factory.mktemp("made"))


@pytest.fixture
def source(tmp_path, made) -> Path:
    """A folder with one weight file."""
    return Path(shutil.copytree(made, tmp_path / "source"))


@pytest.fixture
def shards(source) -> Path:
    """A folder with two weight files and an index."""
    return sources.split(source)


@pytest.fixture
def fails(tmp_path, capsys):
    """Convert a source, which must fail as bad input does; gives its one line."""

    def call(source: object, *options: object) -> str:
        before = sources.names_in(tmp_path)
        assert sources.run(source, tmp_path / "ours", *options) == 2
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1 and "Traceback" not in err
        assert err.startswith("jaxdave-convert: ")
        assert sources.names_in(tmp_path) == before
        return err

    return call


def index_of(folder: Path) -> dict:
    return json.loads((folder / INDEX).read_text())


def test_missing_shard(fails, shards):
    (shards / "b.safetensors").unlink()
    message = fails(shards)
    assert "b.safetensors: missing file" in message
    assert "missing tensor" not in message


def test_missing_weights(fails, source):
    (source / ONE_FILE).unlink()
    assert "model.safetensors: missing file" in fails(source)


@pytest.mark.parametrize("length", [0, 7, 100, -1])
def test_truncated_shard(fails, shards, length):
    path = shards / "a.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    message = fails(shards)
    assert "a.safetensors: truncated" in message and "missing tensor" not in message


def test_bytes_after_the_end(fails, source):
    with (source / ONE_FILE).open("ab") as file:
        file.write(b"\0")
    assert "its header asks" in fails(source)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_flipped_bit_in_a_file_of_the_hub_s_cache(fails, source, tmp_path, capsys):
    sha = subprocess.run(
        ["sha256sum", source / ONE_FILE], capture_output=True, text=True, check=True
    ).stdout.split()[0]
    cache = tmp_path / "models--owner--name"
    snapshot = cache / "snapshots" / ("0123456789" * 4)
    shutil.copytree(source, snapshot)
    (cache / "blobs").mkdir()
    (snapshot / ONE_FILE).rename(cache / "blobs" / sha)
    (snapshot / ONE_FILE).symlink_to(Path("../../blobs") / sha)
    assert sources.run(snapshot, tmp_path / "good") == 0
    capsys.readouterr()
    record = json.loads((tmp_path / "good" / "manifest.json").read_text())
    assert record["revision"] == "0123456789" * 4
    assert record["sha256"][ONE_FILE] == sha
    flip(cache / "blobs" / sha)
    message = fails(snapshot)
    assert f"not {sha} as recorded" in message and "damaged" in message


def test_flipped_bit_in_a_download(fails, source):
    record = source / ".cache" / "huggingface" / "download"
    record.mkdir(parents=True)
    (record / f"{ONE_FILE}.metadata").write_text(f"{'a' * 40}\n{'b' * 64}\n1.5\n")
    assert f"not {'b' * 64} as recorded" in fails(source)


def test_flipped_bit_against_the_index(fails, shards, tmp_path):
    hashes = {"metadata": {"sha256": {"b.safetensors": "c" * 64}}}
    write_index(shards, {**index_of(shards), **hashes})
    assert sources.run(shards, tmp_path / "ours") == 2
    # The file that was good stays, out of sight, for the next run.
    assert sources.names_in(tmp_path) == [".ours.converting", "source"]
    write_index(shards, {**index_of(shards), "metadata": {}})
    assert sources.run(shards, tmp_path / "ours") == 0
    assert sources.names_in(tmp_path) == ["ours", "source"]


def test_index_that_names_a_tensor_twice(fails, shards):
    text = (shards / INDEX).read_text()
    entry = f'"{DOWN}": "a.safetensors", '
    write_index(shards, text.replace('"weight_map": {', '"weight_map": {' + entry))
    assert f"{DOWN} is named twice" in fails(shards)


def test_tensor_in_two_files(fails, shards):
    shutil.copyfile(shards / "a.safetensors", shards / "c.safetensors")
    index = index_of(shards)
    index["weight_map"]["model.norm.weight"] = "c.safetensors"
    write_index(shards, index)
    assert "is twice, in a.safetensors and c.safetensors" in fails(shards)


def test_header_that_names_a_tensor_twice(fails, source):
    header = b'{"x":{},"x":{}}  '[:16]
    (source / ONE_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    assert "x is named twice" in fails(source)


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_index_that_names_a_file_outside(fails, shards, tmp_path, kind):
    outside = tmp_path / "outside.safetensors"
    (shards / "b.safetensors").rename(outside)
    name = {"parent": f"../{outside.name}", "absolute": str(outside)}.get(kind, "l")
    if kind == "link":
        (shards / name).symlink_to(outside)
    index = index_of(shards)
    homes = index["weight_map"].items()
    index["weight_map"] = {n: name if f[0] == "b" else f for n, f in homes}
    write_index(shards, index)
    assert f"{name}: points outside the folder" in fails(shards)


@pytest.mark.parametrize("value", ["{", "[]", '{"weight_map": {"a": 1}}'])
def test_broken_index(fails, shards, value):
    write_index(shards, value)
    assert INDEX in fails(shards)


def test_everything_wrong_is_in_one_line(fails, source):
    change_tensors(
        source,
        {
            DOWN: np.zeros((24, 16), np.float32),
            "model.norm.weight": None,
            "model.layers.0.mlp.experts.bias": np.zeros(1, np.float32),
            "lm_head.weight": np.zeros((784, 16), np.int32),
        },
    )
    message = fails(source, "--family", "sdar")
    assert f"tensor {DOWN} has shape (24, 16), not (16, 24)" in message
    assert "missing tensor model.norm.weight" in message
    assert "unknown tensor model.layers.0.mlp.experts.bias" in message
    assert "tensor lm_head.weight has dtype I32, not F32/F16/BF16" in message


def test_file_beside_the_index(fails, shards):
    shutil.copyfile(shards / "a.safetensors", shards / "extra.safetensors")
    assert "extra.safetensors: extra file" in fails(shards)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2", "architectures": ["GPT2"]}, "model_type='gpt2'"),
        ({"model_type": "gpt2", "architectures": ["GPT2"]}, "look like sdar"),
        ({"model_type": ..., "architectures": ...}, "unknown architecture"),
        ({"model_type": "Dream", "architectures": ["DreamModel"]}, "not those of"),
        ({"num_hidden_layers": ...}, "num_hidden_layers is missing"),
        ({"rope_scaling": {"factor": 2}}, "rope_scaling={'factor': 2} must be None"),
        ({"hidden_size": "16"}, "hidden_size='16' must be of type int"),
        ({"block_size": ...}, "give it with --block-length"),
        ({"block_size": 3}, "block_length=3 must divide 64"),
        ({"mask_token_id": 3}, "give the right one with --mask-id"),
        ({"num_key_value_heads": 3}, "heads=4 must be a multiple"),
    ],
)
def test_config(fails, source, changes, words):
    change_json(source / "config.json", **changes)
    assert words in fails(source)


def test_mask_that_nobody_knows(fails, source, tmp_path):
    change_json(source / "config.json", mask_token_id=...)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    for token in tokenizer["added_tokens"]:
        token["content"] = token["content"].replace("MASK", "GAP")
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "give it with --mask-id" in fails(source)
    assert sources.run(source, tmp_path / "ours", "--mask-id", 775) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--family", "bert"), "family 'bert' is unknown"),
        (("--family", "llada"), "n_layers is missing"),
        (("--dtype", "int8"), "dtype 'int8' is unknown"),
        (("--block-length", 3), "block_length=3 must divide 64"),
        (("--mask-id", 784), "mask_id=784 must be a row"),
        (("--verify", -1), "verify=-1 must be"),
        (("--colour", "red"), "No such option"),
        (("--export", "--dry-run"), "takes no other option"),
        (("--export",), "is no checkpoint of jaxdave-convert"),
    ],
)
def test_options(fails, source, options, words):
    assert words in fails(source, *options)


def test_no_tokenizer(fails, source):
    (source / "tokenizer.json").unlink()
    assert "no tokenizer" in fails(source)


def test_no_such_source(fails, tmp_path):
    assert "is unknown" in fails(tmp_path / "nowhere")


def test_no_destination(capsys):
    assert sources.run("only") == 2
    assert "Missing argument 'dst'" in capsys.readouterr().err


def test_no_network(fails, tmp_path, monkeypatch):
    """The Hub's own client, at an address where nobody listens."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "c"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    assert "cannot be fetched from the Hub" in fails("owner/name")


@contextlib.contextmanager
def small_disk(home: Path, size: str):
    """A real file system of a given size, mounted on a new folder."""
    home.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", home]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this account may not mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", home], check=True)


@pytest.fixture
def wide(tmp_path) -> Path:
    """A source of half a megabyte, more than the records that orbax makes."""
    return sources.make(tmp_path, dataclasses.replace(folders.CONFIG, hidden=128))


def test_disk_that_is_too_small(wide, tmp_path, capsys):
    with small_disk(tmp_path / "disk", "400k"):
        assert sources.run(wide, tmp_path / "disk" / "ours") == 2
        assert "GB are needed and" in capsys.readouterr().err
        assert sources.names_in(tmp_path / "disk") == []


@pytest.mark.parametrize("size", ["60k", "400k"])
def test_disk_that_fills_up(wide, tmp_path, monkeypatch, capsys, size):
    """It has been full of room when it was asked: in orbax's hands, and in ours."""
    monkeypatch.setattr(run, "_check_space", lambda *_: None)
    with small_disk(tmp_path / "disk", size):
        assert sources.run(wide, tmp_path / "disk" / "ours") == 2
        err = capsys.readouterr().err
        assert "the disk takes no more (No space left on device)" in err
        assert err.count("\n") == 1
        assert sources.names_in(tmp_path / "disk") == []


@contextlib.contextmanager
def file_limit(size: int):
    """No file of this process may grow beyond a size, as under a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_quota(wide, tmp_path, capsys):
    with file_limit(20_000):
        assert sources.run(wide, tmp_path / "ours") == 2
    assert "the disk takes no more (File too large)" in capsys.readouterr().err
    assert sources.names_in(tmp_path) == ["source"]


def test_full_disk_keeps_finished_files(shards, tmp_path, capsys, monkeypatch):
    copy = run.copy_shard

    def full(path, *arguments, **options):
        if path.name == "b.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(path, *arguments, **options)

    monkeypatch.setattr(run, "copy_shard", full)
    assert sources.run(shards, tmp_path / "ours") == 2
    assert "1 of 2 files are done and stay" in capsys.readouterr().err
    monkeypatch.undo()
    assert sources.run(shards, tmp_path / "ours") == 0


def test_wrong_bits_are_found_and_nothing_is_kept(
    source, tmp_path, capsys, monkeypatch
):
    """--verify, with a converter that mixes up the rows of one tensor."""
    write = run.manifest.write

    def spoil(work, *arguments):
        chunk = work / "weights" / "blocks.mlp.down.kernel" / "1.0.0"
        chunk.write_bytes(chunk.read_bytes()[::-1])
        write(work, *arguments)

    monkeypatch.setattr(run.manifest, "write", spoil)
    assert sources.run(source, tmp_path / "ours", "--verify", 99) == 2
    assert f"tensor {DOWN} of {ONE_FILE} reads back" in capsys.readouterr().err
    assert sources.names_in(tmp_path) == ["source"]


def test_file_that_changes_while_it_is_read(source, tmp_path, capsys, monkeypatch):
    copy = run.copy_shard

    def change(path, *arguments, **options):
        done = copy(path, *arguments, **options)
        flip(path)
        return done

    monkeypatch.setattr(run, "copy_shard", change)
    assert sources.run(source, tmp_path / "ours") == 2
    assert "has changed while it was read" in capsys.readouterr().err
    assert sources.names_in(tmp_path) == ["source"]
    assert load_file(source / ONE_FILE)


def test_two_conversions_at_once(source, tmp_path, capsys):
    from jaxdave_convert import progress

    with progress.locked(progress.work_folder(tmp_path / "ours")):
        assert sources.run(source, tmp_path / "ours") == 2
    assert "is in use by another conversion" in capsys.readouterr().err
