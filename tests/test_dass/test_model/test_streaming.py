"""A decoder streamed from disk does exactly what the model in memory does."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import dass
import tests.unlisted  # noqa: F401  registers itself
from benchmarks import job, random_checkpoint
from dass.engine.pruner import LayerwisePruner
from dass.errors import InputError
from dass.masks.mask_file import MaskFile, apply_to_checkpoint, save_masks
from dass.method.plan import plan
from dass.model import pretrained, streaming
from dass.model.checkpoint import Checkpoint
from dass.model.decoder import Decoder
from dass.model.streaming import StreamedDecoder
from tests.models import EVERY_FAMILY, FAMILIES, FUSED_FAMILIES, save_tiny_checkpoint, tiny_model, tiny_tokens

CPU = torch.device("cpu")


def streamed_masks(folder: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    decoder = StreamedDecoder(folder, CPU, dtype)
    pruner = LayerwisePruner(decoder, tiny_tokens(), plan())
    keep: dict[str, torch.Tensor] = {}
    for index in range(len(decoder)):
        keep |= pruner.prune_layer(index).keep
    return keep


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, *FUSED_FAMILIES])
def test_masks_equal_those_of_the_model_in_memory(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model(family, dtype).save_pretrained(tmp_path, max_shard_size="30KB")
    assert len(Checkpoint(tmp_path).files) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    expected = dass.prune(model, tiny_tokens()).keep
    actual = streamed_masks(tmp_path)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_while_a_layer_is_used_the_system_is_asked_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model().save_pretrained(tmp_path)
    asked: list[list[str]] = []
    monkeypatch.setattr(Checkpoint, "will_need", lambda _, names: asked.append(sorted(names)))
    decoder = StreamedDecoder(tmp_path, CPU)
    stored = Checkpoint(tmp_path).stored

    for index in range(len(decoder)):
        with decoder.layer(index):
            for thread in threading.enumerate():
                if thread.name == "dass-will-need":
                    thread.join()

    following = [sorted(name for name in stored if f"layers.{index}." in name) for index in range(1, len(decoder))]
    assert asked == following


def test_no_weight_stays_in_memory(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    decoder = StreamedDecoder(tmp_path, CPU)
    with decoder.embeddings(), decoder.layer(0) as layer:
        assert not any(parameter.is_meta for parameter in layer.parameters())
    assert all(parameter.is_meta for parameter in decoder.model.parameters())


def test_scores_do_not_depend_on_the_type_computed_in(tmp_path: Path) -> None:
    tiny_model(dtype=torch.float32).save_pretrained(tmp_path)
    decoder = StreamedDecoder(tmp_path, CPU, torch.bfloat16)
    assert decoder.dtype == torch.bfloat16
    weights = decoder.stored_weights(0, ("mlp.gate_proj.weight",))
    assert weights["mlp.gate_proj.weight"].dtype == torch.float32


@pytest.mark.parametrize("family", [*FAMILIES, *FUSED_FAMILIES])
def test_base_times_masks_is_the_model_pruned_in_memory(family: str, tmp_path: Path) -> None:
    base, pruned = tmp_path / "base", tmp_path / "pruned"
    model = tiny_model(family)
    model.save_pretrained(base, max_shard_size="30KB")
    report = dass.prune(model, tiny_tokens())
    save_masks(report.keep, tmp_path / "masks.safetensors")
    pruned.mkdir()
    apply_to_checkpoint(Checkpoint(base), MaskFile(tmp_path / "masks.safetensors"), pruned)
    (pruned / "config.json").write_bytes((base / "config.json").read_bytes())
    loaded = AutoModelForCausalLM.from_pretrained(pruned)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert sorted(path.name for path in pruned.glob("model*")) == sorted(path.name for path in base.glob("model*"))


def test_a_folder_without_config_or_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No model\.safetensors"):
        StreamedDecoder(tmp_path, CPU)
    tiny_model().save_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"No config\.json"):
        StreamedDecoder(tmp_path, CPU)


def test_masks_of_another_base_are_refused(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    base = Checkpoint(tmp_path)
    with pytest.raises(InputError, match="another base"):
        apply_to_checkpoint(base, {"model.layers.9.mlp.up_proj.weight": torch.ones(64, 32, dtype=torch.bool)}, tmp_path)
    with pytest.raises(InputError, match="another base"):
        apply_to_checkpoint(base, {"model.layers.0.mlp.up_proj.weight": torch.ones(64, 16, dtype=torch.bool)}, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*EVERY_FAMILY, "unlisted"])
def test_streamed_layers_compute_what_the_model_in_memory_does(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model(family, dtype).save_pretrained(tmp_path, max_shard_size="30KB")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    decoder, in_memory = StreamedDecoder(tmp_path, CPU), Decoder(model)
    with torch.no_grad():
        expected, calls = in_memory.embed(tiny_tokens())
        with decoder.embeddings():
            hidden, streamed_calls = decoder.embed(tiny_tokens())
        assert torch.equal(hidden, expected)
        for index in range(len(decoder)):
            with decoder.layer(index) as layer, in_memory.layer(index) as whole:
                hidden, expected = streamed_calls[index](layer, hidden), calls[index](whole, expected)
            assert torch.equal(hidden, expected), index


@pytest.mark.parametrize("family", [*EVERY_FAMILY, "unlisted"])
def test_the_skeleton_has_parameters_without_memory_and_real_buffers(family: str, tmp_path: Path) -> None:
    tiny_model(family).save_pretrained(tmp_path)
    model = StreamedDecoder(tmp_path, CPU).model
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_a_router_keeps_its_correction_bias_in_float32(tmp_path: Path) -> None:
    """A buffer that the checkpoint stores, and that transformers does not round to the model's type."""
    model = tiny_model("deepseek_v3", torch.bfloat16)
    bias = torch.tensor([1.0, 1 + 2**-12, 3.0, 4.0])
    model.get_submodule("model.layers.1.mlp.gate").register_buffer("e_score_correction_bias", bias)
    model.save_pretrained(tmp_path)
    decoder = StreamedDecoder(tmp_path, CPU)
    with decoder.layer(1) as layer:
        assert torch.equal(layer.get_buffer("mlp.gate.e_score_correction_bias"), bias)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["none", "reconstruct-block"])
def test_memory_does_not_grow_with_the_number_of_layers(
    update: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """24 layers more: were they kept, the peak would rise by all of their bytes. Allocator noise is a fifth of that."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")  # what is freed leaves the process at once
    tokens = tmp_path / "tokens.safetensors"
    random_checkpoint.write_tokens(tokens, windows=2, length=32, vocabulary=300)
    peaks, sizes = {}, {}
    for layers in (8, 32):
        folder = tmp_path / str(layers)
        config = random_checkpoint.llama_config(layers, 512, 2048, heads=8, vocabulary=300, context=64)
        random_checkpoint.write_checkpoint(folder, config)
        asked = job.Job("engine", "dass", "float32", folder, tokens, windows=2, length=32, update=update)
        peaks[layers] = job.run(asked, tmp_path).peak_bytes
        sizes[layers] = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert sizes[32] - sizes[8] > 190e6
    assert peaks[32] - peaks[8] < (sizes[32] - sizes[8]) / 2


def test_models_are_made_by_one_thread_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or each would put back what the other has put in transformers' and torch's classes, for good."""
    folder, second = save_tiny_checkpoint(tmp_path), threading.Event()
    made = pretrained.untrained
    found: list[Any] = []

    def work(index: int) -> None:
        StreamedDecoder(folder, torch.device("cpu"), torch.bfloat16)
        found.append(index)

    def while_another_begins(*arguments: Any) -> PreTrainedModel:
        if not second.is_set():
            second.set()
            other.start()
            other.join(0.3)
            found.append(module_of_another_thread())
        return made(*arguments)

    def module_of_another_thread() -> str:
        with ThreadPoolExecutor(1) as threads:
            return str(threads.submit(lambda: torch.nn.Linear(2, 2).weight.device).result())

    other = threading.Thread(target=work, args=(1,))
    monkeypatch.setattr(streaming, "untrained", while_another_begins)
    work(0)
    other.join()
    assert found == ["cpu", 0, 1]
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"
    assert torch.get_default_dtype() == torch.float32
