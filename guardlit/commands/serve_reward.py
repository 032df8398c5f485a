"""`guardlit serve-reward`: scorers of a YAML file, on a port."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from jsonargparse import ActionConfigFile  # type: ignore[attr-defined]

import guardlit.rewards  # noqa: F401 - so that YAML may say `class_path: PickScore`
from guardlit import __version__
from guardlit.config.parser import GuardlitParser
from guardlit.errors import GuardlitError
from guardlit.rewards.base import Scorer
from guardlit.rewards.remote.retries import bearer_token
from guardlit.rewards.remote.wire import PROTOCOL
from guardlit.serving.app import ServerLimits, create_app
from guardlit.serving.worker import Worker

log = logging.getLogger("guardlit.serving")

GRACE_S = 30
"""Seconds that requests in progress have after a stop signal."""


@dataclass
class ServerSettings:
    """Serve scorers over HTTP.

    Attributes:
        scorers: by the name that clients ask for.
        host: address to listen on.
        port: to listen on; 0 takes a free one, which the ready line names.
        allow_remote: needed for a host that other machines can reach.
        token_env: name of the environment variable with the token that clients must send; null asks for none.
        device: where scorers live whose placement does not say otherwise.
        limits: how much is taken at once.
        merge: largest batch of waiting requests in images, by scorer; for a scorer that is not named, every request is
            its own batch, which gives the same values as in the trainer's own process.
    """

    scorers: dict[str, Scorer]
    host: str = "127.0.0.1"
    port: int = 8765
    allow_remote: bool = False
    token_env: str | None = None
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    limits: ServerLimits = ServerLimits()  # noqa: RUF009 - frozen
    merge: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.scorers:
            raise ValueError("scorers: at least one is needed, such as `scorers: {pick: PickScore}`")
        odd = next((name for name in self.scorers if not re.fullmatch(r"[\w.-]+", name)), None)
        if odd is not None:
            raise ValueError(f"scorers: the name {odd!r} must be of letters, digits, '_', '.' and '-'")
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port} is none; they go from 0 to 65535")
        for name, most in self.merge.items():
            if name not in self.scorers or most < 1:
                raise ValueError(f"merge: {name}: {most} is not a served scorer and a number of images of at least 1")

    @property
    def loopback(self) -> bool:
        """Whether this machine alone can ask."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def main(args: list[str]) -> None:
    """Run `guardlit serve-reward` until a signal asks it to stop.

    Args:
        args: the command's name and its options.

    Raises:
        GuardlitError: settings that cannot be served.
    """
    parser = GuardlitParser(prog="guardlit serve-reward", description=__doc__)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="YAML file with the options below")
    parser.add_class_arguments(ServerSettings)
    parsed = parser.parse_args(args[1:])  # help and mistakes need no server
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise GuardlitError(f"{' and '.join(missing)} not installed: pip install 'guardlit[serve]'")
    config = parser.instantiate_classes(parsed)
    config.pop("config")
    try:
        settings = ServerSettings(**vars(config))
    except ValueError as error:
        raise GuardlitError(str(error)) from error
    serve(settings)


def serve(settings: ServerSettings) -> None:
    """Load the scorers and answer requests until SIGINT or SIGTERM, then finish requests in progress.

    Raises:
        GuardlitError: an address or a token that cannot be used, or a scorer that cannot be loaded.
    """
    logging.basicConfig(format="guardlit serve-reward: %(message)s", level=logging.WARNING)
    token = token_of(settings)
    with _listen(settings) as listener:  # before the minutes that weights take to load
        device = _device(settings.device)
        for scorer in settings.scorers.values():
            scorer.setup(device)
        app = create_app(Worker(settings.scorers, settings.merge), _facts(settings), settings.limits, token)
        _run(app, listener, settings)


def token_of(settings: ServerSettings) -> str | None:
    """The token that clients must send, if any; raises `GuardlitError` for an address that is open by oversight."""
    if not settings.loopback and not settings.allow_remote:
        raise GuardlitError(
            f"host {settings.host} can be reached by other machines: add --allow_remote true to mean it, "
            "and --token_env NAME so that only clients with the token are served"
        )
    if settings.token_env is None:
        if not settings.loopback:
            log.warning("%s serves every client that can reach it; --token_env NAME requires a token", settings.host)
        return None
    return bearer_token(settings.token_env)


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        family = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        raise GuardlitError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
    return listener


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise GuardlitError(f"device '{name}' is none of this machine's: {reason}") from error
    return device


def _facts(settings: ServerSettings) -> dict[str, Any]:
    """What can change a value's last digits, besides the scorers' provenance."""
    return {
        "protocol": PROTOCOL,
        "guardlit": __version__,
        "torch": torch.__version__,
        "device": settings.device,
        "threads": torch.get_num_threads(),
        "merge": settings.merge,
    }


def _run(app: Any, listener: socket.socket, settings: ServerSettings) -> None:
    import uvicorn

    host, port = listener.getsockname()[:2]
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print(f"guardlit serve-reward: ready on {address} with {', '.join(settings.scorers)}", flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            log.warning("stopping after the requests in progress")  # stdout may be closed by now
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_keep_alive=75, timeout_graceful_shutdown=GRACE_S
    )
    Server(config).run([listener])
