"""Run by ci/wheel.sh in an empty environment: one request through the installed gateway to a small backend."""

import http.server
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import gwcore


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Backend(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"from the backend"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Backend)
threading.Thread(target=server.serve_forever, daemon=True).start()
port, admin = free_port(), free_port()
with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as f:
    f.write(
        f'listeners: [{{address: "127.0.0.1:{port}"}}]\nadmin: {{address: "127.0.0.1:{admin}"}}\nworkers: 1\naccess_log: {{path: "off"}}\n'
        f'upstreams: {{be: {{endpoints: ["127.0.0.1:{server.server_address[1]}"]}}}}\nroutes: [{{upstream: be}}]\n'
    )
gateway = subprocess.Popen([sys.executable, "-m", "gwcore", "run", "-c", f.name])
try:
    for _ in range(200):
        try:
            answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
            break
        except OSError:
            time.sleep(0.05)
    else:
        sys.exit("the installed gateway did not answer")
    if answer != b"from the backend":
        sys.exit(f"a wrong answer came through: {answer!r}")
finally:
    gateway.send_signal(signal.SIGTERM)
    status = gateway.wait(15)
    os.unlink(f.name)
if status:
    sys.exit(f"the gateway ended with {status}")
subprocess.run([sys.executable, "-m", "gwcore", "doctor", "--json"], stdout=subprocess.DEVNULL, check=False)
print(f"wheel good: gwcore {gwcore.__version__} from {os.path.dirname(gwcore.__file__)}")
