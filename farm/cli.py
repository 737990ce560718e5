"""The composition root: every command of `farm`, and the processes wired together from the rooms.

Nothing heavy is imported before a command runs, so `farm --help` loads neither torch nor Ray.
"""

from __future__ import annotations

import io
import logging
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from farm.commands import (
    access,
    batches,
    demo,
    doctor,
    in_force,
    keys,
    lists,
    measuring,
    models,
    policy,
    pool,
    quarantine,
    shadowing,
    verifying,
)
from farm.commands.ending import told
from farm.commands.output import say
from farm.commands.session import open_store
from farm.errors import Fault, Unavailable
from farm.job import Cause
from farm.ports import Provenance

if TYPE_CHECKING:
    from fastapi import FastAPI

    from farm.config import Settings
    from farm.dispatcher import Dispatcher

app = typer.Typer(
    name="farm",
    add_completion=False,
    rich_markup_mode=None,
    help="A render farm for FLUX image models that lets no image out that was not judged and signed.",
)
PROBE_S = 5.0  # patience with a signer that is only asked whether it is there


def main(arguments: list[str] | None = None) -> None:
    """Exit codes: 0 done, 1 the work failed, 2 wrong usage. An error is one line: where, what, what to do."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    sys.exit(_run(arguments))


def _run(arguments: list[str] | None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    try:
        return int(app(given or ["--help"], prog_name="farm", standalone_mode=False) or 0)
    except (Exception, KeyboardInterrupt) as error:
        return told(error)


@app.command()
def up() -> None:
    """Run the whole farm on this machine: signer, Ray, dispatcher, API and pages."""
    from actors import cluster
    from farm import config
    from farm.commands import starting
    from farm.supervisor import closed_to_others

    settings = config.load()
    cluster.foreign_address(settings)  # told here, not in the log of a child that starts again and again
    _log()
    key = starting.prepare(settings)
    say(f"farm: key in {key}; pages and API at {settings.api_url}; logs in {settings.home / 'log'}")
    threading.Thread(target=starting.announce, args=(settings,), daemon=True).start()
    closed_to_others()
    raise typer.Exit(starting.supervisor(settings).run())


@app.command()
def api() -> None:
    """Run the API and the pages alone."""
    import uvicorn

    settings = _begin()
    options = {"host": settings.host, "port": settings.port, "timeout_graceful_shutdown": 3}
    uvicorn.run(build_api(settings), log_config=None, access_log=False, ws="none", **options)  # type: ignore[arg-type]


@app.command()
def dispatch(*, unkept: Annotated[bool, typer.Option("--unkept", hidden=True)] = False) -> None:
    """Run a dispatcher alone: it leases jobs and carries them through rendering, judging, signing and publication."""
    from actors import cluster
    from farm.commands.starting import argv
    from farm.keeping import Keeper

    settings = _begin()
    if not unkept:
        cluster.foreign_address(settings)  # one that can never be joined is told at once
        raise typer.Exit(Keeper(argv("dispatch")).run())
    dispatcher, close = build_dispatcher(settings)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: dispatcher.stop())
    try:
        dispatcher.run()
    finally:
        close()


@app.command()
def signer() -> None:
    """Run the signer alone: the one process that holds the keys."""
    from farm.supervisor import closed_to_others
    from provenance.signer import serve

    closed_to_others()
    serve(_begin())


@app.command()
def ray() -> None:
    """Run a Ray head of our own alone, on loopback, with its token."""
    from actors.head import serve

    raise typer.Exit(serve(_begin()))


def build_api(settings: Settings) -> FastAPI:
    from actors.models import catalogue
    from dashboard.app import mount
    from farm.access import Access
    from farm.api import create_app
    from farm.api.callers import Farm
    from farm.checking import Checker
    from farm.commands.beforehand import default_model, ready_models
    from farm.db import connect, migrate
    from farm.insights import Insights
    from farm.job_queue import JobQueue
    from provenance import report
    from provenance.client import SignerClient
    from provenance.desk import VerifyingDesk

    engine = connect(settings.database_url)
    migrate(engine)
    queue, access, insights = JobQueue(engine), Access(engine), Insights(engine)
    store = open_store(settings)
    fit = report.FIT_PARENT | (report.BROKEN if settings.broken_inputs == "record" else frozenset())
    default = default_model(settings, ready_models(settings))
    desk = VerifyingDesk(settings.home, fit)
    checker = Checker(desk.told, engine, max_bytes=settings.max_upload_mb << 20, public=settings.verify_public)
    salts = SignerClient(settings.signer_socket, timeout=PROBE_S).prompt_salt
    core = (settings, queue, access, insights, store, catalogue())
    farm = Farm(*core, default, desk, checker=checker, prompt_salt=salts)
    api = create_app(farm)
    mount(api, access=access, insights=insights, queue=queue, store=store, checker=checker)
    return api


def build_dispatcher(settings: Settings) -> tuple[Dispatcher, Callable[[], None]]:
    """The dispatcher with every port connected, and what closes them."""
    from actors import cluster
    from actors.gate import RemoteGate
    from actors.models import catalogue, lacking
    from actors.plan import groups_of
    from actors.pool import Pool
    from farm import sealed
    from farm.commands.beforehand import first_policy
    from farm.db import connect, migrate
    from farm.dispatcher import Dispatcher
    from farm.job_queue import JobQueue
    from farm.licences import asked
    from farm.pipeline import Ports
    from farm.quarantine import Quarantine
    from farm.rules import Herald
    from farm.scratch import SCRATCH, Scratch
    from provenance.client import SignerClient
    from safety import places

    cluster.foreign_address(settings)  # one that can never be joined is told at once
    engine = connect(settings.database_url)
    migrate(engine)
    document = first_policy(settings).document
    renderer = Pool(settings, catalogue())
    renderer.start()
    store = open_store(settings)
    signer = SignerClient(settings.signer_socket)
    ports = Ports(
        queue=JobQueue(engine, licences=asked(catalogue())),
        renderer=renderer,
        gate=RemoteGate(settings, "safety.gate:load_gate", [places.whole(settings.encoder)]),
        signer=signer,
        verifier=OwnVerifier(settings.home),
        store=store,
        retry_s=settings.retry_s,
        max_pixels_in=settings.max_pixels_in,
        quarantine=Quarantine(engine, store, signer, sealed.chosen(settings)),
        scratch=Scratch(settings.home / SCRATCH),
        probes={
            Cause.SIGNER_DOWN: SignerClient(settings.signer_socket, timeout=PROBE_S).health,
            Cause.RAY_GONE: lambda: cluster.probe(settings),
            Cause.STORE_DOWN: store.reach,
        },
    )
    workers = settings.workers or groups_of(settings, catalogue(), lacking)
    rules = Herald(engine, ports.gate, document, settings.project)
    dispatcher = Dispatcher(ports, group=settings.group, workers=workers, lease_s=settings.lease_s, rules=rules)
    return dispatcher, renderer.close


@dataclass(frozen=True, slots=True)
class OwnVerifier:
    """Checks what we signed against our own trust list, as it is now: it is there once the signer has run for the first
    time, and an operator may trust others too."""

    home: Path

    def verify(self, data: bytes, mime: str) -> Provenance:
        from provenance import keys
        from provenance.verify import LocalVerifier

        try:
            trust = keys.trust(self.home)
        except Unavailable as error:
            raise Fault(Cause.SIGNER_DOWN, error.detail) from error
        return LocalVerifier(trust).verify(data, mime)


def _begin() -> Settings:
    from farm import config
    from farm.commands import starting

    _log()
    settings = config.load()
    starting.make_home(settings)
    return settings


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for noisy in ("httpx", "httpcore", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


for command in (
    batches.submit,
    batches.ls,
    batches.show,
    batches.watch,
    batches.cancel,
    batches.retry,
    batches.pause,
    batches.resume,
    batches.download,
    verifying.verify,
    verifying.prompt_proof,
    demo.demo,
    doctor.doctor,
):
    app.command()(command)
NUMBERS = {"ignore_unknown_options": True}  # so that -5 is a number, not an option
THEIR_OWN = NUMBERS | {"allow_extra_args": True, "help_option_names": []}  # benchmarks read their options themselves
app.command(context_settings=NUMBERS)(batches.priority)
app.command(context_settings=THEIR_OWN)(models.bench)
app.add_typer(models.models, name="models")
app.add_typer(access.access, name="access")
app.add_typer(pool.pool, name="pool")
policy.policy.add_typer(lists.lists, name="lists")
policy.policy.add_typer(quarantine.quarantine, name="quarantine")
policy.policy.command()(in_force.activate)
policy.policy.command()(in_force.rescan)
policy.policy.command()(shadowing.shadow)
policy.policy.command()(in_force.ls)
policy.policy.command("calibrate")(measuring.calibrate)
policy.policy.command("eval")(measuring.evaluate)
app.add_typer(policy.policy, name="policy")
app.add_typer(keys.keys, name="keys")


if __name__ == "__main__":
    main()
