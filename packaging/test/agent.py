# An agent in Python, with the stock gRPC library and nothing of vouchd's: says
# who it is each time the daemon does, and why if that ends. With the argument
# "once" it ends with exit code 7 when it knows.
import re
import sys

import grpc

channel = grpc.insecure_channel("unix:///run/vouchd/agent.sock")
fetch = channel.unary_stream(
    "/SpiffeWorkloadAPI/FetchX509SVID",
    request_serializer=lambda request: request,
    response_deserializer=lambda response: response,
)
try:
    for answer in fetch(b"", metadata=(("workload.spiffe.io", "true"),)):
        print("I am", re.search(rb"spiffe://[a-z0-9./-]+", answer).group().decode(), flush=True)
        if "once" in sys.argv:
            sys.exit(7)
except grpc.RpcError as error:
    print("ended:", error.code().name, error.details(), flush=True)
    sys.exit(1)
