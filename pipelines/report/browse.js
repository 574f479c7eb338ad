boxmill.start = () => {
  const about = boxmill.about;
  const images = about.images;
  const count = (images.id ?? []).length;
  const by = (id) => document.getElementById(id);
  const grid = by("grid"), detail = by("detail"), stage = by("stage");
  const BATCH = 60, CARD = { letters: 10, least: 64 }, STAGE = { letters: 14, least: 24 }; // pixels of the screen

  const usual = {
    label: -1, low: about.low, high: 1, show: "", split: "*", sort: by("sort").value, text: "",
    boxes: true, masks: true, skeletons: true, names: true, truth: false,
  };
  const view = { ...usual };
  let chosen = [], shown = 0, open = -1;

  // Options that the data has.
  const present = new Set([...images.c ?? [], ...images.t ?? []].flat());
  about.classes.forEach((name, label) => { if (present.has(label)) by("class").append(new Option(name, label)); });
  const splits = [...new Set(images.split ?? [])].sort();
  if (splits.length > 1) {
    for (const name of splits) by("split").append(new Option(name || "no split", name));
    by("splits").hidden = false;
  }

  const isWrong = (at, kept) => kept.some((k) => boxmill.state(at, k) === "false") || boxmill.missed(at, view).length > 0;
  const fits = (at, words) => {
    if (view.split !== "*" && images.split[at] !== view.split) return false;
    if (words && !images.id[at].toLowerCase().includes(words)) return false;
    const kept = boxmill.objects(at, view);
    switch (view.show) {
      case "wrong": return isWrong(at, kept);
      case "false": return kept.some((k) => boxmill.state(at, k) === "false");
      case "missed": return boxmill.missed(at, view).length > 0;
      case "right": return images.looked[at] && kept.length > 0 && !isWrong(at, kept);
      case "empty": return kept.length === 0;
      default: return kept.length > 0 || (view.label < 0 && view.low <= usual.low && view.high === 1);
    }
  };
  const scores = (at) => boxmill.objects(at, view).map((k) => images.s[at][k]);
  const key = {
    u: (at) => -images.u[at],
    errors: (at) => -(boxmill.objects(at, view).filter((k) => boxmill.state(at, k) === "false").length + boxmill.missed(at, view).length),
    low: (at) => Math.min(2, ...scores(at)),
    high: (at) => -Math.max(-1, ...scores(at)),
    many: (at) => -boxmill.objects(at, view).length,
  };
  const choose = () => {
    const words = view.text.trim().toLowerCase();
    chosen = [...Array(count).keys()].filter((at) => fits(at, words));
    if (view.sort === "name") chosen.sort((a, b) => (images.id[a] < images.id[b] ? -1 : 1));
    else {
      const keys = new Map(chosen.map((at) => [at, key[view.sort](at)]));
      chosen.sort((a, b) => keys.get(a) - keys.get(b) || a - b);
    }
  };

  // Cards are filled when they come near the window and emptied when they are far, so that thousands stay light.
  const fill = async (card) => {
    const at = Number(card.dataset.at);
    const picture = boxmill.picture(at);
    card.firstChild.replaceChildren(picture);
    await drawOn(picture, at, CARD);
  };
  const drawOn = async (picture, at, kind) => {
    try {
      const marks = (await boxmill.load(Math.floor(at / about.shard)))[at % about.shard];
      boxmill.draw(picture, at, marks, view, kind);
    } catch (error) {
      by("more").textContent = error.message;
    }
  };
  const near = new IntersectionObserver((changes) => {
    for (const { target, isIntersecting } of changes) {
      if (isIntersecting) fill(target);
      else target.firstChild.replaceChildren();
    }
  }, { rootMargin: "800px 0px" });
  const card = (at, place) => {
    const item = document.createElement("li"), button = document.createElement("button");
    const frame = document.createElement("span"), name = document.createElement("span"), facts = document.createElement("span");
    button.type = "button";
    button.className = "shot";
    button.dataset.at = at;
    button.dataset.place = place;
    frame.className = "frame";
    name.className = "path";
    name.textContent = images.id[at];
    facts.className = "soft";
    facts.textContent = factsOf(at);
    button.append(frame, name, facts);
    button.addEventListener("click", () => show(place));
    item.append(button);
    return item;
  };
  const objectsOf = (at) => {
    if (!images.looked[at]) return "";
    const kept = boxmill.objects(at, view).length, missed = boxmill.missed(at, view).length;
    const parts = [`${kept} object${kept === 1 ? "" : "s"}`];
    if (missed) parts.push(`${missed} missed`);
    if (about.predicted && kept) parts.push(`uncertainty ${images.u[at].toFixed(2)}`);
    return parts.join(" · ");
  };
  // A card says why where there is nothing to see; opened, an image always does.
  const factsOf = (at) => {
    const why = images.looked[at] && images.thumb[at] ? "" : images.why[at];
    return [objectsOf(at), why].filter(Boolean).join(" · ") || "nobody has looked";
  };
  const extend = () => {
    const part = chosen.slice(shown, shown + BATCH).map((at, i) => card(at, shown + i));
    shown += part.length;
    grid.append(...part);
    for (const item of part) near.observe(item.firstChild);
    by("more").textContent = shown < chosen.length ? `${shown.toLocaleString("en")} of ${chosen.length.toLocaleString("en")} shown, more below` : "";
  };
  const end = new IntersectionObserver((changes) => {
    if (changes.some((change) => change.isIntersecting) && shown < chosen.length) extend();
  }, { rootMargin: "1500px 0px" });

  const render = () => {
    choose();
    near.disconnect();
    grid.replaceChildren();
    shown = 0;
    extend();
    const objects = chosen.reduce((sum, at) => sum + boxmill.objects(at, view).length, 0);
    by("count").textContent = `${chosen.length.toLocaleString("en")} of ${count.toLocaleString("en")} images · ${objects.toLocaleString("en")} objects`;
    if (usual.low > 0 && view.low === usual.low) {
      const hidden = chosen.reduce((sum, at) => sum + images.s[at].filter((score) => score < view.low).length, 0);
      by("count").append(` · ${hidden.toLocaleString("en")} below a score of ${view.low.toFixed(2)}`);
    }
    // Observed anew, since a short list leaves its end where it was.
    end.disconnect();
    end.observe(by("more"));
    write();
  };
  const redraw = () => {
    for (const svg of grid.querySelectorAll("svg")) drawOn(svg, Number(svg.closest(".shot").dataset.at), CARD);
    if (open >= 0) drawOn(stage.firstChild, chosen[open], STAGE);
    write();
  };

  // One image, large.
  const show = (place) => {
    open = Math.max(0, Math.min(place, chosen.length - 1));
    while (shown <= open && shown < chosen.length) extend();
    const at = chosen[open];
    const picture = boxmill.picture(at);
    stage.replaceChildren(picture);
    drawOn(picture, at, STAGE);
    by("place").textContent = `${(open + 1).toLocaleString("en")} / ${chosen.length.toLocaleString("en")}`;
    by("before").disabled = open === 0;
    by("after").disabled = open === chosen.length - 1;
    by("name").textContent = images.id[at];
    const size = images.w[at] && `${images.w[at]} × ${images.h[at]} px`;
    by("facts").textContent = [size, images.split[at], objectsOf(at)].filter(Boolean).join(" · ");
    by("why").textContent = images.why[at];
    by("why").hidden = !images.why[at];
    by("score-head").hidden = !about.predicted;
    listObjects(at);
    if (!detail.open) detail.showModal();
    write();
  };
  const listObjects = (at) => {
    const rows = boxmill.objects(at, view).map((k) => row(`o${k}`, about.classes[images.c[at][k]], images.s[at][k], boxmill.state(at, k)));
    for (const k of boxmill.missed(at, view)) rows.push(row(`t${k}`, about.classes[images.t[at][k]], null, "missed"));
    by("objects").replaceChildren(...rows);
  };
  const row = (object, name, score, state) => {
    const line = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    line.append(head);
    if (about.predicted) line.append(cell(score == null ? "" : score.toFixed(2), "num"));
    line.append(cell({ false: "false alarm", crowd: "not counted" }[state] ?? state, `state ${state}`));
    const point = (on) => {
      stage.classList.toggle("focused", on);
      for (const mark of stage.querySelectorAll(".mark")) mark.classList.toggle("focus", on && mark.dataset.object === object);
    };
    line.addEventListener("pointerenter", () => point(true));
    line.addEventListener("pointerleave", () => point(false));
    return line;
  };
  const cell = (text, kind) => {
    const made = document.createElement("td");
    made.textContent = text;
    made.className = kind;
    return made;
  };
  detail.addEventListener("close", () => {
    const last = open;
    open = -1;
    grid.querySelector(`[data-place="${last}"]`)?.focus();
    write();
  });
  by("close").addEventListener("click", () => detail.close());
  by("before").addEventListener("click", () => show(open - 1));
  by("after").addEventListener("click", () => show(open + 1));
  detail.addEventListener("click", (event) => { if (event.target === detail) detail.close(); });

  // What is chosen is in the address, so that it can be passed on.
  const write = () => {
    const told = new URLSearchParams();
    for (const [name, value] of Object.entries(view)) {
      if (value !== usual[name]) told.set(name, name === "label" ? about.classes[value] : String(value));
    }
    if (open >= 0) told.set("image", images.id[chosen[open]]);
    history.replaceState(null, "", `#${told}`);
  };
  const number = (text, fallback) => (Number.isFinite(Number.parseFloat(text)) ? Math.min(1, Math.max(0, Number.parseFloat(text))) : fallback);
  const read = () => {
    const told = new URLSearchParams(location.hash.slice(1));
    Object.assign(view, usual);
    for (const [name, value] of told) {
      if (!(name in view)) continue;
      if (name === "label") view.label = about.classes.indexOf(value);
      else if (typeof usual[name] === "boolean") view[name] = value === "true";
      else view[name] = typeof usual[name] === "number" ? number(value, usual[name]) : value;
    }
    if (view.sort !== "name" && !(view.sort in key)) view.sort = usual.sort;
    return told.get("image");
  };
  const controls = { class: "label", low: "low", high: "high", show: "show", split: "split", sort: "sort", text: "text" };
  const tell = () => {
    for (const [id, name] of Object.entries(controls)) if (by(id)) by(id).value = view[name];
    for (const id of ["low", "high"]) if (by(id)) by(`${id}-out`).textContent = view[id].toFixed(2);
    for (const button of document.querySelectorAll("[data-toggle]")) button.setAttribute("aria-pressed", view[button.dataset.toggle]);
  };
  for (const [id, name] of Object.entries(controls)) {
    by(id)?.addEventListener("input", () => {
      view[name] = typeof usual[name] === "number" ? Number(by(id).value) : by(id).value;
      if (id === "low" && view.high < view.low) view.high = view.low;
      if (id === "high" && view.low > view.high) view.low = view.high;
      tell();
      render();
    });
  }
  const toggle = (name) => { view[name] = !view[name]; tell(); redraw(); };
  for (const button of document.querySelectorAll("[data-toggle]")) button.addEventListener("click", () => toggle(button.dataset.toggle));
  by("bar").addEventListener("submit", (event) => event.preventDefault());

  const letters = { b: "boxes", m: "masks", s: "skeletons", l: "names", ...(about.compared ? { t: "truth" } : {}) };
  const columns = () => {
    const cards = [...grid.children];
    const first = cards.findIndex((item) => item.offsetTop > cards[0].offsetTop);
    return first < 0 ? cards.length : first;
  };
  const step = (pressed) => ({ ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns() })[pressed];
  const move = (by_) => {
    const focused = document.activeElement?.dataset?.place;
    const place = focused === undefined ? 0 : Math.max(0, Math.min(chosen.length - 1, Number(focused) + by_));
    while (shown <= place && shown < chosen.length) extend();
    grid.querySelector(`[data-place="${place}"]`)?.focus();
  };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches?.("input, select, textarea");
    if (typing) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    const name = letters[event.key.toLowerCase()];
    if (name) toggle(name);
    else if (detail.open && ["ArrowRight", "j"].includes(event.key)) show(open + 1);
    else if (detail.open && ["ArrowLeft", "k"].includes(event.key)) show(open - 1);
    else if (detail.open && event.key === "Home") show(0);
    else if (detail.open && event.key === "End") show(chosen.length - 1);
    else if (!detail.open && event.key.startsWith("Arrow") && chosen.length) move(step(event.key));
    else if (!detail.open && event.key === "/") by("text").focus();
    else return;
    event.preventDefault();
  });
  let touched = null;
  stage.addEventListener("touchstart", (event) => { touched = event.touches.length === 1 ? event.touches[0].clientX : null; }, { passive: true });
  stage.addEventListener("touchend", (event) => {
    const moved = touched === null ? 0 : event.changedTouches[0].clientX - touched;
    if (Math.abs(moved) > 50) show(open + (moved < 0 ? 1 : -1));
  });

  const begin = () => {
    const image = read();
    tell();
    render();
    const place = image === null ? -1 : chosen.findIndex((at) => images.id[at] === image);
    if (place >= 0) show(place);
  };
  addEventListener("hashchange", begin);
  addEventListener("resize", redraw);
  begin();
};
