"""A checkpoint that transformers 5 saved, made readable for the transformers before it.

transformers 5 moved what a config says of the rotary embedding into `rope_parameters`, gave some keys and the class of
its tokenizers other names, and dropped the former ones. transformers 4 reads its own defaults instead, without a word.
Here the former keys are written beside the newer ones, with the values that transformers 5 itself reads.
"""

import json
import logging
from pathlib import Path
from typing import Any

OLDEST_TRANSFORMERS = "4.57"
"""The oldest version that reads what `write_older_keys` leaves, and gets the same logits: a test installs it."""

_THETA, _SCALING, _PARTIAL = "rope_theta", "rope_scaling", "partial_rotary_factor"

# model_type -> what θ of the full and of the sliding layers was called; None: one θ for both
_BY_LAYER_TYPE: dict[str, tuple[str, str | None]] = {
    "gemma3_text": (_THETA, "rope_local_base_freq"),
    "gemma3n_text": (_THETA, "rope_local_base_freq"),
    "modernbert": ("global_rope_theta", "local_rope_theta"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
    "olmo3": (_THETA, None),
}
# These refuse a `rope_scaling` that has other fields than these, or that calls its type `rope_type`.
_ONLY_FIELDS = {
    "chameleon": ("type", "factor"),
    "fuyu": ("type", "factor"),
    "olmo": ("type", "factor"),
    "olmo2": ("type", "factor"),
    "phi3": ("type", "short_factor", "long_factor"),
    "phi4_multimodal": ("type", "short_factor", "long_factor"),
}
# model_type -> former name -> name now
_RENAMED = {"qwen3_moe": {"num_experts": "num_local_experts"}}
# Before `layer_types`, up to transformers 4.52, every how many layers one has full attention.
_PATTERN = ("gemma3_text", "cohere2")

# Their former classes put BOS and EOS where these two keys say, whatever tokenizer.json says.
_ADD_TOKENS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer", "GPTNeoXTokenizer")

logger = logging.getLogger("dass")


def write_older_keys(folder: Path) -> None:
    """Write the former keys into config.json and tokenizer_config.json of a folder, beside those of transformers 5.

    A file that transformers 4 reads as transformers 5 does keeps its bytes; so does one that is not there or not JSON.
    What transformers 4 has no words for is left out, and told in one line of the log.
    """
    config = _read(folder / "config.json")
    if config is not None:
        _write(folder / "config.json", config, older_config(config))
    tokenizer_config = _read(folder / "tokenizer_config.json")
    if tokenizer_config is not None:
        tokenizer = _read(folder / "tokenizer.json")
        _write(folder / "tokenizer_config.json", tokenizer_config, older_tokenizer_config(tokenizer_config, tokenizer))


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json holds, with the former keys beside the newer ones, in configs inside it too."""
    return _older_config(config, _saved_by_5(config))


def older_tokenizer_config(values: dict[str, Any], tokenizer: dict[str, Any] | None) -> dict[str, Any]:
    """What tokenizer_config.json holds, in words that transformers 4 has too.

    Args:
        values: tokenizer_config.json.
        tokenizer: tokenizer.json; None where there is none.
    """
    if values.get("backend") != "tokenizers" and values.get("tokenizer_class") != "TokenizersBackend":
        return values
    older = dict(values)
    if values.get("tokenizer_class") == "TokenizersBackend":
        older["tokenizer_class"] = "PreTrainedTokenizerFast"  # in transformers 5 another name of the same class
    if isinstance(values.get("extra_special_tokens"), list):
        older.setdefault("additional_special_tokens", older.pop("extra_special_tokens"))
    if str(values.get("tokenizer_class")).removesuffix("Fast") in _ADD_TOKENS and tokenizer is not None:
        for name in ("bos", "eos"):  # transformers 5 takes tokenizer.json's word, and neither writes nor reads these
            older[f"add_{name}_token"] = _puts(tokenizer.get("post_processor"), values.get(f"{name}_token"))
    return older


def _older_config(config: dict[str, Any], saved_by_5: bool) -> dict[str, Any]:
    older = {
        key: _older_config(value, saved_by_5) if key.endswith("_config") and isinstance(value, dict) else value
        for key, value in config.items()
    }
    kind = config.get("model_type")
    older |= _older_rotary(config)
    for before, now in _RENAMED.get(str(kind), {}).items():
        if now in config:
            older[before] = config[now]
    if saved_by_5 and isinstance(config.get("dtype"), str):
        older["torch_dtype"] = config["dtype"]
    if saved_by_5 and kind in _PATTERN and (every := _full_every(config.get("layer_types"))):
        older["sliding_window_pattern"] = every
    return older


def _saved_by_5(config: dict[str, Any]) -> bool:
    major = str(config.get("transformers_version", "")).partition(".")[0]
    return major.isdecimal() and int(major) >= 5


def _older_rotary(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding as it was described before `rope_parameters`."""
    kind, parameters = str(config.get("model_type")), config.get("rope_parameters")
    if not isinstance(parameters, dict) or not parameters:
        return {}
    if any(isinstance(value, dict) for value in parameters.values()):
        return _older_by_layer_type(kind, parameters, config.get(_SCALING) or {})
    if config.get(_SCALING):  # transformers 5 then takes this one, and what stands beside it: so it is told already
        return {}
    scaling = _scaling(kind, parameters)
    if scaling is None:
        return _told(kind, "its rope_parameters have more fields than rope_scaling may have")
    older = {key: parameters[key] for key in (_THETA, _PARTIAL) if key in parameters} | {_SCALING: scaling or None}
    if parameters.get("rope_type") == "longrope" and "original_max_position_embeddings" in parameters:
        older["original_max_position_embeddings"] = parameters["original_max_position_embeddings"]
    return older


def _older_by_layer_type(kind: str, parameters: dict[str, Any], scaling: dict[str, Any]) -> dict[str, Any]:
    if kind not in _BY_LAYER_TYPE:  # a family that transformers 4 does not have, and says so
        return {}
    full = {**(parameters.get("full_attention") or {}), **scaling}
    sliding = parameters.get("sliding_attention") or {}
    full_key, sliding_key = _BY_LAYER_TYPE[kind]
    if _scaling(kind, sliding):
        return _told(kind, "the rotary embedding of its sliding layers is scaled")
    if sliding_key is None and sliding.get(_THETA, full.get(_THETA)) != full.get(_THETA):
        return _told(kind, "its sliding layers have another rope_theta than the others")
    older = {_SCALING: _scaling(kind, full) or None}
    if _THETA in full:
        older[full_key] = full[_THETA]
    if _THETA in sliding and sliding_key is not None:
        older[sliding_key] = sliding[_THETA]
    return older


def _scaling(kind: str, parameters: dict[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` of these parameters; empty for a plain rotary embedding, None for one that it cannot say."""
    named = parameters.get("rope_type", parameters.get("type", "default"))
    rest = {key: value for key, value in parameters.items() if key not in (_THETA, _PARTIAL, "rope_type")}
    if named == "default" and not {*rest} - {"type"}:
        return {}
    if kind not in _ONLY_FIELDS:
        return {"rope_type": named, **rest}
    rest.pop("type", None)
    rest.pop("original_max_position_embeddings", None)  # it stands beside rope_scaling there
    return {"type": named, **rest} if {"type", *rest} == set(_ONLY_FIELDS[kind]) else None


def _told(kind: str, what: str) -> dict[str, Any]:
    logger.warning("Transformers before 5 cannot read this %s checkpoint right: %s. Load it with 5.", kind, what)
    return {}


def _full_every(layer_types: Any) -> int | None:
    """n, where every n-th layer has full attention and all others slide."""
    if not isinstance(layer_types, list) or "full_attention" not in layer_types:
        return None
    every = layer_types.index("full_attention") + 1
    expected = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(len(layer_types))]
    return every if layer_types == expected else None


def _puts(post_processor: Any, token: Any) -> bool:
    """Whether a post-processor of tokenizer.json puts a token to a single text."""
    name = token.get("content") if isinstance(token, dict) else token
    steps = [post_processor, *(post_processor.get("processors") or [])] if isinstance(post_processor, dict) else []
    return name is not None and any(
        piece.get("SpecialToken", {}).get("id") == name
        for step in steps
        if step.get("type") == "TemplateProcessing"
        for piece in step.get("single", [])
    )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # whoever needs the file says so
        return None
    return values if isinstance(values, dict) else None


def _write(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    if now != before:
        path.write_text(json.dumps(now, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
