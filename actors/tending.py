"""The places of every pool and what is done to each: a gang is built where one is needed, looked after, let go.

Tending gives each place what it is to have now, and never waits: a gang is built in a thread of its own, which holds
the place's lock, as does whoever draws.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from actors import cluster, faults, gang, room
from actors.bench import STRIKES, Form, charged, may_be_the_gang_s
from actors.building import build, clear
from actors.gang import Gang
from actors.health import LOST_S, SICK_S, Pulse, felt
from actors.messages import Post
from actors.models import lacking
from actors.places import ROOM, Place, guessed_pace_s, post_of
from actors.placing import Node
from actors.plan import divided, pools_of
from actors.stages import Passed
from actors.wanted import chosen, wanted
from farm.config import PoolSpec, Settings
from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer
from farm.lack import Lack
from farm.ports import Demand, Drained, GangState, ModelCard, Rendered

log = logging.getLogger("farm.pool")
Answer = Rendered | Passed | Fault
A = TypeVar("A", bound=Answer)
ROOM_S = 5.0  # without room for so long, it is said, and what nobody uses is removed
TEND_S = 1.0
NODES_S = 5.0
CLEAR_S = 30.0
LOOK_S = 20.0  # whether the files of a model have come or gone: headers alone are read
UNSEEN_S = 300.0  # before a start is tried again whose files are not seen here
HELP_S = 120.0  # room that was made is kept for so long, or until it is taken
IDLE_S = PoolSpec.model_fields["idle_s"].default  # of a pool that is not known here
AGAIN_S = 30.0  # after a start that failed, where no job asks for another one sooner


class Tending:
    def __init__(
        self,
        settings: Settings,
        cards: Mapping[str, ModelCard],
        shard: str,
        room_s: float,
    ) -> None:
        self.settings, self.room_s = settings, room_s
        self.places: dict[str, list[Place]] = {}  # by what a job asks for: its model, or a stage of it apart
        self.paths: dict[str, list[str]] = {}  # what a job of a model asks for, one after the other
        for pool in pools_of(settings, cards):
            crews = [(post_of(crew, cards[pool.model], settings, shard, do), crew) for do, crew in divided(pool)]
            self.paths[pool.model] = [post.asked for post, _ in crews]
            for post, crew in crews:
                some = [Place(number, post, crew, pace_s=guessed_pace_s(post)) for number in range(crew.max)]
                self.places.setdefault(post.asked, []).extend(some)
        self.demand: Mapping[str, Demand] = {}  # as the dispatcher last told
        self.asking: dict[int, tuple[str, Demand]] = {}  # thread to what it wants drawn
        self.counts = dict.fromkeys(self.places, 0)  # how many gangs each is to have for what waits
        self.pressed: Mapping[str, str] = {}
        # Model that room is made for, until when it has the first claim, and on which nodes; the first stands first.
        self.helped: dict[str, tuple[float, frozenset[str]]] = {}
        self.drained = Drained()
        self.refused: set[str] = set()  # gangs whose work others have refused
        self.seen: Mapping[str, Node] = {}  # by Ray's own ids
        self.looked = self.cleared = 0.0
        self.unused: Mapping[str, float] = {}  # gangs that no dispatcher has, and since when that is seen
        self.swept, self.closed, self.news = False, threading.Event(), threading.Event()
        self.freed = threading.Condition()

    def need(self, demand: Mapping[str, Demand], pressed: Mapping[str, str], drained: Drained) -> None:
        fresh = demand.keys() - self.demand.keys() or (pressed, drained) != (self.pressed, self.drained)
        self.demand, self.pressed, self.drained = demand, pressed, drained
        self._help(pressed, time.time())
        for place in self._all():
            place.ends = self._why_ends(place)
        if fresh:
            self.news.set()

    def _help(self, pressed: Mapping[str, str], now: float) -> None:
        standing = [(one.id, place.homes) for place in self._all() if (one := place.gang) is not None]
        helped = {model: (until, homes) for model, (until, homes) in list(self.helped.items()) if now < until}
        for model in dict.fromkeys(pressed.values()):
            homes = {home for gang_id, some in standing if pressed.get(gang_id) == model for home in some}
            helped[model] = now + HELP_S, frozenset(homes | helped.get(model, (0.0, set()))[1])
        self.helped = helped

    def tend(self) -> None:
        """Build the gangs that are needed now or kept warm, look after those that are idle, and let go of those that
        had no job for long. What is in use is left alone."""
        for asked_for in self.places:
            self._plan(asked_for)
        for place in self._all():
            place.ends = self._why_ends(place)
            if place.lock.acquire(blocking=False):
                building = False
                try:
                    building = self._care(place, time.time())
                finally:
                    if not building:
                        place.lock.release()

    def start(self) -> None:
        """Tend the pools, and see whether their files are there, until `close`."""
        for name, deed in (("pool", self._keep_tending), ("files", self._keep_looking)):
            threading.Thread(target=deed, name=name, daemon=True).start()

    def close(self, *, remove: bool = False) -> None:
        """Leave Ray. The gangs stay warm for the next dispatcher unless they are to be removed."""
        self.closed.set()
        for place in self._all():
            if place.seeks and place.lock.acquire(timeout=self.room_s):
                place.lock.release()  # it has given its room back
            if remove and place.gang is not None:
                self._remove(place)
            place.gang = None
        cluster.disconnect()

    def _all(self) -> list[Place]:
        return [place for places in self.places.values() for place in places]

    def _keep_tending(self) -> None:
        while not self.closed.is_set():
            try:
                self._look_around()
                self.tend()
            except faults.RAISED:
                log.exception("the pool's tending failed and is tried again")
            self.news.wait(TEND_S)
            self.news.clear()

    def look(self) -> None:
        """Which pools have no files here, and how long the others may take to load. A job is tried nevertheless, now
        and then: its node may have them."""
        posts = {place.post.pool: place.post for place in self._all()}
        told = {name: lacking(post.card, Path(post.models) if post.models else None) for name, post in posts.items()}
        fresh = {place.post.pool for place in self._all() if not place.measured and place.load_s == room.STARTS_S}
        guess = {name: room.loading_s(posts[name]) for name in fresh if not told[name]}
        for place in self._all():
            place.lacks = told[place.post.pool]
            place.load_s = guess.get(place.post.pool, place.load_s)

    def _keep_looking(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                log.exception("the models' files could not be looked at")
            if self.closed.wait(LOOK_S):
                return

    def _look_around(self) -> None:
        """The nodes there are; those last seen while Ray is away."""
        if time.time() - self.looked > NODES_S:
            self.looked = time.time()
            with contextlib.suppress(Fault):
                cluster.connect(self.settings)
                self.seen = room.nodes()
                self._let_go(time.time())

    def _let_go(self, now: float) -> None:
        """What a dispatcher has left that does not come back idles no longer than what one has, and seeks no room."""
        if now - self.cleared > CLEAR_S:
            self.cleared = now
            clear()
        idle_s = {place.post.pool: place.spec.idle_s for place in self._all()}
        self.unused = {gang_id: self.unused.get(gang_id, now) for gang_id in gang.unused()}
        for gang_id, since in self.unused.items():
            if now - since > idle_s.get(gang.pool_of(gang_id), IDLE_S):
                gang.remove_unused(gang_id, f"nobody has for {now - since:.0f} s")

    def _plan(self, asked_for: str) -> None:
        """Which places are to have a gang now."""
        places, now = self.places[asked_for], time.time()
        asked = [demand for name, demand in list(self.asking.values()) if name == asked_for]
        told = self.demand.get(places[0].post.card.name, Demand())
        jobs, work = sum(one.jobs for one in asked), sum(one.work for one in asked)
        demand = Demand(max(told.jobs, jobs), max(told.work, work))
        load_s = max(1.0, min(place.load_s for place in places))
        count = self.counts[asked_for] = wanted(demand, load_s, min(place.pace_s for place in places))
        some = chosen([place.seat(now) for place in places], count, first_alone=self._lacks_beside(places[0].post))
        for number, place in enumerate(places):
            place.wanted = number in some

    def _lacks_beside(self, post: Post) -> bool:
        """Another stage of its model has no gang: further ones of this stage would take its room, and draw nothing."""
        beside = [self.places[name] for name in self.paths[post.card.name] if name != post.asked]
        return not all(any(place.usable or place.comes for place in places) for places in beside)

    def _why_ends(self, place: Place) -> str:
        one = place.gang  # whoever holds the lock may remove it meanwhile
        if one is None:
            return ""
        if one.id in self.drained.gangs:
            return "it is drained"
        if set(place.homes) & self.drained.nodes:
            return "its node is drained"
        if one.id in self.refused:
            return "it has loaded other files than those who go on with what it makes"
        model = self.pressed.get(one.id)
        return f"room for a gang of {model}" if model else ""

    def _care(self, place: Place, now: float) -> bool:
        """True if a thread builds its gang now; that one frees the place."""
        if place.gang is None:
            if place.state is GangState.BENCHED and not place.form.rests_at(now):
                place.now(GangState.GONE, "a job")
            if place.wanted and self._may_start(place, now):
                place.now(GangState.STARTING, ROOM)
                threading.Thread(target=self._start, args=(place,), name="gang", daemon=True).start()
                return True
        elif place.ends:
            self._remove(place, place.ends)
        elif self._idles(place, now):
            self._remove(place, f"no job for {place.spec.idle_s:g} s")
        else:
            self._feel(place, place.gang, now)
        return False

    def _idles(self, place: Place, now: float) -> bool:
        """While its jobs wait for something else, a signer, say, it stays: they would have it built again."""
        if place.state is not GangState.READY or place.kept or now - place.since <= place.spec.idle_s:
            return False
        return sum(one.gang is not None for one in self.places[place.post.asked]) > self.counts[place.post.asked]

    def _may_start(self, place: Place, now: float) -> bool:
        if self.closed.is_set() or place.form.rests_at(now):
            return False
        if self._gives_way(place.post):
            return False
        asked = any(name == place.post.asked for name, _ in list(self.asking.values()))
        return asked or now - place.failed_at > (UNSEEN_S if place.unseen else AGAIN_S)

    def _gives_way(self, post: Post) -> bool:
        """Another model's gang is to get the room that was made for it, before anyone else seeks some there, but for
        those for whom some was made before."""
        now, seek, own = time.time(), {place.post.card.name for place in self._all() if place.seeks}, post.card.name
        helped = [(model, homes) for model, (until, homes) in list(self.helped.items()) if now < until]
        before = itertools.takewhile(lambda one: one[0] != own, helped)
        return any(model in seek and room.may_lie(post, homes, self.seen) for model, homes in before)

    def _feel(self, place: Place, one: Gang, now: float) -> None:
        try:
            owes_s = felt(place.pulse, one, now)
        except faults.RAISED as error:
            self._lost(place, error)
            return
        if owes_s > LOST_S:
            self._remove(place, f"no answer for {owes_s:.0f} s")
        elif owes_s > SICK_S and place.state is not GangState.SICK:
            place.now(GangState.SICK, "an answer of its ranks")
            log.warning("gang %s is sick: it does not answer", one.id)
        elif not owes_s and place.state is GangState.SICK:
            place.now(GangState.READY, "a job")
            log.warning("gang %s answers again", one.id)

    # A gang's start, in a thread of its own

    def _start(self, place: Place) -> None:
        place.homes = ()
        try:
            self._join(place)
            place.gang = self._found(place)
            fresh = place.gang is None
            place.gang = place.gang or self._built(place)
            if place.gang is None:
                place.now(GangState.GONE, "a job")
                return
            self._load(place, place.gang, fresh)
        except faults.RAISED as error:
            self._failed(place, error)
        finally:
            place.lack = None
            self._leave(place)

    def _found(self, place: Place) -> Gang | None:
        if not self.swept:
            clear()
            self.swept = True
        return gang.attach(place.post, [other.gang.id for other in self._all() if other.gang is not None])

    def _built(self, place: Place) -> Gang | None:
        connection = place.connection

        def still() -> bool:
            self._join(place)
            if place.connection != connection:
                raise Fault(Cause.RAY_GONE, "Ray was restarted while a gang waited for its room")
            self._plan(place.post.asked)
            way = self._gives_way(place.post)
            return place.wanted and not way and not self.closed.is_set()

        def lacks(lack: Lack) -> None:
            place.lack = lack
            place.waits_for = f"{ROOM}: {room.why_none(place.post, gang.standing(), self.drained.nodes)}"

        shunned, until = self._shunned(place), time.monotonic() + self.room_s

        def away() -> frozenset[str]:
            return self.drained.nodes | (shunned if time.monotonic() < until else frozenset())

        return build(place.post, still, away, lacks, self.room_s)

    def _shunned(self, place: Place) -> frozenset[str]:
        """Where its gangs have failed, if there are nodes beside these that could hold it."""
        shunned = place.shunned & self.seen.keys()
        return shunned if room.would_fit(place.post, self.seen, shunned | self.drained.nodes) else frozenset()

    def _load(self, place: Place, one: Gang, fresh: bool) -> None:
        place.lack, place.homes = None, one.homes()
        self.helped.pop(place.post.card.name, None)
        place.now(GangState.STARTING, "its weights")
        began = time.time()
        one.load(place.post.load_s)
        place.ready_at, place.drawn, place.fault, place.pulse = time.time(), 0, None, Pulse(at=time.time())
        if fresh:
            for other in self._alike(place):
                other.load_s, other.measured = place.ready_at - began, True
        place.now(GangState.READY, "a job")
        log.info("gang %s is ready", one.id)

    def _failed(self, place: Place, error: BaseException) -> None:
        """Each start that its gang has to answer for is a strike."""
        before, fault = place.fault, self._lost(place, error)
        if str(fault) != str(before):  # once
            log.warning("no gang of %s: %s", place.post.pool, fault)
        place.fault, now = fault, time.time()
        place.failed_at = 0.0 if fault.cause is Cause.RAY_GONE else now  # which may be back any moment
        self._judge(place, [-int(now * 1000)], [fault])

    # What both do

    def _alike(self, place: Place) -> list[Place]:
        return [other for other in self.places[place.post.asked] if other.post == place.post]

    def _join(self, place: Place) -> None:
        """Handles do not outlive the connection they were made under, and another head knows nothing of the gang."""
        connection = cluster.connect(self.settings)
        if connection != place.connection:
            place.gang, place.connection = None, connection

    def _judge(self, place: Place, jobs: Sequence[int], answers: Sequence[A]) -> list[A | Fault]:
        """What the jobs are to be told. A gang is built elsewhere than the last one failed, if it can be; where it
        could not be and fails as well, that is the node's doing."""
        homes = frozenset(place.homes)
        if not all(isinstance(answer, Fault) for answer in answers):
            place.form, place.shunned = Form(), place.shunned - homes
        failed = [answer for answer in answers if isinstance(answer, Fault) and may_be_the_gang_s(answer)]
        ended = any(CAUSES[fault.cause] is Payer.GANG for fault in failed)
        benched = len(failed) == len(answers) > 0 and self._benches(place, jobs[:1] if ended else jobs, failed[0])
        again = bool(homes) and homes <= self._shunned(place)
        if ended or benched:
            place.shunned |= homes
        return [charged(one, benched, again) if isinstance(one, Fault) else one for one in answers]

    def _benches(self, place: Place, jobs: Sequence[int], fault: Fault) -> bool:
        """Different jobs in a row that fail are the gang's doing, whatever they met: it goes, and its place rests.
        What ended the gang did so once for all of a group; what did not was met by each of them alone."""
        now = time.time()
        place.form = place.form.after(jobs, now)
        if not place.form.rests_at(now):
            return False
        # The cause alone: whoever waits behind it need not own the job that says more.
        words = f"rested for {place.form.until - now:.0f} s after {STRIKES} jobs in a row failed there: {fault.cause}"
        if place.gang is not None:
            self._remove(place, words)
        place.fault = fault
        place.now(GangState.BENCHED, words)
        log.warning("a gang of %s is %s", place.post.pool, words)
        return True

    def _leave(self, place: Place) -> None:
        """A saturated gang does not idle until somebody looks again."""
        if place.ends and place.gang is not None:
            self._remove(place, place.ends)
        with self.freed:
            place.lock.release()
            self.freed.notify_all()

    def _lost(self, place: Place, error: BaseException) -> Fault:
        """What it means; a gang that cannot be trusted goes. Ray lost is told from a gang lost by asking for Ray."""
        fault = faults.fault_of(error, place.gang.id if place.gang else None)
        before = place.connection
        try:
            self._join(place)
        except Fault as gone:
            fault, place.gang = gone, None
        else:
            if before != place.connection:
                fault = Fault(Cause.RAY_GONE, f"Ray was restarted: {fault.detail}")
            elif CAUSES[fault.cause] is Payer.GANG and place.gang is not None:
                fault = self._of_its_node(place, fault)
        if place.gang is not None and (faults.ends_gang(fault) or place.state is GangState.STARTING):
            self._remove(place, str(fault))
        elif place.gang is None:
            place.now(GangState.GONE, str(fault))
        else:
            place.now(GangState.READY, "a job")
        return fault

    def _of_its_node(self, place: Place, fault: Fault) -> Fault:
        """Ray takes a while to learn that a node went, and a rank that lives says no more than that another is gone."""
        lost: list[str] = []
        with contextlib.suppress(*faults.RAISED):
            lost = room.lost(place.homes)
        words = f"node {', '.join(lost)} is lost: {fault.detail}"
        return Fault(Cause.NODE_FAILED, words, gang=fault.gang) if lost else fault

    def _remove(self, place: Place, why: str = "") -> None:
        one, place.gang, place.ends = place.gang, None, ""
        place.now(GangState.GONE, why or "a job")
        if one is None:
            return
        log.warning("gang %s removed: %s", one.id, why or "the pool closes")
        try:
            one.remove()
        except faults.RAISED as error:
            log.warning("gang %s could not be removed, the next pool sweeps it: %s", one.id, faults.fault_of(error))
            self.swept = False
