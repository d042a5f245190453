"""A local server in place of the Hub. It keeps everything in memory and has the part of the Hub's HTTP API that
uploading and loading need.

Its answers follow the client of huggingface_hub (1.31 and 2.4) and the Hub's documentation. It supports models, data
sets and Spaces, private repositories, the tokens of two users, commits, and LFS with the basic transfer. It does not
support Xet, so clients need HF_HUB_DISABLE_XET=1.
"""

import asyncio
import base64
import hashlib
import json
import threading
import time
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

TOKENS = {"hf_local": "me", "hf_other": "other"}  # token: user
LFS = (".safetensors", ".mp4", ".png")
PREFIXES = {"": "model", "datasets/": "dataset", "spaces/": "space"}


@dataclass
class Repository:
    owner: str
    private: bool
    gated: bool = False  # its list of files is public, its files are its owner's alone
    tags: dict[str, str] = field(default_factory=dict)  # name: id of a commit
    # each an id and {path: (blob id, content)}
    commits: list[tuple[str, dict[str, tuple[str, bytes]]]] = field(default_factory=lambda: [("0" * 40, {})])

    @property
    def files(self) -> dict[str, bytes]:
        return {path: content for path, (_, content) in self.commits[-1][1].items()}


class Refusal(Exception):
    def __init__(self, status: int, code: str | None, message: str):
        self.response = JSONResponse({"error": message}, status, headers={"X-Error-Message": message})
        if code is not None:
            self.response.headers["X-Error-Code"] = code


class LocalHub:
    """The server. `url` is the value for HF_ENDPOINT. `repositories` are by (kind, id), `log` has the method, path and
    status of each answered request, `stored` has the LFS objects by hash. After `hold()` the next object is never
    received whole; `held` is set once it begins to arrive."""

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.log: list[tuple[str, str, int]] = []
        self.held, self._hold = threading.Event(), False
        config = uvicorn.Config(self._app(), host="127.0.0.1", port=0, lifespan="off", log_level="error")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_):
        self.server.should_exit = self.server.force_exit = True
        self.thread.join()

    def add(self, name: str, files: dict[str, bytes], kind: str = "model", **settings) -> None:
        """Makes a repository of the user in `name`, or commits `files` to the one that is there."""
        new = Repository(name.split("/")[0], settings.pop("private", False))
        found = self.repositories.setdefault((kind, name), new)
        for setting, value in settings.items():
            setattr(found, setting, value)
        rows = {path: (hashlib.sha1(content).hexdigest(), content) for path, content in files.items()}
        found.commits.append((hashlib.sha1(repr(sorted(rows)).encode()).hexdigest(), found.commits[-1][1] | rows))

    def hold(self) -> None:
        self.held.clear()
        self._hold = True

    def count(self, method: str, part: str) -> int:
        """The number of successful requests with this method and `part` in their path."""
        return sum(one == method and part in path and status < 300 for one, path, status in self.log)

    # Users and repositories

    def _user(self, request: Request) -> str | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refusal(401, None, "Invalid credentials in Authorization header")
        return TOKENS.get(token)

    def _open(self, request: Request, kind: str, name: str, write: bool = False) -> Repository:
        user, found = self._user(request), self.repositories.get((kind, name))
        if found is None or (found.private and user != found.owner):
            if user is None:  # the Hub does not tell anonymous users whether a repository exists
                raise Refusal(401, "RepoNotFound", "Invalid username or password.")
            raise Refusal(404, "RepoNotFound", "Repository not found")
        if write and user != found.owner:
            raise Refusal(403, None, "You don't have the rights to write here")
        return found

    @staticmethod
    def _commit(found: Repository, revision: str) -> tuple[str, dict]:
        for number, files in reversed(found.commits):
            if revision in ("main", number) or found.tags.get(revision) == number:
                return number, files
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    @staticmethod
    def _entry(path: str, blob: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if path.endswith(LFS):
            entry["lfs"] = {"oid": blob, "size": len(content), "pointerSize": 130}
        return entry

    # Routes

    def _app(self) -> FastAPI:
        app = FastAPI()

        @app.exception_handler(Refusal)
        async def refuse(request: Request, refusal: Refusal):
            return refusal.response

        @app.middleware("http")
        async def keep(request: Request, answer):
            response = await answer(request)
            self.log.append((request.method, request.url.path, response.status_code))
            return response

        @app.get("/api/whoami-v2")
        def who(request: Request):
            return {"type": "user", "name": self._user(request), "orgs": []}

        @app.post("/api/validate-yaml")
        def validate():
            return {"errors": [], "warnings": []}

        @app.post("/api/repos/create")
        async def create(request: Request):
            asked, user = await request.json(), self._user(request)
            kind, owner = asked.get("type") or "model", asked.get("organization") or user
            name = f"{owner}/{asked['name']}"
            if user is None:
                raise Refusal(401, None, "Invalid username or password.")
            if owner != user:
                raise Refusal(403, None, "You don't have the rights to create a model under the namespace")
            prefix = next(prefix for prefix, of in PREFIXES.items() if of == kind)
            answer = {"url": f"{request.base_url}{prefix}{name}"}
            if (kind, name) in self.repositories:
                return JSONResponse({**answer, "error": "You already created this repo"}, 409)
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.repositories[kind, name] = Repository(owner, private)
            return answer

        @app.get("/api/{kinds}/{owner}/{name}")
        @app.get("/api/{kinds}/{owner}/{name}/revision/{revision}")
        def info(request: Request, kinds: str, owner: str, name: str, revision: str = "main"):
            found = self._open(request, kinds[:-1], f"{owner}/{name}")
            number, files = self._commit(found, revision)
            siblings = [{"rfilename": path, "size": len(content)} for path, (_, content) in files.items()]
            return {"id": f"{owner}/{name}", "sha": number, "private": found.private, "siblings": siblings, "tags": []}

        @app.get("/api/{kinds}/{owner}/{name}/auth-check")
        def may_read(request: Request, kinds: str, owner: str, name: str):
            if self._open(request, kinds[:-1], f"{owner}/{name}").gated and self._user(request) != owner:
                raise Refusal(403, "GatedRepo", "Access to this repository is restricted")

        @app.get("/api/{kinds}/{owner}/{name}/refs")
        def refs(request: Request, kinds: str, owner: str, name: str):
            found = self._open(request, kinds[:-1], f"{owner}/{name}")
            branches = [{"name": "main", "ref": "refs/heads/main", "targetCommit": found.commits[-1][0]}]
            tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": to} for tag, to in found.tags.items()]
            return {"branches": branches, "tags": tags, "converts": []}

        @app.get("/api/{kinds}/{owner}/{name}/tree/{revision}")
        @app.get("/api/{kinds}/{owner}/{name}/tree/{revision}/{path:path}")
        def tree(request: Request, kinds: str, owner: str, name: str, revision: str, path: str = ""):
            found = self._open(request, kinds[:-1], f"{owner}/{name}")
            start = f"{path}/" if path else ""
            inside = {p: row for p, row in self._commit(found, revision)[1].items() if p.startswith(start)}
            if path and not inside:
                raise Refusal(404, "EntryNotFound", "no such folder")
            deep = request.query_params.get("recursive", "false").lower() == "true"
            rows, folders = [], {}
            for p, (blob, content) in inside.items():
                steps = p[len(start) :].split("/")
                for depth in range(1, len(steps) if deep else min(2, len(steps))):
                    folders[start + "/".join(steps[:depth])] = None
                if deep or len(steps) == 1:
                    rows.append(self._entry(p, blob, content))
            return rows + [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders]

        @app.post("/api/{kinds}/{owner}/{name}/paths-info/{revision}")
        async def paths(request: Request, kinds: str, owner: str, name: str, revision: str):
            found = self._open(request, kinds[:-1], f"{owner}/{name}")
            files, asked = self._commit(found, revision)[1], (await request.form()).getlist("paths")
            folders = [p for p in asked if any(path.startswith(f"{p}/") for path in files)]
            rows = [self._entry(p, *files[p]) for p in asked if p in files]
            return rows + [{"type": "directory", "path": p, "oid": "0" * 40, "size": 0} for p in folders]

        @app.post("/api/{kinds}/{owner}/{name}/preupload/{revision}")
        async def preupload(request: Request, kinds: str, owner: str, name: str, revision: str):
            found = self._open(request, kinds[:-1], f"{owner}/{name}", write=True)
            files = self._commit(found, revision)[1]
            rows = []
            for asked in (await request.json())["files"]:
                path = asked["path"]
                mode = "lfs" if path.endswith(LFS) else "regular"
                old = {"oid": files[path][0]} if path in files else {}
                rows.append({"path": path, "uploadMode": mode, "shouldIgnore": False, **old})
            return {"files": rows}

        @app.post("/api/{kinds}/{owner}/{name}/commit/{revision}")
        async def commit(request: Request, kinds: str, owner: str, name: str, revision: str):
            found = self._open(request, kinds[:-1], f"{owner}/{name}", write=True)
            files, body = dict(found.commits[-1][1]), await request.body()
            for line in body.splitlines():
                key, value = (json.loads(line)[part] for part in ("key", "value"))
                if key == "file":
                    content = base64.b64decode(value["content"])
                    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                    files[value["path"]] = (blob, content)
                elif key == "lfsFile":
                    files[value["path"]] = (value["oid"], self.stored[value["oid"]])
                elif key == "deletedFile":
                    del files[value["path"]]
            number = hashlib.sha1(body + found.commits[-1][0].encode()).hexdigest()
            found.commits.append((number, files))
            url = f"{request.base_url}{owner}/{name}/commit/{number}"
            return {"success": True, "commitUrl": url, "commitOid": number}

        @app.put("/objects/{oid}")
        async def put(request: Request, oid: str):
            content, held = b"", self._hold
            self._hold = False
            async for chunk in request.stream():
                content += chunk
                if held:
                    self.held.set()
                    await asyncio.sleep(3600)
            if hashlib.sha256(content).hexdigest() != oid:
                raise Refusal(400, None, "the content is not that of its name")
            self.stored[oid] = content
            return {}

        def batch(kind: str):
            async def answer(request: Request, owner: str, name: str):
                self._open(request, kind, f"{owner}/{name}", write=True)
                rows = (await request.json())["objects"]
                for row in rows:
                    if row["oid"] not in self.stored:
                        row["actions"] = {"upload": {"href": f"{request.base_url}objects/{row['oid']}"}}
                return {"transfer": "basic", "objects": rows}

            return answer

        def resolve(kind: str):
            def answer(request: Request, owner: str, name: str, revision: str, path: str):
                found = self._open(request, kind, f"{owner}/{name}")
                number, files = self._commit(found, revision)
                if found.gated and self._user(request) != found.owner:
                    raise Refusal(403, "GatedRepo", "Access to this repository is restricted")
                if path not in files:
                    refusal = Refusal(404, "EntryNotFound", "Entry not found")
                    refusal.response.headers["X-Repo-Commit"] = number
                    raise refusal
                blob, content = files[path]
                headers = {"ETag": f'"{blob}"', "X-Repo-Commit": number, "Accept-Ranges": "bytes"}
                if path.endswith(LFS):
                    headers |= {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{blob}"'}
                return Response(content, media_type="application/octet-stream", headers=headers)

            return answer

        for prefix, kind in PREFIXES.items():
            here = f"/{prefix}{{owner}}/{{name}}"
            app.post(f"{here}.git/info/lfs/objects/batch")(batch(kind))
            app.api_route(f"{here}/resolve/{{revision}}/{{path:path}}", methods=["GET", "HEAD"])(resolve(kind))
        return app
