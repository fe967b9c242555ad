"""Loads checkpoint folders with whatever transformers is on the path, and writes down what it makes of them.

Run as a program in an environment of an older transformers; imported for `read_folders` in ours. Imports nothing of
this repository.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "<s> the model keeps half of its weights, 123 rivers  and bread</s>"


def read_folder(folder: Path) -> dict[str, Any]:
    """Logits of fixed tokens, the tokens of a text, and what greedy decoding adds to it; as nested lists."""
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    model, loading = loaded
    tokens = torch.arange(2, 50)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        logits = model.eval()(tokens).logits[0].float()
    found: dict[str, Any] = {
        "version": transformers.__version__,
        "missing": sorted(loading["missing_keys"]),
        "dtype": str(model.dtype),
        "logits": logits.tolist(),
        "generated": model.generate(tokens, max_new_tokens=4, do_sample=False)[0].tolist(),
    }
    if (folder / "tokenizer_config.json").is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder)
        found |= {"ids": tokenizer(TEXT)["input_ids"], "ends": [tokenizer.bos_token, tokenizer.eos_token]}
    return found


def read_folders(folders: list[Path]) -> dict[str, Any]:
    """By folder; an error's text where it cannot be read."""
    found: dict[str, Any] = {}
    for folder in folders:
        try:
            found[str(folder)] = read_folder(folder)
        except Exception as error:  # whatever: the test says which folder
            found[str(folder)] = f"{type(error).__name__}: {error}"
    return found


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    Path(sys.argv[1]).write_text(json.dumps(read_folders([Path(name) for name in sys.argv[2:]])))
