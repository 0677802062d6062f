#!/usr/bin/env node
// An agent that leases a credential from vouchd, with public packages alone.
//
//     npm ci
//     ./agent.js warehouse-readonly [parameter=value...]
//     ./agent.js --watch warehouse-readonly
//
// Nothing in a request says who asks: the kernel does. The credential is this
// process's own, and ends with it.
"use strict";

const path = require("node:path");
const { promisify } = require("node:util");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const proto = path.join(__dirname, "../../../workloadapi/credentialv1/credential.proto");
const api = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true, enums: String, longs: Number })).vouchd.credential.v1;

// Without it every request is refused, so that no browser can be talked into one.
const header = new grpc.Metadata();
header.set("workload.spiffe.io", "true");

// connect returns a client of the agent socket. The kernel vouches for both ends.
function connect() {
  const socket = process.env.SPIFFE_ENDPOINT_SOCKET || "unix:///run/vouchd/agent.sock";
  return new api.CredentialAPI(socket, grpc.credentials.createInsecure());
}

// show prints what was leased without its secrets, which a real agent uses here.
function show({ lease, fields }) {
  const values = Object.fromEntries(fields.map((f) => [f.name, f.public ? f.value.toString() : "..."]));
  console.log(JSON.stringify({ credential: lease.credential, expires_at: lease.expires_at, fields: values }));
}

async function main(args) {
  const watch = args[0] === "--watch";
  const [name, ...choices] = watch ? args.slice(1) : args;
  const ask = {
    name,
    parameters: Object.fromEntries(choices.map((c) => [c.slice(0, c.indexOf("=")), c.slice(c.indexOf("=") + 1)])),
    exposure: "EXPOSURE_MEMORY", // for the log: values stay in this process
  };
  const client = connect();
  if (watch) {
    // The next comes before the last expires.
    for await (const granted of client.WatchCredential(ask, header)) show(granted);
    return;
  }
  const granted = await promisify(client.GrantCredential.bind(client))(ask, header, { deadline: Date.now() + 30_000 });
  show(granted);
  for await (const _ of process.stdin); // work; when this process ends, so does the credential
  await promisify(client.RevokeLease.bind(client))({ lease_id: granted.lease.id }, header, { deadline: Date.now() + 30_000 });
  client.close();
}

if (process.argv.length < 3) {
  console.error("usage: agent.js [--watch] NAME [parameter=value...]");
  process.exit(2);
}
main(process.argv.slice(2)).catch((e) => {
  console.error(`${grpc.status[e.code] ?? "error"}: ${e.details ?? e.message}`);
  process.exit(1);
});
