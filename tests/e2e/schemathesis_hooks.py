"""What schemathesis must know beyond the description: who asks, and how bytes without a structure are sent."""

import os
import time

import httpx
import schemathesis
from schemathesis import AuthContext, Case, HookContext, Response

PLATFORM_PATHS = r"^/api/v1/tenants"
FRESH_SECONDS = 10


@schemathesis.serializer("application/offset+octet-stream")
def raw(_context: object, value: object) -> dict[str, bytes]:
    return {"data": value if isinstance(value, bytes) else str(value).encode()}


class Platform:
    """The platform's token."""

    def get(self, _case: Case, _context: AuthContext) -> str:
        return os.environ["PLATFORM_TOKEN"]

    def set(self, case: Case, token: str, _context: AuthContext) -> None:
        case.headers["Authorization"] = f"Bearer {token}"


class Owner(Platform):
    """The owner of a tenant that is new every few seconds, and once a generated request has revoked who sends it."""

    key = ""
    since = 0.0

    def get(self, _case: Case, _context: AuthContext) -> str:
        if not Owner.key or time.monotonic() - Owner.since > FRESH_SECONDS:
            answer = httpx.post(
                f"{os.environ['PRODUCT_URL']}/api/v1/tenants",
                json={"name": "generated", "owner_email": f"{os.urandom(8).hex()}@generated.example"},
                headers={"Authorization": f"Bearer {os.environ['PLATFORM_TOKEN']}"},
                trust_env=False,
            )
            Owner.key, Owner.since = answer.raise_for_status().json()["api_key"], time.monotonic()
        return Owner.key


@schemathesis.hook
def after_call(_context: HookContext, _case: Case, response: Response) -> None:
    """Whoever sent what is refused now is somebody new from here on."""
    sent = response.request.headers.get("Authorization", "")
    if response.status_code == httpx.codes.UNAUTHORIZED and sent == f"Bearer {Owner.key}":
        Owner.key = ""


schemathesis.auth(refresh_interval=None).apply_to(path_regex=PLATFORM_PATHS)(Platform)
schemathesis.auth(refresh_interval=None).skip_for(path_regex=PLATFORM_PATHS)(Owner)
