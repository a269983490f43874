// The wallboard: snapshots over the API, brought up to date when the event stream says so.
// The access token lives in this variable only; the refresh token in an HttpOnly cookie.

const $ = (id) => document.getElementById(id);
const KINDS = {
  ready: "good", talking: "good", ringing: "busy", waiting: "busy", held: "busy", arriving: "busy",
  wrap_up: "calm", playing: "calm", break: "calm",
};
const REFRESH_MS = 700; // at most one snapshot in this time, however many events there are

let token = null;
let socket = null;
let attempts = 0;
let retryTimer = null;
let snapshotTimer = null;
let renewTimer = null;
let views = { calls: [], queues: [], agents: [] };
let skewMs = 0; // the server's clock minus ours

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(method, path, body) {
  const headers = { Accept: "application/json" };
  if (token) headers.Authorization = `Bearer ${token}`;
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  } catch {
    throw new Refused(0, "The server does not answer. Check the connection and try again.");
  }
  const served = Date.parse(response.headers.get("Date"));
  if (served && Math.abs(served - Date.now()) > 2000) skewMs = served - Date.now();
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, answer.error?.message ?? `Error ${response.status}`);
  return answer;
}

// Tabs share the cookie, and a refresh token works once: one tab at a time.
async function renew() {
  const refresh = () => ask("POST", "/api/v1/auth/refresh");
  token = null;
  const answer = navigator.locks ? await navigator.locks.request("murima-refresh", refresh) : await refresh();
  accept(answer.data);
  return answer.data;
}

function accept(session) {
  token = session.access_token;
  $("who").textContent = session.user.username;
  clearTimeout(renewTimer);
  renewTimer = setTimeout(() => renew().catch(failed), session.expires_in * 800);
}

// The answer of `request`, with one new access token if the old one has expired.
async function authorised(request) {
  try {
    return await request();
  } catch (error) {
    if (error.status !== 401) throw error;
    await renew();
    return request();
  }
}

async function all(collection) {
  const rows = [];
  for (let page = 1; ; page += 1) {
    const answer = await authorised(() => ask("GET", `/api/v1/${collection}?limit=100&page=${page}`));
    rows.push(...answer.data);
    if (page >= answer.pagination.pages || page >= 20) return rows;
  }
}

async function snapshot() {
  const [calls, queues, agents] = await Promise.all([all("calls"), all("queues"), all("agents")]);
  views = { calls, queues, agents, takenMs: performance.now() };
  draw();
}

function soon() {
  snapshotTimer ??= setTimeout(async () => {
    try {
      await snapshot();
      snapshotTimer = null;
      if (socket) live(socket.readyState === WebSocket.OPEN);
    } catch (error) {
      snapshotTimer = null;
      failed(error);
      if (token && socket) retryTimer = setTimeout(soon, 3000);
    }
  }, REFRESH_MS);
}

async function connect() {
  clearTimeout(retryTimer);
  try {
    const { data } = await authorised(() => ask("POST", "/api/v1/events/ticket"));
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    socket = new WebSocket(`${scheme}://${location.host}/api/v1/events?ticket=${encodeURIComponent(data.ticket)}`);
  } catch (error) {
    failed(error);
    if (error.status !== 401) later();
    return;
  }
  const mine = socket;
  mine.onopen = () => {
    attempts = 0;
    live(true);
    soon();
  };
  mine.onmessage = soon;
  mine.onclose = () => {
    if (mine !== socket) return;
    socket = null;
    live(false);
    later();
  };
}

function later() {
  clearTimeout(retryTimer);
  attempts += 1;
  retryTimer = setTimeout(connect, Math.min(15000, 500 * 2 ** attempts) * (0.75 + Math.random() / 2));
}

function live(on) {
  $("link").hidden = false;
  $("link").dataset.live = on ? "yes" : "no";
  $("link").textContent = on ? "Live" : "Reconnecting…";
}

function failed(error) {
  if (error.status === 401) logIn();
  else live(false);
}

function logIn() {
  clearTimeout(renewTimer);
  clearTimeout(retryTimer);
  token = null;
  const old = socket;
  socket = null;
  old?.close();
  views = { calls: [], queues: [], agents: [] };
  for (const id of ["board", "who", "logout", "link"]) $(id).hidden = true;
  if ($("login").hidden) {
    $("login").hidden = false;
    $("username").focus();
  }
}

async function start() {
  $("login").hidden = true;
  for (const id of ["board", "who", "logout"]) $(id).hidden = false;
  $("link").hidden = false;
  live(false);
  $("link").textContent = "Connecting…";
  await snapshot().catch(failed);
  if (token) await connect();
}

function span(fromIso) {
  return clockText(Math.max(0, (Date.now() + skewMs - Date.parse(fromIso)) / 1000));
}

// A wait goes on between snapshots for as long as somebody waits.
function wait(seconds, waiting) {
  return clockText(waiting ? seconds + (performance.now() - views.takenMs) / 1000 : seconds);
}

function clockText(seconds) {
  const whole = Math.floor(seconds);
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  const rest = `${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
  return hours ? `${hours}:${rest}` : rest;
}

function cell(text, { small, number, since, queue } = {}) {
  const td = document.createElement("td");
  td.textContent = text;
  if (number) td.className = "number";
  if (since) td.dataset.since = since;
  if (queue) td.dataset.queue = queue;
  if (small) {
    const note = document.createElement("small");
    note.textContent = small;
    td.append(note);
  }
  return td;
}

function stateCell(state, note) {
  const td = document.createElement("td");
  const mark = document.createElement("span");
  mark.className = "state";
  mark.dataset.kind = KINDS[state] ?? "";
  mark.textContent = state.replace("_", "-") + (note ? ` · ${note}` : "");
  td.append(mark);
  return td;
}

function fill(id, rows) {
  const table = $(id);
  table.tBodies[0].replaceChildren(
    ...rows.map((cells) => {
      const tr = document.createElement("tr");
      tr.append(...cells);
      return tr;
    }),
  );
  table.hidden = rows.length === 0;
  table.nextElementSibling.hidden = rows.length > 0;
  $(`${id}-count`).textContent = rows.length || "";
}

function draw() {
  const { calls, queues, agents } = views;
  const sum = (key) => queues.reduce((total, queue) => total + queue[key], 0);
  const names = new Map(agents.map((agent) => [agent.id, agent.name]));
  $("waiting").textContent = sum("waiting");
  $("talking").textContent = calls.filter((call) => call.state === "talking" || call.state === "held").length;
  $("ready").textContent = agents.filter((agent) => agent.state === "ready").length;
  fill("calls", calls.map((call) => [
    cell(call.caller || "Unknown", { small: call.caller_name || names.get(call.from_agent) }),
    cell(call.dialled, { small: call.trunk_out && `via ${call.trunk_out}` }),
    stateCell(call.state, call.recording ? "recording" : ""),
    cell(call.queue_id ?? "–"),
    cell(call.agent_id ? names.get(call.agent_id) || call.agent_id : "–"),
    cell(span(call.started_at), { number: true, since: call.started_at }),
  ]));
  fill("queues", queues.map((queue) => [
    cell(queue.id, { small: queue.strategy.replaceAll("_", " ") }),
    cell(queue.waiting, { number: true }),
    cell("", { number: true, queue: queue.id }),
    cell(queue.talking, { number: true }),
    cell(queue.agents_ready, { number: true }),
    cell(queue.agents_busy, { number: true }),
  ]));
  fill("agents", agents.map((agent) => [
    cell(agent.name || agent.id, { small: agent.name ? agent.id : "" }),
    stateCell(agent.state, agent.reason),
    cell(agent.reachable ? "connected" : "not connected"),
    cell(span(agent.since), { number: true, since: agent.since }),
  ]));
  tick();
}

// Durations go on between snapshots.
function tick() {
  for (const td of document.querySelectorAll("[data-since]")) td.textContent = span(td.dataset.since);
  const queues = new Map(views.queues.map((queue) => [queue.id, queue]));
  for (const td of document.querySelectorAll("[data-queue]")) {
    const queue = queues.get(td.dataset.queue);
    td.textContent = wait(queue.longest_wait_s, queue.waiting);
  }
  const longest = views.queues.reduce((worst, queue) => (queue.longest_wait_s > worst.longest_wait_s ? queue : worst), {
    longest_wait_s: 0,
    waiting: views.queues.some((queue) => queue.waiting > 0),
  });
  if (views.takenMs) $("longest").textContent = wait(longest.longest_wait_s, longest.waiting);
}

setInterval(tick, 1000);

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const form = event.target;
  const button = form.querySelector("button");
  button.disabled = true;
  $("login-error").textContent = "";
  try {
    const username = form.username.value;
    const { data } = await ask("POST", "/api/v1/auth/login", { username, password: form.password.value });
    form.reset();
    accept(data);
    await start();
    $("main").focus({ preventScroll: true });
  } catch (error) {
    $("login-error").textContent = error.message;
    form.password.select();
  } finally {
    button.disabled = false;
  }
});

$("logout").addEventListener("click", async () => {
  await ask("POST", "/api/v1/auth/logout").catch(() => null);
  logIn();
});

renew().then(start, logIn);
