"""The held-out texts: sources.evaluation and those that evaluate.texts names, cut into windows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dass.errors import InputError
from dass.windows import consecutive_windows
from tasks.sources.documents import read_documents
from tasks.sources.pinned import pinned
from tasks.sources.tokens import bos_token, check_ids, digest_of_ids, tokenize
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings, Source

MAIN = "evaluation"
"""What sources.evaluation is called beside the names of evaluate.texts."""


@dataclass(frozen=True)
class Text:
    """One held-out text.

    Attributes:
        name: MAIN, or its name under evaluate.texts.
        windows_WL: token ids, LongTensor (W, L).
        documents: the texts that the windows were cut from.
        record: where it comes from and how much of it there is.
    """

    name: str
    windows_WL: Tensor
    documents: Sequence[str]
    record: dict[str, Any]


def read_texts(ws: Workspace, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> list[Text]:
    """Every text in the order of params.yaml, MAIN first.

    Raises:
        InputError: one is missing, empty, changed or shorter than a window, or has ids that the model does not embed.
    """
    named = {f"texts.{name}": source for name, source in settings.evaluate.texts.items()}
    bos = bos_token(settings.evaluate.bos, ws.base)
    return [
        _read(ws, settings, tokenizer, role, source, bos)
        for role, source in {MAIN: settings.sources.evaluation, **named}.items()
    ]


def _read(
    ws: Workspace,
    settings: Settings,
    tokenizer: PreTrainedTokenizerBase,
    role: str,
    source: Source,
    bos: int | None,
) -> Text:
    asked = settings.evaluate
    documents = read_documents(source, pinned(ws, role, source), ws.root)
    wanted = None if asked.samples is None else asked.samples * asked.sequence_length
    tokens_N = tokenize(tokenizer, documents.texts, wanted)
    try:
        windows_WL = consecutive_windows(tokens_N, asked.sequence_length, asked.samples, bos)
    except InputError as error:
        raise InputError(f"evaluate{'' if role == MAIN else f'.{role}'}: {error}") from None
    check_ids(ws.base, windows_WL)
    windows, length = windows_WL.shape
    scored = [_scored(tokenizer, ids) for ids in windows_WL.tolist()]
    record = {
        "source": {"uri": source.uri, "sha256": documents.sha256},
        "windows": windows,
        "tokens": windows * (length - 1),
        "words": sum(len(text.split()) for text in scored),
        "bytes": sum(len(text.encode("utf-8", "surrogatepass")) for text in scored),
        "digest": digest_of_ids(windows_WL),
    }
    return Text(role.removeprefix("texts."), windows_WL, documents.texts, record)


def _scored(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    """What the predicted tokens of a window say: all but the first.

    Taken off a decoding of the whole window, since some tokenizers leave out the space that a text starts with.
    """
    whole, first = str(tokenizer.decode(ids)), str(tokenizer.decode(ids[:1]))
    return whole.removeprefix(first) if whole.startswith(first) else str(tokenizer.decode(ids[1:]))
