"""`farm keys`: what the signer signs with. For whoever may read its folder; every change is on the audit record."""

from __future__ import annotations

import datetime as dt
import getpass
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from farm.commands.output import as_json, facts, say, table
from farm.errors import BadInput

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from farm.config import Settings

keys = typer.Typer(help="The signer's keys and certificates, and whom the farm trusts.")
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
By = Annotated[str, typer.Option(metavar="NAME", help="Who answers for it; left out: the user of this machine.")]
Algorithm = Annotated[str, typer.Option(help="es256 or ed25519; left out: as before.")]

Token = Annotated[
    str, typer.Option(metavar="URI", help="A PKCS#11 token to make the key in: pkcs11:token=NAME?module-path=FILE.")
]


class Record(Protocol):
    def __call__(self, action: str, subject: str, /, **data: Any) -> None: ...


@keys.command("init")
def init(
    algorithm: Annotated[str, typer.Option(help="es256 or ed25519.")] = "es256", by: By = "", json_: Json = False
) -> None:
    """Make the development authority, as the signer would with its first start, or complete it."""
    from provenance import authority
    from provenance import keys as there

    settings, passphrase = _opened()
    with _recorded(settings, by) as record:
        made = there.init(settings.home, algorithm, passphrase)
        record("make keys", f"certificate {made.leaf.serial_number}", algorithm=made.algorithm)
    _told(asdict(authority.described(settings.home, made.leaf)), json_)


@keys.command("ls")
def ls(json_: Json = False) -> None:
    """List the keys and certificates: in use, past, revoked; never a key itself."""
    from farm import config
    from provenance import authority

    rows = [asdict(one) for one in authority.held(config.load().home)]
    if json_:
        as_json(rows)
    elif rows:
        table(rows, ["role", "state", "algorithm", "serial", "not_before", "not_after", "rests"])
    else:
        say("farm: there are no keys yet: the signer makes them, or `farm keys init`")


@keys.command("rotate")
def rotate(
    role: Annotated[str, typer.Argument(metavar="[ROLE]", help="leaf, issuing, stamps or root.")] = "leaf",
    algorithm: Algorithm = "",
    certificate: Annotated[
        Path | None, typer.Option(metavar="PEM", help="Another authority's answer to `farm keys csr`, to sign with.")
    ] = None,
    token: Token = "",
    by: By = "",
    json_: Json = False,
) -> None:
    """Sign with a new key from the next image on. Nothing stops, and what was signed stays Trusted."""
    from provenance import authority

    settings, passphrase = _opened()
    with _recorded(settings, by) as record:
        if certificate is None:
            made = authority.rotate(settings.home, passphrase, role, algorithm, _token(token))
        else:
            made = authority.install(settings.home, passphrase, _certificates(certificate, "--certificate"))
        record("rotate key", f"certificate {made.serial_number}", role=role)
    if role == "root":
        say("farm: give verifiers the new trust list: `farm keys trust`. The old root stays on it: if it was stolen,")
        say("farm: `farm keys revoke` it")
    _told(asdict(authority.described(settings.home, made)), json_)


@keys.command("revoke")
def revoke(
    serial: Annotated[str, typer.Argument(metavar="SERIAL", help="As `farm keys ls` and `farm verify` show it.")],
    reason: Annotated[str, typer.Option(help="Why, in a few words.")],
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="What a time stamp puts before still counts; left out: nothing does.")
    ] = "",
    by: By = "",
    json_: Json = False,
) -> None:
    """Say that what a certificate signed no longer counts. If it is in use, another takes its place at once."""
    from provenance import authority
    from provenance import keys as there

    if not serial.isdecimal():
        raise BadInput(f"{serial!r} is no serial number", field="SERIAL", fix="`farm keys ls` shows them")
    settings, passphrase = _opened()
    moment = _moment(since)
    with _recorded(settings, by) as record:
        before = there.init(settings.home, passphrase=passphrase).trust
        known = authority.revoke(settings.home, passphrase, serial, moment, reason)
        record("revoke certificate", f"certificate {serial}", since=moment, reason=reason)
    if there.trust(settings.home) != before:
        say("farm: the trust list is another: give it to verifiers (`farm keys trust`)")
    if not known:
        say(f"farm: {serial} is none of the certificates here; it is on the list all the same")
    _told({"serial": serial, "since": since or "ever", "reason": reason}, json_)


@keys.command("csr")
def csr(
    name: Annotated[str, typer.Option(help="What the signer is called.")],
    organization: Annotated[str, typer.Option(help="Who you are.")],
    country: Annotated[str, typer.Option(help="Two letters.")],
    algorithm: Algorithm = "",
    token: Token = "",
    by: By = "",
    json_: Json = False,
) -> None:
    """Make a key, and print the request that another authority needs to certify it. The one in use stays until then."""
    from provenance import authority

    settings, passphrase = _opened()
    names = {"country": country, "organization": organization, "name": name}
    with _recorded(settings, by) as record:
        made = authority.request(settings.home, passphrase, names, algorithm, _token(token))
        record("request certificate", f"signer {name}", **names)
    if json_:
        as_json({"csr": made})
    else:
        print(made, end="")


@keys.command("trust")
def trust(
    add: Annotated[Path | None, typer.Option(metavar="PEM", help="Roots to trust beside the farm's own.")] = None,
    remove: Annotated[
        str, typer.Option(metavar="SERIAL", help="A root to trust no longer, as `farm keys ls` shows it.")
    ] = "",
    by: By = "",
    json_: Json = False,
) -> None:
    """Print the farm's trust list: what others need to verify its images."""
    from farm import config
    from provenance import authority

    settings = config.load()
    if remove:
        settings, passphrase = _opened()
        with _recorded(settings, by) as record:
            gone = authority.trust_no_longer(settings.home, passphrase, remove)
            record("distrust", f"certificate {remove}", called=gone.subject.rfc4514_string())
    if add is not None:
        settings, passphrase = _opened()
        roots = _certificates(add, "--add")
        with _recorded(settings, by) as record:
            authority.trust_also(settings.home, passphrase, roots)
            for one in roots:
                record("trust", f"certificate {one.serial_number}", called=one.subject.rfc4514_string())
    found = authority.trust_list(settings.home)
    if json_:
        as_json(found)
    else:
        print(found["pem"], end="")


def _token(uri: str) -> str:
    from provenance import tokens

    return tokens.check(uri) if uri else ""


def _opened() -> tuple[Settings, bytes | None]:
    from farm import config
    from farm.commands.starting import make_home
    from provenance.keyfiles import passphrase_of

    settings = config.load()
    make_home(settings)
    return settings, passphrase_of(settings)


@contextmanager
def _recorded(settings: Settings, by: str) -> Iterator[Record]:
    """The database is opened before anything is changed, so that nothing is changed without a record."""
    from farm import audit
    from farm.db import connect, migrate, transact

    engine, who = connect(settings.database_url), by or getpass.getuser()

    def record(action: str, subject: str, /, **data: Any) -> None:
        now = time.time()
        transact(engine, lambda there: audit.append(there, settings.project, who, action, subject, now, **data))

    try:
        migrate(engine)
        yield record
    finally:
        engine.dispose()


def _certificates(path: Path, field: str) -> list[Certificate]:
    from cryptography.x509 import load_pem_x509_certificates

    if not path.is_file():
        raise BadInput(f"no file {path}", field=field)
    try:
        return load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise BadInput(f"{path} holds no certificates in PEM", field=field) from error


def _moment(since: str) -> float:
    try:
        found = dt.datetime.fromisoformat(since) if since else None
    except ValueError as error:
        raise BadInput(f"{since!r} is no time", field="--since", fix="such as 2026-11-22T10:00:00Z") from error
    return 0.0 if found is None else (found if found.tzinfo else found.replace(tzinfo=dt.UTC)).timestamp()


def _told(row: dict[str, Any], json_: bool) -> None:
    if json_:
        as_json(row)
    else:
        facts(row)
