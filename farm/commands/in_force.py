"""`farm policy activate, ls, rescan`: which policy judges, and what that does to what was judged before."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, clean, counted, progress, say, table
from farm.commands.policy import File, Json, opened
from farm.commands.session import open_database
from farm.errors import BadInput, Conflict

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from farm.config import Settings
    from farm.rescan import Judge, Tally
    from safety.policy import Policy

By = Annotated[str, typer.Option(metavar="NAME", help="Who answers for it.")]
UNJUDGED = "what was said of them stands"


def activate(
    policy: File,
    by: By,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    json_: Json = False,
) -> None:
    """Put a policy in force: judge by it all that is published or held, show what that changes, ask, then move it."""
    from farm import config, rules
    from farm.db import transact

    settings = config.load()
    if not yes and (json_ or not sys.stdin.isatty()):
        raise BadInput(
            "it asks before it changes anything",
            field="--yes",
            fix="add --yes; `farm policy rescan --dry-run --policy POLICY` shows what it would change",
        )
    with open_database(settings) as engine:
        found = opened(policy)
        bench = _bench(engine, found, settings)
        before = bench.look("judging")
        if not json_:
            _print_flips(before)
            _say(before, "would be moved")
        if not yes and not typer.confirm(f"Put {found.name} {found.hash[:12]} in force?"):
            raise typer.Exit(1)
        new = transact(
            engine,
            lambda one: rules.put(one, rules.ACTIVE, found.document, by, settings.project, time.time()),
        )
        say(f"farm: {found.name} {found.hash[:12]} {'is' if new else 'was already'} in force")
        settled = bench.settle(by)
        if json_:
            as_json(_told(found, before) | {"activated": new, "moved": dict(settled.moved)})
        else:
            _say(settled, "moved")


def rescan(
    by: By = "",
    policy: Annotated[str, typer.Option(metavar="POLICY", help="Another than the one in force; asks only.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change; change nothing.")] = False,
    json_: Json = False,
) -> None:
    """Judge by the policy in force what is published or held and was judged by another one: the end of an activation
    that was broken off. With --dry-run, all of it, and by any policy."""
    from farm import config

    settings = config.load()
    if policy and not dry_run:
        raise BadInput(
            "only the policy in force changes anything", field="--policy", fix="add --dry-run, or activate it"
        )
    if not dry_run and not by.strip():
        raise BadInput("who answers for it?", field="--by", fix="give a name")
    with open_database(settings) as engine:
        found = opened(policy) if policy else standing(engine)
        bench = _bench(engine, found, settings)
        tally = bench.look("judging") if dry_run else bench.settle(by)
        if json_:
            as_json(_told(found, tally) | ({} if dry_run else {"moved": dict(tally.moved)}))
        else:
            _print_flips(tally)
            _say(tally, "would be moved" if dry_run else "moved")


def ls(json_: Json = False) -> None:
    """List the policies that were ever in force or in shadow: who put them there, and when first."""
    from farm import config, rules
    from farm.db import reading

    with open_database(config.load()) as engine, reading(engine) as connection:
        rows = rules.ever(connection)
    if json_:
        as_json(rows)
    else:
        table([row | {"hash": row["hash"][:12]} for row in rows], ["name", "hash", "now", "person", "created_at"])


def standing(engine: Engine, role: str = "active") -> Policy:
    from farm import rules
    from farm.db import reading
    from safety.policy import parse

    with reading(engine) as connection:
        stands = rules.standing(connection).get(role)
    if stands is None and role == rules.SHADOW:
        raise Conflict("no policy is in shadow", fix="`farm policy shadow FILE` puts one there; or name one that was")
    if stands is None:
        fix = "`farm up` begins with that of the settings; or `farm policy activate FILE`"
        raise Conflict("no policy is in force yet", fix=fix)
    return parse(stands.document)


@dataclass(frozen=True, slots=True)
class Bench:
    """A policy and all that it needs to judge what is stored."""

    engine: Engine
    judge: Judge
    stands: tuple[str, str]  # as it is named where it is in force

    def look(self, words: str) -> Tally:
        return self._through(words, None, "")

    def settle(self, person: str) -> Tally:
        """Until nothing is left that another policy has judged, but for what cannot be judged again. What a list of
        what nobody may have finds beside them is deleted by the dispatcher."""
        from farm import unseen

        whole = self._through("judging again", self.stands, person)
        while (more := self._through("judging again", self.stands, person)).judged:
            whole.join(more)
        if gone := unseen.find(self.engine, self.judge, self.stands, time.time):
            whole.moved["deleted"] += gone
        return whole

    def _through(self, words: str, left: tuple[str, str] | None, person: str) -> Tally:
        from farm import rescan

        tally = rescan.Tally()
        total = ceil(rescan.count(self.engine, left) / rescan.PAGE)
        for page in progress(rescan.pages(self.engine, self.judge, left), total, words):
            sure = rescan.settle(self.engine, page, self.stands, person, time.time) if left else page
            tally.add(sure)
            tally.add(one for one in page if left and one.fault)
        return tally


def _bench(engine: Engine, found: Policy, settings: Settings) -> Bench:
    from farm import rules
    from farm.db import reading
    from safety.clip import load_encoder
    from safety.rescan import judge_of

    with reading(engine) as connection:
        by = rules.rules_of(connection, found.document)
    held = by.held(entry.name for entry in found.hash_lists)
    return Bench(engine, judge_of(found, by, load_encoder(settings.encoder)), (found.hash, held))


def _told(found: Policy, tally: Tally) -> dict[str, Any]:
    told = {"policy": found.hash, "name": found.name, "judged": tally.judged, "seconds": round(tally.seconds, 3)}
    told |= {"per_s": round(tally.per_s), "counts": dict(tally.counts), "flips": tally.flips}
    return told | {"unjudged": dict(tally.unjudged)}


def _print_flips(tally: Tally) -> None:
    rows = [{"pictures": count, "from, to and what follows": way} for way, count in sorted(tally.counts.items())]
    if rows:
        table(rows, list(rows[0]))


def _say(tally: Tally, moved: str) -> None:
    rate = f"in {tally.seconds:.1f} s, {tally.per_s:,.0f} a second"
    many = ", ".join(f"{count:,} {state}" for state, count in sorted(tally.moved.items())) or "none"
    say(f"farm: {counted(tally.judged, 'picture')} judged {rate}; {moved}: {many}")
    for why, count in tally.unjudged.items():
        say(clean(f"farm: not judged: {counted(count, 'picture')}: {why}; {UNJUDGED}"))
