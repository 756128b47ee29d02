"""Keys of the caller's own project."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from control import models
from control.auth import identify
from control.keys import KeyInfo, parse_expiry
from control.routes.parameters import ERRORS, NOT_FOUND, Admin, Bearer, HeliconeAuth, Reader, now_ms
from control.scope import iso
from control.services import services_of
from control.web import Json

router = APIRouter(tags=["keys"])


@router.get("/v1/me", summary="Whose key this is", response_model=models.Me, responses=ERRORS)
async def me(request: Request, _bearer: Bearer, _helicone: HeliconeAuth) -> Response:
    services = services_of(request)
    caller = await identify(request, services.keys, local=services.settings.auth == "local")
    return Json({"project_id": caller.project_id, "key_id": caller.key_id, "permissions": list(caller.permissions)})


@router.get(
    "/v1/projects",
    summary="The projects this key sees: its own",
    response_model=models.ProjectList,
    responses=ERRORS,
)
async def projects(request: Request, caller: Reader) -> Response:
    found = [p for p in await services_of(request).keys.list_projects() if p.id == caller.project_id]
    return Json({"projects": [{"id": p.id, "created_at": iso(p.created_ms)} for p in found]})


@router.get("/v1/keys", summary="This project's keys", response_model=models.KeyList, responses=ERRORS)
async def keys(request: Request, caller: Admin) -> Response:
    """Revoked and expired ones too."""
    return Json({"keys": [_key_shape(info) for info in await services_of(request).keys.list_keys(caller.project_id)]})


@router.post(
    "/v1/keys",
    summary="Make a key of this project",
    status_code=201,
    response_model=models.KeyCreated,
    responses=ERRORS,
)
async def create_key(request: Request, body: models.KeyIn, caller: Admin) -> Response:
    made = await services_of(request).keys.create(
        name=body.name,
        project=caller.project_id,
        permissions=body.permissions,
        expires_in_ms=None if body.expires is None else parse_expiry(body.expires),
    )
    return Json({"key": made.text, "info": _key_shape(made.info), "published": made.published}, 201)


@router.delete(
    "/v1/keys/{id_or_name}",
    summary="Revoke a key of this project",
    response_model=models.KeyRevoked,
    responses={**ERRORS, **NOT_FOUND, 409: {"model": models.Error, "description": "several keys have this name"}},
)
async def revoke_key(request: Request, id_or_name: str, caller: Admin) -> Response:
    """In force at every edge within a second; at once here."""
    revoked = await services_of(request).keys.revoke(id_or_name, caller.project_id, asking=caller.key_id)
    return Json({"info": _key_shape(revoked.info), "published": revoked.published})


def _key_shape(info: KeyInfo) -> dict[str, Any]:
    return {
        "id": info.id,
        "name": info.name,
        "project_id": info.project_id,
        "permissions": info.permissions,
        "last4": info.last4,
        "state": info.state(now_ms()),
        "created_at": iso(info.created_ms),
        "expires_at": None if info.expires_ms is None else iso(info.expires_ms),
        "revoked_at": None if info.revoked_ms is None else iso(info.revoked_ms),
    }
