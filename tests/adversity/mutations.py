"""Do the tests see a check that is gone? Each mutant is a copy of the tree with one check removed.

    python -m tests.adversity.mutations

The tree is copied once; a copy of that without a change goes first and must pass: else a kill
would say nothing. All live in a temporary directory; the tree itself is never touched. Prints a
line per mutant with the test that killed it; exits with 1 if one survives (or if its text is not
found any more).
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("fastgw", "tests", "bench", "pyproject.toml")
REQUESTS = "tests/adversity/test_request_cases.py"
RESPONSES = "tests/adversity/test_response_cases.py"
TIMES = "tests/adversity/test_timeouts.py"
TLS = "tests/adversity/test_tls.py"
PARSERS = "tests/http1"
AT_ONCE = 2
LIMIT = 300.0


class Mutant(NamedTuple):
    """One check less: `old` becomes `new` in `file`; `tests` must notice."""

    check: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


CONTROL = Mutant(
    "(nothing removed)", "__init__.py", "", "", (PARSERS, REQUESTS, RESPONSES, TIMES, TLS)
)
MUTANTS = [
    Mutant(
        "Host is required on 1.1",
        "http1/request.py",
        '        if request.minor == 1:\n            raise BadRequest("no Host',
        '        if request.minor == 7:\n            raise BadRequest("no Host',
        (PARSERS,),
    ),
    Mutant(
        "Host and the target's authority agree",
        "http1/request.py",
        "if has_host and absolute[1].lower() != request.host:",
        "if False:",
        (PARSERS,),
    ),
    Mutant(
        "a field that counts comes once",
        "http1/request.py",
        "            if lower in seen:",
        "            if False:",
        (f"{PARSERS}/test_request.py",),
    ),
    Mutant(
        "no Transfer-Encoding on 1.0",
        "http1/request.py",
        "    if request.minor == 0:\n        raise",
        "    if False:\n        raise",
        (PARSERS,),
    ),
    Mutant(
        "the memo takes only plain digits",
        "http1/request.py",
        "int(digits) if digits.isdigit() and end - start <= 18 else UNSIZED",
        "int(digits) if digits.isalnum() and end - start <= 18 else UNSIZED",
        (PARSERS,),
    ),
    Mutant(
        "a credential on the short way is visible ASCII",
        "http1/request.py",
        "sound = end - start <= LONGEST and allowed.fullmatch(raw, start, end)",
        "sound = end - start <= LONGEST",
        (PARSERS,),
    ),
    Mutant(
        "the short way takes only plain digits",
        "http1/request.py",
        "if not digits.isdigit() or end - start > 18:\n            return None",
        "if not digits.isalnum() or end - start > 18:\n            return None",
        (PARSERS,),
    ),
    Mutant(
        "chunk data ends where its size says",
        "http1/body.py",
        "            if line:\n                raise BadChunk",
        "            if False:\n                raise BadChunk",
        (PARSERS,),
    ),
    Mutant(
        "lines of a chunked body end in CRLF",
        "http1/body.py",
        'not line.endswith(b"\\r\\n")',
        'not line.endswith(b"\\n")',
        (PARSERS,),
    ),
    Mutant(
        "no length beside chunked in an answer",
        "http1/response.py",
        'if length != UNTIL_CLOSE or value != b"chunked":',
        'if value != b"chunked":',
        (PARSERS,),
    ),
    Mutant(
        "the end of a refused client's input",
        "downstream/connection.py",
        '            self._state = "lingering"\n',
        '            self._state = "idle"\n',
        (f"{REQUESTS}::test_after_a_refusal_nothing_is_a_request",),
    ),
    Mutant(
        "bytes of a head give it no more time",
        "downstream/connection.py",
        '                if self._state != "head":\n',
        "                if True:\n",
        (f"{TIMES}::test_a_head_that_trickles_gets_no_more_time",),
    ),
    Mutant(
        "a byte now and then is no upload",
        "downstream/connection.py",
        "self._body - self._mark >= BODY_PROGRESS",
        "self._body > self._mark",
        (f"{TIMES}::test_half_a_body",),
    ),
    Mutant(
        "who takes nothing sees no sound end",
        "downstream/connection.py",
        "                self._reset()  # what is left",
        "                self.transport.abort()  # what is left",
        (f"{TIMES}::test_who_takes_nothing_of_its_answer_is_cut_off",),
    ),
    Mutant(
        "an answer before the end of a body is the last",
        "downstream/connection.py",
        'return self._connections.draining or self._state == "body"',
        "return self._connections.draining",
        (REQUESTS,),
    ),
    Mutant(
        "no bytes after the end of an answer",
        "upstream/connection.py",
        "            if length < size and not head.bodyless:",
        "            if False:",
        (RESPONSES,),
    ),
    Mutant(
        "no bytes from a provider that was not asked",
        "upstream/connection.py",
        "            self.close()  # nobody asked: never to be taken for an answer\n",
        "",
        (RESPONSES,),
    ),
    Mutant(
        "who still owes an upload is not kept",
        "upstream/connection.py",
        "            and self._whole\n",
        "",
        (REQUESTS,),
    ),
    Mutant(
        "over TLS an end is told, or it is none",
        "upstream/connection.py",
        "if until_close and self._ended and exc is None:",
        "if until_close and exc is None:",
        (TLS,),
    ),
    Mutant(
        "the name in a provider's certificate",
        "upstream/pool.py",
        "            self._tls.minimum_version = ssl.TLSVersion.TLSv1_2\n",
        "            self._tls.check_hostname = False\n",
        (TLS,),
    ),
    Mutant(
        "extensions and trailers are bounded",
        "http1/body.py",
        "        if self._extras > MAX_EXTRAS:",
        "        if False:",
        (REQUESTS,),
    ),
    Mutant(
        "no coding in an answer of 1.0",
        "http1/response.py",
        '            if first[1] == b"0":',
        "            if False:",
        (RESPONSES,),
    ),
    Mutant(
        "a path is decoded once",
        "policy/routing.py",
        '_REFUSED_ESCAPES = frozenset(b"/\\\\.%;',
        '_REFUSED_ESCAPES = frozenset(b"/\\\\.;',
        (REQUESTS,),
    ),
    Mutant(
        "no dot segments",
        "policy/routing.py",
        '        if segment in (b".", b".."):',
        "        if False:",
        (REQUESTS,),
    ),
    Mutant(
        "a POST is not sent twice",
        "exchange.py",
        '                and self.request.method in (b"GET", b"HEAD")\n',
        "",
        (RESPONSES,),
    ),
    Mutant(
        "a list that cannot be read is not shown",
        "relay.py",
        "        if self._head.encoding or self._size > MAX_EDITED:",
        "        if self._size > MAX_EDITED:",
        (RESPONSES,),
    ),
]


def _environment(tree: Path) -> dict[str, str]:
    # The copy must come before whatever an editable install points to.
    return os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}


def copy_of_the_tree(target: Path) -> None:
    """As it is now: what is edited meanwhile is not under test."""
    target.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            skip = shutil.ignore_patterns("__pycache__", ".*_cache")
            shutil.copytree(source, target / name, ignore=skip)
        else:
            shutil.copy(source, target / name)


def verdict(mutant: Mutant, sound: Path) -> tuple[str, float, str]:
    """killed, survived or stale; the seconds that it took; the test that failed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(sound, tree)
        path = tree / "fastgw" / mutant.file
        text = path.read_text()
        if mutant.old:
            if text.count(mutant.old) != 1:
                return "stale", 0.0, ""
            path.write_text(text.replace(mutant.old, mutant.new))
        where = subprocess.run(
            [sys.executable, "-c", "import fastgw; print(fastgw.__file__)"],
            cwd=tree,
            env=_environment(tree),
            capture_output=True,
            text=True,
            check=True,
        )
        if not where.stdout.startswith(str(tree)):
            return "stale", 0.0, ""  # the tests would run against another fastgw
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        run = subprocess.run(
            [*command, *mutant.tests],
            cwd=tree,
            env=_environment(tree),
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    # 1 = tests failed; anything else beside 0 is no verdict
    named = {0: "survived", 1: "killed"}.get(run.returncode, f"error {run.returncode}")
    failed = re.search(
        r"^(?:FAILED|ERROR) \S+?/(test_\w+\.py::.+?)(?: - |$)", run.stdout, re.MULTILINE
    )
    test = failed[1][:90] if failed is not None else ""
    return named, time.monotonic() - began, test


def main() -> int:
    """The command."""
    width = max(len(mutant.check) for mutant in MUTANTS)
    everything = [CONTROL, *MUTANTS]
    failed = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        sound = Path(folder) / "sound"
        copy_of_the_tree(sound)
        verdicts = pool.map(verdict, everything, [sound] * len(everything))
        for mutant, (result, took, test) in zip(everything, verdicts, strict=True):
            sys.stdout.write(f"{mutant.check:{width}}  {result:8}  {took:5.1f} s  {test}\n")
            sys.stdout.flush()
            failed += result != ("survived" if mutant is CONTROL else "killed")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
