"""Texts tokenized in processes of their own: a grammar keeps Python's lock for as long as it reads a text.

That is a millisecond for every two characters where there are numbers to spell out, during which no other thread
could keep a GPU busy. Gives `TokenizerProcesses`, to be used in the place of the `TextTokenizer` that it is made from.
Knows nothing of who asks.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import LifoQueue
from typing import Any

import numpy as np

from hfprep.errors import Reason, RejectedSample
from hfprep.text.normalizer import TextNormalizer
from hfprep.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

CODE = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from hfprep.text.processes import serve; serve()"


class TokenizerProcesses:
    """Tokenizes as `tokenizer` does, in up to `count` processes, each started when all others are busy.

    Safe to call from several threads. What a process cannot do, because it was killed or the tokenizer's file has
    changed, is done here.
    """

    def __init__(self, tokenizer: TextTokenizer, count: int) -> None:
        self._tokenizer = tokenizer
        self._expected = tokenizer.model_sha256
        self._count = count
        self._idle: LifoQueue[_Process | None] = LifoQueue()
        for _ in range(count):
            self._idle.put(None)

    def encode(self, text: str, language: str | None = None) -> np.ndarray:
        """Return the token ids of a text, (text_len,) int32; raises what `TextTokenizer.encode` does."""
        process = self._idle.get()
        answer: dict[str, Any] = {}
        try:
            process = process or _Process(self._tokenizer, self._expected)
            answer = process.ask([text, language])
        except (OSError, ValueError) as error:
            log.warning("a process that reads texts has ended (%s); this text is read without it", error)
            if process is not None:
                process.close()
            process = None
        finally:
            self._idle.put(process)
        if "reason" in answer:
            raise RejectedSample(Reason(answer["reason"]), answer["message"])
        return np.array(answer["ids"], np.int32) if "ids" in answer else self._tokenizer.encode(text, language)

    def close(self) -> None:
        """End the processes; to be called when no thread asks any more, and those who ask later start new ones."""
        for process in [self._idle.get() for _ in range(self._count)]:
            if process is not None:
                process.close()
            self._idle.put(None)


class _Process:
    """One process. It ends by itself once nobody holds the other end of its input."""

    def __init__(self, tokenizer: TextTokenizer, expected: str) -> None:
        """Start it; raises OSError or ValueError where that fails or the tokenizer's file is not as expected."""
        folder = tokenizer.normalizer.grammar_dir
        arguments = [json.dumps(sys.path), str(tokenizer.model_path), *([] if folder is None else [str(folder)])]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-c", CODE, *arguments], stdin=pipe, stdout=pipe)
        try:
            found = self._answer().get("sha256")
            if found != expected:
                raise ValueError(f"{tokenizer.model_path} has changed")
        except BaseException:
            self.close()
            raise

    def ask(self, question: list[str | None]) -> dict[str, Any]:
        """What `serve` answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise OSError("no answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def serve() -> None:
    """Answer the questions on standard input, a JSON object for each: `ids`, or the `reason` and `message` of a
    rejection, or nothing where the asker has to find out by itself."""  # fmt: skip
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the asker decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library has to say is no answer
    model, *folder = sys.argv[2:]
    tokenizer = TextTokenizer(Path(model), normalizer=TextNormalizer(grammar_dir=Path(folder[0]) if folder else None))
    answer: dict[str, Any] = {"sha256": tokenizer.model_sha256}
    while True:
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()
        question = sys.stdin.buffer.readline()
        if not question:
            return
        text, language = json.loads(question)
        try:
            answer = {"ids": tokenizer.encode(text, language).tolist()}
        except RejectedSample as error:
            answer = {"reason": error.reason.value, "message": error.message}
        except Exception:  # noqa: BLE001 - the asker tries the same and meets the same error
            answer = {}
