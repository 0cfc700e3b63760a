"""An OpenAI-compatible endpoint as a language model; what was answered before is not sent again."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pixlex.eval.llm.client import (
    Ability,
    Answer,
    Estimate,
    LanguageClient,
    LLMOptions,
    Prompt,
    Reply,
    Usage,
    check_prompt,
)
from pixlex.eval.llm.protocol import (
    CHAT,
    PROMPT,
    PROMPT_LIMIT,
    EndpointFacts,
    RequestFailed,
    Route,
    check_scores,
    probe,
    read_candidates,
    read_choice,
    read_completion,
)
from pixlex.eval.llm.sending import Budget, Check, Question, Sender

FILE_NAME = "answers.sqlite"
_TIKTOKEN = "tiktoken:"
# A start token, and the space that SentencePiece puts before a text.
_ADDED = 2
# Versions of the probe, and of what is taken for an answer: others may have found something else.
_PROBE, _READING = 1, 2
# What a chat template puts around a message, at most; and JSON around a choice.
_FRAME_TOKENS = 64
# A key that was given in place of its variable's name, and its like, is no such name.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")

Request = Mapping[str, Any]


class EndpointClient(LanguageClient):
    """Answers with an OpenAI-compatible endpoint; what was answered before is not sent again.

    Raises:
        ValueError: no URL, an endpoint that is down, a wrong key, a model that it does not have.
    """

    def __init__(self, options: LLMOptions) -> None:
        self.name, self._concurrency = options.model, options.concurrency
        self._url = _checked_url(options)
        self.budget = Budget(options)
        self._count = token_counter(options.tokenizer, options.model)
        self.counts_exactly = self._count is not upper_bounds
        self.cache = AnswerCache(options.cache)
        self._sender = Sender(options, self.budget)
        self._key_works = False
        self.facts = self._known_facts(options)
        self.abilities = self.facts.abilities
        self.context_size = options.context_size or self.facts.context_size
        facts = asdict(replace(self.facts, context_size=None))
        parts = json.dumps([self._url, self.name, facts, _READING], sort_keys=True)
        self.identity = hashlib.sha256(parts.encode()).hexdigest()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, or a bound from above."""
        return self._count(texts)

    def ask(self, ability: Ability, prompts: Sequence[Prompt], limit: int = 1) -> Iterator[tuple[int, Reply]]:
        """Yield the reply to each prompt."""
        if ability not in self.abilities:
            able = ", ".join(sorted(self.abilities))
            raise ValueError(f"{self._url} cannot {ability} with {self.name!r}; it can {able}")
        for number, answers in self._answers(self._questions(ability, prompts, limit)):
            prompt = prompts[number]
            if isinstance(answers, RequestFailed):
                yield number, Reply.failed(answers)
            elif ability == "generate":
                yield number, read_completion(answers[0], prompt.stops, limit)
            elif self.facts.scores(ability):
                yield number, read_candidates(ability, answers, prompt)
            else:
                yield number, read_choice(self.facts, answers[0], prompt.candidates)

    def estimate(self, ability: Ability, prompts: Sequence[Prompt], limit: int = 1) -> Estimate:
        """Return what `ask` would take at most, without sending anything; what is cached costs nothing."""
        requests, cached, usage = 0, 0, Usage()
        for question in itertools.chain.from_iterable(self._questions(ability, prompts, limit)):
            if self.cache.get(self._request(question), question.check) is not None:
                cached += 1
            else:
                requests, usage = requests + 1, usage + question.worst
        return Estimate(requests=requests, cached=cached, usage=usage, cost=self.budget.cost(usage))

    def close(self) -> None:
        """Close the cache."""
        self.cache.close()

    def _questions(self, ability: Ability, prompts: Sequence[Prompt], limit: int) -> Iterator[list[Question]]:
        """Yield what is asked for each prompt: one question, or one for each candidate where these are scored."""
        facts, model = self.facts, self.name
        for prompt in prompts:
            check_prompt(ability, prompt, limit)
            text, names = prompt.text, prompt.candidates
            if ability == "generate":
                body = facts.generation(model, text, limit, prompt.stops)
                yield [self._question(text, body, limit)]
            elif facts.scores(ability):
                texts, room = [text + name for name in names], facts.echo_tokens or 0
                bodies = [facts.scoring(model, one) for one in texts]
                yield [self._question(*one, room, check_scores) for one in zip(texts, bodies, strict=True)]
            else:
                room = max(self.count_tokens(names)) + _FRAME_TOKENS
                yield [self._question(text, facts.choosing(model, text, names, room), room)]

    def _question(
        self, text: str, body: dict[str, Any], limit: int, check: Check = read_completion
    ) -> Question:
        """Return a question with the tokens that it may take: those of the text, and as many as may be written."""
        frame = _FRAME_TOKENS if self.facts.path == CHAT else 0
        return Question(self.facts.path, body, Usage(self.count_tokens([text])[0] + frame, limit), check)

    def _answers(
        self, questions: Iterator[list[Question]]
    ) -> Iterator[tuple[int, list[Answer] | RequestFailed]]:
        """Yield the answers to the questions of each prompt, or why one failed, as soon as all are there.

        Prompts are sent when there is room for them. After a fault that concerns them all no other one is sent;
        the answers to those under way are paid, and are yielded before the fault is raised.
        """
        stopping, fault, left = threading.Event(), None, enumerate(questions)
        under_way: dict[Future[list[Answer]], int] = {}
        with ThreadPoolExecutor(self._concurrency, thread_name_prefix="pixlex-requests") as pool:
            try:
                while True:
                    room = 0 if fault is not None else self._concurrency - len(under_way)
                    for number, several in itertools.islice(left, room):
                        under_way[pool.submit(self._ask, several, stopping)] = number
                    if not under_way:
                        break
                    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                        number, outcome = under_way.pop(future), future.exception() or future.result()
                        if isinstance(outcome, ValueError):
                            fault = fault or outcome
                            stopping.set()
                        elif isinstance(outcome, list):
                            yield number, outcome
                        elif not isinstance(outcome, RequestFailed):
                            raise outcome
                        elif fault is None:  # else given up because of the fault, not because of itself
                            yield number, outcome
            finally:
                stopping.set()
        if fault is not None:
            raise fault

    def _ask(self, questions: Sequence[Question], stopping: threading.Event) -> list[Answer]:
        try:
            return [self._known_or_sent(question, stopping) for question in questions]
        except RequestFailed as failure:
            if failure.is_refusal:
                self._check_key(failure, stopping)
            if failure.status == 404:
                raise ValueError(f"{self._url} does not know {self.name!r}: {failure}") from failure
            raise

    def _known_or_sent(
        self, question: Question, stopping: threading.Event, retries: int | None = None
    ) -> Answer:
        def send() -> Answer:
            answer = self._sender.send(question, stopping, retries)
            self._key_works = True
            return answer

        return self.cache.ask(self._request(question), send, question.check)

    def _check_key(self, refusal: RequestFailed, stopping: threading.Event) -> None:
        """Raise `ValueError` where a request was refused because of the key, and not because of its prompt.

        A request that was answered since the last refusal has shown that the key works; otherwise a harmless
        one is sent, whose answer does not matter.
        """
        if self._key_works:
            self._key_works = False
            return
        body = self.facts.generation(self.name, PROMPT, PROMPT_LIMIT)
        try:
            self._sender.send(self._question(PROMPT, body, PROMPT_LIMIT, bool), stopping, 0)
        except RequestFailed as failure:
            if failure.is_refusal:
                raise self._key_refused(refusal) from None
            return  # it may be too busy to tell
        self._key_works = True

    def _key_refused(self, refusal: RequestFailed) -> ValueError:
        variable, said = self._sender.key_variable, f"{refusal}".removeprefix("refused: ")
        if self._sender.key:
            return ValueError(f"{self._url}: the key of {variable} is refused: {said}")
        expected = f"expected one in the environment variable {variable}"
        return ValueError(f"{self._url} asks for a key: {expected}; {said}")

    def _request(self, question: Question) -> dict[str, Any]:
        return {"endpoint": self._url, "path": question.route, "body": question.body}

    def _known_facts(self, options: LLMOptions) -> EndpointFacts:
        """Return what the endpoint can do, as it was found before or is found out now."""
        request = {"endpoint": self._url, "model": self.name, "mode": options.mode, "probe": _PROBE}
        known = self.cache.get(request)
        if known is not None and known.keys() == EndpointFacts.__dataclass_fields__.keys():
            return EndpointFacts(**known)
        self._sender.check_url()

        def ask(route: Route, body: dict[str, Any], retries: int | None) -> Answer:
            limit = int(body.get("max_tokens") or body.get("max_completion_tokens") or 0)
            worst = Usage(self.count_tokens([json.dumps(body)])[0] + _FRAME_TOKENS, limit)
            return self._known_or_sent(
                Question(route, body, worst, read_completion), threading.Event(), retries
            )

        try:
            facts = probe(ask, self.name, options.mode, self._sender.models())
        except RequestFailed as refusal:
            raise self._key_refused(refusal) from None
        self.cache.put(request, asdict(facts))
        return facts


def _checked_url(options: LLMOptions) -> str:
    """Refuse a URL that is none, or that carries a secret, and a key in place of its variable's name.

    URL and name are kept beside the answers.
    """
    if options.key_variable is not None and not _VARIABLE.fullmatch(options.key_variable):
        raise ValueError(
            "expected the name of an environment variable that holds the key, got something else"
        )
    url = options.base_url or ""
    parts = urlsplit(url)
    secret = parts.username or parts.password or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        got = "something else" if secret or "@" in url else repr(url)
        raise ValueError(f"expected an address like http://localhost:8000/v1, got {got}")
    if secret:
        raise ValueError(
            f"the address of {parts.hostname} carries a name, a password or parameters; "
            "a key belongs into an environment variable"
        )
    return url.rstrip("/")


class AnswerCache:
    """Answers by their whole request: endpoint, model, every parameter, the prompt; never the key.

    An answer is on the disk before anyone is given it, so that a kill at any moment loses none. One whose
    checksum does not fit is asked for again, with a warning; one of a version without checksums counts. Two
    processes may share a folder; what both ask at the same moment is sent by both. None keeps answers in memory;
    a folder that cannot be written, or a file that is no cache, raises `ValueError`.
    """

    def __init__(self, folder: Path | None) -> None:
        self.path = None if folder is None else folder / FILE_NAME
        self._lock = threading.Lock()
        self._asked: dict[str, Future[Answer]] = {}
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            # One connection for all threads, used under the lock only.
            self._file = sqlite3.connect(
                self.path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
            )
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=FULL")
            columns = "key TEXT PRIMARY KEY, request TEXT, answer TEXT, checksum TEXT"
            self._file.execute(f"CREATE TABLE IF NOT EXISTS answers ({columns})")
            if "checksum" not in {row[1] for row in self._file.execute("PRAGMA table_info(answers)")}:
                self._file.execute("ALTER TABLE answers ADD COLUMN checksum TEXT")
            self._file.execute("SELECT key, request, answer FROM answers LIMIT 1")
        except (OSError, sqlite3.Error, ValueError) as fault:  # damaged names are no UTF-8
            raise self._unusable("expected a folder for answers, got", fault) from fault

    def get(self, request: Request, check: Check | None = None) -> Answer | None:
        """Return the answer to a request; None where it was not asked yet, or is none by `check`."""
        key = _key(request)
        try:
            with self._lock:
                row = self._file.execute(
                    "SELECT answer, checksum FROM answers WHERE key = ?", (key,)
                ).fetchone()
            if row is None:
                return None
            text, checksum = row
            answer = json.loads(text) if isinstance(text, str) else None
            if not isinstance(answer, dict) or checksum not in (None, _checksum(key, text)):
                raise ValueError("it is not what was written")
        except (sqlite3.Error, ValueError) as fault:
            warnings.warn(
                f"cache {self.path}: an answer cannot be read ({fault}) and is asked for again", stacklevel=2
            )
            return None
        try:
            if check is not None:
                check(answer)
        except ValueError:
            return None
        return answer

    def put(self, request: Request, answer: Answer) -> None:
        """Keep an answer; on return it is on the disk."""
        key, text = _key(request), json.dumps(answer)
        row = (key, json.dumps(request, sort_keys=True), text, _checksum(key, text))
        columns = "(key, request, answer, checksum)"
        try:
            with self._lock:
                self._file.execute(f"INSERT OR REPLACE INTO answers {columns} VALUES (?, ?, ?, ?)", row)
        except (sqlite3.Error, ValueError) as fault:
            raise self._unusable("an answer cannot be kept:", fault) from fault

    def ask(self, request: Request, send: Callable[[], Answer], check: Check | None = None) -> Answer:
        """Return the answer to a request, sent only where it is not known, or known and no answer by `check`.

        A request that another thread is sending just now is waited for; its outcome, faults too, is shared.
        """
        key, mine = _key(request), Future[Answer]()
        with self._lock:
            under_way = self._asked.setdefault(key, mine)
        if under_way is not mine:
            return under_way.result()
        try:
            answer = self.get(request, check)
            if answer is None:
                answer = send()
                self.put(request, answer)
            mine.set_result(answer)
            return answer
        except BaseException as fault:  # handed on to those who wait, and raised again
            mine.set_exception(fault)
            raise
        finally:
            with self._lock:
                del self._asked[key]

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def _unusable(self, what: str, fault: Exception) -> ValueError:
        return ValueError(f"cache {self.path}: {what} {fault}; where the file is damaged, move it away")


def _checksum(key: str, answer: str) -> str:
    return hashlib.sha256(f"{key}\n{answer}".encode()).hexdigest()


def _key(request: Request) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


def token_counter(tokenizer: str | None, model: str) -> Callable[[Sequence[str]], list[int]]:
    """Return what counts an endpoint's tokens, as `LLMOptions.tokenizer` says; else `upper_bounds`."""
    if tokenizer is not None and not tokenizer.startswith(_TIKTOKEN):
        from transformers import AutoTokenizer

        try:
            pretrained = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        except (OSError, ValueError) as fault:
            raise ValueError(f"tokenizer {tokenizer!r} cannot be loaded: {fault}") from fault
        return lambda texts: [len(pretrained(text)["input_ids"]) for text in texts]
    try:
        import tiktoken

        if tokenizer is None:
            encoding = tiktoken.encoding_for_model(model)
        else:
            encoding = tiktoken.get_encoding(tokenizer.removeprefix(_TIKTOKEN))
    except (ImportError, KeyError, OSError, ValueError) as fault:
        if tokenizer is None:  # an unknown model, or no network to fetch the encoding from
            return upper_bounds
        if isinstance(fault, ImportError):
            missing = f"tokenizer {tokenizer} needs tiktoken: pip install tiktoken"
            raise ModuleNotFoundError(missing, name="tiktoken") from fault
        raise ValueError(f"tokenizer {tokenizer} cannot be loaded: {fault}") from fault
    # What looks like a special token in a text is text.
    return lambda texts: [len(encoding.encode(text, disallowed_special=())) for text in texts]


def upper_bounds(texts: Sequence[str]) -> list[int]:
    """Return a number that no tokenizer in use exceeds: the bytes of each text in UTF-8, and two more.

    Every token of a byte-level or byte-fallback vocabulary stands for a byte or more. English has about four
    bytes a token, so the bound is some four times the truth: name a tokenizer where that is too much.
    """
    return [len(text.encode()) + _ADDED for text in texts]
