"""The one place that asks transformers to read a folder.

Whatever the folder says: no code that comes with it is run, nothing is fetched, only safetensors are read, nobody is
asked on the terminal, and no weight is made up. A test finds calls that go past this module.
"""

import json
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from dass.errors import InputError
from dass.files import read_json
from dass.model.checkpoint_folder import CONFIG_FILE
from dass.model.text_model import auto_class_of

ADAPTER_FILE = "adapter_config.json"

_RECOMPUTED = re.compile(r"(^|\.)(inv_freq|(cos|sin)_cached|position_ids|masked_bias)$")
_LARGEST_TOKENIZER = 1 << 29  # bytes; Gemma's, of 262144 tokens, has 33 MB
_AGAIN = "Fetch the checkpoint again."
_ELSEWHERE = "transformers_weights"  # names the file that weights are read from, instead of model.safetensors
# While transformers makes a model it changes what the whole process has: torch's default type, functions of its own
# classes. Two threads at it, as of a sweep, would each undo to what they found, and leave the other's for good.
_one_at_a_time = threading.RLock()
_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")


def load_config(folder: Path) -> PretrainedConfig:
    """The config of a checkpoint folder.

    Raises:
        InputError: it is missing, is not JSON, names an architecture that transformers does not have, or weights or
            code that are elsewhere.
    """
    path = folder / CONFIG_FILE
    try:
        values = read_json(path)
        model_type = values["model_type"]
    except FileNotFoundError:
        raise InputError(f"No config.json in {folder}: expected a transformers checkpoint.") from None
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is not a transformers config: expected JSON with a model_type.") from None
    _refuse_what_is_elsewhere(path, values)
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a wrong value shows as whatever fails on it: KeyError, TypeError, validation errors
        raise InputError(
            f"{path} cannot be used: transformers does not read this {model_type!r} config without code of its own "
            f"({_reason(error)})."
        ) from error
    assert isinstance(config, PretrainedConfig)
    return config


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint folder.

    Raises:
        InputError: there is none, transformers cannot read it, or it is larger than 512 MiB.
    """
    for path in (folder / name for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        if path.is_file() and (size := path.stat().st_size) > _LARGEST_TOKENIZER:
            raise InputError(f"{path} has {size} bytes: expected at most {_LARGEST_TOKENIZER}. {_AGAIN}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exceptions too
        raise InputError(
            f"No tokenizer that transformers can read in {folder} ({_reason(error)}). "
            "Put the model's tokenizer.json there."
        ) from error
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    return tokenizer


def load_model(folder: Path, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """The causal LM in a checkpoint folder, in evaluation mode, with every weight out of the folder.

    Args:
        folder: config.json and safetensors.
        dtype: type of the weights; "auto" is what the config says, else what is stored.

    Raises:
        InputError: transformers cannot read it, would make up, drop or resize a weight, or change them by an adapter.
    """
    load_config(folder)
    _refuse_adapter(folder)
    return _load(folder, dtype, str(folder), use_safetensors=True)


def load_gguf(file: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The causal LM in a GGUF file, dequantized.

    Raises:
        InputError: as `load_model`.
    """
    _refuse_adapter(file.parent)
    model = _load(file.parent, dtype, str(file), gguf_file=file.name, quantization_config=GgufConfig(dequantize=True))
    # Out of a GGUF file transformers takes any shape, and does not tell which tensors it left out: that is for whoever
    # knows the file to compare.
    with torch.device("meta"):
        expected = untrained(model.config).state_dict()
    for name, value in model.state_dict().items():
        if value.shape != expected[name].shape:
            raise InputError(_other_shape(str(file), name, value.shape, expected[name].shape))
    return model


@contextmanager
def alone() -> Iterator[None]:
    """While a model is made: other threads wait with theirs."""
    with _one_at_a_time:
        yield


def untrained(config: PretrainedConfig, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The language model of a config, its weights as they happen to be.

    Raises:
        InputError: transformers makes no decoder-only language model of this config.
    """
    auto = auto_class_of(config)
    try:
        with alone():
            model = auto.from_config(config, dtype=dtype, trust_remote_code=False)
    except Exception as error:  # as above
        raise InputError(
            f"The config of {config.name_or_path or 'the model'} is none that transformers can make a causal LM from "
            f"({_reason(error)})."
        ) from error
    assert isinstance(model, PreTrainedModel)
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' notices from the terminal: what counts in them is raised."""
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _load(folder: Path, dtype: torch.dtype | str, name: str, **how: Any) -> PreTrainedModel:
    auto = AutoModelForCausalLM if "gguf_file" in how else auto_class_of(load_config(folder))
    try:
        with alone(), quiet():
            loaded: Any = auto.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # they are told below, by name
                output_loading_info=True,
                **how,
            )
    except Exception as error:  # a parser run on somebody's files: whatever it raises, they cannot be used
        raise InputError(f"transformers cannot read {name} ({_reason(error)}).") from error
    model, found = loaded
    assert isinstance(model, PreTrainedModel)
    _check_loaded(model, found, name)
    model.eval()
    return model


def _check_loaded(model: PreTrainedModel, found: dict[str, Any], name: str) -> None:
    """Refuse what transformers would pass over with a notice."""
    kind = type(model).__name__
    for parameter, stored, expected in sorted(found["mismatched_keys"]):
        raise InputError(_other_shape(name, parameter, stored, expected))
    if missing := sorted(found["missing_keys"]):
        raise InputError(f"{name} does not hold {missing[0]} ({len(missing)} of {kind}'s parameters). {_AGAIN}")
    if unexpected := sorted(key for key in found["unexpected_keys"] if not is_recomputed(key)):
        raise InputError(f"{name} holds {unexpected[0]} ({len(unexpected)} such), and its {kind} has no place for it.")
    tied = model.get_expanded_tied_weights_keys(all_submodels=True)
    for target in sorted(tied.keys() - model.all_tied_weights_keys.keys()):
        raise InputError(untied(name, target, tied[target]))


def is_recomputed(tensor: str) -> bool:
    """Whether a name is that of a buffer that older checkpoints store, and every model makes for itself."""
    return _RECOMPUTED.search(tensor) is not None


def _other_shape(name: str, parameter: str, stored: Sequence[int], expected: Sequence[int]) -> str:
    return f"{name}: {parameter} is stored as {tuple(stored)}, and the config says {tuple(expected)}. {_AGAIN}"


def untied(name: str, target: str, source: str) -> str:
    """What is said of a checkpoint that holds two values for what its config calls one."""
    return (
        f"{name}: the config ties {target} to {source} (tie_word_embeddings), and they are stored with different "
        "values. Correct config.json, or fetch the checkpoint again."
    )


def _refuse_adapter(folder: Path) -> None:
    """transformers puts an adapter that it finds onto the model, or passes it over where peft is not installed."""
    if (folder / ADAPTER_FILE).exists():
        raise InputError(
            f"{folder} holds an adapter ({ADAPTER_FILE}): expected a whole model. Merge the adapter into its base "
            "(merge_and_unload) and save that."
        )


def _refuse_what_is_elsewhere(path: Path, values: Any) -> None:
    for key, value in _entries(values):
        if key == _ELSEWHERE and value is not None:
            raise InputError(f"{path} says that weights are read from {value!r} ({key}): expected model.safetensors.")
        if key in _KERNELS and "/" in json.dumps(value):
            raise InputError(f"{path} asks for code from elsewhere ({key} {value!r}): expected none. Take the key out.")


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value with what it stands for, at any depth."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield key, value
            yield from _entries(value)
    elif isinstance(values, list):
        for value in values:
            yield from _entries(value)


def _reason(error: Exception) -> str:
    return shorten(f"{str(error).strip() or type(error).__name__}".splitlines()[0], 300).rstrip(".")
