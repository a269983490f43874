// Draws openapi.json. Nothing is fetched from elsewhere.

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// An example value of a schema: what one would see, without reading the schema.
function example(schema, spec, depth = 0) {
  if (!schema || depth > 8) return null;
  if (schema.$ref) return example(spec.components.schemas[schema.$ref.split("/").pop()], spec, depth + 1);
  if (schema.const !== undefined) return schema.const;
  if (schema.default !== undefined) return schema.default;
  if (schema.enum) return schema.enum[0];
  if (schema.anyOf) return example(schema.anyOf[0], spec, depth + 1);
  if (schema.type === "array") return [example(schema.items, spec, depth + 1)];
  if (schema.type === "object") {
    const entries = Object.entries(schema.properties ?? {});
    return Object.fromEntries(entries.map(([name, inner]) => [name, example(inner, spec, depth + 1)]));
  }
  if (schema.format === "date-time") return "2026-01-31T09:30:00Z";
  return { string: "text", integer: 1, number: 1.5, boolean: true }[schema.type] ?? null;
}

function sample(content, spec) {
  const json = content?.["application/json"];
  if (!json?.schema?.$ref) return null;
  return make("pre", { tabIndex: 0 }, JSON.stringify(example(json.schema, spec), null, 2));
}

function table(heads, rows) {
  const head = make("tr", {}, ...heads.map((text) => make("th", { scope: "col" }, text)));
  const body = rows.map((row) => make("tr", {}, ...row.map((text) => make("td", {}, text))));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
}

function bounds(schema) {
  if (schema.enum) return schema.enum.join(", ");
  if (schema.maximum) return `${schema.minimum}–${schema.maximum}, default ${schema.default}`;
  return schema.type;
}

function operation(path, verb, what, spec) {
  const inside = make("div", { className: "inside" });
  if (what.description) inside.append(make("p", {}, what.description));
  if (what.security.length === 0) inside.append(make("p", {}, "No log-in needed."));
  if (what.parameters) {
    const rows = what.parameters.map((p) => [make("code", {}, p.name), bounds(p.schema), p.description ?? p.in]);
    inside.append(make("h3", {}, "Parameters"), table(["Name", "Value", "Meaning"], rows));
  }
  const body = sample(what.requestBody?.content, spec);
  if (body) inside.append(make("h3", {}, "Body"), body);
  inside.append(make("h3", {}, "Answers"));
  const rows = Object.entries(what.responses).map(([status, answer]) => [make("code", {}, status), answer.description]);
  inside.append(table(["Status", "Meaning"], rows));
  const good = Object.entries(what.responses).find(([status]) => status < 400);
  const answer = sample(good?.[1].content, spec);
  if (answer) inside.append(make("h3", {}, `Example of ${good[0]}`), answer);
  const method = verb.toUpperCase();
  const summary = make(
    "summary", {},
    make("strong", { className: "verb", "data-verb": method }, method),
    make("code", {}, path),
    make("span", {}, what.summary),
  );
  const details = make("details", { className: "card", id: what.operationId }, summary, inside);
  details.dataset.text = `${method} ${path} ${what.summary}`.toLowerCase();
  return details;
}

function draw(spec) {
  $("version").textContent = spec.info.version;
  $("about").textContent = spec.info.description;
  for (const tag of spec.tags) {
    const section = make("section", { "aria-label": tag.name }, make("h2", {}, tag.name), make("p", { className: "soft" }, tag.description));
    for (const [path, verbs] of Object.entries(spec.paths)) {
      for (const [verb, what] of Object.entries(verbs)) {
        if (what.tags[0] === tag.name) section.append(operation(path, verb, what, spec));
      }
    }
    $("operations").append(section);
  }
  search();
  if (location.hash) {
    const target = $(location.hash.slice(1));
    if (target) {
      target.open = true;
      target.scrollIntoView();
    }
  }
}

function search() {
  const words = $("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  let found = 0;
  for (const section of document.querySelectorAll("#operations section")) {
    let here = 0;
    for (const details of section.querySelectorAll("details")) {
      details.hidden = !words.every((word) => details.dataset.text.includes(word));
      if (!details.hidden) here += 1;
    }
    section.hidden = here === 0;
    found += here;
  }
  $("state").textContent = words.length ? `${found} found` : `${found} operations`;
}

$("search").addEventListener("input", search);

fetch("/api/v1/openapi.json")
  .then((response) => response.json())
  .then(draw)
  .catch(() => {
    $("state").textContent = "The description could not be loaded. Reload the page to try again.";
  });
