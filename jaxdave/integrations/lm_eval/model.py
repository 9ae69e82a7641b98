"""lm-evaluation-harness's view of a jaxdave model; importing this registers `jaxdave`.

    lm_eval.simple_evaluate(model=JaxDave(model="sdar-1m"), tasks=[...])

The harness hands over all requests of a kind at once and lets the model batch them.
Texts are those of `jaxdave generate` under the same settings; log-likelihoods are those
of `jaxdave.eval.likelihood`.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import lm_eval.models  # noqa: F401  # pyright: ignore
from lm_eval.api.model import TemplateLM  # pyright: ignore
from lm_eval.api.registry import register_model  # pyright: ignore
from tqdm import tqdm

import jaxdave
from jaxdave.core.config import Numerics
from jaxdave.engine.decode_config import DecodeConfig
from jaxdave.engine.decoders import Decoder, make_decoder
from jaxdave.engine.generation import generate
from jaxdave.eval.likelihood import masks
from jaxdave.eval.likelihood.batching import (
    Question,
    greedy_texts,
    log_likelihoods,
)
from jaxdave.eval.likelihood.score import Scorer, make_scorer
from jaxdave.integrations.lm_eval import lm_requests, options, stats
from jaxdave.integrations.lm_eval.generate_until import generate_answers
from jaxdave.integrations.lm_eval.stats import TextStats
from jaxdave.io import checkpoint
from jaxdave.io.chat_template import parse_template_args
from jaxdave.io.special_tokens import special_tokens_map
from jaxdave.io.tokenizer_backend import open_tokenizer


class JaxDave(TemplateLM):
    """A masked diffusion model, decoded with drafts.

    Attributes:
        text_stats: What every text has taken that was decoded so far; summed up in the
            harness's results as `config.jaxdave_stats`.
    """

    last_stats: ClassVar[list[TextStats]] = []
    """Those of the model made last, which on the command line is gone by the end."""

    def __init__(self, model: str | checkpoint.Model | None = None, **args: Any):
        """Load the model, unless it is loaded.

        Args:
            model: A name, folder or Hub id, or a model; None: as `args` say.
            **args: As `--model_args` (`options.read`).

        Raises:
            ValueError: An argument is unknown or out of range, or does not fit the
                model.
        """
        super().__init__()
        if isinstance(model, str):
            args["model"] = model
        self.options = options.read(args)
        settings, reading = self.options.settings, self.options.reading
        if not isinstance(model, checkpoint.Model):
            load = self.options.load
            model = checkpoint.load(
                load.model,
                dtype=load.dtype,
                block_length=settings.block_length,
                mask_id=reading.mask_id,
                quantize=load.quantize,
                mesh=load.mesh,
            )
        self.model = model
        words = filter(None, reading.template_args.split(";"))
        self.codec = model.codec.with_template_args(**parse_template_args(list(words)))
        # What is out of range is said here, before any task is loaded.
        room = settings.max_new_tokens or 1
        self._decoder(lm_requests.with_max_new_tokens(settings, self.model, room))
        scored = self.options.scoring.scored
        if scored == "context" and self.model.config.attention != "full":
            raise ValueError(
                f"scored={scored!r} needs full attention, and {self.model.name!r} is "
                "block-causal; use target or both"
            )
        bos = special_tokens_map(self.model.folder).get("bos_token")
        if reading.add_bos_token and bos is None:
            raise ValueError(
                f"add_bos_token=True, but {self.model.name!r} has no bos_token; leave "
                "it out"
            )
        self._bos = bos if reading.add_bos_token and bos else ""

        self.text_stats: list[TextStats] = []
        JaxDave.last_stats = self.text_stats

    def get_model_info(self) -> dict[str, Any]:
        """What the harness adds to its results, once it has all texts."""
        info: dict[str, Any] = {
            "jaxdave_version": jaxdave.__version__,
            "jaxdave_settings": self.options.to_dict(),
        }
        if self.text_stats:
            info["jaxdave_stats"] = stats.summary(self.text_stats)
        return info

    # Texts and ids.

    @property
    def tokenizer_name(self) -> str:
        """What the harness's cache of requests is called by."""
        return self.model.name.replace("/", "__")

    @property
    def eot_token_id(self) -> int:
        return self.codec.pad_id

    def tok_encode(self, string: str, add_special_tokens=None, **kwargs) -> list[int]:
        """The ids of a text as it stands, markup and all.

        Args:
            string: The text.
            add_special_tokens: False: no bos token in front, whatever the options say.
            **kwargs: Ignored; other models of the harness take more.

        Returns:
            Token ids.
        """
        bos = "" if add_special_tokens is False else self._bos
        text = string if string.startswith(bos) else bos + string
        return self.codec.encode_text(text)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template as the checkpoint has it.

        Args:
            chat_template: False where the harness wants none. Names of templates, which
                it may pass, are not told apart: a checkpoint has one.

        Returns:
            Its Jinja source, or None.
        """
        return (
            open_tokenizer(self.model.folder).chat_template if chat_template else None
        )

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation and the opening of the answer.

        Args:
            chat_history: Messages with "role" and "content".
            add_generation_prompt: Open a new answer. Otherwise the last message is how
                the answer begins, and is left open.

        Returns:
            The text.

        Raises:
            ValueError: The last message is to be continued and is not the assistant's.
        """
        if add_generation_prompt:
            return self.codec.render(chat_history)
        *before, last = chat_history
        if last["role"] != "assistant":
            raise ValueError(
                f"the last message is of role {last['role']!r} and must be the "
                "assistant's to be continued; ask for a generation prompt"
            )
        return self.codec.render(before) + last["content"]

    # Generation.

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """The text of each request, cut before the first of its stop strings.

        Args:
            requests: `Instance`s of the harness, whose arguments are a context and
                settings.
            disable_tqdm: Show no progress bar.

        Returns:
            Texts in the order of the requests.
        """
        asked = [
            lm_requests.generation_request(
                self.options, self.model, self.tok_encode, *one.args[:2]
            )
            for one in requests
        ]
        texts = [""] * len(requests)
        results = generate_answers(
            self._decoder,
            self.model.params,
            self.codec.decode,
            asked,
            batch_size=self.options.batch_size,
            seed=self.options.settings.seed,
        )
        # Batches end in their own order; texts are put back in that of the requests.
        records: dict[int, TextStats] = {}
        for index, answer in _bar(results, len(requests), "texts", disable_tqdm):
            texts[index] = text = answer.text
            records[index] = stats.text_stats(requests[index], answer)
            self.cache_hook.add_partial("generate_until", requests[index].args, text)
        self.text_stats += (records[index] for index in range(len(requests)))
        if self.options.reporting.stats_file:
            stats.write_lines(Path(self.options.reporting.stats_file), self.text_stats)
        return texts

    def _decoder(self, settings: DecodeConfig) -> Decoder:
        model = self.model
        return make_decoder(model.config, settings, tables=model.tables)

    # Log-likelihoods.

    def _encode_pair(self, context: str, continuation: str):
        return lm_requests.encode_pair(self.tok_encode, context, continuation)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs):
        max_length = lm_requests.max_length(self.options, self.model)
        # A target is scored after a context: where
        # the harness gives none, after one token.
        questions = [
            lm_requests.likelihood_question(
                context or [self.prefix_token_id], target, max_length
            )
            for _, context, target in requests
        ]
        is_greedy = self._are_greedy(questions)
        scored = self.options.scoring.scored
        asked = [lm_requests.scored_question(one, scored) for one in questions]
        results: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        for index, value in self._scores(asked, disable_tqdm):
            if scored == "both":
                value /= len(asked[index].target)
            results[index] = value, is_greedy[index]
            args = requests[index][0]
            self.cache_hook.add_partial("loglikelihood", args, results[index])
        return results

    def loglikelihood_rolling(
        self, requests, disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each text, as the sum over its windows.

        Args:
            requests: `Instance`s of the harness, whose argument is a text.
            disable_tqdm: Show no progress bar.

        Returns:
            Log-likelihoods in nats, in the order of the requests. A window does not see
            those before it.
        """
        max_length = lm_requests.max_length(self.options, self.model)
        windows_of = [
            lm_requests.rolling_windows(
                self.tok_encode(one.args[0]), self.prefix_token_id, max_length
            )
            for one in requests
        ]
        # Windows of all texts are scored together, so that batches are full; each adds
        # to the sum of the text that owns it.
        owner = [index for index, windows in enumerate(windows_of) for _ in windows]
        windows = [window for windows in windows_of for window in windows]
        pending, sums = Counter(owner), [0.0] * len(requests)
        for at, value in self._scores(windows, disable_tqdm):
            index = owner[at]
            pending[index] -= 1
            sums[index] += value
            if not pending[index]:
                args = requests[index].args
                self.cache_hook.add_partial("loglikelihood_rolling", args, sums[index])
        return sums

    def _scores(self, questions: Sequence[Question], disable_tqdm: bool):
        """(index, log-likelihood) of those that are not empty."""
        scoring = self.options.scoring
        full = [index for index, one in enumerate(questions) if one.target]
        results = log_likelihoods(
            self._scorer(),
            self.model.params,
            [questions[index] for index in full],
            masks.RULES[scoring.likelihood](scoring.mc_num),
            seed=self.options.settings.seed,
            batch_size=self.options.batch_size,
        )
        for at, value in _bar(results, len(full), "log-likelihoods", disable_tqdm):
            yield full[at], value

    def _scorer(self) -> Scorer:
        settings = self.options.settings
        return make_scorer(
            self.model.config,
            numerics=settings.numerics or Numerics.GUARDED,
            block_length=settings.block_length,
            guidance=settings.guidance,
        )

    def _are_greedy(self, questions: Sequence[Question]) -> list[bool]:
        """True where the model, decoded greedily, writes the target.

        Under full attention a text depends on its room: that is the target's length,
        and a step is one token, as in LLaDA's evaluation. Block-causal models are
        decoded as the options say. All are False unless `Scoring.is_greedy`.
        """
        if not self.options.scoring.is_greedy:
            return [False] * len(questions)
        if self.model.config.attention != "full":
            return [self._is_greedy(question) for question in questions]
        full = [index for index, one in enumerate(questions) if one.target]
        found = greedy_texts(
            self._scorer(),
            self.model.params,
            [questions[index] for index in full],
            batch_size=self.options.batch_size,
        )
        is_greedy = {full[at]: value for at, value in found}
        return [is_greedy.get(index, True) for index in range(len(questions))]

    def _is_greedy(self, question: Question) -> bool:
        """True if a block-causal model, decoded greedily, writes the target."""
        if not question.target:
            return True
        greedy = dataclasses.replace(self.options.settings, temperature=0.0)
        count = len(question.target)
        room = 1 << (count - 1).bit_length()  # one program for many lengths
        greedy = lm_requests.with_max_new_tokens(greedy, self.model, room)
        result = generate(self._decoder(greedy), self.model.params, [question.context])
        return result.completions[0].token_ids[:count] == question.target


# Not as a decorator, which would hide from type checkers what the class can do.
register_model("jaxdave")(JaxDave)


def _bar(made: Iterable, total: int, name: str, disable: bool):
    return tqdm(made, total=total, desc=f"jaxdave: {name}", disable=disable)
