#!/usr/bin/python3
"""A complete Chatkeep store plugin: folder:///some/where keeps objects as files. Python's standard library only."""
import base64, contextlib, errno, hashlib, http.server, json, os, re, socket, socketserver, tempfile, urllib.parse

KEY = re.compile(r"(?=.{0,200}$)[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*){0,3}")
CAPS = {"create": "atomic", "read_after_write": "strong", "list_after_write": "strong", "delete": "final", "parallel": 8}

class Corrupt(Exception): pass  # the body of a put is not what was sent
PROBLEMS = [  # what goes wrong, and how the protocol calls it
    ((FileNotFoundError, IsADirectoryError, NotADirectoryError), 404, "not-found"),
    (FileExistsError, 412, "exists"),
    ((ValueError, KeyError, AttributeError), 400, "invalid"),
    (Corrupt, 422, "corrupt"),
]

def fail(error):
    raise error  # a folder that cannot be read must not look empty

def sync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

class Plugin(http.server.BaseHTTPRequestHandler):
    protocol_version, root = "HTTP/1.1", None
    log_message = lambda *_: None  # standard error is for what somebody should read

    def answer(self, status, body=b"", kind="application/octet-stream", length=None):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def call(self):
        try:
            length = int(self.headers.get("Content-Length", 0))
            body = self.rfile.read(length)
            if len(body) < length:
                raise Corrupt("the caller went away")
            if (self.command, self.path) == ("POST", "/open"):
                return self.open(json.loads(body))
            area, name = re.fullmatch("/(.*?)/(.*)", self.path).groups()
            if Plugin.root is None or not (KEY.fullmatch(name) or (area, name) == ("l", "")):
                raise ValueError("the store is not open, or that is no key")
            getattr(self, f"{self.command}_{area}")(os.path.join(Plugin.root, name), body)
        except Exception as error:
            known = ((status, kind) for kinds, status, kind in PROBLEMS if isinstance(error, kinds))
            status, kind = next(known, (503, "transient"))
            if getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
                status, kind = 507, "quota"
            problem = json.dumps({"kind": kind, "detail": str(error)})
            self.answer(status, problem.encode(), "application/problem+json")

    do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = do_PATCH = call

    def open(self, request):
        Plugin.root = urllib.parse.unquote(urllib.parse.urlparse(request["url"]).path)
        os.makedirs(os.path.join(Plugin.root, ".new"), exist_ok=True)
        self.answer(200, json.dumps({"protocol": 1, "name": "folder.py", "version": "1.0", "caps": CAPS}).encode())

    def PUT_o(self, path, body):
        digest = "sha-256=:" + base64.b64encode(hashlib.sha256(body).digest()).decode() + ":"
        if self.headers.get("Content-Digest", digest) != digest:
            raise Corrupt("these are not the bytes that were sent")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with tempfile.TemporaryDirectory(dir=os.path.join(Plugin.root, ".new")) as new:
            with open(os.path.join(new, "object"), "wb") as file:
                file.write(body)
            sync(file.name)  # what is acknowledged survives a power cut
            put = os.link if self.headers.get("If-None-Match") == "*" else os.replace
            put(file.name, path)  # visible in one step: whole, or not at all
        sync(os.path.dirname(path))
        self.answer(201)

    def GET_o(self, path, _):
        with open(path, "rb") as file:
            self.answer(200, file.read())

    def HEAD_o(self, path, _):
        self.answer(200, length=os.path.getsize(path) if not os.path.isdir(path) else fail(IsADirectoryError()))

    def DELETE_o(self, path, _):
        if os.path.isfile(path):
            os.remove(path)
        self.answer(204)

    def GET_l(self, path, _):
        lines = []
        for folder, _, names in os.walk(path, onerror=fail) if os.path.isdir(path) else []:
            for path in (os.path.join(folder, name) for name in names if "/.new" not in folder):
                with contextlib.suppress(FileNotFoundError):  # it was deleted just now
                    lines.append({"k": os.path.relpath(path, Plugin.root), "n": os.path.getsize(path)})
        lines.append({"end": True, "count": len(lines)})  # without this line it would be no listing
        self.answer(200, b"".join(json.dumps(line).encode() + b"\n" for line in lines), "application/x-ndjson")

server = socketserver.ThreadingUnixStreamServer("", Plugin, bind_and_activate=False)
server.daemon_threads, server.socket = True, socket.socket(fileno=0)
server.serve_forever()
