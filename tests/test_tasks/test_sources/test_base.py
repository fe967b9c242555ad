"""The dense model from a hub, a folder, a GGUF file or a wheel, and every way in which one can be wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import dass
from dass.errors import InputError
from dass.files import digest_of, read_json, sha256_file, write_json
from dass.model.older_keys import write_older_keys
from dass.model.pretrained import load_model
from tasks.sources.base import fetch_base
from tasks.sources.checkpoint_folder import cast_checkpoint
from tasks.versioning.pins import refresh_pins
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings, validate_settings
from tests.gguf_files import write_tiny_gguf
from tests.models import tiny_model, tiny_tokenizer, tiny_tokens
from tests.workspaces import tiny_settings

ROOT = Path(__file__).parents[3]


def refresh(ws: Workspace, model: str = "./model") -> Any:
    """Pin ./model again."""
    (ws.root / "text.txt").write_text("text")
    values = {**tiny_settings(), "sources": {**_relative(), "model": {"uri": model}}}
    return refresh_pins(ws, validate_settings(values, "test"))["sources"]["model"]


def fetch(ws: Workspace, model: dict[str, Any], dtype: str = "auto") -> Path:
    values = tiny_settings()
    values["sources"] |= {"model": model, "dtype": dtype}
    text = ws.root / "text.txt"
    text.write_text("text")
    values["sources"] |= {"calibration": {"uri": "text.txt"}, "evaluation": {"uri": "text.txt"}}
    settings = validate_settings(values, "test")
    refresh_pins(ws, settings)
    fetch_base(ws, settings)
    return ws.base


def refused(ws: Workspace, model: dict[str, Any], told: str, dtype: str = "auto") -> None:
    with pytest.raises(InputError, match=told) as error:
        fetch(ws, model, dtype)
    assert "\n" not in str(error.value)
    assert not ws.base.exists()
    assert not (ws.root / "artifacts").exists() or os.listdir(ws.root / "artifacts") == []


# Model folders


def test_a_model_folder_is_copied_byte_for_byte(ws: Workspace, tiny_checkpoint: Path) -> None:
    write_older_keys(tiny_checkpoint)  # then older transformers read it, as they read most of the hub
    base = fetch(ws, {"uri": "./model"})
    for file in tiny_checkpoint.iterdir():
        assert (base / file.name).read_bytes() == file.read_bytes()
        assert not (base / file.name).samefile(file)
    assert {path.name for path in base.iterdir()} == {path.name for path in tiny_checkpoint.iterdir()} | {"source.json"}


def test_to_a_folder_that_transformers_5_saved_come_the_keys_of_older_ones(
    ws: Workspace, tiny_checkpoint: Path
) -> None:
    base = fetch(ws, {"uri": "./model"})
    rewritten = {"config.json", "tokenizer_config.json"}
    for file in tiny_checkpoint.iterdir():
        assert ((base / file.name).read_bytes() == file.read_bytes()) == (file.name not in rewritten)
    config = read_json(base / "config.json")
    assert (config["rope_theta"], config["rope_scaling"], config["torch_dtype"]) == (10000.0, None, "float32")
    assert read_json(base / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_a_gguf_becomes_a_checkpoint_that_older_transformers_read(ws: Workspace) -> None:
    rotary: dict[str, Any] = {"rope_type": "default", "rope_theta": 100_000.0}
    write_tiny_gguf(ws.root / "tiny.gguf", tiny_model(rope_parameters=rotary))
    config = read_json(fetch(ws, {"uri": "tiny.gguf"}) / "config.json")
    assert (config["rope_theta"], config["rope_scaling"], config["torch_dtype"]) == (100_000.0, None, "bfloat16")
    assert read_json(ws.base / "tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_source_json_names_every_file_by_its_digest(ws: Workspace, tiny_checkpoint: Path) -> None:
    write_older_keys(tiny_checkpoint)
    base = fetch(ws, {"uri": "./model"})
    record = read_json(base / "source.json")
    assert record["files"] == {path.name: sha256_file(path) for path in sorted(tiny_checkpoint.iterdir())}
    assert record["digest"] == digest_of(record["files"])
    assert (record["uri"], record["sha256"], record["revision"], record["dtype"]) == ("./model", None, None, "float32")
    of_tokenizer = {name: sha for name, sha in record["files"].items() if "token" in name}
    assert record["tokenizer"] == digest_of(of_tokenizer)


def test_pickles_and_code_beside_safetensors_stay_behind(ws: Workspace, tiny_checkpoint: Path) -> None:
    for name in ("pytorch_model.bin", "modeling.py", "training_args.bin"):
        (tiny_checkpoint / name).write_bytes(b"x")
    assert not {"pytorch_model.bin", "modeling.py", "training_args.bin"} & set(
        os.listdir(fetch(ws, {"uri": "./model"}))
    )


def test_what_is_not_part_of_the_checkpoint_stays_behind_and_is_told(
    ws: Workspace, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pinned_before = refresh(ws)
    others = ("consolidated.safetensors", "adapter_model.safetensors", "adapter_config.json", "params.json", "x.gguf")
    for name in (*others, "model.safetensors.index.json"):  # an older index, whose shards are gone
        (tiny_checkpoint / name).write_bytes(b"x")
    (tiny_checkpoint / "original").mkdir()
    (tiny_checkpoint / "License.txt").write_text("Apache-2.0")
    base = fetch(ws, {"uri": "./model"})
    assert set(os.listdir(base)) == set(os.listdir(tiny_checkpoint)) - {
        *others,
        "model.safetensors.index.json",
        "original",
    } | {"source.json"}
    [line] = [record.message for record in caplog.records]
    assert line.startswith(f"Left behind in {tiny_checkpoint}, ")
    assert all(name in line for name in others)
    (tiny_checkpoint / "License.txt").unlink()
    assert refresh(ws) == pinned_before, "what is left behind is not pinned either"


def test_a_source_that_was_pruned_before_is_told_and_recorded(
    ws: Workspace, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dass.prune_checkpoint(tiny_checkpoint, ws.root / "pruned", tiny_tokens(), pattern="2:4")
    base = fetch(ws, {"uri": "./pruned"})
    assert "pruned was pruned before (dass, 2:4, 0.5)" in caplog.text
    assert not (base / "dass.json").exists()
    assert read_json(base / "source.json")["pruned"]["settings"]["pattern"] == "2:4"


def test_a_dtype_that_is_asked_for_is_what_is_stored(ws: Workspace, tiny_checkpoint: Path) -> None:
    base = fetch(ws, {"uri": "./model"}, dtype="bfloat16")
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    assert model.dtype == torch.bfloat16
    expected = load_file(tiny_checkpoint / "model.safetensors")
    stored = load_file(base / "model.safetensors")
    assert all(torch.equal(stored[name], expected[name].to(torch.bfloat16)) for name in expected)
    assert read_json(base / "source.json")["dtype"] == "bfloat16"
    config = read_json(base / "config.json")
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")


def test_a_dtype_that_is_asked_for_stands_in_every_config_inside_the_config(tmp_path: Path) -> None:
    """As in a model that also sees: text_config and vision_config have a dtype of their own."""
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    write_json(
        tmp_path / "config.json", {"torch_dtype": "float32", "text_config": {"dtype": "float32"}, "x_config": {}}
    )
    cast_checkpoint(tmp_path, "float16")
    both = {"dtype": "float16", "torch_dtype": "float16"}
    assert read_json(tmp_path / "config.json") == {**both, "text_config": both, "x_config": {}}


def test_shards_are_copied_and_cast_like_a_single_file(ws: Workspace) -> None:
    model = tiny_model()
    model.save_pretrained(ws.root / "model", max_shard_size="40KB")
    tiny_tokenizer().save_pretrained(ws.root / "model")
    base = fetch(ws, {"uri": "./model"}, dtype="bfloat16")
    assert len(list(base.glob("*.safetensors"))) > 1
    loaded = AutoModelForCausalLM.from_pretrained(base, dtype="auto").state_dict()
    assert all(torch.equal(loaded[name], tensor.to(torch.bfloat16)) for name, tensor in model.state_dict().items())


def test_a_model_that_changed_since_it_was_pinned_is_refused(ws: Workspace, tiny_checkpoint: Path) -> None:
    fetch(ws, {"uri": "./model"})
    before = sha256_file(ws.base / "source.json")
    settings = validate_settings({**tiny_settings(), "sources": _relative()}, "test")
    weights = load_file(tiny_checkpoint / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, tiny_checkpoint / "model.safetensors")
    with pytest.raises(InputError, match=r"dass\.lock\.json says .* it changed since"):
        fetch_base(ws, settings)
    assert sha256_file(ws.base / "source.json") == before


def _relative() -> dict[str, Any]:
    return {"model": {"uri": "./model"}, "calibration": {"uri": "text.txt"}, "evaluation": {"uri": "text.txt"}}


def test_a_link_inside_the_folder_is_followed_and_copied_as_a_file(ws: Workspace, tiny_checkpoint: Path) -> None:
    (tiny_checkpoint / "weights").mkdir()
    (tiny_checkpoint / "model.safetensors").rename(tiny_checkpoint / "weights" / "w")
    (tiny_checkpoint / "model.safetensors").symlink_to("weights/w")
    base = fetch(ws, {"uri": "./model"})
    assert not (base / "model.safetensors").is_symlink()


def name_an_absent_shard(model: Path) -> None:
    (model / "model.safetensors").rename(model / "a.safetensors")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"x": "b.safetensors"}}')


def name_an_absent_tensor(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / "model.safetensors.index.json").write_text('{"weight_map": {"absent": "model-1.safetensors"}}')


def leave_a_tensor_out_of_the_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    tiny_model().save_pretrained(model, max_shard_size="30KB")
    index = read_json(model / "model.safetensors.index.json")
    del index["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def store_a_matrix_as_float8(model: Path) -> None:
    weights = load_file(model / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, name: weights[name].to(torch.float8_e4m3fn)}, model / "model.safetensors")


def declare(**values: object) -> Callable[[Path], object]:
    return lambda model: write_json(model / "config.json", read_json(model / "config.json") | values)


def link_to_weights_outside(model: Path) -> None:
    (model / "model.safetensors").rename(model.parent / "w")
    (model / "model.safetensors").symlink_to("../w")


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda m: (m / "config.json").unlink(), r"No config\.json in .*model"),
    "config is no JSON": (lambda m: (m / "config.json").write_text("{"), "is not a transformers config"),
    "unknown architecture": (
        lambda m: (m / "config.json").write_text('{"model_type": "klingon"}'),
        "does not read this 'klingon' config",
    ),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), "holds no weights: expected safetensors"),
    "pickle only": (
        lambda m: (m / "model.safetensors").rename(m / "pytorch_model.bin"),
        r"only pickled weights \(pytorch_model\.bin\)",
    ),
    "weights cut off": (lambda m: os.truncate(m / "model.safetensors", 1000), "damaged or truncated"),
    "shard missing": (name_an_absent_shard, r"b\.safetensors is missing"),
    "a tensor that the index leaves out": (leave_a_tensor_out_of_the_index, "up_proj.weight, and .* does not say so"),
    "no index": (
        lambda m: (m / "model.safetensors").rename(m / "a.safetensors"),
        r"No model\.safetensors or model\.safetensors\.index\.json",
    ),
    "a head is missing": (lambda m: change_config(m, tie_word_embeddings=False), r"does not hold lm_head\.weight"),
    "a layer too many": (lambda m: change_config(m, num_hidden_layers=2), r"holds model\.layers\.2\."),
    "part of it quantized": (
        lambda m: change_config(m, text_config={"quantization_config": {"quant_method": "awq"}}),
        r"has a quantization_config \(awq\)",
    ),
    "no tokenizer": (lambda m: (m / "tokenizer.json").unlink(), "No tokenizer in"),
    "tokenizer is no JSON": (
        lambda m: (m / "tokenizer.json").write_text("{"),
        "No tokenizer that transformers can read",
    ),
    "layers nobody stored": (
        declare(num_hidden_layers=10**12),
        "num_hidden_layers is 10{12}, .* at most 3 layers",
    ),
    "sizes nobody stored": (declare(head_dim=10**9), "head_dim is 1000000000, and .* at most 300 entries"),
    "config nested deeply": (lambda m: (m / "config.json").write_text("[" * 100_000), "is not a transformers config"),
    "link that leaves": (link_to_weights_outside, "is a link that leaves"),
    "link to nothing": (lambda m: os.symlink("nothing", m / "extra.json"), "is a link to nothing"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_model_folder_is_refused_in_one_line(ws: Workspace, tiny_checkpoint: Path, kind: str) -> None:
    damage, told = BROKEN[kind]
    damage(tiny_checkpoint)
    refused(ws, {"uri": "./model"}, told)


def test_a_model_s_own_code_is_never_run(ws: Workspace, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = read_json(tiny_checkpoint / "config.json")
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (tiny_checkpoint / "config.json").write_text(json.dumps(config))
    (tiny_checkpoint / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    refused(ws, {"uri": "./model"}, "without code of its own")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("uri", ["artifacts/base", "artifacts", "./artifacts/mine", "link"])
def test_a_source_among_the_stages_own_artifacts_is_refused(ws: Workspace, tiny_checkpoint: Path, uri: str) -> None:
    for name in ("base", "mine"):
        shutil.copytree(tiny_checkpoint, ws.root / "artifacts" / name)
    (ws.root / "link").symlink_to("artifacts/base")
    with pytest.raises(InputError, match="lies in artifacts/, whose folders the stages replace: put the source else"):
        fetch(ws, {"uri": uri})
    assert (ws.base / "model.safetensors").is_file()


def test_a_folder_that_is_called_like_a_repository_goes_first_and_that_is_told(
    ws: Workspace, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(tiny_checkpoint, ws.root / "org" / "name")
    assert fetch(ws, {"uri": "org/name"}).is_dir()
    told = f"org/name is {ws.root}/org/name here, not the hub's org/name. For that one write org/name@main"
    assert [record.message for record in caplog.records] == [told], "once, however often it is looked at"
    with pytest.raises(InputError, match="org/name@main is no local path, and the hub does not give it"):
        fetch(ws, {"uri": "org/name@main"})


def change_config(model: Path, **changes: Any) -> None:
    (model / "config.json").write_text(json.dumps(read_json(model / "config.json") | changes))


def test_references_to_what_stays_behind_are_left_out_and_said(
    ws: Workspace, tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change_config(tiny_checkpoint, auto_map={"AutoModelForCausalLM": "own.Model"}, sparsity_config={"format": "dense"})
    change_config(tiny_checkpoint, architectures=["OwnForCausalLM"])
    (tiny_checkpoint / "own.py").write_text(f"open({str(ws.root / 'ran')!r}, 'w')")
    before = {path.name: sha256_file(path) for path in tiny_checkpoint.iterdir()}
    with caplog.at_level("WARNING", logger="dass"):
        base = fetch(ws, {"uri": "./model"})
    config = read_json(base / "config.json")
    assert not {"auto_map", "sparsity_config"} & config.keys()
    assert config["architectures"] == ["LlamaForCausalLM"]
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "config.json: auto_map, sparsity_config" in line]
    assert [line for line in said if "names the class LlamaForCausalLM, not ['OwnForCausalLM']" in line]
    assert {path.name: sha256_file(path) for path in tiny_checkpoint.iterdir()} == before
    assert not (ws.root / "ran").exists()
    load_model(base)


def test_a_declared_dtype_that_would_round_the_weights_wants_one_named(ws: Workspace, tiny_checkpoint: Path) -> None:
    change_config(tiny_checkpoint, dtype="float16")
    refused(ws, {"uri": "./model"}, r"says dtype float16, and the weights are stored as float32: .* sources\.dtype")
    assert load_model(fetch(ws, {"uri": "./model"}, dtype="bfloat16")).dtype == torch.bfloat16


def test_a_path_that_does_not_exist_is_named(ws: Workspace) -> None:
    refused(ws, {"uri": "./nowhere"}, r"There is no .*nowhere\. Expected a path that exists, a hub id")


def test_a_text_file_is_no_model(ws: Workspace) -> None:
    (ws.root / "x.txt").write_text("text")
    refused(ws, {"uri": "x.txt"}, r"x\.txt is no GGUF file")


# GGUF


def test_a_gguf_file_becomes_a_bfloat16_checkpoint(ws: Workspace) -> None:
    file = write_tiny_gguf(ws.root / "tiny.gguf", tiny_model())
    base = fetch(ws, {"uri": "tiny.gguf"})
    record = read_json(base / "source.json")
    assert (record["sha256"], record["dtype"]) == (sha256_file(file), "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(base, dtype="auto").dtype == torch.bfloat16


def test_a_gguf_file_with_another_digest_is_refused_before_it_is_read(ws: Workspace) -> None:
    write_tiny_gguf(ws.root / "tiny.gguf", tiny_model())
    refused(ws, {"uri": "tiny.gguf", "sha256": "0" * 64}, f"expected {'0' * 64}")


# Real weights


@pytest.mark.real
@pytest.mark.parametrize(
    ("params", "expected", "continuation"),
    [
        ("params.yaml", ["Hello", "Ġ", "1", "2", "Ġworlds", "ĠĠ", "7"], "Paris"),
        pytest.param(
            "examples/gemma-3-270m/params.yaml",
            ["Hello", "▁", "1", "2", "▁worlds", "▁▁", "7"],
            "France",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["SmolLM2-135M", "Gemma-3-270m"],
)
def test_a_real_model_out_of_wheels_speaks(
    real_base: Callable[[Path], Path], params: str, expected: list[str], continuation: str
) -> None:
    base = real_base(ROOT / params)
    record = read_json(base / "source.json")
    assert record["sha256"] == load_settings(ROOT / params).sources.model.sha256
    assert record["dtype"] == "bfloat16"
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    assert tokenizer.tokenize("Hello 12 worlds  7") == expected
    network: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert network.lm_head.weight.data_ptr() == network.get_input_embeddings().weight.data_ptr()
    said = network.generate(**tokenizer("The capital of France is", return_tensors="pt"), max_new_tokens=8)
    assert continuation in tokenizer.decode(said[0, -8:])
