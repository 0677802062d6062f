#!/usr/bin/env python3
"""An application behind nginx.conf that serves one workload and no other.

    app.py SOCKET SPIFFE-ID
"""

import http.server
import os
import re
import socketserver
import subprocess
import sys
import urllib.parse


def spiffe_id(cert):
    """Returns the one SPIFFE ID of a certificate that nginx has verified."""
    out = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName"],
        input=cert, capture_output=True, text=True, timeout=10, check=True,
    ).stdout
    ids = re.findall(r"URI:(\S+)", out)
    return ids[0] if len(ids) == 1 else None  # X509-SVID, 2: exactly one


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            caller = spiffe_id(urllib.parse.unquote(self.headers.get("X-Client-Cert", "")))
        except subprocess.SubprocessError:
            caller = None
        self.send_response(200 if caller == sys.argv[2] else 403)
        self.end_headers()
        self.wfile.write(f"{caller}\n".encode())

    def log_message(self, *args):
        pass

    def address_string(self):
        return "nginx"


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


if __name__ == "__main__":
    os.umask(0o117)  # nginx's group and nobody else may speak for clients
    with Server(sys.argv[1], Handler) as server:
        server.serve_forever()
