"""A server that refuses repositories as the Hugging Face hub does: run as a script, it tries to read three of them.

`python gated_hub.py 401 GatedRepo files`: the status and code of the refusal, and whether it comes with the `files` or
already with the repository (`all`). Prints the error of a model, a scorer and a data set, a line each.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHA = "a" * 40
FILES = ("model_index.json", "config.json", "transformer/config.json")


class Hub(BaseHTTPRequestHandler):
    """Answers what the hub's libraries ask."""

    status, code, where = 401, "GatedRepo", "files"

    def do_GET(self) -> None:
        if self.where == "files" and self.path.startswith("/api/"):
            files = [{"rfilename": n, "path": n, "type": "file", "size": 3, "oid": SHA} for n in FILES]
            repository = {"id": "org/gated", "sha": SHA, "gated": "auto", "private": False, "siblings": files}
            self.answer(200, json.dumps(files if "/tree/" in self.path else repository))
        else:
            self.answer(self.status, "", **{"X-Error-Code": self.code, "X-Error-Message": "Access is restricted."})

    do_HEAD = do_POST = do_GET  # noqa: N815 - the names that the base class looks for

    def answer(self, status: int, body: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def log_message(self, *args: object) -> None: ...


def attempt(read: Callable[[], object]) -> None:
    """Print the user's error."""
    from guardlit.errors import GuardlitError

    try:
        read()
    except GuardlitError as error:
        print(error)


if __name__ == "__main__":
    Hub.status, Hub.code, Hub.where = int(sys.argv[1]), *sys.argv[2:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}

    import torch

    from guardlit.data.prompts import load_prompts
    from guardlit.policies import SD3Policy
    from guardlit.rewards import PickScore

    print(os.environ["HF_ENDPOINT"])
    attempt(lambda: SD3Policy("org/gated").load())
    attempt(lambda: PickScore("org/gated").setup(torch.device("cpu")))
    attempt(lambda: load_prompts("hf:org/gated"))
