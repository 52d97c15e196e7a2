"""A stand-in for the hub on this machine: repositories of small files, which its own client creates, commits to and
downloads from. Everything is kept in memory."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """`files`: by repository, then by name, what was committed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def _answer(self, body: bytes | dict, status: int = 200, **headers: str) -> None:
        data = json.dumps(body).encode() if isinstance(body, dict | list) else body
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body, path = self._body(), self.path.partition("?")[0]
        self.server.asked.append(f"POST {path}")
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            self.server.files.setdefault(name, {})
            self._answer({"url": f"{self.server.address}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/(.+/.+)/preupload/main", path):
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            self._answer({"files": [{**f, "shouldIgnore": False, "oid": None} for f in files], "commitOid": COMMIT})
        elif found := re.fullmatch(r"/api/models/(.+/.+)/commit/main", path):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    held = base64.b64decode(line["value"]["content"])
                    self.server.files[found[1]][line["value"]["path"]] = held
            address = f"{self.server.address}/{found[1]}/commit/{COMMIT}"
            self._answer({"success": True, "commitUrl": address, "commitOid": COMMIT, "hookOutput": ""})
        else:
            self._answer({"error": path}, 404)

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/(.+?/.+?)/resolve/[^/]+/(.+)", path):
            held = self.server.files.get(found[1], {}).get(found[2])
            if held is None:
                self._answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
                return
            tag = hashlib.sha256(held).hexdigest()
            self._answer(held, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)
        elif (found := re.fullmatch(r"/api/models/(.+?/[^/]+)(/revision/[^/]+)?", path)) and (
            found[1] in self.server.files
        ):
            names = [{"rfilename": name} for name in self.server.files[found[1]]]
            self._answer({"id": found[1], "sha": COMMIT, "siblings": names, "tags": [], "private": False})
        elif (found := re.fullmatch(r"/api/models/(.+?/[^/]+)/tree/[^/]+", path)) and found[1] in self.server.files:
            held = self.server.files[found[1]]
            rows = [{"type": "file", "path": n, "size": len(x), "oid": "0" * 40} for n, x in held.items()]
            self._answer(rows)
        else:
            self._answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET
