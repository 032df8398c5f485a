"""The part of the Hugging Face Hub's HTTP API that an upload uses, on the loopback: it keeps what it is given."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

LARGE = 4096
"""Files from this size on, and safetensors of any size, are sent as LFS objects."""


@dataclass
class Repository:
    """One repository.

    Attributes:
        private: whether it was made so.
        files: contents by path.
        commits: titles.
    """

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """State of the server.

    Attributes:
        token: the only one that it accepts.
        owner: of that token, whose namespace may be written.
        repositories: by name.
        objects: LFS contents by SHA-256, before they are committed.
        requests: method and path of each.
        failures: path's end -> status and message of the answer; status 0 drops the connection.
    """

    token: str = "hf_fake"
    owner: str = "ann"
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)
    url: str = ""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        path = self._begin()
        if path is None:
            return
        name = path.removeprefix("/api/models/")
        found = self.hub.repositories.get(name)
        if found is not None:
            self._answer(200, {"id": name, "private": found.private, "sha": "a" * 40})
        elif "/resolve/main/" in path:
            name, _, file = path[1:].partition("/resolve/main/")
            self._answer(200, self.hub.repositories[name].files[file])
        else:
            self._refuse(404, "Repository not found", "RepoNotFound")

    def do_PUT(self) -> None:
        if (path := self._begin(authorized=False)) is not None:  # another address, as a signed one
            body = self._body()
            assert hashlib.sha256(body).hexdigest() == path.rpartition("/")[2]
            self.hub.objects[path.rpartition("/")[2]] = body
            self._answer(200, {})

    def do_POST(self) -> None:
        path = self._begin()
        if path is None:
            return
        body = self._body()
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            files = [{**file, "uploadMode": _mode(file), "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer(200, {"files": files})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(body))
        elif path.endswith("/commit/main"):
            self._commit(path.removeprefix("/api/models/").removesuffix("/commit/main"), body)
        else:
            self._refuse(404, f"no such address: {path}")

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked["organization"] or self.hub.owner
        name = f"{owner}/{asked['name']}"
        if owner != self.hub.owner:
            self._refuse(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        elif name in self.hub.repositories:
            self._answer(409, {"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"})
        else:
            self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
            self._answer(200, {"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _batch(self, asked: dict[str, Any]) -> None:
        objects = []
        for given in asked["objects"]:
            upload = {"href": f"{self.hub.url}/lfs/{given['oid']}"}
            missing = given["oid"] not in self.hub.objects
            objects.append({**given, **({"actions": {"upload": upload}} if missing else {})})
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _commit(self, name: str, body: bytes) -> None:
        repository = self.hub.repositories[name]
        new: dict[str, bytes] = {}
        title = ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                title = value["summary"]
            elif line["key"] == "file":
                new[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                new[value["path"]] = self.hub.objects[value["oid"]]
        repository.files |= new
        repository.commits.append(title)
        oid = hashlib.sha1(body).hexdigest()
        self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def _begin(self, authorized: bool = True) -> str | None:
        """The request's path, or None once it was answered."""
        path = urlsplit(self.path).path
        self.hub.requests.append(f"{self.command} {path}")
        failure = next((answer for end, answer in self.hub.failures.items() if path.endswith(end)), None)
        if failure is None and authorized and self.headers.get("authorization") != f"Bearer {self.hub.token}":
            failure = (401, "Invalid username or password.")
        if failure is None:
            return path
        status, message = failure
        if status:
            self._body()
            self._refuse(status, message)
        else:
            self.close_connection = True
            self.connection.close()
        return None

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _refuse(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._answer(status, {"error": message}, **headers)

    def _answer(self, status: int, body: object, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None: ...


def _mode(file: dict[str, Any]) -> str:
    return "lfs" if file["size"] >= LARGE or file["path"].endswith(".safetensors") else "regular"


@contextmanager
def serving() -> Iterator[Hub]:
    """The server in a thread, on a free port."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
