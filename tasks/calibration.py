"""The calibration cache: the windows of text that statistics are taken on."""

from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from dass.errors import InputError
from dass.files import complete_folder, read_json, write_json
from dass.model.pretrained import load_tokenizer
from dass.windows import random_windows
from tasks.sources.documents import read_documents
from tasks.sources.pinned import pinned
from tasks.sources.tokens import bos_token, check_context, check_ids, digest_of_ids, encode
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import Settings


def cache_windows(ws: Workspace, settings: Settings) -> None:
    """Draw the calibration windows and write artifacts/calibration: tokens.safetensors and calibration.json.

    The same text, tokenizer and settings give the same bytes.

    Raises:
        InputError: the text is missing, empty, changed or too short, or a window is longer than the model's context.
    """
    input_ids, record = drawn_windows(ws, settings)
    with complete_folder(ws.calibration) as folder:
        save_file({"input_ids": input_ids}, folder / "tokens.safetensors")
        write_json(folder / "calibration.json", record)


def drawn_windows(ws: Workspace, settings: Settings) -> tuple[Tensor, dict[str, Any]]:
    """The windows that section `calibration` asks for, LongTensor (W, L), and what calibration.json says of them.

    Raises:
        InputError: as `cache_windows`.
    """
    asked, source = settings.calibration, settings.sources.calibration
    check_context(ws.base, asked.sequence_length, "calibration.sequence_length")
    documents = read_documents(source, pinned(ws, "calibration", source), ws.root)
    tokenizer = load_tokenizer(ws.base)
    bos = bos_token(asked.bos, ws.base)
    try:
        input_ids = random_windows(
            lambda document: encode(tokenizer, documents.texts[document]),
            documents=len(documents.texts),
            sequence_length=asked.sequence_length,
            samples=asked.samples,
            seed=asked.seed,
            bos=bos,
        )
    except InputError as error:
        raise InputError(f"calibration: {error}") from None
    check_ids(ws.base, input_ids)
    record: dict[str, Any] = {
        "source": {"uri": source.uri, "sha256": documents.sha256},
        "tokenizer": read_json(ws.base / "source.json")["tokenizer"],
        "settings": asked.model_dump(),
        "bos": bos is not None,
        "documents": len(documents.texts),
        "tokens": input_ids.numel(),
        "digest": digest_of_ids(input_ids),
    }
    return input_ids.contiguous(), record
