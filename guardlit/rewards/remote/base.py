"""Base of the scorers on a server: the life cycle of their client."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from guardlit.rewards.base import Scorer
from guardlit.rewards.remote.client import Client, Limits


class ClientScorer(Scorer):
    """A scorer with a client, open between `setup` and `close`; a subclass writes `score`.

    Args:
        url: http or https address of the server.
        limits: time-outs, attempts and concurrency.
        token_env: name of the environment variable with the server's bearer token; null sends none.
    """

    background = True

    def __init__(self, url: str, limits: Limits, token_env: str | None) -> None:
        self.url, self.limits, self.token_env = url, limits, token_env
        self._client: Client | None = None

    @property
    def client(self) -> Client:
        """The open client."""
        if self._client is None:
            raise RuntimeError(f"{self.name} was not set up")
        return self._client

    def setup(self, device: torch.device) -> None:
        """Open the client and check the server; raises `GuardlitError` for an address, token or server that fails."""
        self.close()
        self._client = Client(self.url, self.limits, self.token_env)
        try:
            self.check_server()
        except BaseException:
            self.close()
            raise

    def check_server(self) -> None:
        """Raise `GuardlitError` where the server cannot give the scores of this run."""

    def counters(self) -> Mapping[str, float]:
        """Calls, failures, retries and latency in seconds since the last call."""
        return {} if self._client is None else self._client.counters()

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None
