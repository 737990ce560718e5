"""Signed files changed at random: a verdict each time, never a crash, never Trusted when a covered byte changed.

    make fuzz, or python -m tests.provenance.fuzz --count 100000 --seed 1

Each mutation follows from the seed and its number, so that one that went wrong can be made again; its file is kept
under fuzz-out/.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from farm.child import MEMORY_MB
from provenance import keys
from provenance.report import TRUSTED, WORDS
from provenance.signing import Parent, Signing
from provenance.verify import verify_bytes
from tests.provenance.test_verify import EDIT, FORMATS, MANIFEST, claims, container, encoded

OUT = Path("fuzz-out")
AT_ONCE = 500  # mutations a process is given at a time
SLOW_S = 10.0
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass(frozen=True)
class Case:
    kind: str
    data: bytes
    hot: tuple[int, ...]  # where something other than padding stands


@dataclass(frozen=True)
class Wrong:
    number: int
    why: str
    data: bytes


Mutation = Callable[[random.Random, Case, Sequence[Case]], bytes]


def make_cases(home: Path) -> tuple[list[Case], str]:
    """Two pictures and an edit in each format, and whom to trust."""
    signing, made = Signing(keys.init(home)), []
    for kind, mime in sorted(FORMATS.items()):
        first = signing.sign(MANIFEST, encoded(kind), mime).data
        other = signing.sign(MANIFEST, encoded(kind, 2), mime).data
        edit = signing.sign(EDIT, encoded(kind, 3), mime, Parent(first, mime, "first")).data
        made += [Case(kind, data, _hot(data)) for data in (first, other, edit)]
    return made, keys.trust(home)


def _hot(data: bytes) -> tuple[int, ...]:
    return tuple(at for at, value in enumerate(data) if value)


def _place(rng: random.Random, case: Case) -> int:
    return rng.choice(case.hot) if rng.random() < 0.8 else rng.randrange(len(case.data))


def _block(rng: random.Random, case: Case) -> tuple[int, int]:
    start = _place(rng, case)
    return start, min(len(case.data), start + int(2 ** rng.uniform(0, 12)))


def flip(rng: random.Random, case: Case, _: Sequence[Case]) -> bytes:
    data = bytearray(case.data)
    for _time in range(rng.choice((1, 1, 1, 2, 8))):
        data[_place(rng, case)] ^= 1 << rng.randrange(8)
    return bytes(data)


def overwrite(rng: random.Random, case: Case, _: Sequence[Case]) -> bytes:
    start, end = _block(rng, case)
    return case.data[:start] + rng.choice((bytes(end - start), rng.randbytes(end - start))) + case.data[end:]


def remove(rng: random.Random, case: Case, _: Sequence[Case]) -> bytes:
    start, end = _block(rng, case)
    return case.data[:start] + case.data[end:]


def insert(rng: random.Random, case: Case, _: Sequence[Case]) -> bytes:
    start, end = _block(rng, case)
    at = rng.choice((start, end, 0, len(case.data)))
    return case.data[:at] + rng.choice((case.data[start:end], rng.randbytes(end - start))) + case.data[at:]


def length(rng: random.Random, case: Case, _: Sequence[Case]) -> bytes:
    """Where a length may stand, one that cannot be."""
    data, size = bytearray(case.data), rng.choice((2, 4, 8))
    at = min(_place(rng, case), len(data) - size)
    value = rng.choice((*EXTREMES, len(data), int.from_bytes(data[at : at + size], "big") + rng.choice((-1, 1))))
    data[at : at + size] = (value % 256**size).to_bytes(size, rng.choice(("big", "little")))
    return bytes(data)


def cut(rng: random.Random, case: Case, _: Sequence[Case]) -> bytes:
    return case.data[: _place(rng, case)]


def splice(rng: random.Random, case: Case, cases: Sequence[Case]) -> bytes:
    other = rng.choice(cases)
    return case.data[: _place(rng, case)] + other.data[_place(rng, other) :]


def transplant(rng: random.Random, case: Case, cases: Sequence[Case]) -> bytes:
    """The manifest of another file, into this one."""
    other = rng.choice([one for one in cases if one is not case])
    here, there = container(case.data), container(other.data)
    return case.data[: here.start] + other.data[there.start : there.stop] + case.data[here.stop :]


MUTATIONS: tuple[Mutation, ...] = (flip, flip, overwrite, remove, insert, length, length, cut, splice, transplant)


def mutated(seed: int, number: int, cases: Sequence[Case]) -> tuple[Case, bytes]:
    rng = random.Random(f"{seed}/{number}")
    case = rng.choice(cases)
    return case, rng.choice(MUTATIONS)(rng, case, cases)


def judge(case: Case, data: bytes, root: str) -> tuple[str, str | None]:
    """The word for it, and what is wrong with that word."""
    begun = time.monotonic()
    try:
        found = verify_bytes(data, None, root)
    except Exception as error:
        return "crash", f"{type(error).__name__}: {error}"
    if time.monotonic() - begun > SLOW_S:
        return found.verdict, f"took {time.monotonic() - begun:.0f} s"
    if found.verdict not in WORDS:
        return found.verdict, "is no verdict"
    if found.verdict == TRUSTED and data != case.data and not _harmless(case, data, root):
        return found.verdict, "Trusted, though a covered byte changed"
    return found.verdict, None


def _harmless(case: Case, data: bytes, root: str) -> bool:
    """Padding and the frame around the manifest are not covered: what stands outside, and what is claimed, must be."""
    inside = container(case.data)
    outside = (data[: inside.start], data[inside.stop :]) == (case.data[: inside.start], case.data[inside.stop :])
    return outside and len(data) == len(case.data) and claims(data, root) == claims(case.data, root)


def work(home: str, seed: int, numbers: Sequence[int]) -> tuple[Counter[str], list[Wrong]]:
    cases, root = _stored(home)
    words: Counter[str] = Counter()
    wrong = []
    for number in numbers:
        case, data = mutated(seed, number, cases)
        word, why = judge(case, data, root)
        words[word] += 1
        if why:
            wrong.append(Wrong(number, f"{case.kind}: {why}", data))
    return words, wrong


def _stored(home: str) -> tuple[list[Case], str]:
    files = json.loads((Path(home) / "cases.json").read_text())
    made = [(kind, (Path(home) / name).read_bytes()) for name, kind in files.items()]
    return [Case(kind, data, _hot(data)) for kind, data in made], keys.trust(Path(home))


def store(home: Path) -> None:
    """The same files for every process."""
    cases, _ = make_cases(home)
    for number, case in enumerate(cases):
        (home / f"{number}.{case.kind}").write_bytes(case.data)
    (home / "cases.json").write_text(json.dumps({f"{n}.{case.kind}": case.kind for n, case in enumerate(cases)}))


def fuzz(home: Path, count: int, seed: int, processes: int = 2) -> Iterator[tuple[Counter[str], list[Wrong]]]:
    store(home)
    numbers, pieces = iter(range(count)), []
    while piece := list(islice(numbers, AT_ONCE)):
        pieces.append(piece)
    limit = (MEMORY_MB << 20, MEMORY_MB << 20)
    with ProcessPoolExecutor(
        processes, get_context("spawn"), initializer=resource.setrlimit, initargs=(resource.RLIMIT_AS, limit)
    ) as pool:
        waiting = [(piece, pool.submit(work, str(home), seed, piece)) for piece in pieces]
        for piece, answer in waiting:
            try:
                yield answer.result()
            except BrokenProcessPool:
                sys.exit(f"a process died at one of the mutations {piece[0]} to {piece[-1]} of seed {seed}, or near")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--count", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    options.add_argument("--processes", type=int, default=2)
    asked = options.parse_args()
    print(f"{asked.count:,} mutations of seed {asked.seed}", flush=True)
    words: Counter[str] = Counter()
    wrong: list[Wrong] = []
    with tempfile.TemporaryDirectory() as home:
        for some, bad in fuzz(Path(home), asked.count, asked.seed, asked.processes):
            words += some
            wrong += bad
            print(f"\r{words.total():,}: {dict(words.most_common())}, {len(wrong)} wrong", end="", flush=True)
    print()
    for one in wrong:
        OUT.mkdir(exist_ok=True)
        (OUT / f"{asked.seed}-{one.number}").write_bytes(one.data)
        print(f"mutation {one.number}: {one.why}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
