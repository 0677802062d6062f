#!/usr/bin/python3
"""An agent that leases a credential from vouchd, with public packages alone.

    protoc --proto_path=../../../workloadapi/credentialv1 --python_out=. credential.proto
    ./agent.py warehouse-readonly [parameter=value...]
    ./agent.py --watch warehouse-readonly

It needs grpcio and protobuf (Debian: python3-grpcio, and protobuf-compiler for the
line above). Nothing in a request says who asks: the kernel does. The credential is
this process's own, and ends with it.
"""

import json
import os
import sys

import grpc

import credential_pb2 as api

SERVICE = "/vouchd.credential.v1.CredentialAPI/"
# Without it every request is refused, so that no browser can be talked into one.
HEADER = (("workload.spiffe.io", "true"),)


class Credentials:
    """Leases credentials to this process."""

    def __init__(self, socket=None):
        socket = socket or os.environ.get("SPIFFE_ENDPOINT_SOCKET", "unix:///run/vouchd/agent.sock")
        channel = grpc.insecure_channel(socket)  # the kernel vouches for both ends

        def method(kind, name, request, reply):
            call = kind(SERVICE + name, request_serializer=request.SerializeToString, response_deserializer=reply.FromString)
            return lambda r, timeout=30: call(r, metadata=HEADER, timeout=timeout)

        self.list = method(channel.unary_unary, "ListCredentials", api.ListCredentialsRequest, api.ListCredentialsResponse)
        self.grant = method(channel.unary_unary, "GrantCredential", api.GrantCredentialRequest, api.GrantCredentialResponse)
        self.watch = method(channel.unary_stream, "WatchCredential", api.GrantCredentialRequest, api.GrantCredentialResponse)
        self.renew = method(channel.unary_unary, "RenewLease", api.RenewLeaseRequest, api.RenewLeaseResponse)
        self.revoke = method(channel.unary_unary, "RevokeLease", api.RevokeLeaseRequest, api.RevokeLeaseResponse)


def show(granted):
    """Print what was leased without its secrets, which a real agent uses here."""
    fields = {f.name: f.value.decode() if f.public else "..." for f in granted.fields}
    print(json.dumps({"credential": granted.lease.credential, "expires_at": granted.lease.expires_at, "fields": fields}), flush=True)


def main(args):
    watch = args[:1] == ["--watch"]
    name, *choices = args[1:] if watch else args
    ask = api.GrantCredentialRequest(
        name=name,
        parameters=dict(c.split("=", 1) for c in choices),
        exposure=api.EXPOSURE_MEMORY,  # for the log: values stay in this process
    )
    credentials = Credentials()
    if watch:
        for granted in credentials.watch(ask, timeout=None):  # the next comes before the last expires
            show(granted)
        return
    granted = credentials.grant(ask)
    show(granted)
    sys.stdin.read()  # work; when this process ends, so does the credential
    credentials.revoke(api.RevokeLeaseRequest(lease_id=granted.lease.id))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1:])
    except grpc.RpcError as e:
        sys.exit(f"{e.code().name}: {e.details()}")
