"""A run as a model of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness, 0.4), so that all its tasks can be
asked: `lm_eval.simple_evaluate(model="dskc", model_args="run=FOLDER", ...)` once this module is imported, or

    python -m dskc.runtime.eval.harness --model dskc --model_args run=FOLDER --tasks hellaswag

which is lm-eval's own command, with all its options, and this model known to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..problem import Problem
from ..serve.sampling import Sampler, greedy
from ..train.stop import stop_on_problem
from .decode import Prompt, Sample, generate_all
from .encode import encode, pair
from .progress import progress
from .score import Work, loglikelihoods
from .settings import INSTALL
from .subject import Subject, open_subject
from .windows import windows

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise Problem(f"lm-eval is not installed ({error})", INSTALL) from error

MAX_TOKENS = 256  # to generate where a task does not say, as lm-eval's own models
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one thing, in this order


@register_model("dskc")
class RunLM(LM):  # type: ignore[misc]  # lm-eval has no types
    """A run's model for lm-eval.

    run: folder. batch_tokens: of a batch, filled up. max_length: tokens that it sees at once. The other arguments are
    those of `open_subject`. batch_size and max_batch_size, which lm-eval gives every model, mean nothing here: batches
    are filled by tokens. Raises Problem as `open_subject` does.
    """

    def __init__(
        self,
        run: str | Path | Subject,
        checkpoint: int | str | None = None,
        device: str | None = None,
        precision: str | None = None,
        max_length: int | None = None,
        prefix: str | None = None,
        batch_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = "auto"  # lm-eval's command says cuda:0 where nobody said anything
        self.subject = (
            run
            if isinstance(run, Subject)
            else open_subject(
                Path(run),
                checkpoint,
                device or "auto",
                precision,
                max_length,
                prefix if prefix is None else str(prefix),
            )
        )
        self.work = Work(batch_tokens)
        self._device = self.subject.device

    @property
    def max_length(self) -> int:
        return self.subject.length

    @property
    def max_gen_toks(self) -> int:
        return MAX_TOKENS

    @property
    def eot_token_id(self) -> int:
        return self.subject.prefix

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval keys its cache of requests by."""
        return f"{self.subject.run.resolve()}/tokenizer.json"

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding gives it) of each request's (context, continuation)."""
        asked = [pair(self.subject, *request.args) for request in requests]
        scored = self._with_progress(
            "log-likelihoods", len(asked), disable_tqdm, lambda work: loglikelihoods(self.subject, asked, work)
        )
        found = [(each.loglikelihood, each.greedy) for each in scored]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each request's text, in windows where it is long."""
        texts = [encode(self.subject, request.args[0]) for request in requests]
        cut = [list(windows(tokens, self.subject.prefix, self.subject.length)) for tokens in texts]
        asked = [window for each in cut for window in each]
        scored = iter(
            self._with_progress(
                "texts", len(asked), disable_tqdm, lambda work: loglikelihoods(self.subject, asked, work)
            )
        )
        found = [sum(next(scored).loglikelihood for _ in each) for each in cut]
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answer)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each request's context, by its options: `until`, the most tokens, and of sampling."""
        groups: dict[str, list[int]] = {}  # requests that sample alike
        for index, request in enumerate(requests):
            groups.setdefault(repr(_sampling(request.args[1])), []).append(index)
        found: dict[int, str] = {}
        for indices in groups.values():
            prompts = [self._prompt(*requests[index].args) for index in indices]
            sample = _sample(requests[indices[0]].args[1])
            texts = self._with_progress("answers", len(prompts), disable_tqdm, self._answering(prompts, sample))
            found |= dict(zip(indices, texts, strict=True))
        for index, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[index])
        return [found[index] for index in range(len(requests))]

    def _answering(self, prompts: Sequence[Prompt], sample: Sample) -> Callable[[Work], list[str]]:
        return lambda work: generate_all(self.subject, prompts, work, sample)

    def _prompt(self, context: str, options: Mapping[str, Any]) -> Prompt:
        until = options.get("until") or ()
        most = next((int(options[name]) for name in LIMITS if options.get(name) is not None), MAX_TOKENS)
        return Prompt(tuple(encode(self.subject, context)), most, tuple([until] if isinstance(until, str) else until))

    def _with_progress(self, what: str, total: int, quiet: bool, run: Callable[[Work], list[Any]]) -> list[Any]:
        if quiet:
            return run(Work(self.work.batch_tokens, pace=self.work.pace))
        with progress(what, total) as advance:
            return run(Work(self.work.batch_tokens, advance, self.work.pace))


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """temperature, top_k, top_p: greedy unless `do_sample`, or a temperature, says otherwise."""
    temperature = float(options.get("temperature") or 0.0)
    if options.get("do_sample", temperature > 0):
        return {"temperature": temperature or 1.0, "top_k": options.get("top_k"), "top_p": options.get("top_p")}
    return {"temperature": 0.0}


def _sample(options: Mapping[str, Any]) -> Sample:
    chosen = _sampling(options)
    return Sampler(**chosen) if chosen["temperature"] else greedy


def main() -> None:
    """lm-eval's command line."""
    from lm_eval.__main__ import cli_evaluate

    stop_on_problem(cli_evaluate)


if __name__ == "__main__":
    main()
