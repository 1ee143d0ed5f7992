"use strict";

const SECONDS = 2;
const find = (id) => document.getElementById(id);
const percent = (value) => (value == null ? "–" : (100 * value).toFixed(1) + " %");
const epsilon = (value) => (value === "inf" ? "∞" : Number(value).toFixed(3));

/* A unit's own columns: the numbers of two units are never comparable. */
function spent(told) {
  return told ? [epsilon(told.epsilon), told.limit ?? "none"] : ["–", "–"];
}

function bytes(count) {
  for (const unit of ["B", "kB", "MB"]) {
    if (count < 1000) return count.toFixed(unit === "B" ? 0 : 1) + " " + unit;
    count /= 1000;
  }
  return count.toFixed(1) + " GB";
}

/* Whatever comes from the run is put in as text, never as markup. */
function fill(body, rows) {
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    for (const cell of cells) {
      const field = row.insertCell();
      field.textContent = cell.text ?? cell;
      if (cell.bad) field.className = "bad";
    }
    return row;
  }));
}

function draw(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text) node.textContent = text;
  return node;
}

function chart(rounds) {
  const width = 900, height = 240, left = 50, right = 70, top = 12, bottom = 28;
  const last = Math.max(2, ...rounds.map((row) => row.round));
  const x = (round) => left + ((round - 1) / (last - 1)) * (width - left - right);
  const y = (share) => top + (1 - share) * (height - top - bottom);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Accuracy by round" });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    svg.append(draw("line", { class: "grid", x1: left, x2: width - right, y1: y(share), y2: y(share) }));
    svg.append(draw("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, 100 * share + " %"));
  }
  for (const round of new Set([1, Math.round((1 + last) / 2), last])) {
    svg.append(draw("text", { x: x(round), y: height - 8, "text-anchor": "middle" }, "round " + round));
  }
  const ends = [];
  for (const [key, name] of [["teacher_accuracy", "teacher"], ["student_accuracy", "students"]]) {
    const known = rounds.filter((row) => row[key] != null);
    if (!known.length) continue;
    svg.append(draw("polyline", { class: name, points: known.map((row) => x(row.round) + "," + y(row[key])).join(" ") }));
    for (const row of known) svg.append(draw("circle", { class: name + "-dot", cx: x(row.round), cy: y(row[key]), r: 3 }));
    const end = known[known.length - 1];
    ends.push({ name, x: x(end.round) + 8, y: y(end[key]) + 4 });
  }
  ends.sort((one, other) => one.y - other.y);
  if (ends.length === 2) ends[1].y = Math.max(ends[1].y, ends[0].y + 14); // two lines that meet keep two labels
  for (const end of ends) svg.append(draw("text", { x: end.x, y: end.y }, end.name));
  find("chart").replaceChildren(rounds.length ? svg : "No round has ended yet.");
}

function show(run) {
  const rounds = run.rounds, last = rounds[rounds.length - 1];
  document.title = find("name").textContent = run.name;
  find("rounds").textContent = rounds.length;
  find("teacher").textContent = last ? percent(last.teacher_accuracy) : "–";
  find("answered").textContent = last ? last.answered : "–";
  find("missing").textContent = last ? last.refused + last.failed : "–";
  find("missing").className = last && last.refused + last.failed ? "bad" : "";
  find("up").textContent = bytes(run.bytes_up);
  find("down").textContent = bytes(run.bytes_down);
  chart(rounds);
  fill(find("table").tBodies[0], rounds.slice().reverse().map((row) => [
    row.round, percent(row.teacher_accuracy), row.answered, { text: row.refused, bad: row.refused },
    { text: row.failed, bad: row.failed }, bytes(row.bytes_up), bytes(row.bytes_down), row.seconds.toFixed(1),
  ]));
  find("unknown").hidden = run.clients.length > 0;
  find("clients").hidden = !run.clients.length;
  fill(find("clients").tBodies[0], run.clients.map((one) => one.error
    ? [one.client, { text: one.error, bad: true }]
    : [one.client, ...["example", "client"].flatMap((unit) => spent(one.spent[unit])), one.delta, one.releases,
      one.noise === "os" ? "operating system" : { text: one.noise + ": NO guarantee", bad: true }]));
  find("fine").hidden = run.errors.length > 0;
  find("errors").replaceChildren(...run.errors.slice().reverse().map((text) => {
    const item = document.createElement("li");
    item.textContent = text;
    return item;
  }));
}

async function refresh() {
  try {
    const answer = await fetch("data.json");
    if (!answer.ok) throw new Error(answer.status);
    show(await answer.json());
    find("state").textContent = "live, read every " + SECONDS + " s";
  } catch {
    find("state").textContent = "fedkd dashboard has ended; this is what it knew last";
  }
  setTimeout(refresh, 1000 * SECONDS);
}

refresh();
