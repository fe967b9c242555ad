"""A model as lm_eval asks it: transformers' own, loaded by us, every finished batch written down.

Imports lm_eval, which takes seconds: import this inside a function.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dass.errors import InputError, NumericalError
from tasks.evaluation.request_log import RequestLog, request_key


class HarnessModel(HFLM):
    """lm_eval's own model class over a loaded model. It tells when a batch begins, and refuses ids it cannot embed."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=rows)
        self.before_batch: Callable[[], None] = lambda: None
        embedding: Any = model.get_input_embeddings()
        self._embedded = len(embedding.weight)

    def _model_call(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.before_batch()
        return super()._model_call(*arguments, **options)

    def _model_generate(self, *arguments: Any, **options: Any) -> torch.Tensor:
        self.before_batch()
        return super()._model_generate(*arguments, **options)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        for request in requests:
            new = request.args[1].get("max_gen_toks", self.max_gen_toks)
            if new >= self.max_length:
                raise InputError(
                    f"{request.task_name} lets a model write {new} tokens, and its context is {self.max_length}: "
                    "expected a longer one. Leave the task out of evaluate.tasks."
                )
        answers: list[str] = super().generate_until(requests, disable_tqdm=disable_tqdm)
        return answers

    def tok_encode(self, string: str, *arguments: Any, **options: Any) -> list[int]:
        ids: list[int] = super().tok_encode(string, *arguments, **options)
        if ids and max(ids) >= self._embedded:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise InputError(
                f"A task's prompt holds token id {max(ids)} ({token!r}), and the model embeds {self._embedded} tokens. "
                "Put the model's own tokenizer into its folder."
            )
        return ids


class LoggedModel(LM):
    """Answers requests from a log, and what is not there by the model, which is loaded when it is first needed.

    Args:
        name: for messages: "dense arc_easy".
        load: gives the model.
        log: of answers; those that are asked now are added.
        advance: is told how many more requests are answered.
    """

    def __init__(
        self, name: str, load: Callable[[], HarnessModel], log: RequestLog, advance: Callable[[int], None]
    ) -> None:
        super().__init__()
        self._name, self._load, self._log, self._advance = name, load, log, advance
        self._batch: list[tuple[str, Any]] = []

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Any]:
        return self._answers("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Any]:
        return self._answers("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Any]:
        return self._answers("generate_until", requests)

    def add_partial(self, kind: str, arguments: Sequence[Any], answer: Any) -> None:
        """What lm_eval calls with every answer, as it does for a cache of its own."""
        numbers = answer if isinstance(answer, tuple) else [answer]
        if any(isinstance(number, float) and math.isnan(number) for number in numbers):
            raise NumericalError(
                f"The {self._name}: the model computes NaN. Choose engine.dtype float32, or another model."
            )
        self._batch.append((request_key(kind, arguments), answer))

    def _answers(self, kind: str, requests: list[Instance]) -> list[Any]:
        answers = [self._log.take(request_key(kind, request.args)) for request in requests]
        missing = [index for index, answer in enumerate(answers) if answer is None]
        self._advance(len(requests) - len(missing))
        if missing:
            model = self._load()
            model.before_batch = self._finish_batch
            model.set_cache_hook(self)
            fresh = getattr(model, kind)([requests[index] for index in missing], disable_tqdm=True)
            self._finish_batch()
            for index, answer in zip(missing, fresh, strict=True):
                answers[index] = answer
        return [tuple(answer) if isinstance(answer, list) else answer for answer in answers]

    def _finish_batch(self) -> None:
        if self._batch:
            self._log.add(self._batch)
            self._advance(len(self._batch))
            self._batch = []
