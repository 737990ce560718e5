"""Who asks, and what they may: API keys as bearer tokens, each bound to a project and a role."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from fastapi.dependencies.models import Dependant

from farm.access import Access, Deed, KeyView, require
from farm.checking import Checker
from farm.config import Settings
from farm.errors import BadInput, Unauthorized, nearest
from farm.insights import Insights
from farm.job_queue import JobQueue
from farm.ports import Examiner, ModelCard, Store


@dataclass(frozen=True, slots=True)
class Farm:
    """What the routes work with."""

    settings: Settings
    queue: JobQueue
    access: Access
    insights: Insights
    store: Store
    catalogue: Mapping[str, ModelCard]
    default_model: str | None = None
    checker: Checker = field(kw_only=True)
    prompt_salt: Callable[[int, str], str] = field(kw_only=True)  # of a job of this project, in hexadecimal
    examiner: Examiner | None = None  # of uploads; without one the signer alone refuses what it cannot sign


def the_farm(request: Request) -> Farm:
    farm: Farm = request.app.state.farm
    return farm


def caller(request: Request) -> KeyView:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Unauthorized("no API key was sent", field="Authorization", fix="send `Authorization: Bearer KEY`")
    found = the_farm(request).access.find_key(key.strip())
    if found is None:
        raise Unauthorized("this API key is unknown or revoked", field="Authorization")
    return found


def runner(who: Annotated[KeyView, Depends(caller)]) -> KeyView:
    """A caller whose role may submit batches and steer them."""
    require(who, Deed.RUN)
    return who


def operator(who: Annotated[KeyView, Depends(caller)]) -> KeyView:
    """A caller whose role may see what the farm runs on."""
    require(who, Deed.OPERATE)
    return who


def no_unknown_parameters(request: Request) -> None:
    known = _parameters(request.scope["route"].dependant)
    for name in request.query_params:
        if name not in known:
            fix = nearest(name, known) if known else "this route takes none"
            raise BadInput(f"unknown parameter {name!r}", field=name, fix=fix)


def _parameters(dependant: Dependant) -> set[str]:
    own = {parameter.alias for parameter in dependant.query_params}
    return own.union(*(_parameters(inner) for inner in dependant.dependencies))


TheFarm = Annotated[Farm, Depends(the_farm)]
Caller = Annotated[KeyView, Depends(caller)]
Runner = Annotated[KeyView, Depends(runner)]
Operator = Annotated[KeyView, Depends(operator)]
