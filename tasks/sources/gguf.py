"""GGUF checkpoints: dequantised once, saved as a plain safetensors checkpoint.

transformers reads config and weights. The tokenizer is built here from the file's own vocabulary, because what
transformers 5.17 builds from a GGUF is not the model's tokenizer: for a byte-level BPE it takes BOS for EOS and leaves
out the digit rule; for Gemma it makes a unigram model that comes back from disk as single characters.
"""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

from dass.errors import InputError
from dass.model.pretrained import load_gguf, quiet
from tasks.sources.gguf_layout import check_every_tensor_has_a_place, read_layout

# tokenizer.ggml.token_type
_CONTROL, _USER_DEFINED = 3, 4

_GPT2_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _words(numbers: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(f"{_WORD}|{numbers}|{_REST}"), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


# tokenizer.ggml.pre -> how text is cut before byte-level BPE
_BYTE_LEVEL = {
    "gpt-2": _GPT2_WORDS,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2_WORDS]),
    "llama-bpe": _words(r"\p{N}{1,3}"),
    "qwen2": _words(r"\p{N}"),
}


def convert_gguf(file: Path, folder: Path, dtype: torch.dtype) -> str | None:
    """Write the model in a GGUF file to `folder` as transformers saves it: safetensors, config, tokenizer.

    The same file and dtype give the same bytes.

    Returns:
        The licence that the file names ("apache-2.0"), if any.

    Raises:
        InputError: the file is not one whole language model, does not hold what it declares, or transformers or this
            module cannot read what is in it.
    """
    metadata, tensors = read_layout(file)
    tokenizer = _tokenizer_of(file, metadata)
    with _quiet():
        model: Any = load_gguf(file, dtype)
        check_every_tensor_has_a_place(file, metadata, tensors, model)
        model.hf_quantizer = None  # else save_pretrained refuses: to it, the model is still a GGUF
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        weights.chmod(0o644)
    for name in ("config.json", "tokenizer_config.json"):
        _forget_origin(folder / name)
    licence = metadata.get("general.license")
    return licence if isinstance(licence, str) else None


def _tokenizer_of(file: Path, metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    try:
        return build_tokenizer(metadata)
    except InputError:
        raise
    except Exception as error:  # a key that is missing, an id beyond the vocabulary, merges of what is no token
        raise InputError(
            f"{file}: no tokenizer can be made of its vocabulary ({type(error).__name__}: {shorten(str(error), 200)}). "
            "Use the model's safetensors checkpoint instead."
        ) from error


def build_tokenizer(metadata: dict[str, Any]) -> PreTrainedTokenizerFast:
    """The tokenizer that a GGUF file describes.

    Args:
        metadata: the file's key-value pairs, with the vocabulary and merges in full.

    Raises:
        InputError: a kind of tokenizer that is not known here.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level_bpe(metadata)
    elif kind == "llama":
        backend = _sentencepiece_bpe(metadata)
    else:
        raise InputError(
            f"tokenizer.ggml.model is {kind!r}: expected 'gpt2' or 'llama'. "
            "Use the model's safetensors checkpoint instead."
        )
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.token_type", [])
    backend.add_special_tokens(
        [AddedToken(tokens[i], normalized=False, special=True) for i, kind in enumerate(types) if kind == _CONTROL]
    )
    # Matched in the normalised text, where SentencePiece looks for them: a run of spaces is one of them in Gemma.
    backend.add_tokens(
        [AddedToken(tokens[i], normalized=True, special=False) for i, kind in enumerate(types) if kind == _USER_DEFINED]
    )
    special = {
        f"{name}_token": tokens[metadata[f"tokenizer.ggml.{key}_token_id"]]
        for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding"))
        if f"tokenizer.ggml.{key}_token_id" in metadata
    }
    if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama") and "bos_token" in special:
        bos = special["bos_token"]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        model_max_length=metadata[f"{metadata['general.architecture']}.context_length"],
        clean_up_tokenization_spaces=False,
        **special,
    )


def _byte_level_bpe(metadata: dict[str, Any]) -> Tokenizer:
    cut = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if cut not in _BYTE_LEVEL:
        raise InputError(
            f"tokenizer.ggml.pre is {cut!r}: expected one of {', '.join(_BYTE_LEVEL)}. "
            "Use the model's safetensors checkpoint instead."
        )
    vocabulary = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    # Llama 3 takes a word that is in the vocabulary as it is, whatever its merges would make of it.
    backend = Tokenizer(BPE(vocabulary, merges, ignore_merges=cut == "llama-bpe"))
    backend.pre_tokenizer = _BYTE_LEVEL[cut]
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece_bpe(metadata: dict[str, Any]) -> Tokenizer:
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    types = metadata["tokenizer.ggml.token_type"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    learned = {token for token, kind in zip(tokens, types, strict=True) if kind not in (_CONTROL, _USER_DEFINED)}
    merges: list[tuple[str, str]] = []
    for i in sorted(range(len(tokens)), key=lambda i: -scores[i]):  # a stable sort: equal scores keep the file's order
        token = tokens[i]
        if token in learned:
            pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
            known = [pair for pair in pairs if pair[0] in learned and pair[1] in learned]
            merges += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    unknown = tokens[metadata["tokenizer.ggml.unknown_token_id"]]
    backend = Tokenizer(BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True)
    replace = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefixed else replace
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return backend


def _forget_origin(path: Path) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    for key in ("_model_name_or_path", "_name_or_path", "name_or_path", "is_local", "local_files_only"):
        values.pop(key, None)
    path.write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' own progress bars and notices from the terminal."""
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        yield
