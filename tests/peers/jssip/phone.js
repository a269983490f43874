// A JsSIP user agent as a program: JSON commands on standard input, JSON replies and events on standard output.
//
// node phone.js SETTINGS, with the JSON keys url, uri, password, expires. JsSIP is meant for browsers; here the
// package ws stands in for their WebSocket. Certificates are checked with NODE_EXTRA_CA_CERTS, as Node does. Node has
// no WebRTC, so that JsSIP answers calls with 488.
"use strict";

const readline = require("node:readline");

console.info = console.error; // JsSIP logs there; standard output is for us
globalThis.WebSocket = require("ws");
globalThis.window = globalThis;
const JsSIP = require("jssip");

const settings = JSON.parse(process.argv[2]);

function report(kind, facts = {}) {
  process.stdout.write(`${JSON.stringify({ kind, ...facts })}\n`);
}

function status(response) {
  return response ? { code: response.status_code, reason: response.reason_phrase } : { code: 0, reason: "" };
}

const agent = new JsSIP.UA({
  sockets: [new JsSIP.WebSocketInterface(settings.url)],
  uri: settings.uri,
  password: settings.password,
  register: false,
  register_expires: settings.expires,
  connection_recovery_min_interval: 1,
  connection_recovery_max_interval: 1,
});

agent.on("connected", () => report("connected"));
agent.on("disconnected", (event) => report("disconnected", { error: Boolean(event.error) }));
agent.on("registered", (event) => {
  const contacts = event.response.getHeaders("Contact");
  report("registered", { ...status(event.response), contacts });
});
agent.on("unregistered", (event) => report("unregistered", status(event.response)));
agent.on("registrationFailed", (event) => report("registration_failed", { ...status(event.response), cause: event.cause }));
agent.on("newOptions", (event) => {
  if (event.originator === "remote") report("options_received", { from: event.request.from.uri.toString() });
});
agent.on("newRTCSession", () => {}); // without it, JsSIP answers calls with 405

const commands = {
  register: () => agent.register(),
  unregister: () => agent.unregister(),
  options: ({ target }) => {
    agent.sendOptions(target, undefined, {
      eventHandlers: {
        succeeded: (event) => report("options", { ...status(event.response), allow: event.response.getHeader("Allow") }),
        failed: (event) => report("options", { ...status(event.response), cause: event.cause }),
      },
    });
  },
  close: () => {
    agent.stop(); // unregisters, and waits 2 s for what may still come
    setTimeout(() => process.exit(0), 300);
  },
};

const lines = readline.createInterface({ input: process.stdin });
lines.on("line", (line) => {
  const { do: name, ...parameters } = JSON.parse(line);
  commands[name](parameters);
});
lines.on("close", commands.close);

agent.start();
