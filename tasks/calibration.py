"""The calibration cache: the windows of text that statistics are taken on."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dass.errors import InputError
from dass.files import complete_folder, read_json, write_json
from dass.model.checkpoint import Checkpoint
from dass.model.memory import weights_fit
from dass.model.pretrained import load_model, load_tokenizer
from dass.model.sampling import sampled_windows
from dass.windows import random_windows, windows_each
from tasks.sources.calibrated_on import SELF
from tasks.sources.documents import read_documents
from tasks.sources.pinned import pinned, setting_of
from tasks.sources.tokens import bos_token, check_context, check_ids, digest_of_ids, encode, first_token
from tasks.workspace.devices import choose_device, choose_dtype
from tasks.workspace.folder import Workspace
from tasks.workspace.progress import progress_bar
from tasks.workspace.settings import Settings, Source

MAIN_SET = "calibration"


@dataclass(frozen=True)
class _Part:
    """The windows of one source, LongTensor (W, L), and what they were made from."""

    windows_WL: Tensor
    record: dict[str, Any]


def cache_windows(ws: Workspace, settings: Settings) -> None:
    """Draw the calibration windows and write artifacts/calibration: tokens.safetensors and calibration.json.

    The same texts, tokenizer and settings give the same bytes. So does the same model on the same kind of device, with
    the same thread count and libraries.

    Raises:
        InputError: a text is missing, empty, changed or too short, a window is longer than the model's context, or the
            model cannot write text here.
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
    asked = settings.calibration
    check_context(ws.base, asked.sequence_length, "calibration.sequence_length")
    shares = [Fraction(str(text.share)) for text in asked.texts.values()]
    counts = windows_each(asked.samples, [1 - sum(shares, Fraction(0)), *shares])
    for name, count in zip(["source", *(f"texts.{name}" for name in asked.texts)], counts, strict=True):
        if count == 0:
            raise InputError(
                f"calibration.{name} gets none of {asked.samples} windows: its share is too small. Raise "
                "calibration.samples, or the share."
            )
    drawing = _Drawing(ws, settings)
    # Texts first: what is wrong with them is told before the model writes.
    texts = {
        name: drawing.from_text(f"calibration_texts.{name}", source, count)
        for (name, source), count in zip(asked.texts.items(), counts[1:], strict=True)
    }
    if asked.source == "self":
        main = drawing.from_model(counts[0])
    else:
        main = drawing.from_text("calibration", settings.sources.calibration, counts[0])
    parts = {asked.source if asked.source == SELF else "calibration": main, **texts}
    order = torch.arange(asked.samples)
    if texts:  # so that any stretch of windows holds some of each
        order = torch.randperm(asked.samples, generator=torch.Generator().manual_seed(asked.seed))
    input_ids = torch.cat([part.windows_WL for part in parts.values()])[order]
    check_ids(ws.base, input_ids)
    of_window = [name for name, part in parts.items() for _ in part.windows_WL]
    record: dict[str, Any] = {
        "source": main.record,
        "texts": {name: part.record for name, part in texts.items()},
        "window_sources": [of_window[window] for window in order.tolist()] if texts else None,
        "tokenizer": read_json(ws.base / "source.json")["tokenizer"],
        "settings": asked.model_dump(),
        "bos": drawing.bos is not None,
        "documents": sum(part.record.get("documents", 0) for part in parts.values()),
        "tokens": input_ids.numel(),
        "digest": digest_of_ids(input_ids),
    }
    return input_ids.contiguous(), record


def set_names(settings: Settings) -> list[str]:
    """What single sources can give calibration windows: sources.calibration, each of calibration.texts, the model."""
    return [MAIN_SET, *settings.calibration.texts, SELF]


def windows_of_set(ws: Workspace, settings: Settings, name: str) -> Tensor:
    """All windows that section `calibration` asks for out of one source, whatever its share, LongTensor (W, L).

    Args:
        ws: with a base checkpoint.
        settings: samples, sequence_length, seed and BOS of the windows.
        name: of `set_names`.

    Raises:
        InputError: as `cache_windows`.
    """
    asked = settings.calibration
    check_context(ws.base, asked.sequence_length, "calibration.sequence_length")
    drawing = _Drawing(ws, settings)
    if name == SELF:
        part = drawing.from_model(asked.samples)
    elif name == MAIN_SET:
        part = drawing.from_text("calibration", settings.sources.calibration, asked.samples)
    else:
        part = drawing.from_text(f"calibration_texts.{name}", asked.texts[name], asked.samples)
    check_ids(ws.base, part.windows_WL)
    return part.windows_WL


class _Drawing:
    """What all sources of one cache have in common."""

    def __init__(self, ws: Workspace, settings: Settings) -> None:
        self._ws, self._asked, self._engine = ws, settings.calibration, settings.engine
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(ws.base)
        self.bos = bos_token(self._asked.bos, ws.base)

    def from_text(self, role: str, source: Source, samples: int) -> _Part:
        """Windows out of a text."""
        documents = read_documents(source, pinned(self._ws, role, source), self._ws.root)
        try:
            windows_WL = random_windows(
                lambda document: encode(self._tokenizer, documents.texts[document]),
                documents=len(documents.texts),
                sequence_length=self._asked.sequence_length,
                samples=samples,
                seed=self._asked.seed,
                bos=self.bos,
            )
        except InputError as error:
            raise InputError(f"{setting_of(role).removeprefix('sources.')}: {error}") from None
        return _Part(
            windows_WL,
            {
                "uri": source.uri,
                "sha256": documents.sha256,
                "documents": len(documents.texts),
                "windows": samples,
            },
        )

    def from_model(self, samples: int) -> _Part:
        """Windows that the dense model writes, each behind the token that starts its texts."""
        asked, base = self._asked, self._ws.base
        length = asked.sequence_length - (self.bos is not None)
        start = first_token(base) if self.bos is None else self.bos
        device = choose_device(self._engine.device)
        checkpoint = Checkpoint(base)
        dtype = choose_dtype(self._engine.dtype, checkpoint.main_dtype, device)
        if not weights_fit(checkpoint, dtype, device):
            raise InputError(
                'calibration.source is "self", and the model is larger than the free memory: it would be read once for '
                "every token. Use calibration.source: text."
            )
        model = load_model(base, dtype).to(device)  # type: ignore[arg-type]
        with progress_bar(samples * length, "the model writes", "tokens") as advance:
            windows_WL = sampled_windows(
                model,
                start,
                samples,
                length,
                seed=asked.seed,
                temperature=asked.temperature,
                top_k=asked.top_k,
                on_tokens=advance,
            )
        if self.bos is not None:
            windows_WL = torch.cat([torch.full((samples, 1), self.bos), windows_WL], dim=1)
        made = {
            "start": start,
            "device": device.type,
            "dtype": str(dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        digest = read_json(base / "source.json")["digest"]
        return _Part(windows_WL, {"uri": SELF, "sha256": digest, "windows": samples, "made": made})
