"""JupyterHub's look-up of a user, by its own API, without the proxy in front of it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.http.servers import Target, free_port, process

MISSING = "JupyterHub is not installed (pip install jupyterhub, on the PATH)"
TOKEN = "0123456789abcdef0123456789abcdef"  # noqa: S105 - of a hub that lives for seconds

CONFIG = """
from jupyterhub.proxy import Proxy


class NoProxy(Proxy):
    should_start = False

    async def add_route(self, routespec, target, data):
        pass

    async def delete_route(self, routespec):
        pass

    async def get_all_routes(self):
        return {{}}


c.JupyterHub.proxy_class = NoProxy
c.JupyterHub.hub_port = {port}
c.JupyterHub.db_url = "sqlite:///{home}/hub.sqlite"
c.JupyterHub.cookie_secret_file = "{home}/cookie_secret"
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.log_level = "ERROR"
c.Authenticator.allowed_users = {{"{user}"}}
c.JupyterHub.services = [{{"name": "bench", "api_token": "{token}"}}]
c.JupyterHub.load_roles = [{{"name": "bench", "scopes": ["read:users"], "services": ["bench"]}}]
"""


def installed() -> bool:
    return shutil.which("jupyterhub") is not None


@contextmanager
def serve(directory: Path, user: str) -> Iterator[Target]:
    home, port = directory / "jupyterhub", free_port()
    home.mkdir()
    config = home / "config.py"
    config.write_text(CONFIG.format(port=port, home=home, user=user, token=TOKEN))
    with process(["jupyterhub", "-f", str(config)], port=port, directory=directory):
        yield Target(
            name="JupyterHub, user look-up",
            url=f"http://127.0.0.1:{port}/hub/api/users/{user}",
            method="GET",
            headers=(f"Authorization: token {TOKEN}",),
        )
