"""Whether a test text leaked into the calibration: the share of its 13-grams that the calibration windows hold.

What recovery is trained on counts as calibration: `calibration_grams` knows those windows too.

13 tokens in a row, as GPT-3's authors took them (arXiv 2005.14165, appendix C): shorter runs are shared by chance.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dass.files import read_json
from tasks.sources.calibrated_on import sources_of
from tasks.workspace.folder import Workspace

GRAM = 13
_ROWS = 1 << 16


class CalibrationGrams:
    """The 13-grams of the calibration windows.

    Args:
        sets: token ids, a LongTensor (W, L) each, without a BOS token.
    """

    def __init__(self, *sets: Tensor) -> None:
        self._known = {gram for windows_WL in sets for gram in _grams(windows_WL)}

    def share_of(self, texts: Iterable[Tensor]) -> dict[str, Any]:
        """{"share": of the texts' 13-grams that are among these, "grams": how many they have}.

        Args:
            texts: token ids, a LongTensor (N,) each; one shorter than 13 tokens has no 13-gram. Without any in all of
                them the share is None: nothing was looked at.
        """
        grams = found = 0
        for ids_N in texts:
            for gram in _grams(ids_N):
                grams += 1
                found += gram in self._known
        return {"share": found / grams if grams else None, "grams": grams}


def calibration_grams(ws: Workspace) -> CalibrationGrams:
    """Those of artifacts/calibration, and of the windows that were drawn for recovery."""
    files = [folder / "tokens.safetensors" for folder in (ws.calibration, ws.recovered)]
    sets = [load_file(file)["input_ids"] for file in files if file == files[0] or file.exists()]
    has_bos = read_json(ws.calibration / "calibration.json")["bos"]
    return CalibrationGrams(*(windows_WL[:, 1:] if has_bos else windows_WL for windows_WL in sets))


def overlaps(ws: Workspace, texts: dict[str, dict[str, Any]], windows: dict[str, Tensor], bos: bool) -> dict[str, Any]:
    """Each text's overlap with the calibration, by name.

    A text that the calibration windows were drawn from overlaps whole, whichever parts of it they hold.

    Args:
        ws: where artifacts/calibration is.
        texts: name -> record, with "source".
        windows: name -> LongTensor (W, L).
        bos: whether each window starts with a BOS token.
    """
    sources = sources_of(read_json(ws.calibration / "calibration.json")).values()
    calibrated_on = {source["sha256"] for source in sources}
    known = calibration_grams(ws)
    found = {}
    for name, record in texts.items():
        windows_WL = windows[name]
        found[name] = known.share_of((windows_WL[:, 1:] if bos else windows_WL).unbind())
        if record["source"]["sha256"] in calibrated_on:
            found[name]["share"] = 1.0
    return found


def _grams(ids: Tensor) -> Iterator[bytes]:
    """Every run of GRAM ids along the last axis, as bytes."""
    if ids.shape[-1] < GRAM:
        return
    for rows in ids.to(torch.int32).unfold(-1, GRAM, 1).reshape(-1, GRAM).split(_ROWS):
        content, width = rows.contiguous().numpy().tobytes(), 4 * GRAM
        yield from (content[start : start + width] for start in range(0, len(content), width))
