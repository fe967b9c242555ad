"""The sizes of a model that is here, read from its config or its GGUF header; no weight is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dass.errors import InputError
from dass.files import read_json
from tasks.sources.downloads import SCHEME
from tasks.sources.hub import HubId
from tasks.sources.locate import locate
from tasks.workspace.cache_folder import cache_folder
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, Source

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes.

    Attributes:
        layers: decoder layers.
        hidden: width of the hidden states.
        intermediate: neurons of an MLP, or of one expert.
        queries, keys: width of all query heads, of all key heads.
        vocabulary: rows of the embedding.
        tied: whether the head is the embedding.
        experts, active: MLPs a layer has, and how many of them a token goes through; both 1 without experts.
        bytes_each: of a stored weight.
    """

    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    tied: bool
    experts: int = 1
    active: int = 1
    bytes_each: int = 2

    @property
    def attention(self) -> int:
        """Weights of a layer's attention."""
        return self.hidden * 2 * (self.queries + self.keys)

    @property
    def mlp(self) -> int:
        """Weights of one MLP, or of one expert."""
        return 3 * self.hidden * self.intermediate

    @property
    def head(self) -> int:
        """Weights of the head."""
        return self.vocabulary * self.hidden

    @property
    def mlp_weights(self) -> int:
        """Weights that pruning chooses from."""
        return self.layers * self.experts * self.mlp

    @property
    def weights(self) -> int:
        """Weights of the whole model."""
        return self.layers * self.attention + self.mlp_weights + self.head * (1 if self.tied else 2)


def shape_of(ws: Workspace, settings: Settings) -> Shape | None:
    """The sizes of the workspace's model; None: it is not here yet, or says them in a way that is not known here."""
    source = settings.sources.model
    record = ws.base / "source.json"
    try:
        if record.is_file() and read_json(record).get("uri") == source.uri:
            return of_config(read_json(ws.base / "config.json"))
        where = model_file(source, ws.root)
        if where is None:
            return None
        if where.is_dir():
            return of_config(read_json(where / "config.json"), settings.sources.dtype)
        return of_gguf(where, 2 if settings.sources.dtype == "auto" else _BYTES[settings.sources.dtype])
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return None


def model_file(source: Source, root: Path) -> Path | None:
    """Where a model lies on this machine, its wheel's file in the cache included; None: it has to be fetched."""
    uris = [source.uri] if isinstance(source.uri, str) else source.uri
    if uris[0].startswith(SCHEME):
        kept = cache_folder() / "sha256" / str(source.sha256)
        return kept if kept.is_file() else None
    found = locate(source, root)
    return None if isinstance(found, HubId) else found


def of_config(config: dict[str, Any], stored_as: str = "auto") -> Shape:
    """The sizes that a transformers config names, its weights stored in another type than it says unless "auto"."""
    text = {**config, **config.get("text_config", {})}
    heads = text["num_attention_heads"]
    width = text.get("head_dim") or text["hidden_size"] // heads
    experts = next((text[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(key)), 1)
    dtype = stored_as if stored_as != "auto" else text.get("dtype") or text.get("torch_dtype")
    return Shape(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=(text.get("moe_intermediate_size") if experts > 1 else None) or text["intermediate_size"],
        queries=heads * width,
        keys=(text.get("num_key_value_heads") or heads) * width,
        vocabulary=text["vocab_size"],
        tied=bool(text.get("tie_word_embeddings", False)),
        experts=experts,
        active=text.get("num_experts_per_tok") or 1,
        bytes_each=_BYTES.get(str(dtype), 2),
    )


def of_gguf(file: Path, bytes_each: int) -> Shape:
    """The sizes that a GGUF header names."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    kind = reader.fields["general.architecture"].contents()
    said = {name.removeprefix(f"{kind}."): field for name, field in reader.fields.items()}
    hidden, heads = (int(said[name].contents()) for name in ("embedding_length", "attention.head_count"))

    def number(name: str, otherwise: int) -> int:
        return int(said[name].contents()) if name in said else otherwise

    width = number("attention.key_length", hidden // heads)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    return Shape(
        layers=int(said["block_count"].contents()),
        hidden=hidden,
        intermediate=int(said["feed_forward_length"].contents()),
        queries=heads * width,
        keys=number("attention.head_count_kv", heads) * width,
        vocabulary=int(tensors["token_embd.weight"].shape[1]),
        tied="output.weight" not in tensors,
        experts=number("expert_count", 1) or 1,
        active=number("expert_used_count", 1) or 1,
        bytes_each=bytes_each,
    )
