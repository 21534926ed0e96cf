"""What schemathesis must know beyond the description: who asks, and how bytes without a structure are sent."""

import os

import httpx
import schemathesis
from schemathesis import AuthContext, Case

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
    """The owner of a tenant that is new every few seconds, since generated requests may well revoke who sends them."""

    def get(self, _case: Case, _context: AuthContext) -> str:
        answer = httpx.post(
            f"{os.environ['PRODUCT_URL']}/api/v1/tenants",
            json={"name": "generated", "owner_email": f"{os.urandom(8).hex()}@generated.example"},
            headers={"Authorization": f"Bearer {os.environ['PLATFORM_TOKEN']}"},
            trust_env=False,
        )
        return answer.raise_for_status().json()["api_key"]


schemathesis.auth(refresh_interval=None).apply_to(path_regex=PLATFORM_PATHS)(Platform)
schemathesis.auth(refresh_interval=FRESH_SECONDS).skip_for(path_regex=PLATFORM_PATHS)(Owner)
