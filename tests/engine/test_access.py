"""Which key SGLang wants for the path that steers SpecKV: its own routes behind its own check."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

pytestmark = pytest.mark.engine
BODY = {"server_args": {"speckv_num_steps": 0}}
NO_SERVER = 500
"""The route was reached; there is no engine behind it here."""


@pytest.mark.parametrize(
    ("key", "admin_key", "sent", "status"),
    [
        (None, None, None, NO_SERVER),
        ("key", None, None, 401),
        ("key", None, "other", 401),
        ("key", None, "key", NO_SERVER),
        (None, "admin", None, 401),
        ("key", "admin", "key", 401),
        ("key", "admin", "admin", NO_SERVER),
    ],
)
def test_who_may_steer(
    key: str | None, admin_key: str | None, sent: str | None, status: int
) -> None:
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.utils.auth import add_api_key_middleware

    routes = Starlette(routes=app.routes)
    add_api_key_middleware(routes, api_key=key, admin_api_key=admin_key)
    headers = {} if sent is None else {"Authorization": f"Bearer {sent}"}
    with TestClient(routes, raise_server_exceptions=False) as client:
        for method in (client.post, client.put):
            assert method("/set_internal_state", json=BODY, headers=headers).status_code == status
        assert client.get("/metrics", headers=headers).status_code != 401
