// Draws what `/events` tells. Nodes are kept and only their texts change, so that focus, selection and a screen reader's
// place stay where they are.

const $ = (id) => document.getElementById(id);

// --- words ------------------------------------------------------------------------------------------------------

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const tenth = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const number = (n) => (Math.abs(n) < 100 ? tenth : whole).format(n);
const percent = (share) => `${whole.format(share * 100)} %`;
const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const many = (n, one, more) => `${whole.format(n)} ${n === 1 ? one : more}`;

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1e-3) return `${number(seconds * 1e6)} µs`;
  if (seconds < 1) return `${number(seconds * 1e3)} ms`;
  if (seconds < 90) return `${number(seconds)} s`;
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const at = units.findIndex(([, size]) => seconds >= size);
  const [unit, size] = units[at];
  const rest = units[at + 1];
  const left = rest ? Math.floor((seconds % size) / rest[1]) : 0;
  return `${Math.floor(seconds / size)} ${unit}${left ? ` ${left} ${rest[0]}` : ""}`;
}

const ago = (at, now) => `${duration(Math.max(0, Math.round(now - at)))} ago`;
const clock = (rfc3339) => new Date(rfc3339).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });

// --- nodes ------------------------------------------------------------------------------------------------------

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") node.addEventListener("click", value);
    else if (value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function mark(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

const STATES = {
  healthy: "ok", degraded: "warn", unhealthy: "bad", starting: "plain",
  closed: "ok", "half-open": "warn", open: "bad",
  applied: "ok", unchanged: "plain", rejected: "bad", failed: "bad",
};

function chip() {
  return el("span", { class: "state" }, el("i", { "aria-hidden": "true" }), el("b"));
}

function setChip(node, word) {
  mark(node, "class", `state ${STATES[word] ?? "plain"}`);
  say(node.lastChild, word);
}

// Children of `parent` for `items`, made by `make` once for each key, in order.
function keyed(parent, items, key, make, update) {
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  let at = parent.firstElementChild;
  for (const item of items) {
    const name = String(key(item));
    let node = old.get(name);
    old.delete(name);
    if (!node) {
      node = make(item);
      node.dataset.key = name;
    }
    if (node === at) at = at.nextElementSibling;
    else parent.insertBefore(node, at);
    update(node, item);
  }
  for (const node of old.values()) node.remove();
}

// An address that has no room in one line goes on in the next with its port.
const breakable = (address) => address.replace(/:(?=\d+$)/, ":\u200b");

// Rows of a table; a cell is a text, or [text, class].
function rows(table, items, key, cells, more = () => {}) {
  const heads = [...table.tHead.rows[0].cells];
  const make = () => {
    const tr = el("tr");
    heads.forEach((head, i) => {
      const cell = el(i ? "td" : "th", i ? { "data-label": head.textContent } : { scope: "row" });
      if (head.className) cell.className = head.className;
      tr.append(cell);
    });
    return tr;
  };
  keyed(table.tBodies[0], items, key, make, (tr, item) => {
    cells(item).forEach((text, i) => {
      if (text === null) return;
      say(tr.cells[i], text);
      tr.cells[i].classList.toggle("empty", text === "");
    });
    more(tr, item);
  });
}

// Stages in the order of the pipeline.
const PLACES = ["source", "transform", "sink", "dead_letter", "orders"];
const place = (name) => (PLACES.indexOf(name.split(".")[0]) + PLACES.length + 1) % (PLACES.length + 1);
const inOrder = (list, name) => [...list].sort((a, b) => place(name(a)) - place(name(b)));

// --- asking -----------------------------------------------------------------------------------------------------

async function ask(path, method = "GET") {
  const answer = await fetch(path, { method, headers: { "X-Penstock-Page": "1" } });
  if (answer.status === 401) location.reload();
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok && answer.status !== 422) throw new Error(body.detail ?? `${path}: ${answer.status}`);
  return body;
}

function confirmed(title, text, yes, dangerous) {
  const dialog = $("ask");
  say($("ask-title"), title);
  say($("ask-text"), text);
  say($("ask-yes"), yes);
  $("ask-yes").classList.toggle("danger", dangerous);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    const closed = () => {
      // That of an earlier question may come late.
      if (dialog.open) return;
      dialog.removeEventListener("close", closed);
      done(dialog.returnValue === "yes");
    };
    dialog.addEventListener("close", closed);
  });
}

const notes = new Map();

function note(key, kind, title, text) {
  if (title) notes.set(key, { key, kind, title, text });
  else notes.delete(key);
}

function showNotes() {
  keyed($("notices"), [...notes.values()], (n) => n.key,
    () => el("p", {}, el("b"), el("span")),
    (node, n) => {
      mark(node, "class", `notice ${n.kind}`);
      say(node.firstChild, n.title);
      say(node.lastChild, n.text);
    });
}

async function attempt(button, what) {
  button.disabled = true;
  note("asked", "info", "");
  try {
    await what();
  } catch (error) {
    note("asked", "bad", "That failed.", error.message);
  }
  button.disabled = false;
  showNotes();
}

// --- the pipeline -----------------------------------------------------------------------------------------------

let before = null;

// What a counter grew by, a second.
function rate(now, then, span) {
  return then === undefined || span <= 0 ? 0 : Math.max(0, now - then) / span;
}

function flow(p) {
  const { status } = p;
  const health = new Map(status.health.components.map((c) => [c.name, c]));
  const breaker = new Map(status.stages.map((s) => [s.stage, s]));
  const span = before ? p.at - before.at : 0;
  const lag = Math.max(0, ...status.shards.map((s) => s.lag_seconds));
  const inFlight = status.shards.reduce((sum, s) => sum + s.in_flight, 0);
  const items = [];
  items.push({ key: "from", end: "ScyllaDB", lines: [...p.source.tables, ...status.nodes.map(breakable)] });
  items.push({ key: "p0", tube: null });
  items.push({
    key: "source", title: "source", value: number(p.rates.read), unit: "changes/s",
    facts: [
      ["behind", duration(lag) + (p.source.catching_up ? ", catching up" : "")],
      status.retention_headroom !== null && ["headroom", percent(status.retention_headroom)],
      ["read", whole.format(p.source.rows)],
      p.source.late > 0 && ["late", whole.format(p.source.late)],
      p.source.failed_reads > 0 && ["failed reads", whole.format(p.source.failed_reads)],
    ],
  });
  items.push({ key: "p1", tube: p.queues[0], before: "the transforms" });
  const transforms = status.stages.map((s) => s.stage).filter((s) => s.startsWith("transform."));
  transforms.forEach((stage, i) => {
    const w = p.transforms[stage] ?? { items: 0, seconds: 0, faults: 0, rejected: 0, dropped: 0 };
    const then = before?.transforms[stage];
    const done = then ? w.items - then.items : 0;
    const each = done > 0 ? (w.seconds - then.seconds) / done : w.items > 0 ? w.seconds / w.items : null;
    if (i) items.push({ key: `p1.${i}`, tube: null });
    items.push({
      key: stage, title: stage.slice("transform.".length), value: number(rate(w.items, then?.items, span)), unit: "changes/s",
      facts: [
        ["a change", duration(each)],
        ["through", whole.format(w.items)],
        w.faults > 0 && ["faults", whole.format(w.faults)],
        w.rejected > 0 && ["dead letters", whole.format(w.rejected)],
        w.dropped > 0 && ["dropped", whole.format(w.dropped)],
      ],
    });
  });
  items.push({ key: "p2", tube: p.queues[1], before: "the sink" });
  items.push({
    key: "sink", title: "sink", value: number(p.rates.acknowledged), unit: "records/s",
    facts: [
      ["in flight", whole.format(inFlight)],
      ["write to done", `${duration(p.rates.p50)} · ${duration(p.rates.p99)}`],
      p.sink.oldest_seconds !== null && p.sink.oldest_seconds > 1 && ["oldest waits", duration(p.sink.oldest_seconds)],
      p.sink.transactions > 0 && ["transactions", whole.format(p.sink.transactions)],
      p.sink.dead_letters > 0 && ["dead letters", whole.format(p.sink.dead_letters)],
    ],
  });
  items.push({ key: "p3", tube: null });
  items.push({ key: "to", end: "Redpanda", lines: status.brokers.map(breakable) });
  keyed($("flow"), items, (i) => i.key, (i) => {
    if (i.end) return el("li", { class: "end" }, el("h3", {}, i.end), el("ul"));
    if (i.title) {
      return el("li", { class: "stage" }, el("div", { class: "head" }, el("h3"), chip()),
        el("p", { class: "big" }, el("span"), el("small")), el("dl"), el("p", { class: "why" }));
    }
    return el("li", { class: "pipe" }, el("div", { class: "tube" }, el("i")), el("p"));
  }, (node, i) => {
    if (i.end) {
      keyed(node.lastChild, i.lines, (l) => l, () => el("li"), (li, line) => say(li, line));
    } else if (i.title) {
      const c = health.get(i.key);
      const b = breaker.get(i.key);
      const word = b && b.breaker !== "closed" ? b.breaker : (c?.status ?? "starting");
      mark(node, "class", `stage ${STATES[word] ?? "plain"}`);
      const [head, big, facts, why] = node.children;
      say(head.firstChild, i.title);
      setChip(head.lastChild, b && b.breaker !== "closed" ? `breaker ${b.breaker}` : word);
      if (b && b.breaker !== "closed") mark(head.lastChild, "class", `state ${STATES[word]}`);
      say(big.firstChild, i.value);
      say(big.lastChild, i.unit);
      keyed(facts, i.facts.filter(Boolean).flatMap(([k, v]) => [["dt", k, k], ["dd", k, v]]), ([t, k]) => t + k,
        ([tag]) => el(tag), (n, [, , text]) => say(n, text));
      say(why, c?.reason ?? "");
      why.hidden = !c?.reason;
    } else {
      mark(node, "class", `pipe${i.tube === null ? " plain" : i.tube >= 1 ? " full" : ""}`);
      if (i.tube === null) {
        mark(node, "aria-hidden", "true");
        return;
      }
      const share = percent(i.tube);
      node.style.setProperty("--fill", `${i.tube * 100}%`);
      node.querySelector("i").style.width = `${i.tube * 100}%`;
      mark(node, "title", `The queue before ${i.before} is ${share} full`);
      say(node.lastChild, `${share} full`);
    }
  });
}

// --- plots ------------------------------------------------------------------------------------------------------

const points = [];
const perSecond = (n) => `${number(n)}/s`;
const PLOTS = [
  { title: "Throughput", series: [["changes read", "read"], ["records acknowledged", "acknowledged"]], unit: perSecond },
  { title: "Behind the change log", series: [["furthest shard", "lag"]], unit: duration },
  { title: "From write to done", series: [["half within", "p50"], ["99 % within", "p99"]], unit: duration },
];
const SVG = "http://www.w3.org/2000/svg";
const [WIDTH, HEIGHT] = [720, 120];

function svg(name, attributes, ...children) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const still = { "vector-effect": "non-scaling-stroke" };

function plot(spec) {
  const lines = spec.series.map((_, i) => svg("path", { class: `line s${i}`, ...still }));
  const dots = spec.series.map((_, i) => svg("path", { class: `dots s${i}`, ...still }));
  const fill = svg("path", { class: "fill" });
  const cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden", ...still });
  const grid = [0, 0.5, 1].map((y) => svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y * HEIGHT, y2: y * HEIGHT, ...still }));
  const picture = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", tabindex: 0, role: "img",
  }, ...grid, fill, ...lines, ...dots, cursor);
  const top = el("span", { class: "top", "aria-hidden": "true" });
  const legend = el("span", { class: "legend" }, ...spec.series.map(([name], i) => {
    const key = svg("svg", { viewBox: "0 0 18 8", "aria-hidden": "true" }, svg("path", { class: `line s${i}`, d: "M0 4H18" }));
    return el("span", {}, key, `${name} `, el("b"));
  }));
  const [from, said] = [el("span"), el("span", { class: "said", role: "status" })];
  const figure = el("figure", {}, el("figcaption", {}, el("span", {}, spec.title), legend),
    el("div", { class: "area" }, picture, top), el("div", { class: "axis" }, from, said, el("span", {}, "now")));
  let [begin, end, chosen] = [0, 1, null];

  const pointAt = (time) => points.reduce((best, p) => (best && Math.abs(best.at - time) <= Math.abs(p.at - time) ? best : p), null);
  function choose(p) {
    chosen = p;
    cursor.setAttribute("visibility", p ? "visible" : "hidden");
    if (!p) return say(said, "");
    const x = ((p.at - begin) / (end - begin)) * WIDTH;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    const values = spec.series.map(([, key]) => (p[key] === null ? "–" : spec.unit(p[key]))).join(" · ");
    say(said, `${ago(p.at, end)}: ${values}`);
  }
  picture.addEventListener("pointermove", (e) => {
    const box = picture.getBoundingClientRect();
    choose(pointAt(begin + ((e.clientX - box.left) / box.width) * (end - begin)));
  });
  picture.addEventListener("pointerleave", () => choose(null));
  picture.addEventListener("blur", () => choose(null));
  picture.addEventListener("keydown", (e) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (!step || !points.length) return;
    e.preventDefault();
    const at = chosen ? points.indexOf(chosen) : points.length;
    choose(points[Math.min(points.length - 1, Math.max(0, at + step))]);
  });

  function draw(now) {
    end = now;
    const age = points.length ? now - points[0].at : 0;
    const minutes = [5, 15, 30, 60].find((m) => age <= m * 60) ?? 60;
    begin = now - minutes * 60;
    say(from, `${minutes} min ago`);
    const shown = points.filter((p) => p.at >= begin);
    const peak = Math.max(0, ...shown.flatMap((p) => spec.series.map(([, key]) => p[key] ?? 0)));
    const most = nice(peak);
    say(top, spec.unit(most));
    const x = (p) => (((p.at - begin) / (end - begin)) * WIDTH).toFixed(1);
    const y = (v) => (HEIGHT - (v / most) * HEIGHT).toFixed(1);
    spec.series.forEach(([, key], i) => {
      let [d, area, last, start] = ["", "", null, null];
      for (const p of shown) {
        if (p[key] === null) continue;
        const joined = last && p.at - last.at < 20;
        if (!joined && start) area += `L${x(last)} ${HEIGHT}Z`;
        if (!joined) start = p;
        d += `${joined ? "L" : "M"}${x(p)} ${y(p[key])}`;
        area += joined ? `L${x(p)} ${y(p[key])}` : `M${x(p)} ${HEIGHT}L${x(p)} ${y(p[key])}`;
        last = p;
      }
      if (last) area += `L${x(last)} ${HEIGHT}Z`;
      // One that stands alone is a dot: a line of next to no length.
      dots[i].setAttribute("d", (d.match(/M[\d.]+ [\d.]+(?=M|$)/g) ?? []).map((one) => `${one}h0.1`).join(""));
      lines[i].setAttribute("d", d);
      if (i === 0) fill.setAttribute("d", area);
      const latest = shown.at(-1)?.[key];
      say(legend.children[i].lastChild, latest === null || latest === undefined ? "–" : spec.unit(latest));
    });
    const told = spec.series.map(([name, key]) => {
      const all = shown.map((p) => p[key]).filter((v) => v !== null);
      if (!all.length) return `${name}: nothing yet`;
      return `${name}: now ${spec.unit(all.at(-1))}, lowest ${spec.unit(Math.min(...all))}, highest ${spec.unit(Math.max(...all))}`;
    });
    mark(picture, "aria-label", `${spec.title}, last ${minutes} minutes. ${told.join(". ")}. Arrow keys go from point to point.`);
    if (chosen) choose(chosen);
  }
  return { figure, draw };
}

function nice(peak) {
  if (peak <= 0) return 1;
  const size = 10 ** Math.floor(Math.log10(peak));
  return [1, 2, 2.5, 5, 10].map((m) => m * size).find((m) => m >= peak * 1.02) ?? 10 * size;
}

const plots = PLOTS.map(plot);
$("plots").append(...plots.map((p) => p.figure));

function addPoint(p) {
  if (p.at > 0 && p.at - (points.at(-1)?.at ?? 0) >= 5) points.push(p);
  while (points.length > 720) points.shift();
}

async function loadTrend() {
  const trend = await ask("/trend");
  if (!points.length) points.push(...trend.points);
  // Before the first change there is nothing to tell.
  for (const part of [$("h-tables"), $("tables").closest(".scroll")]) part.hidden = !trend.tables.length;
  rows($("tables"), trend.tables, (t) => t.table, (t) => [t.table, whole.format(t.changes), duration(t.p50), duration(t.p99)]);
}

// --- tables -----------------------------------------------------------------------------------------------------

function breakers(stages) {
  rows($("breakers"), inOrder(stages, (s) => s.stage), (s) => s.stage, (s) => [
    s.stage, null, duration(Math.round(s.for_seconds)), s.probe_in_seconds === null ? "" : duration(Math.ceil(s.probe_in_seconds)),
    `${s.failures} of ${s.failure_threshold}`, whole.format(s.opened), whole.format(s.refused), s.last_error ?? "", null,
  ], (tr, s) => {
    if (!tr.cells[1].firstChild) {
      tr.cells[1].append(chip());
      tr.cells[8].append(el("button", {
        type: "button", "aria-label": `Reset the breaker of ${s.stage}`,
        onclick: (e) => attempt(e.target, () => ask(`/breakers/${encodeURIComponent(s.stage)}/reset`, "POST")),
      }, "Reset"));
      tr.cells[8].removeAttribute("data-label");
    }
    setChip(tr.cells[1].firstChild, s.breaker);
    tr.cells[8].classList.toggle("empty", s.breaker === "closed");
    tr.cells[8].firstChild.hidden = s.breaker === "closed";
  });
}

function components(report, now) {
  keyed($("components"), inOrder(report.components, (c) => c.name), (c) => c.name,
    () => el("li", {}, el("span"), el("small"), chip(), el("p")),
    (li, c) => {
      const [name, since, state, why] = li.children;
      say(name, c.name + (c.critical ? "" : " (not critical)"));
      const seconds = Math.round(now - c.since);
      say(since, seconds < 1 ? "just now" : `for ${duration(seconds)}`);
      setChip(state, c.status);
      const first = c.first_fault && c.reason && !c.first_fault.includes(c.reason) ? ` It began with: ${c.first_fault}.` : "";
      say(why, c.reason ? `${capital(c.reason)}.${first}` : "");
      why.hidden = !c.reason;
    });
}

function shards(status) {
  const share = status.membership;
  const open = new Map(status.shards.map((s) => [s.shard, s]));
  const owners = new Map((status.owners ?? []).map((o) => [o.shard, o]));
  const count = Math.max(shardCount, ...[...open.keys(), ...owners.keys()].map((n) => n + 1));
  const all = Array.from({ length: count }, (_, n) => n);
  rows($("shards"), all, (n) => n, (n) => {
    const s = open.get(n);
    const other = owners.get(n);
    const elsewhere = other && other.instance !== status.instance ? (other.admin ?? other.instance) : "another instance";
    const owner = s ? "this instance" : share?.owned.includes(n) ? "this instance, opening" : share ? elsewhere : "opening";
    return s
      ? [String(n), owner, duration(s.lag_seconds), whole.format(s.read), whole.format(s.done), whole.format(s.in_flight), whole.format(s.rewinds)]
      : [String(n), owner, "", "", "", "", ""];
  });
  $("membership").hidden = !share;
  if (share) {
    const joined = share.joined ? `Has its share: ${share.owned.length} of ${count} shards.` : "Has not been given its share yet.";
    say($("membership"), joined + (share.trouble ? ` ${capital(share.trouble)}.` : ""));
  }
}

// --- configuration ----------------------------------------------------------------------------------------------

let [settings, shardCount] = [[], 0];

function showConfig() {
  const wanted = $("config-filter").value.trim().toLowerCase();
  const all = $("config-defaults").checked;
  const shown = settings.filter((s) => (all || s.origin !== "default") && `${s.key} ${s.value} ${s.origin}`.toLowerCase().includes(wanted));
  rows($("config"), shown, (s) => s.key, (s) => [s.key, s.value, s.origin, s.class]);
  say($("config-count"), `${shown.length} of ${settings.length}`);
}

async function loadConfig() {
  const config = await ask("/config");
  settings = config.settings;
  shardCount = Number(settings.find((s) => s.key === "pipeline.shards")?.value ?? 0);
  showConfig();
}

function revision(r) {
  const body = el("div", { class: "body" });
  if (r.error) body.append(el("pre", { class: "error", tabindex: 0 }, r.error));
  if (r.changed.length) {
    const lines = r.changed.map((c) => el("tr", {}, el("th", { scope: "row" }, c.key),
      el("td", {}, c.old === null ? el("span", { class: "none" }, "not set") : el("del", {}, c.old)),
      el("td", {}, c.new === null ? el("span", { class: "none" }, "not set") : el("ins", {}, c.new)),
      el("td", { class: "none" }, c.class)));
    const head = ["Key", "Before", "After", "Class"].map((h) => el("th", { scope: "col" }, h));
    body.append(el("table", { class: "diff" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...lines)));
  }
  const state = chip();
  setChip(state, r.outcome);
  const what = r.changed.length ? many(r.changed.length, "key", "keys") : "";
  const took = `took ${duration(r.took_ms / 1e3)}`;
  return el("li", {}, el("details", {}, el("summary", {}, el("span", {}, state, el("time", { datetime: r.at }, clock(r.at)),
    el("span", { class: "none" }, [what, r.class, took].filter(Boolean).join(" · ")))), body));
}

async function loadReloads() {
  const list = (await ask("/reloads")).map((r, i) => ({ ...r, i })).reverse();
  keyed($("reloads"), list, (r) => r.at + r.outcome, revision, () => {});
  const newest = $("reloads").querySelector("details");
  if (newest && list[0].outcome !== "applied") newest.open = true;
  $("no-reloads").hidden = list.length > 0;
}

$("config-filter").addEventListener("input", showConfig);
$("config-defaults").addEventListener("change", showConfig);
$("reload").addEventListener("click", (e) => attempt(e.target, async () => {
  const done = await ask("/-/reload", "POST");
  const said = { applied: "The configuration is in force.", unchanged: "Nothing had changed." }[done.outcome];
  note("asked", said ? "info" : "bad", said ?? "Not applied; the last good configuration goes on.", said ? "" : (done.error ?? ""));
  // Good news is old news.
  if (said) setTimeout(() => note("asked"), 8000);
}));

// --- dead letters -----------------------------------------------------------------------------------------------

const LETTERS = 100;
let lettersShown = false;

const chosenLetters = () => [...$("letters").querySelectorAll("input:checked")].map((box) => box.value);

function lettersChosen() {
  const boxes = $("letters").querySelectorAll("input");
  const n = chosenLetters().length;
  $("letters-all").checked = boxes.length > 0 && n === boxes.length;
  for (const id of ["letters-replay", "letters-purge"]) $(id).disabled = n === 0;
  say($("letters-replay"), n ? `Replay ${n}` : "Replay");
  say($("letters-purge"), n ? `Purge ${n}` : "Purge");
}

// The row that the letter is about, column by column; all that came with it is below, as it is.
function change(c) {
  const columns = c.rows?.[c.row]?.columns ?? [];
  const lines = columns.map((v) => el("tr", {}, el("th", { scope: "row" }, v.name),
    el("td", {}, v.value === undefined || v.value === null ? el("span", { class: "none" }, v.tag) : typeof v.value === "string" ? v.value : JSON.stringify(v.value))));
  const head = ["Column", "Value"].map((h) => el("th", { scope: "col" }, h));
  const table = el("table", { class: "diff" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...lines));
  const json = el("pre", { tabindex: 0 }, JSON.stringify(c, null, 2));
  return el("div", { class: "change" }, lines.length ? table : "", el("details", {}, el("summary", {}, "All of it, as JSON"), json));
}

function letter(l) {
  const box = l.change === undefined ? "" : el("input", { type: "checkbox", value: l.id, "aria-label": `Choose the letter of ${l.table} at ${l.time}` });
  const line = el("p", { class: "line1" }, el("b", {}, l.table ?? l.id), el("span", {}, l.operation ?? ""), el("span", {}, l.stage ? `by ${l.stage}` : ""),
    l.time ? el("time", { datetime: l.time }, clock(l.time)) : "", el("span", {}, l.attempts > 1 ? `${l.attempts} attempts` : ""));
  const body = el("div", { class: "body" }, line, el("p", { class: "error" }, l.error));
  if (l.change !== undefined) {
    body.append(el("details", {}, el("summary", {}, "The change"), change(l.change)));
  }
  return el("li", {}, box, body);
}

async function loadLetters() {
  const list = await ask(`/dead-letters?limit=${LETTERS}`);
  lettersShown = true;
  keyed($("letters"), list, (l) => l.id, letter, () => {});
  say($("letters-load"), "Look again");
  for (const id of ["letters-all-label", "letters-replay", "letters-purge"]) $(id).hidden = list.length === 0;
  say($("letters-said"), list.length === 0 ? "There are none." : list.length === LETTERS ? `The first ${LETTERS} are shown.` : many(list.length, "letter", "letters"));
  lettersChosen();
}

async function settleLetters(button, verb, path, method, title, text, dangerous) {
  const ids = chosenLetters();
  if (!ids.length || !(await confirmed(title(ids.length), text, verb, dangerous))) return;
  await attempt(button, async () => {
    const done = await ask(`${path}?ids=${ids.map(encodeURIComponent).join(",")}`, method);
    await loadLetters();
    const told = Object.entries(done).filter(([, v]) => typeof v === "number").map(([k, v]) => `${k}: ${whole.format(v)}`);
    say($("letters-said"), `${told.join(", ")}. ${$("letters-said").textContent}`);
  });
  lettersChosen();
}

$("letters").addEventListener("change", lettersChosen);
$("letters-all").addEventListener("change", (e) => {
  for (const box of $("letters").querySelectorAll("input")) box.checked = e.target.checked;
  lettersChosen();
});
$("letters-load").addEventListener("click", (e) => attempt(e.target, loadLetters));
$("letters-replay").addEventListener("click", (e) => settleLetters(e.target, "Replay", "/dead-letters/replay", "POST",
  (n) => `Replay ${many(n, "letter", "letters")}?`, "Each change goes through the transforms and the sink as they are now. What succeeds is taken off the dead letters, after what has been delivered since.", false));
$("letters-purge").addEventListener("click", (e) => settleLetters(e.target, "Purge", "/dead-letters", "DELETE",
  (n) => `Purge ${many(n, "letter", "letters")}?`, "They are gone for good: neither the error nor the change is kept.", true));

// --- the tap ----------------------------------------------------------------------------------------------------

// As many lines as are kept; the newest first.
const TAPPED = 50;
let tapping = null;

function tapStages(stages) {
  const names = stages.map((s) => s.stage).filter((n) => n === "source" || n === "sink" || n.startsWith("transform."));
  keyed($("tap-stage"), inOrder(names, (n) => n), (n) => n, (n) => el("option", { value: n }, n), () => {});
}

async function tapOnce(tap) {
  const query = new URLSearchParams({ id: tap.id, stage: tap.stage });
  if (tap.contains) query.set("contains", tap.contains);
  const taken = await ask(`/tap?${query}`);
  if (tapping !== tap) return;
  tap.seen += taken.seen;
  for (const line of taken.lines) $("tap").prepend(el("li", {}, el("code", {}, JSON.stringify(line))));
  while ($("tap").children.length > TAPPED) $("tap").lastChild.remove();
  say($("tap-said"), `${many(tap.seen, "passed", "passed")}, of which the newest ${TAPPED} that were shown are kept.`);
}

function closeTap(said) {
  tapping = null;
  say($("tap-open"), "Look");
  $("tap-open").setAttribute("aria-pressed", "false");
  say($("tap-said"), said);
}

// Asked again once it has answered; the server ends one that is not.
async function follow(tap) {
  while (tapping === tap) {
    try {
      await tapOnce(tap);
    } catch (error) {
      if (tapping === tap) closeTap(error.message);
      return;
    }
    await new Promise((done) => setTimeout(done, 500));
  }
}

$("tap-open").addEventListener("click", () => {
  if (tapping) return closeTap("");
  const id = `page-${Array.from(crypto.getRandomValues(new Uint32Array(2))).join("-")}`;
  tapping = { id, stage: $("tap-stage").value, contains: $("tap-contains").value, seen: 0 };
  $("tap").replaceChildren();
  say($("tap-open"), "Stop");
  $("tap-open").setAttribute("aria-pressed", "true");
  follow(tapping);
});

// --- once a second ----------------------------------------------------------------------------------------------

let seen = {};

function draw(p) {
  const { status } = p;
  const system = status.health.system;
  document.title = `${system && system.status !== "healthy" ? `${system.status}: ` : ""}${status.pipeline} – penstock`;
  say($("name"), status.pipeline);
  say($("meta"), `${status.phase} · penstock ${status.version}`);
  if (!$("health").firstChild) $("health").append(chip());
  setChip($("health").firstChild, system?.status ?? "starting");
  const bad = p.reloads.complaint;
  // What one notice says, no other repeats.
  const told = bad && system?.reason?.startsWith("config:");
  if (bad && notes.get("asked")?.kind === "bad") note("asked");
  if (system?.reason && system.status !== "healthy" && !told) note("health", STATES[system.status] === "bad" ? "bad" : "warn", `${capital(system.status)}.`, system.reason);
  else note("health");
  if (bad) note("config", "bad", "The newest configuration is not in force.", bad.split("\n")[0]);
  else note("config");
  const r = status.reload;
  if (r) note("reload", "info", `${capital(r.step)} for ${duration(r.step_seconds)}.`, r.waits_for.length ? `Waits for ${r.waits_for.join(", ")}.` : "");
  else note("reload");
  showNotes();
  flow(p);
  addPoint(p.rates);
  for (const one of plots) one.draw(p.at);
  breakers(status.stages);
  tapStages(status.stages);
  components(status.health, p.at);
  shards(status);
  say($("foot"), `As of ${new Date(p.at * 1e3).toLocaleTimeString("en-GB")}. The plots are kept in memory, for an hour.`);
  if (p.reloads.seen !== seen.reloads || p.reloads.hash !== seen.hash) {
    loadConfig().catch(() => {});
    loadReloads().catch(() => {});
  }
  if (lettersShown && p.sink.dead_letters !== seen.letters) loadLetters().catch(() => {});
  seen = { reloads: p.reloads.seen, hash: p.reloads.hash, letters: p.sink.dead_letters };
  before = p;
}

function listen() {
  const events = new EventSource("/events");
  events.addEventListener("message", (e) => {
    document.body.classList.remove("stale");
    note("lost");
    draw(JSON.parse(e.data));
  });
  events.addEventListener("error", () => {
    document.body.classList.add("stale");
    note("lost", "warn", "The connection is lost.", "What is shown is the last that was heard; trying again.");
    showNotes();
    // A token that is no longer the one looks the same from here.
    fetch("/trend").then((answer) => answer.status === 401 && location.reload(), () => {});
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  });
}

fetch("/trend", { credentials: "omit" }).then((answer) => { $("logout").hidden = answer.status !== 401; }, () => {});
loadTrend().catch(() => {}).finally(listen);
setInterval(() => loadTrend().catch(() => {}), 30_000);
