"""What the settings mean on this machine, and whether they can work, asked before anything starts."""

from __future__ import annotations

import errno
import logging
import re
import shlex
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from farm.errors import BadInput, Fault, Unavailable, nearest

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from farm.config import Settings
    from safety.policy import Policy

log = logging.getLogger("farm")
SQLITE_AWAY = "see who holds it, its disk, and that it and its folder can be written"


def ready_models(settings: Settings) -> list[str]:
    """Those whose files are there, in the folder of one of their pools or in that of all."""
    from actors.models import catalogue, lacking
    from actors.plan import pools_of

    cards = catalogue()
    places = {(pool.model, pool.weights or settings.models) for pool in pools_of(settings, cards)}
    ready = {model for model, place in places if not lacking(cards[model], Path(place) if place else None)}
    return [name for name in cards if name in ready]


def default_model(settings: Settings, ready: list[str]) -> str | None:
    """What a line that names no model means: what is set, else the only real one that is ready. The tiny one is meant
    only where nobody has spoken of others."""
    from actors.cards import TINY
    from actors.models import catalogue

    if settings.default_model:
        rendered = [name for name, card in catalogue().items() if card.rendered]
        if settings.default_model not in rendered:
            says = f"{settings.default_model!r} is no model that is rendered"
            raise BadInput(says, field="default_model", fix=nearest(settings.default_model, rendered))
        return settings.default_model
    real = [name for name in ready if name != TINY.name]
    if not real and not settings.models:
        return TINY.name
    return real[0] if len(real) == 1 else None


def gate(settings: Settings) -> Policy:
    """Its policy, if that can be read and the encoder's files are there."""
    from safety import policy

    check_encoder(settings)
    return policy.load(settings.policy or None)


def check_encoder(settings: Settings) -> None:
    from safety import places

    try:
        places.check(settings.encoder)
    except Fault as error:
        fix = "put its files there, or set FARM_ENCODER to another"
        raise Unavailable(error.detail, field="encoder", fix=fix) from error


def first_policy(settings: Settings) -> Policy:
    """The one that the settings name. A file that is not there any more stops no farm that has a policy in force."""
    from farm import rules
    from safety import policy

    try:
        return policy.load(settings.policy or None)
    except BadInput as error:
        stands = rules.look(settings.database_url).get(rules.ACTIVE)
        if stands is None:
            raise
        log.warning("the policy of the settings is not read: %s; %s stays in force", error, stands.name)
        return policy.parse(stands.document)


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def port_is_free(host: str, port: int) -> bool:
    """Not where something listens already; an address that nothing here can listen on is an error."""
    try:
        with socket.socket(family(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            return False
        says = f"nothing can listen on {host}:{port}: {getattr(error, 'strerror', None) or error}"
        fix = "set FARM_HOST to an address of this machine, FARM_PORT to a port that you may use"
        raise BadInput(says, field="host", fix=fix) from error
    return True


def database_fix(url: URL, detail: str) -> str:
    """What to do about a database that is there and does not answer."""
    if url.get_backend_name() == "sqlite":
        damaged = re.search("not a database|malformed", detail)
        return "put a copy in its place, or move it away: `farm up` makes another" if damaged else SQLITE_AWAY
    where = [("-h", url.host), ("-p", url.port), ("-U", url.username)]
    options = [part for flag, value in where if value for part in (flag, str(value))]
    if re.search(r'database ".*" does not exist', detail):
        return shlex.join(["createdb", *options, url.database or ""])
    if "refused" in detail or "No such file" in detail:
        return "start PostgreSQL there, or correct the host and the port in FARM_DATABASE"
    return "see that FARM_DATABASE names a database that answers, and a user who may use it"
