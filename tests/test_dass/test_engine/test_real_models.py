"""`dass.prune` on real weights: SmolLM2-135M (LLaMA family) and Gemma-3-270m (GeGLU, sliding layers)."""

import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dass
from benchmarks.masks import check_bits, check_shares
from benchmarks.perplexity import METHODS, PATTERNS
from dass.model.pretrained import load_model
from tasks.calibration import cache_windows
from tasks.versioning.pins import refresh_pins
from tasks.workspace.folder import Workspace
from tasks.workspace.settings import load_settings
from tests.models import fast_dtype

ROOT = Path(__file__).parents[3]
PARAMS = {"smollm2-135m": ROOT / "params.yaml", "gemma-3-270m": ROOT / "examples" / "gemma-3-270m" / "params.yaml"}


@pytest.fixture(scope="module", params=["smollm2-135m", pytest.param("gemma-3-270m", marks=pytest.mark.slow)])
def prepared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, real_base: Callable[[Path], Path]
) -> Workspace:
    """A workspace with base and calibration windows."""
    workspace = Workspace(tmp_path_factory.mktemp(request.param))
    settings = load_settings(PARAMS[request.param])
    refresh_pins(workspace, settings)
    shutil.copytree(real_base(PARAMS[request.param]), workspace.base, copy_function=os.link)
    cache_windows(workspace, settings)
    return workspace


QUICK = {("dass", "unstructured"), ("dass", "2:4"), ("wanda", "4:8"), ("magnitude", "unstructured")}
"""Every method and every pattern once; tiny models have all pairs."""


def pairs() -> list[Any]:
    return [
        pytest.param(*pair, marks=[] if pair in QUICK else pytest.mark.slow, id="-".join(pair))
        for pair in product(METHODS, PATTERNS)
    ]


@pytest.mark.real
@pytest.mark.parametrize(("method", "pattern"), pairs())
def test_masks_keep_their_share_and_weights_their_bits(prepared: Workspace, method: str, pattern: str) -> None:
    model = load_model(prepared.base, fast_dtype(prepared.base))
    base = {name: value.clone() for name, value in model.state_dict().items()}
    input_ids = load_file(prepared.calibration / "tokens.safetensors")["input_ids"][:1, :64]
    report = dass.prune(model, input_ids, method, pattern=pattern)
    layers = model.config.get_text_config().num_hidden_layers
    assert len(report.keep) == 3 * layers
    check_shares(report.keep, method, pattern)
    check_bits(base, model.state_dict(), report.keep)
    assert model(input_ids=input_ids[:1]).logits.isfinite().all()
    assert all(0 < (layer.relative_error or 0) < 1 for layer in report.layers)


def test_the_checks_above_can_fail() -> None:
    keep = {"up_proj": torch.tensor([[True, False], [True, False]])}
    with pytest.raises(AssertionError, match="does not keep 1"):
        check_shares(keep, "dass", "unstructured")
    base = {"up_proj": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    check_bits(base, {"up_proj": torch.tensor([[1.0, 0.0], [3.0, 0.0]])}, keep)
    for wrong in ([[1.0, -0.0], [3.0, 0.0]], [[1.0, 1e-30], [3.0, 0.0]], [[1.0000001, 0.0], [3.0, 0.0]]):
        with pytest.raises(AssertionError, match="not its base times its mask"):
            check_bits(base, {"up_proj": torch.tensor(wrong)}, keep)
